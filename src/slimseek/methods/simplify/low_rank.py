"""Layers become products of two narrow ones: fewer weights, fewer multiplications."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from slimseek import choose, hollow, integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods import _blocks as blocks
from slimseek.methods._moments import observe, portions
from slimseek.methods.simplify._ranks import Spectrum, by_energy, by_parameters, even, factors, spectrum
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Samples

ENERGY = 0.98
NAMED = 6


class LowRank(Step, frozen=True, kw_only=True):
    """Put B (A x) in the place of W x, with the B and A of a rank that are nearest to W on calibration texts.

    E||(W - B A) x||^2 is the least that any product of that rank has (activation-aware singular value decomposition).
    Where the layer has a bias, x is taken from its mean, and the bias becomes b + (W - B A) E[x]. A layer whose two
    factors would have no fewer weights stays as it is. Convolutions become one with their window and fewer channels
    and one of a single point; those of more than one point are taken by their weights alone.

    Its outline gives every layer the same share of its weights, for ``parameters``; what ``energy`` saves is not known
    beforehand, so that the model stays as it is.

    Attributes:
        energy: share of the mean square of each layer's output that is kept, above 0 and below 1; ``None``: 0.98,
            unless ``parameters`` is given.
        parameters: instead: share of the weights of all such layers that is left, above 0 and below 1; ranks go
            where they cost the least share of a layer's energy for each weight.
        multiple_of: what ranks are multiples of.
        weighted: by the inputs on calibration texts; ``False`` is the plain decomposition of the weights.
        skip: layers whose name contains one of these stay as they are.
    """

    bounds: ClassVar[bool] = True

    energy: float | None = None
    parameters: float | None = None
    multiple_of: int = 8
    weighted: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("energy", "parameters"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"simplify.low_rank: {name} is {value}; above 0 and below 1 is allowed")
        if self.energy is not None and self.parameters is not None:
            raise UsageError(
                f"simplify.low_rank: energy is {self.energy} and parameters is {self.parameters}; one of them is "
                f"allowed"
            )
        if self.multiple_of < 1:
            raise UsageError(f"simplify.low_rank: multiple_of is {self.multiple_of}; 1 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Find each layer's principal directions, share out the ranks, and factor."""
        integers.check_finite(model, "factored")
        layers = self._chosen(model)
        spectra, means = self._spectra(model, samples, layers)
        ranks = self._ranks(spectra)
        if not ranks:
            raise NoEffect(f"simplify.low_rank: no product of two is smaller and keeps {self._asked}")
        found, tensors = {}, dict(model.tensors)
        for layer in layers:
            name, weight = layer.weight, _matrix(model, layer)
            if name not in ranks:
                continue
            found[name] = factors(weight, spectra[name], ranks[name])
            if isinstance(layer.bias, str) and name in means:
                bias = model.tensors[layer.bias]
                assert not isinstance(bias, QuantizedTensor)
                second, first = found[name]
                moved = weight @ means[name] - second @ (first @ means[name])
                tensors[layer.bias] = (integers.dequantize(bias) + moved).astype(bias.dtype)
        return choose.family(model).factored(dataclasses.replace(model, tensors=tensors), found)

    def outline(self, model: Model, samples: Samples) -> Model:
        """Ranks by the shapes of layers alone."""
        layers = self._chosen(model)
        if self.parameters is None:
            return model
        shapes = {layer.weight: _matrix(model, layer).shape for layer in layers}
        found = {
            name: (np.ones((shapes[name][0], rank), np.float32), np.ones((rank, shapes[name][1]), np.float32))
            for name, rank in even(shapes, self.parameters, self.multiple_of).items()
        }
        if not found:
            raise NoEffect(f"simplify.low_rank: no product of two is smaller and keeps {self._asked}")
        return hollow.model(choose.family(model).factored(model, found), model)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """How many layers, their ranks, and weights before and after."""
        gone = [layer for layer in before.layers if layer.weight not in after.tensors]
        new = [layer for layer in after.layers if layer.weight not in before.tensors]
        ranks = [after.tensors[layer.weight].shape[layer.axis] for layer in new[::2]]
        sizes = [sum(int(np.prod(model.tensors[layer.weight].shape)) for layer in part)
                 for model, part in ((before, gone), (after, new))]  # fmt: skip
        named = ", ".join(f"{layer.name} {rank}" for layer, rank in zip(gone[:NAMED], ranks, strict=False))
        more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        return (
            f"{len(gone)} layers became two: {sizes[0]:,} -> {sizes[1]:,} weights, ranks {min(ranks)} to {max(ranks)}",
            f"ranks: {named}{more}",
        )

    @property
    def _asked(self) -> str:
        if self.parameters is not None:
            return f"{self.parameters:g} of the weights"
        return f"{ENERGY if self.energy is None else self.energy:g} of a layer's energy"

    def _chosen(self, model: Model) -> tuple[Layer, ...]:
        """Float layers that the family can factor."""
        if model.activations or model.smoothing:
            raise UsageError("simplify.low_rank: the model is smoothed or rounds its inputs; factor it before that")
        try:
            blocks.check_untied(model, "factor")
        except UsageError as error:
            raise UsageError(f"simplify.low_rank: {error}") from None
        found = choose.family(model).factorable(model)
        layers = tuple(layer for layer in found if not any(part in layer.name for part in self.skip))
        for layer in layers:
            if isinstance(model.tensors[layer.weight], QuantizedTensor):
                raise UsageError(
                    f"simplify.low_rank: the weight {layer.weight} is quantized; factor the model before quantizing"
                )
        if not layers:
            raise NoEffect("simplify.low_rank: the model has no layer that could become two")
        return layers

    def _spectra(
        self, model: Model, samples: Samples, layers: Sequence[Layer]
    ) -> tuple[dict[str, Spectrum], dict[str, Array]]:
        """Of each layer by its weight, and the means E[x] of those whose bias can take them."""
        found: dict[str, Spectrum] = {}
        means: dict[str, Array] = {}
        for part in portions(model, layers):
            seen = observe(model, samples, part) if self.weighted and samples.calibration else {}
            for layer in part:
                name, centred = layer.weight, isinstance(layer.bias, str)
                second = seen[name].second(centred) if name in seen else None
                found[name] = spectrum(_matrix(model, layer), second)
                if name in seen and centred:
                    means[name] = seen[name].mean
        return found, means

    def _ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        if self.parameters is None:
            return by_energy(spectra, ENERGY if self.energy is None else self.energy, self.multiple_of)
        ranks = by_parameters(spectra, self.parameters, self.multiple_of)
        if ranks is None:
            raise UsageError(
                f"simplify.low_rank: parameters is {self.parameters:g}, which ranks of {self.multiple_of} or more do "
                f"not reach; ask for a larger share, or for a smaller multiple_of"
            )
        return ranks


def _matrix(model: Model, layer: Layer) -> Array:
    """Float32 [outputs, inputs], where the inputs of a convolution are its channels times its window."""
    weight = integers.dequantize(model.tensors[layer.weight])
    return weight.T if weight.ndim == 2 and layer.axis == 1 else weight.reshape(len(weight), -1)
