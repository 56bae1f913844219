"""Floats of 16 and 8 bits: rounding as torch rounds, nothing becomes infinite or vanishes unseen, every runtime reads
them, and the files shrink.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from slimseek import artifact, choose, compress, deploy, inspect, integers, plugins, rebuild, recipe
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.schema import Array, Model, QuantizedTensor, QuantSpec, Samples
from small import BACKENDS, kernels, packaged, tiny_bert
from test_onnx_graph import bag, written

TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
FORMS: dict[str, dict[str, str]] = {
    "fp16": {"format": "fp16"},
    "bf16": {"format": "bf16"},
    "e4m3 channel": {"format": "e4m3"},
    "e4m3 tensor": {"format": "e4m3", "granularity": "tensor"},
    "e5m2 channel": {"format": "e5m2"},
    "e5m2 tensor": {"format": "e5m2", "granularity": "tensor"},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers of BERT."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


def method(name: str, **parameters: Any) -> Any:
    return plugins.load("methods", name)(**parameters)


def converted(model: Model, **parameters: str) -> Model:
    changed: Model = method("quantize.float", **parameters).apply(model, SAMPLES)
    return changed


def changed_in(model: Model, **tensors: Array) -> Model:
    return dataclasses.replace(model, tensors=dict(model.tensors) | tensors)


def float8(values: Array, number: str, granularity: Any = "channel", axis: int = 0) -> QuantizedTensor:
    return integers.quantize(values, QuantSpec(bits=8, granularity=granularity, axis=axis, float8=number))  # type: ignore[arg-type]


def bits(tensor: torch.Tensor) -> Array:
    return tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.int16).numpy()


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("number", FLOAT8)
def test_every_code_and_every_tie_rounds_as_in_torch(number: str) -> None:
    """All finite codes, the points halfway between neighbours, and the floats on either side of those."""
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8[number]).to(torch.float32).numpy()
    levels = np.unique(codes[np.isfinite(codes)])
    ties = (levels[1:] + levels[:-1]) / 2
    values = np.concatenate([codes[np.isfinite(codes)], ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf)])
    tensor = float8(values.astype(np.float32), number, "tensor")
    assert tensor.scale.tolist() == [[1.0]], "the largest value is the largest of the format"
    expected = bits(torch.from_numpy(values.astype(np.float32)).to(FLOAT8[number]))
    assert np.array_equal(tensor.integers.view(np.uint8), expected)


@pytest.mark.parametrize("number", FLOAT8)
@pytest.mark.parametrize("axis", [0, 1])
def test_scales_are_the_largest_by_the_largest_of_the_format(number: str, axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32) * np.float32(3)
    tensor = float8(values, number, axis=axis)
    most = torch.finfo(FLOAT8[number]).max
    scale = np.abs(values).max(1 - axis, keepdims=True) / np.float32(most)
    assert np.array_equal(tensor.scale.reshape(-1), scale.reshape(-1))
    quotients = torch.from_numpy(np.clip(values / scale, -most, most))
    assert np.array_equal(tensor.integers.view(np.uint8), bits(quotients.to(FLOAT8[number])))
    assert np.array_equal(np.abs(tensor.integers.astype(np.float32)).max(1 - axis), np.full(len(scale.flat), most))
    assert np.array_equal(integers.dequantize(tensor), tensor.integers.astype(np.float32) * scale)


@pytest.mark.parametrize(("number", "step"), [("e4m3", 2**-4), ("e5m2", 2**-3)])
def test_errors_are_at_most_half_a_step(number: str, step: float) -> None:
    """Relative: half of the last significant bit, for values at most a thousandth of their channel's largest."""
    values = np.random.default_rng(1).uniform(0.01, 1, (32, 64)).astype(np.float32)
    errors = np.abs(integers.dequantize(float8(values, number)) - values) / values
    assert 0.8 * step < errors.max() <= step * (1 + 1e-6)


@pytest.mark.parametrize("number", FLOAT8)
def test_what_lies_outside_saturates(number: str) -> None:
    spec = QuantSpec(bits=8, granularity="tensor", float8=number)  # type: ignore[arg-type]
    most = torch.finfo(FLOAT8[number]).max
    outside = np.array([[[most * 1.2, most * 2, -most * 4, 3e38, -3e38]]], np.float32)
    assert not np.isfinite(outside.astype(integers.FLOAT8[number])).any(), "a cast alone loses them"  # type: ignore[index]
    codes = integers.to_integers(outside, np.ones((1, 1), np.float32), None, spec)
    assert codes.astype(np.float32).reshape(-1).tolist() == [most, most, -most, most, -most]


