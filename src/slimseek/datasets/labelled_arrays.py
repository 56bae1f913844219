"""Labelled arrays: ``labels.csv`` with the columns ``path``, ``label`` and ``split``."""

from __future__ import annotations

from pathlib import Path

from slimseek import reading
from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _tables as tables
from slimseek.datasets._labels import SPLITS, collection
from slimseek.errors import UsageError

FILE = "labels.csv"
COLUMNS = {"path", "label", "split"}
ARRAYS = (".npy", ".npz")


class LabelledArrays(Dataset):
    """A folder whose ``labels.csv`` names ``.npy`` or ``.npz`` files in it; a split is train, dev (or val) or test."""

    def recognises(self, path: str) -> bool:
        """A folder with that file, its columns, and an array in the first row."""
        found = tables.first(Path(path) / FILE)
        return found.keys() >= COLUMNS and Path(found["path"]).suffix in ARRAYS

    def read(self, path: str) -> Collection:
        """Read the labels; a row that names no file of the folder raises UsageError with its line."""
        file, rows = Path(path) / FILE, {}
        for number, row in tables.records(file):
            array = Path(path) / row["path"]
            split = "dev" if row["split"] == "val" else row["split"]
            if split not in SPLITS or not row["label"]:
                raise UsageError(f"{file}, line {number}: label {row['label']!r}, split {row['split']!r}; a label and "
                                 f"one of {', '.join(SPLITS)} are expected")  # fmt: skip
            if not reading.is_inside(array, path) or not reading.is_file(array):
                raise UsageError(f"{file}, line {number}: there is no file {row['path']!r} in {path}")
            rows[row["path"]] = str(array), row["label"], split
        return collection(path, rows, ())
