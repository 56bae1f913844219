"""Quality, comparison, gates, encoding in batches, and the order of timed calls, against hand work and brute force."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, gamma

from slimseek import bootstrap, search, timing
from slimseek.collection import SearchSet
from slimseek.costs import index_cost
from slimseek.encoder import Encoder, check_finite
from slimseek.errors import SlimseekError, UsageError
from slimseek.evaluate import (
    DEPTH,
    Quality,
    compare,
    cosines,
    cost,
    examples,
    invariance,
    measure,
    neighbours,
    neighbours_shared,
    overlap,
    quality,
    quality_gate,
    rank,
    ranked,
    report,
)
from slimseek.inputs.text import ROWS_IN_BATCH, TOKENS_IN_BATCH, TextInput, bucket
from slimseek.measurement import Change, Measurement
from slimseek.preprocess import TextPreprocess
from slimseek.schema import Array, Batch, Precision
from small import CORPUS, many_texts, tiny_encoder, tiny_tokenizer

TEXTS = [*CORPUS.values(), *(" ".join(list(CORPUS.values())[: count + 2]) for count in range(5)), "", "a", "stone"]


def scores(*values: float) -> Measurement:
    return Measurement(name="ndcg@10", value=float(np.mean(values)), n=len(values), per_query=tuple(map(float, values)))


def change(relative: float, lower: float, n: int = 300, n_needed: int | None = None) -> Change:
    return Change(
        metric="ndcg@10", before=0.5, after=0.5 * (1 + relative), relative=relative, interval=(lower, -lower),
        lower_bound=lower, n=n, n_needed=n_needed,
    )  # fmt: skip


def search_set(queries: dict[str, str] | None = None) -> SearchSet:
    queries = queries or {f"q-{name}": text for name, text in CORPUS.items()}
    return SearchSet(
        name="six, test", queries=queries, corpus=CORPUS, qrels={name: {name.partition("-")[2]: 1} for name in queries}
    )


def shifted(count: int, loss: float, noise: float, seed: int) -> tuple[Measurement, Measurement]:
    """Scores before, and after with a true relative change of ``-loss``."""
    random = np.random.default_rng(seed)
    before = random.uniform(0.2, 1, count)
    return scores(*before), scores(*before * (1 - loss) + noise * random.standard_normal(count))


# ---------------------------------------------------------------- compare


def test_the_relative_change_worked_by_hand() -> None:
    """Means 0.5 and 0.4."""
    found = compare(scores(0.5, 1, 0, 0.5), scores(0.5, 0.5, 0, 0.6))
    assert (found.metric, found.before, found.after, found.n) == ("ndcg@10", 0.5, 0.4, 4)
    assert found.relative == pytest.approx(-0.2)
    assert found.interval[0] < -0.2 < found.interval[1]
    assert -1 < found.lower_bound < -0.2
    assert found.n_needed is None


def test_identical_scores_have_no_change_and_no_width() -> None:
    found = compare(scores(0.5, 1, 0), scores(0.5, 1, 0), max_loss=0.01)
    assert (found.relative, found.interval) == (0, (0, 0))
    assert found.n_needed == pytest.approx(300, abs=3), "1 in 100 that lose all are missed by 299 in 5 % of samples"
    many = compare(scores(*[0.5, 1, 0] * 110), scores(*[0.5, 1, 0] * 110), max_loss=0.01)
    assert many.n_needed is None
    assert quality_gate(many, 0.01).status == "passed"


def test_queries_are_paired() -> None:
    """Every query loses exactly a tenth: however queries are drawn, the change is -0.1, though scores differ widely."""
    before = np.geomspace(0.001, 1, 30)
    found = compare(scores(*before), scores(*0.9 * before))
    assert (*found.interval, found.lower_bound) == pytest.approx((-0.1,) * 3, abs=1e-9)


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    """Queries drawn with replacement in a loop of three lines, with another generator."""
    first, second = shifted(60, loss=0.04, noise=0.1, seed=3)
    before, after = np.array(first.per_query), np.array(second.per_query)
    random = np.random.default_rng(99)
    drawn = []
    for _ in range(10_000):
        chosen = random.integers(0, 60, 60)
        drawn.append(after[chosen].mean() / before[chosen].mean() - 1)
    found = compare(first, second)
    width = np.std(drawn)
    assert found.interval == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.1 * width)
    place = (after - before).argmin()
    bounded = []
    for _ in range(10_000):
        weights = np.append(random.standard_exponential(60), 0)
        weights[-1] = random.standard_exponential()
        first_sum, second_sum = (weights @ np.append(one, one[place]) for one in (before, after))
        bounded.append(second_sum / first_sum - 1)
    assert found.lower_bound == pytest.approx(np.percentile(bounded, 5), abs=0.1 * width)
    assert found.lower_bound < np.percentile(drawn, 5), "one more of the worst"


@pytest.mark.parametrize("lost", [0, 1, 3, 12, 40])
def test_the_bound_of_what_is_lost_or_kept_is_the_exact_one(lost: int) -> None:
    """Clopper and Pearson's, of a share: 95 % quantile of Beta(lost + 1, n - lost)."""
    after = [0.0] * lost + [1.0] * (300 - lost)
    found = compare(scores(*[1.0] * 300), scores(*after))
    assert found.lower_bound == pytest.approx(-beta.ppf(0.95, lost + 1, 300 - lost), rel=0.02)


