"""The pages in Chinese: every phrase has its words and no words are left over; nothing on a page stays English."""

from __future__ import annotations

import ast
import html
import re
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jinja2
import msgspec
import pytest
from typer.testing import CliRunner

import slimseek
from slimseek import cli, report
from slimseek.errors import UsageError
from slimseek.evaluate import quality_gate
from slimseek.folder import write_json
from slimseek.prove import Options
from slimseek.report import _format, _words
from slimseek.report import search as search_page
from slimseek.report import sensitivity as sensitivity_page
from small import Page
from test_report import change, full, having, minimal
from test_search_page import STRICT, bare, found
from test_sensitivity import made

SOURCE = Path(slimseek.__file__).parent
REPORT = SOURCE / "report"
NAMES = {
    # What has no other name in Chinese: metrics, units, formats, programs, processors, and the ids of steps.
    *(
        "nDCG",
        "ndcg",
        "MAP",
        "MRR",
        "MAC",
        "SQNR",
        "dB",
        "MB",
        "kB",
        "GB",
        "ms",
        "min",
        "log",
        "p50",
        "p95",
        "p99",
        "NaN",
    ),
    *("slimseek", "onnxruntime", "fp32", "Python", "Linux", "numpy", "torch", "int4", "int8", "skip"),
    *("prune", "layers", "channels", "quantize", "weights_int", "activations_int", "simplify", "vocabulary"),
    *("output_dim", "taylor", "yaml", "trial"),
    *("Intel", "Xeon", "Platinum", "CPU", "GHz", "avx2", "avx512f", "avx512_vnni", "amx_int8", "x86_64"),
}


