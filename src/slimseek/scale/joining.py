"""Indexes that were made apart, as the parts of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimseek import folder as folders
from slimseek import index_folder, parts, search, updates
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.scale._documents import Seen
from slimseek.updates import check_in_folder


def join(paths: Sequence[Path], encoder: Encoder, out: Path, *, force: bool = False) -> index_folder.Manifest:
    """Write an index whose parts are others, in their order; no document is encoded.

    Files are linked where the disk can do so, and copied where not. What becomes of the others later changes nothing
    here.

    Args:
        paths: of the indexes; of one that is in parts, all of them.
        encoder: that made them.
        out: the folder to make.
        force: replace a folder that slimseek wrote.

    Raises:
        UsageError: a document occurs in two of them, a kind that keeps its vectors elsewhere than in the folder, or
            another encoder made one.
        ArtifactError: one is cut or changed, or of another kind or precision than the first.
    """
    opened = [search.open(path, encoder) for path in paths]
    for one in opened:
        check_in_folder(one.manifest.kind)
    manifest = parts.joined(out, [one.manifest for one in opened])
    with folders.writing(out, inputs=tuple(paths), force=force) as folder:
        forget = updates.replaced(out)
        _check_once(paths, opened, folder / "seen")
        found = _flat(paths)
        counts = {parts.name(number): index_folder.read(path).count for number, path in enumerate(found)}
        for name, path in zip(counts, found, strict=True):
            folders.link(path, folder / name)
        parts.write(folder, counts)
    forget()
    return manifest


def _flat(paths: Sequence[Path]) -> list[Path]:
    """The folders of all that are not in parts, and of all parts of the others."""
    return [
        found
        for path in paths
        for found in ([path / part.name for part in parts.read(path)] if parts.are_in(path) else [path])
    ]


def _check_once(paths: Sequence[Path], opened: Sequence[search.Search], folder: Path) -> None:
    number, second = 0, 0
    with Seen(folder) as seen:
        for one in opened:
            for position in range(len(one.documents)):
                number += 1
                seen.note(one.documents[position].id, number)
        second = seen.second()
    for path, one in zip(paths, opened, strict=True):
        if 0 < second <= len(one.documents):
            name = one.documents[second - 1].id
            raise UsageError(f"{path} has a document {name!r}, and so has another; an id may occur once in all indexes")
        second -= len(one.documents)
