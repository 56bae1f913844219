"""Networks that take arrays: any .onnx file with convolutions, batch norms, recurrent layers, weights in branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import choose, data, deploy, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.arrays import ArrayInput
from slimseek.integers import dequantize
from slimseek.schema import OUTPUT_RANGE, Model, ModelSpec, QuantizedTensor, Samples, TensorSpec
from small import BACKENDS, optimised, packaged

TINY = Path(__file__).parent.parent.parent / "shared" / "data"


def torch_network() -> object:
    """A residual network with batch norms, a depthwise and a strided convolution."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.norm2 = nn.BatchNorm2d(8)
            self.last = nn.Conv2d(8, 16, 3, stride=2)
            self.out = nn.Linear(16, 10)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            one = torch.relu(self.norm(self.first(pixels)))
            two = torch.relu(one + self.norm2(self.deep(one)))
            return self.out(torch.relu(self.last(two)).mean((2, 3)))

    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        for norm in (network.norm, network.norm2):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> object:
    return torch_network()


@pytest.fixture(scope="module")
def file(network: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("array") / "network.onnx"
    torch.onnx.export(
        network, (torch.zeros(2, 3, 12, 12),), path, dynamo=False, input_names=["pixels"], output_names=["logits"],
        dynamic_axes={"pixels": {0: "N"}}, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=17,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """64 files of random pictures."""
    folder = tmp_path_factory.mktemp("items")
    generator = np.random.default_rng(1)
    for number in range(64):
        np.save(folder / f"{number}.npy", generator.normal(size=(3, 12, 12)).astype(np.float32))
    return [str(folder / f"{number}.npy") for number in range(64)]


def static(model: Model, items: list[str], **parameters: object) -> Model:
    weights = plugins.load("methods", "quantize.weights_int")(**parameters)
    samples = Samples(calibration=items, texts=items)
    return plugins.load("methods", "quantize.activations_int")(mode="static").apply(
        weights.apply(model, samples), samples
    )


def by_torch(network: object, items: list[str]) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits = network(torch.from_numpy(np.stack([np.load(item) for item in items]))).numpy()  # type: ignore[operator]
    return logits / np.linalg.norm(logits, axis=1, keepdims=True)


def test_it_gives_torchs_vectors_with_batch_norms_folded(network: object, file: Path, items: list[str]) -> None:
    assert "BatchNormalization" in {node.op_type for node in onnx.load(file).graph.node}
    encoder = choose.choose(file, 1)
    assert np.allclose(encoder.documents(items), by_torch(network, items), atol=1e-5)
    assert encoder.model is not None
    stored = onnx.ModelProto.FromString(encoder.model.files["graph.onnx"])
    assert "BatchNormalization" not in {node.op_type for node in stored.graph.node}
    assert [layer.kind for layer in encoder.model.layers] == ["convolution"] * 3 + ["linear"]


def test_multiply_accumulates_are_those_of_the_pictures(file: Path) -> None:
    model = choose.model(file)
    by_hand = 12 * 12 * 8 * 3 * 9 + 12 * 12 * 8 * 9 + 5 * 5 * 16 * 8 * 9 + 16 * 10
    assert choose.family(model).macs(model, 128) == by_hand


@pytest.mark.parametrize("parameters", [{}, {"symmetric": False}, {"bits": 4, "granularity": "group"}, {"bits": 5}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_of_convolutions_agree_with_the_artifact(
    file: Path, items: list[str], backend: str, parameters: dict[str, object], tmp_path: Path
) -> None:
    original = choose.model(file)
    model = static(original, items[:32], **parameters)
    artifact = choose.encoder(model, "artifact", 1).documents(items[32:])
    package = deploy.write(model, backend, tmp_path, texts=items[32:], threads=1)
    assert all(gate.status == "passed" for gate in package.gates), package.gates
    assert cosines(artifact, choose.choose(tmp_path, 1).documents(items[32:])).min() > 0.995
    if parameters.get("bits", 8) == 8:
        assert cosines(artifact, choose.encoder(original, "float", 1).documents(items[32:])).min() > 0.99


def test_every_convolution_runs_on_integers_in_onnxruntime(file: Path, items: list[str], tmp_path: Path) -> None:
    """CASES Q15: the residual addition too, which needs no stub."""
    plugins.load("backends", "onnxruntime")().export(static(choose.model(file), items), tmp_path)
    kinds = Counter(node.op_type for node in optimised(tmp_path).node)
    assert (kinds["QLinearConv"], kinds["Conv"], kinds["QLinearAdd"]) == (3, 0, 1)
    assert kinds["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_integers_of_kernels_are_those_of_the_artifact(
    file: Path, items: list[str], backend: str, tmp_path: Path
) -> None:
    model = static(choose.model(file), items)
    runtime = plugins.load("backends", backend)()
    runtime.export(model, tmp_path)
    stored = runtime.stored(tmp_path)
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        assert np.array_equal(stored[layer.weight], tensor.integers)


def test_results_of_convolutions_have_a_range_after_their_activation(file: Path, items: list[str]) -> None:
    model = static(choose.model(file), items)
    ranges = {name: how for name, how in model.activations.items() if name.endswith(OUTPUT_RANGE)}
    assert len(ranges) == 3
    first, deep, last = (ranges[layer.weight + OUTPUT_RANGE] for layer in model.layers[:3])
    assert first.zero_point == last.zero_point == 0, "nothing is below zero after a Relu"
    assert deep.zero_point > 0, "this one is added before its Relu"


def test_dynamic_rounding_is_for_linear_layers_alone(file: Path, items: list[str]) -> None:
    model = plugins.load("methods", "quantize.weights_int")().apply(choose.model(file), None)
    dynamic = plugins.load("methods", "quantize.activations_int")(mode="dynamic")
    assert list(dynamic.apply(model, None).activations) == [model.layers[3].weight]
    only = plugins.load("methods", "quantize.weights_int")(layers=("convolution",)).apply(choose.model(file), None)
    with pytest.raises(NoEffect, match="no linear layer has integer weights"):
        dynamic.apply(only, None)


# ---------------------------------------------------------------- recurrent layers, branches


def recurrent(kind: str) -> onnx.ModelProto:
    """x [sequence, batch, 6] -> the last state [batch, 5] of a recurrent layer inside the branches of an If."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    generator = np.random.default_rng(2)

    def branch(name: str, factor: float) -> onnx.GraphProto:
        tensors = [
            numpy_helper.from_array((generator.normal(size=shape) * factor).astype(np.float32), label)
            for label, shape in (("W", (1, gates * 5, 6)), ("R", (1, gates * 5, 5)), ("B", (1, gates * 10)))
        ]
        constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
        layer = helper.make_node(kind, ["x", "W", "R", "B"], ["", f"{name}.state"], hidden_size=5)
        axes = numpy_helper.from_array(np.array([0]), f"{name}.axes")
        squeeze = helper.make_node("Squeeze", [f"{name}.state", f"{name}.axes"], [f"{name}.out"])
        output = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)
        return helper.make_graph([*constants, layer, squeeze], name, [], [output], [axes])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["embedding"], then_branch=branch("one", 0.5), else_branch=branch("two", 0.9)
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 6])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_onnxruntime(made: onnx.ModelProto, items: list[str]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(made.SerializeToString())
    vectors = np.concatenate([session.run(None, {"x": np.load(item)[:, None, :]})[0] for item in items])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_in_branches_are_layers_and_their_file_shrinks(kind: str, tmp_path: Path) -> None:
    """CASES Q3: a whole layer inside each branch of an If."""
    made = recurrent(kind)
    onnx.save(made, tmp_path / "m.onnx")
    generator = np.random.default_rng(3)
    items = []
    for number, shift in enumerate((1.0, -1.0, 1.0, -1.0)):
        np.save(tmp_path / f"{number}.npy", (generator.normal(size=(7, 6)) + shift).astype(np.float32))
        items.append(str(tmp_path / f"{number}.npy"))
    model = choose.model(tmp_path / "m.onnx")
    assert [layer.kind for layer in model.layers] == ["recurrent"] * 4, "W and R of both branches"

    def alone(encoder: choose.Encoder) -> np.ndarray:
        return np.concatenate([encoder.documents([item]) for item in items])  # the branch depends on the whole batch

    assert np.allclose(alone(choose.encoder(model, "m", 1)), by_onnxruntime(made, items), atol=1e-6)
    quantized = plugins.load("methods", "quantize.weights_int")().apply(model, None)
    for backend in BACKENDS:
        folder = tmp_path / backend
        found = packaged(quantized, backend, folder)
        assert cosines(alone(found), by_onnxruntime(made, items)).min() > 0.999, backend
        stored = {one.name: one for one in onnx.load(folder / "model.onnx").graph.initializer}
        assert sum(one.data_type == TensorProto.INT8 for one in stored.values()) >= 4, backend


def test_a_transposed_convolution_has_its_outputs_on_axis_one(tmp_path: Path) -> None:
    """CASES Q7: a scale for each output, whose axis is not the first."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    torch.onnx.export(network, (torch.zeros(2, 3, 4, 4),), tmp_path / "m.onnx", dynamo=False,
                      input_names=["x"], dynamic_axes={"x": {0: "N"}})  # fmt: skip
    model = choose.model(tmp_path / "m.onnx")
    assert (model.layers[0].kind, model.layers[0].axis) == ("convolution", 1)
    with torch.no_grad():
        network[0].weight[:, 0] *= 100  # one scale for all channels would lose the others
    quantized = plugins.load("methods", "quantize.weights_int")().apply(model, None)
    tensor = quantized.tensors[model.layers[0].weight]
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.scale.shape == (8, 1)
    assert np.abs(dequantize(tensor) - model.tensors[model.layers[0].weight]).max() < 0.01


# ---------------------------------------------------------------- items


def spec(*shape: int | str, dtype: str = "float32") -> ModelSpec:
    inputs = (TensorSpec(name="x", dtype=dtype, shape=("batch", *shape)),)
    return ModelSpec(family="onnx_array", modality="array", output="embedding", inputs=inputs, dim=2, normalised=True,
                     preprocess=None)  # fmt: skip


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: np.save(path, np.zeros((2, 3), np.float32)), r"holds \[2, 3\] for x; the model takes \[3, 'free'\]"),
    (lambda path: np.save(path, np.full((3, 4), np.nan, np.float32)), "NaN or infinite"),
    (lambda path: np.save(path, np.array([["a"] * 4] * 3)), "holds <U1"),
    (lambda path: path.write_bytes(b"\x93NUMPY"), "cannot be read as an array"),
    (lambda path: path.write_bytes(b""), "cannot be read as an array"),
    (lambda path: np.save(path, np.array([[{}] * 4] * 3), allow_pickle=True), "cannot be read as an array"),
    (lambda path: None, "cannot be read as an array"),
]


@pytest.mark.parametrize("bad", BAD, ids=[what for _, what in BAD])
def test_a_bad_item_is_named(bad: tuple[Callable[[Path], object], str], tmp_path: Path) -> None:
    path = tmp_path / "item.npy"
    bad[0](path)
    with pytest.raises(UsageError, match=bad[1]):
        ArrayInput(spec(3, "free")).rows([str(path)])


def test_named_arrays_and_integers_become_what_the_model_takes(tmp_path: Path) -> None:
    np.savez(tmp_path / "item.npz", x=np.arange(12, dtype=np.uint8).reshape(3, 4), other=np.zeros(2))
    batch = ArrayInput(spec(3, 4))([str(tmp_path / "item.npz")] * 2)
    assert batch["x"].dtype == np.float32
    assert np.array_equal(batch["x"], np.arange(12, dtype=np.float32).reshape(1, 3, 4).repeat(2, 0))
    np.savez(tmp_path / "other.npz", y=np.zeros(2))
    with pytest.raises(UsageError, match="has no array x; it has y"):
        ArrayInput(spec(3, 4)).rows([str(tmp_path / "other.npz")])


def test_a_collection_may_hold_arrays_and_only_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    np.save(folder / "a.npy", np.zeros(2))
    np.save(tmp_path / "outside.npy", np.zeros(2))
    (folder / "corpus.jsonl").write_text('{"_id": "d", "array": "a.npy"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "array": "a.npy"}\n{"_id": "r", "array": "a.npy"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\nr\td\t1\n")
    assert data.load(str(folder)).corpus == {"d": str(folder / "a.npy")}
    for bad, said in (("../outside.npy", "lies outside"), ("b.npy", "there is no file")):
        (folder / "corpus.jsonl").write_text(f'{{"_id": "d", "array": "{bad}"}}\n')
        with pytest.raises(UsageError, match=said):
            data.load(str(folder))


def test_a_graph_without_a_batch_or_a_vector_is_refused(tmp_path: Path) -> None:
    def made(shape: list[int | str], output: str) -> Path:
        graph = helper.make_graph(
            [helper.make_node(output, ["x"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx"
        )
        return tmp_path / "m.onnx"

    with pytest.raises(UsageError, match="no axis is free for a batch"):
        choose.model(made([1, 3], "Relu"))
    with pytest.raises(UsageError, match=r"gives y \[3, 2, 2\] for 3 items"):
        choose.model(made(["N", 2, 2], "Relu"))


@pytest.mark.skipif(not TINY.is_dir(), reason="the real tiny networks are not here (../shared/data)")
@pytest.mark.parametrize(
    "name", ["resnet8_cifar10", "mobilenetv1_025_vww96", "dscnn_kws12", "dscnn_wakeword_marvin", "mlp_autoencoder_ad01"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_tiny_networks_keep_their_vectors_in_a_third_of_the_bytes(name: str, backend: str, tmp_path: Path) -> None:
    path = TINY / "tinymodels" / f"{name}.onnx"
    items = [f"random:{seed}" for seed in range(64)]
    original = choose.model(path)
    deploy.write(static(original, items[:32]), backend, tmp_path, texts=items[32:], threads=1)
    found = choose.choose(tmp_path, 1).documents(items[32:])
    assert cosines(choose.encoder(original, "float", 1).documents(items[32:]), found).mean() > 0.99
    assert (tmp_path / "model.onnx").stat().st_size < 0.37 * path.stat().st_size


@pytest.mark.skipif(not TINY.is_dir(), reason="the hostile real network is not here (../shared/data)")
def test_a_network_with_weights_in_branches_shrinks(tmp_path: Path) -> None:
    """CASES Q3: the file that grows elsewhere."""
    path = TINY / "silero_vad" / "silero_vad_16k_op15.onnx"
    model = plugins.load("methods", "quantize.weights_int")().apply(choose.model(path), None)
    deploy.write(model, "onnxruntime", tmp_path, threads=1)
    assert (tmp_path / "model.onnx").stat().st_size < 0.6 * path.stat().st_size
    items = [f"random:{seed}" for seed in range(8)]
    before, after = (choose.choose(source, 1).documents(items) for source in (path, tmp_path))
    assert np.abs(before - after).max() < 0.01, "a probability"
