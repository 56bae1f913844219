"""Between the routes and the worker: which search a request means, and its answer from the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from slimseek.errors import UsageError
from slimseek.schema import Array
from slimseek.search import Answer, Search
from slimseek.serving.batching import Batcher, Done, Work
from slimseek.serving.metrics import Metrics
from slimseek.serving.shapes import Failure, Which
from slimseek.serving.swap import Current, Version, queries
from slimseek.serving.work import Alone, Asked, Role, texts


class Desk:
    """What routes ask; it holds no state of its own."""

    def __init__(self, current: Current, batcher: Batcher, metrics: Metrics) -> None:
        self.current, self._batcher, self._metrics = current, batcher, metrics

    def chosen(self, model: Which, query: str = "") -> tuple[Version, Search]:
        """What is served now, and the search of it that a request names.

        Args:
            model: the name.
            query: what it is asked by, ``""`` where it is not asked.

        Raises:
            UsageError: it is not served, or cannot be asked by such a query.
        """
        version = self.current.version
        if model not in version.searches:
            raise UsageError(f"the model {model!r} is not served here; served: {', '.join(version.searches)}")
        search = version.searches[model]
        takes = queries(search, version.recogniser)
        if query and query not in takes:
            remedy = "; slimseek serve --recogniser adds voice" if (query, takes) == ("voice", ["text"]) else ""
            asked = " or ".join(takes) or "array"
            raise UsageError(f"{search.encoder.name} searches by {asked}, not by {query}{remedy}")
        return version, search

    async def answer(self, search: Search, query: str, k: int) -> Done[Answer]:
        """The ``k`` documents nearest to a text, which waits for its batch.

        Raises:
            UsageError: an empty text.
            Busy: too many requests wait.
        """
        asked = Asked([query], k)
        return await self._done(texts(search, asked), asked)

    async def embed(self, search: Search, given: Sequence[str], role: Role) -> Array:
        """Vectors float32 [n, dim] of texts; the same errors."""
        asked = Asked(given, None)
        vectors: Array = (await self._done(texts(search, asked, role), asked, len(given))).value
        return vectors

    async def alone(self, call: Callable[..., Any], *arguments: Any) -> Done[Any]:
        """What a call gives, in its turn, joined with no other; Busy where too many requests wait."""
        return await self._done(Alone(call, *arguments), None)

    @staticmethod
    def refuses(*statuses: int) -> dict[int | str, dict[str, Any]]:
        """What a route may answer besides, as ``/openapi.json`` describes it."""
        return {status: {"model": Failure} for status in (*statuses, 401, 421, 422, 429, 500)}

    async def _done(self, work: Work[Any, Any], asked: Any, rows: int = 1) -> Done[Any]:
        """What comes of a request in its turn; its times are counted."""
        done: Done[Any] = await asyncio.wrap_future(self._batcher.submit(work, asked, rows))
        self._metrics.seconds["wait"].observe(done.waited)
        if isinstance(done.value, Answer):
            self._metrics.seconds["encode"].observe(done.value.encode_milliseconds / 1000)
            self._metrics.seconds["search"].observe(done.value.search_milliseconds / 1000)
        return done
