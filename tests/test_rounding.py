"""Better rounding: GPTQ against its definition, biases against outputs, ranges by entropy against a search by hand."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy import stats

from slimseek import artifact, choose, integers, plugins, recipe
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.methods import _moments
from slimseek.methods.quantize import _compensated, _ranges, weights_int
from slimseek.methods.quantize._compensated import compensate
from slimseek.methods.quantize._ranges import Histogram
from slimseek.methods.quantize.activations_int import ActivationsInt
from slimseek.methods.quantize.weights_int import WeightsInt
from slimseek.models._onnx.graph import _biases
from slimseek.schema import Array, Granularity, Model, QuantizedTensor, QuantSpec, Samples
from small import CORPUS, WORDS, tiny_bert

TEXTS = [*CORPUS.values(), *WORDS]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
GROUPS: dict[str, Any] = {"granularity": "group", "group_size": 12, "symmetric": False}
FIRST = "transformer.encoder.layer.0.attention.self.query"
LAST = "transformer.encoder.layer.1.output.dense"


def spec_of(bits: int = 3, granularity: Granularity = "channel", size: int | None = None, **rest: Any) -> QuantSpec:
    return QuantSpec(bits=bits, granularity=granularity, group_size=size, **rest)


SPECS = [
    spec_of(3),
    spec_of(4, symmetric=False),
    spec_of(2, "tensor"),
    spec_of(4, "tensor", symmetric=False),
    spec_of(4, "group", 16),
    spec_of(2, "group", 16, symmetric=False),
    spec_of(3, "group", 9, symmetric=False),
    spec_of(5, "group", 100),
    spec_of(8, "group", 2, symmetric=False),
]


def layer_of(seed: int, outputs: int = 24, inputs: int = 70, count: int = 400) -> tuple[Array, Array]:
    """A random weight [outputs, inputs] and inputs [count, inputs] that hang together, as those of real layers do."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((inputs // 3, inputs))
    rows = random.standard_normal((count, inputs // 3)) @ mixing + 0.3 * random.standard_normal((count, inputs))
    rows *= random.exponential(1, inputs)
    return random.standard_normal((outputs, inputs)).astype(np.float32), rows.astype(np.float32)


def output_error(weight: Array, tensor: QuantizedTensor, rows: Array) -> Array:
    """Sum of squares [outputs] of (W - W_q) X."""
    error = np.moveaxis(integers.dequantize(tensor).astype(np.float64) - weight, tensor.spec.axis, 0)
    outputs: Array = np.square(rows.astype(np.float64) @ error.T).sum(0)
    return outputs


def turned(weight: Array, axis: int) -> Array:
    return weight if axis == 0 else np.ascontiguousarray(weight.T)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return choose.model(folder)


@pytest.fixture(scope="module")
def graph(folder: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same model as an ONNX file, whose weights are [inputs, outputs]."""
    path = tmp_path_factory.mktemp("graph") / "tiny"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    onnx.save(choose.family(model).to_onnx(model), path / "model.onnx")
    return choose.model(path)


class TestCompensated:
    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}{spec.group_size}-{spec.bits}")
    def test_outputs_change_less_than_by_nearest(self, spec: QuantSpec, axis: int) -> None:
        """Not one channel's error is larger, and the sum is clearly smaller; 70 inputs are no multiple of 16 or 9."""
        spec = with_axis(spec, axis=axis)
        before = after = 0.0
        for seed in range(6):
            weight, rows = layer_of(seed)
            weight = turned(weight, axis)
            nearest = integers.quantize(weight, spec, "mse")
            made = compensate(weight, rows.T @ rows, spec)
            first, second = output_error(weight, nearest, rows), output_error(weight, made, rows)
            assert (second <= first * (1 + 1e-5)).all()
            before, after = before + first.sum(), after + second.sum()
        assert after < 0.7 * before

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}{spec.group_size}-{spec.bits}")
    def test_as_the_definition_says(self, spec: QuantSpec) -> None:
        """With the whole inverse Hessian, of which each rounded input is eliminated; more inputs than one block has."""
        weight, rows = layer_of(1, outputs=5, inputs=300, count=900)
        hessian = 2 * rows.astype(np.float64).T @ rows / len(rows)
        grid = integers.quantize(weight, spec, "mse")
        made = dataclasses.replace(grid, integers=_compensated._in_order(weight, hessian, grid))
        expected = defined(weight, hessian, grid)
        assert (made.integers == expected).all()
        assert (made.integers != grid.integers).mean() > 0.1

    def test_by_hand(self) -> None:
        """Inputs 2 and 3 are always equal. 0.4 is nearest to 0 twice, which loses 0.8; one of them as 1 errs by 0.2."""
        weight = np.array([[1.0, 0.4, 0.4]], np.float32)
        rows = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
        spec = spec_of(2)
        assert integers.quantize(weight, spec, "max").integers.tolist() == [[1, 0, 0]]
        assert compensate(weight, rows.T @ rows, spec, "max").integers.tolist() == [[1, 0, 1]]

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}{spec.group_size}-{spec.bits}")
    def test_unrelated_inputs_are_rounded_to_nearest(self, spec: QuantSpec, axis: int) -> None:
        spec = with_axis(spec, axis=axis)
        weight = turned(layer_of(2)[0], axis)
        nearest, made = integers.quantize(weight, spec, "mse"), compensate(weight, 3 * np.eye(70), spec)
        assert made.spec == nearest.spec == spec
        for name in ("integers", "scale", "zero_point"):
            first, second = getattr(nearest, name), getattr(made, name)
            np.testing.assert_array_equal(first, second)
            assert getattr(first, "dtype", None) == getattr(second, "dtype", None), name

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}{spec.group_size}-{spec.bits}")
    def test_n_bits_are_n_bits(self, spec: QuantSpec) -> None:
        """Integers pack at that width and come back, in the shape and with the scales that the artifact expects."""
        weight, rows = layer_of(3)
        made = compensate(weight, rows.T @ rows, spec)
        assert len(np.unique(made.integers)) <= 2**spec.bits
        packed = integers.pack(made.integers, spec.bits)
        back = integers.unpack(packed, spec.bits, weight.shape, spec.symmetric)
        np.testing.assert_array_equal(back, made.integers)
        assert made.scale.shape == integers.scale_shape(weight.shape, spec)
        assert integers.stored_bytes(made) == integers.stored_bytes(integers.quantize(weight, spec, "mse"))

    def test_dead_inputs_are_rounded_to_nearest_and_move_nothing(self) -> None:
        weight, rows = layer_of(4)
        dead = np.zeros(70, bool)
        dead[[0, 7, 33, 69]] = True
        rows[:, dead] = 0
        spec = spec_of(3)
        weight[:, dead] *= 0.2  # so that no scale is theirs
        made, nearest = compensate(weight, rows.T @ rows, spec, "max"), integers.quantize(weight, spec, "max")
        np.testing.assert_array_equal(made.integers[:, dead], nearest.integers[:, dead])
        assert (made.integers != nearest.integers).any()
        weight[:, dead] *= -0.7
        again = compensate(weight, rows.T @ rows, spec, "max")
        np.testing.assert_array_equal(made.integers[:, ~dead], again.integers[:, ~dead])

    @pytest.mark.parametrize("kind", ["rank one", "zero", "twins", "not quite positive", "one input"])
    def test_a_hessian_that_has_no_inverse(self, kind: str) -> None:
        weight, rows = layer_of(5)
        if kind == "rank one":
            rows = rows[:1]
        elif kind == "zero":
            rows = rows * 0
        elif kind == "twins":
            rows[:, 35:] = rows[:, :35]
        elif kind == "one input":
            weight, rows = weight[:, :1], rows[:, :1]
        hessian = rows.astype(np.float64).T @ rows
        if kind == "not quite positive":
            hessian -= 0.5 * np.eye(70) * np.diag(hessian).mean()
            with pytest.raises(np.linalg.LinAlgError):
                np.linalg.cholesky(hessian + np.eye(70) * _compensated.DAMPING * np.diag(hessian).mean())
        made = compensate(weight, hessian, spec_of(3))
        assert np.isfinite(integers.dequantize(made)).all()
        nearest = integers.quantize(weight, spec_of(3), "mse")
        if kind != "not quite positive":
            assert output_error(weight, made, rows).sum() <= output_error(weight, nearest, rows).sum() * (1 + 1e-5)

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.granularity}{spec.group_size}-{spec.bits}")
    def test_empty_and_tiny_channels(self, spec: QuantSpec) -> None:
        """A channel of zeros keeps the scale 0, one of 1e-6 is not lost where scales are stored in half precision."""
        weight, rows = layer_of(6)
        weight[3], weight[4] = 0, weight[4] * 1e-6
        made = integers.dequantize(compensate(weight, rows.T @ rows, spec))
        assert np.isfinite(made).all()
        assert not made[3].any()
        assert made[4].any() or spec.granularity == "tensor"