@pytest.mark.parametrize("number", FLOAT8)
def test_zero_and_tiny_channels(number: str) -> None:
    """CASES Q8: a channel of zeros, and one a millionth of the others."""
    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    values[1] = 0
    values[2] *= 1e-6
    found = integers.dequantize(float8(values, number))
    assert np.array_equal(found[1], np.zeros(64))
    sure = np.abs(values[2]) > 1e-8
    assert np.abs(found[2] / values[2] - 1)[sure].max() <= 2**-3
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("format_", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_sixteen_bits_round_as_in_torch(original: Model, format_: str, dtype: torch.dtype) -> None:
    compared = 0
    for name, tensor in converted(original, format=format_).tensors.items():
        before = torch.from_numpy(original.tensors[name])
        if before.dtype == torch.float32:
            assert np.array_equal(tensor.view(np.int16), bits(before.to(dtype)))  # type: ignore[union-attr]
            compared += 1
    assert compared == len(original.tensors) > 30, "biases and norms too"


# ---------------------------------------------------------------- what stays


def test_buffers_of_integers_are_never_touched(original: Model) -> None:
    """CASES E11."""
    buffer = np.arange(128).reshape(1, 128)
    model = changed_in(original, position_ids=buffer)
    for parameters in FORMS.values():
        assert converted(model, **parameters).tensors["position_ids"] is buffer


@pytest.mark.parametrize("form", ["e4m3 channel", "e5m2 tensor"])
def test_eight_bits_are_for_the_weights_of_layers(original: Model, form: str) -> None:
    changed = converted(original, **FORMS[form])
    weights = {layer.weight for layer in original.layers}
    assert {name for name, tensor in changed.tensors.items() if isinstance(tensor, QuantizedTensor)} == weights
    assert all(changed.tensors[name] is original.tensors[name] for name in set(original.tensors) - weights)
    assert changed.parameters == original.parameters
    assert converted(original, format="bf16").parameters == original.parameters


@pytest.mark.parametrize(
    ("format_", "values", "why"),
    [
        ("fp16", [65519.0, 1.0], ""),
        ("fp16", [65520.0, 1.0], "infinite"),
        ("fp16", [2e-8, -2e-8], "zero"),
        ("fp16", [4e-8, -4e-8], ""),
        ("fp16", [1.0, 1e-9], ""),
        ("bf16", [65520.0, 2e-8], ""),
        ("bf16", [3.39e38, 1.0], ""),
        ("bf16", [3.4e38, 1.0], "infinite"),
        ("bf16", [1e-44, -1e-44], "zero"),
        ("fp16", [0.0, 0.0], ""),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_stays_and_is_named(
    original: Model, format_: str, values: list[float], why: str
) -> None:
    name = next(name for name in original.tensors if name.endswith("key.bias"))
    given = np.resize(np.array(values, np.float32), original.tensors[name].shape)
    model = changed_in(original, **{name: given})
    step = method("quantize.float", format=format_)
    changed = step.apply(model, SAMPLES)
    assert (changed.tensors[name] is given) == bool(why)
    total = len(model.tensors)
    expected = (f"1 of {total} tensors kept, as {format_} would make them {why}: {name}",) if why else ()
    assert step.notes(model, changed) == expected


def test_more_than_a_millionth_of_the_squares_is_too_much_to_lose(original: Model) -> None:
    name = next(name for name in original.tensors if name.endswith("key.bias"))
    for large, stays in ((6e-5, False), (5e-5, True)):  # beside 31 of 1e-8: 31e-16 of 36e-10 or of 25e-10
        values = np.full(original.tensors[name].shape, 1e-8, np.float32)
        values[0] = large
        changed = converted(changed_in(original, **{name: values}), format="fp16")
        assert (changed.tensors[name] is values) == stays


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weights_too_small_for_a_scale_stay_and_are_named(original: Model, granularity: str) -> None:
    """1e-44 by 448 is below the least float32."""
    name = original.layers[-1].weight
    given = np.full(original.tensors[name].shape, 1e-44, np.float32)
    model = changed_in(original, **{name: given})
    step = method("quantize.float", format="e4m3", granularity=granularity)
    changed = step.apply(model, SAMPLES)
    assert changed.tensors[name] is given
    total = len(original.layers)
    assert step.notes(model, changed) == (f"1 of {total} tensors kept, as e4m3 would make them zero: {name}",)


@pytest.mark.parametrize("number", FLOAT8)
def test_the_largest_float32_does_not_become_infinite(original: Model, number: str) -> None:
    name = original.layers[-1].weight
    given = np.full(original.tensors[name].shape, np.finfo(np.float32).max, np.float32)
    given[0] = np.nextafter(given[0], np.float32(0))
    changed = converted(changed_in(original, **{name: given}), format=number)
    assert np.isfinite(integers.dequantize(changed.tensors[name])).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(original: Model, form: str, bad: float) -> None:
    name = original.layers[2].weight
    values = original.tensors[name].copy()  # type: ignore[union-attr]
    values[1, 2] = bad
    with pytest.raises(UsageError, match=f"the tensor {name} holds NaN or infinite values and cannot be converted"):
        converted(changed_in(original, **{name: values}), **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_a_second_time_there_is_nothing_to_do(original: Model, form: str) -> None:
    with pytest.raises(NoEffect, match=r"quantize\.float.*can hold"):
        converted(converted(original, **FORMS[form]), **FORMS[form])


def test_eight_bit_floats_are_not_integers(original: Model, tmp_path: Path) -> None:
    """No arithmetic on integers is built on them, and no other rounding on top."""
    model = converted(original, format="e4m3")
    tensor = model.tensors[model.layers[0].weight]
    assert isinstance(tensor, QuantizedTensor)
    assert not integers.is_eight_bit(tensor)
    for mode in ("static", "dynamic"):
        with pytest.raises(NoEffect, match="integer weights"):
            method("quantize.activations_int", mode=mode).apply(model, SAMPLES)
    with pytest.raises(NoEffect):
        method("quantize.weights_int").apply(model, SAMPLES)
    artifact.write(model, tmp_path)
    assert {layer.stored for layer in inspect.inspect(tmp_path).layers} == {"e4m3 channel"}


def test_rounded_inputs_go_to_integer_layers_alone(original: Model) -> None:
    mixed = method("quantize.weights_int", skip=("layer.0",), layers=("linear",)).apply(original, SAMPLES)
    model = converted(mixed, format="e5m2")
    rounded = method("quantize.activations_int", mode="dynamic").apply(model, SAMPLES)
    linear = {layer.weight for layer in model.layers if layer.kind == "linear"}
    assert set(rounded.activations) == {name for name in linear if "layer.0" not in name}


def test_other_floats_become_eight_bits_and_the_rest_sixteen(original: Model) -> None:
    for first, second in (("fp16", "e4m3"), ("e4m3", "fp16")):
        model = converted(converted(original, format=first), format=second)
        kinds = Counter(
            tensor.integers.dtype.name if isinstance(tensor, QuantizedTensor) else tensor.dtype.name
            for tensor in model.tensors.values()
        )
        layers = len(original.layers)
        assert kinds == {"float8_e4m3fn": layers, "float16": len(original.tensors) - layers}


@pytest.mark.parametrize("wrong", [{"bits": 4}, {"symmetric": False}, {"granularity": "group", "group_size": 16}])
def test_a_spec_that_no_eight_bit_float_has_is_refused(wrong: dict[str, Any]) -> None:
    fields = {"bits": 8, "granularity": "channel"} | wrong
    with pytest.raises(UsageError, match="eight-bit floats take 8 bits and a symmetric scale"):
        integers.scale_shape((4, 32), QuantSpec(**fields, float8="e4m3"))


def test_an_unknown_format_is_one_line_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match='format is "fp4"; fp16, bf16, e4m3, e5m2 are allowed'):
        recipe.build(recipe.parse("version: 1\nsteps: [{quantize.float: {format: fp4}}]", "mine").steps[0])


def test_codes_that_are_nan_are_not_finite_weights(original: Model) -> None:
    name = original.layers[0].weight
    model = converted(original, format="e4m3")
    integers.check_finite(model, "compressed")
    tensor = model.tensors[name]
    codes = tensor.integers.copy()  # type: ignore[union-attr]
    codes[0, 0] = np.nan
    with pytest.raises(UsageError, match=name):
        integers.check_finite(changed_in(model, **{name: dataclasses.replace(tensor, integers=codes)}), "compressed")  # type: ignore[arg-type]


# ---------------------------------------------------------------- on disk


def same(found: Model, expected: Model) -> None:
    """Equal to the last bit."""
    assert set(found.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        other = found.tensors[name]
        pairs = [(other, tensor)]
        if isinstance(tensor, QuantizedTensor):
            assert isinstance(other, QuantizedTensor)
            assert other.spec == tensor.spec
            pairs = [(other.integers, tensor.integers), (other.scale, tensor.scale)]
        for one, two in pairs:
            assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FORMS)
def test_an_artifact_comes_back_bit_for_bit(original: Model, form: str, tmp_path: Path) -> None:
    model = converted(original, **FORMS[form])
    artifact.write(model, tmp_path)
    same(artifact.read(tmp_path)[1], model)


@pytest.mark.parametrize("form", FORMS)
def test_torch_reads_the_artifact_as_the_document_says(original: Model, form: str, tmp_path: Path) -> None:
    """docs/artifact.md, without a line of slimseek."""
    model = converted(original, **FORMS[form])
    artifact.write(model, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    number = FLOAT8.get(FORMS[form]["format"])
    for name, tensor in model.tensors.items():
        values = stored[name]
        if isinstance(tensor, QuantizedTensor):
            assert number is not None
            assert values.dtype == torch.uint8
            values = values.view(number).reshape(tensor.shape).to(torch.float32) * stored[f"{name}#scale"]
        elif number is None:
            assert values.dtype == (torch.float16 if form == "fp16" else torch.bfloat16)
        assert np.array_equal(values.to(torch.float32).numpy(), integers.dequantize(tensor))


def test_rows_and_bytes(original: Model) -> None:
    table = original.spec.token_table
    assert table is not None
    rows = np.array([5, 0, 17])
    for form in ("e4m3 channel", "e5m2 tensor", "bf16"):
        tensor = converted(original, **FORMS[form]).tensors[table]
        taken = integers.take_rows(tensor, rows)
        assert np.array_equal(integers.dequantize(taken), integers.dequantize(tensor)[rows])
        scales = {"e4m3 channel": 3 * 4, "e5m2 tensor": 4, "bf16": 0}[form]
        assert integers.stored_bytes(taken) == 3 * 32 * (2 if form == "bf16" else 1) + scales


@pytest.mark.parametrize("form", ["bf16", "e4m3 channel", "e5m2 tensor"])
def test_rebuilt_it_is_the_dense_model(original: Model, form: str, tmp_path: Path) -> None:
    model = converted(original, **FORMS[form])
    (tmp_path / "a").mkdir()
    artifact.write(model, tmp_path / "a")
    assert rebuild.rebuild(tmp_path / "a", tmp_path / "dense", threads=1).status == "passed"
    for name, tensor in choose.model(tmp_path / "dense").tensors.items():
        assert tensor.dtype == np.float32  # type: ignore[union-attr]
        assert np.array_equal(tensor, integers.dequantize(model.tensors[name]))  # type: ignore[arg-type]


# ---------------------------------------------------------------- packages


@pytest.fixture(scope="module")
def plain(original: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float32 package of each backend."""
    folder = tmp_path_factory.mktemp("float32")
    for backend in BACKENDS:
        packaged(original, backend, folder / backend)
    return {backend: folder / backend for backend in BACKENDS}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_package_gives_the_vectors_of_the_artifact(original: Model, backend: str, form: str, tmp_path: Path) -> None:
    model = converted(original, **FORMS[form])
    expected = choose.encoder(model, "artifact", 1).documents(TEXTS)
    assert cosines(expected, packaged(model, backend, tmp_path).documents(TEXTS)).min() > 0.999999
    before = choose.encoder(original, "original", 1).documents(TEXTS)
    assert cosines(before, expected).min() < 1 - 1e-9, "the weights did change"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_package_with_zero_and_tiny_channels(original: Model, backend: str, tmp_path: Path) -> None:
    layer = next(layer for layer in original.layers if layer.name.endswith("intermediate.dense"))
    values = original.tensors[layer.weight].copy()  # type: ignore[union-attr]
    values[3], values[4] = 0, values[4] * 1e-6
    model = converted(changed_in(original, **{layer.weight: values}), format="e4m3")
    expected = choose.encoder(model, "artifact", 1).documents(TEXTS)
    assert cosines(expected, packaged(model, backend, tmp_path).documents(TEXTS)).min() > 0.999999


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["bf16", "e4m3 channel", "e5m2 tensor"])
def test_the_package_stores_the_codes_of_the_artifact(original: Model, backend: str, form: str, tmp_path: Path) -> None:
    model = converted(original, **FORMS[form])
    packaged(model, backend, tmp_path)
    stored = {one.name: one for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    compared = 0
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        codes = tensor.integers if isinstance(tensor, QuantizedTensor) else tensor
        for suffix, side in (("", codes), (".T", codes.T)):
            one = stored.get(f"{layer.weight}.{codes.dtype.name}{suffix}")
            if one is not None:
                assert one.raw_data == np.ascontiguousarray(side).tobytes()
                compared += 1
    assert compared >= len([layer for layer in model.layers if "pooler" not in layer.name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_files_really_shrink(original: Model, plain: dict[str, Path], backend: str, tmp_path: Path) -> None:
    """Two bytes a parameter less for 16 bits, three a weight less for 8; a scale and a few nodes for each tensor."""
    used = {name: tensor for name, tensor in original.tensors.items() if "pooler" not in name}
    weights = [used[layer.weight] for layer in original.layers if layer.weight in used]
    every, layers = (sum(int(np.prod(tensor.shape)) for tensor in part) for part in (used.values(), weights))
    sizes = {"float32": (plain[backend] / "model.onnx").stat().st_size}
    for form in ("bf16", "e4m3 tensor"):
        packaged(converted(original, **FORMS[form]), backend, tmp_path / form)
        sizes[form] = (tmp_path / form / "model.onnx").stat().st_size
    assert abs(sizes["float32"] - sizes["bf16"] - 2 * every) < 250 * len(used)
    assert abs(sizes["float32"] - sizes["e4m3 tensor"] - 3 * layers) < 550 * len(weights)
    assert sizes["e4m3 tensor"] < sizes["bf16"] < sizes["float32"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_widened_once_when_the_package_is_opened(
    original: Model, plain: dict[str, Path], backend: str, form: str, tmp_path: Path
) -> None:
    """The same kernels run as for float32: none of them casts or scales a weight."""
    packaged(converted(original, **FORMS[form]), backend, tmp_path)
    assert kernels(tmp_path, backend) == kernels(plain[backend], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["fp16", "bf16", "e4m3 channel", "e5m2 tensor"])
def test_a_graph_of_an_old_opset_is_raised_where_it_must(backend: str, form: str, tmp_path: Path) -> None:
    opened = choose.model(written(tmp_path / "m", bag(opset=12)))
    model = converted(opened, **FORMS[form])
    expected = choose.encoder(model, "artifact", 1).documents(TEXTS)
    found = packaged(model, backend, tmp_path / "p").documents(TEXTS)
    assert cosines(expected, found).min() > 0.999999
    [opset] = [one.version for one in onnx.load(tmp_path / "p" / "model.onnx").opset_import if not one.domain]
    assert opset == (12 if form == "fp16" else 21)
    family = choose.family(model)
    assert family.macs(model, 8) == family.macs(opened, 8) > 0


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8"])
def test_the_recipes_run_and_pass_their_gates(original: Model, name: str, tmp_path: Path) -> None:
    result = compress.run(original, recipe.load(name), SAMPLES)
    assert result.failed is None
    [record] = result.records
    assert record.compression_ratio < (0.51 if name != "fp8" else 0.40)
    assert record.sqnr_db is not None
    assert {"fp16": 70, "bf16": 53, "fp8": 29}[name] < record.sqnr_db < {"fp16": 80, "bf16": 60, "fp8": 34}[name]
    gates = deploy.write(result.model, "onnxruntime", tmp_path, texts=TEXTS, threads=1).gates
    assert all(gate.status == "passed" for gate in gates)


def test_numpy_itself_does_not_call_bfloat16_a_float() -> None:
    """Why ``schema.is_float`` exists: what asks numpy would take such a tensor for a buffer."""
    from slimseek.schema import is_float

    half = np.zeros(2, ml_dtypes.bfloat16)
    assert not np.issubdtype(half.dtype, np.floating)
    assert [is_float(half.astype(dtype)) for dtype in ("bfloat16", "float16", "float32", "float64")] == [True] * 4
    assert [is_float(np.zeros(2, dtype)) for dtype in ("int64", "bool", "uint8")] == [False] * 3
