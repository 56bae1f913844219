"""What trials keep for later ones, between machines: students and what else took long, and the vectors of teachers.

An entry of a search's cache bears the hash of all that it was made from, and never changes once it is there. So it is
the same wherever it was made, and a machine that lacks one can take it from another in the place of hours of work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slimseek import folder as folders
from slimseek.budget.prefixes import RECORDS, TEACHERS

Files = Mapping[str, bytes]
"""Relative path to content."""


def names(cache: Path) -> set[str]:
    """Of all entries that can be shared: folders of models, and files of vectors."""
    models = {path.parent.name for path in cache.glob(f"*/{RECORDS}")}
    return models | {f"{TEACHERS}/{path.name}" for path in (cache / TEACHERS).glob("[!.]*.npy")}


def read(cache: Path, name: str) -> Files:
    """The files of an entry."""
    place = cache / name
    if place.is_file():
        return {"": place.read_bytes()}
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def write(cache: Path, name: str, files: Files) -> None:
    """Add an entry, whole or not at all.

    Raises:
        UsageError: the disk takes no more.
    """
    if "" in files:
        folders.write_atomically(cache / name, files[""])
        return
    with folders.writing(cache / name) as place:
        for path, content in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
