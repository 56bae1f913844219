"""A graph in ONNX on the CPU, by ONNX Runtime: what its own packages run in, and the stand-in of other runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from slimseek.errors import UsageError, first_line
from slimseek.schema import Array, Batch, Encode, Function


def open_session(model: Path | bytes, threads: int, settings: Mapping[str, str] | None = None) -> Encode:
    """A CPU session as an ``Encode``; its first output is the vector.

    Args:
        model: a file, or what would be in it.
        threads: exactly so many.
        settings: entries of ONNX Runtime's session configuration.
    """
    session = _session(model, threads, settings)

    def encode(batch: Batch) -> Array:
        result: Array = _run(session, None, batch)[0]
        return result

    return encode


def open_function(path: Path, threads: int) -> Function:
    """A CPU session whose outputs go by their names."""
    session = _session(path, threads)
    names = [value.name for value in session.get_outputs()]

    def function(batch: Batch) -> Batch:
        return dict(zip(names, _run(session, names, batch), strict=True))

    return function


def _run(session: Any, names: list[str] | None, batch: Batch) -> list[Array]:
    """The outputs; a graph that does not take the batch, such as one whose table lacks a token, raises UsageError."""
    try:
        found: list[Array] = session.run(names, batch)
    except (state.InvalidArgument, state.Fail, state.RuntimeException, ValueError) as error:
        raise UsageError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
    return found


def _session(model: Path | bytes, threads: int, settings: Mapping[str, str] | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, setting in (settings or {}).items():
        options.add_session_config_entry(key, setting)
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
