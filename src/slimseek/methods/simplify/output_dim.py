"""Vectors of fewer elements: the index shrinks in proportion, the model hardly grows."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from slimseek import choose, hollow
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.batches import spread
from slimseek.methods._principal import leading
from slimseek.schema import Array, Model, Samples
from slimseek.timing import default_threads


class OutputDim(Step, frozen=True, kw_only=True):
    """End the model in a linear map to fewer elements; vectors of length one are brought to length one again.

    ``pca`` takes the directions with the most energy, the leading eigenvectors of E[v v^T] over the vectors of the
    texts. Nothing is subtracted from the vectors, so that the inner products of what is left are as near as they can
    be, by mean squared error, to those of whole vectors. ``cut`` takes the first elements, for models that were
    trained for it (Matryoshka representations).

    Attributes:
        dim: how many elements are left; ``None`` for a half, rounded up.
        method: ``pca`` or ``cut``.
        texts: at most so many texts are looked at by ``pca``, evenly over all.
    """

    dim: int | None = None
    method: Literal["pca", "cut"] = "pca"
    texts: int = 4096

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 2:
            raise UsageError(f"simplify.output_dim: dim is {self.dim}; 2 or more is allowed")
        if self.texts < 1:
            raise UsageError(f"simplify.output_dim: texts is {self.texts}; 1 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Find the map and put it behind the model."""
        dim = self._width(model)
        if self.method == "cut":
            matrix, said = np.eye(dim, model.spec.dim, dtype=np.float32), "the first ones"
        else:
            matrix, said = self._directions(model, samples, dim)
        return dataclasses.replace(choose.family(model).projected(model, matrix), said=(said,))

    def outline(self, model: Model, samples: Samples) -> Model:
        """With a map of ones."""
        matrix = np.ones((self._width(model), model.spec.dim), np.float32)
        return hollow.model(choose.family(model).projected(model, matrix), model)

    def _width(self, model: Model) -> int:
        """How many elements are left."""
        width = model.spec.dim
        dim = max(2, (width + 1) // 2) if self.dim is None else self.dim
        if model.spec.output != "embedding":
            raise UsageError(f"simplify.output_dim: the model gives {model.spec.output}, of which none may leave")
        if dim > width:
            raise UsageError(f"simplify.output_dim: dim is {dim}, and the model's vectors have {width} elements")
        if dim == width:
            raise NoEffect(f"simplify.output_dim: the vectors have {dim} elements already")
        return dim

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Elements before and after, and what share of the energy they hold."""
        return (f"{before.spec.dim} -> {after.spec.dim} elements: {', '.join(after.said)}",)

    def _directions(self, model: Model, samples: Samples, dim: int) -> tuple[Array, str]:
        """Float32 [dim, width], and what is said of them."""
        chosen = spread(samples.texts or samples.calibration, self.texts)
        if not chosen:
            raise UsageError("simplify.output_dim: there are no texts to find directions by; method cut needs none")
        vectors = choose.encoder(model, "simplify.output_dim: the model", default_threads()).documents(chosen)
        matrix, kept = leading(vectors, dim)
        few = "" if len(chosen) >= dim else "; fewer texts than directions, the rest of which are arbitrary"
        return matrix, f"{kept:.2%} of the energy of {len(chosen):,} texts' vectors{few}"
