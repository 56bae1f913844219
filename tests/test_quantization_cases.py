"""What broke in other libraries' quantization (CASES Q3 to Q28), each as the whole kind of fault and not one recipe.

Q4, Q8, Q13, Q18, Q20, Q22 and parts of others are tested where their code is: search the tests for ``CASES Q``.
"""

from __future__ import annotations

import dataclasses
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
from torch import nn
from transformers import GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from slimseek import choose, compress, pipeline, plugins
from slimseek.backends import _saturation
from slimseek.errors import NoEffect, SlimseekError, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import TEXTS
from slimseek.integers import dequantize
from slimseek.methods.quantize._ranges import Histogram
from slimseek.models._export import export
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import BACKENDS, CORPUS, optimised, packaged, tiny_bert, tiny_collection, tiny_model, tiny_tokenizer

INT8: tuple[tuple[str, dict[str, Any]], ...] = (("weights_int", {}), ("activations_int", {"mode": "static"}))
TEXT_SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
ESTIMATORS = ("minmax", "percentile", "mse", "entropy")


def noise(count: int, *shape: int, seed: int = 0) -> Callable[[Path], list[str]]:
    """Writes that many arrays of normal noise; returns their paths."""

    def write(folder: Path) -> list[str]:
        generator = np.random.default_rng(seed)
        return [saved(folder / f"{number}.npy", generator.normal(size=shape)) for number in range(count)]

    return write


def saved(path: Path, array: Array) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array.astype(np.float32))
    return str(path)


def exported(network: nn.Module, shape: tuple[int, ...], path: Path, free: tuple[int, ...] = ()) -> Path:
    """The network as torch exports it, with a free batch and other free axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {0: "N"} | {axis: f"free{axis}" for axis in free}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(2, *shape),), path, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": axes}, opset_version=17,
        )  # fmt: skip
    return path


def written(nodes: list[Any], constants: dict[str, Array], shape: tuple[int | str, ...], path: Path) -> Path:
    """A graph by hand from x [N, *shape] to ``embedding``."""
    graph = helper.make_graph(
        nodes, "by_hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def applied(model: Model, samples: Samples | list[str], *steps: tuple[str, dict[str, Any]]) -> Model:
    """The model after steps of ``quantize``."""
    given = samples if isinstance(samples, Samples) else Samples(calibration=samples, texts=samples)
    for name, parameters in steps:
        model = plugins.load("methods", f"quantize.{name}")(**parameters).apply(model, given)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="module")
def rounded(bert: Model) -> dict[str, Model]:
    """The same on integers, by mode."""
    return {mode: applied(bert, TEXT_SAMPLES, INT8[0], ("activations_int", {"mode": mode}))
            for mode in ("static", "dynamic")}  # fmt: skip


def vectors(model: Model, items: list[str]) -> Array:
    return choose.encoder(model, "reference", 1).documents(items)


def bytes_of(folder: Path) -> int:
    return (folder / "model.onnx").stat().st_size


# ---------------------------------------------------------------- what is reached


def nested(path: Path) -> Path:
    """x [N, 64]: a Loop of three turns whose body multiplies, and whose If chooses one of two more weights by turn."""
    generator = np.random.default_rng(0)

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(generator.normal(size=(64, 64)).astype(np.float32) / 8, "W")
        return helper.make_graph(
            [helper.make_node("MatMul", ["inner", "W"], [f"{name}.out"])], name, [],
            [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, None)], [weight],
        )  # fmt: skip

    weight = numpy_helper.from_array(generator.normal(size=(64, 64)).astype(np.float32) / 8, "W")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "W"], ["product"]),
            helper.make_node("Tanh", ["product"], ["inner"]),
            helper.make_node("Greater", ["turn", "one"], ["late"]),
            helper.make_node("If", ["late"], ["chosen"], then_branch=branch("late"), else_branch=branch("early")),
            helper.make_node("Add", ["chosen", "state"], ["next"]),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
        [weight, numpy_helper.from_array(np.array(1), "one")],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "x"], ["embedding"], body=body)
    return written([loop], {"turns": np.array(3), "yes": np.array(True)}, (64,), path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("parameters", "share", "least"),
    [({}, 0.4, 0.9995), ({"bits": 4, "granularity": "group", "group_size": 16}, 0.3, 0.98)],
)
def test_weights_inside_loops_and_ifs_shrink_the_file(
    backend: str, parameters: dict[str, Any], share: float, least: float, tmp_path: Path
) -> None:
    """CASES Q3: an If inside a Loop, all its weights called alike."""
    path, items = nested(tmp_path / "m.onnx"), noise(8, 64)(tmp_path)
    model = choose.model(path)
    assert [(layer.kind, model.tensors[layer.weight].shape) for layer in model.layers] == [("linear", (64, 64))] * 3
    session = onnxruntime.InferenceSession(path)
    plain = session.run(None, {"x": np.stack([np.load(item) for item in items])})[0]
    assert cosines(vectors(model, items), plain).min() > 0.999999
    changed = applied(model, items, ("weights_int", parameters))
    package = packaged(changed, backend, tmp_path / "package")
    assert bytes_of(tmp_path / "package") < share * path.stat().st_size
    assert cosines(package.documents(items), vectors(changed, items)).min() > 0.99999
    assert cosines(package.documents(items), plain).min() > least


class Gpt2Block(nn.Module):
    """A table, and two of GPT-2's Conv1D, whose weights are [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(86, 48)
        self.up, self.down = Conv1D(96, 48), Conv1D(48, 96)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=0.2)
            nn.init.normal_(layer.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.wte(input_ids)
        hidden = hidden + self.down(torch.nn.functional.gelu(self.up(hidden)))
        keep = attention_mask[..., None].float()
        return (hidden * keep).sum(1) / keep.sum(1)


def gpt2_graph(folder: Path) -> Path:
    """The block as an .onnx encoder with a tokenizer beside it."""
    torch.manual_seed(0)
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    names = ["input_ids", "attention_mask"]
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Gpt2Block().eval(), (ids, (ids > 0).long()), folder / "model.onnx", dynamo=False, input_names=names,
            output_names=["sentence_embedding"], opset_version=17,
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names},
        )  # fmt: skip
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer())
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    return folder


