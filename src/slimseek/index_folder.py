"""What the folder of an index holds, and its manifest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from slimseek import folder as folders
from slimseek.folder import FileEntry
from slimseek.indexes import _vectors
from slimseek.schema import Precision
from slimseek.value import Value

FORMAT_VERSION = 2
MANIFEST = "index.json"
PROBE = "probe.npy"
INDEX_FILES = "index"
FINER_FILES = "rescore"
OVERSAMPLE = _vectors.OVERSAMPLE


class Manifest(Value, frozen=True, kw_only=True):
    """What ``index.json`` holds.

    Attributes:
        kind: the plug-in of ``indexes/`` that reads the files under ``index/``.
        precision: how it keeps vectors.
        dim: width of the vectors.
        count: number of documents.
        model: name of the encoder that made the vectors.
        fingerprint: sha256 of that encoder's name and spec.
        bytes: bytes of the files under ``index/``, which are in memory while it is searched.
        rescore: precision of the finer vectors that rank what the index finds; ``None`` where there are none.
        rescore_bytes: bytes of the finer vectors under ``rescore/``: on disk, of which a query reads a few rows.
        oversample: how many times more candidates than hits are ranked by the finer vectors.
        files: every other file of the folder with its hash.
        media: the folder that the documents' pictures or recordings lie in; unset for texts.
    """

    format_version: int
    kind: str
    precision: Precision
    dim: int
    count: int
    model: str
    fingerprint: str
    bytes: int
    rescore: Precision | None = None
    rescore_bytes: int = 0
    oversample: int = OVERSAMPLE
    files: tuple[FileEntry, ...]
    media: str | msgspec.UnsetType = msgspec.UNSET


def read(folder: Path) -> Manifest:
    """The manifest of an index that is not in parts.

    Raises:
        ArtifactError: it is absent, not valid, or of a newer format.
    """
    return folders.read_manifest(folder / MANIFEST, Manifest, FORMAT_VERSION)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder that is whole but for it, with the size and hash of every file."""
    files = folders.entries(folder, leave_out=MANIFEST)
    sizes = {"bytes": _bytes_under(INDEX_FILES, files), "rescore_bytes": _bytes_under(FINER_FILES, files)}
    manifest = msgspec.structs.replace(manifest, files=files, **sizes)
    folders.write_json(folder / MANIFEST, manifest)
    return manifest


def _bytes_under(folder: str, files: tuple[FileEntry, ...]) -> int:
    return sum(entry.bytes for entry in files if entry.path.startswith(f"{folder}/"))
