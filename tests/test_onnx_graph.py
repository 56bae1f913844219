"""The onnx_graph family against torch, against arithmetic by hand, and against files that are not what they say."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from transformers import BertModel

from slimseek import artifact, choose, deploy, plugins
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.text import TOKENIZER, TextInput
from slimseek.integers import dequantize
from slimseek.models.onnx_graph import GRAPH, OnnxGraph
from slimseek.schema import Array, Batch, Model, QuantizedTensor, Samples
from small import BACKENDS, SPECIAL, tiny_bert, tiny_tokenizer

TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
SHAPES = [(1, 3), (3, 17), (8, 64)]
VOCABULARY, WIDTH, DIM = 86, 8, 6
SHARED = Path(__file__).parents[2] / "shared" / "data"
Edit = Callable[[onnx.ModelProto], object]


class _Named(torch.nn.Module):
    """BERT with inputs by name and both outputs, and what sentence-transformers makes of them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids, attention_mask, token_type_ids):  # type: ignore[no-untyped-def]
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        keep = attention_mask[..., None].float()
        pooled = (found.last_hidden_state * keep).sum(1) / keep.sum(1)
        return found.last_hidden_state, found.pooler_output, torch.nn.functional.normalize(pooled, dim=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "tiny"
    tiny_bert(path)
    return path


@pytest.fixture(scope="module")
def network(folder: Path) -> torch.nn.Module:
    return BertModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def whole(network: torch.nn.Module) -> bytes:
    """Tokens, pooler output and ``sentence_embedding`` in opset 14, as most files on the web are."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Named(network).eval(),
            (ids, (ids > 0).long(), torch.zeros_like(ids)),
            stream,
            dynamo=False,
            opset_version=14,
            input_names=names,
            output_names=["last_hidden_state", "pooler_output", "sentence_embedding"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]},
        )
    return stream.getvalue()


@pytest.fixture(scope="module")
def exported(whole: bytes) -> bytes:
    """The same without ``sentence_embedding``: what exporters make of a bare encoder."""
    bare = onnx.ModelProto.FromString(whole)
    del bare.graph.output[2]
    return bare.SerializeToString()


@pytest.fixture(scope="module")
def place(folder: Path, exported: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the web: tokenizer and configuration above, the graph in ``onnx/``."""
    path = tmp_path_factory.mktemp("graph") / "tiny"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(exported)
    return path


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return choose.model(place)


def batch_of(rows: int, length: int) -> Batch:
    """Random tokens; every second row ends in padding."""
    ids = np.random.default_rng(0).integers(4, VOCABULARY, (rows, length))
    mask = np.ones_like(ids)
    mask[1::2, length // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def hidden_of(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return network(**{name: torch.from_numpy(array) for name, array in batch.items()}).last_hidden_state


def bag(*, opset: int = 17, tokens: bool = False, edit: Edit = lambda model: None) -> onnx.ModelProto:
    """A small encoder by hand: rows of a table, their mean, a Gemm with a transposed weight; or the rows themselves."""
    random = np.random.default_rng(1)
    weights = {
        "table": random.standard_normal((VOCABULARY, WIDTH)),
        "dense": random.standard_normal((DIM, WIDTH)),
        "bias": random.standard_normal(DIM),
    }
    shape = np.array([0, 1, -1], np.int64), np.array([0, -1, 1], np.int64), np.array([0, WIDTH], np.int64)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], name="embed"),
        helper.make_node("Cast", ["attention_mask"], ["keep"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["keep", "as_row"], ["row"]),
        helper.make_node("Reshape", ["keep", "as_column"], ["column"]),
        helper.make_node("MatMul", ["row", "rows"], ["sum"]),
        helper.make_node("MatMul", ["row", "column"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Reshape", ["mean", "as_vector"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "dense", "bias"], ["out"], name="project", transB=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    output = ("rows", ["b", "s", WIDTH]) if tokens else ("out", ["b", DIM])
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants += [
        numpy_helper.from_array(value, name)
        for name, value in zip(("as_row", "as_column", "as_vector"), shape, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])]
    graph = helper.make_graph(nodes, "bag", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    edit(made)
    return made


def written(folder: Path, graph: onnx.ModelProto | bytes) -> Path:
    """The file ``encoder.onnx`` with the tiny tokenizer and a length beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER).write_bytes(tiny_tokenizer())
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    path = folder / "encoder.onnx"
    path.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
    return path


def by_hand(texts: list[str]) -> Array:
    """What ``bag`` gives, by numpy, at length one."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in bag().graph.initializer}
    rows = [row.ids for row in Tokenizer.from_buffer(tiny_tokenizer()).encode_batch(texts)]
    vectors = np.stack([weights["table"][row].mean(0) @ weights["dense"].T + weights["bias"] for row in rows])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def refused(path: Path) -> str:
    """The one line that ``choose`` refuses the path with."""
    with pytest.raises(UsageError) as caught:
        choose.model(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_run_equals_torch_at_every_shape(model: Model, network: torch.nn.Module, rows: int, length: int) -> None:
    batch = batch_of(rows, length)
    keep = torch.from_numpy(batch["attention_mask"])[..., None].float()
    expected = torch.nn.functional.normalize((hidden_of(network, batch) * keep).sum(1) / keep.sum(1), dim=-1).numpy()
    assert np.allclose(OnnxGraph().run(model, 1)(batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "similarity", "reduce"),
    [
        ("cls", "cosine", lambda hidden, mask: hidden[:, 0]),
        ("mean", "dot", lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1)),
        ("max", "cosine", lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1)),
        ("lasttoken", "dot", lambda hidden, mask: hidden[torch.arange(len(hidden)), mask.sum((1, 2)) - 1]),
    ],
)
def test_pooling_beside_the_graph_is_appended(
    place: Path, network: torch.nn.Module, tmp_path: Path, mode: str, similarity: str, reduce: Callable[..., Any]
) -> None:
    shutil.copytree(place, tmp_path / "m")
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": similarity}))
    modules = json.loads((tmp_path / "m" / "modules.json").read_text())
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = choose.choose(tmp_path / "m", 1)
    batch = batch_of(3, 17)
    expected = reduce(hidden_of(network, batch), torch.from_numpy(batch["attention_mask"])[..., None])
    if similarity == "cosine":
        expected = torch.nn.functional.normalize(expected, dim=-1)
    assert np.allclose(encoder.encode(batch), expected.numpy(), atol=1e-5)
    assert encoder.spec.normalised == (similarity == "cosine")


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("mode", ["max", "lasttoken"])
def test_pooling_is_valid_in_old_and_new_opsets(tmp_path: Path, opset: int, mode: str) -> None:
    path = written(tmp_path, bag(opset=opset, tokens=True))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    encoder = choose.choose(path, 1)
    table = numpy_helper.to_array(bag().graph.initializer[0])
    rows = [table[row] for row in encoder.input.rows(TEXTS)]
    expected = np.stack([row.max(0) if mode == "max" else row[-1] for row in rows])
    assert cosines(encoder.documents(TEXTS), expected).min() > 0.999999


def test_tokens_without_a_pooling_file_are_never_averaged_by_guess(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "m")
    (tmp_path / "m" / "modules.json").unlink()
    shutil.rmtree(tmp_path / "m" / "1_Pooling")
    assert "1_Pooling/config.json" in refused(tmp_path / "m")


def test_a_graph_that_ends_before_a_dense_module_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "m")
    modules = json.loads((tmp_path / "m" / "modules.json").read_text())
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    assert "3_Dense" in refused(tmp_path / "m")


def test_a_graph_that_gives_the_vector_needs_no_pooling_file(folder: Path, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vector"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors", "modules.json", "1_Pooling"))
    (path / "model.onnx").write_bytes(whole)
    opened = choose.choose(path, 1)
    assert opened.model is not None
    assert opened.spec.family == "onnx_graph"
    assert cosines(opened.documents(TEXTS), choose.choose(folder, 1).documents(TEXTS)).min() > 0.999999
    assert sum(layer.kind == "linear" for layer in opened.model.layers) == 12