def gpt2_folder(folder: Path) -> Path:
    """A whole GPT-2 of transformers, mean-pooled, in the layout of sentence-transformers."""
    tiny_bert(folder)
    config = GPT2Config(
        vocab_size=96, n_embd=48, n_layer=1, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    torch.manual_seed(0)
    network = GPT2Model(config)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[(gpt2_graph, 2), (gpt2_folder, 4)], ids=["graph", "folder"])
def gpt2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model, int]:
    """The float model, the one on integers, and how many Conv1D there are."""
    made, count = request.param
    model = choose.model(made(tmp_path_factory.mktemp("gpt2") / "m"))
    return model, applied(model, TEXT_SAMPLES, *INT8), count


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_and_conv1d_get_smaller(gpt2: tuple[Model, Model, int], backend: str, tmp_path: Path) -> None:
    """CASES Q17: their weights lie the other way round, [in, out]."""
    model, changed, count = gpt2
    kinds = [(layer.kind, layer.axis) for layer in model.layers]
    assert kinds.count(("linear", 1)) == count, "[in, out]"
    assert ("embedding", 0) in kinds
    weights = [changed.tensors[layer.weight] for layer in changed.layers]
    assert all(isinstance(weight, QuantizedTensor) for weight in weights), "N of N are quantized, not 0"
    assert set(changed.activations) == {layer.weight for layer in changed.layers if layer.kind == "linear"}
    package = packaged(changed, backend, tmp_path)
    assert bytes_of(tmp_path) < 0.45 * 4 * model.parameters
    assert cosines(package.documents(TEXTS), vectors(changed, list(TEXTS))).min() > 0.99
    assert cosines(package.documents(TEXTS), vectors(model, list(TEXTS))).min() > 0.99


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_float_model_before_them_runs_too(gpt2: tuple[Model, Model, int], backend: str, tmp_path: Path) -> None:
    """CASES Q17: a rewriter fuses GPT-2's attention into one of another rank, which the Gemm behind it refuses."""
    found = packaged(gpt2[0], backend, tmp_path).documents(TEXTS)
    assert cosines(found, vectors(gpt2[0], list(TEXTS))).min() > 0.9999


# ---------------------------------------------------------------- nothing is claimed that was not done


def without_layers(path: Path) -> Path:
    """x [N, 4]: nothing but a sum."""
    return written([helper.make_node("Add", ["x", "b"], ["embedding"])], {"b": np.ones(4, np.float32)}, (4,), path)


def quantized_before(path: Path) -> Path:
    """Weights that onnxruntime has quantized already."""
    from onnxruntime.quantization import quantize_dynamic

    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    written([helper.make_node("MatMul", ["x", "W"], ["embedding"])], {"W": weight}, (8,), path.with_name("plain.onnx"))
    quantize_dynamic(path.with_name("plain.onnx"), path)
    return path


