"""Lines of JSON, each a text with its id, read one after the other: a file may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from slimseek import reading
from slimseek.errors import UsageError

LONGEST_LINE = 64 * 1024 * 1024


def numbered(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, a byte order mark taken off.

    Raises:
        UsageError: the file cannot be read.
    """
    reading.check_file(file)
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise UsageError(f"{file}, line {number}: longer than {LONGEST_LINE:,} bytes; this is no text")
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content
    except OSError as error:
        raise UsageError(
            f"{file}: {error.strerror}; a collection has corpus.jsonl, queries.jsonl and qrels/"
        ) from error


def decoded(line: bytes, file: Path, number: int) -> Any:
    """The object of a line, which has an ``_id``; UsageError with file and line where that is not so."""
    try:
        record = reading.decoded(line)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file}, line {number}: not valid JSON ({error})") from error
    if not isinstance(record, dict) or type(record.get("_id")) not in (str, int):  # a bool is an int, and no id
        raise UsageError(f"{file}, line {number}: there is no _id (a string or a number)")
    return record


def text_of(record: Any) -> str:
    """Title and text joined by a blank; either may be missing."""
    return f"{record.get('title') or ''} {record.get('text') or ''}".strip()


def texts(file: Path) -> Iterator[tuple[int, str, str]]:
    """Number of the line, id and text of each document; whether an id occurs twice is not looked at.

    Raises:
        UsageError: the file cannot be read, or a line is not valid; the text names it.
    """
    for number, line in numbered(file):
        record = decoded(line, file, number)
        if not isinstance(record.get("text"), str) or not isinstance(record.get("title") or "", str):
            raise UsageError(f"{file}, line {number}: there is no text (a string)")
        yield number, str(record["_id"]), text_of(record)
