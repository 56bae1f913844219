"""What the worker does for requests: texts of a like length encoded together, and then searched together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array
from slimseek.search import Answer, Search

Role = Literal["query", "document"]
SHORTEST, LONGEST = 6, 12
"""Powers of two in characters between which lengths are told apart: from a few words to more than most models read."""


class Asked(NamedTuple):
    """Texts of one request: ``k`` documents are wanted for each, or with ``None`` their vectors."""

    texts: Sequence[str]
    k: int | None


@dataclass(frozen=True)
class Texts:
    """Texts for one search, in one role, of about one length in characters.

    A short text is never padded to a long one: the encoder pads each to the bucket of its own tokens, whatever its
    neighbours are. They are told apart so that a short one does not wait until a long one is encoded.
    """

    search: Search
    role: Role
    length: int

    def __call__(self, asked: Sequence[Asked]) -> list[Answer | Array]:
        """For each request an ``Answer``, or float32 [n, dim] vectors: one encoding, and one search for each ``k``.

        The times of an answer are those of the whole batch, which each of its requests waited for.
        """
        begin = perf_counter()
        vectors = self.search.embed([text for one in asked for text in one.texts], self.role)
        encoded = perf_counter()
        ends = np.cumsum([len(one.texts) for one in asked])
        parts = np.split(vectors, ends[:-1])
        found: dict[int, tuple[Any, ...]] = {}
        for k in {one.k for one in asked if one.k is not None}:
            positions = [place for place, one in enumerate(asked) if one.k == k]
            results = iter(self.search.nearest(np.concatenate([parts[place] for place in positions]), k))
            found |= {place: tuple(next(results) for _ in asked[place].texts) for place in positions}
        spent = 1000 * (encoded - begin), 1000 * (perf_counter() - encoded)
        return [Answer(found[place], *spent) if place in found else part for place, part in enumerate(parts)]


def texts(search: Search, asked: Asked, role: Role = "query") -> Texts:
    """The work for texts; an empty one raises UsageError, before it can trouble its neighbours."""
    for position, text in enumerate(asked.texts):
        if not text.strip():
            raise UsageError(f"text {position + 1} of {len(asked.texts)} is empty; give it at least one word")
    longest = max(map(len, asked.texts))
    return Texts(search, role, min(max(longest.bit_length(), SHORTEST), LONGEST))


class Alone:
    """A call that is joined with nothing, such as one for a picture or a recording."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._call, self._arguments = call, arguments

    def __call__(self, asked: Sequence[None]) -> list[Any]:
        """What the call gives."""
        return [self._call(*self._arguments) for _ in asked]
