"""Labelled pictures as a collection: what is broken is left out, and files that are the same are one item."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimseek.collection import Collection, Finding
from slimseek.datasets._findings import tally
from slimseek.datasets._labels import collection
from slimseek.errors import UsageError
from slimseek.inputs.pictures import size


def broken(files: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each picture whose header cannot be read, by id."""
    found = {}
    for name, path in files.items():
        try:
            size(path)
        except UsageError as error:
            found[name] = str(error)
    return found


def labelled(
    path: str,
    rows: Mapping[str, tuple[str, str, str]],
    findings: Sequence[Finding],
    said: Mapping[str, str] | None = None,
) -> Collection:
    """The collection of some pictures; identical files are one item, of two ids.

    Args:
        path: where they were found.
        rows: id to path, label and split.
        findings: what the reader counted.
        said: captions by the path; ``None`` for none.

    Raises:
        UsageError: fewer than two classes; no picture that can be read.
    """
    unreadable = broken({name: item for name, (item, _, _) in rows.items()})
    kept = {name: row for name, row in rows.items() if name not in unreadable}
    if not kept:
        more = f"; {next(iter(unreadable.values()))}" if unreadable else ""
        raise UsageError(f"{path} has no pictures that can be read{more}")
    first = _first({name: item for name, (item, _, _) in kept.items()})
    copies = [name for name, (item, _, _) in kept.items() if first[name] != item]
    sizes = Counter(label for _, label, _ in kept.values())
    return collection(
        path, {name: (first[name], label, split) for name, (_, label, split) in kept.items()},
        (
            *findings,
            *tally("pictures that cannot be read, left out", list(unreadable.values())),
            *tally("pictures whose file occurs before", copies),
            *tally("classes with one picture", [label for label, count in sizes.items() if count == 1]),
        ),
        {item: (said or {}).get(item, "") for item in first.values()},
    )  # fmt: skip


def _first(files: Mapping[str, str]) -> dict[str, str]:
    """The path of the first file of the same bytes, by id; only files of the same length are read."""
    lengths = {path: Path(path).stat().st_size for path in files.values()}
    shared = Counter(lengths.values())
    seen: dict[bytes, str] = {}
    found = {}
    for name, path in files.items():
        if shared[lengths[path]] == 1:
            found[name] = path
        else:
            found[name] = seen.setdefault(hashlib.sha256(Path(path).read_bytes()).digest(), path)
    return found
