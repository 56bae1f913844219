"""Documents are added to an index on disk and taken from it; a reader sees the old index or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from slimseek import documents, plugins, search
from slimseek import folder as folders
from slimseek.bases import Index
from slimseek.documents import Document
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, MissingExtra, UsageError
from slimseek.indexes import _vectors
from slimseek.progress import say, track
from slimseek.schema import Array

MOST_OUTSIDE = 0.01
"""The share of values that may saturate before it is said that the ranges no longer fit."""


def update(
    path: Path, encoder: Encoder, *, add: Mapping[str, str] | None = None, delete: Sequence[str] = ()
) -> search.Manifest:
    """Write the index anew with some documents less and some more; those stand last.

    The ranges of int8 and the means of binary vectors stay those of the documents that the index was made of: it
    answers as one built now by the same ranges would. Where more than 1 % of the new values lie outside of them, it is
    said. A graph takes what is added, and is built anew where something is deleted.

    Args:
        path: the index.
        encoder: that made it.
        add: id to text; one that is there must be deleted in the same call, and is so replaced.
        delete: ids.

    Raises:
        UsageError: an id that is there already, or is not there; nothing to do, or nothing would be left; the index
            holds pictures or recordings and more are to be added; another encoder made it.
        ArtifactError: the index is cut or changed.
    """
    add = add or {}
    folders.restore(path)
    before = _manifest(path)
    opened = search.open(path, encoder)
    if not add and not delete:
        raise UsageError("there is nothing to add and nothing to delete")
    if add and opened.manifest.media is not msgspec.UNSET:
        raise UsageError(f"{path} holds files of a collection; make it again with all of them")
    gone = _positions(opened, set(add), set(delete))
    forget = replaced(path)
    ranges = _vectors.load_ranges(path / search.INDEX_FILES, opened.manifest.precision)
    vectors = _encoded(encoder, list(add.values()))
    with folders.writing(path, force=True) as folder:
        if _manifest(path) != before:
            raise UsageError(f"{path} was changed by another process meanwhile; run the same command again")
        _write_vectors(folder, opened, vectors, gone, encoder.threads)
        _write_documents(path, folder, opened, add, gone)
        shutil.copyfile(path / search.PROBE, folder / search.PROBE)
        count = len(opened.documents) + len(add) - len(gone)
        manifest = search.seal(folder, msgspec.structs.replace(opened.manifest, count=count))
    forget()
    share = _vectors.outside(vectors, ranges) if manifest.precision == "int8" else 0.0
    if share > MOST_OUTSIDE:
        say(f"{share:.1%} of the values that were added lie outside the index's ranges and saturate; index again")
    return manifest


def _manifest(path: Path) -> bytes:
    """The content of the manifest, which tells whether anything changed; empty where there is none."""
    file = path / search.MANIFEST
    return file.read_bytes() if file.is_file() else b""


def replaced(path: Path) -> Callable[[], None]:
    """What to call when the index at that path, if there is one, has been replaced: it gives up what lies elsewhere."""
    try:
        manifest = folders.read_manifest(path / search.MANIFEST, search.Manifest, search.FORMAT_VERSION)
        kind: type[Index] = plugins.load("indexes", manifest.kind)
        if kind.forget is Index.forget:
            return lambda: None
        store = kind(precision=manifest.precision)  # type: ignore[call-arg]
        store.load(path / search.INDEX_FILES)
    except (ArtifactError, MissingExtra, UsageError):  # what cannot be found cannot be given up
        return lambda: None
    return store.forget


def _positions(opened: search.Search, added: set[str], deleted: set[str]) -> Array:
    """Where the documents to delete stand, int64 [m]."""
    found: dict[str, int] = {}
    for position in range(len(opened.documents)):
        name = opened.documents[position].id
        if name in deleted:
            found[name] = position
        elif name in added:
            raise UsageError(f"there is a document {name!r} already; delete it in the same command to replace it")
    missing = sorted(deleted - found.keys())
    if missing:
        raise UsageError(f"there is no document {missing[0]!r} to delete, and {len(missing) - 1} more are not there")
    return np.array(sorted(found.values()), np.int64)


def _encoded(encoder: Encoder, texts: Sequence[str]) -> Array:
    vectors = np.empty((len(texts), encoder.spec.dim), np.float32)
    with track(f"encode documents, {encoder.name}", len(texts)) as advance:
        for start in range(0, len(texts), search.DOCUMENTS_IN_CHUNK):
            chunk = slice(start, start + search.DOCUMENTS_IN_CHUNK)
            vectors[chunk] = encoder.documents(texts[chunk], advance)
    return vectors


def _write_vectors(folder: Path, opened: search.Search, vectors: Array, gone: Array, threads: int) -> None:
    """Those that are new go in first, so that all of the old ones may go."""
    store, finer = opened.index, opened.finer
    (folder / search.INDEX_FILES).mkdir()
    if len(vectors):
        store.add(vectors, threads)
    if len(gone):
        store.remove(gone)
    store.save(folder / search.INDEX_FILES)
    if finer is not None:
        assert opened.manifest.rescore is not None
        (folder / search.FINER_FILES).mkdir()
        more = finer.with_more(vectors, opened.manifest.rescore) if len(vectors) else finer
        more.without(gone).save(folder / search.FINER_FILES)


def _write_documents(path: Path, folder: Path, opened: search.Search, add: Mapping[str, str], gone: Array) -> None:
    """The lines that stay as they are, and those of the new documents."""
    stays = np.ones(len(opened.documents), bool)
    stays[gone] = False
    lengths = np.diff(opened.documents.offsets)
    new = [msgspec.json.encode(Document(id=name, text=text)) + b"\n" for name, text in add.items()]
    with (path / documents.FILE).open("rb") as old, (folder / documents.FILE).open("wb") as file:
        for line, stay in zip(old, stays, strict=True):
            if stay:
                file.write(line)
        file.writelines(new)
    offsets = np.cumsum([0, *lengths[stays].tolist(), *map(len, new)], dtype=np.int64)
    np.save(folder / documents.OFFSETS, offsets, allow_pickle=False)