def with_axis(spec: QuantSpec, axis: int) -> QuantSpec:
    return spec_of(spec.bits, spec.granularity, spec.group_size, symmetric=spec.symmetric, axis=axis)


def defined(weight: Array, hessian: Array, grid: QuantizedTensor) -> Array:
    """The integers by the paper's own step (Frantar et al., equations 2 and 3), the strongest input first."""
    left, spec = weight.astype(np.float64), grid.spec
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(len(hessian)))
    found = np.zeros(left.shape, int)
    top = 2 ** (spec.bits - 1) - 1
    low, high = (-top, top) if spec.symmetric else (0, 2**spec.bits - 1)
    for i in sorted(range(len(hessian)), key=lambda i: -hessian[i, i]):
        group = i // spec.group_size if spec.group_size else 0
        scale = np.where(grid.scale > 0, grid.scale, 1).astype(np.float32)[:, group]
        zero = np.zeros(1) if grid.zero_point is None else grid.zero_point[:, group].astype(int)
        found[:, i] = np.clip(np.rint(left[:, i].astype(np.float32) / scale) + zero, low, high)
        left -= np.outer((left[:, i] - (found[:, i] - zero) * scale.astype(np.float64)) / inverse[i, i], inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1.0  # eliminated: the rest of its row and column is zero
    return found


class TestMoments:
    @pytest.mark.parametrize("family", ["model", "graph"])
    def test_sums_over_every_token(self, family: str, request: pytest.FixtureRequest) -> None:
        """Against the inputs of one text at a time, without padding, in double precision."""
        given: Model = request.getfixturevalue(family)
        layers = [layer for layer in given.layers if layer.kind == "linear"]
        inputs: dict[str, list[Array]] = {}
        read = choose.encoder(given, "tiny", 1).input
        for text in TEXTS:
            choose.family(given).observe(given, [read([text])], lambda name, x: inputs.setdefault(name, []).append(x))
        seen = _moments.observe(given, SAMPLES, layers)
        assert len(seen) == 12, "the vector does not use the pooler"
        assert set(seen) == set(inputs)
        for name, moments in seen.items():
            rows = np.concatenate(inputs[name]).astype(np.float64)
            assert moments.count == len(rows)
            np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-5)
            np.testing.assert_allclose(moments.second(centred=False), rows.T @ rows / len(rows), atol=1e-4)
            np.testing.assert_allclose(moments.second(centred=True), np.cov(rows.T, bias=True), atol=1e-4)

    @pytest.mark.parametrize("bytes_waiting", [0, 3000, 2**27])
    def test_rows_that_wait_are_those_that_were_shown(self, bytes_waiting: int, monkeypatch: Any, model: Model) -> None:
        """A network may write over its arrays as soon as it was heard: one buffer serves all batches here."""
        layer = next(layer for layer in model.layers if layer.kind == "linear")
        width = model.tensors[layer.weight].shape[1 - layer.axis]
        batches_shown = np.random.default_rng(0).standard_normal((5, 7, width)).astype(np.float32)

        class OneBuffer:
            def observe(self, model: Model, batches: Any, visit: Any) -> None:
                buffer = np.empty((7, width), np.float32)
                for rows in batches_shown:
                    buffer[:] = rows
                    visit(layer.weight, buffer)

        monkeypatch.setattr(_moments.choose, "family", lambda model: OneBuffer())
        monkeypatch.setattr(_moments, "BYTES_WAITING", bytes_waiting)
        moments = _moments.observe(model, SAMPLES, [layer])[layer.weight]
        every = batches_shown.reshape(-1, width).astype(np.float64)
        assert moments.count == 35
        np.testing.assert_allclose(moments.mean, every.mean(0), atol=1e-6)
        np.testing.assert_allclose(moments.second(centred=False), every.T @ every / 35, atol=1e-5)

    def test_layers_are_taken_in_order_in_parts_of_bounded_memory(self, model: Model, monkeypatch: Any) -> None:
        """Of 32 or 64 inputs, 4 or 16 KiB each; two that are each larger than allowed come alone."""
        linear = [layer for layer in model.layers if layer.kind == "linear"]
        monkeypatch.setattr(_moments, "BYTES_AT_ONCE", 20 * 1024)
        parts = list(_moments.portions(model, linear))
        assert [layer for part in parts for layer in part] == linear
        sizes = [[4 * model.tensors[layer.weight].shape[1] ** 2 for layer in part] for part in parts]
        assert max(map(sum, sizes)) == 20 * 1024
        monkeypatch.setattr(_moments, "BYTES_AT_ONCE", 1)
        assert [len(part) for part in _moments.portions(model, linear)] == [1] * len(linear)
        monkeypatch.setattr(_moments, "BYTES_AT_ONCE", 2**28)
        assert list(_moments.portions(model, linear)) == [linear]
        assert list(_moments.portions(model, [])) == []

    def test_a_later_part_sees_the_earlier_ones_rounded(self, model: Model, monkeypatch: Any) -> None:
        monkeypatch.setattr(_moments, "BYTES_AT_ONCE", 1)
        step = WeightsInt(bits=3, rounding="compensated", **GROUPS)
        made = step.apply(model, SAMPLES)
        last = next(layer for layer in model.layers if layer.name == LAST)
        before = dataclasses.replace(made, tensors=dict(made.tensors) | {last.weight: model.tensors[last.weight]})
        moments = _moments.observe(before, SAMPLES, [last])[last.weight]
        expected = compensate(model.tensors[last.weight], moments.second(centred=False), step._spec(last))
        np.testing.assert_array_equal(made.tensors[last.weight].integers, expected.integers)  # type: ignore[union-attr]


