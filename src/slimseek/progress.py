"""Progress of long work: a live bar with an estimate on a terminal, plain lines in a log, silence in a library call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console: ContextVar[Console | None] = ContextVar("console", default=None)


@contextmanager
def shown_on(console: Console | None) -> Iterator[None]:
    """Show progress on this console (standard error for the command line) while the block runs; ``None`` for none."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


def say(text: str) -> None:
    """A line for the person who waits."""
    console = _console.get()
    if console is not None and text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def track(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` items; the block calls the yielded function with the number just done."""
    console = _console.get()
    if console is None:
        yield lambda done: None
        return
    start = time.perf_counter()
    if not console.is_terminal:
        yield lambda done: None
        say(f"{label}: {total:,} in {time.perf_counter() - start:.1f} s")
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
    say(f"{label}: {total:,} in {time.perf_counter() - start:.1f} s")


@contextmanager
def countdown(label: str, seconds: float) -> Iterator[Callable[[str, float], None]]:
    """A bar over a time that is allowed; the block calls the yielded function with what is done now, in words, and the
    seconds that are spent.
    """
    console = _console.get()
    if console is None or not console.is_terminal:
        yield lambda now, spent: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("of at most"),
               TextColumn(f"{seconds / 60:.0f} min"), TextColumn("{task.fields[now]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=seconds, now="")
        yield lambda now, spent: bar.update(task, completed=min(spent, seconds), now=now)
