"""An index of as many texts as a JSON-lines file holds: in bounded memory, by several processes, and resumed.

Beside the folder to write lies a working folder, ``.NAME.work``, until it is done: the documents as they will be shown,
and shards of 1,024 vectors, each a file that ends with its hash and is named after the texts that it is of. A run that
is killed loses the shards that were in hand; the same command takes those that are there. A vector does not hang on
the number of processes, and the index is what :func:`slimseek.search.index` writes of the same texts.

An index in parts is made part by part, each of which is what would be written of its documents alone. A part that is
done waits in the working folder, and its shards are gone: the same command takes it as it is.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from slimseek import choose, documents, index_folder, parts, plugins, sealed, search, updates
from slimseek import folder as folders
from slimseek.bases import Index
from slimseek.collection import Blocks
from slimseek.datasets import _lines
from slimseek.documents import Document
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, UsageError
from slimseek.index_folder import FINER_FILES, FORMAT_VERSION, INDEX_FILES, PROBE, Manifest, seal
from slimseek.indexes import _vectors
from slimseek.kept import PROBE_TEXT
from slimseek.progress import say, track
from slimseek.scale._documents import Piece, Shard, texts_of, write_documents
from slimseek.schema import Array

Opener = Callable[[str, int], Encoder]
Encode = Callable[[Sequence[str]], Array]
SUFFIX = ".jsonl"
SHARDS_IN_CALL = 256
"""Shards that are encoded elsewhere in one call: few enough for memory, enough that to begin costs little."""
IN_HAND = 2
"""Shards given out for each process: one that it works on, and one that it takes next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What is indexed, and how; see :func:`slimseek.search.index`.

    Attributes:
        source: the MODEL of the command line; each process opens it.
        file: JSON lines with ``_id``, ``text`` and maybe ``title``.
        out: the folder to make.
        manifest: of the index to be, its count not known yet.
        threads: of each process.
        processes: that encode; 1 for this one alone.
        opened_by: makes the encoder of ``source`` and ``threads``.
        encode: see :func:`index`.
        each: documents of a part; 0 for an index that is not in parts.
    """

    source: str
    file: Path
    out: Path
    manifest: Manifest
    threads: int
    processes: int
    opened_by: Opener
    encode: Encode | None
    each: int


def index(
    source: str, file: Path, out: Path, *, kind: str = "exact", precision: str = "f32", rescore: str = "auto",
    oversample: int = index_folder.OVERSAMPLE, processes: int = 1, threads: int = 0, force: bool = False,
    opened_by: Opener | None = None, encode: Encode | None = None, documents_per_part: int = 0,
) -> Manifest:  # fmt: skip
    """Encode every text of a JSON-lines file and write an index.

    Args:
        source: the MODEL of the command line.
        file: JSON lines with ``_id``, ``text`` and maybe ``title``; it must not change while it is read.
        out: the folder to make.
        kind: a plug-in of ``indexes/``; the graph of those that have one is in memory, as when it is searched.
        precision: how the index keeps vectors.
        rescore: see :func:`slimseek.search.index`.
        oversample: see there.
        processes: that encode, each with a model of its own.
        threads: of each process; 0 for the cores shared among them.
        force: replace a folder that slimseek wrote.
        opened_by: makes the encoder of a source and a number of threads in every process, where that is not
            :func:`slimseek.choose.choose`; a function of a module.
        encode: gives the float32 [n, dim] vectors of texts in this process's place, such as a cluster of machines; it
            is given up to 262,144 of them.
        documents_per_part: write an index in parts of so many documents; 0 for one that is not.

    Raises:
        UsageError: a line is not valid, an id occurs twice, a text is not one that can be encoded, the settings are
            senseless, or ``out`` cannot be written.
    """
    if processes < 1:
        raise UsageError(f"--processes is {processes}; it must be 1 or more")
    if documents_per_part < 0:
        raise UsageError(f"--documents-per-part is {documents_per_part}; it must be 1 or more")
    if documents_per_part:
        updates.check_in_folder(kind)
    threads = threads or max(1, (os.cpu_count() or 1) // processes)
    opened_by = opened_by or choose.choose
    encoder = opened_by(source, threads)
    if encoder.spec.modality != "text":
        raise UsageError(f"{encoder.name} takes no texts; give the folder of a collection instead of {file}")
    _, finer = search.chosen(encoder, kind, precision, rescore, oversample)  # type: ignore[arg-type]
    manifest = Manifest(
        format_version=FORMAT_VERSION, kind=kind, precision=precision, dim=encoder.spec.dim, count=0,  # type: ignore[arg-type]
        model=encoder.name, fingerprint=search.fingerprint(encoder), bytes=0, rescore=finer, oversample=oversample,
        files=(),
    )  # fmt: skip
    job = Job(source=source, file=file, out=Path(os.path.abspath(out)), manifest=manifest, threads=threads,
              processes=processes, opened_by=opened_by, encode=encode, each=documents_per_part)  # fmt: skip
    return _run(job, encoder, force)


def texts(file: Path) -> dict[str, str]:
    """Id to text of a JSON-lines file, all in memory; an id that occurs twice raises UsageError."""
    found: dict[str, str] = {}
    for number, name, text in _lines.texts(file):
        if name in found:
            raise UsageError(f"{file}, line {number}: the _id {name!r} occurs a second time")
        found[name] = text
    return found


def _run(job: Job, encoder: Encoder, force: bool) -> Manifest:
    work = job.out.parent / f".{job.out.name}.work"
    with folders.writing(job.out, force=force, temporary=work / "index") as folder:
        forget = updates.replaced(job.out)
        probe = encoder.documents([PROBE_TEXT])
        pieces = write_documents(job.file, work, _key(encoder, probe), job.each)
        if job.each:
            manifest = _write_parts(job, encoder, work, folder, pieces, probe)
        else:
            manifest = _write(job, encoder, work, folder, pieces[0], probe)
    forget()
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def _write_parts(
    job: Job, encoder: Encoder, work: Path, folder: Path, pieces: Sequence[Piece], probe: Array
) -> Manifest:
    """The parts one after the other; those of an earlier run that is gone on with are there."""
    settings = msgspec.json.encode(job.manifest)
    ready = [work / f"ready-{hashlib.sha256(settings + piece.sha256.encode()).hexdigest()[:32]}" for piece in pieces]
    for path in set(work.glob("ready-*")) - set(ready):
        shutil.rmtree(path)
    for number, (piece, path) in enumerate(zip(pieces, ready, strict=True), 1):
        if _is_ready(path):
            say(f"part {number} of {len(pieces)} was made before, in {path}")
            continue
        say(f"part {number} of {len(pieces)}")
        folder.joinpath("part").mkdir()
        _write(job, encoder, work, folder / "part", piece, probe)
        folder.joinpath("part").rename(path)
        for shard in piece.shards():
            (work / shard.file).unlink(missing_ok=True)
    counts = {parts.name(number): piece.count for number, piece in enumerate(pieces)}
    for name, path in zip(counts, ready, strict=True):
        folders.link(path, folder / name)
    parts.write(folder, counts)
    return parts.joined(folder, [index_folder.read(path) for path in ready])


def _is_ready(path: Path) -> bool:
    """Whether a part is there, whole; what is left of one that was cut is taken away."""
    if not path.is_dir():
        return False
    try:
        folders.check(path, index_folder.read(path).files)
    except ArtifactError:
        shutil.rmtree(path)
        return False
    return True


def _write(job: Job, encoder: Encoder, work: Path, folder: Path, piece: Piece, probe: Array) -> Manifest:
    """An index of one piece, whose documents are moved there."""
    _encode(job, encoder, work, piece)
    blocks = Blocks(count=piece.count, dim=encoder.spec.dim, each=lambda: _vectors_of(work, piece, encoder.spec.dim))
    store: Index = plugins.load("indexes", job.manifest.kind)(precision=job.manifest.precision)
    (folder / INDEX_FILES).mkdir()
    store.write(folder / INDEX_FILES, blocks, encoder.threads)
    if job.manifest.rescore is not None:
        (folder / FINER_FILES).mkdir()
        _vectors.write_rows(folder / FINER_FILES, blocks, job.manifest.rescore)
    for name in (documents.FILE, documents.OFFSETS):
        (piece.folder / name).rename(folder / name)
    np.save(folder / PROBE, probe[0], allow_pickle=False)
    return seal(folder, msgspec.structs.replace(job.manifest, count=piece.count))


def _key(encoder: Encoder, probe: Array) -> str:
    """What vectors hang on beside their texts: the encoder's settings, and by a vector its weights."""
    return hashlib.sha256(search.fingerprint(encoder).encode() + probe.tobytes()).hexdigest()


