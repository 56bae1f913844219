"""Weights as integers of few bits, trained to give what the float model gives: no labels are needed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from slimseek import choose, integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.methods._training import TrainingStep
from slimseek.schema import Granularity, LayerKind, Model, QuantizedTensor, Samples
from slimseek.training import targets, train
from slimseek.training.examples import Examples
from slimseek.training.train import trained

if TYPE_CHECKING:
    from torch import nn

STEP_RATE = 0.1


class AwareTraining(TrainingStep, frozen=True, kw_only=True):
    """Round weights as ``quantize.weights_int`` does, then train them on their grid (quantization-aware training).

    The loss is 1 - cosine of the vector to a float model's, on documents and on train and dev queries. A recogniser
    with a decoder learns to say what the original hears, as in ``distil.transcript``. Weights get gradients as if
    rounding were not there; the step of each group is trained too (Esser et al., 2020). The state with the least loss
    on held-out items is kept, the untrained one among them.

    Attributes:
        bits: 2 to 8.
        granularity: what shares a scale: ``tensor``, ``channel`` or ``group``.
        group_size: values that share a scale when the granularity is ``group``.
        symmetric: signed integers without a zero point.
        rounding: where training begins: the ``nearest`` levels, or those of ``compensated`` rounding with corrected
            biases, on calibration texts.
        layers: kinds of layers to quantize.
        skip: layers whose name contains one of these stay as they are.
        teacher: whose vectors it learns: those that the model gave before (``itself``), or those of the ``original``,
            the model as it was before the recipe's first step, so that what earlier steps lost is learned as well.
        views: side in pixels of random views of pictures, blended by two, of each of which the teacher is asked as
            well; 0 for the pictures as they are.

    How it trains is told by the attributes of :class:`slimseek.methods._training.TrainingStep`.
    """

    bits: int = 4
    granularity: Granularity = "group"
    group_size: int = 64
    symmetric: bool = False
    rounding: Literal["nearest", "compensated"] = "nearest"
    layers: tuple[LayerKind, ...] = ("linear", "embedding", "convolution", "recurrent")
    skip: tuple[str, ...] = ()
    teacher: Literal["itself", "original"] = "itself"
    views: int = 0

    def __post_init__(self) -> None:
        """The same limits as ``quantize.weights_int``, and at least one step of one text."""
        self._rounding()
        super().__post_init__()

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train, and store the integers."""
        chosen = self._chosen(model)
        integers.check_finite(model, "trained")
        start: Model = self._rounding().apply(model, samples)
        floats = {weight: model.tensors[weight] for weight in chosen}
        network = choose.family(model).trainable(dataclasses.replace(start, tensors=dict(start.tensors) | floats))
        fake = plugins.require("slimseek.methods.quantize._fake_quantization")
        for name, tensor in model.tensors.items():
            if isinstance(tensor, QuantizedTensor):
                fake.freeze(network, name)  # integers of an earlier step stay as they are
        quantized = {weight: fake.fake_quantize(network, weight, start.tensors[weight]) for weight in chosen}
        settings = self._training()
        learner, found, loss = self._taught(network, model, samples, settings)
        train.fit(learner, found, loss, settings, label="quantization-aware training", shares={".step": STEP_RATE})
        tensors = trained(model, network)
        tensors |= {weight: integers_of() for weight, integers_of in quantized.items()}
        return dataclasses.replace(model, tensors=tensors)

    def _taught(
        self, network: nn.Module, model: Model, samples: Samples, settings: train.Training
    ) -> tuple[nn.Module, Examples, train.Loss]:
        """What is trained, by which batches with what the teacher gives of them, and the loss."""
        given = dataclasses.replace(model, activations={})
        if self.teacher == "original":
            given = self._original(model, samples)
        targets.check_views(model.spec, settings)
        if model.spec.autoregressive:
            transcripts = plugins.require("slimseek.training.transcripts")
            heard = transcripts.heard_by(samples.original or given, self.cache)
            found = transcripts.examples(model, samples.texts, heard, settings)
            return network, found, plugins.load("losses", "transcript")()
        cosine = plugins.load("losses", "cosine")()
        return targets.taught(network, model, given, self._items(samples.texts), settings, cosine, cache=self.cache)

    def _original(self, model: Model, samples: Samples) -> Model:
        """The teacher that was asked for."""
        if samples.original is None:
            raise UsageError("quantize.aware_training: teacher is original, and none is given; run the step in a "
                             "recipe, or with Samples.original")  # fmt: skip
        if samples.original.spec.dim != model.spec.dim:
            raise UsageError(f"quantize.aware_training: the model's vectors have {model.spec.dim} elements, its "
                             f"original's {samples.original.spec.dim}; teacher itself is allowed")  # fmt: skip
        return samples.original

    def _training(self) -> train.Training:
        # Bfloat16 would round what was rounded to the grid once more.
        return msgspec.structs.replace(super()._training(), precision="float32", views=self.views)

    def outline(self, model: Model, samples: Samples) -> Model:
        """As that of ``quantize.weights_int``."""
        self._chosen(model)
        outlined: Model = self._rounding().outline(model, samples)
        return outlined

    def _chosen(self, model: Model) -> list[str]:
        """The weights of the float layers to quantize."""
        if model.smoothing:
            raise UsageError("quantize.aware_training: the model is smoothed; train before smoothing")
        chosen = [
            layer.weight for layer in model.layers
            if layer.kind in self.layers and not any(part in layer.name for part in self.skip)
            and not isinstance(model.tensors[layer.weight], QuantizedTensor)
        ]  # fmt: skip
        if not chosen:
            raise NoEffect(
                f"quantize.aware_training: none of {len(model.layers)} layers is a float layer of {self.layers}"
            )
        return list(dict.fromkeys(chosen))

    def _rounding(self) -> Any:
        """The step that gives the integers which training begins with."""
        return plugins.load("methods", "quantize.weights_int")(
            bits=self.bits, granularity=self.granularity, group_size=self.group_size, symmetric=self.symmetric,
            rounding=self.rounding, correct_bias=self.rounding == "compensated", layers=self.layers, skip=self.skip,
        )  # fmt: skip
