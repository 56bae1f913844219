"""Model and index under one limit of bytes: which pairs of a model and a precision are worth measuring, and which wins.

Losses of a model and of a precision are measured apart, and what a pair keeps is predicted as the product of what both
keep. That is not exact, so a prediction only says what to measure first: vectors of a trial are encoded once and judged
at every precision by :func:`slimseek.evaluate.ranked`.

All losses are relative: 0.01 for one per cent, negative for a gain, 1 for all. Bytes are those of the package, and of
all vectors that a search needs, on disk and in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slimseek import indexes
from slimseek.errors import UsageError
from slimseek.schema import Precision
from slimseek.trial import Trial
from slimseek.value import Value


class ModelOption(Value, frozen=True):
    """A model that was measured with float32 vectors.

    Attributes:
        trial: its number.
        size: bytes of its package.
        dim: width of its vectors.
        loss: relative loss of the metric.
    """

    trial: int
    size: int
    dim: int
    loss: float


class IndexOption(Value, frozen=True):
    """A precision of vectors, and the relative loss of the metric that it costs the original."""

    precision: Precision
    loss: float


class Pair(Value, frozen=True):
    """A model with a precision.

    Attributes:
        trial: number of the model's trial.
        precision: of its vectors.
        total: bytes of package and vectors.
        loss: relative loss; predicted, unless it was measured.
    """

    trial: int
    precision: Precision
    total: int
    loss: float


def vector_bytes(documents: int, dim: int, precision: Precision) -> int:
    """Bytes of all vectors of a collection, those that only rank candidates from disk included."""
    kept, finer = (count(documents, dim, precision) for count in (indexes.bytes_of, indexes.rescore_bytes_of))
    return kept + finer


def predicted(model: ModelOption, index: IndexOption, documents: int) -> Pair:
    """What a pair takes for so many documents, and what it would lose if losses were independent of each other."""
    return Pair(
        trial=model.trial,
        precision=index.precision,
        total=model.size + vector_bytes(documents, model.dim, index.precision),
        loss=1 - (1 - model.loss) * (1 - index.loss),
    )


def best(pairs: Iterable[Pair], total: int) -> Pair | None:
    """The pair of least loss within a total of bytes, the smaller of two alike; ``None`` where none fits."""
    fitting = [pair for pair in pairs if pair.total <= total]
    return min(fitting, key=_order, default=None)


def worth_measuring(
    models: Sequence[ModelOption], precisions: Sequence[IndexOption], documents: int, total: int, *,
    max_loss: float | None = None, slack: float = 0.01,
) -> list[Pair]:  # fmt: skip
    """The pairs to measure under a total of bytes, best predicted first.

    Left out are those that do not fit, and those that no error of the prediction below ``slack`` could make worth
    having: their loss lies further above the limit, or above that of a pair which takes no more bytes.

    Args:
        models: measured with float32 vectors.
        precisions: what each costs the original.
        documents: how many vectors there are.
        total: most bytes of package and vectors.
        max_loss: the largest relative loss that would do; ``None`` for any.
        slack: how wrong a predicted loss may be, 0 or more.

    Raises:
        UsageError: ``slack`` is negative.
    """
    if slack < 0:
        raise UsageError(f"slack is {slack}; 0 or more is allowed")
    pairs = [predicted(model, index, documents) for model in models for index in precisions]
    found: list[Pair] = []
    least = float("inf")
    for pair in sorted((pair for pair in pairs if pair.total <= total), key=lambda pair: (pair.total, pair.loss)):
        within = max_loss is None or pair.loss <= max_loss + slack
        if within and pair.loss <= least + slack:
            found.append(pair)
        least = min(least, pair.loss)
    return sorted(found, key=_order)


def model_options(trials: Iterable[Trial], documents: int) -> list[ModelOption]:
    """The trials that were measured to the end with float32 vectors, as models to pair with precisions.

    Args:
        trials: any; those that kept vectors at another precision, or ended before their figures were there, are left
            out.
        documents: how many vectors ``index_size`` counts; the width of a vector follows from both.
    """
    found = []
    for trial in trials:
        size, index_size = trial.figures.size, trial.figures.index_size
        if trial.plan.precision != "f32" or trial.reached != "whole" or trial.change is None:
            continue
        if size is None or index_size is None:
            continue
        dim = index_size // indexes.bytes_of(documents, 1, "f32")
        found.append(ModelOption(trial=trial.number, size=size, dim=dim, loss=-trial.change.relative))
    return found


def _order(pair: Pair) -> tuple[float, int, int]:
    return pair.loss, pair.total, pair.trial
