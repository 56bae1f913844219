"""Reads .nb files of Paddle Lite: the parameters, and the scales that their operators hold.

A file is a version (uint16), the library's version (16 bytes), the size of the program (uint64), the program, and the
parameters one after another. Program and parameters are flatbuffers (framework.fbs and param.fbs of Paddle Lite).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slimseek.backends._paddlelite.format import PREFIX, SCALES, TYPES
from slimseek.errors import UsageError
from slimseek.schema import Array

VERSION = 2
DTYPES = {number: name for name, number in TYPES.items()}


class Table:
    """One table of a flatbuffer: fields by their place in the schema."""

    def __init__(self, held: bytes, at: int) -> None:
        self.held, self.at = held, at
        self._fields = at - struct.unpack_from("<i", held, at)[0]

    def _place(self, field: int) -> int | None:
        size = struct.unpack_from("<H", self.held, self._fields)[0]
        offset = struct.unpack_from("<H", self.held, self._fields + 4 + 2 * field)[0] if 4 + 2 * field < size else 0
        return self.at + offset if offset else None

    def number(self, field: int) -> int:
        """An int32; 0 where it is left out."""
        place = self._place(field)
        return 0 if place is None else int(struct.unpack_from("<i", self.held, place)[0])

    def table(self, field: int) -> Table | None:
        """A table inside of this one."""
        place = self._target(field)
        return None if place is None else Table(self.held, place)

    def vector(self, field: int, dtype: str) -> Array:
        """Numbers."""
        place = self._target(field)
        if place is None:
            return np.zeros(0, dtype)
        count = struct.unpack_from("<I", self.held, place)[0]
        return np.frombuffer(self.held, dtype, count, place + 4)

    def text(self, field: int) -> str:
        """A string."""
        return self.vector(field, "uint8").tobytes().decode()

    def tables(self, field: int) -> Iterator[Table]:
        """Tables in a vector."""
        for place in self._targets(field):
            yield Table(self.held, place)

    def texts(self, field: int) -> list[str]:
        """Strings in a vector."""
        found = []
        for place in self._targets(field):
            count = struct.unpack_from("<I", self.held, place)[0]
            found.append(self.held[place + 4 : place + 4 + count].decode())
        return found

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + int(struct.unpack_from("<I", self.held, place)[0])

    def _targets(self, field: int) -> list[int]:
        start = self._target(field)
        if start is None:
            return []
        count = struct.unpack_from("<I", self.held, start)[0]
        places = [start + 4 + 4 * number for number in range(count)]
        return [place + int(struct.unpack_from("<I", self.held, place)[0]) for place in places]


def read(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The parameters of a file as they are stored, and the scales of those that have some in an operator, by name.

    Raises:
        UsageError: it is no such file.
    """
    held = path.read_bytes()
    try:
        version, size = struct.unpack_from("<H16xQ", held)
        if version != VERSION:
            raise ValueError(version)
        program = held[26 : 26 + size]
        return dict(_parameters(held, 26 + size)), dict(_scales(_root(program)))
    except (ValueError, struct.error, KeyError) as error:
        raise UsageError(f"{path} is not a .nb file of Paddle Lite 2.13") from error


def _parameters(held: bytes, at: int) -> Iterator[tuple[str, Array]]:
    at += 4 + struct.unpack_from("<H", held, at + 2)[0]
    meta, count = struct.unpack_from("<HH", held, at)
    at += 2 + meta
    for _ in range(count):
        total, offset = struct.unpack_from("<II", held, at)
        parameter = _root(held[at + 4 + offset : at + 4 + total])
        tensor = parameter.table(3)
        assert tensor is not None
        dtype, shape = DTYPES[tensor.number(3)], tensor.vector(2, "int64")
        yield parameter.text(1).removeprefix(PREFIX), tensor.vector(4, "uint8").view(dtype).reshape(shape)
        at += 4 + total


def _scales(program: Table) -> Iterator[tuple[str, Array]]:
    for block in program.tables(0):
        for operator in block.tables(3):
            inputs = {one.text(0): one.texts(1) for one in operator.tables(1)}
            for attribute in operator.tables(3):
                name = attribute.text(0)
                if name.endswith(SCALES):
                    yield name.removeprefix(PREFIX).removesuffix(SCALES), attribute.vector(6, "float32")
                elif name == "Filter0_scale":
                    yield inputs["Filter"][0].removeprefix(PREFIX), attribute.vector(6, "float32")


def _root(held: bytes) -> Table:
    return Table(held, struct.unpack_from("<I", held)[0])
