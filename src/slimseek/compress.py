"""Stage 5: the step machine. Copy once, run the steps in order, record each, stop at a failed gate and keep the last
good model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from slimseek import integers, kept, spoken
from slimseek.bases import Step
from slimseek.choose import REFERENCE_LENGTH, encoder, family, recognising
from slimseek.collection import SearchSet
from slimseek.encoder import Encoder
from slimseek.errors import NoEffect, SlimseekError, UsageError
from slimseek.evaluate import Quality, compare, invariance, quality, quality_gate
from slimseek.measurement import Change, GateResult, StepRecord
from slimseek.progress import say
from slimseek.recipe import build
from slimseek.recognise import Recogniser
from slimseek.schema import Model, Recipe, RecipeStep, Samples

INVARIANCE_TEXTS = 32
INVARIANCE_RECORDINGS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """What a step is judged by: development queries, scored by the original model once.

    Attributes:
        search_set: development queries and the documents they search.
        original: what the original model scores there.
        threads: threads of the reference implementation.
        keep_index: whether steps are judged by their queries alone, which search the original's vectors.
        search: of a recogniser, the search of texts by what it hears; ``None`` where there is nothing to search.
    """

    search_set: SearchSet
    original: Quality
    threads: int
    keep_index: bool = False
    search: spoken.Search | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Compressed:
    """The last good model, what each step did, and the gate that stopped the recipe, if one did."""

    model: Model
    records: tuple[StepRecord, ...]
    failed: GateResult | None


def run(model: Model, recipe: Recipe, samples: Samples, judge: Judge | None = None) -> Compressed:
    """Run a recipe on a model; the given model is not changed.

    What a step costs in quality may stop the recipe only where no later step trains and could win it back.

    Args:
        model: the original.
        recipe: checked steps and gates.
        samples: texts for calibration, counting and training; the given model is their original unless they have one.
        judge: measures quality after every step; ``None`` checks finiteness and invariance only.

    Raises:
        UsageError: a step refuses the model or its parameters; NoEffect when it would change nothing and was asked
            to. A step that finds out by itself whether it is needed is left out instead.
    """
    records: list[StepRecord] = []
    steps = [(step, build(step)) for step in recipe.steps]
    _check_unquantized(model, recipe)
    samples = dataclasses.replace(samples, original=samples.original or model)
    assert samples.original is not None
    good = model
    waiting: GateResult | None = None
    for number, (given, step) in enumerate(steps, 1):
        say(f"step {number} of {len(steps)}: {given.method} {_words(given.parameters)}")
        start = time.perf_counter()
        try:
            changed = step.apply(model, samples)
        except NoEffect as reason:
            if not step.as_needed or (number == len(steps) and not records):
                raise  # a recipe must change something
            say(f"left out: {reason}")
            continue
        seconds = time.perf_counter() - start
        if judge is not None and judge.keep_index:
            kept.check_space(given.method, changed.spec, samples.original.spec)
        change, gates = _judge(changed, samples, recipe, judge)
        records.append(_record(given.method, step, model, changed, seconds, change, gates))
        failed = next((gate for gate in gates if gate.status == "failed"), None)
        waits = failed is not None and failed.gate == "quality" and any(later.trains for _, later in steps[number:])
        if failed is not None and not waits:
            say(f"{given.method}: the gate {failed.gate} failed ({failed.detail}); the last good model is kept")
            return Compressed(model=good, records=tuple(records), failed=failed)
        model = changed
        good, waiting = (good, failed) if waits else (changed, None)
    if waiting is not None:  # what should have won it back was left out
        say(f"the gate {waiting.gate} failed ({waiting.detail}) and no step won it back; the last good model is kept")
    return Compressed(model=good, records=tuple(records), failed=waiting)


def take(model: Model, given: RecipeStep, samples: Samples) -> tuple[Model, StepRecord]:
    """One step alone, recorded and not judged.

    Args:
        model: what it changes.
        given: the step.
        samples: with the original.

    Raises:
        UsageError: it refuses the model, or gives weights that are not finite; NoEffect where nothing would change.
    """
    step, start = build(given), time.perf_counter()
    changed = step.apply(model, samples)
    finite = _finite(changed)
    if finite.status == "failed":
        raise UsageError(f"{given.method}: {finite.detail}")
    seconds = time.perf_counter() - start
    return changed, _record(given.method, step, model, changed, seconds, None, (finite,))


def _check_unquantized(model: Model, recipe: Recipe) -> None:
    """Refuse steps that would quantize what others quantized before, which no step can read."""
    method = next((step.method for step in recipe.steps if step.method.startswith("quantize.")), None)
    marks = family(model).quantized_by(model) if method else ()
    if marks:
        raise UsageError(
            f"{method}: the model is quantized already ({', '.join(marks)}); evaluate and deploy take it as it is; to "
            f"compress, give the float model that it was made from"
        )


def weight_error(before: Model, after: Model) -> tuple[float | None, float | None, float | None]:
    """Quantization error (quantized - original) of the weights that changed and kept their shape, smoothing undone.

    Returns:
        Mean and largest absolute difference, and the signal to quantization noise ratio in decibels:
        10 log10(sum of w^2 / sum of (quantized - w)^2); ``None`` where nothing is comparable, such as where tensors
        have left and others were renumbered.
    """
    if not set(before.tensors) <= set(after.tensors):
        return None, None, None
    count, total, largest, signal, noise = 0, 0.0, 0.0, 0.0, 0.0
    for name in _changed_tensors(before, after):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if old is None or new is None or old.shape != new.shape:
            continue
        original = integers.unsmoothed(before, name).astype(np.float64)
        difference = integers.unsmoothed(after, name).astype(np.float64) - original
        count += difference.size
        total += float(np.abs(difference).sum())
        largest = max(largest, float(np.abs(difference).max()))
        signal += float((original**2).sum())
        noise += float((difference**2).sum())
    if not count:
        return None, None, None
    return total / count, largest, float(10 * np.log10(signal / noise)) if noise and signal else None


def weight_bytes(model: Model) -> int:
    """Bytes of all tensors and factors of smoothing as they are stored."""
    return sum(bytes_by_part(model).values())


def bytes_by_part(model: Model) -> dict[str, int]:
    """Stored bytes by part of the model: token table, other tables, attention, feed-forward, and the rest."""
    parts: dict[str, int] = {}
    for name, tensor in model.tensors.items():
        part = _part(name, model)
        parts[part] = parts.get(part, 0) + integers.stored_bytes(tensor)
        if name in model.smoothing:
            parts[part] += int(model.smoothing[name].nbytes)
    return parts


def _judge(
    model: Model, samples: Samples, recipe: Recipe, judge: Judge | None
) -> tuple[Change | None, tuple[GateResult, ...]]:
    finite = _finite(model)
    if finite.status == "failed":
        return None, (finite,)
    threads = judge.threads if judge is not None else 1
    try:
        subject = _opened(model, threads)
        gates = [finite, _invariance(subject, samples.calibration)]
        if judge is None:
            return None, tuple(gates)
        after = _quality(subject, judge, [recipe.gates.metric])
    except SlimseekError as error:
        return None, (GateResult(gate="finite", status="failed", detail=str(error)),)
    change = compare(judge.original.get(recipe.gates.metric), after.get(recipe.gates.metric), recipe.gates.max_loss)
    return change, (*gates, quality_gate(change, recipe.gates.max_loss))


def _opened(model: Model, threads: int) -> Encoder | Recogniser:
    name = "after this step"
    return (recognising if model.spec.output == "transcript" else encoder)(model, name, threads)


def _invariance(subject: Encoder | Recogniser, items: Sequence[str]) -> GateResult:
    if isinstance(subject, Recogniser):
        return spoken.invariance(subject, items[:INVARIANCE_RECORDINGS])
    return invariance(subject, items[:INVARIANCE_TEXTS])


def _quality(subject: Encoder | Recogniser, judge: Judge, metrics: list[str]) -> Quality:
    if isinstance(subject, Recogniser):
        return spoken.quality(subject, judge.search_set, metrics, judge.search)
    if judge.keep_index:
        return kept.quality(subject, judge.search_set, judge.original, metrics)
    return quality(subject, judge.search_set, metrics)


def _finite(model: Model) -> GateResult:
    bad = [name for name, tensor in model.tensors.items() if not integers.is_finite(tensor)]
    detail = f"NaN or infinite: {', '.join(bad[:3])}" if bad else "every weight and output is finite, no zero vector"
    return GateResult(gate="finite", status="failed" if bad else "passed", detail=detail)


def _record(
    method: str,
    step: Step,
    before: Model,
    after: Model,
    seconds: float,
    change: Change | None,
    gates: tuple[GateResult, ...],
) -> StepRecord:
    # What training moves is no error.
    mean, largest, sqnr = (None, None, None) if step.trains else weight_error(before, after)
    bytes_before, bytes_after = weight_bytes(before), weight_bytes(after)
    activations = tuple(name for name, how in after.activations.items() if before.activations.get(name) != how)
    files = tuple(name for name, content in after.files.items() if before.files.get(name) != content)
    return StepRecord(
        step=method,
        parameters=msgspec.to_builtins(step),
        changed=(*_changed_tensors(before, after), *(f"input of {name}" for name in activations), *files),
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        macs_before=family(before).macs(before, REFERENCE_LENGTH),
        macs_after=family(after).macs(after, REFERENCE_LENGTH),
        seconds=seconds,
        compression_ratio=bytes_after / bytes_before,
        error_mean=mean,
        error_max=largest,
        sqnr_db=sqnr,
        quality=change,
        gates=gates,
        notes=step.notes(before, after),
    )


def _changed_tensors(before: Model, after: Model) -> tuple[str, ...]:
    names = {**before.tensors, **after.tensors}
    return tuple(name for name in names if before.tensors.get(name) is not after.tensors.get(name))


def _part(name: str, model: Model) -> str:
    layer = next((layer for layer in model.layers if layer.weight == name), None)
    if name == model.spec.token_table:
        return "token table"
    if layer is not None and layer.kind == "embedding":
        return "other tables"
    if layer is not None and "attention" in f"{name} {layer.name}".lower():
        return "attention"
    if layer is not None:
        return {"linear": "feed-forward", "recurrent": "recurrent"}.get(layer.kind, "convolutions")
    return "biases and norms"


def _words(parameters: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items())