def test_a_few_changed_queries_do_not_say_how_bad_they_get() -> None:
    """Four of 400 lose a tenth: the next may lose all. Of five it is known better: 10.5 / 400 of a tenth, by hand."""
    bounds = {}
    for changed in (4, 5):
        after = [0.9] * changed + [1.0] * (400 - changed)
        bounds[changed] = compare(scores(*[1.0] * 400), scores(*after)).lower_bound
    assert bounds[4] < -0.0075
    assert bounds[5] == pytest.approx(-0.1 * gamma.ppf(0.95, 6) / 400, rel=0.03)


def test_many_sets_at_once_have_the_bounds_of_each() -> None:
    pairs = [shifted(50, loss, 0.1, seed) for seed, loss in enumerate((0, 0.1, 0.5))]
    before, after = (np.array([pair[side].per_query for pair in pairs]) for side in (0, 1))
    together = bootstrap.change_bounds(before, after)
    assert together.shape == (3, 3)
    for row, pair in enumerate(pairs):
        found = compare(*pair)
        assert together[:, row] == pytest.approx((found.interval[0], found.lower_bound, found.interval[1]))


@pytest.mark.parametrize("loss", [0.01, 0.02, 0.05])
def test_a_loss_of_whole_queries_is_not_accepted_more_often_than_said(loss: float) -> None:
    """A share ``loss`` of the queries loses all: with so few queries that one may see none, nothing passes; with
    1,000 at most 5 of 100, of 400 samples fewer than 35 (chance of more: 1 in 1,000).
    """
    random = np.random.default_rng(4)
    before = random.choice([0.0, 0.5, 0.63, 1.0, 1.0], (400, 1000))
    after = np.where(random.random(before.shape) < loss, 0, before)
    assert (bootstrap.change_bounds(before, after)[1] >= -loss).sum() < 35
    few = bootstrap.fewest_queries(loss) - 1
    one = compare(scores(*[1.0] * few), scores(*[1.0] * few), loss)
    assert quality_gate(one, loss).status == "undecided"
    assert one.n_needed == few + 1
    assert (1 - loss) ** few > 0.05 >= (1 - loss) ** (few + 1)


def test_the_interval_covers_a_known_shift_as_often_as_it_says() -> None:
    """95 in 100; of 60 samples fewer than 50 would be chance once in ten thousand times.

    Nor is it wider than it must be: noise of 0.1 on a mean of 0.6 has the standard error 0.1 / 0.6 / sqrt(80) = 0.0186.
    """
    intervals = [compare(*shifted(80, loss=0.05, noise=0.1, seed=seed)).interval for seed in range(60)]
    assert sum(low <= -0.05 <= high for low, high in intervals) >= 50
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(2 * 1.96 * 0.0186, rel=0.1)


def test_the_same_scores_give_the_same_interval_again() -> None:
    pair = shifted(40, loss=0.02, noise=0.1, seed=0)
    assert compare(*pair, max_loss=0.01) == compare(*pair, max_loss=0.01)


def test_a_baseline_of_zero_gives_no_nan() -> None:
    for after, relative in ((0.0, 0.0), (0.5, 1.0)):
        found = compare(scores(0, 0, 0), scores(0, 0, after), max_loss=0.01)
        assert found.relative == relative
        assert np.isfinite([*found.interval, found.lower_bound]).all()
        assert found.n_needed is None


@pytest.mark.parametrize(
    ("loss", "max_loss", "noise"), [(0.0, 0.01, 0.1), (0.002, 0.01, 0.1), (0.01, 0.03, 0.2), (0.3, 0.31, 0.05)]
)
def test_with_as_many_queries_as_it_asks_for_the_bound_reaches_the_loss(
    loss: float, max_loss: float, noise: float
) -> None:
    """The same queries over and over keep mean and spread: with n_needed of them the bound lies at -max_loss."""
    first, second = shifted(40, loss, noise, seed=1)
    offset = (1 - loss) * first.value - second.value
    second = scores(*np.array(second.per_query) + offset)  # the change measured is exactly -loss
    found = compare(first, second, max_loss)
    assert found.lower_bound < -max_loss
    assert found.n_needed is not None
    times = round(found.n_needed / 40)
    assert times > 1
    again = compare(scores(*first.per_query * times), scores(*second.per_query * times), max_loss)
    assert again.lower_bound == pytest.approx(-max_loss, abs=0.15 * (max_loss - loss))
    more = compare(scores(*first.per_query * 2 * times), scores(*second.per_query * 2 * times), max_loss)
    assert more.n_needed is None
    assert quality_gate(more, max_loss).status == "passed"


