"""The words of pages: English as it stands beside the code that says it, and a table from that to each other language.

``zh.json`` has two tables. ``words`` are phrases of the code and of the templates, with places for values in braces.
``recorded`` are sentences that a run wrote into its report: gates, parts of a model, and the notes of common steps.
They are told by their form, so that the figures in them come along. A note that has no form there stays English, and
the page marks it as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import resources
from typing import Any

from msgspec import json

from slimseek.errors import UsageError

LANGUAGES = ("en", "zh")
TAGS = {"en": "en", "zh": "zh-Hans"}
"""What a page says of its own language."""

_SPOKEN: ContextVar[str] = ContextVar("language of the page", default="en")


def checked(language: str) -> str:
    """The language as it is.

    Raises:
        UsageError: there are no words of it.
    """
    if language not in LANGUAGES:
        raise UsageError(f"--lang is {language}; allowed are {' and '.join(LANGUAGES)}")
    return language


@contextmanager
def speaking(language: str) -> Iterator[str]:
    """Everything that is said in the block is said in this language; gives its tag for the page.

    Raises:
        UsageError: there are no words of this language.
    """
    token = _SPOKEN.set(checked(language))
    try:
        yield TAGS[language]
    finally:
        _SPOKEN.reset(token)


def spoken() -> str:
    """The language that is spoken now."""
    return _SPOKEN.get()


def say(text: str, /, **values: Any) -> str:
    """A phrase in the language of the page, with these values in its places."""
    return phrase(text).format(**values)


def phrase(text: str) -> str:
    """The same with its places still open."""
    return text if _SPOKEN.get() == "en" else table(_SPOKEN.get(), "words")[text]


def later(text: str) -> str:
    """Marks a phrase that is kept now and said later: the text as it is."""
    return text


def recorded(text: str) -> str | None:
    """What a run wrote, in the language of the page; ``None`` where it has no form for it."""
    if _SPOKEN.get() == "en" or not re.search("[A-Za-z]{2}", text):
        return text
    for form, said in _forms(_SPOKEN.get()):
        found = form.fullmatch(text)
        if found:
            return said.format(**{name: recorded(value) or value for name, value in found.groupdict().items()})
    return None


@cache
def table(language: str, name: str) -> Mapping[str, str]:
    """One of the two tables of a language other than English."""
    file = resources.files("slimseek") / "report" / f"{language}.json"
    found: dict[str, dict[str, str]] = json.decode(file.read_bytes())
    return found[name]


@cache
def _forms(language: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Forms of recorded sentences, those with the most fixed letters first: a longer one may begin like a shorter."""
    forms = []
    for text, said in table(language, "recorded").items():
        parts = re.split(r"\{(\w+)\}", text)
        form = "".join(f"(?P<{part}>.+?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
        forms.append((sum(map(len, parts[::2])), re.compile(form, re.DOTALL), said))
    return tuple((form, said) for _, form, said in sorted(forms, key=lambda found: -found[0]))
