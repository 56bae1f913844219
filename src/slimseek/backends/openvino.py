"""OpenVINO: the standard graph with rounding marked by QuantizeLinear and DequantizeLinear, compiled for this CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from slimseek.bases import Backend
from slimseek.errors import UsageError
from slimseek.folder import write_json
from slimseek.plugins import load, require
from slimseek.schema import Array, Batch, Encode, Function, Model
from slimseek.timing import versions

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
FUNCTIONS = ("encoder", "decoder")
SETTINGS = "openvino.json"
WHOLE_ROW = 2**32 - 1
LARGEST_IN_MEMORY = 2**31 - 1
"""Bytes of a graph that is tried before it is written; a larger one does not fit in one message."""
PRECISION, FLOAT32, BFLOAT16 = "INFERENCE_PRECISION_HINT", "f32", "bf16"


class OpenVino(Backend):
    """One ``model.onnx`` of standard operators, which OpenVINO reads directly, and its compile settings."""

    transcribes: ClassVar[bool] = True

    def available(self) -> str | None:
        """Whether the library is installed."""
        if versions(("openvino",)):
            return None
        return "openvino is not installed; run: pip install 'slimseek[openvino]'"

    def versions(self) -> dict[str, str]:
        """The runtime."""
        return versions(("openvino",))

    def preflight(self, model: Model) -> Mapping[str, onnx.ModelProto]:
        """Compile the float graph: what the runtime has no operator for, or cannot compute in free shapes, is found
        now.
        """
        graphs: Mapping[str, onnx.ModelProto] = load("models", model.spec.family)().functions(model)
        for name, graph in graphs.items():
            if graph.ByteSize() <= LARGEST_IN_MEMORY:
                _compiled(graph.SerializeToString(), f"the graph of the {name}", {PRECISION: FLOAT32})
        return graphs

    def lowered(self, graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
        """With standard operators alone."""
        lower, table = require("slimseek.backends._lowering").lower, require("slimseek.backends._expansion").gather_rows
        return lower(graph, model, _linear, table)  # type: ignore[no-any-return]

    def export(self, model: Model, folder: Path, ready: Mapping[str, onnx.ModelProto] | None = None) -> None:
        """Put the integers into the plain float graph, write it and the settings."""
        graphs = load("models", model.spec.family)().functions(model) if ready is None else ready
        write = require("slimseek.backends._functions").write_functions
        write(graphs, folder, lambda graph: self.lowered(graph, model))
        modes = {activation.mode for activation in model.activations.values()}
        dynamic = "dynamic" in modes
        # float32 is asked for by name: on CPUs with bfloat16 the runtime's default is the latter. Where activations
        # are rounded to eight bits anyway, what lies between the products needs no more than bfloat16's eight.
        settings = {
            PRECISION: BFLOAT16 if "static" in modes else FLOAT32,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(WHOLE_ROW if dynamic else 0),
        }
        write_json(folder / SETTINGS, settings)

    def open(self, folder: Path, threads: int) -> Encode:
        """Compile for one stream of ``threads`` threads."""
        request = _opened(folder, FILE, threads).create_infer_request()

        def encode(batch: Batch) -> Array:
            result: Array = request.infer(batch, share_inputs=True, share_outputs=True)[0].copy()
            return result

        return encode

    def function(self, folder: Path, name: str, threads: int) -> Function:
        """Compile for one stream of ``threads`` threads."""
        compiled = _opened(folder, f"{name}.onnx", threads)
        request, names = compiled.create_infer_request(), [value.any_name for value in compiled.outputs]

        def function(batch: Batch) -> Batch:
            found = request.infer(batch, share_inputs=True)
            return {output: found[place] for place, output in enumerate(names)}

        return function

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """Read from the graph, or those of a recogniser."""
        if not (folder / FILE).is_file():
            found = require("slimseek.backends._functions").stored_functions(folder, FUNCTIONS)
            return found  # type: ignore[no-any-return]
        return require("slimseek.backends._stored").stored(folder / FILE)  # type: ignore[no-any-return]


def _opened(folder: Path, file: str, threads: int) -> Any:
    """A compiled graph of a package."""
    settings = msgspec.json.decode((folder / SETTINGS).read_bytes(), type=dict[str, str])
    settings |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    return _compiled(str(folder / file), str(folder / file), settings)


def _compiled(source: str | bytes, name: str, settings: dict[str, str]) -> Any:
    """The runtime's own model of a graph, a path or its bytes; UsageError for what it does not have."""
    core = require("openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        settings = settings | {PRECISION: FLOAT32}  # a CPU without the instructions would imitate them, slowly
    try:
        return core.compile_model(core.read_model(source), "CPU", settings)
    except RuntimeError as error:  # what OpenVINO raises for operators and shapes that it does not have
        lines = str(error).strip().splitlines() or [""]
        listed = [line.strip(" -") for line in lines if line.startswith("--")]
        missing = [line for line in listed if line.startswith("No conversion")]  # others may follow from it
        why = (missing or listed or lines[-1:])[0]
        raise UsageError(f"OpenVINO cannot compile {name} ({why}); deploy for onnxruntime instead") from error


def _linear(editor, layer) -> None:  # type: ignore[no-untyped-def]
    """A MatMul of dequantized values; the runtime turns the marks around it into integer arithmetic."""
    lowering = require("slimseek.backends._lowering")
    source = layer.input
    if layer.activation is not None and layer.activation.mode == "static":
        rounded, input_scale, input_zero = lowering.quantized_input(editor, layer)
        source = editor.node("DequantizeLinear", [rounded, input_scale, input_zero])
        integers, scale, zero = lowering.int8_weight(editor, layer.name, layer.weight, table=layer.table)
        weight = editor.node("DequantizeLinear", [integers, scale, zero], axis=1)
    else:
        # DequantizeLinear keeps four and eight bits packed in memory; it has no types of other widths.
        has_type = layer.weight.spec.bits in (4, 8) and not layer.table
        write = lowering.dequantized if has_type else require("slimseek.backends._expansion").expanded
        weight = write(editor, layer.name, layer.weight, transposed=layer.weight.spec.axis == 0)
    if layer.bias is None:
        editor.node("MatMul", [source, weight], layer.output)
    else:
        editor.node("Add", [editor.node("MatMul", [source, weight]), layer.bias], layer.output)