@pytest.mark.parametrize("method", [name for name in plugins.names("methods") if name.startswith("quantize.")])
@pytest.mark.parametrize("made", [without_layers, quantized_before])
def test_a_step_that_quantizes_nothing_is_refused(method: str, made: Callable[[Path], Path], tmp_path: Path) -> None:
    """CASES Q16: never the float model under the name of an integer one; alone and in a recipe."""
    model = choose.model(made(tmp_path / "m.onnx"))
    items = [f"random:{seed}" for seed in range(8)]
    samples = Samples(calibration=items, texts=items)
    parameters = {"format": "e4m3"} if method == "quantize.float" else {}
    if method == "quantize.mixed":
        parameters = {"size": 1}
    with pytest.raises(UsageError) as refused:
        plugins.load("methods", method)(**parameters).apply(model, samples)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError):
        compress.run(model, Recipe(steps=(RecipeStep(method=method, parameters=parameters),)), samples)


@pytest.mark.parametrize("parameters", [{"skip": ("",)}, {"layers": ()}, {"layers": ("recurrent",)}])
def test_settings_that_leave_nothing_to_quantize_are_refused(parameters: dict[str, Any], tmp_path: Path) -> None:
    """CASES Q16: everything skipped."""
    tiny_bert(tmp_path)
    with pytest.raises(NoEffect, match=r"quantize\.weights_int"):
        applied(choose.model(tmp_path), TEXT_SAMPLES, ("weights_int", parameters))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_the_export_changed_is_never_shipped_as_float(
    rounded: dict[str, Model], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES Q16: an exporter that folds a factor into a weight would leave its integers unused."""
    model = rounded["static"]
    family = plugins.load("models", "transformer")
    plain = family.to_onnx
    name = next(layer.weight for layer in model.layers if layer.kind == "linear")

    def folding(self: Any, given: Model) -> Any:
        graph = plain(self, given)
        for tensor in graph.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), "folded"))
        for node in graph.graph.node:
            node.input[:] = ["folded" if value == name else value for value in node.input]
        return graph

    monkeypatch.setattr(family, "to_onnx", folding)
    with pytest.raises(SlimseekError, match=f"{name} under another name"):
        packaged(model, backend, tmp_path / "package")


def test_a_network_that_cannot_be_traced_is_refused_in_one_line(bert: Model) -> None:
    """CASES Q16: which branch it takes depends on its input; nothing is returned that was not exported."""

    class Choosing(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            values = (input_ids * attention_mask).float()
            return values * 2 if values.sum() > 7 else values.mean(1, keepdim=True)

    ids = torch.ones((2, 5), dtype=torch.int64)
    with pytest.raises(UsageError, match="PyTorch cannot export") as refused:
        export(Choosing(), {"input_ids": ids, "attention_mask": ids}, bert.spec, {})
    assert "\n" not in str(refused.value)


def fused(path: Path) -> Path:
    """A layer of a text encoder as ONNX Runtime's optimizer leaves it: EmbedLayerNormalization and Attention."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return generator.normal(size=shape).astype(np.float32)

    constants = {
        "words": normal(86, 16), "places": normal(64, 16), "gain": np.ones(16, np.float32),
        "shift": np.zeros(16, np.float32), "qkv": normal(16, 48) / 4, "bias": normal(48), "out": normal(16, 16),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32),
        helper.make_node(
            "EmbedLayerNormalization", ["ids", "", "words", "places", "", "gain", "shift", "mask"],
            ["hidden", "mask_index"], domain="com.microsoft", epsilon=1e-5,
        ),
        helper.make_node(
            "Attention", ["hidden", "qkv", "bias", "mask"], ["attended"], domain="com.microsoft", num_heads=2
        ),
        helper.make_node("MatMul", ["attended", "out"], ["projected"]),
        helper.make_node("ReduceMean", ["projected"], ["sentence_embedding"], axes=[1], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "fused",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
         for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path / "model.onnx")
    (path / "tokenizer.json").write_bytes(tiny_tokenizer())
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    return path


def test_weights_in_fused_operators_are_named_with_what_reads_them(tmp_path: Path) -> None:
    """CASES Q28: the graph is fused for ONNX Runtime, so that most of its weights belong to no layer."""
    model = choose.model(fused(tmp_path))
    step = plugins.load("methods", "quantize.weights_int")()
    changed = step.apply(model, TEXT_SAMPLES)
    assert [name for name, tensor in changed.tensors.items() if isinstance(tensor, QuantizedTensor)] == ["out"]
    [note] = [note for note in step.notes(model, changed) if "stay float" in note]
    for name, reader in (("words", "EmbedLayerNormalization"), ("places", "EmbedLayerNormalization"),
                         ("qkv", "Attention")):  # fmt: skip
        assert f"{name} (" in note
        assert f"read by com.microsoft.{reader}" in note.partition(f"{name} (")[2].partition(")")[0]
    assert "export it without" in note
    only = dataclasses.replace(model, layers=())
    with pytest.raises(NoEffect, match=r"com\.microsoft\.EmbedLayerNormalization"):
        step.apply(only, TEXT_SAMPLES)


@pytest.mark.parametrize("method", ["weights_int", "float"])
def test_large_tensors_that_are_no_layers_are_named_and_small_ones_not(method: str, tmp_path: Path) -> None:
    """CASES Q17: what stays float is said, with its share of the bytes; biases and norms are meant to."""
    generator = np.random.default_rng(0)
    constants = {
        "W": generator.normal(size=(32, 16)), "positions": generator.normal(size=(1, 16)),
        "large": generator.normal(size=(8, 32)), "tiny": generator.normal(size=(2, 1)) + np.zeros((1, 1)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "large"], ["moved"]),
        helper.make_node("ReduceMean", ["moved"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "W"], ["product"]),
        helper.make_node("Add", ["product", "positions"], ["embedding"]),
    ]
    floats = {name: value.astype(np.float32) for name, value in constants.items()}
    model = choose.model(written(nodes, floats, (8, 32), tmp_path / "m.onnx"))
    step = plugins.load("methods", f"quantize.{method}")(**({"format": "e4m3"} if method == "float" else {}))
    items = [f"random:{seed}" for seed in range(4)]
    changed = step.apply(model, Samples(calibration=items, texts=items))
    share = floats["large"].nbytes / compress.weight_bytes(changed)
    notes = [note for note in step.notes(model, changed) if "float" in note]
    assert notes == [
        f"stay float, since they are the weight of no layer: large ({share:.0%} of the bytes, read by Add)"
    ]