class TestStep:
    @pytest.mark.parametrize("family", ["model", "graph"])
    @pytest.mark.parametrize("correct_bias", [False, True])
    def test_vectors_keep_more(self, family: str, correct_bias: bool, request: pytest.FixtureRequest) -> None:
        """Of texts that calibration did not see; in no more bytes and with only weights and biases changed."""
        given: Model = request.getfixturevalue(family)
        held_out = ["winter near the bridge", "a dog made of stone", "river engine", "the cat and the apple trees run"]
        calibration = Samples(calibration=[*CORPUS.values()] * 2 + TEXTS, texts=TEXTS)
        plain = WeightsInt(bits=3, layers=("linear",), **GROUPS).apply(given, calibration)
        step = WeightsInt(bits=3, layers=("linear",), rounding="compensated", correct_bias=correct_bias, **GROUPS)
        made = step.apply(given, calibration)
        original, first, second = (choose.encoder(m, "m", 1).documents(held_out) for m in (given, plain, made))
        assert (1 - cosines(original, second)).mean() < 0.8 * (1 - cosines(original, first)).mean()
        biases = {layer.bias for layer in given.layers if layer.kind == "linear"}
        for name, tensor in made.tensors.items():
            if isinstance(tensor, QuantizedTensor):
                assert tensor.spec == plain.tensors[name].spec  # type: ignore[union-attr]
            else:
                unchanged = np.array_equal(tensor, given.tensors[name])
                assert unchanged or (correct_bias and name in biases), name

    @pytest.mark.parametrize("family", ["model", "graph"])
    @pytest.mark.parametrize("rounding", ["nearest", "compensated"])
    def test_the_mean_output_stays(self, family: str, rounding: Any, request: pytest.FixtureRequest) -> None:
        """Mean outputs of each layer on the calibration texts, before and after, from the inputs themselves."""
        given: Model = request.getfixturevalue(family)
        made = WeightsInt(bits=2, rounding=rounding, correct_bias=True, layers=("linear",)).apply(given, SAMPLES)
        inputs: dict[str, list[Array]] = {}
        batch = choose.encoder(given, "tiny", 1).input(TEXTS)
        choose.family(given).observe(given, [batch], lambda name, x: inputs.setdefault(name, []).append(x))
        checked = 0
        for layer in given.layers:
            if layer.kind == "linear" and layer.weight in inputs:
                rows = np.concatenate(inputs[layer.weight])
                assert isinstance(layer.bias, str)
                first, second = (
                    (rows @ np.moveaxis(integers.dequantize(m.tensors[layer.weight]), layer.axis, 1)).mean(0)
                    for m in (given, made)
                )
                before, after = given.tensors[layer.bias], made.tensors[layer.bias]
                assert np.abs(second - first).max() > 0.01, "without the correction the mean moves"
                np.testing.assert_allclose(second + after, first + before, atol=2e-5)
                assert after.dtype == before.dtype  # type: ignore[union-attr]
                checked += 1
        assert checked == 12, "the vector does not use the pooler"

    def test_notes(self, model: Model, graph: Model) -> None:
        both = WeightsInt(rounding="compensated", correct_bias=True)
        assert both.notes(model, both.apply(model, SAMPLES))[:-1] == (
            "error-compensated: 12 linear layers, on 16 calibration texts; to nearest: 3 other layers, 1 whose input "
            "calibration does not see",
            "biases corrected: 12 linear layers; 1 whose input is not seen",
        )
        without = tuple(without_bias(layer) if layer.name in (FIRST, LAST) else layer for layer in model.layers)
        two = dataclasses.replace(model, layers=without)
        made = WeightsInt(correct_bias=True).apply(two, SAMPLES)
        notes = WeightsInt(correct_bias=True).notes(two, made)
        assert notes[0] == "biases corrected: 10 linear layers; 2 have none; 1 whose input is not seen"
        for name in (FIRST, LAST):
            np.testing.assert_array_equal(made.tensors[f"{name}.bias"], model.tensors[f"{name}.bias"])
        plain = WeightsInt()
        [note] = plain.notes(graph, plain.apply(graph, SAMPLES))
        assert note.startswith("most rounding noise: ")

    def test_tables_are_rounded_to_nearest(self, model: Model) -> None:
        made = WeightsInt(bits=4, rounding="compensated", correct_bias=True).apply(model, SAMPLES)
        plain = WeightsInt(bits=4).apply(model, SAMPLES)
        differing = set()
        for name, tensor in plain.tensors.items():
            found = made.tensors[name]
            if isinstance(tensor, QuantizedTensor) and isinstance(found, QuantizedTensor):
                np.testing.assert_array_equal(found.scale, tensor.scale)
                if not np.array_equal(found.integers, tensor.integers):
                    differing.add(name)
        linear = {layer.weight for layer in model.layers if layer.kind == "linear"}
        assert differing == linear - {"transformer.pooler.dense.weight"}

    def test_a_layer_that_no_text_reaches_is_rounded_to_nearest_and_counted(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one in a branch that is not taken; the families do not show its input."""
        seen = weights_int.observe
        monkeypatch.setattr(
            weights_int, "observe", lambda *given: {n: m for n, m in seen(*given).items() if n != f"{LAST}.weight"}
        )
        step = WeightsInt(bits=4, rounding="compensated", correct_bias=True)
        made, plain = step.apply(model, SAMPLES), WeightsInt(bits=4).apply(model, SAMPLES)
        found, expected = made.tensors[f"{LAST}.weight"], plain.tensors[f"{LAST}.weight"]
        np.testing.assert_array_equal(integers.dequantize(found), integers.dequantize(expected))
        np.testing.assert_array_equal(made.tensors[f"{LAST}.bias"], model.tensors[f"{LAST}.bias"])
        assert step.notes(model, made)[:-1] == (
            "error-compensated: 11 linear layers, on 16 calibration texts; to nearest: 3 other layers, 2 whose input "
            "calibration does not see",
            "biases corrected: 11 linear layers; 2 whose input is not seen",
        )

    def test_nearest_needs_no_texts_and_the_others_say_so(self, model: Model) -> None:
        nothing = Samples(calibration=[], texts=[])
        assert WeightsInt().apply(model, nothing).tensors
        for step in (WeightsInt(rounding="compensated"), WeightsInt(correct_bias=True)):
            with pytest.raises(UsageError, match=r"quantize\.weights_int: the calibration sample is empty"):
                step.apply(model, nothing)
        tables = WeightsInt(rounding="compensated", layers=("embedding",))
        assert isinstance(tables.apply(model, nothing).tensors[model.spec.token_table or ""], QuantizedTensor)

    @pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
    def test_an_input_that_is_not_finite(self, model: Model, value: float) -> None:
        norm = "transformer.embeddings.LayerNorm.bias"
        bias = np.array(model.tensors[norm])
        bias[3] = value
        broken = dataclasses.replace(model, tensors=dict(model.tensors) | {norm: bias})
        with pytest.raises(UsageError, match=f"the input of {FIRST}.weight is NaN or infinite on calibration texts"):
            WeightsInt(rounding="compensated").apply(broken, SAMPLES)

    def test_half_precision_stays(self, model: Model) -> None:
        half = plugins.load("methods", "quantize.float")().apply(model, SAMPLES)
        made = WeightsInt(bits=3, rounding="compensated", correct_bias=True).apply(half, SAMPLES)
        bias = made.tensors[f"{LAST}.bias"]
        assert not isinstance(bias, QuantizedTensor)
        assert bias.dtype == np.float16
        assert not np.array_equal(bias, half.tensors[f"{LAST}.bias"])

    def test_an_artifact_keeps_it(self, graph: Model, tmp_path: Path) -> None:
        made = WeightsInt(bits=4, rounding="compensated", correct_bias=True, **GROUPS).apply(graph, SAMPLES)
        artifact.write(made, tmp_path)
        _, read = artifact.read(tmp_path)
        assert read.layers == graph.layers
        first, second = (choose.encoder(each, "tiny", 1).documents(TEXTS) for each in (made, read))
        np.testing.assert_array_equal(first, second)

    def test_a_rounding_that_there_is_not(self) -> None:
        text = "version: 1\nsteps:\n  - quantize.weights_int: {rounding: up}"
        with pytest.raises(UsageError, match=r"quantize\.weights_int.*rounding"):
            recipe.load(recipe.parse(text))


def without_bias(layer: Any) -> Any:
    return type(layer)(name=layer.name, kind=layer.kind, weight=layer.weight, axis=layer.axis)


class TestBiasNames:
    def test_of_a_transformer(self, model: Model) -> None:
        for layer in model.layers:
            assert layer.bias == (f"{layer.name}.bias" if layer.kind == "linear" else msgspec.UNSET)

    def test_of_a_graph(self, model: Model, graph: Model) -> None:
        """The exporter gave new names: each layer's weight is that of one torch layer, whose bias it must name."""
        named = [layer for layer in model.layers if layer.kind == "linear"]
        checked = 0
        for layer in graph.layers:
            if layer.kind == "linear":
                weight = np.moveaxis(integers.dequantize(graph.tensors[layer.weight]), layer.axis, 0)
                twin = next(other for other in named if np.array_equal(model.tensors[other.weight], weight))
                assert isinstance(twin.bias, str)
                assert isinstance(layer.bias, str)
                np.testing.assert_array_equal(graph.tensors[layer.bias], model.tensors[twin.bias])
                checked += 1
        assert checked == 12

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("gemm", {"w": "b"}),
            ("gemm without", {}),
            ("matmul", {"w": "b"}),
            ("bias first", {"w": "b"}),
            ("no add", {}),
            ("shared bias", {}),
            ("shared weight", {}),
            ("product used twice", {}),
            ("product given out", {}),
            ("a row for each", {}),
            ("one number", {}),
            ("added to itself", {}),
        ],
    )
    def test_what_counts_as_a_bias(self, kind: str, expected: dict[str, str]) -> None:
        nodes = {
            "gemm": [("Gemm", ["x", "w", "b"], "y")],
            "gemm without": [("Gemm", ["x", "w"], "y")],
            "bias first": [("MatMul", ["x", "w"], "p"), ("Add", ["b", "p"], "y")],
            "no add": [("MatMul", ["x", "w"], "p"), ("Mul", ["p", "b"], "y")],
            "added to itself": [("MatMul", ["x", "w"], "p"), ("Add", ["p", "p"], "y")],
        }.get(kind, [("MatMul", ["x", "w"], "p"), ("Add", ["p", "b"], "y")])
        nodes += {
            "shared bias": [("Add", ["y", "b"], "z")],
            "shared weight": [("MatMul", ["x", "w"], "z")],
            "product used twice": [("Relu", ["p"], "z")],
        }.get(kind, [])
        shape = {"a row for each": (3, 5), "one number": (1,)}.get(kind, (5,))
        outputs = ["p"] if kind == "product given out" else []
        made = helper.make_graph(
            [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 4))],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ["y", *outputs]],
        )
        weights = {"w": np.ones((4, 5), np.float32), "b": np.ones(shape, np.float32)}
        assert _biases(made, weights) == expected


