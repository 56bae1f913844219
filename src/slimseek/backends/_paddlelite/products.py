"""Products, convolutions, pools and tables of ONNX as operators of Paddle, from the artifact's integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from slimseek.backends._lowering import tensor_name
from slimseek.backends._paddlelite import weights
from slimseek.backends._paddlelite.format import ON_INTEGERS, TYPES
from slimseek.backends._paddlelite.operators import LARGEST, Rule, part
from slimseek.backends._paddlelite.package import MIDDLE, Kept
from slimseek.backends._paddlelite.writer import Writer, refused
from slimseek.integers import is_integer
from slimseek.schema import ActivationQuant, QuantizedTensor

LOWEST, LEVELS = 127, 126
"""Inputs are rounded to -127 to -1, which the library multiplies as 1 to 127: two products with the largest weights fit
into the 16 bits that it adds them in."""


def product(writer: Writer, node: Any) -> None:
    """A linear layer where the second is a constant matrix, else a product of two values."""
    one, other = node.input
    held = writer.constant(other)
    if held is not None and held.ndim == 2:
        bias, output = writer.biases.get(node.output[0], ("", node.output[0]))
        parameter, attributes = writer.matrix(other)
        linear(writer, writer.smoothed(other, one), parameter, bias, output, attributes)
        return
    writer.node(
        "matmul_v2", {"X": [writer.use(one)], "Y": [writer.use(other)]}, node.output[0], trans_x=False, trans_y=False
    )


def gemm(writer: Writer, node: Any) -> None:
    """A linear layer."""
    given = writer.settings(node)
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    if not plain or writer.constant(node.input[1]) is None:
        raise refused("a Gemm with factors or of two values")
    parameter, attributes = writer.matrix(node.input[1], flipped=bool(given.get("transB", 0)))
    bias = node.input[2] if len(node.input) > 2 else ""
    linear(writer, writer.smoothed(node.input[1], node.input[0]), parameter, bias, node.output[0], attributes)


def linear(writer: Writer, source: str, parameter: str, bias: str, output: str, attributes: dict[str, Any]) -> None:
    """Write one: its sums are of float32, since the library's product of integers is wrong on x86."""
    inputs = {"Input": [source], "W": [parameter]}
    if bias:
        held = writer.seen.constants[bias]
        width = writer.shape(output)[-1]
        inputs["Bias"] = [writer.parameter(f"{bias}.bias", np.broadcast_to(held.reshape(-1), (width,)))]
    writer.node("fc", inputs, output, in_num_col_dims=writer.rank(output) - 1, op_type="matmul_v2", **attributes)


def gather(writer: Writer, node: Any) -> None:
    """Rows of a table, or one place on an axis of a value."""
    name, places = node.input
    axis = int(writer.settings(node).get("axis", 0)) % writer.rank(name)
    if writer.constant(name) is not None and axis == 0:
        table(writer, name, places, node.output[0])
        return
    place = writer.constant(places)
    if place is None or place.size != 1:
        raise refused("a Gather of several places of a value")
    start = int(place.reshape(-1)[0])
    end = start + 1 if start != -1 else LARGEST
    part(writer, name, node.output[0], [axis], [start], [end], dropped=[] if place.ndim else [axis])


def table(writer: Writer, name: str, places: str, output: str) -> None:
    """Rows by their numbers: of eight bits they become floats when they are looked up."""
    own, tensor = writer.weight_of(name)
    index = writer.write("unsqueeze2", {"X": [writer.use(places)]}, writer.fresh(places), (*writer.shape(places), 1),
                         writer.dtype(places), extra=("XShape",), axes=[writer.rank(places)])  # fmt: skip
    if tensor is None or own in writer.model.smoothing or tensor.shape != tuple(writer.initializers[name].dims):
        rows = writer.parameter(f"{name}.rows", writer.seen.constants[name])
        writer.node("gather_nd", {"X": [rows], "Index": [index]}, output)
    elif is_integer(tensor):
        _rows_of_integers(writer, own, tensor, index, output)
    else:  # floats of 16 or 8 bits, code books
        parameter, attributes = writer.columns(own)
        writer.node("lookup_table", {"W": [parameter], "Ids": [index]}, output, padding_idx=-1, **attributes)


