"""Requests that wait are answered together: one worker at a time, which joins what can be computed in one batch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from slimseek.errors import SlimseekError, UsageError

Asked_contra = TypeVar("Asked_contra", contravariant=True)
Given_co = TypeVar("Given_co", covariant=True)
MOST_ROWS = 32
LONGEST_WAIT = 0.02
MOST_WAITING = 128


class Busy(SlimseekError):
    """More requests wait than can be answered soon."""


class Work(Hashable, Protocol[Asked_contra, Given_co]):
    """What is done to requests together: those whose work is equal are joined."""

    def __call__(self, asked: Sequence[Asked_contra], /) -> Sequence[Given_co]:
        """One answer for each of what is asked, in order."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How requests are joined, and how many may wait.

    Attributes:
        rows: the most that a batch holds; a request of more goes alone.
        wait: seconds after which a request's batch goes before fuller ones. Nothing waits while the worker is idle.
        waiting: the most requests that are not answered yet, over all batches.
    """

    rows: int = MOST_ROWS
    wait: float = LONGEST_WAIT
    waiting: int = MOST_WAITING

    def __post_init__(self) -> None:
        for name in ("rows", "waiting"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.wait >= 0:
            raise UsageError(f"wait is {self.wait} seconds; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Given_co]):
    """The answer to one request.

    Attributes:
        value: what the work gave.
        waited: seconds before its batch began.
        rows: rows of that batch, its own among them.
    """

    value: Given_co
    waited: float
    rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A request that waits."""

    work: Work[Any, Any]
    asked: Any
    rows: int
    since: float = field(default_factory=monotonic)
    future: Future[Done[Any]] = field(default_factory=Future)


class Batcher:
    """A queue with one worker, a thread of its own: runtimes use all the cores that they were given."""

    def __init__(
        self, limits: Limits | None = None, *, begin: Callable[[], object] | None = None,
        seen: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """Start the worker.

        Args:
            limits: of batches, and of what may wait.
            begin: called once in the worker's thread, before all work.
            seen: told the rows of each batch before it runs, in the worker's thread.
        """
        self.limits = limits or Limits()
        self._waiting: list[Job] = []
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        self._begin, self._seen = begin, seen
        self._thread = threading.Thread(target=self._work, name="slimseek worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting) + self._running

    def submit(self, work: Work[Asked_contra, Given_co], asked: Asked_contra, rows: int = 1) -> Future[Done[Given_co]]:
        """Queue a request; the future gives its answer, or raises what the work raised for it alone.

        A future that is cancelled before its batch begins costs nothing.

        Raises:
            Busy: too many wait, or the worker has been closed.
        """
        job = Job(work=work, asked=asked, rows=rows)
        with self._changed:
            if self._closed:
                raise Busy("the service is stopping")
            if self.waiting >= self.limits.waiting:
                raise Busy(f"{self.waiting} requests are waiting; try again in a moment")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self, seconds: float | None = None) -> bool:
        """Take nothing more, answer what waits, and end; whether that was done within so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self._begin is not None:
            self._begin()
        while batch := self._next():
            started = monotonic()
            live = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if live and self._seen is not None:
                self._seen(sum(job.rows for job in live))
            if live:
                _answer(live, started)
            with self._changed:
                self._running = 0
            del batch, live  # what they hold, such as a model that was replaced, must not outlive them

    def _next(self) -> list[Job]:
        """The next batch as soon as there is one; none once the queue is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            batch = chosen(self._waiting, self.limits, monotonic())
            taken = set(map(id, batch))
            self._waiting = [job for job in self._waiting if id(job) not in taken]
            self._running = len(batch)
            return batch


def chosen(waiting: Sequence[Job], limits: Limits, now: float) -> list[Job]:
    """The jobs that make the next batch, in order of arrival.

    The work with the most rows goes first, and of equal ones the one that waits longest: so most are answered soonest.
    Where the oldest job has waited too long, its work goes first, so that none starves.

    Args:
        waiting: jobs in order of arrival.
        limits: the most rows, and the longest wait.
        now: on the clock of :attr:`Job.since`, in seconds.
    """
    if not waiting:
        return []
    work = waiting[0].work
    if now - waiting[0].since <= limits.wait:
        rows: Counter[Work[Any, Any]] = Counter()
        for job in waiting:
            rows[job.work] += job.rows
        work = max(rows, key=lambda one: min(rows[one], limits.rows))  # the first of equal ones
    batch: list[Job] = []
    left = limits.rows
    for job in waiting:
        if job.work == work:
            if batch and job.rows > left:
                break
            batch.append(job)
            left -= job.rows
    return batch


def _answer(batch: Sequence[Job], started: float) -> None:
    """Give every job its answer; where they fail together each is tried alone, so that one spoils no other."""
    rows = sum(job.rows for job in batch)
    try:
        values = batch[0].work([job.asked for job in batch])
    except BaseException as error:  # the worker must live, whatever the work does
        if len(batch) > 1:
            for job in batch:
                _answer([job], started)
        else:
            batch[0].future.set_exception(error)
        return
    for job, value in zip(batch, values, strict=True):
        job.future.set_result(Done(value=value, waited=started - job.since, rows=rows))
