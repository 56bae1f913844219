"""LiteRT (formerly TensorFlow Lite): one small file for phones, tablets and boards, with XNNPACK's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimseek.backends._shapes import row_by_row
from slimseek.bases import Backend
from slimseek.errors import UsageError
from slimseek.plugins import load, require
from slimseek.schema import Array, Batch, Encode, Model
from slimseek.timing import versions

FILE = "model.tflite"
LIBRARY = "ai-edge-litert"


class LiteRt(Backend):
    """One ``model.tflite``; the length of a text, or the number of items, is resized as it is asked for."""

    def available(self) -> str | None:
        """Whether the library is installed."""
        if versions((LIBRARY,)):
            return None
        return f"{LIBRARY} is not installed; run: pip install 'slimseek[litert]'"

    def versions(self) -> dict[str, str]:
        """The runtime."""
        return versions((LIBRARY,))

    def preflight(self, model: Model) -> bytes:
        """Make the whole file: whether LiteRT has each operator hangs on its form, too."""
        graph = load("models", model.spec.family)().to_onnx(model)
        content: bytes = require("slimseek.backends._litert.convert").convert(graph, model)
        return content

    def export(self, model: Model, folder: Path, ready: bytes | None = None) -> None:
        """Turn the float graph and the integers into one file."""
        (folder / FILE).write_bytes(self.preflight(model) if ready is None else ready)

    def open(self, folder: Path, threads: int) -> Encode:
        """An interpreter with exactly ``threads`` threads."""
        interpreter = _interpreter(folder / FILE, threads)
        inputs = {one["name"]: one for one in interpreter.get_input_details()}
        output = interpreter.get_output_details()[0]["index"]
        whole = all(one["shape_signature"][0] == -1 for one in inputs.values())

        def run(batch: Batch) -> Array:
            for name, one in inputs.items():
                if tuple(one["shape"]) != batch[name].shape:
                    interpreter.resize_tensor_input(one["index"], batch[name].shape)
            interpreter.allocate_tensors()
            for name, one in inputs.items():
                one["shape"] = batch[name].shape
                interpreter.set_tensor(one["index"], batch[name].astype(one["dtype"], copy=False))
            interpreter.invoke()
            result: Array = interpreter.get_tensor(output)
            return result

        encode_all = run if whole else row_by_row(run)

        def encode(batch: Batch) -> Array:
            try:
                return encode_all(batch)
            except (ValueError, RuntimeError) as error:
                raise UsageError(f"LiteRT cannot run {folder / FILE}: {_last_line(error)}") from error

        return encode

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """Out of the flatbuffer."""
        found: Mapping[str, Array] = require("slimseek.backends._litert.weights").read(folder / FILE)
        return found


def _interpreter(path: Path, threads: int) -> Any:
    library = require("ai_edge_litert.interpreter")
    try:
        interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"LiteRT cannot load {path} ({_last_line(error)}); deploy for onnxruntime instead") from error
    return interpreter


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1]
