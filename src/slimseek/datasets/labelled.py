"""Labelled texts: ``.tsv`` or ``.csv`` files with the columns ``text`` and ``label``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slimseek.bases import Dataset
from slimseek.collection import Collection, Finding
from slimseek.datasets._findings import tally
from slimseek.datasets._labels import collection, split_of
from slimseek.datasets._tables import SUFFIXES, header, rows
from slimseek.errors import UsageError

STEMS = ("data", "train", "dev", "test")
COLUMNS = ("text", "label")


class Labelled(Dataset):
    """A file, or a folder of ``train``, ``dev`` and ``test`` (or one ``data``) with a header line; other columns are
    not read. One file alone is split 80 : 10 : 10 by a hash of the texts.

    In ``.tsv`` files quotes mean nothing: a row is a line, whatever stands in it. In ``.csv`` files a field in quotes
    may hold commas and line ends.
    """

    def recognises(self, path: str) -> bool:
        """A file with both columns, or a folder with one of that name."""
        return bool(_files(Path(path)))

    def read(self, path: str) -> Collection:
        """Read every split; a row without a label raises UsageError naming the file and the line."""
        found: dict[str, tuple[str, str, str]] = {}
        findings: list[Finding] = []
        files = _files(Path(path))
        alone = len(files) == 1 and files[0].stem not in STEMS[1:]
        for file in files:
            empty = []
            for number, row in _rows(file):
                text, label = row
                name = f"{file.stem}-{number}"
                if not label:
                    raise UsageError(f"{file}, line {number}: there is no label")
                if text:
                    found[name] = text, label, split_of(text) if alone else file.stem
                else:
                    empty.append(name)
            findings += tally(f"{file.name}: rows without text, left out", empty)
        return collection(path, found, findings)


def _files(path: Path) -> list[Path]:
    """The files that have both columns, of a folder in the order of ``STEMS``."""
    if path.is_file():
        found = [path] if path.suffix in SUFFIXES else []
    else:
        found = [path / f"{stem}{suffix}" for stem in STEMS for suffix in SUFFIXES]
    return [file for file in found if file.is_file() and set(COLUMNS) <= set(header(file))]


def _rows(file: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """The line that each row ends on, its text and its label."""
    columns = header(file)
    places = [columns.index(name) for name in COLUMNS]
    for number, fields in rows(file):
        text, label = (" ".join(fields[place].split()) for place in places)
        yield number, (text, label)