# ---------------------------------------------------------------- what integers compute


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_padding_does_not_change_a_text(rounded: dict[str, Model], mode: str, backend: str, tmp_path: Path) -> None:
    """CASES Q5: padded to 16, 64 and 128 tokens, which is all the positions there are."""
    changed = rounded[mode]
    texts = [*CORPUS.values(), "stone"]
    for encoder in (choose.encoder(changed, "reference", 1), packaged(changed, backend, tmp_path)):
        rows = encoder.input.rows(texts)
        rows = [row for row in rows if len(row) <= 16]
        assert len(rows) > 2
        found = [encoder.encode(encoder.input.batch(rows, width)) for width in (16, 64, 128)]
        for other in found[1:]:
            assert cosines(found[0], other).min() >= 0.999
            assert np.abs(found[0] - other).max() < 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("saturates", [False, True])
def test_sums_of_a_thousand_products_at_the_ends_of_the_range(
    kind: str, bits: int, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES Q6, S6: K = 1024, weights of 127 and -127, inputs of 255, and what is stored for a CPU that saturates."""
    if not saturates and _saturation.saturates():
        pytest.skip("this CPU saturates: what is written for the others is not for it")
    generator = np.random.default_rng(0)
    # Pairs of weights (1, k / 7): sums of two products, from what sixteen bits hold to twice as much.
    weights = np.ones((8, 1024))
    weights[:, 1::2] = np.arange(0, 8)[:, None] / 7
    layer: nn.Module = nn.Linear(1024, 8) if kind == "linear" else nn.Conv2d(64, 8, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights.reshape(layer.weight.shape) / 64))
        layer.bias.zero_()
    shape: tuple[int, ...] = (1024,) if kind == "linear" else (64, 4, 4)
    # A convolution's result is rounded as well, where something reads it.
    network = nn.Sequential(layer, nn.Hardtanh(-100, 100), nn.Flatten())
    items = []
    for number in range(8):
        values = generator.uniform(0.97, 1.0, size=shape)
        values.flat[0] = 1.0
        items.append(saved(tmp_path / f"{number}.npy", values))
    parameters = {"bits": bits, "granularity": "channel", "scaling": "max"}
    changed = applied(choose.model(exported(network, shape, tmp_path / "m.onnx")), items,
                      ("weights_int", parameters), INT8[1])  # fmt: skip
    weight = changed.layers[0].weight
    rounded = np.rint(np.stack([np.load(item) for item in items]).reshape(8, -1) * 255)
    exact = rounded @ weights.T
    monkeypatch.setattr(_saturation, "saturates", lambda: saturates)
    found = packaged(changed, "onnxruntime", tmp_path / "package").documents(items)
    assert cosines(found, exact).min() > 0.9999
    pairs = (rounded[:, None] * np.rint(weights * 127)).reshape(8, 8, 512, 2).sum(-1)
    saturated = np.minimum(pairs, 2**15 - 1).sum(-1)
    assert cosines(saturated, exact).max() < 0.98, "the case is one where saturation shows"
    stored = {one.name: one for one in onnx.load(tmp_path / "package" / "model.onnx").graph.initializer}
    kinds = {stored[name].data_type for name in stored if name in (f"{weight}.zero_point", f"{weight}.int8_zero_point")}
    own = [stored[name] for name in stored if name in (f"{weight}.integers", f"{weight}.integers.T")]
    # A convolution's four bits run as they are where pairs cannot overflow; a product's are widened under another name.
    assert len(own) == (bits == 8 or (kind == "convolution" and not saturates))
    kinds |= {one.data_type for one in own}
    if saturates:
        assert kinds == {TensorProto.UINT8}
    else:
        assert TensorProto.UINT8 not in kinds


def test_a_convolution_of_unsigned_integers_still_runs_on_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES Q6: the way around saturation must not fall back to floats."""
    monkeypatch.setattr(_saturation, "saturates", lambda: True)
    items = noise(8, 3, 8, 8)(tmp_path)
    model = choose.model(exported(residual(), (3, 8, 8), tmp_path / "m.onnx"))
    packaged(applied(model, items, *INT8), "onnxruntime", tmp_path / "package")
    kinds = [node.op_type for node in optimised(tmp_path / "package").node]
    assert kinds.count("QLinearConv") == 5
    assert "Conv" not in kinds


class Residual(nn.Module):
    """Two residual blocks, the second with a projection on its way around; no stubs, no FloatFunctional."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.around = nn.Conv2d(8, 16, 1, stride=2)
        self.last = nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = torch.relu(self.first(x))
        two = torch.relu(one + self.second(one))
        three = torch.relu(self.around(two) + self.third(two))
        return self.last(three).mean((2, 3))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_additions_need_no_stubs(backend: str, tmp_path: Path) -> None:
    """CASES Q15: an identity and a projection around convolutions; the sums run on integers too."""
    items = noise(24, 3, 8, 8)(tmp_path)
    model = choose.model(exported(residual(), (3, 8, 8), tmp_path / "m.onnx"))
    changed = applied(model, items[:12], *INT8)
    package = packaged(changed, backend, tmp_path / backend)
    assert cosines(package.documents(items[12:]), vectors(changed, items[12:])).min() > 0.999
    assert cosines(package.documents(items[12:]), vectors(model, items[12:])).min() > 0.995
    if backend == "onnxruntime":
        kinds = [node.op_type for node in optimised(tmp_path / backend).node]
        assert (kinds.count("QLinearConv"), kinds.count("QLinearAdd")) == (5, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_transposed_convolutions_have_a_scale_for_each_channel(
    kind: type[nn.Module], groups: int, backend: str, tmp_path: Path
) -> None:
    """CASES Q7: outputs on axis 1; in groups, no two groups share a scale."""
    torch.manual_seed(0)
    layer = kind(24, 96, 3, groups=groups)
    with torch.no_grad():
        if groups == 1:
            layer.weight[:, :32] *= 1e-3
        else:
            layer.weight[:8] *= 1e-3
    room = (4,) * (layer.weight.ndim - 2)
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    model = choose.model(exported(network, (24, *room), tmp_path / "m.onnx"))
    items = noise(8, 24, *room)(tmp_path)
    [found] = [layer for layer in model.layers if layer.kind == "convolution"]
    assert found.axis == (1 if groups == 1 else 0)
    for parameters, least in (({"scaling": "max"}, 0.01), ({"bits": 4, "granularity": "group", "group_size": 9}, 0.2)):
        changed = applied(model, items, ("weights_int", parameters))
        before, after = (dequantize(one.tensors[found.weight]) for one in (model, changed))
        others = tuple(axis for axis in range(before.ndim) if axis != found.axis)
        largest = np.abs(before).max(axis=others, keepdims=True)
        assert (np.abs(after - before) <= least * largest).all(), "small channels keep their precision"
        package = packaged(changed, backend, tmp_path / f"{backend}{len(parameters)}")
        assert cosines(package.documents(items), vectors(changed, items)).min() > 0.99999
    assert bytes_of(tmp_path / f"{backend}1") < 0.6 * (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [{}, {"symmetric": False}, {"bits": 4, "granularity": "group", "group_size": 8}])
@pytest.mark.parametrize("kind", ["linear", "convolution", "depthwise"])
def test_zero_and_tiny_channels_keep_their_bias(
    kind: str, weights: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    """CASES Q8: a bias beside weights of zero, of 1e-6 and of 1e-20 does not fit the steps of their products."""
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(16, 16),
        "convolution": lambda: nn.Conv1d(16, 16, 3),
        "depthwise": lambda: nn.Conv1d(16, 16, 3, groups=16),
    }
    layer = made[kind]()
    with torch.no_grad():
        for channel, factor in ((0, 0.0), (1, 1e-6), (2, 1e-20)):
            layer.weight[channel] *= factor
            layer.bias[channel] = 0.7 + channel
        layer.bias[3] = 0.0
        layer.weight[3] = 0.0
    shape = (16,) if kind == "linear" else (16, 6)
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    items = noise(16, *shape)(tmp_path)
    model = choose.model(exported(network, shape, tmp_path / "m.onnx"))
    changed = applied(model, items, ("weights_int", weights), INT8[1])
    reference, package = vectors(changed, items), packaged(changed, backend, tmp_path / "package").documents(items)
    expected = vectors(model, items)
    assert np.isfinite(package).all()
    assert cosines(reference, expected).min() > 0.98
    assert cosines(package, reference).min() > 0.999
    places = expected.reshape(len(items), 16, -1)[:, :4]
    assert np.abs(package.reshape(len(items), 16, -1)[:, :4] - places).max() < 0.05


class Depthwise(nn.Module):
    """A depthwise convolution whose channels range from 1e-3 to 1e1; a batch norm may bring them back to one."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        factors = torch.logspace(-3, 1, 16)
        with torch.no_grad():
            self.deep.weight *= factors[:, None, None, None]
            assert self.deep.bias is not None
            self.deep.bias *= factors
            if norm:
                self.norm.running_var.copy_(factors**2)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.deep(torch.relu(self.first(x)))).flatten(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [False, True])
