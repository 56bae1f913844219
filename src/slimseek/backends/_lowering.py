"""From a model's float graph and its integers to the graph that a runtime executes.

The exported graph has every weight as a float initializer under its tensor's name. Lowering walks over the nodes and
puts the artifact's integers where the floats were. A backend says how a linear layer and a table are written; what
is common to all (finding the places, orientation, packing into ONNX types, expanding few bits to eight at load)
stands here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek.backends._codebook import shared_rows, shared_values
from slimseek.backends._editor import Editor, finish, inner_nodes, narrow, scale_constant
from slimseek.backends._expansion import expanded, product_rows, whole_blocks
from slimseek.backends._places import check_places
from slimseek.backends._saturation import middle, shifted
from slimseek.integers import eight_bit_scale, is_eight_bit, is_integer, is_shared, unsmoothed
from slimseek.models._onnx.rounding import round_convolutions_
from slimseek.schema import ActivationQuant, Array, Model, QuantizedTensor, Tensor

LARGEST_BIAS = 2**30
"""In steps of a convolution's sums, which are of 32 bits: half of them is left for the products."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A linear layer in the graph: output = input [.., in] times weight [in, out], plus bias where there is one.

    Attributes:
        name: the weight tensor's name.
        weight: its integers, in the artifact's orientation.
        activation: how the input is rounded; ``None`` for a float input.
        input: name of the input value, divided by the layer's smoothing.
        output: name that the result must get.
        bias: name of the bias initializer, or ``None``.
        table: whether rows of the weight are looked up, too, so that its stored form is that of the table.
    """

    name: str
    weight: QuantizedTensor
    activation: ActivationQuant | None
    input: str
    output: str
    bias: str | None
    table: bool = False


LinearRule = Callable[[Editor, Linear], None]
TableRule = Callable[[Editor, str, QuantizedTensor, str, str], bool]
"""(editor, name, table, indices, output) -> whether it wrote the look-up; ``False`` leaves it to the common form."""
ValueRule = Callable[[Editor, str, Tensor, bool], str]
"""(editor, name, tensor, transposed) -> name of the float32 value of a tensor's stored form."""
ConvolutionRule = Callable[[Editor, Any, str, QuantizedTensor, ActivationQuant, bool], None]
"""(editor, node, name, kernel, how its input is rounded, unsigned) writes a convolution of a rounded input."""


