"""Labelled arrays: ``labels.csv`` with the columns ``path``, ``label`` and ``split``."""

from __future__ import annotations

import csv
from pathlib import Path

from slimseek import reading
from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets._labels import SPLITS, collection
from slimseek.errors import UsageError

FILE = "labels.csv"
COLUMNS = {"path", "label", "split"}
ARRAYS = (".npy", ".npz")


class LabelledArrays(Dataset):
    """A folder whose ``labels.csv`` names ``.npy`` or ``.npz`` files in it; a split is train, dev (or val) or test."""

    def recognises(self, path: str) -> bool:
        """A folder with that file, its columns, and an array in the first row."""
        file = Path(path) / FILE
        if not file.is_file():
            return False
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            first = next(csv.DictReader(stream), {})
        return set(first) >= COLUMNS and Path(first["path"] or "").suffix in ARRAYS

    def read(self, path: str) -> Collection:
        """Read the labels; a row that names no file of the folder raises UsageError with its line."""
        file, rows = Path(path) / FILE, {}
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                array = Path(path) / (row["path"] or "")
                split = "dev" if row["split"] == "val" else row["split"]
                if split not in SPLITS or not row["label"]:
                    raise UsageError(f"{file}, line {reader.line_num}: label {row['label']!r}, split {row['split']!r}; "
                                     f"a label and one of {', '.join(SPLITS)} are expected")  # fmt: skip
                if not reading.is_inside(array, path) or not reading.is_file(array):
                    raise UsageError(f"{file}, line {reader.line_num}: there is no file {row['path']!r} in {path}")
                rows[f"{row['path']}"] = str(array), row["label"], split
        return collection(path, rows, ())