def strings(node: ast.AST) -> Iterator[str]:
    """The texts that an argument can be: a constant, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)


def said_in_code() -> set[str]:
    found: set[str] = set()
    for path in REPORT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("say", "later", "phrase"):
                found.update(strings(node.args[0]))
    return found


def said_in_templates() -> set[str]:
    environment, nodes = jinja2.Environment(), jinja2.nodes
    found: set[str] = set()
    for path in REPORT.glob("*.html.j2"):
        tree = environment._parse(path.read_text("utf-8"), path.name, None)
        calls = [call.args[0] for call in tree.find_all(nodes.Call) if getattr(call.node, "name", "") == "say"]
        for argument in [*calls, *(one.node for one in tree.find_all(nodes.Filter) if one.name == "phrase")]:
            texts = [argument]
            if isinstance(argument, nodes.CondExpr):
                texts = [argument.expr1, argument.expr2]
            elif isinstance(argument, nodes.Getitem):
                texts = [pair.value for pair in argument.node.items]
            found.update(text.value for text in texts)
    return found


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


# ---------------------------------------------------------------- the tables


def test_every_phrase_of_code_and_templates_has_its_words_and_no_others_are_there() -> None:
    words, said = _words.table("zh", "words"), said_in_code() | said_in_templates()
    assert len(said) > 250
    assert said - words.keys() == set(), "these have no Chinese words"
    assert words.keys() - said == set(), "nothing says these"


@pytest.mark.parametrize("table", ["words", "recorded"])
def test_a_translation_has_the_places_of_its_phrase(table: str) -> None:
    for text, said in _words.table("zh", table).items():
        assert places(text) == places(said), text
        assert said, text


def test_every_recorded_form_is_one_that_some_code_writes() -> None:
    """Its longest piece without a figure stands in a file outside of the pages, whole or in two."""
    files = [path.read_text("utf-8") for path in SOURCE.rglob("*.py") if path.parent != REPORT]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(files))
    for form in _words.table("zh", "recorded"):
        piece = max(re.split(r"\{\w+\}", form), key=len).strip(" :;,.()")
        cuts = ((piece[:place].strip(" ,"), piece[place:].strip(" ,")) for place in range(len(piece)))
        assert any(one in code and two in code for one, two in cuts), form


def test_a_longer_form_is_not_taken_for_a_shorter_one() -> None:
    with _words.speaking("zh"):
        assert _words.recorded("loss of ndcg@10 at most 1.0%: -0.98%, one-sided 95 % bound -14.52%, n = 24") == (
            "ndcg@10 损失至多 1.0%：-0.98%，单侧 95 % 界 -14.52%，n = 24"
        )
        assert _words.recorded(
            "loss of ndcg@10 at most 1.0%: -0.98%, one-sided 95 % bound -14.52%, n = 24; proving it would take about "
            "881,837 queries"
        ) == ("ndcg@10 损失至多 1.0%：-0.98%，单侧 95 % 界 -14.52%，n = 24；要证明它约需 881,837 条查询")
        assert _words.recorded("something that no run writes") is None
    assert _words.recorded("something that no run writes") == "something that no run writes"


def test_the_language_ends_with_its_page() -> None:
    english = report.render(minimal())
    assert report.render(minimal(), "zh") != english
    assert report.render(minimal()) == english
    assert report.verdict(full()).startswith("MiniLM: 90.9 → 9.6 MB, 9.4 times smaller")


@pytest.mark.parametrize("lang", ["de", "", "zh-CN"])
def test_another_language_is_refused_before_any_work(lang: str) -> None:
    with pytest.raises(UsageError, match=f"--lang is {lang}; allowed are en and zh"):
        Options(lang=lang)
    with pytest.raises(UsageError, match="allowed are en and zh"):
        report.render(minimal(), lang)


# ---------------------------------------------------------------- the pages


def test_the_verdict_in_chinese() -> None:
    with _words.speaking("zh"):
        assert report.verdict(full()) == (
            "MiniLM：90.9 → 9.6 MB，缩小至 1/9.4；提速至 2.6 倍；nDCG@10 保留 99.1 %，区间 98.2 至 100.1，n = 300"
        )
        slower = having(full(), gates=(quality_gate(change(n_needed=1240), 0.01),), changes=(change(n_needed=1240),))
        assert report.verdict(slower).endswith("未定：n = 300 太少，无法排除1 % 的损失，需要 n = 1,240")


@cache
def searched(lang: str) -> str:
    """The page of a search, which takes seconds to make."""
    return search_page.render(found(), lang)


def plain() -> str:
    """The report in Chinese of a run whose gates and notes are sentences that slimseek writes, without a collection's
    texts.
    """
    gates = (quality_gate(change(n_needed=1240), 0.01), quality_gate(change(), 0.5))
    notes = ("Both sides run in onnxruntime; the original is the fp32 graph with fused operators.",
             "Top-10 overlap with the original's results: 0.945.",
             "Sums of eight-bit products are exact on this CPU.")  # fmt: skip
    records = [msgspec.structs.replace(record, notes=("9,074 of 30,522 tokens kept",), gates=gates)
               for record in full().records]  # fmt: skip
    run = having(full(), collection="scifact, test", gates=gates, notes=notes, records=tuple(records), examples=())
    return report.render(run, "zh")


PAGES = {
    "report": plain,
    "bare report": lambda: report.render(minimal(), "zh"),
    "search": lambda: searched("zh"),
    "unmet search": lambda: search_page.render(msgspec.structs.replace(found(STRICT), notes=()), "zh"),
    "sensitivity": lambda: sensitivity_page.render(made((-0.01, -0.01), (-0.1, -0.3), (-0.03, -0.2)), "zh"),
    "sensitivity without a loss": lambda: sensitivity_page.render(made((-0.01, -0.01), (0.01, 0.04)), "zh"),
}
GIVEN = ("MiniLM", "float16", "potion-base-8M", "dynamic int8 of onnxruntime", "scifact", "minilm", "small", "tiny")
"""Names of models and collections on these pages."""


def texts(page: str) -> list[str]:
    """What a reader sees or hears of a page, without code and without what is marked as English."""
    page = re.sub(
        r"<(style|script|pre|code)\b.*?</\1>|<span lang=\"en\">.*?</span>|<summary>\w+", " ", page, flags=re.S
    )
    said = re.findall(r">([^<]+)<", page)
    said += re.findall(
        r'(?:aria-label|alt|placeholder|data-said|data-any|data-label|data-text|data-name)="([^"]*)"', page
    )
    return [html.unescape(text).strip() for text in said if text.strip()]


@pytest.mark.parametrize("name", PAGES)
def test_no_english_is_left_on_a_page(name: str) -> None:
    page = PAGES[name]()
    assert Page(page).all("html")[0]["lang"] == "zh-Hans"
    left = []
    for text in texts(page):
        for given in GIVEN:
            text = text.replace(given, "")  # noqa: PLW2901
        text = re.sub(r"\{\w+\}|--[\w-]+|a\.\d\.weight|embeddings\.\S+|encoder\.\S+", "", text)  # noqa: PLW2901
        left += [(word, text) for word in re.findall(r"[A-Za-z][A-Za-z0-9_]+", text) if word not in NAMES]
    settings = {"bits", "granularity", "group_size", "symmetric", "rounding", "min_count", "mode", "keep", "dim"}
    assert [pair for pair in left if pair[0] not in settings | {"group"}] == []


@pytest.mark.parametrize("name", ["report", "search"])
def test_what_a_run_wrote_in_words_that_have_no_form_is_marked_as_english(name: str) -> None:
    page = report.render(full(), "zh") if name == "report" else searched("zh")
    marked = re.findall(r'<span lang="en">(.*?)</span>', page)
    assert any(note.startswith(("Timings were taken", "Two trials were")) for note in marked)
    assert "&lt;span" not in page


def test_markup_of_a_note_stays_a_text_in_both_languages() -> None:
    run = having(minimal(), notes=("<b>bold</b> & more",), collection="<i>x</i>, test")
    for lang in _words.LANGUAGES:
        page = report.render(run, lang)
        assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page
        assert "<i>x" not in page


def cells(page: str) -> list[list[str]]:
    """The figures of every cell, in their order, without the 1 of "1/3.9"."""
    found = re.findall(r"<td\b[^>]*>(.*?)</td>", page, re.S)
    return [re.findall(r"[−+]?\d[\d,.]*\d|[−+]?\d", re.sub(r"<[^>]*>", " ", cell).replace("1/", " ")) for cell in found]


def test_figures_are_written_alike_in_both_languages() -> None:
    for english, chinese in (
        (report.render(full()), report.render(full(), "zh")),
        (searched("en"), searched("zh")),
        (sensitivity_page.render(made((-0.1, -0.2))), sensitivity_page.render(made((-0.1, -0.2)), "zh")),
    ):
        one, two = cells(english), cells(chinese)
        assert len(one) == len(two) > 2
        assert [sorted(cell) for cell in one] == [sorted(cell) for cell in two]


def test_the_command_writes_the_page_in_the_language_that_is_asked_for(tmp_path: Path) -> None:
    write_json(tmp_path / "search.json", bare())
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(out), "--lang", "zh"])
    assert done.exit_code == 0, done.output
    assert out.read_text("utf-8") == search_page.render(bare(), "zh")
    for command in (["report", str(tmp_path)], ["compress", "m", "--data", "d"]):
        refused = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "x"), "--lang", "xx"])
        assert isinstance(refused.exception, UsageError)
    assert not (tmp_path / "x").exists()


def test_a_chinese_letter_takes_the_room_of_two() -> None:
    from slimseek.report._drawing import _cut, _letters

    assert _letters("abc") == 3
    assert _letters("压缩") == pytest.approx(3.8)
    assert _cut("模型各部分的字节数", 8) == "模型各…"
    assert _cut("short", 5) == "short"
    assert _cut("longer", 5) == "long…"


def test_an_unknown_name_is_kept_by_the_words_for_figures() -> None:
    with _words.speaking("zh"):
        assert _format.metric_label("recall@100") == "召回率@100"
        assert _format.metric_label("ndcg@10") == "nDCG@10"
        assert _format.figure(None) == _format.DASH
