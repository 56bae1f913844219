"""ExecuTorch: a program of XNNPACK's kernels for phones and other devices, written from the artifact's integers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.backends._shapes import row_by_row
from slimseek.bases import Backend
from slimseek.errors import UsageError, first_line
from slimseek.folder import write_json
from slimseek.plugins import load, require
from slimseek.schema import Array, Batch, Encode, Model, ModelSpec
from slimseek.timing import versions

FILE = "model.pte"
SETTINGS = "executorch.json"
METHOD = "forward"
LEAST = 2
"""Tokens: PyTorch's exporter takes a length that may be 1 for a constant."""


class ExecuTorch(Backend):
    """One ``model.pte``, and ``executorch.json`` with what a caller needs to know of it."""

    def available(self) -> str | None:
        """Whether the library is installed, and torchao, which its exporter needs."""
        return self.runs() or _missing("torchao")

    def runs(self) -> str | None:
        """Programs are opened without the exporter."""
        return _missing("executorch")

    def versions(self) -> dict[str, str]:
        """The library and the two that write its programs."""
        return versions(("executorch", "torch", "torchao"))

    def preflight(self, model: Model) -> tuple[Any, Model]:
        """Build the network that the exporter will see."""
        return _network(model)

    def export(self, model: Model, folder: Path, ready: tuple[Any, Model] | None = None) -> None:
        """The network of the artifact's integers through PyTorch's exporter and XNNPACK's partitioner."""
        network, taken = ready or _network(model)
        program, storage = _part("program"), _part("storage")
        content = program.program(network, _example(model.spec), _longest(model.spec))
        (folder / FILE).write_bytes(content)
        settings = {
            "inputs": [one.name for one in model.spec.inputs],
            "longest": _longest(model.spec) or 0,
            "stored": msgspec.to_builtins(storage.described(network.kept, model, taken)),
        }
        write_json(folder / SETTINGS, settings)

    def open(self, folder: Path, threads: int) -> Encode:
        """Load the program; its threads are those of the whole process."""
        torch, runtime = require("torch"), require("executorch.runtime").Runtime.get()
        require("executorch.kernels.quantized")
        require("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        settings = msgspec.json.decode((folder / SETTINGS).read_bytes())
        try:
            program = runtime.load_program(folder / FILE)
            method = program.load_method(METHOD)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"ExecuTorch cannot load {folder / FILE}: {first_line(error)}") from error

        def run(batch: Batch) -> Array:
            inputs = [torch.from_numpy(np.ascontiguousarray(batch[name])) for name in settings["inputs"]]
            try:
                found = method.execute(inputs)[0]
            except RuntimeError as error:
                raise UsageError(f"ExecuTorch cannot run {folder / FILE}: {first_line(error)}") from error
            vectors: Array = found.numpy().copy()
            return vectors

        longest = settings["longest"]
        return row_by_row(run, least=LEAST if longest else 0, longest=longest)

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """Out of the constants of the program."""
        storage = _part("storage")
        settings = msgspec.json.decode((folder / SETTINGS).read_bytes())
        entries = [msgspec.convert(one, storage.Stored) for one in settings["stored"]]
        found: Mapping[str, Array] = storage.integers((folder / FILE).read_bytes(), entries)
        return found


def _missing(library: str) -> str | None:
    """What would bring a library that is not there."""
    return None if versions((library,)) else f"{library} is not installed; run: pip install 'slimseek[executorch]'"


def _part(name: str) -> Any:
    return require(f"slimseek.backends._executorch.{name}")


def _network(model: Model) -> tuple[Any, Model]:
    """The PyTorch network of a model, and the model in the forms that the runtime takes."""
    for one in model.spec.inputs:
        free = [axis for axis in one.shape[1:] if isinstance(axis, str)]
        if free and model.spec.preprocess is None:
            raise UsageError(
                f"ExecuTorch: the input {one.name} has the free axis {free[0]!r}; here programs for arrays have one "
                f"shape; deploy for onnxruntime instead"
            )
    forms = _part("forms")
    taken = forms.taken(model)
    graph = load("models", model.spec.family)().to_onnx(taken)
    network = _part("network").Network(forms.lowered(graph, taken), taken).eval()
    forms.check_reached(graph, taken, network.kept)
    return network, taken


def _longest(spec: ModelSpec) -> int | None:
    return None if spec.preprocess is None else spec.preprocess.max_length


def _example(spec: ModelSpec) -> list[Any]:
    """One row: of texts some tokens, so that their number is taken for no constant."""
    torch = require("torch")
    kinds = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}
    length = min(_longest(spec) or 0, 9)
    found = []
    for one in spec.inputs:
        shape = [1, *(length if isinstance(axis, str) else axis for axis in one.shape[1:])]
        found.append(torch.ones(shape, dtype=kinds[one.dtype]))
    return found
