"""The service around a search: keys, rates and sizes, metrics, the comparison, its description, and the page."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from asking import Client, two_searches
from browser import CHROMIUM, browsing, serving
from slimseek import cli, serve
from slimseek.errors import UsageError
from slimseek.search import Search
from slimseek.serving import door, limits, metrics
from slimseek.serving.batching import Limits
from slimseek.serving.door import Rules
from slimseek.serving.limits import Buckets, Key, Rate
from slimseek.serving.work import Alone

SECRET = "a-key-of-some-length"
SECONDS = 120


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    return two_searches(tmp_path_factory.mktemp("serving"))


# ---------------------------------------------------------------- the comparison


def test_both_models_side_by_side(searches: tuple[Search, Search]) -> None:
    """Against what each finds alone, and an overlap and ranks that are counted anew."""
    client = Client(*searches)
    body = client("/compare?q=stone bridge in winter&k=10").json()
    sides = {name: [hit["id"] for hit in body[name]["results"]] for name in ("compressed", "original")}
    for name, one in zip(sides, searches, strict=True):
        [wanted] = one.query(["stone bridge in winter"], 10)
        assert [(hit["id"], hit["score"], hit["rank"]) for hit in body[name]["results"]] == [
            (result.id, result.score, result.rank) for result in wanted
        ]
        assert body[name]["milliseconds"].keys() == {"wait", "encode", "search"}
    shared = set(sides["compressed"]) & set(sides["original"])
    assert 0 < len(shared) < 10, "the models differ, and not in all"
    assert body["overlap"] == len(shared) / 10
    for row in body["moved"]:
        for name, found in sides.items():
            assert row[name] == (found.index(row["id"]) + 1 if row["id"] in found else None)
    same = [one for one, other in zip(sides["compressed"], sides["original"], strict=True) if one == other]
    assert {row["id"] for row in body["moved"]} == {*sides["compressed"], *sides["original"]} - set(same)
    same_twice = Client(searches[0], searches[0])("/compare?q=stone&k=3").json()
    assert (same_twice["overlap"], same_twice["moved"]) == (1.0, [])


def test_one_model_alone_is_not_compared(searches: tuple[Search, Search]) -> None:
    response = Client(searches[0])("/compare?q=stone")
    assert response.status_code == 400
    assert response.json() == {"error": "the model 'original' is not served here; served: compressed"}


# ---------------------------------------------------------------- who may ask, and how much


def test_a_key_is_needed_everywhere_but_for_the_page_and_the_probes(searches: tuple[Search, Search]) -> None:
    client = Client(*searches, rules=Rules(key=Key(SECRET)))
    for path in ("/", "/health", "/ready"):
        assert client(path).status_code == 200, path
    paths = ("/search?q=a", "/compare?q=a", "/embed?texts=a", "/metrics", "/openapi.json", "/item/0", "/nothing")
    right = ({"authorization": f"Bearer {SECRET}"}, {"authorization": f"bearer {SECRET}"}, {"x-api-key": SECRET})
    wrong = ({}, {"authorization": SECRET}, {"authorization": f"Basic {SECRET}"}, {"x-api-key": SECRET + "x"},
             {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": f"Bearer {SECRET[:-1]}"})  # fmt: skip
    for path in paths:
        for headers in wrong:
            response = client(path, headers=headers)
            assert response.status_code == 401, (path, headers)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"].startswith("a key is needed")
            assert response.headers["content-security-policy"].startswith("default-src 'none'")
        for headers in right:
            assert client(path, headers=headers).status_code in (200, 404), (path, headers)
    refused = client("/metrics", headers=right[0]).text
    assert f'slimseek_refused_total{{reason="key"}} {len(paths) * len(wrong)}.0' in refused


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"short", "16 or more"), (b"two words of some length", "without a space"),
     (b"\xff" * 20, "utf-8"), ("schlüssel-von-länge".encode(), "letters, digits")],
)  # fmt: skip
def test_a_key_file_that_cannot_serve(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match=rf"--api-key-file .*key: .*{reason}"):
        limits.key(str(tmp_path / "key"))


def test_a_key_file_may_end_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    assert limits.key("") is None
    found = limits.key(str(tmp_path / "key"))
    assert found is not None
    assert found.fits("", SECRET)


HOSTS = [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False),
         ("::", False), ("", False), ("192.0.2.7", False)]  # fmt: skip


@pytest.mark.parametrize(("host", "alone"), HOSTS)
def test_other_machines_need_a_key_or_leave(host: str, alone: bool) -> None:
    limits.check_host(host, Key(SECRET), False)
    limits.check_host(host, None, True)
    if alone:
        limits.check_host(host, None, False)
    else:
        with pytest.raises(UsageError, match=f"--host {host} lets other machines ask; give --api-key-file, or --open"):
            limits.check_host(host, None, False)


def test_the_command_refuses_before_it_opens_anything() -> None:
    done = CliRunner().invoke(cli.app, ["serve", "no-such-model", "--host", "0.0.0.0"])
    assert isinstance(done.exception, UsageError)
    assert "lets other machines ask" in str(done.exception)
    done = CliRunner().invoke(cli.app, ["serve", "no-such-model", "--replicas", "2"])
    assert str(done.exception) == "--replicas 2 are of a cluster; add --ray"
    done = CliRunner().invoke(cli.app, ["serve", "no-such-model", "--rate", "fast"])
    assert (
        str(done.exception) == "the rate is 'fast'; it must be a number above 0 a second, minute or hour, such as 20/s"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("20/s", (20, 20)), ("90/m", (90, 1.5)), ("3600/h", (3600, 1)), ("0.5/s", (1, 0.5)), ("", None)],
)
def test_rates(text: str, wanted: tuple[float, float] | None) -> None:
    assert limits.rate(text) == (None if wanted is None else Rate(burst=wanted[0], a_second=wanted[1]))


@pytest.mark.parametrize("text", ["0/s", "-1/s", "20", "20/d", "s", "1e3/s", "20 / s", "nan/s"])
def test_senseless_rates(text: str) -> None:
    with pytest.raises(UsageError, match="must be a number above 0"):
        limits.rate(text)


def test_a_bucket_by_hand() -> None:
    """Three at once, then two a second: at 0 s three are taken; at 0.25 s half a token is there, at 0.5 s one."""
    buckets = Buckets(Rate(burst=3, a_second=2))
    assert [buckets.take("a", 10.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 10.0) == 0.5
    assert buckets.take("a", 10.25) == 0.25
    assert buckets.take("b", 10.25) == 0, "another client"
    assert buckets.take("a", 10.5) == 0
    assert buckets.take("a", 10.5) == 0.5
    assert buckets.take("a", 5.0) == 0.5, "a clock that went back gives nothing"
    assert [buckets.take("a", 99.0) for _ in range(4)] == [0, 0, 0, 0.5], "no more than the burst is saved"


def test_clients_are_forgotten_so_that_memory_is_bounded() -> None:
    buckets = Buckets(Rate(burst=1, a_second=1), most_clients=100)
    for number in range(1000):
        assert buckets.take(str(number), 0.0) == 0
    assert len(buckets) == 100
    assert buckets.take("999", 0.0) == 1


def test_too_many_of_one_client_are_refused_at_once_and_later_taken(
    searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(door, "monotonic", lambda: clock[0])
    client = Client(*searches, rules=Rules(rate=Rate(burst=2, a_second=0.5)))
    assert [client("/search?q=cat").status_code for _ in range(2)] == [200, 200]
    refused = client("/embed?texts=cat")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert "too many requests" in refused.json()["error"]
    assert [client(path).status_code for path in ("/", "/health", "/ready", "/metrics")] == [200] * 4
    clock[0] += 2
    assert client("/compare?q=cat").status_code == 200
    assert client("/search?q=cat").status_code == 429
    assert client.metrics()["slimseek_refused_total", "rate"] == 2


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_not_read(
    searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    """Neither one that says so, nor one that comes in pieces: no more of it is taken than is allowed."""
    monkeypatch.setattr(door, "MOST_BYTES", 1_000_000)
    sent = []

    async def pieces() -> Any:
        for _ in range(100):
            sent.append(1)
            yield b" " * 100_000

    headers = {"content-type": "application/json"} | ({"content-length": "10000000"} if declared else {})
    client = Client(*searches)
    response = client("/embed", "POST", content=pieces(), headers=headers)
    assert response.status_code == 413
    assert response.json() == {"error": "the body is larger than 1 MB, which is the most"}
    assert len(sent) <= (0 if declared else 11)
    assert client.metrics()["slimseek_refused_total", "size"] == 1


def test_a_slow_body_is_given_up(searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SECONDS_OF_BODY", 0.05)

    async def pieces() -> Any:
        yield b"{"
        await asyncio.sleep(20)

    response = Client(*searches)("/embed", "POST", content=pieces(), headers={"content-type": "application/json"})
    assert response.status_code == 408
    assert "did not come within" in response.json()["error"]


def test_a_full_queue_says_when_to_come_again(searches: tuple[Search, Search]) -> None:
    client = Client(*searches, rules=Rules(batches=Limits(waiting=1)))
    release, begun = threading.Event(), threading.Event()
    held = client.app.state.batcher.submit(Alone(lambda: (begun.set(), release.wait(30))), None)
    assert begun.wait(10)
    refused = client("/search?q=cat")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    release.set()
    held.result(10)
    assert client("/search?q=cat").status_code == 200
    assert client.metrics()["slimseek_refused_total", "queue"] == 1


# ---------------------------------------------------------------- metrics


def test_metrics_count_what_was_asked(searches: tuple[Search, Search]) -> None:
    client = Client(*searches)
    before = client.metrics()
    assert {("slimseek_waiting",), ("slimseek_swaps_total", "done"), ("slimseek_refused_total", "queue")} <= set(before)
    for path in ("/search?q=cat", "/search?q=dog", "/search?q=", "/compare?q=cat", "/nothing", "/item/0"):
        client(path)
    client("/embed", "POST", json={"texts": ["a", "b", "c"]})
    found = client.metrics()
    wanted = {("/search", "200"): 2, ("/search", "400"): 1, ("/compare", "200"): 1, ("other", "404"): 1,
              ("/item/{position}", "404"): 1, ("/embed", "200"): 1, ("/metrics", "200"): 1}  # fmt: skip
    assert {key[1:]: value for key, value in found.items() if key[0] == "slimseek_requests_total"} == wanted
    counts = {phase: found["slimseek_seconds_count", phase] for phase in ("wait", "encode", "search", "total")}
    assert counts == {"wait": 5, "encode": 4, "search": 4, "total": 4}
    assert found["slimseek_batch_rows_sum",] == 2 + 2 + 3
    for name, one in zip(("compressed", "original"), searches, strict=True):
        assert found["slimseek_model_bytes", name] == one.stats().model_bytes
        assert found["slimseek_index_bytes", name] == one.stats().index_bytes
    assert abs(found["slimseek_resident_bytes",] - psutil.Process().memory_info().rss) < 50e6
    assert (found["slimseek_version",], found["slimseek_waiting",]) == (1, 0)


def test_each_app_counts_for_itself(searches: tuple[Search, Search]) -> None:
    first, second = Client(*searches), Client(*searches)
    first("/search?q=cat")
    assert ("slimseek_requests_total", "/search", "200") not in second.metrics()


def test_metrics_of_several_are_one_text() -> None:
    """By hand: a counter of two services, and a histogram that keeps its buckets apart."""
    texts = {}
    for name, times in (("x", 2), ("y", 3)):
        one = metrics.Metrics()
        one.requests.labels("/search", 200).inc(times)
        one.rows.observe(times)
        texts[name] = one.text()
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.together(texts).decode())
        for sample in family.samples
    }
    for name, times in (("x", 2), ("y", 3)):
        key = (("replica", name), ("route", "/search"), ("status", "200"))
        assert found["slimseek_requests_total", *key] == times
        assert found["slimseek_batch_rows_bucket", ("le", "2.0"), ("replica", name)] == (times <= 2)
        assert found["slimseek_batch_rows_sum", ("replica", name)] == times


# ---------------------------------------------------------------- the description


def test_every_route_is_described_with_what_it_answers(searches: tuple[Search, Search]) -> None:
    document = Client(*searches)("/openapi.json").json()
    routes = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes == {("/", "get"), ("/health", "get"), ("/ready", "get"), ("/metrics", "get"), ("/search", "get"),
                      ("/compare", "get"), ("/embed", "get"), ("/embed", "post"), ("/search/picture", "post"),
                      ("/search/voice", "post"), ("/item/{position}", "get")}  # fmt: skip
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            assert described["description"], (path, method)
            assert described["responses"]["200"]["content"], (path, method)
            if path in door.COSTLY:
                assert {"200", "400", "422", "429", "503"} <= described["responses"].keys(), (path, method)


def test_answers_are_as_described_whatever_is_asked(searches: tuple[Search, Search]) -> None:
    """By schemathesis: requests that the description allows, and such as it forbids; statuses, types and shapes."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    @schemathesis.serializer("image/*", "audio/*")  # type: ignore[misc]
    def raw(context: Any, value: Any) -> Any:
        return value

    schema = schemathesis.openapi.from_asgi("/openapi.json", serve.app(*searches))
    named = schemathesis.checks
    checks = [named.not_a_server_error, named.status_code_conformance, named.content_type_conformance,
              named.response_schema_conformance]  # fmt: skip
    statuses: list[int] = []

    def ask(operation: Any, mode: Any) -> None:
        @settings(max_examples=12, deadline=None, database=None, phases=[Phase.generate], derandomize=True,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(st.data())
        def once(data: Any) -> None:
            case = data.draw(operation.as_strategy(generation_mode=mode))
            statuses.append(case.call_and_validate(checks=checks).status_code)

        once()

    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 11
    for operation in operations:
        ask(operation, schemathesis.GenerationMode.POSITIVE)
        if operation.path in door.COSTLY or "{" in operation.path:
            ask(operation, schemathesis.GenerationMode.NEGATIVE)
    assert {200, 400, 422} <= set(statuses)


# ---------------------------------------------------------------- the page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_compares_in_one_request_and_asks_for_the_key(searches: tuple[Search, Search], tmp_path: Path) -> None:
    """A wrong key is asked for again; the right one is sent with everything, and lasts as long as the tab."""
    ids = "[...document.querySelectorAll('#hits .id')].map((element) => element.textContent)"
    wanted = [[result.id for result in one.query(["stone bridge"])[0]] for one in searches]
    with browsing(tmp_path / "profile") as browser, serving(*searches, rules=Rules(key=Key(SECRET))) as url:
        browser.screen(390, 800, phone=True)
        browser.go(url + "?q=stone+bridge")
        browser.until("!document.querySelector('#lock').hidden")
        assert browser.run("document.querySelector('#status').textContent").startswith("A key is needed")
        assert browser.run("document.activeElement.id") == "key"
        browser.run(
            "window.sent = []; const plain = fetch; window.fetch = (path, settings) => "
            "{ sent.push([String(path), settings.headers['X-API-Key']]); return plain(path, settings); }"
        )
        browser.run("find('#key').value = 'wrong-key-of-some-length'; find('#lock').requestSubmit()")
        browser.until("!document.querySelector('#lock').hidden")
        browser.run(f"find('#key').value = {json.dumps(SECRET)}; find('#lock').requestSubmit()")
        browser.until("document.querySelectorAll('#hits li').length > 0")
        assert browser.run(ids) == wanted[0]
        assert browser.run("sent") == [["compare?q=stone+bridge&k=10", "wrong-key-of-some-length"],
                                       ["compare?q=stone+bridge&k=10", SECRET]]  # fmt: skip
        marks = browser.run("[...document.querySelectorAll('#hits .mark')].map((one) => one.textContent)")
        assert [mark == "same" for mark in marks] == [one == two for one, two in zip(*wanted, strict=True)]
        assert [mark == "new" for mark in marks] == [one not in wanted[1] for one in wanted[0]]
        browser.run("document.querySelector('#original input').click()")
        assert browser.run(ids) == wanted[1]
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.go(url + "?q=stone+bridge")
        browser.until("document.querySelectorAll('#hits li').length > 0")
    assert [one for one in browser.complaints if "401" not in json.dumps(one)] == []


def test_answers_are_sent_at_once_on_connections_that_are_kept_open() -> None:
    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with serve.listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(answer, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                value = await found
                writer.close()
                return value

    assert asyncio.run(accepted()) == 1
