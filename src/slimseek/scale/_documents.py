"""The first pass over a file of texts: checked line by line, written as they will be shown, and cut into shards."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
TOLD_EACH = 1_000_000


class Shard(Value, frozen=True, kw_only=True):
    """A part of the documents.

    Attributes:
        file: of its vectors, in the working folder; named after what they hang on.
        start: the first byte of its lines in ``documents.jsonl``.
        end: the byte after its last.
        count: how many documents.
    """

    file: str
    start: int
    end: int
    count: int

    @staticmethod
    def listed(path: Path) -> Iterator[Shard]:
        """The shards of a list, in order, one in memory at a time."""
        with path.open("rb") as lines:
            for line in lines:
                yield msgspec.json.decode(line, type=Shard)


def write_documents(file: Path, work: Path, key: str) -> tuple[int, Path]:
    """Check every line, and write the documents, where each begins, and the list of shards into the working folder.

    Vectors of an earlier run that nothing asks for any more are deleted.

    Args:
        file: JSON lines.
        work: the folder; made where there is none.
        key: what the vectors hang on beside their texts.

    Returns:
        How many documents there are, and the path of the list.

    Raises:
        UsageError: a line is not valid, an id occurs twice, there is no document, or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        seen = work / "seen"
        shutil.rmtree(seen, ignore_errors=True)
        seen.mkdir()
        count = _pass(file, work, seen, key)
        _check_once(file, seen)
        shutil.rmtree(seen)
    except OSError as error:
        raise UsageError(f"cannot write {work}: {error.strerror}") from error
    if not count:
        raise UsageError(f"{file} is empty")
    wanted = {shard.file for shard in Shard.listed(work / LIST)} if any(work.glob("*.npy")) else set()
    for path in work.glob("[0-9]*.npy"):
        if path.name not in wanted:
            path.unlink()
    return count, work / LIST


def texts_of(path: Path, shard: Shard, kind: type[Document]) -> list[Document]:
    """The documents of a shard."""
    with path.open("rb") as file:
        file.seek(shard.start)
        return [msgspec.json.decode(line, type=kind) for line in file.read(shard.end - shard.start).splitlines()]


def _pass(file: Path, work: Path, seen: Path, key: str) -> int:
    count = start = end = 0
    digest = hashlib.sha256(key.encode())
    with ExitStack() as stack:
        shown = stack.enter_context((work / documents.FILE).open("wb"))
        listed = stack.enter_context((work / LIST).open("wb"))
        offsets = stack.enter_context((work / "offsets").open("wb"))
        buckets = [stack.enter_context((seen / f"{number:03}").open("ab", 4096)) for number in range(BUCKETS)]
        offsets.write(np.int64(0).tobytes())

        def close() -> None:
            name = f"{(count - 1) // DOCUMENTS_IN_SHARD:09}-{digest.hexdigest()[:32]}.npy"
            shard = Shard(file=name, start=start, end=end, count=(count - 1) % DOCUMENTS_IN_SHARD + 1)
            listed.write(msgspec.json.encode(shard) + b"\n")

        for number, name, text in _lines.texts(file):
            line = msgspec.json.encode(Document(id=name, text=text)) + b"\n"
            shown.write(line)
            end += len(line)
            count += 1
            offsets.write(np.int64(end).tobytes())
            _note(buckets, name, number)
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
            if count % DOCUMENTS_IN_SHARD == 0:
                close()
                start, digest = end, hashlib.sha256(key.encode())
            if count % TOLD_EACH == 0:
                say(f"{file}: {count:,} lines checked")
        if count % DOCUMENTS_IN_SHARD:
            close()
    _as_array(work / "offsets", work / documents.OFFSETS, count + 1)
    return count


def _as_array(raw: Path, path: Path, count: int) -> None:
    """Int64 [count] from its bytes to what ``np.save`` writes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
    with raw.open("rb") as source, path.open("wb") as target:
        target.write(header.getvalue())
        shutil.copyfileobj(source, target)
    raw.unlink()


def _note(buckets: Sequence[BinaryIO], name: str, number: int) -> None:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    buckets[digest[0]].write(digest + number.to_bytes(8))


def _check_once(file: Path, seen: Path) -> None:
    """Refuse an id that occurs twice; of several the one that comes first in the file is named."""
    second = min((line for path in seen.iterdir() if (line := _second(np.fromfile(path, SEEN)))), default=0)
    if second:
        name = next(name for number, name, _ in _lines.texts(file) if number == second)
        raise UsageError(f"{file}, line {second}: the _id {name!r} occurs a second time")


def _second(rows: Array) -> int:
    """The first line whose id an earlier one has; 0 where there is none."""
    rows = np.sort(rows, order=("high", "low", "line"))
    again = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    return int(rows["line"][1:][again].min()) if again.any() else 0
