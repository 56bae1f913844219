"""Texts that no collection holds, and short texts made of long ones: what a model can learn from without any label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from slimseek import reading
from slimseek.errors import UsageError

SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
"""Between two sentences."""
SUFFIXES = (".txt", ".jsonl")
WORDS_IN_TITLE = 8


def read(source: str) -> list[str]:
    """The texts of a file, or of all such files of a folder: ``.txt`` with one a line, ``.jsonl`` with ``text``.

    Args:
        source: path of the file or the folder; blank lines are left out.

    Raises:
        UsageError: there is none, or a line has no text; the message names the file and the line.
    """
    path = Path(source)
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise UsageError(f"{source} holds no texts; a file or a folder of {' or '.join(SUFFIXES)} is wanted")
    texts = [text for file in files for text in _texts(file)]
    if not texts:
        raise UsageError(f"{source} holds no texts: every line is blank")
    return texts


def openings(texts: Sequence[str]) -> list[str]:
    """Short texts as queries are: the first sentence of each, and its first eight words, which are most of a title."""
    found: list[str] = []
    for text in texts:
        first = SENTENCE.split(text.strip(), maxsplit=1)[0]
        found += [first, " ".join(first.split()[:WORDS_IN_TITLE])]
    return [text for text in dict.fromkeys(found) if text]


def _texts(file: Path) -> list[str]:
    try:
        if file.suffix == ".txt":
            return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
        lines = file.read_bytes().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the texts {file}: {getattr(error, 'strerror', None) or error}") from error
    return [_text(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]


def _text(line: bytes, file: Path, number: int) -> str:
    try:
        record = reading.decoded(line)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file}, line {number}: not valid JSON ({error})") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"{file}, line {number}: there is no text (a string)")
    return text.strip()
