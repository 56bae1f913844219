"""Model and index under one limit, against brute force and against one after the other."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimseek.budget.joint import (
    IndexOption,
    ModelOption,
    Pair,
    best,
    model_options,
    predicted,
    vector_bytes,
    worth_measuring,
)
from slimseek.errors import UsageError
from slimseek.measurement import Change
from slimseek.schema import Precision, Recipe
from slimseek.trial import Figures, Plan, Trial

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LOSSES = st.floats(-0.1, 1, allow_nan=False)
MODELS = st.lists(
    st.builds(ModelOption, trial=st.integers(0, 99), size=st.integers(1, 5000), dim=st.integers(1, 64), loss=LOSSES),
    min_size=1, max_size=8,
)  # fmt: skip
INDEXES = st.lists(st.builds(IndexOption, precision=st.sampled_from(PRECISIONS), loss=LOSSES), min_size=1, max_size=5)
DOCUMENTS = st.integers(1, 50)
TOTALS = st.integers(1, 20_000)
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def first_the_one(models: list[ModelOption], indexes: list[IndexOption], documents: int, total: int,
                  share: float) -> Pair | None:  # fmt: skip
    """The best model within its share of the bytes, vectors left at its float32; then the best precision for it that
    fits in what is left. Without a share, the best model of those that any precision leaves room for."""

    def smallest(model: ModelOption) -> int:
        return min(vector_bytes(documents, model.dim, index.precision) for index in indexes)

    fitting = [
        model for model in models
        if (model.size <= share * total if share else model.size + smallest(model) <= total)
    ]  # fmt: skip
    if not fitting:
        return None
    model = min(fitting, key=lambda model: model.loss)
    rest = [predicted(model, index, documents) for index in indexes]
    return min((pair for pair in rest if pair.total <= total), key=lambda pair: pair.loss, default=None)


def first_the_index(models: list[ModelOption], indexes: list[IndexOption], documents: int, total: int) -> Pair | None:
    """The other order: the precision that costs least, then the best model that fits with it."""
    index = min(indexes, key=lambda index: index.loss)
    pairs = [predicted(model, index, documents) for model in models]
    return min((pair for pair in pairs if pair.total <= total), key=lambda pair: pair.loss, default=None)


@UNTIMED
@given(models=MODELS, indexes=INDEXES, documents=DOCUMENTS, total=TOTALS)
def test_joint_is_never_worse_than_one_after_the_other_at_equal_bytes(
    models: list[ModelOption], indexes: list[IndexOption], documents: int, total: int
) -> None:
    joint = best(worth_measuring(models, indexes, documents, total), total)
    rivals = [first_the_one(models, indexes, documents, total, share) for share in (0, 0.25, 0.5, 0.75, 0.9)]
    rivals.append(first_the_index(models, indexes, documents, total))
    for rival in (rival for rival in rivals if rival is not None):
        assert joint is not None
        assert joint.total <= total
        assert joint.loss <= rival.loss


def test_joint_finds_what_one_after_the_other_misses() -> None:
    """By hand: 100 documents of 8 dimensions, 4,400 bytes. The model of no loss leaves 400 of them, which only signs
    fit (100 bytes, 64 of ranges; 800 and 64 of int8 beside them do not); the next one has room for int8.
    """
    models = [ModelOption(trial=1, size=4000, dim=8, loss=0.0), ModelOption(trial=2, size=3500, dim=8, loss=0.01)]
    indexes = [IndexOption(precision="f32", loss=0.0), IndexOption(precision="int8", loss=0.005)]
    assert vector_bytes(100, 8, "int8") == 864
    assert vector_bytes(100, 8, "binary") == 164 + 864
    assert first_the_one(models, indexes, 100, 4400, 0.95) is None
    found = best(worth_measuring(models, indexes, 100, 4400), 4400)
    assert found is not None
    assert (found.trial, found.precision, found.total) == (2, "int8", 4364)
    assert found.loss == pytest.approx(1 - 0.99 * 0.995)


@UNTIMED
@given(models=MODELS, indexes=INDEXES, documents=DOCUMENTS, total=TOTALS, slack=st.floats(0, 0.2))
def test_what_is_left_out_does_not_fit_or_another_is_as_small_and_surely_better(
    models: list[ModelOption], indexes: list[IndexOption], documents: int, total: int, slack: float
) -> None:
    pairs = [predicted(model, index, documents) for model in models for index in indexes]
    found = worth_measuring(models, indexes, documents, total, slack=slack)
    assert [pair.loss for pair in found] == sorted(pair.loss for pair in found)
    for pair in pairs:
        beaten = any(other.total <= pair.total and other.loss + slack < pair.loss for other in pairs)
        assert (pair in found) == (pair.total <= total and not beaten)


def test_pairs_beyond_the_loss_are_listed_only_within_the_slack() -> None:
    models = [ModelOption(trial=1, size=10, dim=4, loss=0.03), ModelOption(trial=2, size=20, dim=4, loss=0.015)]
    indexes = [IndexOption(precision="f32", loss=0.0)]

    def trials(**limits: float) -> list[int]:
        return [pair.trial for pair in worth_measuring(models, indexes, 5, 1000, **limits)]

    assert trials() == [2, 1]
    assert trials(max_loss=0.01) == [2]
    assert trials(max_loss=0.01, slack=0.0) == []
    with pytest.raises(UsageError, match=r"slack is -0\.1; 0 or more"):
        trials(slack=-0.1)


def test_nothing_fits() -> None:
    assert best([Pair(trial=0, precision="f32", total=11, loss=0.0)], 10) is None
    assert best([Pair(trial=0, precision="f32", total=10, loss=0.0)], 10) is not None


def trial(number: int, *, precision: Precision = "f32", reached: str = "whole", index_size: int | None = 1536 * 20,
          relative: float | None = -0.02) -> Trial:  # fmt: skip
    change = None if relative is None else Change(
        metric="ndcg@10", before=0.5, after=0.5 * (1 + relative), relative=relative, interval=(relative, relative),
        lower_bound=relative, n=10,
    )  # fmt: skip
    return Trial(number=number, plan=Plan(recipe=Recipe(steps=()), precision=precision), reached=reached,  # type: ignore[arg-type]
                 figures=Figures(size=900, index_size=index_size), change=change)  # fmt: skip


def test_trials_that_were_measured_become_models() -> None:
    """20 documents of 384 float32 take 1,536 bytes each."""
    trials = [
        trial(0), trial(1, precision="int8"), trial(2, reached="size"), trial(3, index_size=None),
        trial(4, relative=None), trial(5, reached="part"), trial(6, index_size=256 * 20, relative=0.01),
    ]  # fmt: skip
    assert model_options(trials, 20) == [
        ModelOption(trial=0, size=900, dim=384, loss=0.02),
        ModelOption(trial=6, size=900, dim=64, loss=-0.01),
    ]
