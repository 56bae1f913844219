"""Pages of other sites: a name that was made to lead here is refused, and so are posts where no key keeps them out."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asking import Client, two_searches
from browser import CHROMIUM, browsing, hosting, serving
from slimseek import cli, serve
from slimseek.errors import UsageError
from slimseek.search import Search
from slimseek.serving.door import Rules
from slimseek.serving.hosts import Hosts, hosts
from slimseek.serving.limits import Key

SECRET = "a-secret-of-some-length"
HERE = hosts("127.0.0.1")


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    return two_searches(tmp_path_factory.mktemp("hosts"))


# ---------------------------------------------------------------- names

CALLED = {
    "the loopback": (HERE, ["127.0.0.1:8000", "127.0.0.1", "127.9.9.9:1", "LocalHost:8000", "localhost.", "[::1]:8000",
                            "a.localhost:80", None],
                     ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.7:8000",
                      "[2001:db8::7]", "0.0.0.0:8000", "", "localhost:8000:1", "user@localhost", "localhost/", " ",
                      "localhost evil", "127.1", "2130706433", "evil.example#localhost", "[localhost]:8000"]),
    "a name of its own": (hosts("search.lan"), ["search.lan:8000", "SEARCH.lan.", "localhost"],
                          ["a.search.lan", "search.lan.evil.example", "192.0.2.7"]),
    "an address of its own": (hosts("192.0.2.7"), ["192.0.2.7:8000", "127.0.0.1"], ["192.0.2.8", "evil.example"]),
    "all addresses": (hosts("0.0.0.0"), ["192.0.2.7:8000", "[2001:db8::7]:80", "localhost"], ["evil.example", "0"]),
    "all addresses of the new protocol": (hosts("::"), ["[2001:db8::7]:80", "192.0.2.7"], ["evil.example"]),
    "behind a proxy": (hosts("127.0.0.1", ["Search.example.org", "backup.example.org."]),
                       ["search.example.org", "backup.example.org:443", "127.0.0.1:8000"], ["example.org"]),
    "any name": (hosts("127.0.0.1", ["*"]), ["evil.example", "", "192.0.2.7", None], []),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLED)
def test_names_by_which_it_may_be_called(case: str) -> None:
    known, taken, refused = CALLED[case]
    for host in taken:
        assert known.refusal(host) is None, host
    for host in refused:
        assert str(known.refusal(host)).startswith("this service is not called "), host


def test_the_reason_names_the_option_and_shows_no_more_than_a_name() -> None:
    assert HERE.refusal("evil.example:8000") == (
        "this service is not called evil.example; if it is to be, start it with --allow-host evil.example"
    )
    for strange in ("e" * 5000, "\x1b[31m", "ü.example"):
        assert len(str(HERE.refusal(strange))) < 200
        assert str(HERE.refusal(strange)).isprintable()


@pytest.mark.parametrize("name", ["https://search.example.org", "search.example.org:443", "a b", "", "*.example.org"])
def test_what_is_no_name_is_refused_before_anything_is_opened(name: str) -> None:
    done = CliRunner().invoke(cli.app, ["serve", "no-such-model", "--allow-host", name])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).endswith(": give a name alone, such as search.example.org, or * for any")


ORIGINS = [
    ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
    ("https://search.example.org", "127.0.0.1:8000", True),
    ("https://search.example.org:8443", "search.example.org", True),
    ("http://127.0.0.1:3000", "127.0.0.1:8000", False),
    ("http://evil.example", "127.0.0.1:8000", False),
    ("http://search.example.org.evil.example", "127.0.0.1:8000", False),
    ("null", "127.0.0.1:8000", False),
    ("", "", False),
    ("http://[", "127.0.0.1:8000", False),
    ("http://127.0.0.1:8000", None, False),
]


@pytest.mark.parametrize(("origin", "host", "own"), ORIGINS)
def test_pages_of_its_own(origin: str, host: str | None, own: bool) -> None:
    assert hosts("127.0.0.1", ["search.example.org"]).own(origin, host) is own
    assert Hosts(allowed=frozenset("*")).own("http://evil.example", "127.0.0.1:8000") is False


# ---------------------------------------------------------------- the service


def test_a_strange_name_is_told_nothing_with_a_key_or_without(searches: tuple[Search, Search]) -> None:
    for key, headers in ((None, {}), (Key(SECRET), {"x-api-key": SECRET})):
        client = Client(*searches, rules=Rules(key=key, hosts=HERE))
        for path in ("/", "/health", "/ready", "/search?q=a", "/embed?texts=a", "/metrics", "/openapi.json", "/item/0"):
            response = client(path, headers=headers | {"host": "evil.example:8000"})
            assert response.status_code == 421, path
            assert list(response.json()) == ["error"]
            allowed = client(path, headers=headers | {"host": "localhost:8000"})
            assert allowed.status_code in (200, 404), path
        counted = client("/metrics", headers=headers | {"host": "[::1]:8000"}).text
        assert 'slimseek_refused_total{reason="host"} 8.0' in counted


def test_posts_of_other_sites_need_a_key(searches: tuple[Search, Search]) -> None:
    open_one, locked = Client(*searches), Client(*searches, rules=Rules(key=Key(SECRET)))
    body: dict[str, Any] = {"method": "POST", "json": {"texts": ["a stone"]}}
    assert open_one("/embed", **body).status_code == 200
    assert open_one("/embed", **body, headers={"origin": "http://test"}).status_code == 200
    for origin in ("http://evil.example", "null", "https://test.evil.example"):
        for path in ("/embed", "/search/picture", "/search/voice"):
            refused = open_one(path, **body, headers={"origin": origin})
            assert refused.status_code == 403
            assert refused.json()["error"].startswith("a page of another site may not ask this without a key")
        key = {"origin": origin, "x-api-key": SECRET}
        assert locked("/embed", **body, headers=key).status_code == 200
        assert locked("/embed", **body, headers={"origin": origin}).status_code == 401
        assert open_one("/search?q=a", headers={"origin": origin}).status_code == 200
    assert open_one.metrics()["slimseek_refused_total", "origin"] == 9
    assert (
        "access-control-allow-origin" not in open_one("/search?q=a", headers={"origin": "http://evil.example"}).headers
    )


def test_what_serve_is_told_reaches_the_door(searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(serve, "app", lambda *_, rules, load: seen.append(rules.hosts) or sys.exit("seen"))
    named = hosts("127.0.0.1", ["search.example.org"])
    for rules in (Rules(hosts=named), None):
        with pytest.raises(SystemExit, match="seen"):
            serve.serve(searches[0], port=0, rules=rules)
    assert seen == [named, hosts("127.0.0.1")], "without names those of the address that it listens on"


def test_over_a_socket(searches: tuple[Search, Search]) -> None:
    """As bytes: two names, none at all in the older protocol, a whole address in the first line."""
    with serving(searches[0], rules=Rules(hosts=HERE)) as url:
        port = int(url.rstrip("/").rpartition(":")[2])

        def status(request: str) -> int:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(request.encode())
                return int(connection.makefile("rb").readline().split()[1])

        asked = "GET /search?q=a HTTP/1.1\r\n"
        assert status(f"{asked}Host: 127.0.0.1:{port}\r\n\r\n") == 200
        assert status(f"{asked}Host: evil.example\r\n\r\n") == 421
        assert status(f"{asked}Host: evil.example\r\nHost: 127.0.0.1\r\n\r\n") == 400
        assert status(f"{asked}Host: evil.example\r\nX-Forwarded-Host: 127.0.0.1\r\n\r\n") == 421
        assert status("GET /search?q=a HTTP/1.0\r\n\r\n") == 200
        assert status(f"GET http://127.0.0.1:{port}/health HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 421


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_whose_name_was_rebound_reads_nothing(searches: tuple[Search, Search], tmp_path: Path) -> None:
    """Chromium is made to find evil.example at 127.0.0.1, as after a DNS answer of the attacker's."""
    rebound = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with browsing(tmp_path / "profile", rebound) as browser, serving(searches[0], rules=Rules(hosts=HERE)) as url:
        port = url.rstrip("/").rpartition(":")[2]
        browser.go(f"http://evil.example:{port}/")
        assert json.loads(browser.run("document.body.innerText"))["error"].startswith("this service is not called evil")
        read = "fetch('/search?q=stone').then(async (response) => [response.status, await response.text()])"
        status, text = browser.run(read)
        assert status == 421
        assert "results" not in text
        browser.go(url)
        assert browser.run(read)[0] == 200
        posted = f"fetch('{url}embed', {{method: 'POST', mode: 'MODE', body: '{{}}'}}).then((r) => r.status, () => 0)"
        assert browser.run(posted.replace("MODE", "cors")) == 422
        (tmp_path / "site").mkdir()
        with hosting(tmp_path / "site") as other:
            browser.go(other)
            browser.run(posted.replace("MODE", "no-cors"))
        browser.go(url)
        counted = browser.run("fetch('/metrics').then((response) => response.text())")
        assert 'slimseek_refused_total{reason="origin"} 1.0' in counted