def test_depthwise_channels_of_very_different_ranges(norm: bool, backend: str, tmp_path: Path) -> None:
    """CASES Q12: a scale for each channel is not worse than one for all; the layers with most noise are named."""
    torch.manual_seed(0)
    items = noise(24, 3, 7, 7)(tmp_path)
    model = choose.model(exported(Depthwise(norm), (3, 7, 7), tmp_path / "m.onnx"))
    plain = vectors(model, items[12:])
    errors, kept = {}, {}
    for granularity in ("tensor", "channel"):
        weights = applied(model, items[:12], ("weights_int", {"granularity": granularity}))
        found = packaged(weights, backend, tmp_path / f"{granularity}_weights").documents(items[12:])
        parts = [values.reshape(12, 16, -1) for values in (found, plain)]
        errors[granularity] = np.linalg.norm(parts[0] - parts[1], axis=(0, 2)) / np.linalg.norm(parts[1], axis=(0, 2))
        static = packaged(applied(weights, items[:12], INT8[1]), backend, tmp_path / granularity)
        kept[granularity] = cosines(static.documents(items[12:]), plain).mean()
    assert errors["channel"].max() < 0.02, "no channel is lost"
    assert errors["channel"].max() <= errors["tensor"].max()
    assert (errors["tensor"].max() > 0.5) == (not norm), "one scale loses the small ones, unless the norm is folded"
    assert kept["channel"] >= kept["tensor"] - 1e-3
    assert kept["channel"] > 0.999


