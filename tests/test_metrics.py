"""Metrics three ways: worked by hand, by their formula in a few lines, and by pytrec_eval itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from slimseek import plugins
from slimseek.bases import Metric
from slimseek.collection import Qrels, SearchSet
from slimseek.datasets.beir import Beir
from slimseek.errors import UsageError
from slimseek.evaluate import measure, metric, rank

RANKINGS = [name for name in plugins.names("metrics") if issubclass(plugins.load("metrics", name), Metric)]
TREC = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "map": "map_cut"}
QRELS: Qrels = {"q": {"a": 3, "b": 2, "c": 0, "d": 1}}
RANKING = {"q": ["b", "c", "a", "x", "d"]}


def score(name: str, qrels: Qrels, ranking: dict[str, list[str]], cutoff: int | None = None) -> dict[str, float]:
    values: dict[str, float] = plugins.load("metrics", name)().per_query(qrels, ranking, cutoff)
    return values


def by_formula(name: str, judged: dict[str, int], ranked: list[str], cutoff: int | None) -> float:
    """The definitions, for one query."""
    cut = ranked[:cutoff]
    relevant = [judged.get(document, 0) > 0 for document in cut]
    positive = sorted((value for value in judged.values() if value > 0), reverse=True)
    if name == "ndcg":
        gain = sum(max(judged.get(document, 0), 0) / math.log2(place + 2) for place, document in enumerate(cut))
        return gain / sum(value / math.log2(place + 2) for place, value in enumerate(positive[:cutoff]))
    if name == "mrr":
        return next((1 / place for place, hit in enumerate(relevant, 1) if hit), 0.0)
    if name == "precision":
        assert cutoff is not None
        return sum(relevant) / cutoff
    if name == "recall":
        return sum(relevant) / len(positive)
    assert name == "map"
    return sum(sum(relevant[:place]) / place for place, hit in enumerate(relevant, 1) if hit) / len(positive)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("name", "cutoff", "value"),
    [
        # ranks 1 to 3 gain 2, 0, 3; the best order gains 3, 2, 1
        ("ndcg", 3, (2 / 1 + 3 / 2) / (3 / 1 + 2 / math.log2(3) + 1 / 2)),
        ("ndcg", 1, 2 / 3),
        ("ndcg", 2, 2 / (3 + 2 / math.log2(3))),
        ("ndcg", 10, (2 / 1 + 3 / 2 + 1 / math.log2(6)) / (3 / 1 + 2 / math.log2(3) + 1 / 2)),
        ("mrr", 10, 1.0),
        ("map", None, (1 / 1 + 2 / 3 + 3 / 5) / 3),
        ("map", 3, (1 / 1 + 2 / 3) / 3),
        ("recall", 1, 1 / 3),
        ("recall", 3, 2 / 3),
        ("recall", 100, 1.0),
        ("precision", 1, 1.0),
        ("precision", 3, 2 / 3),
        ("precision", 10, 3 / 10),  # a list of five is divided by ten all the same
    ],
)
def test_values_worked_by_hand(name: str, cutoff: int | None, value: float) -> None:
    assert score(name, QRELS, RANKING, cutoff) == {"q": pytest.approx(value)}
    assert by_formula(name, QRELS["q"], RANKING["q"], cutoff) == pytest.approx(value)


def test_mrr_is_of_the_first_relevant_document_within_the_cutoff() -> None:
    ranking = {"q": ["c", "x", "d", "a"]}
    assert score("mrr", QRELS, ranking, 10) == {"q": pytest.approx(1 / 3)}
    assert score("mrr", QRELS, ranking, 3) == {"q": pytest.approx(1 / 3)}
    assert score("mrr", QRELS, ranking, 2) == {"q": 0.0}


@pytest.mark.parametrize(
    ("name", "cutoff"), [("ndcg", 10), ("mrr", 10), ("recall", 100), ("precision", 10), ("map", None)]
)
def test_without_a_cutoff_the_metrics_own_counts(name: str, cutoff: int | None) -> None:
    """One relevant document just inside and just outside the default; MAP takes all."""
    assert plugins.load("metrics", name).default_cutoff == cutoff
    last = 300 if cutoff is None else cutoff
    for place, inside in ((last - 1, True), (last, cutoff is None)):
        ranked = [f"x{number}" for number in range(place)] + ["a"]
        found = score(name, {"q": {"a": 1}}, {"q": ranked})["q"]
        assert (found > 0) is inside
        assert found == pytest.approx(by_formula(name, {"a": 1}, ranked, cutoff))


def test_the_order_given_counts_whatever_the_documents_are_called() -> None:
    for ranked in (["a", "z"], ["z", "a"]):
        found = score("mrr", {"q": {ranked[0]: 1}}, {"q": ranked}, 10)
        assert found == {"q": 1.0}


def test_a_thousand_results_keep_their_order() -> None:
    ranked = [f"d{number}" for number in range(1000)]
    for place in (0, 1, 499, 999):
        assert score("mrr", {"q": {f"d{place}": 1}}, {"q": ranked}, 1000) == {"q": pytest.approx(1 / (place + 1))}


# ---------------------------------------------------------------- against pytrec_eval


@st.composite
def judged_runs(draw: st.DrawFn) -> tuple[Qrels, dict[str, dict[str, float]]]:
    """Judgements of 1 to 4 queries, and runs with many equal scores."""
    documents = [f"d{number}" for number in range(12)]
    queries = [f"q{number}" for number in range(draw(st.integers(1, 4)))]
    judgement = st.dictionaries(st.sampled_from(documents), st.integers(0, 3), min_size=1, max_size=8)
    qrels = {query: draw(judgement) for query in queries}
    run = st.dictionaries(st.sampled_from(documents), st.sampled_from([0.5, 1.0, 2.0, 2.5]), min_size=1, max_size=12)
    return qrels, {query: draw(run) for query in queries}


@given(judged=judged_runs(), cutoff=st.sampled_from([1, 3, 5, 10]))
@settings(max_examples=80, deadline=None)
def test_agrees_with_pytrec_eval_and_with_the_formula(
    judged: tuple[Qrels, dict[str, dict[str, float]]], cutoff: int
) -> None:
    """Of equal scores trec_eval puts the greater name first; pytrec_eval sees the scores, the metric the order."""
    qrels, runs = judged
    ranking = {
        query: [name for name, _ in sorted(run.items(), key=lambda item: (item[1], item[0]), reverse=True)]
        for query, run in runs.items()
    }
    counted = {query for query, row in qrels.items() if any(row.values())}
    measures = {f"{measure}.{cutoff}" for measure in TREC.values()} | {"recip_rank", "map"}
    reference = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(runs)
    for name, trec in TREC.items():
        found = score(name, qrels, ranking, cutoff)
        assert set(found) == counted
        for query in counted:
            assert found[query] == pytest.approx(reference[query][f"{trec}_{cutoff}"], abs=1e-12)
            assert found[query] == pytest.approx(by_formula(name, qrels[query], ranking[query], cutoff), abs=1e-12)
    for query in counted:
        assert score("map", qrels, ranking)[query] == pytest.approx(reference[query]["map"], abs=1e-12)
        assert score("mrr", qrels, ranking, 100)[query] == pytest.approx(reference[query]["recip_rank"], abs=1e-12)
        by_hand = by_formula("mrr", qrels[query], ranking[query], cutoff)
        assert score("mrr", qrels, ranking, cutoff)[query] == pytest.approx(by_hand, abs=1e-12)


# ---------------------------------------------------------------- what broke elsewhere


@pytest.mark.parametrize("name", RANKINGS)
def test_a_document_with_the_querys_own_id_keeps_its_score(name: str) -> None:
    """CASES V1: a perfect run scores 1, though document 0 is called like the query."""
    documents = [str(number) for number in range(10)]
    qrels = {"0": dict.fromkeys(documents, 1)}
    assert score(name, qrels, {"0": documents}, 10) == {"0": pytest.approx(1.0)}
    assert score(name, {"0": {"0": 1}}, {"0": ["0"]}, 1) == {"0": pytest.approx(1.0)}


@pytest.mark.parametrize("name", RANKINGS)
def test_queries_without_a_relevant_document_are_left_out_and_counted(name: str) -> None:
    """CASES V2: 36 of 112 queries are without; the mean is of the other 76 and no value is NaN."""
    qrels = {f"q{number}": {"d1": int(number >= 36), "d2": 0} for number in range(112)}
    ranking = {query: ["d1", "d2"] for query in qrels}
    found = score(name, qrels, ranking, 1)
    assert set(found) == {f"q{number}" for number in range(36, 112)}
    assert set(found.values()) == {1.0}
    measured = measure(f"{name}@1", search_set(qrels), ranking)
    assert (measured.n, measured.value, measured.interval) == (76, 1.0, (1.0, 1.0))
    assert measured.per_query == (1.0,) * 76


def test_no_relevant_document_at_all_is_refused_and_is_no_nan() -> None:
    qrels: Qrels = {"q1": {"d1": 0}, "q2": {}}
    assert score("ndcg", qrels, {"q1": ["d1"], "q2": ["d1"]}) == {}
    with pytest.raises(UsageError, match="no query has a relevant document"):
        measure("ndcg@10", search_set(qrels), {"q1": ["d1"], "q2": ["d1"]})


@pytest.mark.parametrize("name", RANKINGS)
def test_a_query_without_results_scores_zero(name: str) -> None:
    qrels: Qrels = {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d1": 1}}
    assert score(name, qrels, {"q1": ["d1"], "q2": []}, 1) == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


@pytest.mark.parametrize("name", RANKINGS)
def test_a_negative_judgement_is_not_relevant(name: str) -> None:
    """CASES V10: -1 marks the source paper in one set; it gains nothing and costs nothing."""
    found = score(name, {"q": {"a": -1, "b": 1}}, {"q": ["a", "b"]}, 2)
    assert found == score(name, {"q": {"a": 0, "b": 1}}, {"q": ["a", "b"]}, 2)
    assert score(name, {"q": {"a": -1}}, {"q": ["a"]}, 2) == {}


def test_a_judgement_without_a_score_counts_one_and_a_line_given_twice_counts_once(tmp_path: Path) -> None:
    """CASES V11 and V6, read from a folder: gain 1, and a second line adds no relevant document."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "d{n}", "text": "t{n}"}}\n' for n in range(4)))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "t"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\nq\td1\nq\td1\nq\td2\n")
    qrels = Beir().read(str(tmp_path)).qrels["test"]
    assert score("ndcg", qrels, {"q": ["d1", "d0", "d2"]}, 3) == {
        "q": pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    }
    assert score("recall", qrels, {"q": ["d1"]}, 10) == {"q": 0.5}


