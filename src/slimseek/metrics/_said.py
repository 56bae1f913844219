"""What counts as the same word, and how many errors lie between two texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from slimseek import plugins
from slimseek.errors import UsageError

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})
_NUMBER = re.compile(r"(?<=\d)[.,:](?=\d)")
"""Points inside numbers, which stay: 3.5 and 35 differ."""
_INSIDE = re.compile(r"(?<=\w)'(?=\w)")
_MARK = re.compile(r"(?:[^\w\s]|_)+")


def normalised(text: str) -> str:
    """A text as error rates compare it: NFKC, lower case, without punctuation, words parted by single blanks.

    Apostrophes inside words and points inside numbers stay, and so do numbers themselves: ``3`` and ``three`` differ,
    and so do hyphenated words and those written together.
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()
    kept = {match.start() for pattern in (_NUMBER, _INSIDE) for match in pattern.finditer(text)}
    marks = {place for match in _MARK.finditer(text) for place in range(match.start(), match.end())
             if unicodedata.category(text[place])[0] != "M"}  # fmt: skip
    return " ".join("".join(" " if place in marks - kept else letter for place, letter in enumerate(text)).split())


def characters(text: str) -> str:
    """The characters that are counted: those of the normalised text without its blanks."""
    return normalised(text).replace(" ", "")


def errors(kind: str, reference: str, hypothesis: str) -> int:
    """The fewest insertions, deletions and substitutions that turn one normalised text into the other.

    Args:
        kind: ``words`` or ``characters``.
        reference: what was said.
        hypothesis: what was heard.
    """
    parts = (lambda text: text.split()) if kind == "words" else list
    if not reference or not hypothesis:  # the library takes no empty texts
        return len(parts(reference)) + len(parts(hypothesis))
    jiwer = plugins.require("jiwer")
    found = (jiwer.process_words if kind == "words" else jiwer.process_characters)(reference, hypothesis)
    return int(found.substitutions + found.deletions + found.insertions)


def shares(
    kind: str, references: Mapping[str, str], hypotheses: Mapping[str, str], form: Callable[[str], str]
) -> dict[str, float]:
    """errors_i n / parts for each of n texts, where ``parts`` counts the words (or characters) of all references.

    Raises:
        UsageError: no reference holds a word.
    """
    said = {name: form(text) for name, text in references.items()}
    parts = sum(len(text.split()) if kind == "words" else len(text) for text in said.values())
    if not parts:
        raise UsageError(f"none of {len(said)} transcripts holds a word; an error rate needs one")
    return {name: errors(kind, text, form(hypotheses.get(name, ""))) * len(said) / parts for name, text in said.items()}
