"""Single weights become zero: the file shrinks, the shapes stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from slimseek.bases import Step
from slimseek.errors import UsageError
from slimseek.methods.prune._weights import (
    DEFAULT_KINDS,
    Importance,
    chosen,
    least,
    norms_of_inputs,
    scores,
    size_notes,
    zeroed,
)
from slimseek.schema import Array, Layer, LayerKind, Model, Samples

HALF = 0.5
LEAST_KEPT = 0.01
"""Share of a layer's weights, at least one, that no limit over the whole model takes."""


class WeightPruning(Step, frozen=True, kw_only=True):
    """Set the least important weights to zero; an artifact stores one bit for each of them.

    A share of the weights, of each layer or of all together, or all below a magnitude. Of equally important weights
    those that come first go first. A later step that trains or rounds leaves the zeros as they are.

    Its outline is the model as it is: how many bytes zeros save hangs on the values of later steps too.

    Attributes:
        ratio: share to zero, 0 to below 1, weights that are zero already included; ``None``: a half, unless there is
            a threshold.
        threshold: instead of a ratio: zero what is smaller in magnitude.
        scope: ``layer``: the ratio holds for each layer; ``model``: one ranking by magnitude over all of them, in
            which each layer keeps at least a hundredth of its weights.
        importance: ``magnitude``: |w|; ``activation``: |w| times the root mean square of the input it meets on
            calibration texts, compared within each output row (Wanda).
        layers: kinds of layers to prune.
        skip: layers whose name contains one of these stay as they are.
    """

    bounds: ClassVar[bool] = True

    ratio: float | None = None
    threshold: float | None = None
    scope: Literal["layer", "model"] = "layer"
    importance: Importance = "magnitude"
    layers: tuple[LayerKind, ...] = DEFAULT_KINDS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UsageError(f"prune.weights: ratio is {self.ratio}; 0 to below 1 is allowed")
        if self.threshold is not None and not 0 < self.threshold < np.inf:
            raise UsageError(f"prune.weights: threshold is {self.threshold}; above 0 is allowed")
        if self.threshold is not None and self.ratio is not None:
            raise UsageError(
                f"prune.weights: ratio is {self.ratio} and threshold is {self.threshold}; one of them is allowed"
            )
        if self.importance == "activation" and (self.threshold is not None or self.scope == "model"):
            raise UsageError(
                "prune.weights: importance is activation, which compares within each output row; a threshold or the "
                "scope model needs magnitude"
            )

    def apply(self, model: Model, samples: Samples) -> Model:
        """Zero the least important weights of the chosen layers."""
        layers = chosen(model, self.layers, self.skip, "prune.weights")
        norms = norms_of_inputs(model, layers, self.importance, samples, "prune.weights")
        found = scores(model, layers, norms)
        if self.threshold is not None:
            masks = {name: _below(score, self.threshold) for name, score in found}
        elif self.scope == "model":
            masks = _of_all(dict(found), self._share)
        elif self.importance == "activation":
            masks = {name: _of_rows(score, self._share) for name, score in found}
        else:
            masks = {name: least(score, _count(score.size, self._share)) for name, score in found}
        return zeroed(model, layers, masks, norms, "prune.weights")

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Zeros asked and reached, true bytes before and after, and that nothing becomes faster."""
        layers = chosen(before, self.layers, self.skip, "prune.weights")
        return size_notes(before, after, layers, self._asked(before, layers))

    @property
    def _share(self) -> float:
        return HALF if self.ratio is None else self.ratio

    def _asked(self, before: Model, layers: Mapping[str, Layer]) -> str:
        if self.threshold is not None:
            return f"all below {self.threshold:g}"
        sizes = [int(np.prod(before.tensors[name].shape)) for name in layers]
        whole = self.scope == "model"
        return f"{_rounded(sum(sizes) * self._share) if whole else sum(_count(size, self._share) for size in sizes):,}"


def _rounded(number: float) -> int:
    return int(np.rint(number))


def _count(size: int, share: float) -> int:
    """How many of a layer's weights become zero; one at least is left."""
    return min(_rounded(size * share), size - 1)


def _kept(size: int) -> int:
    return max(1, int(size * LEAST_KEPT))


def _of_rows(score: Array, share: float) -> Array:
    """The lowest of each output's weights; numbers are rounded so that they add up to the layer's."""
    rows = score.reshape(len(score), -1)
    ends = np.rint(np.arange(len(rows) + 1) * (_count(rows.size, share) / len(rows))).astype(int)
    order = np.argsort(rows, axis=1, kind="stable")
    mask = np.zeros(rows.shape, bool)
    np.put_along_axis(mask, order, np.arange(rows.shape[1]) < np.diff(ends)[:, None], axis=1)
    return mask.reshape(score.shape)


def _below(score: Array, threshold: float) -> Array:
    """What is below the threshold, but for the greatest hundredth of the layer."""
    mask = score < threshold
    most = score.size - _kept(score.size)
    return mask if np.count_nonzero(mask) <= most else least(score, most)


def _of_all(found: Mapping[str, Array], share: float) -> dict[str, Array]:
    """The lowest of all layers together, each of which keeps its greatest hundredth."""
    open_to_all = {name: least(score, score.size - _kept(score.size)) for name, score in found.items()}
    total, most = (sum(array.size for array in found.values()), sum(np.count_nonzero(m) for m in open_to_all.values()))
    count = _rounded(total * share)
    if count > most:
        raise UsageError(
            f"prune.weights: ratio is {share}; with scope model at most {most / total:.4f} is allowed here, as each "
            f"layer keeps a hundredth of its weights"
        )
    ranked = [np.where(open_to_all[name], score, np.inf).reshape(-1) for name, score in found.items()]
    lowest = np.split(least(np.concatenate(ranked), count), np.cumsum([part.size for part in ranked])[:-1])
    return {name: part.reshape(found[name].shape) for name, part in zip(found, lowest, strict=True)}
