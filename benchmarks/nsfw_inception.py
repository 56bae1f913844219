"""The Inception v3 of the npm package nsfwjs as ONNX, for pictures of any size: its topology, and weights of 8 bits.

    npm pack nsfwjs@4.3.0 && tar xzf nsfwjs-4.3.0.tgz

Node reads the package's JavaScript modules; nothing of them is run but their data.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, FEATURES, WIDTH = "pixels", "features", 2048
WHOLE = [8, 8]
"""The last pool, which at the package's 299 pixels sees the whole picture."""
MODEL = "dist/models/inception_v3"
READ = """
const folder = process.argv[1], model = require(folder + "/model.min.js");
const names = model.weightsManifest.flatMap(group => group.paths);
const parts = names.map(name => require(folder + "/" + name + ".min.js"));
console.log(JSON.stringify({ model, parts }));
"""


def write(package: Path, file: Path, size: int) -> None:
    """Features [n, 2048] of pictures float32 [n, 3, size, size], 0 to 1."""
    folder = (package / MODEL).resolve()
    if not folder.is_dir():
        raise SystemExit(f"{package} is no unpacked nsfwjs: npm pack nsfwjs@4.3.0 && tar xzf nsfwjs-4.3.0.tgz")
    shown = subprocess.run(["node", "-e", READ, str(folder)], capture_output=True, text=True, check=True).stdout
    found = json.loads(shown)
    weights = unpacked(found["model"]["weightsManifest"], found["parts"])
    nodes, tensors = graph(found["model"]["modelTopology"]["model_config"]["config"]["layers"], weights)
    model = helper.make_model(
        helper.make_graph(
            nodes, "inception_v3", [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", WIDTH])], tensors,
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(model)
    onnx.save(model, file)


def unpacked(manifest: list[dict[str, Any]], parts: list[str]) -> dict[str, np.ndarray]:
    """Name to float32: integers times a scale, from a minimum."""
    content, place = b"".join(base64.b64decode(part) for part in parts), 0
    found = {}
    for weight in (weight for group in manifest for weight in group["weights"]):
        grid = weight.get("quantization")
        dtype = np.dtype(grid["dtype"] if grid else weight["dtype"])
        count = int(np.prod(weight["shape"]))
        array = np.frombuffer(content, dtype, count, place).reshape(weight["shape"])
        place += count * dtype.itemsize
        found[weight["name"]] = (array * grid["scale"] + grid["min"] if grid else array).astype(np.float32)
    if place != len(content):
        raise SystemExit(f"{len(content) - place} bytes of the weights are left over; is this nsfwjs 4.3.0?")
    return found


def graph(layers: list[dict[str, Any]], weights: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Keras layers up to the pooled features, as nodes and initializers."""
    nodes: list[Any] = []
    tensors: dict[str, np.ndarray] = {}

    def add(kind: str, inputs: list[str], output: str, **settings: object) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **settings))

    for layer in layers:
        kind, name, config = layer["class_name"], layer["name"], layer["config"]
        inputs = [source[0] for source in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else []
        inputs = [INPUT if source == layers[0]["name"] else source for source in inputs]
        if kind == "Conv2D":
            tensors[f"{name}.weight"] = np.ascontiguousarray(weights[f"{name}/kernel"].transpose(3, 2, 0, 1))
            add("Conv", [*inputs, f"{name}.weight"], name, kernel_shape=config["kernel_size"],
                strides=config["strides"], pads=padding(config, "kernel_size"))  # fmt: skip
        elif kind == "BatchNormalization":
            shift = weights[f"{name}/beta"]
            parts = {"scale": weights.get(f"{name}/gamma", np.ones_like(shift)), "shift": shift,
                     "mean": weights[f"{name}/moving_mean"],
                     "variance": weights[f"{name}/moving_variance"]}  # fmt: skip
            tensors |= {f"{name}.{part}": array for part, array in parts.items()}
            add("BatchNormalization", [*inputs, *(f"{name}.{part}" for part in parts)], name, epsilon=config["epsilon"])
        elif kind == "Activation" and config["activation"] == "relu":
            add("Relu", inputs, name)
        elif kind == "AveragePooling2D" and config["pool_size"] == WHOLE:
            add("GlobalAveragePool", inputs, name)
            add("Flatten", [name], FEATURES, axis=1)
            return nodes, [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        elif kind in ("MaxPooling2D", "AveragePooling2D"):
            mean = {"count_include_pad": 0} if kind == "AveragePooling2D" else {}
            add("AveragePool" if mean else "MaxPool", inputs, name, kernel_shape=config["pool_size"],
                strides=config["strides"], pads=padding(config, "pool_size"), **mean)  # fmt: skip
        elif kind == "Concatenate":
            add("Concat", inputs, name, axis=1)
        elif kind != "InputLayer":
            raise SystemExit(f"{name} is a {kind}, which is not known here")
    raise SystemExit("this network has no global pool")


def padding(config: dict[str, Any], size: str) -> list[int]:
    """Of TensorFlow's two kinds; what is padded has steps of one, so that both sides are alike."""
    if config["padding"] == "valid":
        return [0, 0, 0, 0]
    if config["strides"] != [1, 1]:
        raise SystemExit(f"{config['name']} pads with steps of {config['strides']}")
    return [(length - 1) // 2 for length in config[size]] * 2
