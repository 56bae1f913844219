"""What was measured and how it is judged: figures, changes with their intervals, gates, what each step did.

The types alone; ``evaluate`` measures and ``prove`` judges.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from slimseek.value import Value

GateStatus = Literal["passed", "failed", "undecided"]


class Measurement(Value, frozen=True):
    """One measured figure.

    Attributes:
        name: such as ``ndcg@10``, ``size``, ``latency_p50``.
        value: in ``unit``.
        unit: ``""`` for a score, ``B``, ``ms``, ``items/s``, ``MAC``.
        n: how many queries or repetitions it is taken from.
        interval: 95 % interval (low, high), where one was computed.
        per_query: the value of each query, in the order of the set, where there is one.
    """

    name: str
    value: float
    unit: str = ""
    higher_is_better: bool = True
    n: int = 0
    interval: tuple[float, float] | None = None
    per_query: tuple[float, ...] | None = None


class Environment(Value, frozen=True):
    """The machine of a measurement."""

    cpu: str
    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


class Report(Value, frozen=True):
    """Figures of one subject, with the machine they were taken on."""

    subject: str
    environment: Environment
    measurements: tuple[Measurement, ...]

    def get(self, name: str) -> Measurement | None:
        """The measurement of that name, or ``None``."""
        return next((m for m in self.measurements if m.name == name), None)


class Change(Value, frozen=True):
    """A paired comparison of one metric: relative change = (after - before) / before, on the same queries.

    Attributes:
        before: the baseline's mean.
        after: the subject's mean.
        relative: relative change of the mean, negative for a loss.
        interval: two-sided 95 % paired bootstrap interval of the relative change.
        lower_bound: one-sided 95 % lower bound of the relative change; it allows for losses that n queries need not
            show, so that for few it lies below the interval.
        n: number of queries.
        n_needed: queries it would take to show a loss below the asked one; ``None`` where this n is enough, or no
            number would do.
        points: whether the change is of an error rate, where it is no share but a difference, before - after, negative
            for a loss as well: -0.01 is one more error in a hundred words. Unset for all others.
    """

    metric: str
    before: float
    after: float
    relative: float
    interval: tuple[float, float]
    lower_bound: float
    n: int
    n_needed: int | None = None
    points: bool | msgspec.UnsetType = msgspec.UNSET


class GateResult(Value, frozen=True):
    """One gate; ``undecided`` means that the loss measured is inside, but n is too small to prove it."""

    gate: str
    status: GateStatus
    detail: str
    value: float | None = None
    limit: float | None = None


class StepRecord(Value, frozen=True):
    """What one step did, and what it cost.

    Attributes:
        step: the method's name.
        parameters: the method's settings, enough to run it again.
        changed: names of the tensors, layers or files that it changed.
        parameters_before: number of weights before, and ``_after`` after.
        bytes_before: bytes of the weights before, and ``_after`` after, as they are stored.
        macs_before: multiply-accumulates for one text of 128 tokens, and ``_after`` after.
        seconds: wall time of the step alone.
        compression_ratio: bytes after / bytes before.
        error_mean: mean absolute difference of the changed weights, quantized - original; ``None`` if not comparable.
        error_max: largest absolute difference.
        sqnr_db: signal to quantization noise of the changed weights in decibels.
        quality: change of the metric on the development queries against the original, if it was measured.
        gates: gates checked after this step.
        notes: what the step has to say, such as the share of tokens kept.
    """

    step: str
    parameters: dict[str, Any]
    changed: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    macs_before: int
    macs_after: int
    seconds: float
    compression_ratio: float
    error_mean: float | None = None
    error_max: float | None = None
    sqnr_db: float | None = None
    quality: Change | None = None
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()


class Comparison(Value, frozen=True):
    """Original and compressed side by side: the content of a run's report.

    Attributes:
        collection: name of the collection and split.
        original: figures of the original.
        compressed: figures of the result.
        alternatives: figures of what a user could do instead.
        changes: paired differences of the metrics.
        gates: the gates of the whole run.
        records: what each step did.
        bytes_before: bytes of weights by part of the model, before.
        bytes_after: the same after.
        examples: queries that changed most.
        command: the command that made it.
        notes: what a reader must know.
        alone: of a recogniser, what the compression of each part alone does to its word error rate on development
            recordings; unset where nothing was attributed.
    """

    collection: str
    original: Report
    compressed: Report
    alternatives: tuple[Report, ...] = ()
    changes: tuple[Change, ...] = ()
    gates: tuple[GateResult, ...] = ()
    records: tuple[StepRecord, ...] = ()
    bytes_before: dict[str, int] = msgspec.field(default_factory=dict)
    bytes_after: dict[str, int] = msgspec.field(default_factory=dict)
    examples: tuple[QueryExample, ...] = ()
    command: str = ""
    notes: tuple[str, ...] = ()
    alone: dict[str, Change] | msgspec.UnsetType = msgspec.UNSET


class QueryExample(Value, frozen=True):
    """A query with the titles that each model puts first, and whether each is relevant."""

    query: str
    before: tuple[tuple[str, bool], ...]
    after: tuple[tuple[str, bool], ...]
    score_before: float
    score_after: float