def test_a_small_graph_equals_arithmetic_by_hand(tmp_path: Path) -> None:
    encoder = choose.choose(written(tmp_path, bag()), 1)
    assert np.allclose(encoder.documents(TEXTS), by_hand(TEXTS), atol=1e-6)
    assert encoder.model is not None
    assert [(layer.kind, layer.weight, layer.axis) for layer in encoder.model.layers] == [
        ("embedding", "table", 0),
        ("linear", "dense", 0),
    ]
    assert encoder.spec.dim == DIM
    assert encoder.spec.preprocess.token_table == "table"
    assert encoder.spec.preprocess.max_length == 32
    assert OnnxGraph().macs(encoder.model, 10) == 10 * DIM * WIDTH


def test_layers_and_what_is_left_out(model: Model) -> None:
    kinds = [layer.kind for layer in model.layers]
    assert (kinds.count("linear"), kinds.count("embedding")) == (12, 3)
    assert all(layer.axis == 1 for layer in model.layers if layer.kind == "linear")
    assert not any("pooler" in name for name in model.tensors), "the vector does not need the pooler"
    assert model.spec.preprocess.token_table == "network.embeddings.word_embeddings.weight"
    assert model.parameters == sum(tensor.size for tensor in model.tensors.values())  # type: ignore[union-attr]
    assert len(model.files[GRAPH]) < 60_000, "the weights are not in the graph"


