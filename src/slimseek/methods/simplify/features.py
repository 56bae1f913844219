"""Fewer features in a row: some columns, or their principal directions, go into a narrower first layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import msgspec
import numpy as np

from slimseek import choose, hollow, integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.arrays import ArrayInput
from slimseek.inputs.batches import spread
from slimseek.inputs.features import STORED
from slimseek.preprocess import FeaturePreprocess
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Samples


class Features(Step, frozen=True, kw_only=True):
    """Reduce items that are one row of features when they are read, and narrow the layers that read them.

    ``weights`` keeps the columns whose weights in the first layers have the greatest norm, ``variance`` those that vary
    most over the items. What a column that leaves gives on average goes into the first layers' results, where items
    are at hand. ``pca`` projects x - E[x] on the directions with the most variance, P, and has P^T W in the place of W.

    Its outline adds something to the results of every first layer, also where there would be nothing to add.

    Attributes:
        method: ``weights``, ``variance`` or ``pca``.
        keep: how many features are left: a share above 0 and up to 1.0, rounded up, or a whole number of them.
        items: at most so many items are looked at, evenly over all.
    """

    bounds: ClassVar[bool] = True

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
        layers, width, kept = self._asked(model)
        integers.check_finite(model, "given fewer features")
        weights = {layer.weight: _inputs_first(model, layer) for layer in layers}
        rows = _rows(model, spread(samples.texts or samples.calibration, self.items))
        if rows is None and self.method != "weights":
            raise UsageError(f"simplify.features: there are no items to find the {self.method} of")
        mean = np.zeros(width) if rows is None else rows.mean(0)
        if self.method == "pca":
            assert rows is not None
            features, before, constant = _directions(rows, mean, kept)
        else:
            features, before, constant = self._columns(weights, rows, mean, kept)
        return _narrowed(model, layers, features, before, constant)

    def outline(self, model: Model, samples: Samples) -> Model:
        """The last columns are kept, whose numbers are the longest to write."""
        layers, width, kept = self._asked(model)
        features = FeaturePreprocess(width=width, columns=tuple(range(width - kept, width)))
        if self.method == "pca":
            numbers = np.zeros((width, kept), STORED)
            features = FeaturePreprocess(width=width, mean=numbers[:, 0].tobytes(), components=numbers.tobytes())
        return hollow.model(_narrowed(model, layers, features, np.ones((width, kept)), np.ones(width)), model)

    def _asked(self, model: Model) -> tuple[tuple[Layer, ...], int, int]:
        """The layers that read the features, how many of these there are, and how many are kept."""
        if model.spec.features:
            raise NoEffect("simplify.features: the features are reduced already")
        layers = choose.family(model).feature_layers(model)
        if not layers:
            raise NoEffect("simplify.features: the first operation is no linear layer on one row of features")
        _check_float(model, layers)
        width = model.tensors[layers[0].weight].shape[1 - layers[0].axis]
        kept = int(np.ceil(self.keep * width)) if isinstance(self.keep, float) else self.keep
        if kept > width:
            raise UsageError(f"simplify.features: keep is {kept}, and there are {width} features")
        if kept == width and self.method != "pca":
            raise NoEffect(f"simplify.features: keep is all of the {width} features")
        return layers, width, kept

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


def _narrowed(
    model: Model, layers: Sequence[Layer], features: FeaturePreprocess, before: Array, constant: Array
) -> Model:
    """The model for rows x P + constant, with P float64 [width, kept] and the constant float64 [width]."""
    tensors, added = dict(model.tensors), {}
    for layer in layers:
        weight, stored = _inputs_first(model, layer), model.tensors[layer.weight]
        assert not isinstance(stored, QuantizedTensor)
        new = before.T @ weight
        tensors[layer.weight] = np.ascontiguousarray(new if layer.axis == 1 else new.T).astype(stored.dtype)
        moved = (constant @ weight).astype(np.float32)
        if moved.any():
            added[layer.weight] = moved
    changed = choose.family(model).with_features(model, before.shape[1], tensors, added)
    return dataclasses.replace(changed, spec=msgspec.structs.replace(changed.spec, features=features))


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