# ---------------------------------------------------------------- ranges by entropy


def histogram(values: Array) -> Histogram:
    made = Histogram()
    made.add(np.asarray(values, np.float32))
    return made


def rounded(values: Array, low: float, high: float) -> Array:
    step = (max(high, 0) - min(low, 0)) / 255
    result: Array = np.clip(np.rint((values - min(low, 0)) / step), 0, 255) * step + min(low, 0)
    return result


def cosine(first: Array, second: Array) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def divergence(counts: list[int], width: float, threshold: int, ends: tuple[float, float]) -> float:
    """KL(p || q) in plain loops: bins of ``width`` around zero, ``threshold`` of them on each side at most.

    ``ends``: the least and greatest value. Infinite where fewer than 256 bins, or less than 99 % of the values, stay.
    """
    middle = len(counts) // 2
    filled = [k for k, count in enumerate(counts) if count]
    first = min(max(filled[0], middle - threshold), middle)
    end = max(min(filled[-1] + 1, middle + threshold), middle)
    low, high = min(max(ends[0], -threshold * width), 0.0), max(min(ends[1], threshold * width), 0.0)
    if end - first < 256 or sum(counts[first:end]) < 0.99 * sum(counts):
        return math.inf
    p = [float(count) for count in counts[first:end]]
    p[0] += sum(counts[:first])
    p[-1] += sum(counts[end:])
    levels: dict[int, list[int]] = {}
    for k in range(first, end):
        centre = (k - middle + 0.5) * width
        levels.setdefault(min(max(round((centre - low) / ((high - low) / 255)), 0), 255), []).append(k)
    q = [0.0] * len(p)
    for bins in levels.values():
        used = [k for k in bins if p[k - first] > 0]
        for k in used:
            q[k - first] = max(sum(counts[b] for b in bins) / len(used) / sum(counts[first:end]), 1e-4 / sum(counts))
    total = sum(p)
    return sum(part / total * math.log(part / total / q[k]) for k, part in enumerate(p) if part)