def test_no_number_of_queries_would_do_where_the_loss_is_too_large() -> None:
    first, second = shifted(40, loss=0.2, noise=0.1, seed=1)
    assert compare(first, second, max_loss=0.01).n_needed is None


def test_both_sides_must_have_scored_the_same_queries() -> None:
    with pytest.raises(AssertionError, match="same queries"):
        compare(scores(1, 1), scores(1, 1, 1))


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("relative", "lower", "status"),
    [
        (0.0, 0.0, "passed"),
        (0.05, 0.02, "passed"),
        (-0.005, -0.0099, "passed"),
        (-0.005, -0.01, "passed"),
        (-0.005, -0.0101, "undecided"),
        (-0.01, -0.03, "undecided"),
        (-0.0101, -0.03, "failed"),
        (-0.5, -0.6, "failed"),
    ],
)
def test_the_quality_gate_passes_is_undecided_or_fails(relative: float, lower: float, status: str) -> None:
    found = quality_gate(change(relative, lower), 0.01)
    assert (found.gate, found.status) == ("quality", status)
    assert (found.value, found.limit) == (relative, -0.01)
    assert "n = 300" in found.detail
    assert "1.0%" in found.detail


def test_an_undecided_gate_says_how_many_queries_it_would_take() -> None:
    assert "about 1,234 queries" in quality_gate(change(-0.005, -0.02, n_needed=1234), 0.01).detail
    assert "proving" not in quality_gate(change(-0.5, -0.6), 0.01).detail


def test_one_query_proves_nothing() -> None:
    """A change on a single query has no spread to bound it by."""
    assert quality_gate(compare(scores(1.0), scores(0.995), 0.01), 0.01).status == "undecided"


def one_scale_for_the_batch(encoder: Encoder) -> Encoder:
    """Rounds a batch with a scale of the whole batch, as dynamic per-tensor int8 does (CASES Q4)."""

    def encode(batch: Batch) -> Array:
        vectors = encoder.encode(batch) * (1 + batch["attention_mask"].sum(1, keepdims=True))
        step = np.abs(vectors).max() / 3
        rounded = np.rint(vectors / step).astype(np.float32)
        return rounded + np.float32(1e-3)

    return dataclasses.replace(encoder, encode=encode)


def one_scale_for_each_row(encoder: Encoder) -> Encoder:
    """The same rounding, row by row."""

    def encode(batch: Batch) -> Array:
        vectors = encoder.encode(batch)
        step = np.abs(vectors).max(1, keepdims=True) / 3
        return np.rint(vectors / step).astype(np.float32)

    return dataclasses.replace(encoder, encode=encode)


def test_the_invariance_gate_fails_where_a_vector_depends_on_its_batch() -> None:
    found = invariance(one_scale_for_the_batch(tiny_encoder()), TEXTS)
    assert (found.gate, found.status, found.limit) == ("invariance", "failed", 0.999)
    assert found.value is not None
    assert found.value < 0.999


def test_the_invariance_gate_fails_for_a_single_text_among_many() -> None:
    """The first row of a batch turns by a twentieth: cosine 0.9988 for that text, 1 for all others."""
    encoder = tiny_encoder()

    def encode(batch: Batch) -> Array:
        vectors = encoder.encode(batch)
        if len(vectors) > 1 and batch["attention_mask"][0].sum() == len(["[CLS]", "stone", "[SEP]"]):
            vectors[0, :2] += np.array([-vectors[0, 1], vectors[0, 0]]) * 0.05 / np.hypot(*vectors[0, :2])
        return vectors

    found = invariance(dataclasses.replace(encoder, encode=encode), [*TEXTS[:11], "stone", "cat", "dog"])
    assert found.status == "failed"
    assert found.value == pytest.approx(1 / np.hypot(1, 0.05), abs=1e-5)


def test_the_invariance_gate_passes_where_it_does_not() -> None:
    for encoder in (tiny_encoder(), one_scale_for_each_row(tiny_encoder())):
        found = invariance(encoder, TEXTS)
        assert (found.gate, found.status) == ("invariance", "passed")
        assert found.value == pytest.approx(1.0)
        assert f"{len(TEXTS)} items" in found.detail
        assert "overlap 1.000" in found.detail


# ---------------------------------------------------------------- agreement of vectors and rankings


