"""What a training is fed with: batches in a fixed order, each made when it is asked for."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from slimseek.inputs.text import TextInput
from slimseek.schema import Array, Batch

BATCHES_SORTED_AT_ONCE = 16

Target = Array | Mapping[str, Array]
"""What a network should give for some items, [n, ...]; several arrays by name for losses that need them."""
Example = tuple[Batch, Target]
"""Inputs of some items, and their target."""
Width = tuple[Any, ...]
"""Tokens of a text, or shapes of arrays."""


class Lazy(Sequence[Example]):
    """Batches that are made when they are asked for, and not kept."""

    def __init__(self, count: int, make: Callable[[int], Example], heavy: bool = False) -> None:
        """So many batches.

        Args:
            count: how many.
            make: is given a number from 0 and must give the same batch whenever it is asked.
            heavy: whether that takes long and keeps Python's lock, as views of pictures do.
        """
        self._numbers, self._make, self.heavy = range(count), make, heavy

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | Sequence[Example]:
        if isinstance(number, slice):
            chosen = self._numbers[number]
            return Lazy(len(chosen), lambda place: self._make(chosen[place]), self.heavy)
        return self._make(self._numbers[number])


def ahead(examples: Sequence[Example], start: int, workers: int) -> Generator[Example, None, None]:
    """The batches from ``start`` on, in order; the next ones are made while one is in use.

    Threads make them; heavy ones processes, where three or more may run and the system can fork: sixteen threads make
    no more views of pictures a second than one.

    Args:
        examples: batches; any may be asked for by any thread.
        start: number of the first.
        workers: threads or processes; twice as many batches wait at most.
    """
    apart = workers > 2 and getattr(examples, "heavy", False) and "fork" in multiprocessing.get_all_start_methods()
    make = _made_apart if apart else examples.__getitem__
    with _processes(examples, workers) if apart else ThreadPoolExecutor(workers, "examples") as pool:
        waiting: deque[Future[Example]] = deque()
        try:
            for number in range(start, len(examples)):
                waiting.append(pool.submit(make, number))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


_held: list[Sequence[Example]] = []
"""What a process of :func:`_processes` makes batches of."""


def _processes(examples: Sequence[Example], workers: int) -> Executor:
    """Processes that are given the examples by being forked, since they hold functions, which cannot be sent."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _hold, (examples,))


def _hold(examples: Sequence[Example]) -> None:
    _held[:] = [examples]


def _made_apart(number: int) -> Example:
    [examples] = _held
    return examples[number]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What to train on, the batches of each step in order, and what to check by, none of which is trained on."""

    train: Sequence[Example]
    held_out: Sequence[Example]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """An item that was read: its width, what tells it apart from others, and how to come by it again."""

    width: Width
    content: Any
    read: Callable[[], Any]


def different(read: Any, items: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Items that a model reads differently, of those alike the last, and their rows.

    Ids of tokens are kept; arrays are read again when they are needed.

    Args:
        read: the reader of the model's items.
        items: texts, or paths of arrays.

    Raises:
        UsageError: an item cannot be read.
    """
    read_rows = rows(read, items, read.document_prefix)
    found = {row.content: (row, item) for row, item in zip(read_rows, items, strict=True)}
    return [row for row, _ in found.values()], [item for _, item in found.values()]


def rows(read: Any, items: Sequence[str], prefix: str) -> list[Row]:
    """A row for each item; UsageError for one that cannot be read. Files are read one after the other, and not kept.

    Args:
        read: the reader of the model's items.
        items: texts, or paths of arrays.
        prefix: put before texts.
    """
    if isinstance(read, TextInput):
        return [Row(width=(len(ids),), content=tuple(ids), read=lambda ids=ids: ids)  # type: ignore[misc]
                for ids in read.rows(items, prefix)]  # fmt: skip
    return [_file_row(read, item) for item in items]