SHAPES = {
    "two-sided": lambda random: random.standard_normal(20_000),
    "long tails": lambda random: random.standard_t(3, 20_000),
    "one-sided": lambda random: np.maximum(random.standard_normal(20_000), 0),
    "negative": lambda random: -random.exponential(1, 20_000),
    "gelu": lambda random: (x := 3 * random.standard_normal(20_000)) * stats.norm.cdf(x),
    "far from zero": lambda random: 40 + random.standard_normal(20_000),
    "even": lambda random: random.uniform(-1, 3, 20_000),
    "outliers": lambda random: np.concatenate([random.standard_normal(20_000), random.uniform(-30, 60, 20)]),
}


class TestEntropy:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_no_threshold_has_less_divergence(self, shape: str, monkeypatch: Any) -> None:
        """Of 128 thresholds in a geometric series, by a search in plain loops; zeros, exact in any range, left out."""
        monkeypatch.setattr(_ranges, "BINS", 2048)
        values = SHAPES[shape](np.random.default_rng(0)).astype(np.float32)
        made = histogram(values)
        ends, width = (float(values.min()), float(values.max())), 2 * made._limit / 2048
        counts = np.histogram(values, 2048, (-1024 * width, 1024 * width))[0].tolist()
        counts[1024] = min(counts[1024], counts[1025])
        tried = {}
        for number in range(128):
            threshold = int(128 * 8 ** (number / 127) + 1e-9)
            limits = max(ends[0], -threshold * width), min(ends[1], threshold * width)
            tried[limits] = divergence(counts, width, threshold, ends)
        chosen = made.range("entropy")
        least = min(tried.values())
        assert math.isfinite(least)
        assert [d for limits, d in tried.items() if limits == pytest.approx(chosen)] == [pytest.approx(least, abs=1e-9)]

    def test_one_outlier_does_not_ruin_the_range(self) -> None:
        """One 800 among 32,768 of N(0, 1), before, between or after the others."""
        values = np.random.default_rng(0).standard_normal(32_768).astype(np.float32)
        for place in (0, 1000, 32_768):
            made = Histogram()
            for part in np.array_split(np.insert(values, place, 800), 7):
                made.add(part)
            low, high = made.range("entropy")
            assert -6 < low < -2.5
            assert 2.5 < high < 8
            assert cosine(values, rounded(values, low, high)) > 0.9995
            assert cosine(values, rounded(values, *made.range("minmax"))) < 0.8

    @pytest.mark.parametrize("shape", ["one-sided", "negative", "gelu"])
    def test_one_sided_inputs_keep_all_levels(self, shape: str) -> None:
        values = SHAPES[shape](np.random.default_rng(1))
        low, high = histogram(values).range("entropy")
        if shape == "negative":
            low, high, values = -high, -low, -values
        assert min(values.min(), 0) - 1e-6 <= min(low, 0) <= 0
        assert np.quantile(values, 0.99) - 0.01 < high <= values.max() + 1e-6
        assert cosine(values, rounded(values, low, high)) > 0.995

    def test_values_far_from_zero_are_not_all_clipped(self) -> None:
        """A range that clips everything to one level would lose nothing by the divergence alone."""
        values = SHAPES["far from zero"](np.random.default_rng(1))
        _, high = histogram(values).range("entropy")
        assert high > np.quantile(values, 0.98)

    def test_even_values_are_not_clipped(self) -> None:
        low, high = histogram(np.linspace(-1, 3, 50_000)).range("entropy")
        assert (low, high) == pytest.approx((-1, 3), rel=0.02)

    @pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-33])
    def test_a_single_value(self, value: float) -> None:
        """The range with zero in it holds the value, and is zero wide for zero alone."""
        low, high = histogram(np.full(100, value)).range("entropy")
        assert min(low, 0) == pytest.approx(min(value, 0))
        assert max(high, 0) == pytest.approx(max(value, 0))

    def test_two_values(self) -> None:
        assert histogram(np.array([0.0, 1.0] * 50)).range("entropy") == pytest.approx((0, 1))


