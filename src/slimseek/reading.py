"""Files that others wrote: only whole files of a bounded size, one kind of error for whatever is wrong in them, and
nothing outside of their folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array

LARGEST = 256 * 1024 * 1024
"""Bytes of a file that is read into memory as a whole: manifests, settings, reports."""


def content(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a file.

    Raises:
        UsageError: it is no plain file, such as a pipe, which would keep a reader waiting, or is too large.
        OSError: it is not there, or cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is no file")
    if found.st_size > most:
        raise UsageError(f"{path} has {found.st_size:,} bytes; up to {most:,} are read")
    return path.read_bytes()


def check_file(path: Path) -> Path:
    """The path as it is; UsageError where something else than a file stands there, such as a pipe."""
    if path.exists() and not is_file(path):
        raise UsageError(f"{path} is no file")
    return path


def decoded(text: bytes, kind: Any = Any) -> Any:
    """The value of JSON as ``msgspec.json.decode`` gives it.

    Raises:
        msgspec.DecodeError: it is not valid, not UTF-8, or nested too deeply; ValidationError, which is one, where it
            is of another type.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def array(path: Path, *, mapped: bool = False) -> Array:
    """An array that ``np.save`` wrote; ``mapped`` leaves it on disk until it is read.

    Raises:
        ValueError: it is cut, or no such file.
        OSError: it is not there, or cannot be read.
    """
    if path.exists() and not is_file(path):
        raise ValueError("it is no file")
    try:
        found: Array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of a header that is no header: errors of Python's own tokenizer, of memory
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if not isinstance(found, np.ndarray):
        raise ValueError("it holds several arrays")
    return found


def is_file(path: str | Path) -> bool:
    """Whether that is a file; of what can be no path at all, such as one that is too long, it is not."""
    return os.path.isfile(path)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, links followed, lies in a folder."""
    try:
        real, own = os.path.realpath(path), os.path.realpath(folder)
        return os.path.commonpath([real, own]) == own
    except (OSError, ValueError):
        return False
