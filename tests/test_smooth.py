"""Smoothing: the same function, shared factors, less noise, and integers that still run as integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from slimseek import choose, deploy, plugins
from slimseek.evaluate import cosines
from slimseek.methods.quantize.smooth import factors
from slimseek.schema import Array, Model, Samples
from small import CORPUS, tiny_bert

TEXTS = [*CORPUS.values(), "stone", "the cat sleeps", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
BACKENDS = [name for name, reason in deploy.targets().items() if reason is None]
FORMS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "float32": (),
    "fp16": (("quantize.float", {}),),
    "e4m3": (("quantize.float", {"format": "e4m3"}),),
    "int8": (("quantize.weights_int", {}),),
    "int4 group": (("quantize.weights_int", {"bits": 4, "granularity": "group", "group_size": 16}),),
    "int8 static": (("quantize.weights_int", {}), ("quantize.activations_int", {})),
    "int8 dynamic": (("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "dynamic"})),
    "int8 asymmetric static": (("quantize.weights_int", {"symmetric": False}), ("quantize.activations_int", {})),
    "int4 static": (
        ("quantize.weights_int", {"bits": 4, "granularity": "group", "group_size": 16}),
        ("quantize.activations_int", {}),
    ),
}
ROUNDED = [form for form, steps in FORMS.items() if len(steps) == 2]


def apply(model: Model, method: str, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, samples)
    return changed


def formed(model: Model, form: str) -> Model:
    for method, parameters in FORMS[form]:
        model = apply(model, method, **parameters)
    return model


def vectors(model: Model, items: Sequence[str] = TEXTS) -> Array:
    return choose.encoder(model, "this", 1).documents(items)


def noise(model: Model, original: Model, items: Sequence[str] = TEXTS) -> float:
    return float((1 - cosines(vectors(original, items), vectors(model, items))).mean())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers of BERT whose attention gives one channel forty times the values of the others.

    A row of the value projection is forty times as large, and the column that reads it as much smaller: the vectors
    are those of the tiny BERT.
    """
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(folder)
    model = choose.model(folder)
    tensors = {name: tensor.copy() for name, tensor in model.tensors.items()}
    for number in range(2):
        attention = f"transformer.encoder.layer.{number}.attention"
        for part in ("weight", "bias"):
            tensors[f"{attention}.self.value.{part}"][5] *= 40
        tensors[f"{attention}.output.dense.weight"][:, 5] /= 40
    return dataclasses.replace(model, tensors=tensors)


@pytest.fixture(scope="module")
def smoothed(original: Model) -> Model:
    return apply(original, "quantize.smooth")


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.5, [2, 0.5, 1]), (1.0, [2, 0.5, 1]), (0.0, [2, 0.5, 1]), (0.75, [2, 0.5, 1])],
)
def test_factors_worked_by_hand(alpha: float, expected: list[float]) -> None:
    """Inputs 4 and 1/4 of their mean... alpha 1: the inputs' ratio alone; the third input is dead and gets 1."""
    inputs = np.array([4, 1, 0], np.float32)
    weights = np.array([1, 4, 2], np.float32)
    assert factors(inputs, weights, alpha) == pytest.approx(expected)
