"""Counting what is odd in a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slimseek.collection import Finding

SHOWN = 3


def tally(what: str, names: Sequence[str]) -> tuple[Finding, ...]:
    """A finding with the first examples; nothing if there is nothing to count."""
    return (Finding(what=what, count=len(names), examples=tuple(names[:SHOWN])),) if names else ()


def repeated(items: Mapping[str, str]) -> list[str]:
    """Ids whose text an earlier item has already; empty texts do not count."""
    seen: set[str] = set()
    found = []
    for name, text in items.items():
        if text and text in seen:
            found.append(name)
        seen.add(text)
    return found
