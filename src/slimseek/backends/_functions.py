"""The graphs of a model, of a recogniser two, as files of a package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from slimseek.backends._fusion import write
from slimseek.backends._sparse import thinned
from slimseek.backends._stored import stored
from slimseek.schema import Array


def write_functions(
    graphs: Mapping[str, onnx.ModelProto], folder: Path, lowered: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    """Each graph by its name, lowered, as ``NAME.onnx``."""
    for name, graph in graphs.items():
        write(thinned(lowered(graph)), folder / f"{name}.onnx")


def stored_functions(folder: Path, names: tuple[str, ...]) -> Mapping[str, Array]:
    """The integers of all graphs by their tensor's name (see :mod:`slimseek.backends._stored`)."""
    return {name: array for file in names for name, array in stored(folder / f"{file}.onnx").items()}
