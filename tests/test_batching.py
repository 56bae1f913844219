"""Requests that are joined: each gets what it would get alone, none waits for nothing, and none starves."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimseek import search
from slimseek.errors import UsageError
from slimseek.schema import Array, Batch
from slimseek.search import Search
from slimseek.serving import batching
from slimseek.serving.batching import Batcher, Busy, Done, Job, Limits
from slimseek.serving.work import Alone, Asked, texts
from small import CORPUS, many_texts, tiny_encoder


@dataclasses.dataclass(frozen=True)
class Doubled:
    """Twice each number; a negative one is refused, and spoils its whole batch."""

    name: str
    batches: list[list[int]] = dataclasses.field(default_factory=list, hash=False, compare=False)

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.batches.append(list(asked))
        if min(asked) < 0:
            raise UsageError(f"a negative number among {list(asked)}")
        return [2 * one for one in asked]


class Held:
    """Keeps the worker until it is let go."""

    def __init__(self, batcher: Batcher) -> None:
        self.release, begun = threading.Event(), threading.Event()
        self.future = batcher.submit(Alone(lambda: (begun.set(), self.release.wait(30))), None)
        assert begun.wait(10)


def results(futures: Sequence[Future[Done[Any]]]) -> list[Any]:
    return [future.result(10).value for future in futures]


def test_what_waits_is_joined_and_every_request_gets_its_own_answer() -> None:
    """While the worker is held, requests of two kinds arrive by turns: one batch of each, at most four rows in it."""
    seen: list[int] = []
    batcher, even, odd = Batcher(Limits(rows=4), seen=seen.append), Doubled("even"), Doubled("odd")
    held = Held(batcher)
    futures = [batcher.submit(odd if number % 2 else even, number) for number in range(10)]
    held.release.set()
    assert results(futures) == [2 * number for number in range(10)]
    assert (even.batches, odd.batches) == ([[0, 2, 4, 6], [8]], [[1, 3, 5, 7], [9]])
    assert seen == [1, 4, 4, 1, 1]
    assert [futures[place].result().rows for place in (0, 8)] == [4, 1]
    assert batcher.close(10)


def test_an_idle_worker_begins_at_once() -> None:
    """Alone, whatever the longest wait is: no timer runs."""
    batcher, work = Batcher(Limits(wait=3600)), Doubled("one")
    for number in range(3):
        assert batcher.submit(work, number).result(10).value == 2 * number
    assert work.batches == [[0], [1], [2]]
    assert batcher.waiting == 0


def jobs(*given: tuple[str, int, float]) -> list[Job]:
    return [Job(work=Doubled(name), asked=None, rows=rows, since=since) for name, rows, since in given]


@pytest.mark.parametrize(
    ("given", "now", "wanted"),
    [
        ([], 0.0, []),
        ([("a", 1, 0.0), ("b", 1, 0.0), ("b", 1, 0.0)], 0.01, [1, 2]),
        ([("a", 1, 0.0), ("b", 1, 0.0)], 0.01, [0]),
        ([("a", 1, 0.0), ("b", 1, 0.0), ("b", 1, 0.0)], 0.03, [0]),
        ([("a", 3, 0.0), ("a", 2, 0.0), ("a", 1, 0.0)], 0.0, [0]),
        ([("a", 9, 0.0), ("a", 1, 0.0)], 0.0, [0]),
        ([("a", 1, 0.0), ("b", 9, 0.0), ("c", 4, 0.0)], 0.0, [1]),
        ([("a", 2, 0.0), ("b", 1, 0.0), ("a", 2, 0.0), ("a", 1, 0.0)], 0.0, [0, 2]),
    ],
    ids=["none", "fullest", "oldest of equal", "overdue", "in order", "too large", "no more than full", "joined"],
)
def test_what_is_chosen(given: list[tuple[str, int, float]], now: float, wanted: list[int]) -> None:
    """With four rows at most, and 20 ms to wait."""
    waiting = jobs(*given)
    found = batching.chosen(waiting, Limits(rows=4, wait=0.02), now)
    assert [waiting.index(job) for job in found] == wanted


def test_one_fault_spoils_no_other_and_the_worker_lives() -> None:
    batcher, work = Batcher(), Doubled("one")
    held = Held(batcher)
    futures = [batcher.submit(work, number) for number in (1, -2, 3)]
    held.release.set()
    assert results([futures[0], futures[2]]) == [2, 6]
    with pytest.raises(UsageError, match=r"a negative number among \[-2\]"):
        futures[1].result(10)
    assert work.batches == [[1, -2, 3], [1], [-2], [3]]
    assert batcher.submit(work, 4).result(10).value == 8


def test_a_request_that_was_given_up_is_not_computed() -> None:
    batcher, work = Batcher(), Doubled("one")
    held = Held(batcher)
    futures = [batcher.submit(work, number) for number in range(3)]
    assert futures[1].cancel()
    held.release.set()
    assert results([futures[0], futures[2]]) == [0, 4]
    assert work.batches == [[0, 2]]


def test_too_many_are_refused_and_then_taken_again() -> None:
    batcher, work = Batcher(Limits(waiting=3)), Doubled("one")
    held = Held(batcher)
    futures = [batcher.submit(work, number) for number in range(2)]
    with pytest.raises(Busy, match="3 requests are waiting"):
        batcher.submit(work, 9)
    held.release.set()
    assert results(futures) == [0, 2]
    assert batcher.submit(work, 9).result(10).value == 18


def test_a_closed_batcher_answers_what_waits_and_takes_no_more() -> None:
    batcher, work = Batcher(), Doubled("one")
    held = Held(batcher)
    futures = [batcher.submit(work, number) for number in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    held.release.set()
    closing.join(10)
    assert results(futures) == [0, 2, 4]
    with pytest.raises(Busy, match="stopping"):
        batcher.submit(work, 1)


@pytest.mark.parametrize("given", [{"rows": 0}, {"waiting": 0}, {"wait": -1.0}, {"wait": float("nan")}])
def test_senseless_limits(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} is .* must be"):
        Limits(**given)


# ---------------------------------------------------------------- texts


@pytest.fixture(scope="module", params=["f32", "int8", "binary"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Search:
    encoder, folder = tiny_encoder(), tmp_path_factory.mktemp("batching") / "index"
    documents = {f"d{number}": text for number, text in enumerate(many_texts(200))}
    search.index(encoder, documents | CORPUS, folder, precision=request.param)
    return search.open(folder, encoder)


def test_joined_searches_find_what_each_finds_alone(opened: Search) -> None:
    """Forty queries of several lengths and three different k, and vectors between them: the same hits and scores."""
    batcher, queries = Batcher(), [text * (1 + number % 3) for number, text in enumerate(many_texts(40, seed=1))]
    held = Held(batcher)
    futures = []
    for number, query in enumerate(queries):
        asked = Asked([query], (1, 5, 50)[number % 3])
        futures.append(batcher.submit(texts(opened, asked), asked))
    several = Asked(queries[:3], None)
    vectors = batcher.submit(texts(opened, several), several, 3)
    held.release.set()
    for number, (query, future) in enumerate(zip(queries, futures, strict=True)):
        [wanted] = opened.query([query], (1, 5, 50)[number % 3])
        assert list(future.result(10).value.results[0]) == wanted
    np.testing.assert_array_equal(vectors.result(10).value, opened.embed(queries[:3]))
    assert max(future.result().rows for future in futures) > 10, "they were joined"


def test_a_short_text_is_not_padded_to_a_long_one(opened: Search) -> None:
    """No batch of the encoder holds widths that differ, and lengths that differ much are different work."""
    shapes: list[tuple[int, ...]] = []
    plain = opened.encoder.encode

    def encode(batch: Batch) -> Array:
        shapes.append(batch["input_ids"].shape)
        return plain(batch)

    seen = dataclasses.replace(opened, encoder=dataclasses.replace(opened.encoder, encode=encode))
    batcher = Batcher()
    held = Held(batcher)
    asked = [Asked([text], 3) for text in ("cat", "dog", "the river " * 20, "cat dog")]
    futures = [batcher.submit(texts(seen, one), one) for one in asked]
    held.release.set()
    assert [future.result(10).rows for future in futures] == [3, 3, 1, 3]
    assert shapes == [(3, 4), (1, 48)], "42 tokens, in steps of 8"


def test_an_empty_text_is_refused_before_it_is_joined(opened: Search) -> None:
    with pytest.raises(UsageError, match="text 2 of 2 is empty"):
        texts(opened, Asked(["cat", " "], None))


def test_answers_of_an_index_made_for_a_session_go_with_it(tmp_path: Path) -> None:
    """Its folder is removed as soon as nothing holds the search, such as one that was swapped."""
    made = search.session(tiny_encoder(), CORPUS)
    folder = Path(str(made.documents.lines.filename)).parent
    assert folder.is_dir()
    del made
    assert not folder.exists()
