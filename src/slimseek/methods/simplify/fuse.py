"""What can be computed once leaves the network: constants beside a layer, layers with nothing between them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from slimseek import choose
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.integers import check_finite
from slimseek.methods.simplify._fusion import Fusion
from slimseek.models._onnx.graph import GRAPH, _layers
from slimseek.schema import Model, QuantizedTensor, Samples, Tensor, is_float

ITEMS_COMPARED = 5
LARGEST_DIFFERENCE = 1e-4
"""Of an element of the output, as a share of the largest where that is above 1."""


class Fuse(Step, frozen=True, kw_only=True):
    """Compute once what is the same for every item, in a network that is an ONNX graph.

    x W1 W2 becomes x (W1 W2) where that has no more weights; (x f + s) W becomes x (diag(f) W) + s W, for convolutions
    too (s only where nothing is padded); (x W + b) f + s, which is what a batch norm does, becomes x (W diag(f)) +
    (b f + s); dropouts leave. Batch norms behind convolutions, identities and arithmetic on constants were folded when
    the file was opened. The result is run and compared with the network before; axes stay free.

    Its outline is the model as it is, which has at least as many weights.
    """

    bounds: ClassVar[bool] = True

    def apply(self, model: Model, samples: Samples) -> Model:
        """The smaller graph."""
        if GRAPH not in model.files:
            raise NoEffect(
                f"simplify.fuse: a model of the family {model.spec.family} stays in the form that its library loads, "
                f"whose layers have a non-linearity or a norm between them; export it to .onnx to fuse its graph"
            )
        if model.activations or model.smoothing or any(isinstance(t, QuantizedTensor) for t in model.tensors.values()):
            raise UsageError("simplify.fuse: the model is quantized or smoothed; fuse before quantizing")
        check_finite(model, "fused")
        graph, weights = choose.family(model).parts(model)
        fusion = Fusion(graph=graph.graph, weights=dict(weights))
        fusion.run()
        if not fusion.done:
            raise NoEffect("simplify.fuse: no layer stands beside a constant, a dropout or another layer to fuse with")
        tensors: dict[str, Tensor] = dict(model.tensors)
        for name, array in fusion.weights.items():
            if array is not weights.get(name):
                old = tensors.get(name)
                kind = old.dtype if isinstance(old, np.ndarray) and is_float(old) else array.dtype
                tensors[name] = array.astype(kind)
        fused = choose.family(model).resized(model, graph, tensors)
        said = tuple(f"{what}: {count}" for what, count in sorted(fusion.done.items()))
        fused = dataclasses.replace(fused, layers=_layers(graph.graph, fusion.weights), said=said)
        _compare(model, fused)
        return fused

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was fused, and how many weights that leaves."""
        return (*after.said, f"{after.parameters:,} of {before.parameters:,} weights are left")


def _compare(before: Model, after: Model) -> None:
    """Refuse a graph that gives other outputs, on items of which there are one and several in a batch."""
    read = reader(before.spec, before.files)
    items = examples(before.spec)[:ITEMS_COMPARED]
    old, new = (choose.family(model).run(model, 0) for model in (before, after))
    for batch in (read(items[:1]), *([read([item, item]) for item in items])):
        expected, found = old(batch), new(batch)
        largest = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not largest <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
            raise NoEffect(f"simplify.fuse: the fused network differs by {largest:.3g}, so all stays as it was")
