"""Vectors in PostgreSQL with pgvector, for those who keep their documents there: the folder names a table, no more."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psycopg
from psycopg import sql

from slimseek import folder as folders
from slimseek.errors import ArtifactError, UsageError
from slimseek.indexes import _vectors
from slimseek.indexes._growing import Growing
from slimseek.indexes._pgvector import TYPES, Table, copied, literal, rows_from
from slimseek.schema import Array, Precision

DATABASE = "SLIMSEEK_DATABASE"
FILE = "table.json"
MOST_FOUND = 1000
"""The largest ``hnsw.ef_search``; more candidates are found by scoring every row."""
WIDEST = {"f32": 2000, "f16": 4000, "binary": 64000}
"""Dimensions that a graph of pgvector takes; wider vectors are searched without one."""


class PgVector(Growing):
    """A table (id, vector) for each index that is saved, with a graph (HNSW) from 10,000 rows on.

    Floats are ``vector`` or ``halfvec`` and go by inner product, signs are ``bit`` and go by Hamming distance; what the
    server finds is scored again as in ``exact``. pgvector has no type for int8. The server is that of the environment
    variable ``SLIMSEEK_DATABASE`` (a ``postgresql://`` address), or what libpq's own variables and files say; nothing
    of it is written into the folder. What was built lies in one transaction that ``save`` ends, so that a process that
    is killed leaves no table. A table never changes: one that grows is a new one, and the old is dropped by ``forget``.

    Args:
        precision: how vectors are kept: f32, f16 or binary.
        graph_from: rows from which on a graph is made.
    """

    precisions: ClassVar[tuple[Precision, ...]] = ("f32", "f16", "binary")

    def __init__(self, *, precision: Precision = "f32", graph_from: int = 10_000) -> None:
        """An empty index; no server, or a precision that pgvector has no type for, raises UsageError."""
        super().__init__(precision=precision)
        if precision not in self.precisions:
            raise UsageError(f"pgvector keeps no {precision} vectors; it keeps {', '.join(self.precisions)}")
        self._graph_from = graph_from
        self._lock = threading.RLock()
        self._connection: psycopg.Connection | None = None
        self._name = ""
        self._count = 0
        self._saved = False
        self._run("SELECT 1")  # a server that does not answer is known before any document is encoded

    def remove(self, ids: Array) -> None:
        """Give up vectors in a new table, in which the others move up; an unknown id raises UsageError."""
        ids = _vectors.checked_ids(ids, self._count)
        old, drop = self._name, not self._saved
        self._new_table()
        self._run(
            "INSERT INTO {new} SELECT row_number() OVER (ORDER BY id) - 1, vector FROM {old} WHERE id <> ALL(%s)",
            (ids.tolist(),), old=old,
        )  # fmt: skip
        self._count -= len(ids)
        if drop:
            self._run("DROP TABLE {old}", old=old)

    def save(self, folder: Path) -> None:
        """Make the graph, end the transaction, and write ``table.json`` and, for binary, ``ranges.npy``."""
        if not self._saved:
            if self._count >= self._graph_from and self._dim <= WIDEST[self.precision]:
                operators = "bit_hamming_ops" if self.precision == "binary" else f"{TYPES[self.precision]}_ip_ops"
                self._run(f"CREATE INDEX ON {{new}} USING hnsw (vector {operators})")
            self._run("ANALYZE {new}")
        table = Table(table=self._name, count=self._count, precision=self.precision, digest=self._digest())
        folders.write_json(folder / FILE, table)
        if self._ranges is not None:
            np.save(folder / _vectors.RANGES, self._ranges, allow_pickle=False)
        if not self._saved:
            self._run("COMMIT")
            self._saved = True

    def load(self, folder: Path) -> None:
        """Find the table that a folder names; one that is gone or changed raises ArtifactError.

        Raises:
            UsageError: no server answers.
        """
        table = folders.read_json(folder / FILE, Table)
        if table.precision != self.precision:
            raise ArtifactError(f"{folder / FILE} names a table of {table.precision} vectors; index again")
        self._ranges = _vectors.load_ranges(folder, self.precision)
        self._name, self._count, self._saved = table.table, table.count, True
        if self._run("SELECT to_regclass(%s)", (table.table,))[0][0] is None:
            raise ArtifactError(f"{folder / FILE} names the table {table.table}, which the database does not have")
        if self._digest() != table.digest:
            raise ArtifactError(f"{folder / FILE}: the table {table.table} was changed after it was written")
        self._width = self._kept(np.zeros(1, np.int64)).shape[1]
        self._dim = self._width if self._ranges is None else int(self._ranges.shape[1])

    def forget(self) -> None:
        """Drop the table."""
        self._run("DROP TABLE IF EXISTS {new}")

    @property
    def nbytes(self) -> int:
        """Bytes of the table with its graph, and of the ranges; of the server's memory it takes what is cached."""
        size = self._run("SELECT pg_total_relation_size(%s::regclass)", (self._name,))[0][0]
        return int(size) + (0 if self._ranges is None else int(self._ranges.nbytes))

    def __len__(self) -> int:
        return self._count

    def _make(self, width: int) -> None:
        """An empty table in a transaction of its own, for kept rows [n, width]."""
        if self._name and not self._saved:
            self._run("ROLLBACK")
        self._saved, self._width, self._count = True, width, 0
        self._new_table()

    def _new_table(self) -> None:
        """The table that is worked on from now on, in the transaction of the one before it where that is not saved."""
        if self._saved:
            self._run("BEGIN")
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._name, self._saved = f"slimseek_{secrets.token_hex(8)}", False
        columns = 8 * self._width if self.precision == "binary" else self._width
        self._run(f"CREATE TABLE {{new}} (id bigint PRIMARY KEY, vector {TYPES[self.precision]}({columns}) NOT NULL)")

    def _append(self, rows: Array, threads: int) -> None:
        if self._saved:
            old = self._name
            self._new_table()
            self._run("INSERT INTO {new} SELECT id, vector FROM {old}", old=old)
        with self._speaking() as connection, connection.cursor() as cursor:
            statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(self._name))
            with cursor.copy(statement) as copy:
                copy.write(copied(rows, self._count))
        self._count += len(rows)

    def _kept(self, ids: Array) -> Array:
        found = self._run(
            "SELECT vector FROM {new} JOIN unnest(%s::bigint[]) WITH ORDINALITY AS wanted (id, place) USING (id) "
            "ORDER BY place",
            (ids.tolist(),), binary=True,
        )  # fmt: skip
        return rows_from([row[0] for row in found], self.precision)

    def _found(self, query: Array, count: int) -> Array:
        if self.precision == "binary":
            assert self._ranges is not None
            asked, operator = literal(_vectors.to_signs(query[None], self._ranges)[0]), "<~>"
        else:
            asked, operator = literal(query / (np.abs(query).max() or 1)), "<#>"
        kind = "varbit" if self.precision == "binary" else TYPES[self.precision]
        ordered = f"SELECT id FROM {{new}} ORDER BY vector {operator} %s::{kind}"
        with self._speaking() as connection, connection.transaction():
            if count <= MOST_FOUND and self._count >= self._graph_from:
                self._run(f"SET LOCAL hnsw.ef_search = {count}")
            else:  # every row is scored; among equal ones the first are found
                self._run("SET LOCAL enable_indexscan = off")
                ordered += ", id"
            found = self._run(f"{ordered} LIMIT %s", (asked, count))
        return np.array([row[0] for row in found], np.int64)

    def _digest(self) -> str:
        """The sum of a hash of each row: the same in whatever order the server reads them."""
        row = "('x' || left(md5(id::text || ' ' || vector::text), 16))::bit(64)::bigint::numeric"
        return str(self._run(f"SELECT count(*) || ' ' || coalesce(sum({row}), 0) FROM {{new}}")[0][0])

    def _run(
        self, statement: str, values: Sequence[Any] = (), *, old: str = "", binary: bool = False
    ) -> list[tuple[Any, ...]]:
        """Rows of a statement, in which ``{new}`` and ``{old}`` stand for tables."""
        with self._speaking() as connection, connection.cursor(binary=binary) as cursor:
            cursor.execute(sql.SQL(statement).format(new=sql.Identifier(self._name), old=sql.Identifier(old)), values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _speaking(self) -> Iterator[psycopg.Connection]:
        """The connection, for this thread alone; what the server refuses raises UsageError."""
        with self._lock:
            try:
                if self._connection is None or (self._connection.closed and self._saved):
                    self._connection = psycopg.connect(os.environ.get(DATABASE, ""), autocommit=True)
                    weakref.finalize(self, self._connection.close)
                yield self._connection
            except psycopg.Error as error:
                said = " ".join(str(error).split()) or type(error).__name__
                raise UsageError(f"the database ({DATABASE}, or libpq's own settings) refuses: {said}") from error