def test_the_layers_that_rounding_cost_most_are_named_worst_first(tmp_path: Path) -> None:
    """CASES Q12: the loss of a layer can be read from the report, in decibels that numpy confirms."""
    torch.manual_seed(0)
    model = choose.model(exported(residual(), (3, 8, 8), tmp_path / "m.onnx"))
    step = plugins.load("methods", "quantize.weights_int")(granularity="tensor")
    changed = step.apply(model, Samples(calibration=[], texts=[]))
    expected = {}
    for layer in model.layers:
        weight = model.tensors[layer.weight].astype(np.float64)
        difference = dequantize(changed.tensors[layer.weight]) - weight
        expected[layer.name] = 10 * np.log10((weight**2).sum() / (difference**2).sum())
    assert len(expected) == 5
    ranked = sorted(expected, key=lambda name: expected[name])[:3]
    assert ranked != sorted(ranked)
    said = ", ".join(f"{name} {expected[name]:.1f} dB" for name in ranked)
    assert step.notes(model, changed) == (f"most rounding noise: {said}",)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_result_that_is_given_and_read_has_a_range_from_every_estimator(
    estimator: str, backend: str, tmp_path: Path
) -> None:
    """CASES Q11: the first convolution's result is read by the second and is part of the output."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = self.first(x)
            return torch.cat([given.flatten(1), self.second(given).flatten(1)], 1)

    torch.manual_seed(0)
    items = noise(24, 3, 7, 7)(tmp_path)
    for number, network in enumerate((Both(), nn.Sequential(nn.Conv2d(3, 8, 7), nn.Flatten()))):
        model = choose.model(exported(network, (3, 7, 7), tmp_path / f"{number}.onnx"))
        changed = applied(model, items[:12], INT8[0], ("activations_int", {"estimator": estimator}))
        assert set(changed.activations) >= {layer.weight for layer in model.layers}
        assert all(np.isfinite(how.scale) and how.scale > 0 for how in changed.activations.values())
        package = packaged(changed, backend, tmp_path / f"{backend}{number}")
        assert cosines(package.documents(items[12:]), vectors(model, items[12:])).min() > 0.99


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("step", ["activations_int", "weights_int", "smooth", "mixed"])
def test_a_collection_without_texts_is_refused_before_any_work_by_its_path(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES Q10: every document is empty, so that nothing is left to calibrate by."""
    collection = tmp_path / "hollow"
    tiny_collection(collection)
    lines = "".join(f'{{"_id": "{name}", "text": ""}}\n' for name in CORPUS)
    (collection / "corpus.jsonl").write_text(lines)
    (collection / "queries.jsonl").write_text("".join(f'{{"_id": "test-{name}", "text": "cat"}}\n' for name in CORPUS))
    for split in ("train", "dev"):
        (collection / "qrels" / f"{split}.tsv").unlink()
    tiny_bert(tmp_path / "m")
    monkeypatch.setattr(compress, "run", lambda *rest: pytest.fail("a step ran"))
    recipe = Recipe(steps=(RecipeStep(method="quantize.weights_int"), RecipeStep(method=f"quantize.{step}")))
    with pytest.raises(UsageError) as refused:
        pipeline.compress(tmp_path / "m", collection, recipe, tmp_path / "out")
    assert str(collection) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_histograms_of_batches_of_other_shapes_add_up(estimator: str) -> None:
    """CASES Q27: three lengths, in any order, each with another range, give the range of all values together."""
    generator = np.random.default_rng(0)
    shapes = (400, 3), (20, 17), (1, 128)
    parts = [generator.normal(size=(*shape, 8)) * shape[1] for shape in shapes]
    ranges = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        histogram = Histogram()
        for number in order:
            histogram.add(parts[number].astype(np.float32))
        assert histogram._counts.sum() == sum(part.size for part in parts), "none is forgotten when the range widens"
        ranges.append(histogram.range(estimator))
    whole = Histogram()
    whole.add(np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32))
    width = whole.high - whole.low
    for found in ranges:
        # Bins are as wide as the first batch makes them, so that thresholds between them differ a little.
        assert np.allclose(found, whole.range(estimator), atol=0 if estimator == "minmax" else 0.05 * width)


