"""An index in parts: a folder of ordinary indexes beside a manifest, each searched by itself, their hits merged.

A score is the inner product of a query with a vector as it is kept, whatever part keeps it: hits of several parts can
be compared, and the best of all are among the best of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from slimseek import folder as folders
from slimseek import index_folder, reading
from slimseek.collection import Hits
from slimseek.errors import ArtifactError
from slimseek.schema import Array
from slimseek.value import Value

MANIFEST = "parts.json"
FORMAT_VERSION = 1
ALIKE = ("kind", "precision", "dim", "fingerprint", "rescore", "oversample")
"""What the parts of an index have in common."""
NAME = re.compile(r"part-\d{4,9}")
Query = Callable[[Array, int], Hits]


class Part(Value, frozen=True, kw_only=True):
    """An index among others.

    Attributes:
        name: of its folder.
        count: how many documents it holds.
        sha256: of its own manifest, which has the hashes of all its files.
    """

    name: str
    count: int
    sha256: str


class Manifest(Value, frozen=True, kw_only=True):
    """What ``parts.json`` holds: parts in the order of their documents, whose ids are unique over all of them."""

    format_version: int
    parts: tuple[Part, ...]


def name(number: int) -> str:
    """The folder of a part, counted from 0."""
    return f"part-{number:04}"


def are_in(folder: Path) -> bool:
    """Whether a folder is an index in parts."""
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> tuple[Part, ...]:
    """The parts of a folder, each with the manifest that it was written with.

    Raises:
        ArtifactError: the list cannot be read, or a part is missing, is another one, or lies elsewhere.
    """
    found = folders.read_manifest(folder / MANIFEST, Manifest, FORMAT_VERSION)
    if not found.parts or len({part.name for part in found.parts}) != len(found.parts):
        raise ArtifactError(f"{folder}: {MANIFEST} names no part, or one twice; index again")
    for part in found.parts:
        own = folder / part.name / index_folder.MANIFEST
        if not NAME.fullmatch(part.name) or not reading.is_inside(own, folder):
            raise ArtifactError(f"{folder}: {MANIFEST} names {part.name!r}, which is no part of the folder")
        if not reading.is_file(own):
            raise ArtifactError(f"{folder}: {part.name} is missing; copy the whole folder again")
        if folders.sha256(own) != part.sha256:
            raise ArtifactError(f"{folder}: {part.name} is another one than {MANIFEST} names; copy all of it again")
    return found.parts


def write(folder: Path, counts: Mapping[str, int]) -> None:
    """Write the list of the parts that lie in a folder.

    Args:
        folder: of all.
        counts: how many documents each holds, by its name, in the order of the documents.
    """
    parts = tuple(
        Part(name=part, count=count, sha256=folders.sha256(folder / part / index_folder.MANIFEST))
        for part, count in counts.items()
    )
    folders.write_json(folder / MANIFEST, Manifest(format_version=FORMAT_VERSION, parts=parts))


def joined(folder: Path, manifests: Sequence[index_folder.Manifest]) -> index_folder.Manifest:
    """What is known of all parts together; ArtifactError where one has another kind, precision or model."""
    first = manifests[0]
    for number, one in enumerate(manifests):
        other = next((name for name in ALIKE if getattr(one, name) != getattr(first, name)), None)
        if other is not None:
            raise ArtifactError(f"{folder}: part {number} has {other} {getattr(one, other)}, and the first has "
                                f"{getattr(first, other)}; all parts must be alike")  # fmt: skip
    sums = {name: sum(getattr(one, name) for one in manifests) for name in ("count", "bytes", "rescore_bytes")}
    return msgspec.structs.replace(first, files=(), **sums)


class Merged:
    """Several searches as one: each gives its best hits, and the best of those are kept."""

    def __init__(self, queries: Sequence[Query], counts: Sequence[int], threads: int) -> None:
        """Merge what several parts find.

        Args:
            queries: of each part, gives the ``k`` best for float32 [q, dim] vectors, or as many as it holds.
            counts: how many documents each part holds.
            threads: in which parts are searched at once; 1 for one after the other.
        """
        self._parts = list(zip(queries, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        self._pool = ThreadPoolExecutor(min(threads, len(queries)), "slimseek part") if threads > 1 else None

    def query(self, vectors: Array, k: int) -> Hits:
        """The ``k`` best for each of float32 [q, dim] vectors, ids counted over all parts.

        Equal scores stand in the order of the documents; id -1 fills up where a graph finds fewer.
        """

        def ask(part: tuple[Query, int]) -> Hits:
            query, start = part
            hits = query(vectors, k)
            return Hits(ids=np.where(hits.ids < 0, -1, hits.ids + start), scores=hits.scores)

        found = list(map(ask, self._parts) if self._pool is None else self._pool.map(ask, self._parts))
        ids, scores = (np.concatenate([getattr(hits, each) for hits in found], axis=1) for each in ("ids", "scores"))
        best = np.lexsort((ids, -scores))[:, :k]
        return Hits(ids=np.take_along_axis(ids, best, 1), scores=np.take_along_axis(scores, best, 1))
