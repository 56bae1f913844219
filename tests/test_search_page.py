"""The page of a search: whole without scripts, safe, and with a script that the policy names and no other."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from slimseek import cli
from slimseek import recipe as recipes
from slimseek.budget import front as fronts
from slimseek.cli import show
from slimseek.errors import ArtifactError, MissingExtra
from slimseek.folder import write_json
from slimseek.measurement import Change, Comparison, Environment, Measurement, Report, StepRecord
from slimseek.report import _trials
from slimseek.report import search as pages
from slimseek.schema import Recipe, RecipeStep
from slimseek.trial import Budget, Figures, Found, Plan, Trial
from small import Page

MACHINE = Environment(
    cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", cores=2, threads=2, instruction_sets=("avx2", "avx512_vnni"),
    memory_bytes=16_760_000_000, system="Linux 6.1.0 x86_64", python="3.11.7", versions={"slimseek": "0.1.0"},
)  # fmt: skip
WEIGHTS, BLOCK, TABLE, LATENCY = 90_260_000, 7_080_000, 46_880_000, 12.4
LOSSES = {8: 0.001, 4: 0.006, 3: 0.021, 2: 0.19}


def changed(relative: float, n: int = 300, half: float = 0.009) -> Change:
    return Change(metric="ndcg@10", before=0.645, after=0.645 * (1 + relative), relative=relative,
                  interval=(relative - half, relative + half), lower_bound=relative - half * 0.84, n=n)  # fmt: skip


def step_of(method: str, before: int, after: int, relative: float | None, macs: tuple[int, int]) -> StepRecord:
    return StepRecord(
        step=method, parameters={}, changed=("a",), parameters_before=22_565_376, parameters_after=22_565_376,
        bytes_before=before, bytes_after=after, macs_before=macs[0], macs_after=macs[1], seconds=2.0,
        compression_ratio=after / before, quality=None if relative is None else changed(relative),
    )  # fmt: skip


def built(number: int, blocks: int, bits: int, vocabulary: bool, dims: int, luck: float) -> Trial:
    """A trial of a made-up but plausible search: bytes by arithmetic, losses that add up, and a little luck."""
    steps: list[RecipeStep] = []
    records: list[StepRecord] = []
    bytes_now, macs, loss = WEIGHTS, 1_420_000_000, 0.0

    def add(method: str, parameters: dict[str, object], left: int, macs_left: int, lost: float) -> None:
        nonlocal bytes_now, macs, loss
        steps.append(RecipeStep(method=method, parameters=parameters))
        records.append(step_of(method, bytes_now, left, -(loss + lost), (macs, macs_left)))
        bytes_now, macs, loss = left, macs_left, loss + lost

    if blocks < 6:
        gone = (6 - blocks) / 6
        add("prune.layers", {"keep": blocks}, WEIGHTS - (6 - blocks) * BLOCK, int(macs * (1 - gone)), 0.012 * gone**1.5)
    if vocabulary:
        add("simplify.vocabulary", {"min_count": 1}, bytes_now - TABLE // 2, macs, 0.0004)
    if dims < 384:
        add("simplify.output_dim", {"dim": dims}, bytes_now + 40_000, macs, 0.004 * (384 / dims - 1))
    add(
        "quantize.weights_int", {"bits": bits, "group_size": 64}, int(bytes_now * (bits + 0.6) / 32), macs, LOSSES[bits]
    )
    latency = LATENCY * (0.15 + 0.85 * blocks / 6) * (0.42 + bits / 100)
    words = [f"{blocks} blocks", f"{bits} bits", *(["vocabulary"] if vocabulary else []),
             *([f"{dims} dims"] if dims < 384 else [])]  # fmt: skip
    return Trial(
        number=number, plan=Plan(
            recipe=Recipe(steps=tuple(steps)), precision="int8" if dims < 384 else "f32", name=", ".join(words),
            choices={"blocks": blocks, "bits": bits, "vocabulary": vocabulary, "dims": dims},
        ),
        reached="whole", change=changed(-loss + luck), seconds=40.0, records=tuple(records),
        figures=Figures(size=bytes_now + 610_000, latency_p50=latency * 0.9, latency_p95=latency, memory=60_000_000,
                        index_size=5183 * dims * (1 if dims < 384 else 4)),
    )  # fmt: skip


def found(budget: Budget | None = None) -> Found:
    """A search with 41 trials: the original, 36 whole ones, two of a part, two that their size ended."""
    budget = budget or Budget(size=12_000_000, max_loss=0.02)
    random = np.random.default_rng(1)
    plans = list(product((6, 4, 3), (8, 4, 3), (False, True), (384, 192)))
    first = Trial(number=0, plan=Plan(recipe=Recipe(steps=()), name="original"), reached="whole",
                  figures=Figures(size=90_870_000, latency_p50=11.9, latency_p95=LATENCY, memory=190_000_000,
                                  index_size=5183 * 384 * 4))  # fmt: skip
    trials = [first]
    for number, (blocks, bits, vocabulary, dims) in enumerate(plans, 1):
        trials.append(built(number, blocks, bits, vocabulary, dims, float(random.normal(0, 0.002))))
    for number in (37, 38):
        half = built(number, 6 if number == 37 else 4, 2, True, 384, -0.01)
        trials.append(msgspec.structs.replace(half, reached="part", change=changed(-0.2, 60, 0.05),
                                              ended="loss 20 % on the first 60 queries", records=()))  # fmt: skip
    for number in (39, 40):
        never = built(number, 6, 8, False, 384, 0.0)
        trials.append(msgspec.structs.replace(never, reached="size", change=None, records=(), figures=Figures(
            size=24_000_000 + number), ended="predicted 24.0 MB of at most 12.0 MB"))  # fmt: skip
    number, met = fronts.choose(trials, budget)
    return Found(
        source="minilm", collection="scifact", budget=budget, trials=tuple(trials), front=fronts.front(trials),
        chosen=number, met=met, unmet=fronts.unmet(trials[number], budget), environment=MACHINE, seconds=1520.0,
        command="slimseek compress minilm --data collections/scifact --max-size 12MB --max-loss 2% --out small",
        notes=("Two trials were ended by their predicted size.",),
    )  # fmt: skip


STRICT = Budget(size=4_000_000, latency_p95=2.0, max_loss=0.01)
NASTY = "</svg></script><script>alert(1)</script>\"'>& \x0b NaN"


@pytest.fixture(scope="module")
def page() -> str:
    return pages.render(found())


@pytest.fixture(scope="module")
def parsed(page: str) -> Page:
    return Page(page)


def bare() -> Found:
    """A search of which only the original is there."""
    return Found(source="m", collection="c", budget=Budget(size=1), trials=found().trials[:1], front=(0,), chosen=0,
                 met=False, unmet="size 91 MB of at most 1 B")  # fmt: skip


# ---------------------------------------------------------------- what is said


def test_the_sentence_says_what_was_asked_and_what_was_found(parsed: Page) -> None:
    f = found()
    trial = f.trials[f.chosen]
    assert f.met
    assert trial.change is not None
    # The chosen one: 3 blocks of 6, 4 bits; its figures are worked in built() and told here in words.
    size = (WEIGHTS - 3 * BLOCK - TABLE // 2) * 4.6 / 32 + 610_000
    assert trial.figures.size == int(size)
    faster = LATENCY / (LATENCY * (0.15 + 0.85 * 0.5) * (0.42 + 0.04))
    assert pages.verdict(f) == (
        f"minilm, asked for at most 12.0 MB and a loss of nDCG@10 of 2 %: met. 3 blocks, 4 bits, vocabulary: "
        f"90.9 → {size / 1e6:.1f} MB, {90_870_000 / size:.1f} times smaller; {faster:.1f} times faster; "
        f"nDCG@10 {100 * (1 + trial.change.relative):.1f} % kept, interval "
        f"{100 * (1 + trial.change.interval[0]):.1f} to {100 * (1 + trial.change.interval[1]):.1f}, "
        "n = 300 development queries"
    )
    assert parsed.text("h1").replace("\xa0", " ") == pages.verdict(f)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(size=10_000_000), "at most 10.0 MB"),
        (Budget(max_loss=0.015), "at most a loss of nDCG@10 of 1.5 %"),
        (Budget(latency_p95=5.0, index_size=20_000_000), "at most 20.0 MB of index and 5.00 ms (p95)"),
        (Budget(size=8_000_000, memory=90_000_000, total=10_000_000, latency_p95=5, max_loss=0.01, metric="mrr@10"),
         "at most 8.0 MB, 90.0 MB of memory, 10.0 MB of package and index, 5.00 ms (p95) and a loss of MRR@10 of 1 %"),
        (Budget(), "no limit"),
    ],
)  # fmt: skip
def test_what_was_asked(budget: Budget, said: str) -> None:
    assert pages.asked(budget) == said


def test_a_budget_that_is_not_met_says_why_and_what_would_do() -> None:
    f = found(STRICT)
    assert not f.met
    assert pages.verdict(f).endswith(f". S{f.unmet[1:]}")
    assert "would do" in f.unmet
    assert "not met. Nearest: " in pages.headline(f)
    shown = Page(pages.render(f))
    assert f"S{f.unmet[1:]}." in shown.words.replace("\xa0", " ")
    statuses = [data for at, data in shown.texts if at == "span" and data in ("kept", "not kept")]
    kept = [limit.kept for limit in fronts.limits(f.trials[f.chosen], STRICT)]
    assert statuses == ["kept" if one else "not kept" for one in kept]
    assert len(kept) == 3


def test_a_search_that_kept_the_original_says_so() -> None:
    f = found(Budget(size=100_000_000, max_loss=0.0))
    f = msgspec.structs.replace(f, trials=f.trials[:1], front=(0,), chosen=0, met=True)
    assert pages.verdict(f).endswith("met. the original as it is: 90.9 MB")
    assert 'data-trial="0"' in pages.render(f)


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("which", ["met", "unmet", "bare"])
def test_the_page_is_balanced_and_its_ids_are_unique(which: str) -> None:
    f = {"met": found(), "unmet": found(STRICT), "bare": bare()}[which]
    tags = Page(pages.render(f)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [name for _, attributes in tags for name in (attributes.get("aria-labelledby") or "").split()]
    assert set(named) <= set(ids)


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(page: str, parsed: Page) -> None:
    tags = parsed.tags
    assert {tag for tag, _ in tags} & {"link", "iframe", "object", "embed", "img", "base", "form"} == set()
    names = {name for _, attributes in tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "xlink:href", "srcset", "action"}
    links = [attributes["href"] for _, attributes in tags if "href" in attributes]
    assert all(link is not None and link.startswith("data:text/yaml;base64,") for link in links)
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#hatch"}
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )  # fmt: skip
    for banned in ("eval", "Function(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "fetch("):
        assert banned not in scripts[0]


def test_what_comes_from_outside_is_escaped() -> None:
    f = found()
    chosen = f.trials[f.chosen]
    step = RecipeStep(method=NASTY, parameters={NASTY: NASTY})
    plan = Plan(recipe=Recipe(steps=(step,)), name=NASTY, choices={NASTY: NASTY}, precision="int8")
    nasty = msgspec.structs.replace(chosen, plan=plan, records=(step_of(NASTY, 10, 5, -0.1, (1, 1)),))
    other = msgspec.structs.replace(f.trials[1], plan=msgspec.structs.replace(plan, choices={NASTY: 2}))
    ended = msgspec.structs.replace(f.trials[37], ended=NASTY)
    trials = (f.trials[0], other, *f.trials[2 : f.chosen], nasty, *f.trials[f.chosen + 1 : 37], ended)
    shown = pages.render(msgspec.structs.replace(
        f, source=NASTY, collection=NASTY, trials=trials, unmet=NASTY, command=NASTY, notes=(NASTY,), met=False,
        budget=Budget(size=1, metric=NASTY, target=NASTY, max_loss=0.01),
    ))  # fmt: skip
    assert shown.count("<script") == 1
    assert "alert(1)</" not in shown
    assert len(Page(shown).all("g")) > 40


def test_every_trial_has_a_row_and_every_quality_a_point(page: str, parsed: Page) -> None:
    f = found()
    rows = [attributes for attributes in parsed.all("tr") if "data-trial" in attributes]
    assert sorted(int(row["data-trial"] or "") for row in rows) == [trial.number for trial in f.trials]
    on_front = {int(row["data-trial"] or "") for row in rows if "off" not in (row["class"] or "")}
    assert on_front == {*f.front, f.chosen, 0}
    by_number = {int(row["data-trial"] or ""): row for row in rows}
    for trial in f.trials:
        row = by_number[trial.number]
        assert float(row["data-size"] or "nan") == trial.figures.size
        assert ("data-latency_p95" in row) == (trial.figures.latency_p95 is not None)
        assert ("data-kept" in row) == (trial.change is not None or trial.number == 0)
    assert by_number[36]["data-kinds"] == (
        "prune.layers\nsimplify.vocabulary\nsimplify.output_dim\nquantize.weights_int\nindex int8"
    )  # fmt: skip
    for cost in ("size", "latency_p95", "index_size", "memory"):
        points = re.findall(r'data-trial="(\d+)"', figure(page, cost))
        assert sorted(map(int, points)) == [trial.number for trial in f.trials if trial.reached != "size"]


def figure(page: str, cost: str) -> str:
    found = re.search(rf'<figure class="plot" id="figure-front-{cost}".*?</figure>', page, flags=re.DOTALL)
    assert found is not None
    return found[0]


def test_points_stand_where_their_figures_are(page: str) -> None:
    """Larger is to the right and better is higher, for all pairs of points that are not cut off below."""
    f = found()
    points = re.findall(
        r'<g class="dot ([^"]*)" data-trial="(\d+)" data-x="([\d.]+)" data-y="([\d.]+)"', figure(page, "size")
    )
    assert {classes.split()[0] for classes, *_ in points} == {"chosen", "front", "beaten", "ended", "original"}
    places = {int(number): (float(x), float(y), "below" in classes) for classes, number, x, y in points}
    assert {number for number, place in places.items() if place[2]} == {37, 38}  # 80 % kept
    assert not re.search(r'dot ended off below"[^>]*><title>[^<]*</title>\s*<path class="ends"', figure(page, "size"))
    assert len(re.findall(r'<path class="ends"', figure(page, "size"))) == 36
    lowest = max(y for _, y, _ in places.values())
    for number, (x, y, below) in places.items():
        for other, (right, higher, cut) in places.items():
            if (f.trials[number].figures.size or 0) < (f.trials[other].figures.size or 0):
                assert x <= right
            if not below and not cut and fronts.quality(f.trials[number]) < fronts.quality(f.trials[other]):
                assert y >= higher
        assert y <= lowest
        assert 46 <= x <= 388


def test_the_picture_describes_the_front(page: str) -> None:
    described = re.search(r'<desc id="front-size-desc">(.*?)</desc>', page)
    assert described is not None
    assert "0 minilm: 90.9 MB, 100 % kept; original" in described[1]
    assert described[1].count("; on the front") == len({*found().front} - {0, found().chosen})
    without_script = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "NaN" not in without_script
    assert "undefined" not in without_script


def test_a_plot_needs_two_points(page: str) -> None:
    assert "<figure" not in pages.render(bare())
    f = found()
    timeless = [msgspec.structs.replace(trial, figures=Figures(size=trial.figures.size)) for trial in f.trials]
    shown = pages.render(msgspec.structs.replace(f, trials=tuple(timeless)))
    assert re.findall(r'id="figure-front-(\w+)"', shown) == ["size"]
    assert 'data-of="latency_p95"' not in shown
    assert 'name="axis"' not in shown


# ---------------------------------------------------------------- recipes


def test_each_recipe_can_be_run_again(parsed: Page) -> None:
    f = found()
    files = {a["download"]: a["href"] for a in parsed.all("a")}
    assert set(files) == {f"trial-{trial.number}.yaml" for trial in f.trials[1:]}
    for trial in f.trials[1:]:
        encoded = (files[f"trial-{trial.number}.yaml"] or "").partition("base64,")[2]
        read = recipes.parse(base64.b64decode(encoded).decode())
        assert read.steps == trial.plan.recipe.steps
    rows = {row.trial.number: row for row in _trials.rows(f)}
    assert rows[1].command == (
        "slimseek compress minilm --data collections/scifact --recipe trial-1.yaml --out trial-1"
    )  # fmt: skip
    assert rows[2].command.splitlines()[1] == (
        "slimseek index trial-2 --data collections/scifact --precision int8 --out trial-2-index"
    )
    assert rows[0].command == rows[0].recipe == ""
    nameless = _trials.rows(msgspec.structs.replace(f, command=""))
    assert "compress minilm --data scifact" in nameless[0].command


def test_what_each_step_saved_is_told_for_every_trial() -> None:
    """Worked by hand: three blocks of 7.08 MB, half of the token table, and 4.6 of 32 bits of the rest."""
    f = found()
    row = next(row for row in _trials.rows(f) if row.trial.number == f.chosen)
    assert row.saved[:3] == (
        "prune.layers: −21.2 MB, quality −0.4 %", "simplify.vocabulary: −23.4 MB, quality 0.0 %",
        "quantize.weights_int: −39.0 MB, quality −0.6 %",
    )  # fmt: skip
    assert row.saved[3].startswith("all else: −9.12 ms, quality ")


# ---------------------------------------------------------------- thinned


def test_at_most_ten_rows_of_the_front_are_left() -> None:
    rows = _trials.rows(found())
    front = [row for row in rows if row.role in ("front", "chosen", "original")]
    assert len(front) > 15
    few = _trials.thinned(rows)
    assert len(few) == 10
    numbers = [row.trial.number for row in few]
    assert {0, found().chosen, front[0].trial.number} <= set(numbers)
    assert numbers == [row.trial.number for row in rows if row.trial.number in numbers]
    assert _trials.thinned(rows, most=100) == tuple(front)
    assert {row.role for row in _trials.thinned(rows, most=2)} == {"chosen", "original"}


def test_the_terminal_shows_ten_rows_the_verdict_and_what_is_next(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    f = found()
    show.search(f, console, Path("small"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    marked = [line for line in text.splitlines() if "->" in line and "MB" in line]
    assert len(marked) == 1
    assert "31 3 blocks, 4 bits, vocabulary" in marked[0]
    assert pages.verdict(f) in text
    assert f"{len([n for n in f.front if n not in (0, f.chosen)]) - 8} more are on the front" in text
    assert "small/search.html" in text
    assert "next: slimseek deploy small --target onnxruntime --out small-served" in text
    assert sum(" ms" in line and "MB" in line and "│" in line for line in text.splitlines()) == 10


def test_a_folder_with_a_search_gets_its_page(tmp_path: Path) -> None:
    write_json(tmp_path / "search.json", found())
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert pages.verdict(found()) in done.output
    assert out.read_text("utf-8") == pages.render(found())
    (tmp_path / "search.json").write_text("{}")
    broken = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--out", str(out)])
    assert isinstance(broken.exception, ArtifactError)


def test_the_test_queries_and_the_machine_are_on_the_page() -> None:
    def side(subject: str, value: float, size: float) -> Report:
        score = Measurement(name="ndcg@10", value=value, n=100)
        return Report(subject=subject, environment=MACHINE,
                      measurements=(score, Measurement(name="size", value=size, unit="B")))  # fmt: skip

    test = Comparison(collection="scifact, test", original=side("minilm", 0.645, 90.87e6),
                      compressed=side("3 blocks", 0.64, 7.2e6), alternatives=(side("onnxruntime int8", 0.63, 23e6),),
                      changes=(changed(-0.0078),))  # fmt: skip
    words = Page(pages.render(msgspec.structs.replace(found(), test=test))).words.replace("\xa0", " ")
    assert "On the test queries, asked once: nDCG@10 99.2 % kept, interval 98.3 to 100.1, n = 300" in words
    assert "onnxruntime int8" in words
    assert MACHINE.cpu in words
    assert found().command in words
    assert found().notes[0] in words


def test_the_page_comes_back_from_json_the_same(page: str) -> None:
    again = msgspec.json.decode(msgspec.json.encode(found()), type=Found)
    assert pages.render(again) == page


@pytest.mark.parametrize("library", ["altair", "jinja2"])
def test_without_the_extra_only_the_page_is_refused(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("_charts", "_drawing", "_scatter", "_front"):
        monkeypatch.delitem(sys.modules, f"slimseek.report.{name}", raising=False)
    assert pages.verdict(found()).startswith("minilm, asked for ")
    with pytest.raises(MissingExtra, match=rf"{library} is not installed; run: pip install 'slimseek\[report\]'"):
        pages.render(found())