def test_one_outlier_ruins_the_range_of_extremes_and_not_that_of_entropy() -> None:
    """CASES Q13: one 800 among 32,768 normal values; what the other values keep of themselves."""
    values = np.random.default_rng(0).normal(size=32768).astype(np.float32)
    values[100] = 800
    others, kept = np.delete(values, 100), {}
    histogram = Histogram()
    histogram.add(values)
    for estimator in ("minmax", "entropy"):
        low, high = histogram.range(estimator)
        scale = (high - low) / 255
        zero_point = np.rint(-low / scale)
        found = (np.clip(np.rint(others / scale) + zero_point, 0, 255) - zero_point) * scale
        kept[estimator] = cosines(found[None], others[None])[0]
    assert kept["minmax"] < 0.7
    assert kept["entropy"] > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extra", [None, "smooth", "mixed", "compensated"])
def test_calibration_with_items_of_three_lengths(extra: str | None, backend: str, tmp_path: Path) -> None:
    """CASES Q27: arrays with a free axis, which no batch can hold side by side."""

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(4, 8, 3), nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)).mean(2))

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    items = [
        saved(tmp_path / f"{number}.npy", generator.normal(size=(4, (9, 20, 33)[number % 3])) * (1 + number % 3))
        for number in range(24)
    ]
    model = choose.model(exported(Free(), (4, 9), tmp_path / "m.onnx", free=(2,)))
    first = {"smooth": ("smooth", {"alpha": 0.8}), "mixed": ("mixed", {"size": 0.9, "bits": (8,), "group_size": 8}),
             "compensated": ("weights_int", {"rounding": "compensated", "correct_bias": True})}  # fmt: skip
    steps = [first[extra]] if extra is not None else []
    steps += [INT8[0]] if extra in (None, "smooth") else []
    changed = applied(model, items[:12], *steps, INT8[1])
    convolution = next(layer.weight for layer in model.layers if layer.kind == "convolution")
    how = changed.activations[convolution]
    seen = np.concatenate([np.load(item).reshape(-1) for item in items[:12]])
    assert how.scale == pytest.approx((seen.max() - seen.min()) / 255, rel=1e-5), "the range of all three lengths"
    package = packaged(changed, backend, tmp_path / backend)
    assert cosines(package.documents(items[12:]), vectors(model, items[12:])).min() > 0.99


