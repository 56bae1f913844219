"""Of every m weights in a row n stay: the pattern of sparse tensor cores, and a smaller file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from slimseek.bases import Step
from slimseek.errors import UsageError
from slimseek.methods.prune._weights import (
    DEFAULT_KINDS,
    Importance,
    chosen,
    inputs_last,
    norms_of_inputs,
    scores,
    size_notes,
    zeroed,
)
from slimseek.schema import Array, Layer, LayerKind, Model, Samples


class NMPruning(Step, frozen=True, kw_only=True):
    """Of each ``m`` weights in a row along the input axis keep the ``n`` most important, and zero the others.

    Groups begin with each output's first input; in a convolution they run over its input channels, for each position
    of the kernel apart. Where ``m`` does not divide the inputs, the last, shorter group keeps at most ``n``. Of
    equally important weights those that come first stay.

    Its outline is the model as it is: how many bytes zeros save hangs on the values of later steps too.

    Attributes:
        n: how many stay, 1 to m - 1.
        m: of how many; 2 of 4 is what NVIDIA's sparse tensor cores take.
        importance: ``magnitude``: |w|; ``activation``: |w| times the root mean square of the input it meets on
            calibration texts (Wanda).
        layers: kinds of layers to prune.
        skip: layers whose name contains one of these stay as they are.
    """

    bounds: ClassVar[bool] = True

    n: int = 2
    m: int = 4
    importance: Importance = "magnitude"
    layers: tuple[LayerKind, ...] = DEFAULT_KINDS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.m < 2:
            raise UsageError(f"prune.n_m: m is {self.m}; 2 or more is allowed")
        if not 1 <= self.n < self.m:
            raise UsageError(f"prune.n_m: n is {self.n} of m {self.m}; 1 to {self.m - 1} is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Zero all but the most important of each group."""
        layers = chosen(model, self.layers, self.skip, "prune.n_m")
        norms = norms_of_inputs(model, layers, self.importance, samples, "prune.n_m")
        masks = {name: ~kept(score, self.n, self.m) for name, score in scores(model, layers, norms)}
        return zeroed(model, layers, masks, norms, "prune.n_m")

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Zeros asked and reached, true bytes before and after, and that nothing becomes faster here."""
        layers = chosen(before, self.layers, self.skip, "prune.n_m")
        return size_notes(before, after, layers, f"{self._asked(before, layers):,}")

    def _asked(self, before: Model, layers: Mapping[str, Layer]) -> int:
        ones = (np.ones(before.tensors[name].shape, np.float32) for name in layers)
        shaped = (inputs_last(one, layer) for one, layer in zip(ones, layers.values(), strict=True))
        return sum(int(np.count_nonzero(~kept(one, self.n, self.m))) for one in shaped)


def kept(score: Array, n: int, m: int) -> Array:
    """Bool of the shape of the scores [..., inputs]: the ``n`` highest of each ``m`` in a row."""
    inputs = score.shape[-1]
    padding = [(0, 0)] * (score.ndim - 1) + [(0, -inputs % m)]
    groups = np.pad(score, padding, constant_values=-np.inf).reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return mask.reshape(*score.shape[:-1], -1)[..., :inputs]