def _rows_of_integers(writer: Writer, own: str, tensor: QuantizedTensor, index: str, output: str) -> None:
    """(rows - their zero points) * their scales."""
    rows, zero_points, scales = weights.table(tensor)
    around = bool(np.all(zero_points == MIDDLE))
    held = {"rows": rows, "scale": scales} | ({} if around else {"zero_point": zero_points})
    names = {what: writer.parameter(f"{own}.{what}", array) for what, array in held.items()}
    exact = tensor.spec.granularity != "group" and tensor.spec.axis == 0
    beside = (names.get("zero_point", ""), names["scale"])
    writer.kept[own] = Kept(parameter=names["rows"], axis=0, exact=exact, beside=beside,
                            signed=tensor.zero_point is None)  # fmt: skip
    shape = writer.shape(output)
    single = (*shape[:-1], 1)

    def looked_up(parameter: str, kind: str, width: tuple[int, ...]) -> str:
        return writer.write("gather_nd", {"X": [parameter], "Index": [index]}, writer.fresh(output), width, kind)

    def steps(parameter: str, width: tuple[int, ...]) -> str:
        found = looked_up(parameter, "uint8", width)
        return writer.write("cast", {"X": [found]}, writer.fresh(output), width, in_dtype=TYPES["uint8"],
                            out_dtype=TYPES["float32"])  # fmt: skip

    value = steps(names["rows"], shape)
    if around:
        value = writer.write("scale", {"X": [value]}, writer.fresh(output), shape, scale=1.0,
                             bias=float(-MIDDLE), bias_after_scale=True)  # fmt: skip
    else:
        both = {"X": [value], "Y": [steps(names["zero_point"], single)]}
        value = writer.write("elementwise_sub", both, writer.fresh(output), shape, axis=-1)
    writer.node("elementwise_mul", {"X": [value], "Y": [looked_up(names["scale"], "float32", single)]}, output, axis=-1)


def convolution(writer: Writer, node: Any) -> None:
    """A convolution over one or two axes; on integers where its input has a range."""
    name, own = node.input[1], tensor_name(node.input[1])
    held, flat = writer.constant(name), writer.rank(node.input[0]) == 3
    if held is None or held.ndim not in (3, 4):
        raise refused("a Conv over three axes, or by a computed kernel")
    shape = (*held.shape[:2], 1, held.shape[2]) if flat else held.shape
    attributes = _window(writer, node, shape, flat)
    bias = node.input[2] if len(node.input) > 2 else ""
    how, (_, tensor) = writer.model.activations.get(own), writer.weight_of(name)
    static = how is not None and how.mode == "static" and attributes["groups"] == 1 and not flat
    if static and how is not None and tensor is not None and is_integer(tensor):
        inputs = _on_integers(writer, node, tensor, how, attributes)
    else:
        kernel, more = writer.kernel(name)
        attributes |= more
        source = writer.use(node.input[0])
        if flat:
            writer.parameters[kernel] = writer.parameters[kernel].reshape(shape)
            source = writer.write("unsqueeze2", {"X": [source]}, writer.fresh(node.input[0]),
                                  _with_one(writer.shape(node.input[0])), extra=("XShape",), axes=[2])  # fmt: skip
        inputs = {"Input": [source], "Filter": [kernel]} | ({"Bias": [writer.use(bias)]} if bias else {})
    kind = "depthwise_conv2d" if attributes["groups"] == shape[0] and shape[1] == 1 else "conv2d"
    output = writer.fresh(node.output[0]) if flat else node.output[0]
    sizes = writer.shape(node.output[0])
    writer.write(kind, inputs, output, _with_one(sizes) if flat else sizes, parameter="Output", **attributes)
    if flat:
        writer.node("squeeze2", {"X": [output]}, node.output[0], extra=("XShape",), axes=[2])


