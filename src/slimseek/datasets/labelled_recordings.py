"""Labelled recordings: ``labels.csv`` with a column of paths and one of labels."""

from __future__ import annotations

from pathlib import Path

from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _recordings as recordings
from slimseek.datasets import _tables as tables
from slimseek.datasets._labels import collection
from slimseek.datasets._recordings import Recording
from slimseek.errors import UsageError

STEMS = ("labels",)
LABEL = ("label", "class", "keyword", "digit")


class LabelledRecordings(Dataset):
    """A folder whose ``labels.csv`` (or ``.tsv``) has a column of paths (``audio``, ``file`` or ``path``) and one of
    labels (``label``, ``class``, ``keyword`` or ``digit``); those of ``speaker`` and ``split`` count where there are
    such. Splits that share a speaker are not taken: a model that knows the voice is not asked what is said, so that
    whole speakers go to train, dev or test.

    The label is the transcript too, for recognisers.
    """

    def recognises(self, path: str) -> bool:
        """A folder with that file and its columns, of which the first names a recording."""
        return _file(Path(path)) is not None

    def read(self, path: str) -> Collection:
        """Read the labels; a row that names no file of the folder raises UsageError with its line."""
        file = _file(Path(path))
        assert file is not None
        found = _rows(file)
        parts, findings = recordings.split(found)
        rows = {name: (found[name].path, found[name].said, part) for name, part in parts.items()}
        return collection(path, rows, findings, {item: label for item, label, _ in rows.values()})


def _file(folder: Path) -> Path | None:
    for file in (folder / f"{stem}{suffix}" for stem in STEMS for suffix in tables.SUFFIXES):
        row = tables.first(file)
        audio = tables.column(row, recordings.AUDIO)
        if audio and tables.column(row, LABEL) and recordings.is_recording(row[audio]):
            return file
    return None


def _rows(file: Path) -> dict[str, Recording]:
    names = tables.header(file)
    audio, label = tables.column(names, recordings.AUDIO), tables.column(names, LABEL)
    speaker, split = tables.column(names, recordings.SPEAKER), tables.column(names, recordings.SPLIT)
    found = {}
    for number, row in tables.records(file):
        place = f"{file}, line {number}"
        if not row[label]:
            raise UsageError(f"{place}: there is no label")
        part = row[split] if split else ""
        found[row[audio]] = Recording(
            path=recordings.found(file.parent, row[audio], place), said=row[label],
            speaker=row[speaker] if speaker else "", split="dev" if part == "val" else part,
        )  # fmt: skip
    return found