def test_cosines_by_hand() -> None:
    first = np.array([[3, 4], [1, 0], [1, 1], [1e-30, 0]], np.float32)
    second = np.array([[4, 3], [-2, 0], [0, 5], [1e-30, 0]], np.float32)
    np.testing.assert_allclose(cosines(first, second), [24 / 25, -1, 2**-0.5, 1])
    assert cosines(first, second).dtype == np.float64


def test_neighbours_shared_by_hand() -> None:
    """Of the two nearest of each of three items, itself one of them: item 2 turns from item 1's side to item 0's."""
    first = np.array([[1, 0], [0, 1], [0.6, 0.8]])
    second = np.array([[1, 0], [0, 1], [0.8, 0.6]])
    assert neighbours_shared(first, first, 2) == 1.0
    # 0: {0, 2} both times; 1: {1, 2} both times; 2: {2, 1} and {2, 0}
    assert neighbours_shared(first, second, 2) == pytest.approx((1 + 1 + 0.5) / 3)
    assert neighbours_shared(first, second) == 1.0


def test_overlap_by_hand() -> None:
    first = {"a": ["1", "2", "3"], "b": ["4", "5", "6"]}
    second = {"a": ["3", "1", "9"], "b": ["4", "5", "6"]}
    assert overlap(first, second, 3) == pytest.approx((2 / 3 + 1) / 2)
    assert overlap(first, second, 1) == 0.5
    assert overlap(first, second) == pytest.approx((2 / 3 + 1) / 2)
    assert overlap(first, first, 2) == 1.0


# ---------------------------------------------------------------- quality


def test_ranking_is_by_inner_product_and_ties_by_the_documents_order() -> None:
    documents = np.array([[0, 1], [1, 0], [0, 1], [0.5, 0], [1, 0], [0, 0.1]], np.float32)
    queries = np.array([[1, 0], [0, 2]], np.float32)
    judged = search_set({"q1-d1": "x", "q2-d1": "y"})
    assert rank(queries, documents, judged) == {
        "q1-d1": ["d2", "d5", "d4", "d1", "d3", "d6"],
        "q2-d1": ["d1", "d3", "d6", "d2", "d4", "d5"],
    }


def test_the_ranking_is_that_of_brute_force() -> None:
    random = np.random.default_rng(0)
    documents, queries = (random.standard_normal((count, 8)).astype(np.float32) for count in (200, 5))
    corpus = {f"d{number}": "" for number in range(200)}
    names = {f"q{number}": "" for number in range(5)}
    judged = SearchSet(name="set", queries=names, corpus=corpus, qrels={name: {"d1": 1} for name in names})
    expected = np.argsort(-(queries.astype(np.float64) @ documents.T), axis=1)[:, :DEPTH]
    assert rank(queries, documents, judged) == {
        f"q{row}": [f"d{place}" for place in places] for row, places in enumerate(expected)
    }


def random_texts(count: int) -> list[str]:
    """Texts of five letters each, all different."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(list("bdfghjklmnpqrtvwxyz"), 5)) + f" {number}" for number in range(count)]


def test_quality_is_encoding_searching_and_scoring() -> None:
    """Each query is a document, so that with its own text the right one stands first; the fifth is judged wrong."""
    encoder = tiny_encoder(query_prefix="a ")
    judged = search_set()
    judged.qrels["q-d5"] = {"d1": 1}
    found = quality(encoder, judged, ["mrr@10", "recall@1"])
    assert [measurement.name for measurement in found.measurements] == ["mrr@10", "recall@1"]
    np.testing.assert_array_equal(found.documents, encoder.documents(list(CORPUS.values())))
    np.testing.assert_array_equal(found.queries, encoder.queries(list(CORPUS.values())))
    assert all(found.ranking[f"q-{name}"][0] == name for name in CORPUS)
    place = found.ranking["q-d5"].index("d1") + 1
    assert found.get("mrr@10").per_query == pytest.approx((1, 1, 1, 1, 1 / place, 1))
    assert found.get("mrr@10").value == pytest.approx((5 + 1 / place) / 6)
    assert found.get("recall@1").per_query == (1, 1, 1, 1, 0, 1)
    assert (found.get("recall@1").n, found.get("recall@1").higher_is_better) == (6, True)


@pytest.mark.parametrize("metric", ["recall@200", "mrr@1000"])
def test_a_metric_deeper_than_a_hundred_sees_that_deep(metric: str) -> None:
    """The one relevant document is the 131st of 150."""
    encoder, texts = tiny_encoder(), random_texts(150)
    order = np.argsort(-(encoder.queries(["cat b d"]) @ encoder.documents(texts).T)[0], kind="stable")
    judged = SearchSet(
        name="deep",
        queries={"q": "cat b d"},
        corpus={f"d{number}": text for number, text in enumerate(texts)},
        qrels={"q": {f"d{order[130]}": 1}},
    )
    value = 1.0 if metric.startswith("recall") else 1 / 131
    assert quality(encoder, judged, [metric]).get(metric).value == pytest.approx(value)


def random_vectors(count: int, seed: int, dim: int = 32) -> Array:
    """Float32 [count, dim] of length one."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def numbered(documents: int, queries: int, name: str = "set") -> SearchSet:
    """A set of empty texts whose query ``qN`` has the document ``dN`` to find."""
    names = {f"q{number}": "" for number in range(queries)}
    return SearchSet(
        name=name, queries=names, corpus={f"d{number}": "" for number in range(documents)},
        qrels={query: {f"d{query[1:]}": 1} for query in names},
    )  # fmt: skip


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("k", [1, 10])
def test_at_a_precision_is_found_what_a_saved_index_of_it_finds(
    precision: Precision, k: int, tmp_path: Path
) -> None:  # fmt: skip
    """``slimseek.search`` with its defaults, rescoring included, asked for as many as the metric looks at."""
    encoder = tiny_encoder(dim=16)
    texts, queries = many_texts(300), many_texts(40, seed=1)
    corpus = {f"d{number}": text for number, text in enumerate(texts)}
    asked = {f"q{number}": text for number, text in enumerate(queries)}
    search.index(encoder, corpus, tmp_path / "index", precision=precision)
    results = search.open(tmp_path / "index", encoder).query(queries, k)
    first = {query: [result.id for result in row] for query, row in zip(asked, results, strict=True)}
    judged = SearchSet(name="set", queries=asked, corpus=corpus, qrels={query: {"d0": 1} for query in asked})
    exactly = neighbours(judged, quality(encoder, judged, ["map"]), k)
    found = quality(encoder, exactly, [f"recall@{k}"], precision=precision).get(f"recall@{k}")
    assert found.per_query == measure(f"recall@{k}", exactly, first).per_query
    assert found.value == 1.0 or precision in ("int8", "binary")
    assert 0.4 < found.value < 0.95 or precision != "binary"


