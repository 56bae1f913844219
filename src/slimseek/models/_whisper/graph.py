"""A Whisper's encoder and the step of its decoder as graphs of standard operators, written node by node.

Weights are initializers under their tensors' names, those of linear layers transposed; the table of the tokens stands
in the decoder once, for the look-up and for the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek.models._onnx.graph import IR_VERSION, OPSET
from slimseek.models._whisper.files import FRAMES_OF_A_PLACE, PLACES, Shape, frequencies
from slimseek.recognise import CROSS, FEATURES, IDS, LOGITS, PAST, PRESENT
from slimseek.schema import Array

MASKED = -1e9
TABLE = "model.decoder.embed_tokens.weight"
PARTS = ("key", "value")
EPSILON = 1e-5


class _Graph:
    """A graph under construction."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, name: str, array: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def numbers(self, *values: int) -> str:
        return self.constant("_".join(["numbers", *map(str, values)]), np.array(values, np.int64))

    def tensor(self, name: str, transposed: bool = False) -> str:
        array = self._tensors[name].astype(np.float32)
        return self.constant(name, array.T if transposed else array)

    def linear(self, name: str, rows: str) -> str:
        product = self.node("MatMul", [rows, self.tensor(f"{name}.weight", transposed=True)])
        if f"{name}.bias" not in self._tensors:
            return product
        return self.node("Add", [product, self.tensor(f"{name}.bias")])

    def norm(self, name: str, rows: str) -> str:
        inputs = [rows, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=EPSILON)

    def heads(self, rows: str, count: int, output: str = "") -> str:
        """[batch, n, width] to [batch, heads, n, width of a head]."""
        apart = self.node("Reshape", [rows, self.numbers(0, 0, count, -1)])
        return self.node("Transpose", [apart], output, perm=[0, 2, 1, 3])

    def attention(self, name: str, rows: str, keys: str, values: str, count: int, width: int, mask: str = "") -> str:
        """The rows' queries on keys and values [batch, heads, places, width of a head]."""
        scale = self.constant("scale_of_queries", np.array((width // count) ** -0.5, np.float32))
        queries = self.heads(self.node("Mul", [self.linear(f"{name}.q_proj", rows), scale]), count)
        scores = self.node("MatMul", [queries, self.node("Transpose", [keys], perm=[0, 1, 3, 2])])
        if mask:
            scores = self.node("Add", [scores, mask])
        found = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), values])
        joined = self.node("Transpose", [found], perm=[0, 2, 1, 3])
        return self.linear(f"{name}.out_proj", self.node("Reshape", [joined, self.numbers(0, 0, width)]))

    def feed_forward(self, name: str, rows: str) -> str:
        inner = self.linear(f"{name}.fc1", self.norm(f"{name}.final_layer_norm", rows))
        return self.node("Add", [rows, self.linear(f"{name}.fc2", self.node("Gelu", [inner]))])

    def finished(self, name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> onnx.ModelProto:
        """The checked graph; inputs and outputs by name, their shapes."""

        def infos(shapes: Mapping[str, Any]) -> list[Any]:
            return [helper.make_tensor_value_info(key, TensorProto.INT64 if key == IDS else TensorProto.FLOAT, shape)
                    for key, shape in shapes.items()]  # fmt: skip

        graph = helper.make_graph(self.nodes, name, infos(inputs), infos(outputs), list(self.constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def encoder(tensors: Mapping[str, Array], shape: Shape, computed: bool, places: str | None = None) -> onnx.ModelProto:
    """Features [batch, mels, frames] to the keys and values of every decoder layer for them.

    Args:
        tensors: dense weights by name.
        shape: the model's widths.
        computed: whether the table of places is computed when the graph is loaded, and not stored.
        places: name of the axis of places, where windows have several lengths.
    """
    graph, heads, width = _Graph(tensors), shape.encoder_attention_heads, shape.d_model
    rows = FEATURES
    for number, stride in ((1, 1), (2, FRAMES_OF_A_PLACE)):
        kernel = [graph.tensor(f"model.encoder.conv{number}.{part}") for part in ("weight", "bias")]
        found = graph.node("Conv", [rows, *kernel], kernel_shape=[3], pads=[1, 1], strides=[stride])
        rows = graph.node("Gelu", [found])
    rows = graph.node("Transpose", [rows], perm=[0, 2, 1])
    table = _sinusoids(graph, shape) if computed else graph.tensor(PLACES)
    if places:
        count = graph.node("Shape", [rows], start=1, end=2)
        table = graph.node("Slice", [table, graph.numbers(0), count, graph.numbers(0)])
    rows = graph.node("Add", [rows, table])
    for number in range(shape.encoder_layers):
        name = f"model.encoder.layers.{number}"
        normed = graph.norm(f"{name}.self_attn_layer_norm", rows)
        keys, values = (graph.heads(graph.linear(f"{name}.self_attn.{part}_proj", normed), heads) for part in "kv")
        rows = graph.node("Add", [rows, graph.attention(f"{name}.self_attn", normed, keys, values, heads, width)])
        rows = graph.feed_forward(name, rows)
    rows = graph.norm("model.encoder.layer_norm", rows)
    for number in range(shape.decoder_layers):
        for part in PARTS:
            found = graph.linear(f"model.decoder.layers.{number}.encoder_attn.{part[0]}_proj", rows)
            graph.heads(found, shape.decoder_attention_heads, f"{CROSS}{part}_{number}")
    frames = "frames" if places else shape.max_source_positions * FRAMES_OF_A_PLACE
    inputs = {FEATURES: ("batch", shape.num_mel_bins, frames)}
    return graph.finished("encoder", inputs, _caches(CROSS, shape, places or shape.max_source_positions))


def decoder(tensors: Mapping[str, Array], shape: Shape, places: str | None = None) -> onnx.ModelProto:
    """Ids [batch, n], keys and values of what was said before and of the encoder, to the logits [batch, tokens] behind
    the last id and the keys and values of all that is said.

    Args:
        tensors: dense weights by name.
        shape: the model's widths.
        places: as in :func:`encoder`.
    """
    graph, heads, width = _Graph(tensors), shape.decoder_attention_heads, shape.d_model
    order, mask = _order(graph)
    positions = graph.node("Gather", [graph.tensor("model.decoder.embed_positions.weight"), order])
    rows = graph.node("Add", [graph.node("Gather", [graph.tensor(TABLE), IDS]), positions])
    for number in range(shape.decoder_layers):
        name = f"model.decoder.layers.{number}"
        normed = graph.norm(f"{name}.self_attn_layer_norm", rows)
        held = []
        for part in PARTS:
            new = graph.heads(graph.linear(f"{name}.self_attn.{part[0]}_proj", normed), heads)
            held.append(graph.node("Concat", [f"{PAST}{part}_{number}", new], f"{PRESENT}{part}_{number}", axis=2))
        found = graph.attention(f"{name}.self_attn", normed, held[0], held[1], heads, width, mask)
        rows = graph.node("Add", [rows, found])
        normed = graph.norm(f"{name}.encoder_attn_layer_norm", rows)
        cross = [f"{CROSS}{part}_{number}" for part in PARTS]
        found = graph.attention(f"{name}.encoder_attn", normed, cross[0], cross[1], heads, width)
        rows = graph.feed_forward(name, graph.node("Add", [rows, found]))
    last = graph.node("Gather", [rows, graph.constant("last", np.array(-1, np.int64))], axis=1)
    last = graph.norm("model.decoder.layer_norm", last)
    graph.node("Gemm", [last, graph.tensor(TABLE)], LOGITS, transB=1)
    inputs = {IDS: ("batch", "tokens"), **_caches(PAST, shape, "past"),
              **_caches(CROSS, shape, places or shape.max_source_positions)}  # fmt: skip
    outputs = {LOGITS: ("batch", shape.vocab_size), **_caches(PRESENT, shape, "present")}
    return graph.finished("decoder", inputs, outputs)


def _order(graph: _Graph) -> tuple[str, str]:
    """Places [n] of the ids in the transcript, and the mask [n, places] that hides what comes later."""
    zero, one = (graph.constant(f"number_{value}", np.array(value, np.int64)) for value in (0, 1))
    before = graph.node("Squeeze", [graph.node("Shape", [f"{PAST}key_0"], start=2, end=3)])
    count = graph.node("Squeeze", [graph.node("Shape", [IDS], start=1, end=2)])
    after = graph.node("Add", [before, count])
    places = graph.node("Range", [before, after, one])
    read = graph.node("LessOrEqual", [graph.node("Range", [zero, after, one]),
                                      graph.node("Unsqueeze", [places, graph.numbers(1)])])  # fmt: skip
    shown, hidden = (
        graph.constant(name, np.array(value, np.float32)) for name, value in (("shown", 0), ("hidden", MASKED))
    )
    return places, graph.node("Where", [read, shown, hidden])


def _sinusoids(graph: _Graph, shape: Shape) -> str:
    """The encoder's table of places [places, width], which a runtime computes once: two megabytes become two thousand
    bytes.
    """
    zero, one = (graph.constant(f"wave_{value}", np.array(value, np.float32)) for value in (0, 1))
    places = graph.constant("places_of_sound", np.array(shape.max_source_positions, np.float32))
    steps = graph.node("Unsqueeze", [graph.node("Range", [zero, places, one]), graph.numbers(1)])
    rates = frequencies(shape.d_model)
    angles = graph.node("Mul", [steps, graph.constant("frequencies", np.tile(rates, 2))])
    cosines = graph.constant("phases", np.repeat(np.array([0, np.pi / 2], np.float32), len(rates)))
    return graph.node("Sin", [graph.node("Add", [angles, cosines])])


def _caches(kind: str, shape: Shape, places: int | str) -> dict[str, tuple[int | str, ...]]:
    """Names and shapes of the keys and values of all decoder layers."""
    heads = shape.decoder_attention_heads
    whole = ("batch", heads, places, shape.d_model // heads)
    return {f"{kind}{part}_{number}": whole for number in range(shape.decoder_layers) for part in PARTS}
