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
    return [file for file in found if file.suffix in tables.SUFFIXES and file.is_file() and _columns(file)]


def _columns(file: Path) -> tuple[int, int, int | None, int | None] | None:
    """Places of path, transcript, speaker and split; ``None`` where it is no table of recordings."""
    names = tables.header(file)
    audio, text = recordings.column(names, recordings.AUDIO), recordings.column(names, TEXT)
    if audio is None or text is None or "label" in names:
        return None
    place = names.index(audio)
    _, first = next(tables.rows(file), (0, [""] * len(names)))
    if not recordings.is_recording(first[place].strip()):
        return None
    speaker, split = recordings.column(names, recordings.SPEAKER), recordings.column(names, recordings.SPLIT)
    return (place, names.index(text), None if speaker is None else names.index(speaker),
            None if split is None else names.index(split))  # fmt: skip


def _table(file: Path) -> dict[str, Recording]:
    places = _columns(file)
    assert places is not None
    audio, text, speaker, split = places
    own = file.stem if file.stem in ("train", "dev", "test") else ""
    found = {}
    for number, fields in tables.rows(file):
        cells = [field.strip() for field in fields]
        path = recordings.found(file.parent, cells[audio], f"{file}, line {number}")
        part = cells[split] if split is not None else own
        found[f"{file.stem}-{number}"] = Recording(
            path=path, said=" ".join(cells[text].split()), speaker=cells[speaker] if speaker is not None else "",
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