def test_one_encoding_is_judged_at_every_precision() -> None:
    encoder, judged = tiny_encoder(), search_set()
    vectors = quality(encoder, judged, ["mrr@10"])
    for precision in get_args(Precision):
        whole = quality(encoder, judged, ["mrr@10", "recall@1"], precision=precision)
        again = ranked(vectors.documents, vectors.queries, judged, ["mrr@10", "recall@1"], precision)
        assert again.measurements == whole.measurements
        assert again.ranking == whole.ranking
        np.testing.assert_array_equal(whole.documents, vectors.documents)


def test_coarser_vectors_find_less() -> None:
    judged = numbered(500, 50)
    documents, queries = random_vectors(500, 0, 16), random_vectors(50, 1, 16)
    exactly = neighbours(judged, ranked(documents, queries, judged, ["map"]))
    recalls = [
        ranked(documents, queries, exactly, ["recall@10"], precision).get("recall@10").value
        for precision in get_args(Precision)
    ]
    assert recalls[0] == recalls[1] == 1
    assert recalls[1] > recalls[2] > recalls[3]


def test_documents_that_are_given_are_not_encoded_again() -> None:
    """Only queries are: those of a noisy twin search what the original gave; a brute force finds the same."""
    original, twin = tiny_encoder(), tiny_encoder(noise=0.5)
    texts = {f"d{number}": text for number, text in enumerate(many_texts(120))}
    queries = {f"q{number}": text for number, text in enumerate(many_texts(30, seed=1))}
    judged = SearchSet(name="set", queries=queries, corpus=texts, qrels={query: {"d0": 1} for query in queries})
    documents = original.documents(list(texts.values()))
    asked = []

    def encode(batch: Batch) -> Array:
        asked.append(len(batch["input_ids"]))
        return twin.encode(batch)

    found = quality(dataclasses.replace(twin, encode=encode), judged, ["recall@10"], documents=documents)
    assert sum(asked) == len(queries)
    assert found.documents is documents
    np.testing.assert_array_equal(found.queries, twin.queries(list(queries.values())))
    scores = found.queries.astype(np.float64) @ documents.T.astype(np.float64)
    order = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")
    assert found.ranking == {
        query: [f"d{place}" for place in row[:DEPTH]] for query, row in zip(queries, order, strict=True)
    }


def test_documents_whose_vectors_are_known_are_not_encoded_again() -> None:
    """The same bits, whichever were known; one text that two documents have counts for both."""
    encoder, judged = tiny_encoder(), search_set()
    judged = dataclasses.replace(judged, corpus={**CORPUS, "twice": next(iter(CORPUS.values()))})
    whole = quality(encoder, judged, ["ndcg@10"])
    known = dict(list(zip(judged.corpus.values(), whole.documents, strict=True))[:3])
    given: list[str] = []

    def encode(batch: Batch) -> Array:
        found = encoder.encode(batch)
        given.extend("x" for _ in found)
        return found

    again = quality(dataclasses.replace(encoder, encode=encode), judged, ["ndcg@10"], known=known)
    assert again.documents.tobytes() == whole.documents.tobytes()
    assert again.measurements == whole.measurements
    assert len(given) == len(judged.corpus) - 4 + len(judged.queries), "three, and the one that is there twice"
    every = dict(zip(judged.corpus.values(), whole.documents, strict=True))
    assert quality(encoder, judged, ["ndcg@10"], known=every).ranking == whole.ranking


