"""Documents are added to an index on disk and taken from it; a reader sees the old index or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from slimseek import documents, index_folder, parts, plugins, search
from slimseek import folder as folders
from slimseek.bases import Index
from slimseek.documents import Document
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, MissingExtra, UsageError
from slimseek.index_folder import FINER_FILES, INDEX_FILES, MANIFEST, PROBE, Manifest, seal
from slimseek.indexes import _vectors
from slimseek.progress import say
from slimseek.schema import Array

MOST_OUTSIDE = 0.01
"""The share of values that may saturate before it is said that the ranges no longer fit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """What becomes of an index, or of one of its parts.

    Attributes:
        add: id to text of what comes last.
        vectors: of these, float32 [n, dim].
        gone: positions to delete, int64 [m] in order.
    """

    add: Mapping[str, str]
    vectors: Array
    gone: Array

    def within(self, start: int, count: int, last: bool) -> Change:
        """What of it concerns a part of ``count`` documents from ``start`` on; what is added goes to the last part."""
        gone = self.gone[(start <= self.gone) & (self.gone < start + count)] - start
        return Change(add=self.add, vectors=self.vectors, gone=gone) if last else Change(
            add={}, vectors=self.vectors[:0], gone=gone)  # fmt: skip


def update(
    path: Path, encoder: Encoder, *, add: Mapping[str, str] | None = None, delete: Sequence[str] = ()
) -> Manifest:
    """Write the index anew with some documents less and some more; those stand last.

    The ranges of int8 and the means of binary vectors stay those of the documents that the index was made of: it
    answers as one built now by the same ranges would. Where more than 1 % of the new values lie outside of them, it is
    said. A graph takes what is added, and is built anew where something is deleted. Of an index in parts only those are
    written anew that change, and the last takes what is added.

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
    grows = path / parts.read(path)[-1].name if parts.are_in(path) else path
    ranges = _vectors.load_ranges(grows / INDEX_FILES, opened.manifest.precision)
    change = Change(add=add, vectors=search.document_vectors(encoder, list(add.values())), gone=gone)
    with folders.writing(path, force=True) as folder:
        if _manifest(path) != before:
            raise UsageError(f"{path} was changed by another process meanwhile; run the same command again")
        manifest = (_write_parts if parts.are_in(path) else _write)(path, folder, opened, change)
    forget()
    share = _vectors.outside(change.vectors, ranges) if manifest.precision == "int8" else 0.0
    if share > MOST_OUTSIDE:
        say(f"{share:.1%} of the values that were added lie outside the index's ranges and saturate; index again")
    return manifest


def _write_parts(path: Path, folder: Path, opened: search.Search, change: Change) -> Manifest:
    """The parts that change are written anew, those that do not are taken as they are, and one without documents goes;
    UsageError where none is left.
    """
    found, start, counts = parts.read(path), 0, dict[str, int]()
    for part in found:
        own = change.within(start, part.count, part is found[-1])
        start += part.count
        left = part.count + len(own.add) - len(own.gone)
        if not left:
            continue
        if left == part.count and not len(own.gone):
            folders.link(path / part.name, folder / part.name)
        else:
            (folder / part.name).mkdir()
            _write(path / part.name, folder / part.name, search.open(path / part.name, opened.encoder), own)
        counts[part.name] = left
    if not counts:
        raise UsageError("nothing would be left of the index; delete its folder instead")
    parts.write(folder, counts)
    return parts.joined(path, [index_folder.read(folder / name) for name in counts])


def _write(path: Path, folder: Path, opened: search.Search, change: Change) -> Manifest:
    """An index that is not in parts."""
    _write_vectors(folder, opened, change)
    _write_documents(path, folder, opened, change)
    shutil.copyfile(path / PROBE, folder / PROBE)
    count = len(opened.documents) + len(change.add) - len(change.gone)
    return seal(folder, msgspec.structs.replace(opened.manifest, count=count))


def _manifest(path: Path) -> bytes:
    """The content of the manifest, which tells whether anything changed; empty where there is none."""
    file = path / (parts.MANIFEST if parts.are_in(path) else MANIFEST)
    return file.read_bytes() if file.is_file() else b""


def replaced(path: Path) -> Callable[[], None]:
    """What to call when the index at that path, if there is one, has been replaced: it gives up what lies elsewhere."""
    try:
        manifest = index_folder.read(path)
        kind: type[Index] = plugins.load("indexes", manifest.kind)
        if kind.forget is Index.forget:
            return lambda: None
        store = kind(precision=manifest.precision)  # type: ignore[call-arg]
        store.load(path / INDEX_FILES)
    except (ArtifactError, MissingExtra, UsageError):  # what cannot be found cannot be given up
        return lambda: None
    return store.forget


def check_in_folder(kind: str) -> None:
    """UsageError where an index of that kind keeps its vectors elsewhere than in its folder, and so has no parts."""
    if plugins.load("indexes", kind).forget is not Index.forget:
        raise UsageError(f"{kind} keeps all vectors in one place of its own, and cannot be in parts")


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


def _write_vectors(folder: Path, opened: search.Search, change: Change) -> None:
    """Those that are new go in first, so that all of the old ones may go."""
    store, finer = opened.index, opened.finer
    assert isinstance(store, Index)
    (folder / INDEX_FILES).mkdir()
    if len(change.vectors):
        store.add(change.vectors, opened.encoder.threads)
    if len(change.gone):
        store.remove(change.gone)
    store.save(folder / INDEX_FILES)
    if finer is not None:
        assert opened.manifest.rescore is not None
        (folder / FINER_FILES).mkdir()
        more = finer.with_more(change.vectors, opened.manifest.rescore) if len(change.vectors) else finer
        more.without(change.gone).save(folder / FINER_FILES)


def _write_documents(path: Path, folder: Path, opened: search.Search, change: Change) -> None:
    """The lines that stay as they are, and those of the new documents."""
    assert isinstance(opened.documents, documents.Documents)
    stays = np.ones(len(opened.documents), bool)
    stays[change.gone] = False
    lengths = np.diff(opened.documents.offsets)
    new = [msgspec.json.encode(Document(id=name, text=text)) + b"\n" for name, text in change.add.items()]
    with (path / documents.FILE).open("rb") as old, (folder / documents.FILE).open("wb") as file:
        for line, stay in zip(old, stays, strict=True):
            if stay:
                file.write(line)
        file.writelines(new)
    offsets = np.cumsum([0, *lengths[stays].tolist(), *map(len, new)], dtype=np.int64)
    np.save(folder / documents.OFFSETS, offsets, allow_pickle=False)