def _vectors_of(work: Path, piece: Piece, dim: int) -> Iterator[Array]:
    """The vectors, a shard at a time."""
    for shard in piece.shards():
        yield _read(work, shard, dim)


def _read(work: Path, shard: Shard, dim: int) -> Array:
    vectors = sealed.read(work / shard.file, (shard.count, dim), mapped=False)
    if vectors is None:
        raise UsageError(f"{work / shard.file} cannot be read back as it was written; run the same command again")
    return vectors


def _encode(job: Job, encoder: Encoder, work: Path, piece: Piece) -> None:
    """Write the vectors of the shards that are not there yet."""
    dim = encoder.spec.dim
    known = sum(shard.count for shard in piece.shards() if _is_there(work, shard, dim))
    if known:
        say(f"{known:,} of {piece.count:,} documents were encoded before, in {work}")
    missing = (shard for shard in piece.shards() if not (work / shard.file).is_file())
    if job.encode is not None:
        _encode_elsewhere(job.encode, work, missing, dim)
        return
    with track(f"encode documents, {encoder.name}", piece.count) as advance:
        advance(known)
        if job.processes == 1:
            for shard in missing:
                advance(_encoded(encoder, work, shard))
        else:
            for done in _by_processes(job, work, missing):
                advance(done)


def _encode_elsewhere(encode: Encode, work: Path, missing: Iterator[Shard], dim: int) -> None:
    """The same by what has a progress of its own."""
    while shards := list(islice(missing, SHARDS_IN_CALL)):
        vectors = encode([text for shard in shards for text in _texts(work, shard)])
        ends = np.cumsum([shard.count for shard in shards])
        for shard, part in zip(shards, np.split(vectors, ends[:-1]), strict=True):
            sealed.write(work / shard.file, (shard.count, dim), [part])


