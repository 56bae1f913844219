"""Labelled pictures: a subfolder for each class, with folders for the splits above them or without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _pictures as pictures
from slimseek.datasets._findings import tally
from slimseek.datasets._labels import SPLIT_NAMES, split_of
from slimseek.inputs.suffixes import PICTURES


class PictureFolder(Dataset):
    """``CLASS/PICTURE``, split 80 : 10 : 10 by a hash of that path, or ``SPLIT/CLASS/PICTURE`` with the splits train,
    dev (or val) and test. Pictures may lie deeper in the folder of their class.
    """

    def recognises(self, path: str) -> bool:
        """A folder without ``labels.csv`` that has a picture in a subfolder, or one deeper."""
        folder = Path(path)
        if not folder.is_dir() or (folder / "labels.csv").exists():
            return False
        return any(file.suffix.lower() in PICTURES for place in _places(folder).values()
                   for depth in ("*/*", "*/*/*") for file in place.glob(depth))  # fmt: skip

    def read(self, path: str) -> Collection:
        """Find the pictures, and read the header of each."""
        rows, others = {}, []
        for split, place in _places(Path(path)).items():
            for label, file in _files(place):
                name = file.relative_to(path).as_posix()
                if file.suffix.lower() in PICTURES:
                    rows[name] = str(file), label, split or split_of(name)
                else:
                    others.append(name)
        return pictures.labelled(path, rows, tally("files that are no pictures by their name, left out", others))


def _places(folder: Path) -> dict[str, Path]:
    """Split to the folder that holds its classes; the folder itself, of no split, where its subfolders are none."""
    found = {SPLIT_NAMES[place.name.lower()]: place for place in sorted(folder.iterdir())
             if place.is_dir() and place.name.lower() in SPLIT_NAMES}  # fmt: skip
    return found or {"": folder}


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """Label and file of all that lies in the folders of classes, in the order of the names."""
    for folder in sorted(place.iterdir()):
        if folder.is_dir():
            yield from ((folder.name, file) for file in sorted(folder.rglob("*")) if file.is_file())
