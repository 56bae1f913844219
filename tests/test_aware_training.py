"""Quantization-aware training: the grid against integers by hand, gradients, what is kept, going on after a kill."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from slimseek import choose, integers, plugins
from slimseek.bases import Family
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import TEXTS
from slimseek.losses.cosine import Cosine
from slimseek.methods.quantize._fake_quantization import Grid
from slimseek.schema import Model, QuantizedTensor, QuantSpec, Samples
from slimseek.training import train
from small import tiny_bert

SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
SPECS = [
    QuantSpec(bits=bits, granularity=granularity, group_size=size, symmetric=symmetric, axis=axis)
    for bits in (2, 4, 8)
    for granularity, size in (("tensor", None), ("channel", None), ("group", 5))
    for symmetric in (True, False)
    for axis in (0, 1)
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


def trained(model: Model, samples: Samples = SAMPLES, **parameters: object) -> Model:
    settings = {"bits": 2, "group_size": 16, "steps": 60, "batch_size": 8, "learning_rate": 2e-3} | parameters
    step = plugins.load("methods", "quantize.aware_training")(**settings)
    changed: Model = step.apply(model, samples)
    return changed


def loss(model: Model, original: Model) -> float:
    vectors = [choose.encoder(one, "m", 1).documents(TEXTS) for one in (original, model)]
    return float((1 - cosines(*vectors)).mean())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_untrained_grid_is_that_of_quantize(spec: QuantSpec) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    expected = integers.quantize(weight, spec, "mse")
    grid = Grid(expected)
    stored = grid.quantized(torch.from_numpy(weight))
    assert np.array_equal(stored.integers, expected.integers)
    assert np.array_equal(stored.scale, expected.scale)
    with torch.no_grad():
        assert np.allclose(grid(torch.from_numpy(weight)).numpy(), integers.dequantize(stored), atol=1e-6)
        assert np.array_equal(grid.begun(torch.from_numpy(weight), expected).numpy(), weight)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_weight_moves_no_farther_than_into_the_cell_of_its_integer(spec: QuantSpec) -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(6, 12)).astype(np.float32)
    nearest = integers.quantize(weight, spec, "mse")
    low, high = (-(2 ** (spec.bits - 1)) + 1, 2 ** (spec.bits - 1) - 1) if spec.symmetric else (0, 2**spec.bits - 1)
    other = generator.integers(low, high + 1, weight.shape)
    moved = np.where(generator.random(weight.shape) < 0.3, other, nearest.integers)
    start = dataclasses.replace(nearest, integers=moved.astype(nearest.integers.dtype))
    grid = Grid(start)
    begun = grid.begun(torch.from_numpy(weight), start)
    assert np.array_equal(grid.quantized(begun).integers, start.integers)
    same = start.integers == nearest.integers
    assert np.array_equal(begun.numpy()[same], weight[same])
    assert (np.sign(begun.numpy() - weight) == np.sign(integers.dequantize(start) - weight))[~same].all()


def test_training_can_begin_with_compensated_rounding(original: Model) -> None:
    given = {"bits": 2, "granularity": "group", "group_size": 16, "symmetric": False, "rounding": "compensated"}
    step = plugins.load("methods", "quantize.weights_int")(**given, correct_bias=True)
    rounded = step.apply(original, SAMPLES)
    untrained = trained(original, rounding="compensated", steps=1, learning_rate=1e-12)
    for name, tensor in rounded.tensors.items():
        assert np.array_equal(integers.dequantize(untrained.tensors[name]), integers.dequantize(tensor)), name
    model = trained(original, rounding="compensated", learning_rate=3e-4)
    assert loss(model, original) < 0.5 * loss(rounded, original)


def test_gradients_pass_rounding_and_stop_at_the_ends_of_the_grid() -> None:
    spec = QuantSpec(bits=3, granularity="tensor", symmetric=True)
    grid = Grid(integers.quantize(np.array([[3.0, 1.0, 0.4]], np.float32), spec, "mse"))
    with torch.no_grad():
        grid.step.fill_(1.0)
    weight = torch.tensor([[9.0, 1.3, -0.2]], requires_grad=True)
    grid(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0]], "9 lies above the topmost level, 3"
    # d/dstep of level * step: the level, and inside the grid minus value / step: 3 + (1 - 1.3) + (0 + 0.2)
    assert grid.step.grad is not None
    assert abs(float(grid.step.grad) - (3 - 0.3 + 0.2)) < 1e-6


def test_training_brings_the_vectors_back(original: Model) -> None:
    rounded = plugins.load("methods", "quantize.weights_int")(bits=2, granularity="group", group_size=16,
                                                              symmetric=False).apply(original, SAMPLES)  # fmt: skip
    model = trained(original)
    assert loss(model, original) < 0.7 * loss(rounded, original)
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.integers.max() <= 3
    assert not isinstance(original.tensors[original.layers[0].weight], QuantizedTensor), "the original is not changed"


def test_training_that_only_harms_is_thrown_away(original: Model) -> None:
    start = trained(original, bits=8, steps=1, learning_rate=1e-12)
    harmed = trained(original, bits=8, steps=30, learning_rate=1.0)
    assert loss(harmed, original) <= loss(start, original) * 1.01 + 1e-9


def test_a_killed_training_goes_on_from_its_checkpoint(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same integers; that every part of the state comes back is in test_training.py."""
    monkeypatch.setattr(train, "CHECK_EVERY", 20)
    expected, file = trained(original), str(tmp_path / "training.safetensors")
    losses = itertools.count()

    def dying(_: Cosine, output: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        if next(losses) == 50:
            raise KeyboardInterrupt
        return cosine(given, output, target)

    cosine, given = Cosine.__call__, Cosine()
    with monkeypatch.context() as patch:
        patch.setattr(Cosine, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(original, checkpoint=file)
    model = trained(original, checkpoint=file)
    for name, tensor in expected.tensors.items():
        assert np.array_equal(integers.dequantize(model.tensors[name]), integers.dequantize(tensor)), name


def test_integers_of_an_earlier_step_stay_while_others_are_trained(
    original: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the network that is trained: else what is stored would not be what was trained for."""
    earlier = plugins.load("methods", "quantize.weights_int")(bits=3, layers=("embedding",)).apply(original, SAMPLES)
    networks = []
    fit = train.fit
    monkeypatch.setattr(
        train, "fit", lambda network, *rest, **more: networks.append(network) or fit(network, *rest, **more)
    )
    model = trained(earlier, layers=("linear",))
    tables = [layer.weight for layer in model.layers if layer.kind == "embedding"]
    assert tables
    for table in tables:
        assert model.tensors[table] is earlier.tensors[table]
        kept = networks[0].get_parameter(table).detach().numpy()
        assert np.array_equal(kept, integers.dequantize(earlier.tensors[table]))


def test_what_cannot_be_trained_is_refused(original: Model, tmp_path: Path) -> None:
    step = plugins.load("methods", "quantize.aware_training")
    for bad in ({"bits": 9}, {"steps": 0}, {"learning_rate": 0.0}, {"max_tokens": 2}, {"batch_size": 0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            step(**bad)
    with pytest.raises(NoEffect, match="none of"):
        step(layers=("convolution",)).apply(original, SAMPLES)
    with pytest.raises(UsageError, match="too few to train on"):
        trained(original, Samples(calibration=["a"], texts=["a", "b"]))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is no checkpoint of this training"):
        trained(original, checkpoint=str(broken))
    with pytest.raises(UsageError, match="models of the family transformer cannot be trained"):
        Family.trainable(choose.family(original), original)