class TestCalibration:
    @pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse", "entropy"])
    def test_texts_of_three_lengths(self, model: Model, estimator: Any) -> None:
        """Ranges merge over batches of unlike lengths: within the values seen, and the vectors hold."""
        texts = ["stone", " ".join(["the cat and a river"] * 3), " ".join(["winter forest of an engine"] * 12)]
        seen: dict[str, Array] = {}
        read = choose.encoder(model, "tiny", 1).input
        choose.family(model).observe(
            model,
            [read([text]) for text in texts],
            lambda name, x: seen.update({name: np.concatenate([seen.get(name, x[:0]), x])}),
        )
        samples = Samples(calibration=texts * 8, texts=texts)
        quantized = WeightsInt().apply(model, samples)
        made = ActivationsInt(estimator=estimator).apply(quantized, samples)
        assert set(made.activations) == set(seen)
        for name, how in made.activations.items():
            low, high = -how.zero_point * how.scale, (255 - how.zero_point) * how.scale
            slack = how.scale + 0.02 * (high - low)
            assert seen[name].min() - slack <= low <= 0 <= high <= seen[name].max() + slack
        first, second = (choose.encoder(each, "tiny", 1).documents(texts) for each in (model, made))
        assert cosines(first, second).min() > 0.995

    @pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse", "entropy"])
    @pytest.mark.parametrize(("value", "message"), [(0.0, "is constant zero"), (np.nan, "is NaN or infinite")])
    def test_degenerate_inputs_are_refused_by_name(
        self, model: Model, estimator: Any, value: float, message: str
    ) -> None:
        norm = "transformer.encoder.layer.1.attention.output.LayerNorm"
        name = "transformer.encoder.layer.1.intermediate.dense.weight"
        tensors = dict(model.tensors) | {
            f"{norm}.weight": np.zeros(32, np.float32), f"{norm}.bias": np.full(32, value, np.float32)
        }  # fmt: skip
        quantized = WeightsInt().apply(dataclasses.replace(model, tensors=tensors), SAMPLES)
        with pytest.raises(UsageError, match=f"the input of {name} {message} on calibration texts"):
            ActivationsInt(estimator=estimator).apply(quantized, SAMPLES)


def test_correction_and_compensation_against_torch() -> None:
    """The whole of a layer once more, in torch: the corrected layer's outputs are nearer to the float layer's, and
    compensation for deviations from the mean serves them better than compensation for the inputs as they are.
    """
    weight, rows = layer_of(7, count=800)
    rows += 3 * np.random.default_rng(7).standard_normal(70).astype(np.float32)
    mean, second = rows.mean(0), rows.T @ rows / len(rows)
    expected = torch.nn.functional.linear(torch.tensor(rows), torch.tensor(weight))
    errors = []
    for hessian in (second, second - np.outer(mean, mean)):
        made = torch.tensor(integers.dequantize(compensate(weight, hessian, spec_of(3))))
        bias = (torch.tensor(weight) - made) @ torch.tensor(mean)
        for given in (None, bias):
            outputs = torch.nn.functional.linear(torch.tensor(rows), made, given)
            errors.append(float((outputs - expected).square().mean()))
    plain, corrected, _, centred = errors
    assert centred < corrected < plain
