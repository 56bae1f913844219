"""The types of a search under a budget: what is asked, what a trial is, what the search found.

A trial is written when it ends and never changed, so that a search can be killed at any moment and go on; every figure
in it was measured, but where its ``reached`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from slimseek.measurement import Change, Comparison, Environment, StepRecord
from slimseek.schema import Gates, Precision, Recipe
from slimseek.value import Value

ANY_LOSS = 0.99
Reached = Literal["size", "part", "whole"]
COSTS = ("size", "latency_p95", "memory", "index_size")
"""The costs that a budget can limit, by the name that figures have: B, ms, B, B."""


class Budget(Value, frozen=True, omit_defaults=True):
    """What a search must keep to; at least one of the limits is given.

    Attributes:
        size: most bytes shipped in the target's package, tokenizer included.
        latency_p95: most milliseconds from a query's text to its vector, for 95 of 100 queries.
        memory: most bytes resident in a fresh process that opens the package and encodes.
        index_size: most bytes of the vectors of all documents.
        total: most bytes of package and index together.
        max_loss: largest relative loss of the metric, for example 0.01 for one per cent.
        metric: such as ``ndcg@10``.
        target: the runtime that everything is measured in.
        keep_index: whether only queries are encoded anew, and search the vectors that the original gave.
    """

    size: int | None = None
    latency_p95: float | None = None
    memory: int | None = None
    index_size: int | None = None
    total: int | None = None
    max_loss: float | None = None
    metric: str = "ndcg@10"
    target: str = "onnxruntime"
    keep_index: bool = False

    @property
    def gates(self) -> Gates:
        """What a recipe promises under this budget: the loss that is allowed, or next to nothing where any is."""
        return Gates(metric=self.metric, max_loss=ANY_LOSS if self.max_loss is None else self.max_loss)


class Plan(Value, frozen=True, omit_defaults=True):
    """What a trial tries.

    Attributes:
        recipe: the steps; none for the original as it is.
        precision: how the index keeps the vectors of documents.
        choices: what the sampler chose, by the name of the choice: enough to make the same plan again.
        name: in words, for tables and plots, such as ``4 blocks, 4 bits, vocabulary``.
    """

    recipe: Recipe
    precision: Precision = "f32"
    choices: dict[str, Any] = msgspec.field(default_factory=dict)
    name: str = ""


class Figures(Value, frozen=True, omit_defaults=True):
    """What a trial costs; a figure that was not reached is ``None``.

    Attributes:
        size: bytes shipped; predicted where the trial reached only ``size``, else those of the package.
        latency_p50: milliseconds of one query.
        latency_p95: the same, for 95 of 100 queries.
        memory: peak resident bytes of a fresh process.
        index_size: bytes of the vectors of all documents that lie in memory.
        rescore_size: bytes of finer ones on disk, which rank what those find.
    """

    size: int | None = None
    latency_p50: float | None = None
    latency_p95: float | None = None
    memory: int | None = None
    index_size: int | None = None
    rescore_size: int = 0

    @property
    def total(self) -> int | None:
        """Bytes of package and index together; ``None`` where one is not known."""
        if self.size is None or self.index_size is None:
            return None
        return self.size + self.index_size + self.rescore_size


class Trial(Value, frozen=True, omit_defaults=True):
    """One plan, how far it got, and what was measured.

    Attributes:
        number: from 0, in the order of planning; 0 is the original. One may be missing: of a search that was killed.
        reached: ``size`` where its predicted size ended it, ``part`` for a part of the development queries, ``whole``
            for all of them.
        figures: costs.
        change: of the metric against the original, on the queries that it reached.
        per_query: the metric of each of these queries, in the order of the search set.
        seconds: wall time of all of it.
        records: what each step did.
        ended: why it went no further, in words; ``""`` for one that was measured to the end.
        seed: of its random choices.
    """

    number: int
    plan: Plan
    reached: Reached
    figures: Figures
    change: Change | None = None
    per_query: tuple[float, ...] = ()
    seconds: float = 0.0
    records: tuple[StepRecord, ...] = ()
    ended: str = ""
    seed: int = 0


class Found(Value, frozen=True, omit_defaults=True):
    """The result of a search: ``search.json`` and the page beside it.

    Attributes:
        source: name of the original model.
        collection: name of the collection.
        budget: what was asked, in absolute figures.
        trials: all that ended, by number; the first is the original.
        front: numbers of the trials that no other beats in size, latency and quality at once, smallest first.
        chosen: number of the trial that was written; the nearest where the budget was not met.
        met: whether the chosen one keeps every limit, its loss proven on the development queries.
        unmet: what it does not keep and the smallest change of the budget that would do, in words; ``""`` when met.
        test: the chosen one against the original on the test queries, asked once.
        environment: the machine.
        seconds: wall time of the search, of all its runs together.
        command: that makes it again.
        notes: what a reader must know.
    """

    source: str
    collection: str
    budget: Budget
    trials: tuple[Trial, ...]
    front: tuple[int, ...]
    chosen: int
    met: bool
    unmet: str = ""
    test: Comparison | None = None
    environment: Environment | None = None
    seconds: float = 0.0
    command: str = ""
    notes: tuple[str, ...] = ()


def numbered(trials: Sequence[Trial], number: int) -> Trial:
    """The trial of this number, which need not be its place."""
    return next(trial for trial in trials if trial.number == number)
