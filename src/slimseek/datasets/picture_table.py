"""Labelled pictures: ``labels.csv`` with a column of paths, one of labels, and mostly one of splits."""

from __future__ import annotations

import csv
from pathlib import Path

from slimseek import reading
from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _pictures as pictures
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
        file = Path(path) / FILE
        if not file.is_file():
            return False
        with reading.check_file(file).open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            first = next(csv.DictReader(stream), {})
        column = _column(first, PATHS)
        return column != "" and _column(first, LABELS) != "" and Path(first[column] or "").suffix.lower() in PICTURES

    def read(self, path: str) -> Collection:
        """Read the labels; a row that names no file of the folder raises UsageError with its line."""
        file, rows, twice = Path(path) / FILE, {}, []
        said: dict[str, str] = {}
        with reading.check_file(file).open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or ()
            item, label, text = (_column(dict.fromkeys(names, ""), known) for known in (PATHS, LABELS, CAPTIONS))
            for row in reader:
                told = (row["split"] or "").lower() if "split" in names else split_of(row[item] or "")
                if told not in SPLIT_NAMES or not row[label]:
                    raise UsageError(f"{file}, line {reader.line_num}: {label} {row[label]!r}, split {told!r}; a label "
                                     f"and one of {', '.join(SPLIT_NAMES)} are expected")  # fmt: skip
                twice += [row[item]] if row[item] in rows else []
                rows[row[item]] = (
                    _found(Path(path), row[item] or "", reader.line_num),
                    row[label],
                    SPLIT_NAMES[told],
                )
                said[rows[row[item]][0]] = (row.get(text) or "").strip()
        return pictures.labelled(path, rows, tally("rows given twice, the last counts", twice), said)


def _column(row: dict[str, str], known: tuple[str, ...]) -> str:
    """The first of the known columns that the table has, ``""`` for none."""
    return next((name for name in known if name in row), "")


def _found(folder: Path, name: str, line: int) -> str:
    """The path of a picture, which must lie in the folder."""
    for place in FOLDERS:
        path = folder / place / name
        if name and reading.is_file(path) and reading.is_inside(path, folder):
            return str(path)
    raise UsageError(f"{folder / FILE}, line {line}: there is no file {name!r} in {folder}")
