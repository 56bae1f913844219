"""The binary that CTranslate2's converters write: a list of named arrays, read without its library.

Little-endian: version (uint32), name of the specification, its revision (uint32), then the number of variables (uint32)
and of each its name, rank (uint8), sizes (uint32 each), dtype (uint8), number of bytes (uint32), bytes; then the number
of aliases (uint32) and of each the name and that of the variable it stands for. A name is its length (uint16), the
closing zero included, and its bytes. (OpenNMT/CTranslate2, versions 4 to 6 of the format.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array

VERSIONS = (4, 5, 6)
DTYPES: Mapping[int, np.dtype[np.generic]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
    5: np.dtype(ml_dtypes.bfloat16),
}
HIGHEST_RANK = 8


class _Cursor:
    """A place in bytes, none of which is read beyond their end."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name, self.at = memoryview(content), name, 0

    def bytes(self, count: int) -> memoryview:
        if count > len(self.content) - self.at:
            raise UsageError(
                f"{self.name} is cut: {count} bytes are announced at byte {self.at}, "
                f"and {len(self.content) - self.at} are left"
            )
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self.bytes(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        content = bytes(self.bytes(self.number("H")))
        if not content.endswith(b"\0") or not content[:-1].isascii():
            raise UsageError(f"{self.name} is no binary of CTranslate2: no name stands before byte {self.at}")
        return content[:-1].decode("ascii")


def variables(content: bytes, name: str, specification: str) -> dict[str, Array]:
    """Every array by its name, by those of its aliases too, in the dtype it is stored in.

    Args:
        content: of the whole file.
        name: of the file, for messages.
        specification: what the model must be, such as ``WhisperSpec``.

    Raises:
        UsageError: it is cut, of another kind or version, or says of an array what its bytes do not bear out.
    """
    cursor = _Cursor(content, name)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise UsageError(f"{name} has version {version}; binaries of CTranslate2 of {VERSIONS[0]} to {VERSIONS[-1]} "
                         "are read")  # fmt: skip
    found = cursor.text()
    if found != specification:
        raise UsageError(f"{name} holds a {found}; {specification} is read")
    cursor.number("I")
    arrays = dict(_variable(cursor) for _ in range(cursor.number("I")))
    for _ in range(cursor.number("I")):
        alias, own = cursor.text(), cursor.text()
        if own not in arrays:
            raise UsageError(f"{name}: {alias} stands for {own}, which is not there")
        arrays[alias] = arrays[own]
    if cursor.at != len(content):
        raise UsageError(f"{name} has {len(content) - cursor.at} bytes too many")
    return arrays


def _variable(cursor: _Cursor) -> tuple[str, Array]:
    name, rank = cursor.text(), cursor.number("B")
    if rank > HIGHEST_RANK:
        raise UsageError(f"{cursor.name}: {name} has {rank} axes; at most {HIGHEST_RANK} are read")
    shape = tuple(cursor.number("I") for _ in range(rank))
    kind, size = cursor.number("B"), cursor.number("I")
    if kind not in DTYPES:
        raise UsageError(f"{cursor.name}: {name} is of type {kind}; {min(DTYPES)} to {max(DTYPES)} are known")
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != size:
        raise UsageError(f"{cursor.name}: {name} has {size} bytes, which are no {list(shape)} of {dtype}")
    return name, np.frombuffer(cursor.bytes(size), dtype).reshape(shape)