def test_documents_of_another_width_or_number_are_refused() -> None:
    for shape, words in (((6, 16), r"\[6, 16\]"), ((5, 32), r"\[5, 32\]")):
        with pytest.raises(UsageError, match=rf"tiny: the documents' vectors are {words}; \[6, 32\] are needed"):
            quality(tiny_encoder(), search_set(), ["map"], documents=np.ones(shape, np.float32))


def test_a_classifier_has_neither_precision_nor_documents() -> None:
    encoder = tiny_encoder(name="sorter")
    spec = msgspec.structs.replace(encoder.spec, output="class_logits", classes=tuple(CORPUS))
    sorter = dataclasses.replace(encoder, spec=spec)
    judged = dataclasses.replace(search_set(), labelled=True)
    with pytest.raises(UsageError, match="sorter is a classifier: it keeps no vectors, at int8"):
        quality(sorter, judged, ["accuracy"], precision="int8")
    with pytest.raises(UsageError, match="sorter is a classifier: it searches no index"):
        quality(sorter, judged, ["accuracy"], documents=np.ones((6, 32), np.float32))


def test_neighbours_are_what_the_original_found_first() -> None:
    """No judgement is used, nor needed; of the six documents the first two count."""
    unjudged = dataclasses.replace(search_set({f"q{number}": text for number, text in enumerate(many_texts(9))}),
                                   qrels={})  # fmt: skip
    encoder = tiny_encoder()
    queries = encoder.queries(list(unjudged.queries.values()))
    ranking = rank(queries, encoder.documents(list(CORPUS.values())), unjudged)
    found = Quality(measurements=(), ranking=ranking, documents=queries, queries=queries)
    judged = neighbours(unjudged, found, 2)
    assert judged.qrels == {query: {row[0]: 1, row[1]: 1} for query, row in ranking.items()}
    assert (judged.queries, judged.corpus) == (unjudged.queries, unjudged.corpus)
    assert judged.name == "six, test, first 2 of the original"
    itself = quality(encoder, judged, ["recall@2"]).get("recall@2")
    assert itself.per_query == (1.0,) * 9
    swapped = {query: [row[1], row[2], row[0]] for query, row in ranking.items()}
    assert measure("recall@2", judged, swapped).per_query == (0.5,) * 9


def test_bytes_of_an_index_are_measurements() -> None:
    """100 vectors of 16: 6,400 bytes; as signs 200 and 128 of ranges, with 1,600 and 128 of int8 on disk."""
    sizes = {measurement.name: measurement.value for measurement in index_cost(100, 16, "f32")}
    assert sizes == {"index_size": 6400}
    found = index_cost(100, 16, "binary")
    assert {measurement.name: measurement.value for measurement in found} == {"index_size": 328, "rescore_size": 1728}
    assert {(measurement.unit, measurement.higher_is_better) for measurement in found} == {("B", False)}


def test_an_unknown_metric_is_refused_before_anything_is_encoded() -> None:
    def encode(batch: Batch) -> Array:
        pytest.fail("nothing should be encoded")

    with pytest.raises(UsageError, match="unknown metric"):
        quality(dataclasses.replace(tiny_encoder(), encode=encode), search_set(), ["ndcg@10", "taste@10"])


def test_the_interval_of_a_mean_is_that_of_a_plain_bootstrap() -> None:
    """Half of 40 queries find theirs: the mean 0.5 has standard error sqrt(0.25 / 40) = 0.079."""
    names = {f"q{number}": "" for number in range(40)}
    judged = SearchSet(name="set", queries=names, corpus=CORPUS, qrels={name: {"d1": 1} for name in names})
    ranking = {name: ["d1" if number % 2 else "d2"] for number, name in enumerate(names)}
    found = measure("recall@1", judged, ranking)
    assert found.per_query == (0.0, 1.0) * 20
    assert found.interval == pytest.approx((0.5 - 1.96 * 0.079, 0.5 + 1.96 * 0.079), abs=0.015)


