"""Fine-tuning: a model trained on a collection's train queries, or on its labels, and judged by its dev queries."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from slimseek import __version__, artifact, choose, data, evaluate, integers, plugins, similar, spoken, timing
from slimseek import folder as folders
from slimseek.collection import Collection, SearchSet
from slimseek.errors import NoEffect, UsageError
from slimseek.fingerprint import fingerprint
from slimseek.measurement import Change, Measurement
from slimseek.progress import say, shown_on
from slimseek.schema import Array, Batch, Encode, Model, QuantizedTensor
from slimseek.training import tasks
from slimseek.training.settings import Settings, Task
from slimseek.training.train import Judge, fit, moved, trained
from slimseek.value import Value

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 1
RUN, CHECKPOINT, RESULT = "training.json", "checkpoint.safetensors", "tuned.json"
DEV_QUERIES = 300
DEV_DOCUMENTS = 300


class Run(Value, frozen=True):
    """What a folder that holds an unfinished training says of it; the same command goes on from its checkpoint.

    Attributes:
        made_with: version of slimseek.
        model_sha256: of the model's specification, files and weights.
        collection_sha256: of the collection's texts and judgements.
        settings: how it is trained.
    """

    format_version: int
    made_with: str
    model_sha256: str
    collection_sha256: str
    settings: Settings


class Tuned(Value, frozen=True):
    """What a fine-tuning did to the development queries, of which none was trained on.

    Attributes:
        model: name of the model.
        collection: name of the collection and split.
        loss: the plug-in that was lowered.
        items: pairs of query and passage, or labelled items, that it was trained on.
        steps: how many were taken.
        before: the metric of the given model; of a new classifier, whose head is random.
        after: the metric of the model that was written.
        change: paired.
        seconds: wall time of everything.
    """

    model: str
    collection: str
    loss: str
    items: int
    steps: int
    before: Measurement
    after: Measurement
    change: Change
    seconds: float


def finetune(
    source: str | Path, collection: str | Path, out: str | Path, settings: Settings, *, threads: int = 0,
    force: bool = False,
) -> Tuned:  # fmt: skip
    """Train a model for a collection, and write an artifact of the best state on its development queries.

    Args:
        source: the MODEL, of floats.
        collection: with train queries, or labelled.
        out: folder of the artifact. While it is trained, the folder holds a checkpoint, from which the same call goes
            on to the same bits.
        settings: loss and training.
        threads: of everything; 0 for all cores.
        force: replace what an earlier run wrote there, and begin anew.

    Raises:
        UsageError: the model cannot be trained, the collection has nothing to train on, or the folder holds an
            unfinished training of something else.
        NoEffect: no state was better than the given one; nothing is written.
    """
    start, out, count = time.perf_counter(), Path(out), threads or timing.default_threads()
    plugins.require("torch").set_num_threads(count)
    model, found = choose.model(source), data.load(str(collection))
    _check_float(model)
    splits, dev, metric = _judged_by(model, found, settings)
    tasks.check(model, found, splits, settings)
    inputs = tuple(Path(path) for path in (source, collection) if Path(path).exists())
    _begin(out, _run(model, found, settings), inputs, force)
    task = tasks.task(model, found, splits, settings, count)
    network = choose.family(task.model).trainable(task.model)
    learner = _learner(network, task, settings.training.seed)
    seen: list[Measurement] = []
    judge = _judge(task.model, dev, metric, seen, count)
    training = msgspec.structs.replace(settings.training, checkpoint=str(out / CHECKPOINT))
    fitted = fit(learner, task.examples, task.loss, training, label=f"fine-tuning by {task.name}",
                 shares=task.shares, judge=lambda learner: judge(network))  # fmt: skip
    if not fitted.after < fitted.before:
        _abandon(out)
        raise NoEffect(f"train: no state of {fitted.steps} steps was better on {dev.name} than the given model "
                       f"({metric} {seen[0].value:.4f}); nothing was written")  # fmt: skip
    model = dataclasses.replace(task.model, tensors=trained(task.model, network))
    after = _measured(model, None, dev, metric, count)
    result = Tuned(
        model=choose.name_of(source), collection=dev.name, loss=task.name, items=task.items, steps=fitted.steps,
        before=seen[0], after=after, change=evaluate.compare(seen[0], after), seconds=time.perf_counter() - start,
    )  # fmt: skip
    with folders.writing(out, inputs=inputs, force=True) as folder:
        folders.write_json(folder / RESULT, result)
        artifact.write(model, folder, collection=found.path, versions=timing.versions(timing.LIBRARIES))
    return result


def _judged_by(model: Model, found: Collection, settings: Settings) -> tuple[data.Splits, SearchSet, str]:
    """The splits, the development queries, and the metric to keep the best state by."""
    alike = tasks.fitting(model, found, settings) == "normalised_softmax"
    searched = similar.similar(found) if alike else found
    splits = data.split(searched)
    say(splits.notice)
    dev = data.search_set(searched, splits.dev, "dev", max_queries=DEV_QUERIES, max_documents=DEV_DOCUMENTS,
                          seed=settings.training.seed)  # fmt: skip
    if model.spec.output == "transcript":
        dev = spoken.asked(dev)
        metric = settings.metric or spoken.rates_of(dev)[0]
        spoken.check_rate(metric)
        return splits, dev, metric
    metric = settings.metric or evaluate.default_metrics(dev)[0]
    evaluate.metric(metric)
    return splits, dev, metric


def _measured(model: Model, encode: Encode | None, dev: SearchSet, metric: str, threads: int) -> Measurement:
    """The metric of a model, run by ``encode``; ``None`` for its reference implementation."""
    name = "the model in training"
    if model.spec.output == "transcript":
        listening = choose.recognising(model, name, threads) if encode is None else choose.assemble_recogniser(
            name, model.spec, model.files, {"model": lambda batch: {"": encode(batch)}}, {}, "torch", threads
        )  # fmt: skip
        return spoken.quality(listening, dev, [metric]).get(metric)
    encoder = choose.encoder(model, name, threads) if encode is None else choose.assemble(
        name, model.spec, model.files, encode, shipped={}, runtime="torch", threads=threads
    )  # fmt: skip
    return evaluate.quality(encoder, dev, [metric]).get(metric)


def _learner(network: nn.Module, task: Task, seed: int) -> nn.Module:
    """The network, or one around it that holds what is trained and thrown away."""
    if not task.centres:
        return network
    centres = plugins.require("slimseek.training.centres")
    learner: nn.Module = centres.Centred(network, task.centres, task.model.spec.dim, seed)
    return learner


def _check_float(model: Model) -> None:
    """Refuse models whose rounding a training would undo."""
    rounded = [name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)]
    if rounded or model.activations or model.smoothing:
        what = f"{rounded[0]} is quantized" if rounded else "its activations are rounded or smoothed"
        raise UsageError(f"train: {what}; give the float model that it was made from")
    integers.check_finite(model, "trained")


def _run(model: Model, found: Collection, settings: Settings) -> Run:
    return Run(
        format_version=FORMAT_VERSION, made_with=__version__, model_sha256=fingerprint(model),
        collection_sha256=data.fingerprint(found), settings=settings,
    )  # fmt: skip


def _begin(out: Path, run: Run, inputs: tuple[Path, ...], force: bool) -> None:
    """A folder with the run's description; one that holds an unfinished training of just this is left as it is."""
    if (out / RUN).is_file() and not artifact.is_artifact(out) and not force:
        known = folders.read_manifest(out / RUN, Run, FORMAT_VERSION)
        other = [name.removesuffix("_sha256") for name in run.__struct_fields__
                 if getattr(known, name) != getattr(run, name)]  # fmt: skip
        if other:
            raise UsageError(f"{out} holds an unfinished training with another {' and another '.join(other)}; choose "
                             f"another --out, or add --force to begin anew")  # fmt: skip
        return
    with folders.writing(out, inputs=inputs, force=force) as folder:
        folders.write_json(folder / RUN, run)


def _abandon(out: Path) -> None:
    """Take away what a training left that came to nothing."""
    for name in (RUN, CHECKPOINT):
        (out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else, too
        out.rmdir()


def _judge(model: Model, dev: SearchSet, metric: str, seen: list[Measurement], threads: int) -> Judge:
    """1 - the metric on development queries; infinite for a network whose vectors are not finite. What was measured
    is added to ``seen``.
    """

    def judge(network: nn.Module) -> float:
        def encode(batch: Batch) -> Array:
            vectors: Array = network(**moved(batch, network)).cpu().numpy()
            return vectors

        try:
            with shown_on(None):  # the bar of the training goes on
                if model.spec.autoregressive:  # of two functions, neither of which is the network's own
                    now = dataclasses.replace(model, tensors=trained(model, network))
                    found = _measured(now, None, dev, metric, threads)
                else:
                    found = _measured(model, encode, dev, metric, threads)
        except UsageError:
            if not seen:
                raise
            return math.inf
        seen.append(found)
        return 1 - found.value if found.higher_is_better else found.value

    return judge
