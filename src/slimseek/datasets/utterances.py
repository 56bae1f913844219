"""Recordings with transcripts: a table, the tables of Common Voice, or the folders of LibriSpeech."""

from __future__ import annotations

from pathlib import Path

from slimseek.bases import Dataset
from slimseek.collection import Collection
from slimseek.datasets import _recordings as recordings
from slimseek.datasets import _tables as tables
from slimseek.datasets._labels import SPLIT_NAMES
from slimseek.datasets._recordings import Recording
from slimseek.errors import UsageError
from slimseek.inputs.suffixes import RECORDINGS

STEMS = ("train", "dev", "test", "data", "metadata", "transcripts")
TEXT = ("text", "transcript", "sentence", "transcription")
TRANSCRIPTS = "*.trans.txt"


class Utterances(Dataset):
    """A ``.tsv`` or ``.csv`` file with a column of paths (``audio``, ``file`` or ``path``) and one of transcripts
    (``text``, ``transcript`` or ``sentence``); those of ``speaker`` (or ``client_id``) and ``split`` count where there
    are such. Or a folder with one called ``data``, ``metadata`` or ``transcripts``, or with ``train``, ``dev`` and
    ``test``. Or a folder in which files ``*.trans.txt`` have a line for each recording beside them: its name without
    the suffix, a blank, what is said; the speaker is the name up to the first ``-``.

    To find is what is said: documents are the transcripts, and a recording is the query.
    """

    def recognises(self, path: str) -> bool:
        """A table with both columns of which the first names a recording, or a folder of either layout."""
        place = Path(path)
        return bool(_tables(place)) or (place.is_dir() and next(place.rglob(TRANSCRIPTS), None) is not None)

    def read(self, path: str) -> Collection:
        """Read every recording; one that is not there raises UsageError naming the file and the line."""
        place = Path(path)
        files = _tables(place)
        found: dict[str, Recording] = {}
        if files:
            for file in files:
                found |= _table(file)
        else:
            for file in sorted(place.rglob(TRANSCRIPTS)):
                found |= _transcripts(file, place)
        return recordings.utterances(path, found, ())


def _tables(path: Path) -> list[Path]:
    """The files that name recordings with their transcripts, of a folder in the order of ``STEMS``."""
    found = [path] if path.is_file() else [path / f"{stem}{suffix}" for stem in STEMS for suffix in tables.SUFFIXES]
    return [file for file in found if file.suffix in tables.SUFFIXES and _columns(file)]


def _columns(file: Path) -> tuple[str, str] | None:
    """The columns of path and transcript; ``None`` where it is no table of recordings."""
    row = tables.first(file)
    audio, text = tables.column(row, recordings.AUDIO), tables.column(row, TEXT)
    if not audio or not text or "label" in row or not recordings.is_recording(row[audio]):
        return None
    return audio, text


def _table(file: Path) -> dict[str, Recording]:
    columns, names = _columns(file), tables.header(file)
    assert columns is not None
    audio, text = columns
    speaker, split = tables.column(names, recordings.SPEAKER), tables.column(names, recordings.SPLIT)
    own = file.stem if file.stem in ("train", "dev", "test") else ""
    found = {}
    for number, row in tables.records(file):
        path = recordings.found(file.parent, row[audio], f"{file}, line {number}")
        part = row[split] if split else own
        found[f"{file.stem}-{number}"] = Recording(
            path=path, said=" ".join(row[text].split()), speaker=row[speaker] if speaker else "",
            split=SPLIT_NAMES.get(part, part),
        )  # fmt: skip
    return found


def _transcripts(file: Path, root: Path) -> dict[str, Recording]:
    """The recordings that lie beside their transcripts; a split is the beginning of a folder's name."""
    found = {}
    folders = file.relative_to(root).parts[:-1]
    part = next((split for split in ("train", "dev", "test") for name in folders if name.startswith(split)), "")
    for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        name, _, said = line.strip().partition(" ")
        if not name:
            continue
        path = next((path for suffix in RECORDINGS if (path := file.parent / f"{name}{suffix}").is_file()), None)
        if path is None:
            raise UsageError(f"{file}, line {number}: there is no recording {name} beside it")
        found[name] = Recording(path=str(path), said=" ".join(said.split()), speaker=name.split("-")[0], split=part)
    return found