def with_int32_inputs(made: onnx.ModelProto) -> None:
    for value in made.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32


def with_constant_nodes(made: onnx.ModelProto) -> None:
    """Weights as Constant nodes, the Gemm's one behind a Transpose, a ``#`` in a name."""
    for tensor in list(made.graph.initializer):
        made.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del made.graph.initializer[:]
    gemm = made.graph.node[-1]
    made.graph.node.insert(len(made.graph.node) - 1, helper.make_node("Transpose", ["dense"], ["dense#T"], perm=[1, 0]))
    gemm.input[1] = "dense#T"
    del gemm.attribute[:]


def with_half_precision(made: onnx.ModelProto) -> None:
    """As converters to float16 leave it: everything in half precision."""
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in made.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = TensorProto.FLOAT16
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def with_defaults_as_inputs(made: onnx.ModelProto) -> None:
    """Before IR version 4 every initializer was an input as well."""
    made.ir_version = 3
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def with_an_output_called_vector(made: onnx.ModelProto) -> None:
    made.graph.node[-1].output[0] = made.graph.output[0].name = "vector"
    made.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["b", WIDTH]))


@pytest.mark.parametrize(
    ("edit", "atol"),
    [
        (with_int32_inputs, 1e-6),
        (with_constant_nodes, 1e-6),
        (with_half_precision, 1e-2),
        (with_defaults_as_inputs, 1e-6),
        (with_an_output_called_vector, 1e-6),
    ],
)
def test_every_way_of_writing_the_graph_is_the_same_model(tmp_path: Path, edit: Edit, atol: float) -> None:
    encoder = choose.choose(written(tmp_path, bag(edit=edit)), 1)
    assert np.allclose(encoder.documents(TEXTS), by_hand(TEXTS), atol=atol)
    assert encoder.model is not None
    assert [layer.kind for layer in encoder.model.layers] == ["embedding", "linear"]
    graph = OnnxGraph().to_onnx(encoder.model)
    onnx.checker.check_model(graph)
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(["vector"], encoder.input(TEXTS))[0]
    assert found.dtype == np.float32
    assert np.allclose(found, by_hand(TEXTS), atol=atol)


def test_half_precision_is_stored_in_half_precision(tmp_path: Path) -> None:
    opened = choose.model(written(tmp_path, bag(edit=with_half_precision)))
    assert {tensor.dtype for tensor in opened.tensors.values()} == {np.dtype(np.float16)}  # type: ignore[union-attr]