def _window(writer: Writer, node: Any, shape: tuple[int, ...], flat: bool) -> dict[str, Any]:
    given = writer.settings(node)
    strides, dilations = (_pair(given.get(what), flat) for what in ("strides", "dilations"))
    paddings = _paddings(writer, node, given, shape[2:], strides, dilations, flat)
    return {"strides": strides, "dilations": dilations, "groups": int(given.get("group", 1)), "data_format": "NCHW",
            "paddings": paddings, "padding_algorithm": "EXPLICIT"}  # fmt: skip


def _on_integers(
    writer: Writer, node: Any, tensor: QuantizedTensor, how: ActivationQuant, attributes: dict[str, Any]
) -> dict[str, list[str]]:
    """The inputs of a convolution on eight bits, and its attributes.

    The library rounds its input to integers around zero. A number is taken off before, so that the range of the
    artifact becomes that of ``LEVELS``, and what it gives through the kernel is added to the bias. What lies around
    the picture must be there before.
    """
    own, source = tensor_name(node.input[1]), writer.use(node.input[0])
    kept = weights.stored(tensor, 0)
    step = how.scale * 255 / LEVELS
    middle = (LOWEST - round(how.zero_point * LEVELS / 255)) * step
    sums = weights.values(kept.integers, kept.scale, 0).reshape(len(kept.scale), -1).sum(1, dtype=np.float64)
    given = writer.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    bias = (sums * middle + (0 if given is None else given)).astype(np.float32)
    if middle and any(attributes["paddings"]):
        shape = tuple(size if size < 0 or axis < 2 else size + sum(attributes["paddings"][2 * axis - 4 : 2 * axis - 2])
                      for axis, size in enumerate(writer.shape(node.input[0])))  # fmt: skip
        source = writer.write("pad2d", {"X": [source]}, writer.fresh(node.input[0]), shape, mode="constant",
                              data_format="NCHW", pad_value=0.0, paddings=attributes["paddings"])  # fmt: skip
        attributes["paddings"] = [0, 0, 0, 0]
    if middle:
        shift = writer.parameter(f"{own}.middle", np.full((1, 1, 1, 1), middle, np.float32))
        source = writer.write("elementwise_sub", {"X": [source], "Y": [shift]}, writer.fresh(node.input[0]),
                              (-1, -1, -1, -1), axis=-1)  # fmt: skip
    attributes |= {ON_INTEGERS: True, "Input0_scale": [step], "bit_length": 8,
                   "Filter0_scale": [float(number) for number in kept.scale]}  # fmt: skip
    return {"Input": [source], "Filter": [writer.keep(own, kept, 0)], "Bias": [writer.parameter(f"{own}.bias", bias)]}


def pool(writer: Writer, node: Any) -> None:
    """Means and maxima over windows, or over the whole picture."""
    given = writer.settings(node)
    if writer.rank(node.input[0]) != 4:
        if node.op_type.startswith("Global"):
            axes = list(range(2, writer.rank(node.input[0])))
            kind = "reduce_max" if "Max" in node.op_type else "reduce_mean"
            writer.node(
                kind, {"X": [writer.use(node.input[0])]}, node.output[0], dim=axes, keep_dim=True, reduce_all=False
            )
            return
        raise refused(f"{node.op_type} over one or three axes")
    kind = "max" if "Max" in node.op_type else "avg"
    whole = node.op_type.startswith("Global")
    if any(size != 1 for size in given.get("dilations", ())):
        raise refused("a pool with dilations")
    window = [1, 1] if whole else list(given["kernel_shape"])
    strides = _pair(given.get("strides"), False)
    paddings = [0, 0, 0, 0] if whole else _paddings(writer, node, given, tuple(window), strides, [1, 1], False)
    writer.node("pool2d", {"X": [writer.use(node.input[0])]}, node.output[0], pooling_type=kind, ksize=window,
                strides=strides, paddings=paddings, global_pooling=whole, adaptive=False, padding_algorithm="EXPLICIT",
                exclusive=not given.get("count_include_pad", 0), ceil_mode=bool(given.get("ceil_mode", 0)))  # fmt: skip