def lower(
    graph: onnx.ModelProto, model: Model, linear: LinearRule, table: TableRule, *, unsigned: bool = False,
    convolution: ConvolutionRule | None = None, values: ValueRule | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """Put the model's integers into its float graph.

    Args:
        graph: as ``Family.to_onnx`` gives it, possibly with nodes fused since.
        model: the integers.
        linear: writes a linear layer.
        table: writes the look-up of rows in a table.
        unsigned: store the integers of convolutions that run on integers unsigned, around 128.
        convolution: writes a convolution of a rounded input; ``None`` for the common form, whose bias is rounded too.
        values: gives what the other rules do not write, and tables that share values; ``None`` for
            :func:`stored_value`.
    """
    check_places(graph, model)
    round_convolutions_(graph, model.activations)
    editor = Editor(graph.graph)
    biases = _biases(graph.graph)
    skipped: set[str] = set()
    tables = {tensor_name(node.input[0]) for node in graph.graph.node if node.op_type == "Gather"}
    products = {tensor_name(node.input[1]) for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")}
    for node in graph.graph.node:
        if node.output[0] in skipped:
            continue
        for inside in inner_nodes(node):
            _give_values(editor, inside, model, values)
        weight = _weight_position(node, model)
        if weight is None:
            editor.nodes.append(node)
            continue
        name = tensor_name(node.input[weight])
        tensor = model.tensors[name]
        if is_integer(tensor) and _is_linear(node, weight, tensor):
            layer = _linear(editor, node, tensor, model, biases, name in tables)
            skipped.add(layer.output)
            linear(editor, layer)
            continue
        if isinstance(tensor, QuantizedTensor) and node.op_type == "Conv" and name in model.activations:
            write = convolution or _write_convolution
            write(editor, node, name, tensor, model.activations[name], unsigned)
            continue
        rows = product_rows if name in products else table
        is_table = node.op_type == "Gather" and weight == 0 and name not in model.smoothing
        if is_table and _rows_written(editor, node, name, tensor, rows, shared=values is None):
            continue
        _give_values(editor, node, model, values)
        editor.nodes.append(node)
    return finish(graph, editor)


def _linear(
    editor: Editor, node: Any, tensor: QuantizedTensor, model: Model, biases: dict[str, tuple[str, str]], table: bool
) -> Linear:
    """A linear layer with the bias that is added to it, by the node itself or by the one behind it."""
    bias = biases.get(node.output[0])
    if node.op_type == "Gemm" and len(node.input) > 2:
        bias = (node.input[2], node.output[0])
    name = tensor_name(node.input[1])
    return Linear(
        name=name, weight=tensor, activation=model.activations.get(name),
        input=_divided(editor, node.input[0], model.smoothing.get(name)),
        output=node.output[0] if bias is None else bias[1], bias=None if bias is None else bias[0], table=table,
    )  # fmt: skip


def _rows_written(
    editor: Editor, node: Any, name: str, tensor: Tensor, rows: TableRule, shared: bool
) -> bool:  # fmt: skip
    """Whether the look-up of rows was written, of integers by the rule, of places in a code book where ``shared``."""
    if is_shared(tensor):
        return shared and shared_rows(editor, name, tensor, node.input[1], node.output[0])
    return is_integer(tensor) and rows(editor, name, tensor, node.input[1], node.output[0])


def _give_values(editor: Editor, node: Any, model: Model, rule: ValueRule | None) -> None:
    """Every weight that the node reads comes from its stored form; nodes of a branch read it from the main graph."""
    for position, name in enumerate(node.input):
        if _is_stored(model.tensors.get(tensor_name(name))) and name in editor.constants:
            node.input[position] = value(editor, model, name, rule)


def tensor_name(initializer: str) -> str:
    """The tensor that an initializer holds; a second copy is called ``NAME#2``."""
    return initializer.partition("#")[0]


def value(editor: Editor, model: Model, initializer: str, rule: ValueRule | None = None) -> str:
    """The float32 value of a tensor as it stands in the graph, from its stored form, by standard operators."""
    name = tensor_name(initializer)
    shape = tuple(editor.constants[initializer].dims)
    transposed = model.tensors[name].shape != shape or _is_transposed(editor, initializer, model)
    stored = (rule or stored_value)(editor, name, model.tensors[name], transposed)
    if name not in model.smoothing:
        return stored
    factors = 1 / model.smoothing[name]
    suffix = ".T" if transposed else ""
    return editor.node(
        "Mul", [stored, editor.constant(f"{name}.smoothing{suffix}", factors.T if transposed else factors)]
    )


def _divided(editor: Editor, value: str, smoothing: Array | None) -> str:
    """A layer's input without its outliers.

    A QuantizeLinear with a scale for each channel could divide as well. But ONNX Runtime computes that one value at a
    time, some fifty times slower than a Mul and one scale, and OpenVINO refuses it for tokens; it fuses the Mul with
    the rounding.
    """
    if smoothing is None:
        return value
    # Layers that share an input share its factors: named by their values, so that the node is made once.
    name = f"input_factors_{hashlib.blake2b(smoothing.tobytes(), digest_size=8).hexdigest()}"
    return editor.node("Mul", [value, editor.constant(name, 1 / smoothing.reshape(-1))])


def stored_value(editor: Editor, name: str, tensor: Tensor, transposed: bool) -> str:
    """The float32 value of a tensor's stored form."""
    if is_shared(tensor):
        return shared_values(editor, name, tensor, transposed)
    if is_integer(tensor):
        return expanded(editor, name, tensor, transposed)
    suffix = ".T" if transposed else ""
    stored = tensor.integers if isinstance(tensor, QuantizedTensor) else tensor
    constant = editor.constant(f"{name}.{stored.dtype.name}{suffix}", stored.T if transposed else stored)
    if not isinstance(tensor, QuantizedTensor):
        return editor.node("Cast", [constant], to=TensorProto.FLOAT)
    # Runtimes keep DequantizeLinear over eight-bit floats, OpenVINO a Cast and a Mul as well, and would compute it
    # with every query. Past float16, which holds each of these floats exactly, both fold it when they load the graph.
    half = editor.node("Cast", [constant], to=TensorProto.FLOAT16)
    scale = tensor.scale.reshape([-1 if axis == tensor.spec.axis else 1 for axis in range(len(tensor.shape))])
    scale_name = editor.constant(f"{name}.scale{suffix}", scale.T if transposed else scale)
    return editor.node("Mul", [editor.node("Cast", [half], to=TensorProto.FLOAT), scale_name])


def dequantized(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    """DequantizeLinear over the stored integers: one axis of scales, or blocks for groups.

    Not every runtime takes a last block that is shorter, so such a tensor is filled up and the rest sliced off.
    """
    spec = tensor.spec
    suffix = ".T" if transposed else ""
    axis = (1 - spec.axis) if transposed else spec.axis
    integers, signed = (tensor.integers.T if transposed else tensor.integers), spec.symmetric
    attributes = {"axis": axis}
    width, missing = integers.shape[1 - axis] if integers.ndim > 1 else 0, 0
    if spec.granularity == "group":
        assert spec.group_size is not None
        attributes = {"axis": 1 - axis, "block_size": spec.group_size}
        missing = -width % spec.group_size
        integers = np.pad(integers, [(0, missing if place == 1 - axis else 0) for place in range(2)])

    def laid_out(scales: Array) -> Array:
        if spec.granularity == "group":
            return scales if axis == 0 else scales.T
        return scales.reshape(()) if spec.granularity == "tensor" else scales.reshape(-1)

    stored = narrow(editor, f"{name}.integers{suffix}", integers, spec.bits, signed)
    inputs = [stored, scale_constant(editor, f"{name}.scale{suffix}", laid_out(tensor.scale))]
    if tensor.zero_point is not None:
        zero_point = laid_out(tensor.zero_point)
        inputs.append(narrow(editor, f"{name}.zero_point{suffix}", zero_point, spec.bits, False))
    values = editor.node("DequantizeLinear", inputs, "", "", **attributes)
    if not missing:
        return values
    start, stop, along = (
        editor.constant(f"slim_slice_{number}", np.array([number], np.int64)) for number in (0, width, 1 - axis)
    )
    return editor.node("Slice", [values, start, stop, along])


def int8_weight(
    editor: Editor, name: str, tensor: QuantizedTensor, unsigned: bool = False, table: bool = False,
    by_operator: bool = False,
) -> tuple[str, str, str]:  # fmt: skip
    """Names of int8 (or uint8) integers [in, out], their scale [out] and zero point for arithmetic on eight bits.

    Eight bits a channel are the artifact's own integers. Fewer bits, or groups, expand when the runtime loads the
    graph: constant nodes dequantize the packed integers and round them to eight bits with one scale a channel, at
    most half a step of that finer grid away. ``unsigned`` adds 128 to signed integers and to their zero point.
    Those of a ``table`` are stored as its rows are, once for both, and come to the same when the graph is loaded.
    ``by_operator`` dequantizes blocks by one DequantizeLinear where it can, for a runtime that folds it behind a
    Transpose: of what a graph is folded by, every node's result is held until the end.
    """
    spec = tensor.spec
    if is_eight_bit(tensor) and not table:
        tensor = shifted(tensor) if unsigned else tensor
        transposed = spec.axis == 0
        integers = integer_constant(editor, f"{name}.integers{'.T' if transposed else ''}", tensor, transposed)
        scale = np.broadcast_to(tensor.scale.reshape(-1), (tensor.shape[spec.axis],)).astype(np.float32)
        zero = np.zeros(scale.shape, np.int8)
        if tensor.zero_point is not None:
            zero = np.broadcast_to(tensor.zero_point.reshape(-1), scale.shape).astype(np.uint8)
        return (
            integers,
            editor.constant(f"{name}.scale", scale),
            editor.constant(f"{name}.zero_point", zero),
        )
    scale = eight_bit_scale(tensor)
    if is_eight_bit(tensor) and tensor.zero_point is None:
        scale = np.broadcast_to(tensor.scale.reshape(-1), scale.shape).astype(np.float32)
    scale_name = editor.constant(f"{name}.int8_scale", scale)
    zero_name = editor.constant(f"{name}.int8_zero_point", middle(scale.shape, unsigned))
    if by_operator and not table and whole_blocks(tensor):
        wide = editor.node("Transpose", [dequantized(editor, name, tensor, transposed=False)], perm=[1, 0])
    else:
        wide = expanded(editor, name, tensor, transposed=spec.axis == 0)
    return editor.node("QuantizeLinear", [wide, scale_name, zero_name], axis=1), scale_name, zero_name


def quantized_input(editor: Editor, layer: Linear) -> tuple[str, str, str]:
    """The static rounding of a layer's input: names of the uint8 value, its scale and zero point."""
    assert layer.activation is not None
    # Layers that share an input share its range: name the constants by value, so that the node is made once.
    scale = editor.constant(f"input_scale_{layer.activation.scale!r}", np.array(layer.activation.scale, np.float32))
    zero = editor.constant(
        f"input_zero_point_{layer.activation.zero_point}", np.array(layer.activation.zero_point, np.uint8)
    )
    return editor.node("QuantizeLinear", [layer.input, scale, zero]), scale, zero


def integer_constant(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    integers = tensor.integers.T if transposed else tensor.integers
    return narrow(editor, name, integers, tensor.spec.bits, tensor.spec.symmetric)


def _write_convolution(
    editor: Editor, node: Any, name: str, tensor: QuantizedTensor, how: ActivationQuant, unsigned: bool
) -> None:
    """A convolution of dequantized values, whose bias is an integer of input scale times weight scale."""
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = numpy_helper.to_array(editor.constants[node.input[2]]).astype(np.float64)
    least = 0.0 if bias is None else np.abs(bias) / (how.scale * LARGEST_BIAS)
    node.input[1], scale = _eight_bit_kernel(editor, name, tensor, unsigned, least)
    if bias is not None:
        step = np.where(scale > 0, how.scale * scale.astype(np.float64), 1)
        stored = editor.constant(f"{name}.bias", np.rint(bias / step).astype(np.int32))
        steps = _bias_scale(editor, name, step, how.scale)
        node.input[2] = editor.node("DequantizeLinear", [stored, steps], axis=0)
    editor.nodes.append(node)


def _eight_bit_kernel(
    editor: Editor, name: str, tensor: QuantizedTensor, unsigned: bool, least: Array | float
) -> tuple[str, Array]:
    """The dequantized kernel on a grid of eight bits, and that grid's scale [channels].

    Four bits with one scale a channel are numbers of that scale's grid as they are. Scales are at least ``least``
    [channels]: a channel whose weights are tiny or zero beside its bias gets a coarser grid, which its bias fits into.
    """
    of_four = tensor.spec.bits == 4 and tensor.spec.symmetric and tensor.spec.granularity != "group" and not unsigned
    if is_eight_bit(tensor) or of_four:
        scale = np.broadcast_to(tensor.scale.reshape(-1), (tensor.shape[tensor.spec.axis],)).astype(np.float32)
        if (scale >= least).all():
            if of_four:
                return _widened(editor, name, tensor), scale
            return dequantized(editor, name, shifted(tensor) if unsigned else tensor, transposed=False), scale
    scale = eight_bit_scale(tensor, least)
    wide = expanded(editor, name, tensor)
    limits = [
        editor.constant(f"{name}.int8_scale", scale),
        editor.constant(f"{name}.int8_zero_point", middle(scale.shape, unsigned)),
    ]
    integers = editor.node("QuantizeLinear", [wide, *limits], axis=tensor.spec.axis)
    return editor.node("DequantizeLinear", [integers, *limits], axis=tensor.spec.axis), scale


def _bias_scale(editor: Editor, name: str, step: Array, input_scale: float) -> str:
    """The steps of a bias [channels]; where the kernel's scale is stored, the product of it and the input's."""
    kernel = editor.constants.get(f"{name}.scale")
    if kernel is None or not np.allclose(numpy_helper.to_array(kernel) * input_scale, step, rtol=1e-6, atol=0):
        return editor.constant(f"{name}.bias_scale", step.astype(np.float32))
    factor = editor.constant(f"input_scale_{input_scale!r}", np.array(input_scale, np.float32))
    return editor.node("Mul", [f"{name}.scale", factor])


def _widened(editor: Editor, name: str, tensor: QuantizedTensor) -> str:
    """The dequantized kernel of four bits, whose integers are eight bits wide once the graph is loaded."""
    stored = narrow(editor, f"{name}.integers", tensor.integers, tensor.spec.bits, True)
    scale = tensor.scale.reshape(-1) if tensor.spec.granularity == "channel" else tensor.scale.reshape(())
    inputs = [editor.node("Cast", [stored], to=TensorProto.INT8), scale_constant(editor, f"{name}.scale", scale)]
    return editor.node("DequantizeLinear", inputs, axis=tensor.spec.axis)


def _weight_position(node: Any, model: Model) -> int | None:
    """Which input of the node is a weight whose stored form is not float32."""
    stored = (position for position, name in enumerate(node.input) if _is_stored(model.tensors.get(tensor_name(name))))
    return next(stored, None)


def _is_stored(tensor: Tensor | None) -> bool:
    return isinstance(tensor, QuantizedTensor) or (tensor is not None and tensor.dtype in (np.float16, BFLOAT16))


def _is_linear(node: Any, position: int, tensor: QuantizedTensor) -> bool:
    if len(tensor.shape) != 2 or position != 1:
        return False
    if node.op_type == "Gemm":
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        return plain and settings.get("transB", 0) == 1 - tensor.spec.axis
    return bool(node.op_type == "MatMul")


def _is_transposed(editor: Editor, initializer: str, model: Model) -> bool:
    """Whether a square weight stands transposed in the graph: told by its values."""
    name = tensor_name(initializer)
    shape = model.tensors[name].shape
    if len(shape) != 2 or shape[0] != shape[1]:
        return False
    stands = numpy_helper.to_array(editor.constants[initializer])
    return not np.array_equal(stands, unsmoothed(model, name))


def _biases(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """MatMul output to (bias, output of the Add), where an Add of a vector is its only use."""
    vectors = {initializer.name for initializer in graph.initializer if len(initializer.dims) == 1}
    uses: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    kept = {output.name for output in graph.output}
    found = {}
    for node in graph.node:
        if node.op_type != "MatMul" or node.output[0] in kept or len(uses.get(node.output[0], ())) != 1:
            continue
        [user] = uses[node.output[0]]
        others = [name for name in user.input if name != node.output[0]]
        if user.op_type == "Add" and len(others) == 1 and others[0] in vectors:
            found[node.output[0]] = (others[0], user.output[0])
    return found