def test_the_examples_are_the_queries_that_changed_most() -> None:
    judged = search_set()
    before = quality(tiny_encoder(), judged, ["mrr@10"])
    ranking = dict(before.ranking)
    ranking["q-d2"] = [*(name for name in ranking["q-d2"] if name != "d2"), "d2"]
    ranking["q-d4"] = [ranking["q-d4"][1], "d4", *ranking["q-d4"][2:]]
    after = dataclasses.replace(before, ranking=ranking, measurements=(measure("mrr@10", judged, ranking),))
    found = examples(judged, before, after, "mrr@10")
    assert [example.query for example in found] == [CORPUS["d2"], CORPUS["d4"]], "those unchanged are left out"
    assert [(example.score_before, example.score_after) for example in found] == [
        (1, pytest.approx(1 / 6)),
        (1, 1 / 2),
    ]
    assert found[1].before[0] == (CORPUS["d4"], True)
    assert found[1].after[:2] == ((CORPUS[ranking["q-d4"][0]], False), (CORPUS["d4"], True))
    assert [example.query for example in examples(judged, before, after, "mrr@10", count=1)] == [CORPUS["d2"]]


# ---------------------------------------------------------------- encoding


@given(length=st.integers(1, 600), longest=st.integers(1, 600))
@settings(deadline=None)
def test_a_bucket_holds_the_sequence_and_stays_within_the_model(length: int, longest: int) -> None:
    width = bucket(length, longest)
    assert width >= length
    assert width <= max(longest, length)
    assert width - length < 32
    assert width - length < 4 or length > 32
    assert bucket(width, longest) == width, "a row that fills its bucket stays there"
    assert bucket(length + 1, longest) >= width


def test_the_buckets_are_few() -> None:
    """CASES S2: a runtime meets 28 widths instead of 512; by hand 8 up to 32, 4 up to 64, 4 up to 128, 12 up to 512."""
    widths = {bucket(length, 512) for length in range(1, 513)}
    assert widths == {*range(4, 33, 4), *range(40, 65, 8), *range(80, 129, 16), *range(160, 513, 32)}
    assert len(widths) == 28
    assert bucket(13, 14) == 14


def test_vectors_are_those_of_one_text_at_a_time_in_the_order_given() -> None:
    encoder = tiny_encoder()
    texts = [*TEXTS, *reversed(TEXTS), *random_texts(80)]
    alone = np.concatenate([encoder.encode(encoder.input([text])) for text in texts])
    np.testing.assert_allclose(encoder.vectors(texts), alone, atol=1e-6)
    assert encoder.vectors(texts).dtype == np.float32
    np.testing.assert_array_equal(encoder.vectors(texts)[::-1], encoder.vectors(texts[::-1]))


def test_no_texts_give_no_vectors() -> None:
    assert tiny_encoder().vectors([]).shape == (0, 32)


def test_batches_are_bounded_and_each_is_as_wide_as_its_bucket() -> None:
    encoder, shapes, done = tiny_encoder(), [], []

    def encode(batch: Batch) -> Array:
        shapes.append(batch["input_ids"].shape)
        return encoder.encode(batch)

    texts = ["cat"] * 150 + ["the cat the dog"] * 3 + [" ".join(["stone"] * 100)] * 70
    dataclasses.replace(encoder, encode=encode).documents(texts, done.append)
    assert sorted(shapes) == [(3, 8), (6, 64), (22, 4), (64, 4), (64, 4), (64, 64)]
    assert all(rows <= ROWS_IN_BATCH and rows * width <= TOKENS_IN_BATCH for rows, width in shapes)
    assert sum(done) == len(texts)
    assert len(done) == len(shapes)


def test_long_texts_come_in_smaller_batches() -> None:
    """Of 256 tokens, 16 rows are 4,096."""
    encoder, shapes = tiny_encoder(), []
    spec = msgspec.structs.replace(encoder.spec, preprocess=TextPreprocess(max_length=256))

    def encode(batch: Batch) -> Array:
        shapes.append(batch["input_ids"].shape)
        return encoder.encode(batch)

    longer = dataclasses.replace(encoder, spec=spec, input=TextInput(spec, tiny_tokenizer()), encode=encode)
    longer.documents([" ".join(["cat"] * 300)] * 40)
    assert shapes == [(16, 256), (16, 256), (8, 256)]


def test_queries_and_documents_carry_their_own_prefix() -> None:
    encoder = tiny_encoder(query_prefix="river: ")
    plain = tiny_encoder()
    np.testing.assert_array_equal(encoder.queries(["a cat"]), plain.documents(["river: a cat"]))
    np.testing.assert_array_equal(encoder.documents(["a cat"]), plain.documents(["a cat"]))


