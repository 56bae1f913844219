"""``vocab.json`` of a network that gives a token for each frame: token to number, as transformers writes it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.schema import Array

FILE = "vocab.json"
BLANKS = ("<blank>", "<pad>", "[PAD]", "<ctc>")
GAPS = ("|", "<space>", "▁")
"""Tokens that stand for the blank between words."""


class Vocabulary:
    """Letters, or other pieces of texts, and the blank: the first of ``BLANKS`` that the file has."""

    def __init__(self, content: bytes, where: str = FILE) -> None:
        """Read the file's content; UsageError where it is no object of tokens numbered from 0, or has no blank."""
        try:
            numbers: dict[str, int] = reading.decoded(content, dict[str, int])
        except msgspec.MsgspecError as error:
            raise UsageError(f"{where} is not an object of tokens and their numbers: {error}") from error
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise UsageError(f"{where} numbers {len(numbers)} tokens; each number from 0 on is wanted once")
        blank = next((token for token in BLANKS if token in numbers), None)
        if blank is None:
            raise UsageError(f"{where} has no blank; one of {', '.join(BLANKS)} is wanted")
        self.blank: int = numbers[blank]
        self._numbers = numbers
        self._tokens = sorted(numbers, key=lambda token: numbers[token])
        self._longest = max(len(token) for token in numbers)

    def __len__(self) -> int:
        return len(self._tokens)

    def ids(self, text: str) -> list[int]:
        """Numbers of a text's pieces, the longest that fits each time; in lower or upper case where its own has none.

        What no token stands for is left out.
        """
        found, place = [], 0
        while place < len(text):
            length, number = next(
                ((length, number) for length in range(min(self._longest, len(text) - place), 0, -1)
                 if (number := self._number(text[place : place + length])) is not None), (1, None),
            )  # fmt: skip
            found += [] if number is None else [number]
            place += length
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Tokens joined, those between words as single blanks."""
        said = "".join(" " if self._tokens[number] in GAPS else self._tokens[number] for number in ids)
        return " ".join(said.split())

    def heard(self, scores: Array) -> list[str]:
        """The text of each of float32 [n, frames, tokens]: the likeliest token of each frame; repeated ones are one,
        and blanks are left out (Graves et al., 2006, best path).
        """
        texts = []
        for row in scores.argmax(-1):
            first = np.concatenate([[True], row[1:] != row[:-1]]) if len(row) else np.zeros(0, bool)
            texts.append(self.text([int(number) for number in row[first] if number != self.blank]))
        return texts

    def _number(self, piece: str) -> int | None:
        if piece == " ":
            return next((self._numbers[gap] for gap in (*GAPS, " ") if gap in self._numbers), None)
        return next(
            (self._numbers[form] for form in (piece, piece.lower(), piece.upper()) if form in self._numbers), None
        )