def weights(**parameters: object) -> Callable[[Model], Model]:
    return lambda given: plugins.load("methods", "quantize.weights_int")(**parameters).apply(given, SAMPLES)


def inputs(mode: str) -> Callable[[Model], Model]:
    return lambda given: plugins.load("methods", "quantize.activations_int")(mode=mode).apply(given, SAMPLES)


FORMS: dict[str, tuple[tuple[Callable[[Model], Model], ...], float]] = {
    "int8 channel": ((weights(),), 0.9999),
    "int8 group": ((weights(granularity="group", group_size=16),), 0.9999),
    "int4 channel": ((weights(bits=4),), 0.9999),
    "int4 group": ((weights(bits=4, granularity="group", group_size=16),), 0.9999),
    "int8 static": ((weights(), inputs("static")), 0.99),
    "int8 dynamic": ((weights(), inputs("dynamic")), 0.99),
    "int4 group static": ((weights(bits=4, granularity="group", group_size=16), inputs("static")), 0.99),
    "int4 channel dynamic": ((weights(bits=4), inputs("dynamic")), 0.99),
}


@pytest.mark.parametrize("form", FORMS)
def test_packages_give_the_vectors_of_run_and_hold_the_integers(model: Model, form: str, tmp_path: Path) -> None:
    changed = model
    for step in FORMS[form][0]:
        changed = step(changed)
    reference = choose.encoder(changed, form, 1).documents(TEXTS)
    assert cosines(reference, choose.encoder(model, "original", 1).documents(TEXTS)).min() > 0.9
    for name in BACKENDS:
        backend = plugins.load("backends", name)()
        (tmp_path / name).mkdir()
        backend.export(changed, tmp_path / name)
        package = choose.assemble(
            name, changed.spec, changed.files, backend.open(tmp_path / name, 1), shipped={}, runtime=name, threads=1
        )
        assert cosines(reference, package.documents(TEXTS)).min() >= FORMS[form][1], name
        stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / name / "model.onnx").graph.initializer}
        floats = {tensor for tensor, made in stored.items() if made.data_type == TensorProto.FLOAT}
        assert not floats & {
            weight for weight, tensor in changed.tensors.items() if isinstance(tensor, QuantizedTensor)
        }, "a quantized weight is still stored as float"


def test_static_rounding_is_that_of_the_formula(tmp_path: Path) -> None:
    """The one linear layer of ``bag``, its input rounded by hand."""
    opened = choose.model(written(tmp_path, bag()))
    rounded = inputs("static")(weights()(opened))
    how = rounded.activations["dense"]
    tensors = {name: dequantize(tensor) for name, tensor in rounded.tensors.items()}
    rows = TextInput(opened.spec, opened.files[TOKENIZER]).rows(TEXTS)
    pooled = np.stack([tensors["table"][row].mean(0) for row in rows])
    pooled = (np.clip(np.rint(pooled / how.scale) + how.zero_point, 0, 255) - how.zero_point) * how.scale
    expected = pooled @ tensors["dense"].T + tensors["bias"]
    assert cosines(choose.encoder(rounded, "x", 1).documents(TEXTS), expected).min() > 0.99999


def test_observe_shows_the_inputs_of_linear_layers_without_padding(model: Model, network: torch.nn.Module) -> None:
    batch = batch_of(3, 17)
    seen: dict[str, Array] = {}
    OnnxGraph().observe(model, [batch], lambda name, values: seen.update({name: values}))
    assert set(seen) == {layer.weight for layer in model.layers if layer.kind == "linear"}
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        embedded = network.embeddings(tensors["input_ids"], token_type_ids=tensors["token_type_ids"])
    query = next(layer.weight for layer in model.layers if "layer.0/attention/self/query" in layer.name)
    assert np.allclose(seen[query], embedded[batch["attention_mask"] > 0].numpy(), atol=1e-5)


