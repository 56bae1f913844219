"""Fewer features in a row: some columns, or their principal directions, go into a narrower first layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from slimseek import choose, integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.arrays import ArrayInput
from slimseek.inputs.batches import spread
from slimseek.inputs.features import STORED
from slimseek.schema import Array, FeaturePreprocess, Layer, Model, QuantizedTensor, Samples, Tensor


class Features(Step, frozen=True, kw_only=True):
    """Reduce items that are one row of features when they are read, and narrow the layers that read them.

    ``weights`` keeps the columns whose weights in the first layers have the greatest norm, ``variance`` those that vary
    most over the items. What a column that leaves gives on average goes into the first layers' results, where items
    are at hand. ``pca`` projects x - E[x] on the directions with the most variance, P, and has P^T W in the place of W.

    Attributes:
        method: ``weights``, ``variance`` or ``pca``.
        keep: how many features are left: a share above 0 and up to 1.0, rounded up, or a whole number of them.
        items: at most so many items are looked at, evenly over all.
    """

    method: Literal["weights", "variance", "pca"] = "weights"
    keep: int | float = 0.5
    items: int = 4096

    def __post_init__(self) -> None:
        if self.keep <= 0 or (isinstance(self.keep, float) and self.keep > 1):
            raise UsageError(
                f"simplify.features: keep is {self.keep}; above 0 and up to 1.0, or a whole number, is allowed"
            )
        if self.items < 1:
            raise UsageError(f"simplify.features: items is {self.items}; 1 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Choose columns or directions, and narrow the first layers."""
        if model.spec.features:
            raise NoEffect("simplify.features: the features are reduced already")
        family = choose.family(model)
        layers = family.feature_layers(model)
        if not layers:
            raise NoEffect("simplify.features: the first operation is no linear layer on one row of features")
        _check_float(model, layers)
        integers.check_finite(model, "given fewer features")
        weights = {layer.weight: _inputs_first(model, layer) for layer in layers}
        width = len(next(iter(weights.values())))
        kept = int(np.ceil(self.keep * width)) if isinstance(self.keep, float) else self.keep
        if kept > width:
            raise UsageError(f"simplify.features: keep is {kept}, and there are {width} features")
        if kept == width and self.method != "pca":
            raise NoEffect(f"simplify.features: keep is all of the {width} features")
        rows = _rows(model, spread(samples.texts or samples.calibration, self.items))
        if rows is None and self.method != "weights":
            raise UsageError(f"simplify.features: there are no items to find the {self.method} of")
        mean = np.zeros(width) if rows is None else rows.mean(0)
        if self.method == "pca":
            assert rows is not None
            features, before, constant = _directions(rows, mean, kept)
        else:
            features, before, constant = self._columns(weights, rows, mean, kept)
        tensors, added = dict(model.tensors), {}
        for layer in layers:
            weight = weights[layer.weight]
            stored: Tensor = model.tensors[layer.weight]
            assert not isinstance(stored, QuantizedTensor)
            new = before.T @ weight
            tensors[layer.weight] = np.ascontiguousarray(new if layer.axis == 1 else new.T).astype(stored.dtype)
            added[layer.weight] = (constant @ weight).astype(np.float32)
        changed = family.with_features(model, kept, tensors, {name: value for name, value in added.items()
                                                              if value.any()})  # fmt: skip
        return dataclasses.replace(changed, spec=msgspec.structs.replace(changed.spec, features=features))

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Features before and after, and weights."""
        old, new = before.spec.inputs[0].shape[1], after.spec.inputs[0].shape[1]
        held = len(after.spec.features.components) // 4 if after.spec.features else 0
        beside = f"; the projection at reading has {held:,} numbers" if held else ""
        return (f"{old} -> {new} features; {before.parameters:,} -> {after.parameters:,} weights{beside}",)

    def _columns(
        self, weights: Mapping[str, Array], rows: Array | None, mean: Array, kept: int
    ) -> tuple[FeaturePreprocess, Array, Array]:
        """What is done at reading, its matrix [width, kept], and what the columns that leave are on average [width]."""
        score = (
            rows.var(0)
            if self.method == "variance" and rows is not None
            else sum(np.square(weight).sum(1) for weight in weights.values())
        )
        columns = np.sort(np.argsort(-np.asarray(score), kind="stable")[:kept])
        constant = mean.copy()
        constant[columns] = 0
        features = FeaturePreprocess(width=len(mean), columns=tuple(int(column) for column in columns))
        return features, np.eye(len(mean))[:, columns], constant


def _directions(rows: Array, mean: Array, kept: int) -> tuple[FeaturePreprocess, Array, Array]:
    """As for columns: the leading eigenvectors of the covariance, and the mean."""
    _, directions = np.linalg.eigh((rows - mean).T @ (rows - mean))
    stored = np.ascontiguousarray(directions[:, ::-1][:, :kept]).astype(STORED)
    centre = mean.astype(STORED)
    features = FeaturePreprocess(width=len(mean), mean=centre.tobytes(), components=stored.tobytes())
    return features, stored.astype(np.float64), centre.astype(np.float64)


def _check_float(model: Model, layers: Sequence[Layer]) -> None:
    for layer in layers:
        if isinstance(model.tensors[layer.weight], QuantizedTensor):
            raise UsageError(
                f"simplify.features: the weight {layer.weight} is quantized; take features away before quantizing"
            )
    if model.activations or model.smoothing:
        raise UsageError("simplify.features: the model is smoothed or rounds its inputs; take features away before")


def _inputs_first(model: Model, layer: Layer) -> Array:
    """Float64 [inputs, outputs]."""
    weight = integers.dequantize(model.tensors[layer.weight]).astype(np.float64)
    return weight if layer.axis == 1 else weight.T


def _rows(model: Model, items: Sequence[str]) -> Array | None:
    """Float64 [items, width]; ``None`` where there are no items."""
    name = model.spec.inputs[0].name
    found = [row[name] for row in ArrayInput(model.spec).rows(items)]
    return np.array(found, np.float64) if found else None