def test_vectors_that_poison_a_ranking_are_refused() -> None:
    good = np.ones((4, 3), np.float32)
    check_finite(good, "model")
    check_finite(np.array([[0, 0, -1e-30]], np.float32), "model")
    for bad, words in (
        (np.nan, "NaN or infinite vectors for 2 items"),
        (-np.inf, "NaN or infinite vectors for 2 items"),
    ):
        vectors = good.copy()
        vectors[1, :2] = vectors[3, 0] = bad
        with pytest.raises(SlimseekError, match=f"model gave {words}"):
            check_finite(vectors, "model")
    vectors = good.copy()
    vectors[2] = 0
    with pytest.raises(SlimseekError, match="model gave zero vectors for 1 items"):
        check_finite(vectors, "model")


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_encoder_that_gives_such_vectors_is_stopped(bad: float) -> None:
    """CASES V9: also where it is one text among many."""

    def encode(batch: Batch) -> Array:
        vectors = np.ones((len(batch["input_ids"]), 32), np.float32)
        vectors[batch["attention_mask"].sum(1) == 2] = bad  # the empty text
        return vectors

    encoder = dataclasses.replace(tiny_encoder(), encode=encode)
    encoder.documents(["a cat"])
    with pytest.raises(SlimseekError, match="for 1 items"):
        encoder.documents(["a cat", "", "a dog"])


# ---------------------------------------------------------------- time and cost


def test_subjects_are_timed_in_turns_and_warm_up_is_not_counted() -> None:
    """CASES Q26: nor does one subject have the quiet hour."""
    calls: list[tuple[str, int]] = []

    def subject(name: str) -> object:
        return lambda number: calls.append((name, number))

    seconds = timing.interleaved(
        {"a": subject("a"), "b": subject("b")}, rounds=2, calls=3, warm_up=2  # type: ignore[dict-item]
    )  # fmt: skip
    block = {turn: [turn * 3, turn * 3 + 1, *range(turn * 3, turn * 3 + 3)] for turn in range(2)}
    assert calls == [(name, number) for turn in range(2) for name in "ab" for number in block[turn]]
    assert {name: values.shape for name, values in seconds.items()} == {"a": (6,), "b": (6,)}
    assert all((values >= 0).all() for values in seconds.values())


def test_each_time_belongs_to_its_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that every call moves by its own number."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def subject(factor: int) -> object:
        def call(number: int) -> None:
            now[0] += factor * (number + 1)

        return call

    seconds = timing.interleaved({"a": subject(1), "b": subject(100)}, rounds=2, calls=2)  # type: ignore[dict-item]
    assert seconds["a"].tolist() == [1, 2, 3, 4]
    assert seconds["b"].tolist() == [100, 200, 300, 400]


def test_cost_gives_bytes_latency_and_throughput_of_every_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that every batch of the one moves by 2 ms, and of the other by 10 ms."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    rows: list[int] = []

    def slow(seconds: float) -> Encoder:
        encoder = tiny_encoder()

        def encode(batch: Batch) -> Array:
            now[0] += seconds
            rows.append(len(batch["input_ids"]))
            return encoder.encode(batch)

        return dataclasses.replace(encoder, encode=encode)

    found = cost({"one": (slow(0.002), ""), "two": (slow(0.01), "")}, ["cat", "dog"], ["stone"] * 100, rounds=2)
    assert set(found) == {"one", "two"}
    for name, seconds in (("one", 0.002), ("two", 0.01)):
        values = {measurement.name: measurement for measurement in found[name]}
        assert {name: (measurement.value, measurement.unit) for name, measurement in values.items()} == {
            "size": (67536, "B"),
            "size_weights": (65536, "B"),
            "size_rest": (2000, "B"),
            "latency_p50": (pytest.approx(seconds * 1000), "ms"),
            "latency_p95": (pytest.approx(seconds * 1000), "ms"),
            "latency_p99": (pytest.approx(seconds * 1000), "ms"),
            "throughput": (pytest.approx(100 / (2 * seconds)), "items/s"),  # 64 texts and 36
        }
        assert {name for name, measurement in values.items() if measurement.higher_is_better} == {"throughput"}
        assert values["latency_p50"].n == 2 * 40
    assert set(rows) == {1, 36, 64}, "latency is of one query at a time"


def test_a_report_names_the_machine_and_finds_its_figures() -> None:
    found = report("tiny", 3, [scores(1, 0)], [Measurement(name="size", value=5.0, unit="B")])
    assert found.subject == "tiny"
    assert [measurement.name for measurement in found.measurements] == ["ndcg@10", "size"]
    assert found.get("size") == Measurement(name="size", value=5.0, unit="B")
    assert found.get("weight") is None
    assert found.environment.threads == 3
    assert 1 <= found.environment.cores == timing.default_threads()
    assert found.environment.versions["numpy"] == np.__version__
    assert set(found.environment.instruction_sets) <= set(timing.INSTRUCTION_SETS)


def test_versions_leave_out_what_is_not_installed() -> None:
    assert timing.versions(("numpy", "no-such-library-here")) == {"numpy": np.__version__}


def test_a_model_that_fails_in_a_fresh_process_gives_one_line() -> None:
    with pytest.raises(SlimseekError, match=r"nowhere failed in a fresh process: .*there is no model") as error:
        timing.fresh_start("nowhere", 1)
    assert "\n" not in str(error.value)
