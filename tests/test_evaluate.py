"""Quality, comparison, gates, encoding in batches, and the order of timed calls, against hand work and brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from slimseek.encoder import Encoder
from slimseek.evaluate import (
    compare,
    cosines,
    invariance,
    neighbours_shared,
    overlap,
    quality_gate,
    rank,
)
from slimseek.schema import Array, Batch, Change, Measurement, SearchSet
from small import CORPUS, tiny_encoder

TEXTS = [*CORPUS.values(), *(" ".join(list(CORPUS.values())[: count + 2]) for count in range(5)), "", "a", "stone"]


def scores(*values: float) -> Measurement:
    return Measurement(name="ndcg@10", value=float(np.mean(values)), n=len(values), per_query=tuple(map(float, values)))


def change(relative: float, lower: float, n: int = 50, n_needed: int | None = None) -> Change:
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
    assert found.interval[0] <= found.lower_bound <= -0.2
    assert found.n_needed is None


def test_identical_scores_have_no_change_and_no_width() -> None:
    found = compare(scores(0.5, 1, 0), scores(0.5, 1, 0), max_loss=0.01)
    assert (found.relative, found.interval, found.lower_bound, found.n_needed) == (0, (0, 0), 0, None)


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
    assert found.lower_bound == pytest.approx(np.percentile(drawn, 5), abs=0.1 * width)


def test_the_interval_covers_a_known_shift_as_often_as_it_says() -> None:
    """95 in 100; of 60 samples fewer than 50 would be a fault (by the binomial law less than once in ten thousand)."""
    covered = 0
    for seed in range(60):
        low, high = compare(*shifted(80, loss=0.05, noise=0.1, seed=seed)).interval
        covered += low <= -0.05 <= high
    assert covered >= 50
    assert covered < 60 or len({compare(*shifted(80, 0.05, 0.1, seed)).interval for seed in range(3)}) == 3


def test_the_same_scores_give_the_same_interval_again() -> None:
    pair = shifted(40, loss=0.02, noise=0.1, seed=0)
    assert compare(*pair, max_loss=0.01) == compare(*pair, max_loss=0.01)


def test_a_baseline_of_zero_gives_no_nan() -> None:
    for after, relative in ((0.0, 0.0), (0.5, 1.0)):
        found = compare(scores(0, 0, 0), scores(0, 0, after), max_loss=0.01)
        assert found.relative == relative
        assert np.isfinite([*found.interval, found.lower_bound]).all()
        assert found.n_needed is None


@pytest.mark.parametrize(("loss", "max_loss", "noise"), [(0.0, 0.01, 0.05), (0.002, 0.01, 0.1), (0.01, 0.03, 0.2)])
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
    assert "n = 50" in found.detail
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


def test_the_invariance_gate_passes_where_it_does_not() -> None:
    for encoder in (tiny_encoder(), one_scale_for_each_row(tiny_encoder())):
        found = invariance(encoder, TEXTS)
        assert (found.gate, found.status) == ("invariance", "passed")
        assert found.value == pytest.approx(1.0)
        assert f"{len(TEXTS)} texts" in found.detail
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


def many(count: int) -> tuple[SearchSet, Encoder]:
    """``count`` documents of descending score for the one query, the last of them relevant."""
    documents = [" ".join(["cat"] * 20 + ["stone"] * number) for number in range(count)]
    corpus = {f"d{number}": text for number, text in enumerate(documents)}
    vectors = {len(text.split()) - 20: text for text in documents}

    def encode(batch: Batch) -> Array:
        stones = batch["attention_mask"].sum(1) - 22
        angle = np.clip(stones, 0, None) * 0.005
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    assert len(vectors) == count
    base = tiny_encoder(dim=2)
    preprocess = dataclasses.asdict  # noqa: F841
    return SearchSet(name="many", queries={"q": "cat"}, corpus=corpus, qrels={"q": {f"d{count - 1}": 1}}), base
