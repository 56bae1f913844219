"""Tables with a header line: ``.tsv`` and ``.csv`` files, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from slimseek.errors import UsageError
from slimseek.reading import check_file

SUFFIXES = (".tsv", ".csv")
LARGEST_FIELD = 64 * 1024 * 1024


def header(file: Path) -> list[str]:
    """Names of the columns, in lower case; of an empty file one that is empty."""
    with check_file(file).open("rb") as stream:
        line = stream.readline().decode("utf-8-sig", "replace").strip()
    return [name.strip().strip('"').lower() for name in line.split("\t" if file.suffix == ".tsv" else ",")]


def rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The line that each row ends on, and its fields, as many as the header has; blank rows are left out.

    In ``.tsv`` files quotes mean nothing: a row is a line, whatever stands in it. In ``.csv`` files a field in quotes
    may hold commas and line ends.

    Raises:
        UsageError: a row has another number of fields, or a quote is not closed; the text names file and line.
    """
    columns = header(file)
    for number, fields in _fields(file):
        if number == 1 or not any(fields):
            continue
        if len(fields) != len(columns):
            raise UsageError(f"{file}, line {number}: {len(fields)} columns; {', '.join(columns)} are expected")
        yield number, fields


def records(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The line that each row ends on, and its fields by the name of the column, without blanks around them.

    Raises:
        UsageError: as :func:`rows`.
    """
    columns = header(file)
    for number, fields in rows(file):
        yield number, dict(zip(columns, (field.strip() for field in fields), strict=True))


def first(file: Path) -> dict[str, str]:
    """The first of the records; empty where there is none, or no such file."""
    return next(records(file), (0, dict[str, str]()))[1] if file.is_file() else {}


def column(names: Sequence[str] | dict[str, str], wanted: Sequence[str]) -> str:
    """The first of the wanted columns that a table has, ``""`` for none."""
    return next((name for name in wanted if name in names), "")


def _fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="" if file.suffix == ".csv" else "\n") as stream:
        if file.suffix == ".tsv":
            for number, line in enumerate(stream, 1):
                yield number, line.rstrip("\r\n").split("\t")
            return
        csv.field_size_limit(LARGEST_FIELD)
        reader = csv.reader(stream, strict=True)
        try:
            for fields in reader:
                yield reader.line_num, fields
        except csv.Error as error:
            raise UsageError(f"{file}, line {reader.line_num}: {error}; is a quote not closed?") from error