def test_the_range_of_texts_is_that_of_all_lengths(bert: Model) -> None:
    """CASES Q27: short and long texts calibrated together give the outermost of what they give alone."""
    texts = sorted(TEXTS, key=len)
    parts = [texts[:1], texts[5:9], texts[-2:]]
    weights = applied(bert, TEXT_SAMPLES, INT8[0])

    def ends(items: list[str]) -> dict[str, tuple[float, float]]:
        found = applied(weights, items, INT8[1]).activations
        return {name: (-how.zero_point * how.scale, (255 - how.zero_point) * how.scale) for name, how in found.items()}

    alone, together = [ends(part) for part in parts], ends([text for part in parts for text in part])
    for name, (low, high) in together.items():
        step = (high - low) / 255
        assert low == pytest.approx(min(part[name][0] for part in alone), abs=step)
        assert high == pytest.approx(max(part[name][1] for part in alone), abs=step)


def test_no_range_is_made_for_what_the_vector_does_not_use(bert: Model, rounded: dict[str, Model]) -> None:
    """CASES Q27: calibration runs BERT's pooler, of which the vector knows nothing."""
    changed = rounded["static"]
    pooler = {layer.weight for layer in bert.layers if "pooler" in layer.name}
    assert len(pooler) == 1
    assert isinstance(changed.tensors[pooler.copy().pop()], QuantizedTensor), "the rebuilt model has it"
    assert set(changed.activations) == {layer.weight for layer in bert.layers if layer.kind == "linear"} - pooler
    broken = dict(changed.tensors) | {name: np.zeros(changed.tensors[name].shape, np.float32) for name in pooler}
    other = dataclasses.replace(changed, tensors=broken)
    assert np.array_equal(vectors(changed, list(TEXTS)), vectors(other, list(TEXTS)))


# ---------------------------------------------------------------- sixteen bits


class Resizing(nn.Module):
    """A Resize by a factor that float16 does not have, a Cast, and a division by a maximum and a small constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # 10 by 1.1 is 11; by the nearest float16, 1.0996, it would be 10.
        wide = nn.functional.interpolate(self.first(x), scale_factor=1.1, mode="bilinear")
        mask = (wide > 0).float()
        summed = (wide * mask).sum((2, 3)) / (mask.sum((2, 3)) + 1e-5)
        return self.last(summed / (summed.amax(1, keepdim=True) + 1e-5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["fp16", "bf16", "e4m3"])
def test_narrow_floats_leave_sizes_casts_and_small_constants_alone(form: str, backend: str, tmp_path: Path) -> None:
    """CASES Q24: the graph loads, the checker passes, every result keeps its shape."""
    torch.manual_seed(0)
    path = exported(Resizing(), (3, 10, 10), tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"Resize", "Cast", "Div"} <= kinds
    items = noise(8, 3, 10, 10)(tmp_path)
    model = choose.model(path)
    changed = applied(model, items, ("float", {"format": form}))
    package = packaged(changed, backend, tmp_path / "package")
    onnx.checker.check_model(onnx.load(tmp_path / "package" / "model.onnx"))
    least = {"fp16": 0.9999, "bf16": 0.999, "e4m3": 0.99}[form]
    assert cosines(package.documents(items), vectors(model, items)).min() > least
    assert cosines(package.documents(items), vectors(changed, items)).min() > 0.999999


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_in_sixteen_bits_is_opened_and_written_again(backend: str, tmp_path: Path) -> None:
    """CASES Q24: Cast to float and back, Resize scales and a small constant in a graph that is float16 throughout."""
    generator = np.random.default_rng(0)
    constants = {
        "W": generator.normal(size=(4, 3, 3, 3)).astype(np.float16), "small": np.array(1e-5, np.float16),
        "scales": np.array([1, 1, 1.1, 1.1], np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "W"], ["maps"]),
        helper.make_node("Resize", ["maps", "", "scales"], ["resized"], mode="linear"),
        helper.make_node("Relu", ["resized"], ["positive"]),
        helper.make_node("ReduceMax", ["positive"], ["peak"], axes=[1, 2, 3]),
        helper.make_node("Add", ["peak", "small"], ["bottom"]),
        helper.make_node("Div", ["positive", "bottom"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["wide"], ["embedding"]),
    ]
    path = written(nodes, constants, (3, 12, 12), tmp_path / "m.onnx")
    items = noise(8, 3, 12, 12)(tmp_path)
    model = choose.model(path)
    assert model.spec.dim == 4 * 11 * 11
    for form in ("fp16", "e4m3"):
        changed = model if form == "fp16" else applied(model, items, ("float", {"format": form}))
        package = packaged(changed, backend, tmp_path / form)
        assert cosines(package.documents(items), vectors(model, items)).min() > 0.99
        onnx.checker.check_model(onnx.load(tmp_path / form / "model.onnx"))