def test_an_artifact_reads_back_equal(model: Model, tmp_path: Path) -> None:
    changed = inputs("dynamic")(weights(bits=4, granularity="group", group_size=16)(model))
    artifact.write(changed, tmp_path)
    found = choose.model(tmp_path)
    assert (found.spec, found.files, found.layers) == (changed.spec, changed.files, changed.layers)
    assert found.activations == changed.activations
    vectors = [choose.encoder(one, "x", 1).documents(TEXTS) for one in (changed, found)]
    assert np.array_equal(*vectors)


def test_saved_it_is_an_ordinary_model_again(model: Model, tmp_path: Path) -> None:
    changed = weights()(model)
    OnnxGraph().save(changed, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.onnx", TOKENIZER, "config.json"} <= names
    assert GRAPH not in names
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    again = choose.choose(tmp_path, 1)
    assert np.allclose(again.documents(TEXTS), choose.encoder(changed, "x", 1).documents(TEXTS), atol=1e-5)
    assert again.model is not None
    assert again.model.layers == model.layers


def test_a_vocabulary_cut_keeps_the_vectors(model: Model) -> None:
    texts = ["the cat", "winter"]
    cut = plugins.load("methods", "simplify.vocabulary")().apply(model, Samples(calibration=texts, texts=texts))
    table = model.spec.preprocess.token_table
    assert table is not None
    assert cut.tensors[table].shape[0] < model.tensors[table].shape[0]
    before, after = (choose.encoder(one, "x", 1).documents([*texts, "cat the"]) for one in (model, cut))
    assert np.allclose(before, after, atol=1e-6)
    graph = OnnxGraph().to_onnx(cut)
    assert {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}[table] == cut.tensors[table].shape


def ids_compared_with(number: int, kind: str = "Equal") -> Edit:
    def edit(made: onnx.ModelProto) -> None:
        made.graph.initializer.append(numpy_helper.from_array(np.array(number), "number"))
        made.graph.node.insert(0, helper.make_node(kind, ["input_ids", "number"], ["compared"]))
        made.graph.node.insert(1, helper.make_node("Cast", ["compared"], ["as_int"], to=TensorProto.INT64))
        made.graph.node.insert(2, helper.make_node("Add", ["attention_mask", "as_int"], ["mask_too"]))
        next(node for node in made.graph.node if "keep" in node.output).input[0] = "mask_too"

    return edit


def test_ids_used_as_numbers_forbid_a_vocabulary_cut_unless_no_cut_moves_them(tmp_path: Path) -> None:
    tokenizer = json.loads(tiny_tokenizer())
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer["added_tokens"] = [{"id": number, "content": name} | settings for number, name in enumerate(SPECIAL)]
    tables = {}
    for number, kind in ((0, "Equal"), (3, "Equal"), (4, "Equal"), (3, "Less")):
        path = written(tmp_path / f"{number}{kind}", bag(edit=ids_compared_with(number, kind)))
        (path.parent / TOKENIZER).write_text(json.dumps(tokenizer))
        tables[number, kind] = choose.model(path).spec.preprocess.token_table
    assert tables == {(0, "Equal"): "table", (3, "Equal"): "table", (4, "Equal"): None, (3, "Less"): None}


def test_a_quantized_graph_runs_and_has_no_layers(tmp_path: Path) -> None:
    """CASES Q16: it is measured, and no step claims to have quantized it."""
    from onnxruntime.quantization import quantize_dynamic

    plain = written(tmp_path / "plain", bag())
    quantize_dynamic(plain, tmp_path / "quantized.onnx")
    encoder = choose.choose(written(tmp_path / "q", (tmp_path / "quantized.onnx").read_bytes()), 1)
    assert encoder.model is not None
    assert encoder.model.layers == ()
    assert cosines(encoder.documents(TEXTS), by_hand(TEXTS)).min() > 0.99
    dtypes = {tensor.dtype for tensor in encoder.model.tensors.values() if not isinstance(tensor, QuantizedTensor)}
    assert dtypes & {np.dtype(np.int8), np.dtype(np.uint8)}, "its integers count as weights"
    with pytest.raises(UsageError, match="none of 0 layers"):
        weights()(encoder.model)


def test_weights_in_a_branch_are_layers(tmp_path: Path) -> None:
    def edit(made: onnx.ModelProto) -> None:
        twice = numpy_helper.from_array(np.eye(DIM, dtype=np.float32) * 2, "inside")
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then", "else")]
        product = helper.make_node("MatMul", ["out", "inside"], ["then"])
        then = helper.make_graph([product], "then", [], ends[:1], [twice])
        other = helper.make_graph([helper.make_node("Identity", ["out"], ["else"])], "else", [], ends[1:])
        made.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
        made.graph.node.extend([
            helper.make_node("Size", ["input_ids"], ["size"]),
            helper.make_node("Greater", ["size", "zero"], ["any"]),
            helper.make_node("If", ["any"], ["result"], then_branch=then, else_branch=other),
        ])  # fmt: skip
        made.graph.output[0].name = "result"

    encoder = choose.choose(written(tmp_path, bag(edit=edit)), 1)
    assert encoder.model is not None
    assert set(encoder.model.tensors) == {"table", "dense", "bias", "inside.1"}
    assert [layer.weight for layer in encoder.model.layers] == ["table", "dense", "inside.1"]
    assert np.allclose(encoder.documents(TEXTS), by_hand(TEXTS), atol=1e-6), "twice the vector, at length one"
    quantized = weights()(encoder.model)
    for backend in BACKENDS:
        (tmp_path / backend).mkdir()
        deploy.write(quantized, backend, tmp_path / backend, threads=1)
        assert cosines(choose.choose(tmp_path / backend, 1).documents(TEXTS), by_hand(TEXTS)).min() > 0.999


def test_integers_raise_the_opset_and_floats_leave_it(tmp_path: Path) -> None:
    opened = choose.model(written(tmp_path, bag(opset=12)))
    opsets = [OnnxGraph().to_onnx(one).opset_import[0].version for one in (opened, weights()(opened))]
    assert opsets == [12, 21]


def test_an_opset_that_cannot_be_raised_is_refused(tmp_path: Path) -> None:
    def edit(made: onnx.ModelProto) -> None:
        """An operator of opset 9 that onnx has no adapter for."""
        made.graph.node.append(helper.make_node("ThresholdedRelu", ["out"], ["end"], alpha=-100.0))
        made.graph.output[0].name = "end"

    opened = choose.model(written(tmp_path, bag(opset=9, edit=edit)))
    changed = weights()(opened)
    with pytest.raises(UsageError, match="export it again with opset 21"):
        OnnxGraph().to_onnx(changed)
    OnnxGraph().save(changed, tmp_path)
    (tmp_path / "encoder.onnx").unlink()
    found = choose.choose(tmp_path, 1).documents(TEXTS)
    assert np.allclose(found, choose.encoder(changed, "x", 1).documents(TEXTS), atol=1e-6), "floats need no opset"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (bag().SerializeToString()[:1500], "cut off"),
        (b"<html>not found</html>", "no ONNX"),
        (onnx.ModelProto(producer_name="nobody").SerializeToString(), "holds no graph"),
    ],
)
def test_files_that_hold_no_graph_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, content))


