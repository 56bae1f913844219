"""What is served now, and the change to something newer while requests go on."""

from __future__ import annotations

import contextvars
import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from slimseek.errors import SlimseekError, UsageError, first_line
from slimseek.kept import probe_of
from slimseek.progress import say
from slimseek.recognise import Recogniser
from slimseek.schema import Array
from slimseek.search import Search
from slimseek.serving.metrics import Metrics

WARM_SHAPES = ((1, 1), (1, 8), (1, 24), (8, 8), (1, 64), (1, 256))
"""Rows, and words in each."""
TRIED = 10
LOG = logging.getLogger("slimseek.serve")


class Served(NamedTuple):
    """What answers.

    Attributes:
        search: the default, ``compressed`` in requests.
        original: what it is compared with, or ``None``.
        recogniser: makes texts of spoken queries, or ``None``.
    """

    search: Search
    original: Search | None = None
    recogniser: Recogniser | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Version:
    """Something served, and the how manieth it is, from 1."""

    number: int
    searches: dict[str, Search]
    recogniser: Recogniser | None

    @property
    def queries(self) -> list[str]:
        """What it can be asked by."""
        return queries(self.searches["compressed"], self.recogniser)


class Current:
    """The version that is served; requests that began with an older one end with it."""

    def __init__(self, first: Served, metrics: Metrics, load: Callable[[], Served] | None = None) -> None:
        """Serve the first version.

        Args:
            first: what is served until a swap.
            metrics: told of each version, and of swaps.
            load: opens what is to be served next, whenever it is called; ``None`` where nothing can be swapped.
        """
        self._metrics, self._load = metrics, load
        self._swapping, self._again = threading.Lock(), threading.Event()
        self._context = contextvars.copy_context()  # which knows where progress is shown
        self.version = _version(1, first)
        metrics.serves(self.version.searches, 1)

    def swap(self) -> bool:
        """Open what is to be served now beside the old, try it, and serve it; whether that came to pass.

        What cannot be opened, or does not answer, is refused with the reason on standard error, and the old one stays.
        Asked again while it is at it, it begins once more when it is done.
        """
        self._again.set()
        done = False
        while self._again.is_set() and self._swapping.acquire(blocking=False):
            try:
                self._again.clear()
                done = self._swap()
            finally:
                self._swapping.release()
        return done

    def start_swap(self) -> None:
        """The same in a thread of its own."""
        run = self._context.copy().run
        threading.Thread(target=run, args=(self.swap,), name="slimseek swap", daemon=True).start()

    def _swap(self) -> bool:
        try:
            if self._load is None:
                raise UsageError("this service was given what it serves, and cannot open anything else")
            new = _version(self.version.number + 1, self._load())
            for search in new.searches.values():
                for run in warming(search):
                    run()
                check(search)
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self._metrics.swaps["refused"].inc()
            reason = str(error) if isinstance(error, SlimseekError) else f"{type(error).__name__}: {first_line(error)}"
            LOG.warning("not swapped, version %d is served on: %s", self.version.number, reason)
            return False
        self.version = new
        self._metrics.serves(new.searches, new.number)
        self._metrics.swaps["done"].inc()
        say(f"swapped: version {new.number} is served, {new.searches['compressed'].encoder.name}")
        _give_back()
        return True


def warming(search: Search) -> Iterator[Callable[[], object]]:
    """Calls that search at several lengths, alone and together, so that no request meets a runtime's first run."""
    if search.encoder.spec.modality != "text":
        yield lambda: search.nearest(_probe(search), 1)
        return
    for rows, words in WARM_SHAPES:
        yield partial(search.answer, rows * ["a " * words], 1)


def check(search: Search) -> None:
    """Ask one query; UsageError where the answer is not whole, or not finite."""
    [results] = search.nearest(_probe(search), TRIED)
    wanted = min(TRIED, search.manifest.count)
    if len(results) != wanted or not np.isfinite([result.score for result in results]).all():
        raise UsageError(f"{search.encoder.name} found {len(results)} documents of {wanted} for a first query")


def queries(search: Search, recogniser: Recogniser | None = None) -> list[str]:
    """What a search can be asked by: ``text``, ``picture``, ``voice``."""
    takes = {"text": ["text"], "image": ["picture"], "speech": ["voice"]}.get(search.encoder.spec.modality, [])
    return [*takes, *(["voice"] if recogniser is not None and takes == ["text"] else [])]


def _probe(search: Search) -> Array:
    return search.encoder.queries([probe_of(search.encoder.spec)])


def _version(number: int, served: Served) -> Version:
    searches = {"compressed": served.search} | ({} if served.original is None else {"original": served.original})
    return Version(number=number, searches=searches, recogniser=served.recogniser)


def _give_back() -> None:
    """Memory of the old version that the allocator holds goes back to the system, where that can be asked for."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
