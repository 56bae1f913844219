"""prune.weights and prune.n_m: exactly the zeros asked for, against PyTorch's masks and brute force; zeros that later
steps leave as they are; files and packages that really shrink.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from torch import nn
from torch.nn.utils import prune

from slimseek import artifact, choose, compress, integers, plugins, recipe, sparse
from slimseek.backends import _sparse
from slimseek.errors import NoEffect, UsageError
from slimseek.losses.mse import MeanSquaredError
from slimseek.methods.prune._weights import inputs_last, least
from slimseek.methods.prune.n_m import kept
from slimseek.methods.quantize._compensated import compensate
from slimseek.schema import Array, Layer, LayerKind, Model, QuantizedTensor, QuantSpec, Samples
from slimseek.training import train
from small import BACKENDS, CORPUS, kernels, packaged, tiny_model

TEXTS = [*CORPUS.values(), "stone", "the cat sleeps", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
KINDS: tuple[LayerKind, ...] = ("linear", "convolution", "recurrent")


def apply(model: Model, method: str, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, samples)
    return changed


def array(model: Model, name: str) -> Array:
    tensor = model.tensors[name]
    assert isinstance(tensor, np.ndarray)
    return tensor


def linear(model: Model) -> list[str]:
    return [layer.weight for layer in model.layers if layer.kind == "linear"]


def zeros(model: Model) -> dict[str, int]:
    return {name: int((array(model, name) == 0).sum()) for name in linear(model)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def with_weights(model: Model, values: dict[str, Array]) -> Model:
    return dataclasses.replace(model, tensors=dict(model.tensors) | values)


# ---------------------------------------------------------------- which weights


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
def test_a_layers_zeros_are_those_of_pytorch(original: Model, ratio: float) -> None:
    """torch.nn.utils.prune.l1_unstructured on the same matrices."""
    found = apply(original, "prune.weights", ratio=ratio)
    for name in linear(original):
        module = nn.Linear(*array(original, name).shape[::-1], bias=False)
        module.weight.data = torch.from_numpy(array(original, name).copy())
        prune.l1_unstructured(module, "weight", amount=ratio)
        assert np.array_equal(array(found, name), module.weight.detach().numpy()), name
    assert (
        original.tensors["transformer.embeddings.word_embeddings.weight"]
        is found.tensors["transformer.embeddings.word_embeddings.weight"]
    ), "tables only where they are asked for"


@pytest.mark.parametrize("ratio", [0.3, 0.77])
def test_zeros_over_the_whole_model_are_those_of_pytorch(original: Model, ratio: float) -> None:
    modules = []
    for name in linear(original):
        module = nn.Linear(*array(original, name).shape[::-1], bias=False)
        module.weight.data = torch.from_numpy(array(original, name).copy())
        modules.append((module, "weight"))
    prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=ratio)
    found = apply(original, "prune.weights", ratio=ratio, scope="model")
    for name, (module, _) in zip(linear(original), modules, strict=True):
        assert np.array_equal(array(found, name), module.weight.detach().numpy()), name
    assert sum(zeros(found).values()) == round(ratio * sum(array(original, name).size for name in linear(original)))
    assert len({count / array(found, name).size for name, count in zeros(found).items()}) > 1


def inputs_seen(model: Model) -> dict[str, list[Array]]:
    """What each linear layer reads, taken from the network in PyTorch; padding left out."""
    encoder = choose.encoder(model, "this", 1)
    batch = encoder.input(TEXTS)
    seen: dict[str, list[Array]] = {}
    network = choose.family(model).trainable(model).eval()
    here = batch["attention_mask"].astype(bool)

    def hook(name: str) -> Any:
        def keep(_: nn.Module, given: tuple[torch.Tensor], __: torch.Tensor) -> None:
            if given[0].ndim == 3:
                seen.setdefault(f"{name}.weight", []).append(given[0].detach().numpy()[here])

        return keep

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        network(**{name: torch.from_numpy(value) for name, value in batch.items()})
    return seen


def test_wanda_worked_by_brute_force(original: Model) -> None:
    """|w| times the norm of the input, the lowest half of each row, with inputs taken from PyTorch itself."""
    found = apply(original, "prune.weights", importance="activation")
    seen = inputs_seen(original)
    assert len(seen) >= 12
    for name, values in seen.items():
        weight = array(original, name)
        score = np.abs(weight) * np.sqrt(np.square(np.concatenate(values), dtype=np.float64).mean(0))
        expected = weight.copy()
        for row in range(len(weight)):
            expected[row, np.argsort(score[row])[: weight.shape[1] // 2]] = 0
        assert np.array_equal(array(found, name), expected), name
    assert any((array(found, name) != array(apply(original, "prune.weights"), name)).any() for name in seen)
    notes = plugins.load("methods", "prune.weights")(importance="activation").notes(original, found)
    assert any("does not see their inputs: transformer.pooler.dense.weight" in note for note in notes)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5), (1, 2), (5, 7)])
@pytest.mark.parametrize("shape", [(3, 32), (2, 3, 13), (4, 1), (1, 6)])
def test_n_of_m_worked_by_brute_force(n: int, m: int, shape: tuple[int, ...]) -> None:
    """Each group apart, the last of which may be shorter; ties are there: of equal ones the first stay."""
    scores = np.random.default_rng(n).integers(0, 6, shape).astype(np.float32)
    expected = np.zeros(shape, bool)
    for index in np.ndindex(*shape[:-1]):
        row = scores[index].tolist()
        for start in range(0, len(row), m):
            group = sorted(range(start, min(start + m, len(row))), key=lambda place, row=row: (-row[place], place))
            for place in group[:n]:
                expected[(*index, place)] = True
    assert np.array_equal(kept(scores, n, m), expected)


def test_two_of_four_stay_along_the_inputs(original: Model) -> None:
    for importance in ("magnitude", "activation"):
        found = apply(original, "prune.n_m", importance=importance)
        for name in linear(original):
            groups = array(found, name).reshape(-1, 4)
            assert ((groups != 0).sum(1) == 2).all()
            assert np.array_equal(groups[groups != 0], array(original, name).reshape(-1, 4)[groups != 0])
            if importance == "magnitude":
                rest = np.abs(array(original, name).reshape(-1, 4) - groups).max(1)
                assert (np.abs(groups).max(1) >= rest).all()
    note = plugins.load("methods", "prune.n_m")().notes(original, found)[0]
    half = sum(array(original, name).size for name in linear(original)) // 2
    assert f"zeros: {half:,} of {2 * half:,} weights" in note
    assert f"{half:,} reached (50.0%" in note


def test_the_lowest_are_exactly_as_many_as_asked_whatever_the_ties() -> None:
    """CASES P17: a matrix of equal values, of few values; those that come first go first."""
    for values in (np.ones(100), np.arange(100) % 3, np.zeros(100), -np.arange(100)):
        order = sorted(range(100), key=lambda place, values=values: (values[place], place))
        for count in (0, 1, 33, 34, 35, 99, 100):
            found = least(values.reshape(4, 25), count)
            assert found.shape == (4, 25)
            assert set(np.flatnonzero(found)) == set(order[:count])


def test_equal_weights_give_exactly_the_asked_number_of_zeros(original: Model) -> None:
    name = linear(original)[0]
    model = with_weights(original, {name: np.full((32, 32), 0.1, np.float32)})
    for parameters in ({}, {"importance": "activation"}, {"scope": "model"}):
        found = zeros(apply(model, "prune.weights", ratio=0.3, **parameters))
        if parameters.get("scope") != "model":
            assert found == {name: round(0.3 * array(model, name).size) for name in linear(model)}
        assert sum(found.values()) == pytest.approx(
            0.3 * sum(array(model, name).size for name in found), abs=len(found)
        )


def test_what_is_below_a_threshold_goes_but_never_a_whole_layer(original: Model) -> None:
    found = apply(original, "prune.weights", threshold=0.05)
    for name in linear(original):
        weight = array(original, name)
        assert np.array_equal(array(found, name), np.where(np.abs(weight) < 0.05, 0, weight))
    everything = apply(original, "prune.weights", threshold=1e9)
    for name in linear(original):
        weight = array(everything, name)
        assert np.count_nonzero(weight) == max(1, weight.size // 100)
        assert np.abs(weight).max() == np.abs(array(original, name)).max(), "the greatest stay"


def test_no_layer_is_emptied_by_a_limit_over_the_whole_model(original: Model) -> None:
    """CASES P17: one layer is ten thousand times as small as the others."""
    small = linear(original)[2]
    model = with_weights(original, {small: array(original, small) * np.float32(1e-4)})
    found = apply(model, "prune.weights", ratio=0.7, scope="model")
    size = array(model, small).size
    assert zeros(found)[small] == size - size // 100
    assert sum(zeros(found).values()) == round(0.7 * sum(array(model, name).size for name in linear(model)))
    assert np.isfinite(choose.encoder(found, "this", 1).documents(TEXTS)).all()
    with pytest.raises(UsageError, match=r"prune.weights: ratio is 0.999; with scope model at most 0\.99"):
        apply(model, "prune.weights", ratio=0.999, scope="model")


def test_the_axis_of_inputs_is_found_in_every_kind_of_layer() -> None:
    """[outputs, ..., inputs], a view: linear either way, convolution, transposed convolution, recurrent of ONNX."""
    for kind, axis, shape, expected in [
        ("linear", 0, (5, 7), (5, 7)),
        ("linear", 1, (7, 5), (5, 7)),
        ("embedding", 0, (9, 4), (9, 4)),
        ("convolution", 0, (5, 7, 3, 2), (5, 3, 2, 7)),
        ("convolution", 1, (7, 5, 3), (5, 3, 7)),
        ("recurrent", 1, (2, 20, 6), (20, 2, 6)),
    ]:
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        found = inputs_last(values, Layer(name="a", kind=kind, weight="a", axis=axis))
        assert found.shape == expected
        assert np.shares_memory(found, values)


def convolutions() -> onnx.ModelProto:
    """x [n, 4, 8] -> a convolution in two groups, a full one, a transposed one, the mean over time."""
    generator = np.random.default_rng(1)
    shapes = {"grouped": (6, 2, 3), "full": (5, 6, 3), "turned": (5, 8, 2)}
    kernels = [numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
               for name, shape in shapes.items()]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "grouped"], ["a"], group=2),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "full"], ["c"]),
        helper.make_node("ConvTranspose", ["c", "turned"], ["d"]),
        helper.make_node("ReduceMean", ["d"], ["embedding"], axes=[2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])], kernels,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_wanda_of_convolutions_worked_by_brute_force(tmp_path: Path) -> None:
    """In groups each output meets its own channels only; PyTorch computes what the second convolution reads."""
    onnx.save(convolutions(), tmp_path / "m.onnx")
    model = choose.model(tmp_path / "m.onnx")
    generator = np.random.default_rng(3)
    x = generator.normal(size=(8, 4, 8)).astype(np.float32) * np.array([1, 5, 0.1, 2], np.float32)[:, None]
    for number, item in enumerate(x):
        np.save(tmp_path / f"{number}.npy", item)
    items = [str(tmp_path / f"{number}.npy") for number in range(8)]
    found = apply(model, "prune.weights", Samples(calibration=items, texts=items), importance="activation")
    grouped, full = array(model, "grouped"), array(model, "full")
    between = torch.relu(nn.functional.conv1d(torch.from_numpy(x), torch.from_numpy(grouped), groups=2)).numpy()
    for name, weight, norms in [
        ("grouped", grouped, np.sqrt(np.square(x).mean((0, 2))).reshape(2, 2).repeat(3, 0)),
        ("full", full, np.sqrt(np.square(between).mean((0, 2)))[None].repeat(5, 0)),
    ]:
        score = np.abs(weight) * norms[:, :, None]
        expected = weight.copy()
        for row in range(len(weight)):
            flat = np.argsort(score[row].reshape(-1))[: weight[row].size // 2]
            expected[row].reshape(-1)[flat] = 0
        assert np.array_equal(array(found, name), expected), name
    turned = apply(model, "prune.n_m", Samples(calibration=items, texts=items), n=1, m=2)
    assert (array(turned, "turned")[:4].reshape(2, 2, 8, 2) != 0).sum(1).tolist() == np.ones((2, 8, 2)).tolist()
    assert (array(turned, "turned")[4] != 0).all(), "the last group has one input, which may stay"


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("prune.weights", {"ratio": 1.0}, "ratio is 1.0; 0 to below 1 is allowed"),
        ("prune.weights", {"ratio": -0.1}, "ratio is -0.1"),
        ("prune.weights", {"ratio": float("nan")}, "ratio is nan"),
        ("prune.weights", {"threshold": 0.0}, "threshold is 0.0; above 0 is allowed"),
        ("prune.weights", {"threshold": float("inf")}, "threshold is inf"),
        ("prune.weights", {"threshold": 0.1, "ratio": 0.5}, "one of them is allowed"),
        ("prune.weights", {"importance": "activation", "scope": "model"}, "the scope model needs magnitude"),
        ("prune.weights", {"importance": "activation", "threshold": 0.1}, "a threshold or the scope model"),
        ("prune.n_m", {"n": 4}, "n is 4 of m 4; 1 to 3 is allowed"),
        ("prune.n_m", {"n": 0}, "n is 0 of m 4"),
        ("prune.n_m", {"n": 1, "m": 1}, "m is 1; 2 or more is allowed"),
    ],
)
def test_settings_outside_their_limits_are_refused(method: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.load("methods", method)(**parameters)
    assert str(error.value).startswith(f"{method}: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("prune.weights", {"ratio": 0.0}),
        ("prune.weights", {"threshold": 1e-30}),
        ("prune.weights", {"layers": ("convolution",)}),
        ("prune.weights", {"skip": ("",)}),
        ("prune.n_m", {"n": 31, "m": 32, "skip": ("",)}),
        ("prune.n_m", {"n": 64, "m": 65}),
    ],
)
def test_what_changes_nothing_says_so(original: Model, method: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(NoEffect, match=f"^{method}: "):
        apply(original, method, **parameters)


@pytest.mark.parametrize("method", ["prune.weights", "prune.n_m"])
def test_quantized_weights_nan_and_missing_texts_are_refused_by_name(original: Model, method: str) -> None:
    """CASES Q22."""
    with pytest.raises(UsageError, match=r"the weight transformer\S* is quantized; prune before quantizing"):
        apply(apply(original, "quantize.weights_int"), method)
    name = linear(original)[1]
    bad = array(original, name).copy()
    bad[3, 4] = np.nan
    with pytest.raises(UsageError, match=f"the tensor {name} holds NaN or infinite values; the model cannot be pruned"):
        apply(with_weights(original, {name: bad}), method)
    with pytest.raises(UsageError, match=f"{method}: the calibration sample is empty"):
        apply(original, method, Samples(calibration=[], texts=[]), importance="activation")


@pytest.mark.parametrize("method", ["prune.weights", "prune.n_m"])
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_a_second_time_changes_nothing_and_a_greater_ratio_adds_to_it(
    original: Model, method: str, importance: str
) -> None:
    first = apply(original, method, importance=importance)
    with pytest.raises(NoEffect, match="zero already"):
        apply(first, method, importance=importance)
    more = apply(first, "prune.weights", importance=importance, ratio=0.75)
    for name in linear(original):
        assert (array(more, name)[array(first, name) == 0] == 0).all()
        assert zeros(more)[name] == 0.75 * array(more, name).size


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_the_type_of_the_weights_is_kept(original: Model, dtype: DTypeLike) -> None:
    half = apply(original, "quantize.float", format="fp16" if dtype is np.float16 else "bf16")
    for method in ("prune.weights", "prune.n_m"):
        found = apply(half, method)
        for name, tensor in found.tensors.items():
            assert isinstance(tensor, np.ndarray)
            assert tensor.dtype == array(half, name).dtype
            assert tensor.dtype != np.float64
        assert zeros(found) == {name: array(half, name).size // 2 for name in linear(half)}


def test_a_smoothed_model_is_compared_by_the_networks_own_weights(original: Model) -> None:
    smoothed = apply(original, "quantize.smooth", alpha=0.8)
    for parameters in ({}, {"importance": "activation"}):
        plain, found = (apply(model, "prune.weights", **parameters) for model in (original, smoothed))
        for name in linear(original):
            assert ((array(plain, name) == 0) == (array(found, name) == 0)).mean() > 0.995, name


def test_tied_weights_stay_one(original: Model) -> None:
    """CASES P20: a table that is also the weight of a linear layer is one tensor, pruned once and written once."""
    table = "transformer.embeddings.word_embeddings.weight"
    tied = dataclasses.replace(original, layers=(*original.layers, Layer(name="head", kind="linear", weight=table)))
    found = apply(tied, "prune.weights")
    assert set(found.tensors) == set(tied.tensors)
    assert (array(found, table) == 0).sum() == array(tied, table).size // 2


# ---------------------------------------------------------------- files


def test_the_artifact_and_the_packages_really_shrink(original: Model, tmp_path: Path) -> None:
    """CASES P18, P19: true bytes; no mask beside the whole, no gradient, no float64."""
    wide = with_weights(original, {
        name: np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32) for name in ("wide", "other")
    })  # fmt: skip
    wide = dataclasses.replace(wide, layers=(*wide.layers, Layer(name="wide", kind="linear", weight="wide")))
    found = apply(wide, "prune.weights")
    sizes = {}
    for name, model in (("before", wide), ("after", found)):
        (tmp_path / name).mkdir()
        artifact.write(model, tmp_path / name)
        sizes[name] = (tmp_path / name / "weights.safetensors").stat().st_size
    pruned = sum(array(found, name).size for name in linear(found))
    saved = pruned * 4 - pruned * (2 + 1 / 8)
    assert sizes["before"] - sizes["after"] == pytest.approx(saved, rel=0.05)
    stored = load_file(tmp_path / "after" / "weights.safetensors")
    assert set(stored) - {f"{name}#mask" for name in linear(found)} == set(wide.tensors)
    assert {tensor.dtype.name for tensor in stored.values()} <= {"float32", "uint8", "int64"}
    again = artifact.read(tmp_path / "after")[1]
    for name in found.tensors:
        assert array(again, name).tobytes() == array(found, name).tobytes()
    notes = plugins.load("methods", "prune.weights")().notes(wide, found)
    assert (
        f"{compress.weight_bytes(found):,} bytes in the artifact instead of {compress.weight_bytes(wide):,}" in notes[1]
    )
    assert "not faster" in notes[1]


@pytest.fixture(scope="module")
def pruned(original: Model) -> Model:
    return apply(original, "prune.weights", ratio=0.6, layers=("linear", "embedding"))


FORMS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "float32": (),
    "fp16": (("quantize.float", {}),),
    "int8": (("quantize.weights_int", {}),),
    "int8 static": (("quantize.weights_int", {}), ("quantize.activations_int", {})),
    "int8 dynamic": (("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "dynamic"})),
    "int4 group": (("quantize.weights_int", {"bits": 4, "granularity": "group", "group_size": 16}),),
    "int4 asymmetric": (
        ("quantize.weights_int", {"bits": 4, "granularity": "group", "group_size": 16, "symmetric": False}),
    ),
    "int8 asymmetric static": (("quantize.weights_int", {"symmetric": False}), ("quantize.activations_int", {})),
    "int5 asymmetric": (("quantize.weights_int", {"bits": 5, "symmetric": False}),),
    "e4m3": (("quantize.float", {"format": "e4m3"}),),
    "e5m2": (("quantize.float", {"format": "e5m2", "granularity": "tensor"}),),
    "int4 asymmetric static": (
        ("quantize.weights_int", {"bits": 4, "granularity": "group", "group_size": 24, "symmetric": False}),
        ("quantize.activations_int", {}),
    ),
    "int3 group": (("quantize.weights_int", {"bits": 3, "granularity": "group", "group_size": 16}),),
    "int6": (("quantize.weights_int", {"bits": 6}),),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_package_without_zeros_computes_the_same_to_the_last_bit_with_the_same_operators(
    pruned: Model, backend: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the dense package; tensors as small as these are spread too once the nodes count for nothing."""
    model = pruned
    for method, parameters in FORMS[form]:
        model = apply(model, method, **parameters)
    monkeypatch.setattr(_sparse, "NODES", 10**9)
    dense = packaged(model, backend, tmp_path / "dense").documents(TEXTS)
    monkeypatch.setattr(_sparse, "NODES", 0)
    thin = packaged(model, backend, tmp_path / "thin").documents(TEXTS)
    assert np.array_equal(dense, thin)
    assert kernels(tmp_path / "thin", backend) == kernels(tmp_path / "dense", backend)
    names = [one.name for one in onnx.load(tmp_path / "thin" / "model.onnx").graph.initializer]
    count = sum(name.endswith(".mask") for name in names)
    assert (count >= 12) == (form not in DENSE[backend]), names


