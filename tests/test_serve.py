"""The service: right answers, clear refusals, safe headers, and health while a model is busy."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import re
import socket
import threading
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from slimseek import search, serve
from slimseek.errors import UsageError
from slimseek.schema import Array, Batch
from slimseek.search import Search
from slimseek.serving import shapes
from slimseek.serving.batching import Limits
from slimseek.serving.door import Rules
from small import CORPUS, tiny_encoder

EVIL = {'x"><script>alert(1)</script>': "<img src=x onerror=alert(1)> winter & <script>alert(2)</script>"}


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    """The compressed and the original search over the same documents, one of them hostile."""
    folder = tmp_path_factory.mktemp("serve")
    original, compressed = tiny_encoder(name="big"), tiny_encoder(name="small", noise=0.5)
    search.index(original, CORPUS | EVIL, folder / "original")
    search.index(compressed, CORPUS | EVIL, folder / "compressed", precision="int8")
    return search.open(folder / "compressed", compressed), search.open(folder / "original", original)


class Client:
    """Requests to an app without a network."""

    def __init__(self, *searches: Search) -> None:
        self.transport = httpx.ASGITransport(serve.app(*searches), raise_app_exceptions=False)

    def __call__(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(method, url, **arguments)

        return asyncio.run(send())

    def get(self, url: str, **parameters: Any) -> httpx.Response:
        return self("GET", url, params=parameters)


@pytest.fixture(scope="module")
def both(searches: tuple[Search, Search]) -> Client:
    return Client(*searches)


@pytest.mark.parametrize(("position", "model"), [(0, "compressed"), (1, "original")])
def test_search_gives_what_the_search_gives(
    both: Client, searches: tuple[Search, Search], position: int, model: str
) -> None:
    body = both.get("/search", q="stone bridge", k=3, model=model).json()
    [wanted] = searches[position].query(["stone bridge"], 3)
    assert body["query"] == "stone bridge"
    assert body["model"] == model
    assert body["results"] == [
        {"id": result.id, "score": result.score, "rank": result.rank, "text": result.text} for result in wanted
    ]
    assert set(body["milliseconds"]) == {"wait", "encode", "search"}
    assert min(body["milliseconds"][part] for part in ("encode", "search")) > 0


def test_models_differ_and_compressed_answers_by_default(both: Client) -> None:
    plain, original = both.get("/search", q="dog").json(), both.get("/search", q="dog", model="original").json()
    assert plain["model"] == "compressed"
    assert [result["score"] for result in plain["results"]] != [result["score"] for result in original["results"]]


def test_original_is_refused_where_it_is_not_served(searches: tuple[Search, Search]) -> None:
    client = Client(searches[0])
    response = client.get("/search", q="dog", model="original")
    assert response.status_code == 400
    assert response.json() == {"error": "the model 'original' is not served here; served: compressed"}
    assert list(client.get("/health").json()["models"]) == ["compressed"]


def test_health(both: Client, searches: tuple[Search, Search]) -> None:
    body = both.get("/health").json()
    assert body["status"] == "ok"
    small = body["models"]["compressed"]
    assert (small["model"], small["runtime"], small["threads"], small["documents"]) == ("small", "numpy", 1, 7)
    assert small["index_bytes"] == searches[0].manifest.bytes < body["models"]["original"]["index_bytes"]
    assert small["model_bytes"] == sum(searches[0].encoder.shipped.values())


def test_embed(both: Client, searches: tuple[Search, Search]) -> None:
    texts = ["a cat", "the river, and a stone"]
    posted = both("POST", "/embed", json={"texts": texts}).json()
    assert (posted["model"], posted["dim"]) == ("compressed", 32)
    np.testing.assert_array_equal(np.array(posted["vectors"], np.float32), searches[0].encoder.queries(texts))
    assert both.get("/embed", texts=texts).json() == posted
    original = both("POST", "/embed", json={"texts": texts, "model": "original", "role": "document"}).json()
    np.testing.assert_array_equal(np.array(original["vectors"], np.float32), searches[1].encoder.documents(texts))


JSON = {"content-type": "application/json"}
REFUSED = [
    ("GET", "/search", {}, 422, "q: Field required"),
    ("GET", "/search?q=%20%20", {}, 400, "text 1 of 1 is empty"),
    ("GET", "/search?q=" + 10_001 * "a", {}, 422, "q: String should have at most 10000 characters"),
    ("GET", "/search?q=cat&k=0", {}, 422, "k: Input should be greater than or equal to 1"),
    ("GET", "/search?q=cat&k=1001", {}, 422, "k: Input should be less than or equal to 1000"),
    ("GET", "/search?q=cat&k=ten", {}, 422, "k: Input should be a valid integer"),
    ("GET", "/search?q=cat&model=best", {}, 422, "model: Input should be 'compressed' or 'original'"),
    ("GET", "/embed", {}, 422, "texts: Field required"),
    ("GET", "/embed?texts=", {}, 422, "texts.0: String should have at least 1 character"),
    ("POST", "/embed", {"json": {"texts": []}}, 422, "texts: List should have at least 1 item"),
    ("POST", "/embed", {"json": {"texts": ["a"] * 65}}, 422, "texts: List should have at most 64 items"),
    ("GET", "/embed?" + "&".join(["texts=a"] * 65), {}, 422, "texts: List should have at most 64 items"),
    ("POST", "/embed", {"json": {"texts": ["a", "b" * 10_001]}}, 422, "texts.1: String should have at most 10000"),
    ("POST", "/embed", {"json": {"texts": ["a", " "]}}, 400, "text 2 of 2 is empty"),
    ("POST", "/embed", {"json": {"texts": [7]}}, 422, "texts.0: Input should be a valid string"),
    ("POST", "/embed", {"json": {"texts": ["a"], "colour": 1}}, 422, "colour: Extra inputs are not permitted"),
    ("POST", "/embed", {"content": b"{", "headers": JSON}, 422, "JSON decode error"),
    (
        "POST",
        "/embed",
        {"content": rb'{"texts": ["\ud800"]}', "headers": JSON},
        422,
        "texts.0: Input should be a valid",
    ),
    ("GET", "/nothing", {}, 404, "Not Found"),
    ("GET", "/docs", {}, 404, "Not Found"),
    ("DELETE", "/search", {}, 405, "Method Not Allowed"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[1][:24]} {case[4]}")
def test_refusals_are_one_line(both: Client, case: tuple[str, str, dict[str, Any], int, str]) -> None:
    method, url, arguments, status, text = case
    response = both(method, url, **arguments)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert text in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert len(response.json()["error"]) < 300
    assert_guarded(response)


def test_limits_are_inclusive(both: Client) -> None:
    assert both("POST", "/embed", json={"texts": ["b" * 10_000] * 64}).status_code == 200
    assert both.get("/search", q="cat", k=1000).status_code == 200
    assert both.get("/search", q="cat " * 2500).status_code == 200


def assert_guarded(response: httpx.Response) -> None:
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_page_runs_under_its_own_policy(both: Client) -> None:
    """The hashes in the header are those of what stands in the page, and the page asks nothing of other hosts."""
    response = both.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert_guarded(response)
    for tag in ("script", "style"):
        [(attributes, content)] = re.findall(rf"<{tag}([^>]*)>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in response.headers["content-security-policy"]
        assert not attributes
    assert not re.search(r'\bstyle="|\bon[a-z]+="|@import', response.text)
    assert not re.search(r'(src|href)="(?!data:)', response.text)


def test_page_never_parses_data_as_html(both: Client) -> None:
    page = (resources.files("slimseek") / "page" / "search.html").read_text("utf-8")
    assert page == both.get("/").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", page)


def test_hostile_texts_stay_json(both: Client) -> None:
    response = both.get("/search", q="winter <b>", k=7)
    assert response.headers["content-type"] == "application/json"
    assert_guarded(response)
    found = {result["id"]: result["text"] for result in response.json()["results"]}
    assert EVIL.items() <= found.items()
    assert response.json()["query"] == "winter <b>"


def test_a_fault_of_ours_says_nothing_of_the_inside(searches: tuple[Search, Search]) -> None:
    def broken(batch: Batch) -> Array:
        raise RuntimeError("/secret/path")

    response = Client(with_encode(searches[0], broken)).get("/search", q="cat")
    assert response.status_code == 500
    assert response.json() == {"error": "a fault of the service; its log says more"}
    assert_guarded(response)


def test_concurrent_requests_run_one_at_a_time_and_health_answers(
    searches: tuple[Search, Search],
) -> None:
    """Eight searches wait behind a model that is held; health answers; a ninth is told that it is busy."""
    release, running, most = threading.Event(), [0], [0]
    plain = searches[0].encoder.encode

    def slow(batch: Batch) -> Array:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert release.wait(10)
        running[0] -= 1
        return plain(batch)

    rules = Rules(batches=Limits(waiting=8))
    transport = httpx.ASGITransport(serve.app(with_encode(searches[0], slow), searches[1], rules=rules))
    words = ["cat", "dog", "river", "stone"] * 2

    async def play() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.create_task(client.get("/search", params={"q": word, "k": 2})) for word in words]
            await asyncio.sleep(0.2)
            health = await client.get("/health")
            refused = await client.get("/search", params={"q": "cat"})
            assert not any(task.done() for task in waiting)
            release.set()
            return list(await asyncio.gather(*waiting)), health, refused

    answers, health, refused = asyncio.run(play())
    assert health.json()["status"] == "ok"
    assert refused.status_code == 503
    assert "8 requests are waiting" in refused.json()["error"]
    assert most == [1]
    for word, answer in zip(words, answers, strict=True):
        [wanted] = searches[0].query([word], 2)
        assert [result["id"] for result in answer.json()["results"]] == [result.id for result in wanted]


def with_encode(one: Search, encode: Any) -> Search:
    return dataclasses.replace(one, encoder=dataclasses.replace(one.encoder, encode=encode))


@pytest.mark.parametrize(
    ("text", "longest", "wanted"),
    [
        ("short", 10, "short"),
        (" two\n\n lines\t", 20, "two lines"),
        ("one two three", 10, "one two…"),
        ("unbreakable", 6, "unbre…"),
        ("exactly10!", 10, "exactly10!"),
    ],
)
def test_snippet(text: str, longest: int, wanted: str) -> None:
    assert shapes.snippet(text, longest) == wanted


def test_long_documents_are_cut(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    search.index(encoder, {"long": "winter river " * 1000}, tmp_path / "out")
    [result] = Client(search.open(tmp_path / "out", encoder)).get("/search", q="river").json()["results"]
    assert 500 < len(result["text"]) <= 600
    assert result["text"].endswith("…")


def test_a_taken_port_is_one_clear_line(searches: tuple[Search, Search]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            serve.serve(searches[0], port=port)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 65536), ("127.0.0.1", -1), ("192.0.2.1", 0), ("no.such.host.invalid", 0)]
)
def test_a_senseless_address(host: str, port: int) -> None:
    with pytest.raises(UsageError, match="port"):
        serve.listen(host, port)


def test_serves_over_a_real_socket(searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that ``ready`` is told answers, and a stopped server gives its port back."""
    started, servers, address = threading.Event(), [], []

    class Server(serve.uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            servers.append(self)
            started.set()

    monkeypatch.setattr(serve.uvicorn, "Server", Server)
    thread = threading.Thread(target=serve.serve, args=searches, kwargs={"port": 0, "ready": address.append})
    thread.start()
    try:
        assert started.wait(10)
        with urllib.request.urlopen(f"{address[0]}search?q=river&k=1", timeout=10) as response:
            body = json.load(response)
    finally:
        servers[0].should_exit = True
        thread.join(10)
    assert not thread.is_alive()
    [[wanted]] = searches[0].query(["river"], 1)
    assert body["results"][0]["id"] == wanted.id
    serve.listen("127.0.0.1", int(address[0].rstrip("/").rpartition(":")[2])).close()