def frozen(axis: int) -> Edit:
    def edit(made: onnx.ModelProto) -> None:
        made.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 7

    return edit


def with_input(name: str) -> Edit:
    def edit(made: onnx.ModelProto) -> None:
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]))

    return edit


def with_input_called(name: str, new: str) -> Edit:
    def edit(made: onnx.ModelProto) -> None:
        for value in made.graph.input:
            value.name = new if value.name == name else value.name
        for node in made.graph.node:
            node.input[:] = [new if value == name else value for value in node.input]

    return edit


def with_output(name: str) -> Edit:
    def edit(made: onnx.ModelProto) -> None:
        made.graph.node[-1].output[0] = made.graph.output[0].name = name

    return edit


def with_two_vectors(made: onnx.ModelProto) -> None:
    made.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["b", WIDTH]))


def with_float_ids(made: onnx.ModelProto) -> None:
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT


def with_a_batch_of_two_inside(made: onnx.ModelProto) -> None:
    """Axes that are dynamic by name and fixed by a Reshape."""
    made.graph.initializer.append(numpy_helper.from_array(np.array([2, DIM]), "two"))
    made.graph.node.append(helper.make_node("Reshape", ["out", "two"], ["end"]))
    made.graph.output[0].name = "end"


def with_data_elsewhere(made: onnx.ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (frozen(0), "input_ids is frozen, batch at 7"),
        (frozen(1), "input_ids is frozen, sequence at 7"),
        (with_input("position_ids"), "position_ids"),
        (with_input_called("attention_mask", "mask"), "the inputs mask"),
        (with_input_called("input_ids", "token_type_ids"), "no input input_ids"),
        (with_output("pooler_output"), "pooler"),
        (with_output("logits"), "logits"),
        (with_two_vectors, "the outputs out, pooled"),
        (with_float_ids, "attention_mask as float"),
        (with_a_batch_of_two_inside, "cannot be run"),
        (with_data_elsewhere, "outside of its folder"),
    ],
)
def test_graphs_that_are_no_text_encoder_are_refused(tmp_path: Path, edit: Edit, message: str) -> None:
    assert message in refused(written(tmp_path, bag(edit=edit)))