DENSE: dict[str, tuple[str, ...]] = {
    "openvino": ("int4 group", "int4 asymmetric", "int8 asymmetric static"),
    "onnxruntime": ("int8 asymmetric static",),
}
"""Forms whose linear layers a backend keeps dense."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["float32", "fp16", "int8", "int8 static"])
def test_the_package_of_a_wide_model_is_smaller_by_its_zeros(backend: str, form: str, tmp_path: Path) -> None:
    """x [n, 256] through two matrices, one given either way round: CASES P18, with the nodes and tables counted."""
    generator = np.random.default_rng(5)
    matrices = {name: generator.normal(size=(256, 256)).astype(np.float32) for name in ("one", "two")}
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "two"], ["embedding"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 256])],
        [numpy_helper.from_array(values, name) for name, values in matrices.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", generator.normal(size=256).astype(np.float32))
    items = [str(tmp_path / "x.npy")]
    samples = Samples(calibration=items, texts=items)
    sizes = []
    for ratio in (None, 0.5):
        model = choose.model(tmp_path / "m.onnx")
        if ratio:
            model = apply(model, "prune.weights", samples, ratio=ratio)
        for method, parameters in FORMS[form]:
            model = apply(model, method, samples, **parameters)
        folder = tmp_path / str(ratio)
        found = packaged(model, backend, folder).documents(items)
        sizes.append((folder / "model.onnx").stat().st_size)
        assert np.allclose(found, choose.encoder(model, "this", 1).documents(items), atol=2e-2)
    bits = {"float32": 32, "fp16": 16}.get(form, 8)
    saved = 2 * 256 * 256 * (bits / 2 - 1 - 1 / 16) / 8
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=12_000)
    assert sizes[1] < 0.9 * sizes[0]


# ---------------------------------------------------------------- later steps


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_rounding_leaves_zeros_zero(original: Model, bits: int, symmetric: bool, rounding: str) -> None:
    first = apply(original, "prune.weights")
    second = apply(
        first, "quantize.weights_int", bits=bits, symmetric=symmetric, rounding=rounding, correct_bias=True,
        granularity="group", group_size=16,
    )  # fmt: skip
    for name in linear(first):
        assert (integers.dequantize(second.tensors[name])[array(first, name) == 0] == 0).all(), name


def test_compensation_makes_good_what_pruned_columns_would_have_become() -> None:
    """The zeros stay, and the outputs are still nearer than by rounding to nearest."""
    generator = np.random.default_rng(6)
    x = generator.normal(size=(500, 32)) @ generator.normal(size=(32, 32))
    weight = generator.normal(size=(24, 32)).astype(np.float32)
    weight[generator.random(weight.shape) < 0.5] = 0
    spec = QuantSpec(bits=3, granularity="channel")
    hessian = (x.T @ x).astype(np.float32)
    errors = []
    for tensor in (integers.quantize(weight, spec, "mse"), compensate(weight, hessian, spec)):
        values = integers.dequantize(tensor)
        assert (values[weight == 0] == 0).all()
        errors.append(np.square(x @ (values - weight).T).sum())
    assert errors[1] < 0.9 * errors[0]


def test_distillation_wins_quality_back_and_leaves_zeros_zero(original: Model) -> None:
    samples = dataclasses.replace(
        SAMPLES, texts=[*TEXTS, *(f"{a} {b}" for a in TEXTS for b in TEXTS)], original=original
    )
    first = apply(original, "prune.weights", ratio=0.7)
    second = apply(first, "distil.embedding", samples, steps=40, batch_size=8, learning_rate=1e-3)
    assert zeros(second) == zeros(first)
    for name in linear(original):
        assert (array(second, name)[array(first, name) == 0] == 0).all(), name
    name = linear(original)[0]
    assert (array(second, name) != array(first, name)).any(), "the others were trained"


def test_aware_training_leaves_zeros_zero(original: Model) -> None:
    samples = dataclasses.replace(SAMPLES, texts=[*TEXTS, *(f"{a} {b}" for a in TEXTS for b in TEXTS)])
    first = apply(original, "prune.n_m")
    for symmetric in (True, False):
        second = apply(
            first, "quantize.aware_training", samples, steps=20, batch_size=8, learning_rate=1e-3, symmetric=symmetric,
            layers=("linear",), bits=4, group_size=16,
        )  # fmt: skip
        for name in linear(original):
            assert isinstance(second.tensors[name], QuantizedTensor)
            assert (integers.dequantize(second.tensors[name])[array(first, name) == 0] == 0).all(), name


class Recurrent(nn.Module):
    """The last state of an LSTM over [n, time, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.lstm(x)[1][0][0]
        return state


def test_an_lstm_of_pruned_weights_trains_and_keeps_its_zeros() -> None:
    """CASES P13: its loss goes down, and the weights that it runs with are those that were trained."""
    torch.manual_seed(0)
    network, teacher = Recurrent(), Recurrent()
    names = [name for name, parameter in network.named_parameters() if parameter.ndim == 2]
    for name in names:
        prune.l1_unstructured(network.lstm, name.removeprefix("lstm."), amount=0.5)
        prune.remove(network.lstm, name.removeprefix("lstm."))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    generator = np.random.default_rng(7)
    with torch.no_grad():
        pairs = [
            ({"x": x}, teacher(torch.from_numpy(x)).numpy())
            for x in generator.normal(size=(60, 8, 5, 6)).astype(np.float32)
        ]
    fitted = train.fit(
        network, train.Examples(train=tuple(pairs[:50]), held_out=tuple(pairs[50:])), MeanSquaredError(),
        train.Training(steps=50, learning_rate=1e-2),
    )  # fmt: skip
    assert fitted.after < 0.7 * fitted.before
    for name, parameter in network.named_parameters():
        if name in names:
            assert ((parameter == 0) == (before[name] == 0)).all()
        assert not torch.equal(parameter, before[name])
    with torch.no_grad():
        found = np.mean([np.square(network(torch.from_numpy(b["x"])).numpy() - y).mean() for b, y in pairs[50:]])
    assert found == pytest.approx(fitted.after, rel=1e-4)


def test_only_weights_that_were_pruned_stay_zero() -> None:
    """Not a bias of zeros, a weight that begins at zero, or one whose zeros are a single row of many."""
    random = np.random.default_rng(0).normal(size=(200, 8))
    half, row = random.copy(), random.copy()
    half[:, ::2] = 0
    row[0] = 0
    found = {"half": half, "row": row, "whole": np.zeros((8, 8)), "bias": np.zeros(8), "dense": random}
    assert [name for name, values in found.items() if sparse.is_pruned(values)] == ["half"]


def lstm(folder: Path) -> tuple[Model, list[str]]:
    """An ONNX network: x [time, n, 6] -> the last state of an LSTM, [n, 5]."""
    generator = np.random.default_rng(2)
    shapes = {"W": (1, 20, 6), "R": (1, 20, 5), "B": (1, 40)}
    tensors = [numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
               for name, shape in shapes.items()]  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "state"], hidden_size=5),
        helper.make_node("Squeeze", ["state", "axes"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 6])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 5])],
        [*tensors, numpy_helper.from_array(np.array([0]), "axes")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    for number in range(4):
        np.save(folder / f"{number}.npy", generator.normal(size=(7, 6)).astype(np.float32))
    return choose.model(folder / "m.onnx"), [str(folder / f"{number}.npy") for number in range(4)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_recurrent_weights_are_pruned_and_run(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES P11, P13: really pruned, by magnitude, which the notes say; and the package of it runs."""
    monkeypatch.setattr(_sparse, "NODES", 0)
    model, items = lstm(tmp_path)
    samples = Samples(calibration=items, texts=items)
    step = plugins.load("methods", "prune.weights")(importance="activation", ratio=0.6)
    found = step.apply(model, samples)
    assert {name: int((array(found, name) == 0).sum()) for name in ("W", "R")} == {"W": 72, "R": 60}
    assert any("compared by magnitude" in note and "W, R" in note for note in step.notes(model, found))
    expected = choose.encoder(found, "this", 1).documents(items)
    assert np.allclose(packaged(found, backend, tmp_path / "p").documents(items), expected, atol=1e-5)
    groups = array(apply(model, "prune.n_m", samples), "W").reshape(20, 6)
    assert ((groups[:, :4] != 0).sum(1) == 2).all()
    assert ((groups[:, 4:] != 0).sum(1) == 2).all(), "the last group has two inputs, which may stay"


def test_a_recipe_prunes_rounds_and_says_what_it_reached(original: Model) -> None:
    steps = recipe.parse("version: 1\nsteps: [prune.weights: {ratio: 0.5}, quantize.weights_int: {bits: 8}]")
    made = compress.run(original, steps, SAMPLES)
    assert made.failed is None
    half = sum(array(original, name).size for name in linear(original)) // 2
    assert f"{half:,} reached (50.0%" in made.records[0].notes[0]
    assert made.records[0].bytes_after < made.records[0].bytes_before
