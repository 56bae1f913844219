"""ONNX files of any framework: tests/data/onnx_in (its make.py says how they were made), Silero VAD, and hostile ones.

A graph added to that folder, with its items beside it, is tested like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import choose, compress, deploy, integers, plugins
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.schema import Model, Recipe, RecipeStep, Samples
from small import BACKENDS, packaged

HERE = Path(__file__).parent / "data" / "onnx_in"
FILES = sorted(HERE.glob("*.onnx"))
REAL = Path(__file__).parent.parent.parent / "shared" / "data"
INT4 = {"bits": 4, "granularity": "group", "group_size": 16, "symmetric": False}


def step(method: str, model: Model, items: Sequence[str] = (), **parameters: object) -> Model:
    return plugins.load("methods", method)(**parameters).apply(model, Samples(calibration=items, texts=items))


def stored(model: Model) -> int:
    return sum(integers.stored_bytes(tensor) for tensor in model.tensors.values())


def in_layers(model: Model) -> int:
    """Bytes of the weights of layers: biases stay float."""
    return sum(integers.stored_bytes(model.tensors[layer.weight]) for layer in model.layers)


def items_of(file: Path, model: Model, folder: Path) -> list[str]:
    """The items beside a graph, one file each."""
    arrays = np.load(file.with_suffix(".npz"))
    found = []
    for number in range(len(arrays["expected"])):
        found.append(str(folder / f"{number}.npz"))
        np.savez(found[-1], **{one.name: arrays[one.name][number] for one in model.spec.inputs})
    return found


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


# ---------------------------------------------------------------- every framework


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_converted_graph_gives_its_frameworks_vectors(file: Path, tmp_path: Path) -> None:
    model = choose.model(file)
    items = items_of(file, model, tmp_path)
    found = choose.encoder(model, "m", 1).documents(items)
    assert np.allclose(found, unit(np.load(file.with_suffix(".npz"))["expected"]), atol=1e-5)
    matrices = sum(tensor.nbytes for tensor in model.tensors.values() if sum(size > 1 for size in tensor.shape) > 1)
    assert in_layers(model) == matrices, "every matrix is the weight of a layer"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    ("form", "most", "least"), [("int8", 0.38, 0.999), ("int4", 0.26, 0.94), ("static", 0.38, 0.999)]
)
def test_a_converted_graph_is_quantized_and_its_bytes_fall(
    file: Path, form: str, most: float, least: float, tmp_path: Path
) -> None:
    """Least cosine to what the framework gives, and bytes of layers and of the whole file."""
    model = choose.model(file)
    items = items_of(file, model, tmp_path)
    expected = unit(np.load(file.with_suffix(".npz"))["expected"])
    quantized = step("quantize.weights_int", model, **(INT4 if form == "int4" else {}))
    if form == "static":
        quantized = step("quantize.activations_int", quantized, items, mode="static")
    assert in_layers(quantized) < most * in_layers(model)
    for backend in BACKENDS:
        folder = tmp_path / backend
        package = packaged(quantized, backend, folder)
        assert cosines(expected, package.documents(items)).min() > least, backend
        assert (folder / "model.onnx").stat().st_size < file.stat().st_size, backend


# ---------------------------------------------------------------- small graphs by hand


def value(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def written(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    domains: dict[str, int] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes, "g", inputs or [value("x", ["N", 16])], outputs or [value("y", ["N", 12])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid(*one) for one in ({"": 17} | (domains or {})).items()]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def same_as_the_file(file: Path, model: Model, x: np.ndarray) -> bool:
    """Whether the model gives what ONNX Runtime makes of the untouched file."""
    [expected] = onnxruntime.InferenceSession(file).run(["y"], {"x": x})
    return np.allclose(choose.encoder(model, "m", 1).encode({"x": x}), unit(expected), atol=1e-5)


def test_weights_that_the_graph_reorders_and_joins_are_layers_under_their_names(tmp_path: Path) -> None:
    """PyTorch's LSTM leaves Constant, Slice, Concat, Unsqueeze before ONNX's order of gates."""
    tensors = {
        "weight": weight(64, 16), "state": weight(64, 16, seed=1), "axis": np.array([0]),
        **{f"at{place}": np.array([place]) for place in (0, 16, 48, 64)},
    }  # fmt: skip
    nodes = []
    for name in ("weight", "state"):
        pieces = [(0, 16), (48, 64), (16, 48)]
        nodes += [
            helper.make_node("Slice", [name, f"at{start}", f"at{stop}", "axis"], [f"{name}.{start}"])
            for start, stop in pieces
        ]
        nodes.append(helper.make_node("Concat", [f"{name}.{start}" for start, _ in pieces], [f"{name}.all"], axis=0))
        nodes.append(helper.make_node("Unsqueeze", [f"{name}.all", "axis"], [f"{name}.three"]))
    nodes += [
        helper.make_node("Unsqueeze", ["x", "axis"], ["steps"]),
        helper.make_node("LSTM", ["steps", "weight.three", "state.three"], ["", "last"], hidden_size=16),
        helper.make_node("Squeeze", ["last", "axis"], ["y"]),
    ]
    file = written(tmp_path, nodes, tensors, outputs=[value("y", ["N", 16])])
    model = choose.model(file)
    assert [(layer.weight, layer.kind) for layer in model.layers] == [("weight", "recurrent"), ("state", "recurrent")]
    assert np.array_equal(model.tensors["weight"][0, 16:32], tensors["weight"][48:])
    assert same_as_the_file(file, model, weight(3, 16, seed=2))


def test_constants_that_would_grow_stay_as_they_are(tmp_path: Path) -> None:
    """A table that is also an output layer, turned; a row that is repeated; and both halves of a weight used apart."""
    tensors = {
        "table": weight(40, 16), "rest": weight(40, 12, seed=1), "row": weight(1, 12, seed=2),
        "times": np.array([500, 1]), "ids": np.array([3, 4, 5]), "axes": np.array([0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "best"], ["found"]),
        helper.make_node("MatMul", ["found", "turned"], ["again"]),
        helper.make_node("MatMul", ["again", "rest"], ["product"]),
        helper.make_node("Tile", ["row", "times"], ["many"]),
        helper.make_node("ReduceMean", ["many"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["product", "mean"], ["y"]),
    ]
    file = written(tmp_path, nodes, tensors)
    model = choose.model(file)
    assert stored(model) == sum(array.nbytes for name, array in tensors.items() if name in ("table", "rest", "row"))
    assert same_as_the_file(file, model, weight(3, 16, seed=3))


def test_weight_normalisation_is_computed_once(tmp_path: Path) -> None:
    tensors = {"direction": weight(16, 12), "gain": weight(1, 12, seed=1)}
    nodes = [
        helper.make_node("ReduceL2", ["direction"], ["norm"], axes=[0], keepdims=1),
        helper.make_node("Div", ["gain", "norm"], ["factor"]),
        helper.make_node("Mul", ["direction", "factor"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    file = written(tmp_path, nodes, tensors)
    model = choose.model(file)
    assert [model.tensors[layer.weight].shape for layer in model.layers] == [(16, 12)]
    assert stored(model) == 16 * 12 * 4
    assert same_as_the_file(file, model, weight(3, 16, seed=2))


def test_factors_and_summands_behind_a_convolution_go_into_it(tmp_path: Path) -> None:
    """As converters leave batch norms and biases; a summand for another axis stays."""
    tensors = {
        "w": weight(6, 3, 1, 1), "bias": weight(1, 6, 1, 1, seed=1), "factor": weight(6, 1, 1, seed=2),
        "half": np.float32(0.5), "row": weight(1, 1, 1, 5, seed=3), "axes": np.array([2, 3]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Identity", ["c"], ["same"]),
        helper.make_node("Add", ["bias", "same"], ["a"]),
        helper.make_node("Mul", ["a", "factor"], ["b"]),
        helper.make_node("Div", ["b", "half"], ["d"]),
        helper.make_node("Sub", ["d", "bias"], ["e"]),
        helper.make_node("Add", ["e", "row"], ["f"]),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[2, 3], keepdims=0),
    ]
    file = written(tmp_path, nodes, tensors, inputs=[value("x", ["N", 3, 5, 5])], outputs=[value("y", ["N", 6])])
    model = choose.model(file)
    kinds = [node.op_type for node in onnx.ModelProto.FromString(model.files["graph.onnx"]).graph.node]
    assert kinds[:3] == ["Conv", "Add", "ReduceMean"]
    assert same_as_the_file(file, model, weight(3, 3, 5, 5, seed=4))


def test_what_is_behind_a_result_that_two_read_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "factor"], ["scaled"]),
        helper.make_node("Max", ["c", "scaled"], ["most"]),
        helper.make_node("ReduceMean", ["most"], ["y"], axes=[2, 3], keepdims=0),
    ]
    tensors = {"w": weight(6, 3, 1, 1), "factor": weight(6, 1, 1, seed=2)}
    file = written(tmp_path, nodes, tensors, inputs=[value("x", ["N", 3, 5, 5])], outputs=[value("y", ["N", 6])])
    assert same_as_the_file(file, choose.model(file), weight(3, 3, 5, 5, seed=4))


def test_weights_that_a_loop_hands_on_are_layers_and_branches_may_share_names(tmp_path: Path) -> None:
    def scalar(name: str, number: float | bool | int) -> tuple[str, np.ndarray]:
        return name, np.array(number, {float: np.float32, bool: np.bool_, int: np.int64}[type(number)])

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "carried"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["carried"], ["handed"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", None),
         value("carried", None)],
        [value("on", [], TensorProto.BOOL), value("next", None), value("handed", None)],
    )  # fmt: skip

    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Transpose", ["w"], ["turned"]),
            helper.make_node("MatMul", ["state", "turned"], ["t"]),
            helper.make_node("Relu", ["t"], ["r"]),
        ]
        tensor = numpy_helper.from_array(weight(12, 16, seed=seed), "w")
        return helper.make_graph(nodes, name, [], [value("r", None)], [tensor])

    nodes = [
        helper.make_node("Loop", ["rounds", "yes", "x", "loop"], ["state", "after"], body=body),
        helper.make_node("ReduceSum", ["after"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("one", 5), else_branch=branch("two", 6)),
    ]
    tensors = dict([scalar("rounds", 3), scalar("yes", True), scalar("zero", 0.0)]) | {"loop": weight(16, 16)}
    file = written(tmp_path, nodes, tensors)
    model = choose.model(file)
    assert model.layers[0].weight == "loop"
    assert [layer.kind for layer in model.layers] == ["linear"] * 3
    assert same_as_the_file(file, model, weight(3, 16, seed=7))
    quantized = step("quantize.weights_int", model)
    deploy.write(quantized, "onnxruntime", tmp_path, threads=1)
    x = weight(3, 16, seed=7)
    expected, found = (one.encode({"x": x}) for one in (choose.encoder(model, "m", 1), choose.choose(tmp_path, 1)))
    assert cosines(expected, found).min() > 0.999


def test_a_network_in_double_precision_becomes_single(tmp_path: Path) -> None:
    double = TensorProto.DOUBLE
    file = written(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(16, 12).astype(np.float64)},
                   inputs=[value("x", ["N", 16], double)], outputs=[value("y", ["N", 12], double)])  # fmt: skip
    model = choose.model(file)
    assert {tensor.dtype for tensor in model.tensors.values()} == {np.dtype(np.float32)}
    x = weight(3, 16, seed=1)
    assert np.allclose(choose.encoder(model, "m", 1).encode({"x": x}), unit(x @ weight(16, 12)), atol=1e-6)


def test_the_length_and_the_number_that_a_network_takes_are_found(tmp_path: Path) -> None:
    """Only 64 samples at the rate 8000, only 32 at any other."""

    def branch(name: str, length: int) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", f"w{length}"], [f"out{length}"])]
        return helper.make_graph(nodes, name, [], [value(f"out{length}", None)])

    nodes = [
        helper.make_node("Equal", ["rate", "eight"], ["slow"]),
        helper.make_node("If", ["slow"], ["y"], then_branch=branch("a", 64), else_branch=branch("b", 32)),
    ]
    inputs = [value("x", ["N", "samples"]), value("rate", [], TensorProto.INT64)]
    tensors = {"eight": np.array(8000), "w64": weight(64, 12), "w32": weight(32, 12)}
    model = choose.model(written(tmp_path, nodes, tensors, inputs=inputs))
    assert [(one.name, one.length, one.number) for one in model.spec.inputs] == [("x", 64, 0), ("rate", 64, 8000)]
    deploy.write(step("quantize.weights_int", model), "onnxruntime", tmp_path, threads=1)


# ---------------------------------------------------------------- a real network whose weights lie in branches


def windows(rate: int) -> np.ndarray:
    """A spoken digit as Silero VAD takes it: float32 [n, context and window], raised to the rate by repetition."""
    soundfile = pytest.importorskip("soundfile")
    sound, given = soundfile.read(sorted((REAL / "fsdd").rglob("*.wav"))[0], dtype="float32")
    sound = np.repeat(sound, rate // given)
    size = rate // 16000 * 256 + 256
    padded = np.concatenate([np.zeros(size // 8, np.float32), sound])
    return np.stack([padded[start : start + size + size // 8] for start in range(0, len(sound) - size, size)])


@pytest.mark.skipif(not (REAL / "silero_vad").is_dir(), reason="the real network is not here (../shared/data)")
@pytest.mark.parametrize(
    ("name", "rates", "layers"), [("silero_vad", (16000, 8000), 16), ("silero_vad_16k_op15", (16000,), 8)]
)
def test_silero_vad_shrinks_and_hears_the_same(name: str, rates: tuple[int, ...], layers: int, tmp_path: Path) -> None:
    """ONNX Runtime's own dynamic quantizer grows the first file; here int8 ships less than 28 % of it."""
    file = REAL / "silero_vad" / f"{name}.onnx"
    model = choose.model(file)
    assert len(model.layers) == layers
    deploy.write(step("quantize.weights_int", model), "onnxruntime", tmp_path, threads=1)
    assert (tmp_path / "model.onnx").stat().st_size < 0.28 * file.stat().st_size
    reference = onnxruntime.InferenceSession(file)
    float32, package = choose.encoder(model, "m", 1), choose.choose(tmp_path, 1)
    for rate in rates:
        state, heard, found, plain = np.zeros((2, 1, 128), np.float32), [], [], []
        for window in windows(rate):
            batch = {"input": window[None], "state": state, "sr": np.array(rate)}
            probability, state_after = reference.run(None, batch)
            batch = {one.name: batch[one.name] for one in model.spec.inputs}
            plain.append(float32.encode(batch).item())
            found.append(package.encode(batch).item())
            heard.append(probability.item())
            state = state_after
        assert np.allclose(plain, heard, atol=1e-6), rate
        assert np.abs(np.array(found) - heard).mean() < 0.02, rate
        assert np.abs(np.array(found) - heard).max() < 0.06, rate


