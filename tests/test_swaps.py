"""What is served changes while requests go on, and the service ends when it is told to: no request is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import signal
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from asking import Client, Started, two_packages, two_searches
from slimseek import serve
from slimseek.errors import UsageError
from slimseek.search import Search
from slimseek.serving.swap import Served

SECRET = "a-key-of-some-length"
SECONDS = 120


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    return two_searches(tmp_path_factory.mktemp("serving"))


# ---------------------------------------------------------------- swaps


def test_a_swap_serves_the_new_and_lets_the_old_go(
    searches: tuple[Search, Search], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One request began with the old version and ends with it; then nothing holds the old one any more."""
    release, begun = threading.Event(), threading.Event()

    def held(batch: Any) -> Any:
        begun.set()
        assert release.wait(30)
        return searches[0].encoder.encode(batch)

    old = dataclasses.replace(searches[0], encoder=dataclasses.replace(searches[0].encoder, encode=held))
    gone, wanted = weakref.ref(old), searches[0].query(["stone"], 3)[0]
    client = Client(old, load=lambda: Served(searches[1]))
    del old
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client, "/search?q=stone&k=3")
        assert begun.wait(10)
        assert client.app.state.current.swap()
        release.set()
        assert [hit["score"] for hit in first.result(10).json()["results"]] == [result.score for result in wanted]
    after = client("/search?q=stone&k=3").json()
    assert [hit["id"] for hit in after["results"]] == [result.id for result in searches[1].query(["stone"], 3)[0]]
    health = client("/health").json()
    assert (health["version"], health["models"]["compressed"]["model"]) == (2, "big")
    found = client.metrics()
    assert (found["slimseek_version",], found["slimseek_swaps_total", "done"]) == (2, 1)
    assert found["slimseek_model_bytes", "compressed"] == searches[1].stats().model_bytes
    del first
    gc.collect()
    assert gone() is None
    assert caplog.records == []


def broken(one: Search, **changes: Any) -> Search:
    return dataclasses.replace(one, encoder=dataclasses.replace(one.encoder, **changes))


def test_a_new_one_that_does_not_answer_is_refused_with_the_reason(
    searches: tuple[Search, Search], caplog: pytest.LogCaptureFixture
) -> None:
    def dead(batch: Any) -> Any:
        raise RuntimeError("the graph has no such input\nand a stack")

    class Lame:
        def query(self, vectors: Any, k: int) -> Any:
            hits = searches[0].index.query(vectors, k)
            return type(hits)(ids=hits.ids * 0 - 1, scores=hits.scores)

    def absent() -> Served:
        raise UsageError("new is not a model")

    offers = [
        (absent, "new is not a model"),
        (lambda: Served(broken(searches[0], encode=dead)), "RuntimeError: the graph has no such input"),
        (lambda: Served(dataclasses.replace(searches[0], index=Lame())), "small found 0 documents of 10 for a first"),
        (lambda: Served(searches[1], broken(searches[0], encode=dead)), "RuntimeError: the graph"),
    ]
    for load, reason in offers:
        client = Client(searches[0], load=load)
        caplog.clear()
        assert not client.app.state.current.swap()
        [record] = caplog.records
        assert record.getMessage().startswith(f"not swapped, version 1 is served on: {reason}")
        assert "\n" not in record.getMessage()
        assert client("/search?q=cat").status_code == 200
        assert client("/health").json()["version"] == 1
        assert client.metrics()["slimseek_swaps_total", "refused"] == 1


def test_an_index_that_was_replaced_gives_no_other_picture(searches: tuple[Search, Search]) -> None:
    client = Client(searches[0], load=lambda: Served(searches[1]))
    assert client("/item/0?version=1").status_code == 404, "a text has none"
    assert client.app.state.current.swap()
    assert client("/item/0?version=1").status_code == 410
    assert "has been replaced by 2; search again" in client("/item/0?version=1").json()["error"]


def test_warming_ends_in_readiness_and_requests_come_in_between(
    searches: tuple[Search, Search], caplog: pytest.LogCaptureFixture
) -> None:
    release, begun, widths = threading.Event(), threading.Event(), []

    def held(batch: Any) -> Any:
        widths.append(batch["input_ids"].shape)
        begun.set()
        assert release.wait(30)
        return searches[0].encoder.encode(batch)

    client = Client(broken(searches[0], encode=held))
    serve._warm(client.app)
    assert begun.wait(10)
    assert (client("/ready").status_code, client("/ready").json()) == (503, {"status": "warming"})
    assert client("/health").status_code == 200
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(client, "/search?q=the stone bridge over the winter river")
        while client.app.state.batcher.waiting < 2:
            time.sleep(0.001)
        release.set()
        assert asked.result(10).status_code == 200
    end = time.monotonic() + 30
    while client("/ready").status_code != 200:
        assert time.monotonic() < end
    assert client("/ready").json() == {"status": "ready"}
    assert widths[1] == (1, 12), "the request came after what ran, and before what else there is to warm"
    assert {shape[0] for shape in widths} == {1, 8}
    assert max(shape[1] for shape in widths) == 64, "the model's longest"

    def dead(batch: Any) -> Any:
        raise RuntimeError("no such kernel")

    client = Client(broken(searches[0], encode=dead))
    serve._warm(client.app)
    assert client.app.state.batcher.close(10)
    assert client("/ready").status_code == 503, "a model that does not run is never ready"
    assert "the model does not run: no such kernel" in caplog.text


