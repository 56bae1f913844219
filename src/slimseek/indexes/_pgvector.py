"""Rows as PostgreSQL takes and gives them: its binary format of COPY and of pgvector's types."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from slimseek.indexes._vectors import DTYPES
from slimseek.schema import Array, Precision
from slimseek.value import Value

TYPES = {"f32": "vector", "f16": "halfvec", "binary": "bit"}
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)


class Table(Value, frozen=True, kw_only=True):
    """What ``table.json`` holds: which rows of a database an index is, and nothing of how to reach it."""

    table: str
    count: int
    precision: Precision
    digest: str


def copied(rows: Array, first: int) -> bytes:
    """Kept rows [n, width] with ids from ``first`` on, as ``COPY ... FROM STDIN (FORMAT BINARY)`` takes them.

    A vector is its width and a zero as int16 before its values, a bit string its length in bits as int32 before its
    bytes; all numbers have their high byte first.
    """
    count, width = rows.shape
    bits = rows.dtype == np.uint8
    kind = np.dtype(rows.dtype).newbyteorder(">")
    head = np.array([8 * width], ">i4") if bits else np.array([width, 0], ">i2")
    record = np.empty(
        count,
        [("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("bytes", ">i4"), ("head", "V4"), ("row", kind, width)],
    )
    record["fields"], record["id_bytes"], record["bytes"] = 2, 8, 4 + width * kind.itemsize
    record["id"] = np.arange(first, first + count)
    record["head"], record["row"] = head.view("V4"), rows.reshape(count, *record["row"].shape[1:])
    return COPY_HEADER + record.tobytes() + COPY_END


def rows_from(values: Sequence[bytes], precision: Precision) -> Array:
    """Kept rows [n, width] from what the server sends of a column in its binary format."""
    kind = np.dtype(DTYPES[precision])
    sent = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)[:, 4:]
    return np.ascontiguousarray(sent).view(kind.newbyteorder(">")).astype(kind)


def literal(query: Array) -> str:
    """A query [width], floats or packed signs, as SQL writes it."""
    if query.dtype == np.uint8:
        return "".join(map(str, np.unpackbits(query)))
    return f"[{','.join(map(str, query.tolist()))}]"
