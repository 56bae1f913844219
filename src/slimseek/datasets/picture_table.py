"""Labelled pictures: ``labels.csv`` with a column of paths, one of labels, and mostly one of splits."""

from __future__ import annotations

from pathlib import Path

from slimseek import reading
from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _pictures as pictures
from slimseek.datasets import _tables as tables
from slimseek.datasets._findings import tally
from slimseek.datasets._labels import SPLIT_NAMES, split_of
from slimseek.errors import UsageError
from slimseek.inputs.suffixes import PICTURES

FILE = "labels.csv"
PATHS, LABELS, CAPTIONS = ("path", "file", "image"), ("label", "class"), ("caption", "text")
FOLDERS = ("", "img", "images")
"""Where the paths may lie, in the folder."""


class PictureTable(Dataset):
    """A folder whose ``labels.csv`` names pictures in it, in its ``img`` or its ``images``: a column ``path``, ``file``
    or ``image``, one ``label`` or ``class``, and ``split``: train, dev (or val) or test; without it 80 : 10 : 10 by a
    hash of the path. A column ``caption`` or ``text`` tells what is said of a picture.
    """

    def recognises(self, path: str) -> bool:
        """A folder with that file, a column of each kind, and a picture in the first row."""
        row = tables.first(Path(path) / FILE)
        column = tables.column(row, PATHS)
        return column != "" and tables.column(row, LABELS) != "" and Path(row[column]).suffix.lower() in PICTURES

    def read(self, path: str) -> Collection:
        """Read the labels; a row that names no file of the folder raises UsageError with its line."""
        file, rows, twice = Path(path) / FILE, {}, []
        said: dict[str, str] = {}
        item, label, text = (tables.column(tables.header(file), known) for known in (PATHS, LABELS, CAPTIONS))
        for number, row in tables.records(file):
            name, split = row[item], row["split"].lower() if "split" in row else split_of(row[item])
            if split not in SPLIT_NAMES or not row[label]:
                raise UsageError(f"{file}, line {number}: {label} {row[label]!r}, split {split!r}; a label and one of "
                                 f"{', '.join(SPLIT_NAMES)} are expected")  # fmt: skip
            twice += [name] if name in rows else []
            rows[name] = _found(Path(path), name, number), row[label], SPLIT_NAMES[split]
            said[rows[name][0]] = row[text] if text else ""
        return pictures.labelled(path, rows, tally("rows given twice, the last counts", twice), said)


def _found(folder: Path, name: str, line: int) -> str:
    """The path of a picture, which must lie in the folder."""
    for place in FOLDERS:
        path = folder / place / name
        if name and reading.is_file(path) and reading.is_inside(path, folder):
            return str(path)
    raise UsageError(f"{folder / FILE}, line {line}: there is no file {name!r} in {folder}")