def _file_row(read: Any, item: str) -> Row:
    [row] = read.rows([item])
    shapes = read.width(row)
    digests = tuple(hashlib.sha256(array.tobytes()).digest() for array in read.batch([row]).values())
    return Row(width=(shapes,), content=(shapes, digests), read=lambda: read.rows([item])[0])


def taken(targets: Target, part: list[int]) -> Target:
    """The targets of some items."""
    if isinstance(targets, Mapping):
        return {name: values[part] for name, values in targets.items()}
    return targets[part]


def parts(positions: Sequence[int], widths: Sequence[Width], size: int) -> list[list[int]]:
    """At most ``size`` positions of like width each: texts are padded, arrays of different shapes are kept apart."""
    found: list[list[int]] = []
    for position in sorted(positions, key=lambda position: widths[position]):
        last = found[-1] if found else []
        padded = isinstance(widths[position][0], int)
        if last and len(last) < size and (padded or widths[last[0]] == widths[position]):
            last.append(position)
        else:
            found.append([position])
    return found


def planned(
    positions: Sequence[int], widths: Sequence[Width], size: int, count: int, generator: random.Random
) -> list[list[int]]:
    """The positions of each batch of a training: all as often as the others, like widths together.

    Args:
        positions: what may be taken.
        widths: of each position, as they are counted from 0.
        size: positions in a batch, at most.
        count: batches.
        generator: of the order.
    """
    train: list[list[int]] = []
    order: list[int] = []
    while len(train) < count:
        while len(order) < BATCHES_SORTED_AT_ONCE * size:
            order += generator.sample(positions, len(positions))
        some = parts(order[: BATCHES_SORTED_AT_ONCE * size], widths, size)
        del order[: BATCHES_SORTED_AT_ONCE * size]
        generator.shuffle(some)
        train += some
    return train[:count]


def viewed(read: Any, rows: Sequence[Any], side: int, seed: tuple[int, int], mixed: bool = False) -> Batch:
    """Some items as they are, or random views of pictures, which hang on the seed and the place in the batch alone.

    Args:
        read: the reader of the model's items.
        rows: of the items, as it gives them.
        side: of the views in pixels; 0 for the items as they are.
        seed: of the training, and the number of the batch.
        mixed: each view is blended with the next one, by a share of its own that is spread evenly over 0 to 1 (Zhang
            et al., mixup, 2018): more pictures than there are, for who can tell what each of them should give.
    """
    generators = [np.random.default_rng([*seed, place]) for place in range(len(rows) if side else 0)]
    batch: Batch = read.views(rows, generators, side) if side else read.batch(rows)
    if not (side and mixed):
        return batch
    shares = np.array([generator.random() for generator in generators], np.float32).reshape(-1, 1, 1, 1)
    return {name: seen * shares + np.roll(seen, -1, 0) * (1 - shares) for name, seen in batch.items()}


def transcribed(
    read: Any, said: Mapping[str, Sequence[int]], blank: int, size: int, count: int, seed: int
) -> Sequence[Example]:
    """Batches of recordings with ``tokens`` int64 [n, longest] of what is said in them, filled up with blanks, and
    their ``lengths`` int64 [n].

    Args:
        read: the reader of the model's items.
        said: recording to its tokens.
        blank: the token that fills up.
        size: recordings in a batch, at most.
        count: batches.
        seed: of the order.
    """
    found, tokens = rows(read, list(said), read.query_prefix), list(said.values())
    plan = planned(range(len(found)), [row.width for row in found], size, count, random.Random(seed))

    def make(number: int) -> Example:
        chosen = [tokens[place] for place in plan[number]]
        filled = np.full((len(chosen), max(map(len, chosen))), blank, np.int64)
        for row, ids in zip(filled, chosen, strict=True):
            row[: len(ids)] = ids
        target = {"tokens": filled, "lengths": np.array([len(ids) for ids in chosen], np.int64)}
        return read.batch([found[place].read() for place in plan[number]]), target

    return Lazy(len(plan), make)
