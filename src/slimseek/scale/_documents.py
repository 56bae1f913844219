"""The first pass over a file of texts: checked line by line, written as they will be shown, and cut into shards."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from slimseek import documents
from slimseek.datasets import _lines
from slimseek.documents import Document
from slimseek.errors import UsageError
from slimseek.progress import say
from slimseek.schema import Array
from slimseek.value import Value

DOCUMENTS_IN_SHARD = 1024
BUCKETS = 256
"""Ids are compared within a bucket, which alone is in memory."""
SEEN = np.dtype([("high", ">u8"), ("low", ">u8"), ("line", ">u8")])
LIST = "shards.jsonl"
FOLDER = "documents-{:04}"
TOLD_EACH = 1_000_000


class Shard(Value, frozen=True, kw_only=True):
    """A part of the documents.

    Attributes:
        file: of its vectors, in the working folder; named after what they hang on.
        texts: the file of its documents, in the working folder.
        start: the first byte of its lines there.
        end: the byte after its last.
        count: how many documents.
    """

    file: str
    texts: str
    start: int
    end: int
    count: int

    @staticmethod
    def listed(path: Path) -> Iterator[Shard]:
        """The shards of a list, in order, one in memory at a time."""
        with path.open("rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line, type=Shard)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The documents of one index, or of one of its parts.

    Attributes:
        folder: holds them, where each begins, and the list of their shards.
        count: how many.
        sha256: of what their vectors hang on, and of their lines.
    """

    folder: Path
    count: int
    sha256: str

    def shards(self) -> Iterator[Shard]:
        """Its shards, in order, one in memory at a time."""
        return Shard.listed(self.folder / LIST)


class Seen:
    """Names that were met, on disk: they are compared bucket by bucket, one of which is in memory."""

    def __init__(self, folder: Path) -> None:
        """Begin with none; the folder is made anew, and is gone when the block ends."""
        self._folder = folder

    def __enter__(self) -> Seen:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._files: list[BinaryIO] = []
        with ExitStack() as stack:
            for number in range(BUCKETS):
                self._files.append(stack.enter_context((self._folder / f"{number:03}").open("ab", 4096)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def note(self, name: str, number: int) -> None:
        """Note a name, and the number, from 1, of what has it."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._files[digest[0]].write(digest + number.to_bytes(8))

    def second(self) -> int:
        """The least number whose name a lesser one has, too; 0 where all names differ."""
        self._stack.close()
        return min((found for path in self._folder.iterdir() if (found := _second(np.fromfile(path, SEEN)))), default=0)


def write_documents(file: Path, work: Path, key: str, each: int = 0) -> list[Piece]:
    """Check every line, and write the documents, where each begins, and lists of shards into the working folder.

    Vectors of an earlier run that nothing asks for any more are deleted.

    Args:
        file: JSON lines.
        work: the folder; made where there is none.
        key: what the vectors hang on beside their texts.
        each: how many documents a piece holds, of which the last may hold less; 0 for one piece of all.

    Returns:
        The pieces, in the order of the documents.

    Raises:
        UsageError: a line is not valid, an id occurs twice, there is no document, or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        with Seen(work / "seen") as seen:
            pieces = _pass(file, work, seen, key, each)
            second = seen.second()
    except OSError as error:
        raise UsageError(f"cannot write {work}: {error.strerror}") from error
    if second:
        name = next(name for number, name, _ in _lines.texts(file) if number == second)
        raise UsageError(f"{file}, line {second}: the _id {name!r} occurs a second time")
    if not pieces:
        raise UsageError(f"{file} is empty")
    wanted = {shard.file for piece in pieces for shard in piece.shards()} if any(work.glob("*.npy")) else set()
    for path in work.glob("[0-9]*.npy"):
        if path.name not in wanted:
            path.unlink()
    return pieces


def texts_of(path: Path, shard: Shard, kind: type[Document]) -> list[Document]:
    """The documents of a shard."""
    with path.open("rb") as file:
        file.seek(shard.start)
        return [msgspec.json.decode(line, type=kind) for line in file.read(shard.end - shard.start).splitlines()]


def _pass(file: Path, work: Path, seen: Seen, key: str, each: int) -> list[Piece]:
    pieces: list[Piece] = []
    lines, shards = _lines.texts(file), 0
    while (first := next(lines, None)) is not None:
        folder = work / FOLDER.format(len(pieces))
        rest = islice(lines, each - 1) if each else lines
        pieces.append(_piece(folder, _noted(chain([first], rest), seen, file), key, shards))
        shards += -(-pieces[-1].count // DOCUMENTS_IN_SHARD)
    return pieces


def _noted(lines: Iterable[tuple[int, str, str]], seen: Seen, file: Path) -> Iterator[Document]:
    """The documents of lines, whose ids are noted."""
    for number, name, text in lines:
        seen.note(name, number)
        if number % TOLD_EACH == 0:
            say(f"{file}: {number:,} lines checked")
        yield Document(id=name, text=text)


def _piece(folder: Path, found: Iterable[Document], key: str, first: int) -> Piece:
    """Write a piece, whose first shard has that number."""
    folder.mkdir(exist_ok=True)
    count = start = end = 0
    whole, digest = (hashlib.sha256(key.encode()) for _ in range(2))
    with ExitStack() as stack:
        shown = stack.enter_context((folder / documents.FILE).open("wb"))
        listed = stack.enter_context((folder / LIST).open("wb"))
        offsets = stack.enter_context((folder / "offsets").open("wb"))
        offsets.write(np.int64(0).tobytes())

        def close() -> None:
            name = f"{first + (count - 1) // DOCUMENTS_IN_SHARD:09}-{digest.hexdigest()[:32]}.npy"
            shard = Shard(file=name, texts=f"{folder.name}/{documents.FILE}", start=start, end=end,
                          count=(count - 1) % DOCUMENTS_IN_SHARD + 1)  # fmt: skip
            listed.write(msgspec.json.encode(shard) + b"\n")

        for document in found:
            line = msgspec.json.encode(document) + b"\n"
            shown.write(line)
            whole.update(line)
            end += len(line)
            count += 1
            offsets.write(np.int64(end).tobytes())
            digest.update(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest())
            if count % DOCUMENTS_IN_SHARD == 0:
                close()
                start, digest = end, hashlib.sha256(key.encode())
        if count % DOCUMENTS_IN_SHARD:
            close()
    _as_array(folder / "offsets", folder / documents.OFFSETS, count + 1)
    return Piece(folder=folder, count=count, sha256=whole.hexdigest())


def _as_array(raw: Path, path: Path, count: int) -> None:
    """Int64 [count] from its bytes to what ``np.save`` writes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
    with raw.open("rb") as source, path.open("wb") as target:
        target.write(header.getvalue())
        shutil.copyfileobj(source, target)
    raw.unlink()


def _second(rows: Array) -> int:
    """The first line whose id an earlier one has; 0 where there is none."""
    rows = np.sort(rows, order=("high", "low", "line"))
    again = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    return int(rows["line"][1:][again].min()) if again.any() else 0