def test_a_missing_tokenizer_and_a_missing_data_file_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a" / "b" / "c", bag())
    (path.parent / TOKENIZER).unlink()
    assert f"no {TOKENIZER}" in refused(path)
    path = written(tmp_path / "data", b"")
    onnx.save(bag(), path, save_as_external_data=True, location="encoder.data", size_threshold=0)
    assert np.allclose(choose.choose(path, 1).documents(TEXTS), by_hand(TEXTS), atol=1e-6)
    (path.parent / "encoder.data").unlink()
    assert "data file" in refused(path)


def test_a_text_longer_than_the_graph_takes_is_found_at_opening(tmp_path: Path) -> None:
    def edit(made: onnx.ModelProto) -> None:
        made.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 16, WIDTH), np.float32), "positions"))
        for name, value in (("one", [1]), ("two", [2]), ("none", [0])):
            made.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        made.graph.node.insert(1, helper.make_node("Shape", ["input_ids"], ["shape"]))
        made.graph.node.insert(2, helper.make_node("Slice", ["shape", "one", "two"], ["length"]))
        made.graph.node.insert(3, helper.make_node("Slice", ["positions", "none", "length", "one"], ["at"]))
        made.graph.node.insert(4, helper.make_node("Add", ["rows", "at"], ["placed"]))
        next(node for node in made.graph.node if "sum" in node.output).input[1] = "placed"

    path = written(tmp_path, bag(edit=edit))
    assert "max_seq_length" in refused(path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert np.allclose(choose.choose(path, 1).documents(TEXTS[:1]), by_hand(TEXTS[:1]), atol=1e-6)


def test_a_folder_is_recognised_by_its_one_graph(folder: Path, place: Path, tmp_path: Path) -> None:
    family = OnnxGraph()
    assert family.recognises(place)
    assert not family.recognises(folder), "safetensors belong to other families"
    (tmp_path / "model.onnx").write_bytes(bag().SerializeToString())
    assert not family.recognises(tmp_path / TOKENIZER)
    shutil.copy(tmp_path / "model.onnx", tmp_path / "other.onnx")
    assert family.recognises(tmp_path)
    written(tmp_path, bag())
    assert choose.model(tmp_path).spec.dim == DIM, "model.onnx is preferred"
    (tmp_path / "model.onnx").unlink()
    assert "encoder.onnx, other.onnx" in refused(tmp_path)


def test_opening_and_running_needs_no_torch(place: Path) -> None:
    script = (
        "import sys; from slimseek import choose; choose.choose(sys.argv[1], 1).documents(['the cat']);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(place)], check=True)
