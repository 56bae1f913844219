"""Arrays on disk whose file ends with the sha256 of all before it: one that was cut or changed is never trusted."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.schema import Array

DIGEST = hashlib.sha256().digest_size
CHUNK = 1 << 20


def read(path: Path, shape: tuple[int, int], *, mapped: bool = True) -> Array | None:
    """The float32 array of a file; ``None`` where it is absent, cut, changed, or of another shape.

    Args:
        path: what :func:`write` wrote.
        shape: that is wanted.
        mapped: leave it on disk until it is read; else it is in memory, and its pages are not counted with the process.
    """
    try:
        left = path.stat().st_size - DIGEST
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(partial(file.read, CHUNK), b""):
                digest.update(chunk[:left] if left > 0 else b"")
                left -= len(chunk)
            file.seek(-DIGEST, os.SEEK_END)
            if file.read() != digest.digest():
                return None
        array = reading.array(path, mapped=mapped).view(np.ndarray)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None


def write(path: Path, shape: tuple[int, int], arrays: Iterable[Array]) -> None:
    """One file of float32 arrays [?, dim] below each other, renamed into place when it is whole.

    Raises:
        UsageError: it cannot be written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                digest = hashlib.sha256(header.getvalue())
                file.write(header.getvalue())
                for array in arrays:
                    content = np.ascontiguousarray(array, "<f4").tobytes()
                    digest.update(content)
                    file.write(content)
                file.write(digest.digest())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