def pad(writer: Writer, node: Any) -> None:
    """Numbers around a value."""
    given, rank, source = writer.settings(node), writer.rank(node.input[0]), {"X": [writer.use(node.input[0])]}
    sizes, value, axes = (writer.constant(name) for name in [*node.input[1:], "", ""][:3])
    computed = any(name and writer.constant(name) is None for name in node.input[1:])
    mode = given.get("mode", "constant")
    if computed or sizes is None or mode not in ("constant", "edge", "reflect"):
        raise refused("a Pad of this kind")
    pairs = np.zeros((rank, 2), np.int64)
    pairs[np.arange(rank) if axes is None else axes] = sizes.reshape(2, -1).T
    each, filled = pairs.reshape(-1).tolist(), 0.0 if value is None else float(value.reshape(-1)[0])
    if rank != 4 or any(each[:4]):
        if mode != "constant":
            raise refused(f"a Pad in the mode {mode} of other axes than those of a picture")
        writer.node("pad", source, node.output[0], pad_value=filled, paddings=each)
        return
    writer.node("pad2d", source, node.output[0], mode=mode, data_format="NCHW", pad_value=filled, paddings=each[4:])


def batch_norm(writer: Writer, node: Any) -> None:
    """A factor and a summand for each channel."""
    scale, shift, mean, variance = (writer.constant(name) for name in node.input[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        raise refused("a BatchNormalization by computed numbers")
    factor = scale / np.sqrt(variance + writer.settings(node).get("epsilon", 1e-5))
    shape = [1, -1, *([1] * (writer.rank(node.input[0]) - 2))]
    names = [writer.parameter(f"{node.output[0]}.{what}", array.astype(np.float32).reshape(shape))
             for what, array in (("factor", factor), ("summand", shift - mean * factor))]  # fmt: skip
    output = node.output[0]
    inputs = {"X": [writer.use(node.input[0])], "Y": [names[0]]}
    value = writer.write("elementwise_mul", inputs, writer.fresh(output), writer.shape(output), axis=-1)
    writer.node("elementwise_add", {"X": [value], "Y": [names[1]]}, output, axis=-1)


def _pair(given: Any, flat: bool) -> list[int]:
    sizes = list(given or ())
    return [1, *(sizes or [1])] if flat else sizes or [1, 1]


def _with_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], 1, *shape[2:])


def _paddings(writer: Writer, node: Any, given: dict[str, Any], window: tuple[int, ...], strides: list[int],
              dilations: list[int], flat: bool) -> list[int]:  # fmt: skip
    """Top, bottom, left, right."""
    if given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        pads = list(given.get("pads", ())) or [0] * (2 if flat else 4)
        return [0, 0, pads[0], pads[1]] if flat else [pads[0], pads[2], pads[1], pads[3]]
    found = []
    sizes, results = writer.shape(node.input[0])[2:], writer.shape(node.output[0])[2:]
    if min(*sizes, *results) < 0 or flat:
        raise refused("auto_pad of a length that changes")
    for size, result, one, stride, step in zip(sizes, results, window, strides, dilations, strict=True):
        total = max(0, (result - 1) * stride + (one - 1) * step + 1 - size)
        small, large = total // 2, total - total // 2
        found += [small, large] if given["auto_pad"] == "SAME_UPPER" else [large, small]
    return found


RULES: dict[str, Rule] = {
    "MatMul": product, "Gemm": gemm, "Gather": gather, "Conv": convolution, "Pad": pad,
    "BatchNormalization": batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), pool),
}  # fmt: skip
