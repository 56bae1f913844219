"""Weights as integers of few bits, trained to give the original's vectors: no labels are needed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimseek import integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.folder import write_atomically
from slimseek.inputs.reader import reader
from slimseek.progress import say, track
from slimseek.schema import Batch, Granularity, LayerKind, Model, QuantizedTensor, QuantSpec, Samples, Step, Tensor

if TYPE_CHECKING:
    import torch

HELD_OUT = 128
ROWS_IN_CHECK = 32
CHECK_EVERY = 50
WARM_UP = 0.1
STEP_RATE = 0.1


class AwareTraining(Step, frozen=True, kw_only=True):
    """Round weights as ``quantize.weights_int`` does, then train them on their grid (quantization-aware training).

    The loss is 1 - cosine of the vector to the float model's, on documents and on train and dev queries. Weights get
    gradients as if rounding were not there; the step of each group is trained too (Esser et al., 2020). The state with
    the least loss on held-out texts is kept, the untrained one among them.

    Attributes:
        bits: 2 to 8.
        granularity: what shares a scale: ``tensor``, ``channel`` or ``group``.
        group_size: values that share a scale when the granularity is ``group``.
        symmetric: signed integers without a zero point.
        layers: kinds of layers to quantize.
        skip: layers whose name contains one of these stay as they are.
        steps: batches to train on.
        batch_size: texts in a batch.
        max_tokens: longer texts are cut for training.
        learning_rate: highest of AdamW's, after a warm-up over a tenth of the steps; it falls to zero in a cosine.
        checkpoint: a file that the training saves itself to at every check and goes on from; empty for none.
        seed: of the order of texts.
    """

    bits: int = 4
    granularity: Granularity = "group"
    group_size: int = 64
    symmetric: bool = False
    layers: tuple[LayerKind, ...] = ("linear", "embedding")
    skip: tuple[str, ...] = ()
    steps: int = 300
    batch_size: int = 16
    max_tokens: int = 128
    learning_rate: float = 1e-4
    checkpoint: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """The same limits as ``quantize.weights_int``, and at least one step of one text."""
        plugins.load("methods", "quantize.weights_int")(
            bits=self.bits, granularity=self.granularity, group_size=self.group_size
        )
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"quantize.aware_training: {name} is {getattr(self, name)}; above 0 is allowed")
        if self.max_tokens < 4:
            raise UsageError(f"quantize.aware_training: max_tokens is {self.max_tokens}; 4 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train, and store the integers."""
        if model.smoothing:
            raise UsageError("quantize.aware_training: the model is smoothed; train before smoothing")
        chosen = [
            layer for layer in model.layers
            if layer.kind in self.layers and not any(part in layer.name for part in self.skip)
            and not isinstance(model.tensors[layer.weight], QuantizedTensor)
        ]  # fmt: skip
        if not chosen:
            raise NoEffect(
                f"quantize.aware_training: none of {len(model.layers)} layers is a float layer of {self.layers}"
            )
        bad = next((name for name, tensor in model.tensors.items() if not _is_finite(tensor)), None)
        if bad is not None:
            raise UsageError(f"the tensor {bad} holds NaN or infinite values; the model cannot be trained")
        family = plugins.load("models", model.spec.family)()
        teacher, student = family.trainable(model), family.trainable(model)
        fake = plugins.require("slimseek.methods.quantize._fake_quantization")
        grids = {
            layer: fake.fake_quantize(
                student, layer.name, integers.dequantize(model.tensors[layer.weight]), self._spec(layer.axis)
            )
            for layer in chosen
        }
        self._train(teacher, student, self._batches(model, samples))
        tensors: dict[str, Tensor] = dict(model.tensors)
        state = student.state_dict()
        for name, tensor in tensors.items():
            if name in state and not isinstance(tensor, QuantizedTensor) and np.issubdtype(tensor.dtype, np.floating):
                tensors[name] = state[name].numpy().astype(tensor.dtype)
        for layer, grid in grids.items():
            tensors[layer.weight] = grid.quantized(state[f"{layer.name}.parametrizations.weight.original"])
        return dataclasses.replace(model, tensors=tensors)

    def _spec(self, axis: int) -> QuantSpec:
        return QuantSpec(
            bits=self.bits, granularity=self.granularity, symmetric=self.symmetric, axis=axis,
            group_size=self.group_size if self.granularity == "group" else None,
        )  # fmt: skip

    def _batches(self, model: Model, samples: Samples) -> tuple[list[Batch], list[Batch]]:
        """Batches to train on, of texts of like length, and batches to check by, which are never trained on."""
        read: Any = reader(model.spec, model.files)
        texts = [text for text in dict.fromkeys(samples.texts) if text]
        generator = random.Random(self.seed)
        generator.shuffle(texts)
        held = min(HELD_OUT, len(texts) // 4)
        if len(texts) - held < 1 or held < 1:
            raise UsageError(f"quantize.aware_training: {len(texts)} texts are too few to train on; 4 are needed")
        rows: list[Any] = [row[: self.max_tokens] if isinstance(row, list) else row for row in read.rows(texts)]
        order: list[int] = []
        while len(order) < self.steps * self.batch_size:
            order += generator.sample(range(held, len(texts)), len(texts) - held)
        batches = []
        for start in range(0, self.steps * self.batch_size, self.batch_size * 16):
            some = sorted(order[start : start + self.batch_size * 16], key=lambda position: len(rows[position]))
            parts = [some[at : at + self.batch_size] for at in range(0, len(some), self.batch_size)]
            generator.shuffle(parts)
            batches += [read.batch([rows[position] for position in part]) for part in parts]
        checks = [rows[start : start + ROWS_IN_CHECK] for start in range(0, held, ROWS_IN_CHECK)]
        return batches[: self.steps], [read.batch(part[:held]) for part in checks]

    def _train(self, teacher: Any, student: Any, batches: tuple[Sequence[Batch], Sequence[Batch]]) -> None:
        """Leave the student in its best state."""
        torch = plugins.require("torch")
        train, checks = batches
        teacher.eval()
        student.eval()  # no dropout: the target is one vector, not a distribution
        weights = [value for name, value in student.named_parameters() if not name.endswith(".step")]
        steps = [value for name, value in student.named_parameters() if name.endswith(".step")]
        for value in (*weights, *steps):
            value.requires_grad_(True)
        optimizer = torch.optim.AdamW([{"params": weights}, {"params": steps}], weight_decay=0.0)
        best = (_loss(teacher, student, checks), _copy(student))
        done = self._resume(student)
        say(f"train on {len(train) - done} batches of {self.batch_size}: loss {best[0]:.4f} on held-out texts")
        with track("quantization-aware training", len(train) - done) as advance:
            for number, batch in enumerate(train[done:], start=done + 1):
                inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
                with torch.no_grad():
                    target = teacher(**inputs)
                loss = (1 - torch.nn.functional.cosine_similarity(student(**inputs), target)).mean()
                for group, share in zip(optimizer.param_groups, (1.0, STEP_RATE), strict=True):
                    group["lr"] = self.learning_rate * share * self._rate(number)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                advance(1)
                if number % CHECK_EVERY == 0 or number == len(train):
                    best = min(best, (_loss(teacher, student, checks), _copy(student)), key=lambda state: state[0])
                    self._save(student, number)
        student.load_state_dict(best[1])
        say(f"kept the state with loss {best[0]:.4f}")

    def _rate(self, number: int) -> float:
        """Share of the highest learning rate at a step."""
        warm = max(1, int(self.steps * WARM_UP))
        if number < warm:
            return (number + 1) / warm
        return float(0.5 * (1 + np.cos(np.pi * min(1.0, (number - warm) / max(1, self.steps - warm)))))

    def _save(self, student: Any, number: int) -> None:
        if self.checkpoint:
            library = plugins.require("safetensors.torch")
            state = {name: value.clone() for name, value in student.state_dict().items()}
            write_atomically(Path(self.checkpoint), library.save(state, metadata={"step": str(number)}))

    def _resume(self, student: Any) -> int:
        """Steps done before; the student gets the state they left."""
        if not self.checkpoint or not Path(self.checkpoint).is_file():
            return 0
        opening = plugins.require("safetensors").safe_open
        try:
            with opening(self.checkpoint, framework="pt") as file:
                done = int((file.metadata() or {})["step"])
                student.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except Exception as error:  # safetensors, a KeyError, or torch for weights of another model
            raise UsageError(
                f"{self.checkpoint} is no checkpoint of this training ({type(error).__name__}); delete it to start anew"
            ) from error
        return min(done, self.steps)


def _is_finite(tensor: Tensor) -> bool:
    return bool(np.isfinite(integers.dequantize(tensor)).all())


def _loss(teacher: Any, student: Any, batches: Sequence[Batch]) -> float:
    """Mean 1 - cosine over the rows of some batches."""
    torch = plugins.require("torch")
    losses = []
    with torch.no_grad():
        for batch in batches:
            inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
            losses.append(1 - torch.nn.functional.cosine_similarity(student(**inputs), teacher(**inputs)))
    return float(torch.cat(losses).mean())


def _copy(network: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
