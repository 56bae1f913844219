"""ONNX Runtime: fused attention and GELU; eight-bit products with float results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slimseek.backends._session import open_function, open_session
from slimseek.bases import Backend
from slimseek.plugins import load, require
from slimseek.schema import Array, Encode, Function, Model, QuantizedTensor
from slimseek.timing import versions

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
FUNCTIONS = ("encoder", "decoder")
SMALLEST_BLOCK = 16


class OnnxRuntime(Backend):
    """One ``model.onnx``; contrib operators where they are faster, standard ones elsewhere."""

    transcribes: ClassVar[bool] = True

    def available(self) -> str | None:
        """Always: onnxruntime comes with slimseek itself."""
        return None

    def versions(self) -> dict[str, str]:
        """The runtime."""
        return versions(("onnxruntime",))

    def lowered(self, graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
        """With contrib operators for linear layers and tables."""
        saturates = any(how.mode == "static" for how in model.activations.values()) and _saturates()
        lower = require("slimseek.backends._lowering").lower
        return lower(graph, model, _linear, _table, unsigned=saturates)  # type: ignore[no-any-return]

    def export(self, model: Model, folder: Path, ready: None = None) -> None:
        """Fuse the float graph, put the integers in, write one file; of a recogniser one for each function."""
        if model.spec.autoregressive:
            attention = require("slimseek.backends._cached_attention").joined
            write = require("slimseek.backends._functions").write_functions
            graphs = load("models", model.spec.family)().functions(model)
            write(graphs, folder, lambda graph: self.lowered(attention(graph), model))
            return
        lowered = self.lowered(require("slimseek.backends._fusion").fused(model), model)
        joined = require("slimseek.backends._attention").join_projections(lowered)
        small = require("slimseek.backends._sparse").thinned(joined)
        require("slimseek.backends._fusion").write(small, folder / FILE)

    def open(self, folder: Path, threads: int) -> Encode:
        """A session with exactly ``threads`` threads."""
        return open_session(folder / FILE, threads)

    def function(self, folder: Path, name: str, threads: int) -> Function:
        """A session with exactly ``threads`` threads."""
        return open_function(folder / f"{name}.onnx", threads)

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """Read from the graph, or those of a recogniser."""
        if not (folder / FILE).is_file():
            found = require("slimseek.backends._functions").stored_functions(folder, FUNCTIONS)
            return found  # type: ignore[no-any-return]
        return require("slimseek.backends._stored").stored(folder / FILE)  # type: ignore[no-any-return]


def _linear(editor, layer) -> None:  # type: ignore[no-untyped-def]
    """Float input: a float product. Rounded input: MatMulIntegerToFloat, whose result is float again."""
    lowering = require("slimseek.backends._lowering")
    if layer.activation is None:
        transposed = layer.weight.spec.axis == 0
        weight = require("slimseek.backends._expansion").expanded(editor, layer.name, layer.weight, transposed)
        _with_bias(editor, "MatMul", [layer.input, weight], layer)
        return
    weight, scale, zero = lowering.int8_weight(
        editor, layer.name, layer.weight, _saturates(), layer.table, by_operator=True
    )
    if layer.activation.mode == "static":
        rounded, input_scale, input_zero = lowering.quantized_input(editor, layer)
        inputs = [rounded, weight, input_scale, scale, input_zero, zero, *([layer.bias] if layer.bias else [])]
        editor.contrib("MatMulIntegerToFloat", inputs, layer.output)
        return
    rounded, largest, step, middle = _rounded_rows(editor, layer.input)
    product = editor.contrib("MatMulIntegerToFloat", [rounded, weight, step, scale, middle, zero])
    _with_bias(editor, "Mul", [product, largest], layer)


def _saturates() -> bool:
    return bool(require("slimseek.backends._saturation").saturates())


def _rounded_rows(editor, value: str) -> tuple[str, str, str, str]:  # type: ignore[no-untyped-def]
    """Each row divided by its largest value and rounded to uint8 around 128: (rows, largest values, step, middle)."""
    last = editor.constant("slim_last_axis", np.array([-1], np.int64))
    largest = editor.node("ReduceMax", [editor.node("Abs", [value]), last], keepdims=1)
    largest = editor.node("Max", [largest, editor.constant("slim_smallest", np.float32(1e-12))])
    step = editor.constant("slim_step", np.float32(1 / 127))
    middle = editor.constant("slim_middle", np.uint8(128))
    return editor.node("QuantizeLinear", [editor.node("Div", [value, largest]), step, middle]), largest, step, middle


def _with_bias(editor, kind: str, inputs: list[str], layer) -> None:  # type: ignore[no-untyped-def]
    if layer.bias is None:
        editor.node(kind, inputs, layer.output)
    else:
        editor.node("Add", [editor.node(kind, inputs), layer.bias], layer.output)


def _table(editor, name: str, table: QuantizedTensor, indices: str, output: str) -> bool:  # type: ignore[no-untyped-def]
    """Rows of four-bit groups through GatherBlockQuantized, rows of eight bits through Gather; both stay packed."""
    lowering = require("slimseek.backends._lowering")
    spec = table.spec
    size = spec.group_size or 0
    fits = size >= SMALLEST_BLOCK and size & (size - 1) == 0 and table.shape[1] % size == 0
    if spec.granularity == "group" and spec.bits == 4 and fits:
        integers = lowering.integer_constant(editor, f"{name}.integers", table, transposed=False)
        inputs = [integers, indices, lowering.scale_constant(editor, f"{name}.scale", table.scale)]
        if table.zero_point is not None:
            inputs.append(lowering.narrow(editor, f"{name}.zero_point", table.zero_point, spec.bits, signed=False))
        editor.contrib("GatherBlockQuantized", inputs, output, gather_axis=0, quantize_axis=1, block_size=size)
        return True
    return bool(require("slimseek.backends._expansion").gather_rows(editor, name, table, indices, output))