def test_of_two_equal_documents_the_first_stands_first() -> None:
    """CASES V6: duplicates have the same vector; which of them is judged decides, and it is the same on every run."""
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2]]
    query = np.array([[0, 1, 0]], np.float32)
    for relevant, place in (("d1", 1), ("d2", 2), ("d3", 3)):
        judged = search_set({"q": {relevant: 1}}, documents=5)
        ranking = rank(query, vectors, judged)
        assert ranking["q"][:3] == ["d1", "d2", "d3"]
        assert measure("mrr@10", judged, ranking).value == pytest.approx(1 / place)


def search_set(qrels: Qrels, documents: int = 3) -> SearchSet:
    return SearchSet(
        name="set",
        queries={query: query for query in qrels},
        corpus={f"d{number}": f"text {number}" for number in range(documents)},
        qrels=qrels,
    )


# ---------------------------------------------------------------- names


def test_a_name_gives_metric_and_cutoff() -> None:
    for name, kind, cutoff in (
        ("ndcg@10", "Ndcg", 10),
        ("map", "AveragePrecision", None),
        ("recall@1000", "Recall", 1000),
    ):
        plugin, found = metric(name)
        assert (type(plugin).__name__, found) == (kind, cutoff)


@pytest.mark.parametrize("name", ["ndcg@0", "ndcg@1001", "ndcg@-1", "ndcg@ten", "ndcg@1.5", "ndcg@10@10", "ndcg@"])
def test_a_wrong_cutoff_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="from 1 to 1000") as error:
        metric(name)
    assert repr(name) in str(error.value)


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown metric 'correctness'") as error:
        metric("correctness@10")
    assert str(error.value).endswith(f"known: {', '.join(plugins.names('metrics'))}")