def _is_there(work: Path, shard: Shard, dim: int) -> bool:
    """Whether the file of a shard is whole; one that is not is deleted."""
    path = work / shard.file
    if path.is_file() and sealed.read(path, (shard.count, dim), mapped=False) is None:
        path.unlink()
    return path.is_file()


def _by_processes(job: Job, work: Path, missing: Iterator[Shard]) -> Iterator[int]:
    """Documents done, shard by shard as they end, never more given out than is needed."""
    context = multiprocessing.get_context("spawn")  # a runtime that has threads does not survive a fork
    pool = ProcessPoolExecutor(job.processes, context, _open, (job.opened_by, job.source, job.threads, work))
    waiting: set[Future[int]] = set()
    try:
        for shard in missing:
            waiting.add(pool.submit(_work, shard))
            if len(waiting) >= IN_HAND * job.processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        for future in waiting:
            yield future.result()
    except BrokenProcessPool as error:
        raise UsageError(
            "a process that encodes was ended from outside, by lack of memory perhaps; run the same command again with "
            "fewer --processes: it goes on where this one stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_opened: list[tuple[Encoder, Path]] = []
"""In a process that encodes: its model, and where shards are written."""


def _open(opened_by: Opener, source: str, threads: int, work: Path) -> None:
    _opened.append((opened_by(source, threads), work))


def _work(shard: Shard) -> int:
    encoder, work = _opened[0]
    return _encoded(encoder, work, shard)


def _encoded(encoder: Encoder, work: Path, shard: Shard) -> int:
    """Write the vectors of a shard; they are computed by 256, as :func:`slimseek.search.index` does."""
    step = search.DOCUMENTS_IN_CHUNK
    texts = _texts(work, shard)
    chunks = (texts[start : start + step] for start in range(0, len(texts), step))
    sealed.write(work / shard.file, (shard.count, encoder.spec.dim), [encoder.documents(part) for part in chunks])
    return shard.count


def _texts(work: Path, shard: Shard) -> list[str]:
    return [line.text for line in texts_of(work / shard.texts, shard, Document)]