# ---------------------------------------------------------------- a process of its own


class Process(Started):
    """``slimseek serve`` as a user starts it, ready to answer."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, seconds=SECONDS)
        self.until(lambda: self.status("ready") == 200)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=SECONDS) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def json(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as response:
            return json.load(response)

    def resident(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.reader.join(10)
        return code


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Process]:
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and their indexes, ``a`` and ``b``, and a link ``now`` to the first."""
    folder = tmp_path_factory.mktemp("packages")
    two_packages(folder, precision="int8")
    (folder / "now").symlink_to("a")
    return folder


def point(folder: Path, name: str) -> None:
    """The link to another model, in one step."""
    (folder / "next").symlink_to(name)
    (folder / "next").rename(folder / "now")


def test_twenty_swaps_under_load_lose_no_request_and_a_broken_one_is_refused(packages: Path) -> None:
    """Four clients ask on while models change: each answer is whole, and one model's or the other's."""
    arguments = (str(packages / "now/model"), "--index", str(packages / "now/index"), "--threads", "1")
    with running(*arguments) as service, httpx.Client(base_url=service.url, timeout=SECONDS) as plain:
        known, stop, answered = [], threading.Event(), []

        def scores() -> list[float]:
            return [hit["score"] for hit in plain.get("/search?q=the cat").raise_for_status().json()["results"]]

        def ask() -> None:
            with httpx.Client(base_url=service.url, timeout=SECONDS) as client:
                while not stop.is_set():
                    response = client.get("/search?q=the cat")
                    answered.append((response.status_code, [hit["score"] for hit in response.json()["results"]]))

        known.append(scores())
        with ThreadPoolExecutor() as pool:
            clients = [pool.submit(ask) for _ in range(4)]
            try:
                for number in range(20):
                    point(packages, "ba"[number % 2])
                    service.process.send_signal(signal.SIGHUP)
                    service.until(lambda number=number: service.json("health")["version"] == number + 2)
                    if number == 0:
                        known.append(scores())
                    if number == 9:
                        middle = service.resident()
                growth = service.resident() - middle
                broken_model(packages, "b")
                point(packages, "b")
                service.process.send_signal(signal.SIGHUP)
                service.until(lambda: any(line.startswith("not swapped") for line in service.lines))
                assert service.json("health")["version"] == 21
                assert scores() == pytest.approx(known[0], abs=1e-6)
            finally:
                stop.set()
            for client in clients:
                client.result(SECONDS)
        [line] = [line for line in service.lines if line.startswith("not swapped")]
        assert "version 21 is served on" in line
        assert "sha256" in line or "changed" in line or "bytes" in line, line
        assert len(answered) > 100
        assert known[0] != pytest.approx(known[1], abs=1e-3)
        for status, found in answered:
            assert status == 200
            assert found in (pytest.approx(known[0], abs=1e-6), pytest.approx(known[1], abs=1e-6))
        assert growth < 40e6
        point(packages, "a")
        assert service.stop() == 0
    assert not any("Traceback" in line for line in service.lines)


def broken_model(folder: Path, name: str) -> None:
    """A byte of the package's weights is turned over."""
    path = max((folder / name / "model").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_waits_is_answered_before_the_end(packages: Path, number: int) -> None:
    """Forty requests are under way when the signal comes: all are answered, no new one is, and the exit code is 0."""
    arguments = (str(packages / "a/model"), "--index", str(packages / "a/index"), "--threads", "1")
    long = {"texts": ["the cat and the dog " * 40] * 64}
    with running(*arguments) as service, ThreadPoolExecutor(40) as pool:
        begun = threading.Barrier(41)

        def ask() -> int:
            with httpx.Client(base_url=service.url, timeout=SECONDS) as client:
                client.get("/health")
                begun.wait(SECONDS)
                return client.post("/embed", json=long).status_code

        asked = [pool.submit(ask) for _ in range(40)]
        begun.wait(SECONDS)
        service.until(lambda: _waiting(service) >= 30)
        code = service.stop(number)
        statuses = [one.result(SECONDS) for one in asked]
        assert statuses == [200] * 40
        assert code == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.url + "health")


def _waiting(service: Process) -> float:
    with urllib.request.urlopen(service.url + "metrics", timeout=SECONDS) as response:
        return next(float(line.split()[1]) for line in response if line.startswith(b"slimseek_waiting "))
