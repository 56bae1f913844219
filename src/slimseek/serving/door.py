"""The door of the service: every request passes here, is refused or let in, counted and timed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from time import monotonic
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slimseek.serving.batching import Limits
from slimseek.serving.hosts import READS, Hosts
from slimseek.serving.limits import Buckets, Key, Rate
from slimseek.serving.metrics import REASONS, Metrics

OPEN = frozenset({"/", "/health", "/ready"})
"""What needs no key: the page, which holds no data, and what a supervisor asks."""
COSTLY = frozenset({"/search", "/search/picture", "/search/voice", "/embed", "/compare"})
"""What asks a model, and counts for the rate."""
PAGES_OF_OTHERS = (
    "a page of another site may not ask this without a key; if it is the service's own behind a proxy, start it "
    "with --allow-host and the proxy's name"
)
LOG = logging.getLogger("slimseek.serve")
MOST_BYTES = 20_000_000
SECONDS_OF_BODY = 30.0
"""Of the body of any request: what it may hold, and how long it may take to come."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who may ask, and how much.

    Attributes:
        batches: how requests are joined, and how many may wait.
        rate: of each client; ``None`` for any.
        key: that requests must name; ``None`` for none.
        hosts: by which names the service may be called; ``None`` for any.
    """

    batches: Limits = field(default_factory=Limits)
    rate: Rate | None = None
    key: Key | None = None
    hosts: Hosts | None = None


class Door:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics, headers: Mapping[str, str]) -> None:
        """Guard an application.

        Args:
            app: what stands behind.
            rules: who may ask, and how much.
            metrics: told of every request.
            headers: of every response that does not say otherwise.
        """
        self._app, self._rules, self._metrics = app, rules, metrics
        self._headers = tuple(headers.items())
        self._buckets = None if rules.rate is None else Buckets(rules.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it in."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin, statuses = monotonic(), [0]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[0] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self._headers:
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, _bounded(receive), answer)
            else:
                await _refuse(answer, *refusal)
        except Exception:
            if statuses[0]:
                raise
            LOG.exception("a fault of the service at %s", scope["path"])
            await _refuse(answer, 500, "a fault of the service; its log says more", {})
        finally:
            path = getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in COSTLY else "other")
            self._metrics.requests.labels(path, statuses[0]).inc()
            if statuses[0] in REASONS and path != "/ready":
                self._metrics.refused[REASONS[statuses[0]]].inc()
            if path in COSTLY and statuses[0] == 200:
                self._metrics.seconds["total"].observe(monotonic() - begin)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Status, reason and headers where a request is not let in."""
        headers, path = Headers(scope=scope), scope["path"]
        strange = self._strange(headers, scope["method"])
        if strange is not None:
            return *strange, {}
        given, key = (headers.get("authorization", ""), headers.get("x-api-key", "")), self._rules.key
        if key is not None and path not in OPEN and not key.fits(*given):
            reason = "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
            return 401, reason, {"WWW-Authenticate": "Bearer"}
        if self._buckets is not None and path in COSTLY:
            wait = self._buckets.take((scope.get("client") or ("", 0))[0], monotonic())
            if wait > 0:
                return 429, "too many requests of one client; try again later", {"Retry-After": str(ceil(wait))}
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > MOST_BYTES:
            return 413, f"the body is larger than {MOST_BYTES // 1_000_000} MB, which is the most", {}
        return None

    def _strange(self, headers: Headers, method: str) -> tuple[int, str] | None:
        """Status and reason where a page of another site asks: by a name that it made lead here, or where no key keeps
        it out.
        """
        host, origin, hosts = headers.get("host"), headers.get("origin"), self._rules.hosts
        refusal = None if hosts is None else hosts.refusal(host)
        if refusal is not None:
            return 421, refusal
        others = origin is not None and method not in READS and not (hosts or Hosts()).own(origin, host)
        if others and self._rules.key is None:
            return 403, PAGES_OF_OTHERS
        return None


def _bounded(receive: Receive) -> Receive:
    """The same messages, of which bodies may be neither larger than 20 MB nor slower than 30 seconds."""
    end, whole, size = monotonic() + SECONDS_OF_BODY, False, 0

    async def bounded() -> Message:
        nonlocal whole, size
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - monotonic()))
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {SECONDS_OF_BODY:.0f} seconds") from error
        whole = not message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BYTES // 1_000_000} MB, which is the most")
        return message

    return bounded


async def _refuse(send: Send, status: int, reason: str, headers: Mapping[str, str]) -> None:
    """One line of JSON."""
    body = msgspec.json.encode({"error": reason})
    fields: Any = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
