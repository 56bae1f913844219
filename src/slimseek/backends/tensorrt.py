"""TensorRT: signed symmetric rounding marked in one ONNX graph; engines are built on the machine with the GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimseek.bases import Backend
from slimseek.errors import UsageError
from slimseek.folder import read_json, write_json
from slimseek.plugins import load, require
from slimseek.schema import Array, Encode, Model
from slimseek.timing import versions

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"
SETTINGS = "tensorrt.json"
RTX, CLASSIC = "tensorrt_rtx", "tensorrt"
DISTRIBUTIONS = ("tensorrt_rtx_cu12", "tensorrt_rtx_cu13", "tensorrt", "tensorrt_cu12", "tensorrt_cu13")
EXACT_MARKS = {"session.disable_quant_qdq": "1"}
"""Marks are computed as they are written, in float, rather than joined to integer products of this CPU."""


class TensorRt(Backend):
    """One ``model.onnx`` for TensorRT and TensorRT-RTX, and the shapes that its engines take."""

    def available(self) -> str | None:
        """Whether one of the two libraries is installed."""
        if _installed(RTX) or _installed(CLASSIC):
            return None
        return "neither tensorrt_rtx nor tensorrt is installed; run: pip install 'slimseek[tensorrt]'"

    def runs(self) -> str | None:
        """``None`` on a machine with an NVIDIA GPU that the library knows, its driver, and PyTorch with CUDA."""
        reason: str | None = self.available() or require("slimseek.backends._tensorrt.engine").device(_library())
        return reason

    def versions(self) -> dict[str, str]:
        """The libraries that are installed, and ONNX Runtime, which stands in for them without a GPU."""
        return versions((*DISTRIBUTIONS, "onnxruntime"))

    def preflight(self, model: Model) -> onnx.ModelProto:
        """Parse the graph with the library's own parser; a machine without TensorRT-RTX or a GPU cannot tell."""
        graph = self._graph(model)
        library = self._checks()
        if library is not None:
            require("slimseek.backends._tensorrt.engine").parse(graph, library)
        return graph

    def lowered(self, graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
        """With signed symmetric integers and dedicated marks."""
        return require("slimseek.backends._tensorrt.graph").lowered(graph, model)  # type: ignore[no-any-return]

    def export(self, model: Model, folder: Path, ready: onnx.ModelProto | None = None) -> None:
        """Write the graph, and build an engine for four kinds of GPU as the check that TensorRT takes it.

        Raises:
            UsageError: no engine can be built for any of them.
        """
        graph = self._graph(model) if ready is None else ready
        graph = require("slimseek.backends._tensorrt.half").halved(graph, model)
        require("slimseek.backends._fusion").write(graph, folder / FILE)
        write_json(folder / SETTINGS, self._settings(graph, model))

    def open(self, folder: Path, threads: int) -> Encode:
        """Build an engine for this machine's GPU; ``threads`` has no meaning there."""
        reason = self.runs()
        if reason is not None:
            raise UsageError(f"{folder} does not run here: {reason}")
        graph = require("onnx").load(folder / FILE)
        return require("slimseek.backends._tensorrt.engine").runner(graph, _read(folder), _library())  # type: ignore[no-any-return]

    def stand_in(self, folder: Path, threads: int) -> Encode:
        """The same graph in ONNX Runtime on the CPU, its rounding computed as it is written."""
        return require("slimseek.backends._session").open_session(folder / FILE, threads, EXACT_MARKS)  # type: ignore[no-any-return]

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """The artifact's integers, whose middle was moved to 0 where they were asymmetric; the rest as values."""
        graph = require("onnx").load(folder / FILE)
        return require("slimseek.backends._tensorrt.stored").stored(graph, _read(folder).weights)  # type: ignore[no-any-return]

    def _graph(self, model: Model) -> onnx.ModelProto:
        return self.lowered(load("models", model.spec.family)().to_onnx(model), model)

    def _settings(self, graph: onnx.ModelProto, model: Model) -> object:
        package, library = require("slimseek.backends._tensorrt.package"), self._checks()
        profiles = package.profiles(model.spec)
        size, built, refused = 0, (), {}
        if library is not None:
            size, built, refused = require("slimseek.backends._tensorrt.engine").check(graph, profiles, library)
        return package.Settings(
            precision=package.precision(graph),
            profiles=profiles,
            checked_with=versions(DISTRIBUTIONS) if library is not None else {},
            built_for=built,
            engine_bytes=size,
            refused=refused,
            weights=package.weights(model),
        )

    def _checks(self) -> str | None:
        """The library that can parse and build here: TensorRT itself needs a GPU for that."""
        if _installed(RTX):
            return RTX
        return CLASSIC if _installed(CLASSIC) and self.runs() is None else None


def _library() -> str:
    """The one that runs engines: TensorRT itself where both are installed."""
    return CLASSIC if _installed(CLASSIC) else RTX


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _read(folder: Path) -> Any:
    return read_json(folder / SETTINGS, require("slimseek.backends._tensorrt.package").Settings)