# ---------------------------------------------------------------- quantized already, or not for us


def linear(folder: Path, **parameters: object) -> Path:
    return written(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(16, 12)}, **parameters)  # type: ignore[arg-type]


def by_dynamic(source: Path, target: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def by_static(form: str) -> object:
    def write(source: Path, target: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.items = iter([{"x": weight(4, 16, seed=seed)} for seed in range(4)])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.items, None)

        quantize_static(source, target, Reader(), quant_format=QuantFormat[form])

    return write


def by_blocks(source: Path, target: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def by_slimseek(source: Path, target: Path) -> None:
    target.parent.joinpath("package").mkdir()
    plugins.load("backends", "onnxruntime")().export(
        step("quantize.weights_int", choose.model(source)), target.parent / "package"
    )
    (target.parent / "package" / "model.onnx").rename(target)


WAYS = {
    "dynamic": by_dynamic,
    "QDQ": by_static("QDQ"),
    "QOperator": by_static("QOperator"),
    "blocks": by_blocks,
    "slimseek": by_slimseek,
}
METHODS = ("quantize.weights_int", "quantize.activations_int", "quantize.float", "quantize.mixed", "quantize.smooth")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_quantized_already_runs_and_every_step_says_so(way: str, tmp_path: Path) -> None:
    file = linear(tmp_path)
    WAYS[way](file, tmp_path / "quantized.onnx")  # type: ignore[operator]
    model = choose.model(tmp_path / "quantized.onnx")
    x = weight(5, 16, seed=9)
    assert cosines(choose.encoder(model, "m", 1).encode({"x": x}), unit(x @ weight(16, 12))).min() > 0.98
    for method in METHODS:
        with pytest.raises(UsageError, match=rf"{method}: the model is quantized already \(.*\); evaluate and deploy"):
            compress.run(model, Recipe(steps=(RecipeStep(method=method),)), Samples(calibration=(), texts=()))


def test_a_quantized_network_that_gives_integers_is_named(tmp_path: Path) -> None:
    """As int8 files of TFLite become by tf2onnx."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["float"]),
        helper.make_node("MatMul", ["float", "w"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["y"]),
    ]
    tensors = {"scale": np.float32(0.1), "zero": np.int8(3), "w": weight(16, 12)}
    file = written(tmp_path, nodes, {name: np.asarray(one) for name, one in tensors.items()},
                   inputs=[value("x", ["N", 16], TensorProto.INT8)],
                   outputs=[value("y", ["N", 12], TensorProto.INT8)])  # fmt: skip
    with pytest.raises(UsageError, match=r"quantized already \(DequantizeLinear, QuantizeLinear\) and gives integers"):
        choose.model(file)


def external(folder: Path) -> Path:
    onnx.save(
        onnx.load(linear(folder)), folder / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0
    )
    (folder / "e.data").unlink()
    return folder / "e.onnx"


def custom(folder: Path) -> Path:
    nodes = [helper.make_node("Beam", ["x"], ["z"], domain="my.ops"), helper.make_node("MatMul", ["z", "w"], ["y"])]
    return written(folder, nodes, {"w": weight(16, 12)}, domains={"my.ops": 1})


def sequence(folder: Path) -> Path:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"])]
    return written(folder, nodes, {}, outputs=[helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)])


def strings(folder: Path) -> Path:
    encode = helper.make_node(
        "LabelEncoder", ["x"], ["z"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]
    )
    nodes = [encode, helper.make_node("MatMul", ["z", "w"], ["y"])]
    inputs = [value("x", ["N", 16], TensorProto.STRING)]
    return written(folder, nodes, {"w": weight(16, 12)}, inputs=inputs, domains={"ai.onnx.ml": 2})


REFUSED = [
    (lambda folder: linear(folder, domains={"": 99}), "has opset 99; up to .* is known here; export it again"),
    (external, "keeps its weights in 'e.data', a data file beside it that is not there; copy both"),
    (custom, "custom operators my.ops.Beam, which ONNX Runtime does not know; export it again"),
    (sequence, "gives only s as sequence_type; export it again with a tensor"),
    (strings, "takes x as strings; export the part behind it"),
    (lambda folder: linear(folder, inputs=[value("x", [1, 16])]), "no axis is free for a batch; export it again"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_come_in_is_told_in_one_line(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose.model(make(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_an_old_opset_runs_and_one_that_cannot_be_raised_is_refused_when_integers_need_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("ThresholdedRelu", ["p"], ["y"], alpha=-9.0),
    ]
    model = choose.model(written(tmp_path, nodes, {"w": weight(16, 12)}, domains={"": 9}))
    with pytest.raises(UsageError, match=r"need opset 21; this graph has 9, .*export it again with opset 21"):
        choose.family(model).to_onnx(step("quantize.weights_int", model))
