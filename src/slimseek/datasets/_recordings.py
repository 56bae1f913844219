"""Recordings as the items of a collection: where their files lie, and splits that share no recording and no speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimseek import reading
from slimseek.collection import Collection, Finding, Qrels
from slimseek.datasets._findings import tally
from slimseek.datasets._labels import SPLITS, split_of
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.inputs.suffixes import RECORDINGS as SUFFIXES
from slimseek.value import Value

FOLDERS = ("", "clips", "wav", "audio")
"""Where in a collection a file may lie that a table names: Common Voice keeps its recordings in ``clips``."""
AUDIO = ("audio", "file", "path", "file_name", "filename", "wav")
SPEAKER = ("speaker", "client_id", "speaker_id")
SPLIT = ("split", "subset")
HELD_OUT = 10
"""One of so many speakers is for test, and one for dev."""


class Recording(Value, frozen=True):
    """A row of a table of recordings.

    Attributes:
        path: of the file.
        said: its transcript, or its label.
        speaker: ``""`` where it is not known.
        split: as the table has it, ``""`` for none.
    """

    path: str
    said: str
    speaker: str = ""
    split: str = ""


def is_recording(name: str) -> bool:
    """Whether a file's name is that of a recording."""
    return Path(name).suffix.lower() in SUFFIXES


def found(folder: Path, name: str, place: str) -> str:
    """The path of a recording that a table names.

    Args:
        folder: of the collection, in which it must lie, in ``FOLDERS`` too.
        name: as the table has it.
        place: file and line, for the message.

    Raises:
        UsageError: there is none.
    """
    for inside in FOLDERS:
        path = folder / inside / name
        if name and reading.is_file(path) and reading.is_inside(path, folder):
            return str(path)
    raise UsageError(f"{place}: there is no file {name!r} in {folder}")


def split(recordings: Mapping[str, Recording]) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """Train, dev or test of each recording, and what a user should know of it.

    The table's own splits hold where they share no speaker. Otherwise whole speakers go to one of them, in the order
    of a hash: a tenth of them, at least one, to test, as many to dev. Where fewer than three speakers are known,
    recordings are split 80 : 10 : 10 by a hash of their name and their text, if there are no splits.

    A recording that several splits have counts for the first of test, dev and train alone.
    """
    findings: list[Finding] = []
    speakers = {each.speaker for each in recordings.values()}
    known = "" not in speakers and len(speakers) > 2
    given = all(each.split in SPLITS for each in recordings.values())
    shared = _shared(recordings) if given else []
    if given and not (shared and known):
        findings += tally("speakers that several splits share; too few to split by them", shared)
        return _without_twice({name: each.split for name, each in recordings.items()}, recordings, findings)
    findings += tally("speakers that several splits of the data share, for whom its splits do not count", shared)
    if not known:
        own = {name: split_of(f"{Path(each.path).name} {each.said}") for name, each in recordings.items()}
        return _without_twice(own, recordings, findings)
    ordered = sorted(speakers, key=hashed)
    count = max(1, len(ordered) // HELD_OUT)
    parts = {speaker: "test" if place < count else "dev" if place < 2 * count else "train"
             for place, speaker in enumerate(ordered)}  # fmt: skip
    said = [f"{part}: {', '.join([speaker for speaker in ordered if parts[speaker] == part][:HELD_OUT])}"
            for part in ("test", "dev")]  # fmt: skip
    findings.append(Finding(what="speakers, each of whom is in one split alone", count=len(speakers),
                            examples=tuple(said)))  # fmt: skip
    return _without_twice({name: parts[each.speaker] for name, each in recordings.items()}, recordings, findings)


def utterances(path: str, recordings: Mapping[str, Recording], findings: Sequence[Finding]) -> Collection:
    """Recordings to find what is said in them by: the documents are the transcripts, each different one once.

    Args:
        path: where they were read from.
        recordings: by id, each with its transcript; those without one are left out.
        findings: what the reader counted.

    Raises:
        UsageError: fewer than two recordings have a transcript.
    """
    silent = [name for name, each in recordings.items() if not each.said]
    spoken = {name: each for name, each in recordings.items() if each.said}
    if len(spoken) < 2:
        raise UsageError(f"{path} has {len(spoken)} recordings with a transcript; two are needed")
    documents: dict[str, str] = {}
    for name, each in spoken.items():
        documents.setdefault(each.said, name)
    parts, more = split(spoken)
    qrels: dict[str, Qrels] = {part: {} for part in SPLITS}
    for name, part in parts.items():
        qrels[part][name] = {documents[spoken[name].said]: 1}
    return Collection(
        name=Path(path).resolve().name,
        path=path,
        corpus={name: text for text, name in documents.items()},
        queries={name: each.path for name, each in spoken.items()},
        qrels={part: judged for part, judged in qrels.items() if judged},
        findings=(*findings, *more, *tally("recordings without a transcript, left out", silent)),
        said={each.path: each.said for each in spoken.values()},
    )


def _shared(recordings: Mapping[str, Recording]) -> list[str]:
    """Speakers of more than one split."""
    pairs = {(each.speaker, each.split) for each in recordings.values() if each.speaker}
    return sorted(speaker for speaker, count in Counter(speaker for speaker, _ in pairs).items() if count > 1)


def _without_twice(
    parts: Mapping[str, str], recordings: Mapping[str, Recording], findings: Sequence[Finding]
) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """The splits without recordings that one before, of test, dev and train, has too."""
    first: dict[str, str] = {}
    for part in reversed(SPLITS):
        for name, own in parts.items():
            if own == part:
                first.setdefault(recordings[name].path, part)
    twice = [name for name, part in parts.items() if first[recordings[name].path] != part]
    kept = {name: part for name, part in parts.items() if name not in set(twice)}
    return kept, (*findings, *tally("recordings that another split has too, left out", twice))
