"""The search over HTTP, and its page. Routes parse, call one verb of :mod:`slimseek.search`, and answer in JSON."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from slimseek.errors import SlimseekError, UsageError
from slimseek.search import MOST_HITS, Answer, Search

MOST_TEXTS = 64
LONGEST_TEXT = 10_000
LONGEST_SNIPPET = 600
MOST_WAITING = 128

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Which = Literal["compressed", "original"]
Role = Literal["query", "document"]


class EmbedRequest(BaseModel, extra="forbid"):
    """The body of ``POST /embed``."""

    texts: Texts
    model: Which = "compressed"
    role: Role = "query"


class Busy(SlimseekError):
    """More requests wait than can be answered soon."""


def app(search: Search, original: Search | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        search: what answers by default, ``compressed`` in requests.
        original: what it is compared with, ``original`` in requests; ``None`` for no comparison.
    """
    service = FastAPI(title="slimseek", docs_url=None, redoc_url=None)
    searches = {"compressed": search} | ({} if original is None else {"original": original})
    worker = _Worker()
    page = (resources.files("slimseek") / "page" / "search.html").read_text("utf-8")
    _guard(service, _headers(page))

    @service.get("/", response_class=HTMLResponse)
    async def show() -> str:
        """The search page."""
        return page

    @service.get("/health")
    async def health() -> dict[str, Any]:
        """What runs and how large it is; answers while a model is busy."""
        return {"status": "ok", "models": {name: msgspec.to_builtins(one.stats()) for name, one in searches.items()}}

    @service.get("/search")
    async def find(
        q: Annotated[str, Query(max_length=LONGEST_TEXT)],
        k: Annotated[int, Query(ge=1, le=MOST_HITS)] = 10,
        model: Which = "compressed",
    ) -> dict[str, Any]:
        """The ``k`` documents nearest to the query ``q``."""
        answer = await worker(_chosen(searches, model).answer, [q], k)
        return {"query": q, "model": model, **_answer(answer)}

    @service.get("/embed")
    async def embed(
        texts: Annotated[Texts, Query()], model: Which = "compressed", role: Role = "query"
    ) -> dict[str, Any]:
        """Vectors of the texts."""
        vectors = await worker(_chosen(searches, model).embed, texts, role)
        return {"model": model, "dim": vectors.shape[1], "vectors": vectors.tolist()}

    @service.post("/embed")
    async def embed_body(body: EmbedRequest) -> dict[str, Any]:
        """Vectors of the texts in the body."""
        return await embed(body.texts, body.model, body.role)

    return service


def serve(
    search: Search,
    original: Search | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        search: what answers by default.
        original: what it is compared with, or ``None``.
        host: address to listen on; ``0.0.0.0`` for all of the machine.
        port: port to listen on; 0 for any that is free.
        ready: told the address of the page as soon as it is listened on.

    Raises:
        UsageError: the port is taken or not allowed, or the host is not this machine.
    """
    service = app(search, original)
    with listen(host, port) as listener:
        if ready is not None:
            name = f"[{host}]" if ":" in host else host
            ready(f"http://{name}:{listener.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(service, log_level="warning")).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is known before anything is promised.

    Raises:
        UsageError: it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} must be from 0 to 65535")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from error


class _Worker:
    """Runs one inference at a time in a thread of its own: runtimes use all cores, and /health answers meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slimseek")
        self._waiting = 0

    async def __call__(self, call: Callable[..., T], *arguments: Any) -> T:
        if self._waiting >= MOST_WAITING:
            raise Busy(f"{self._waiting} requests are waiting; try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
        finally:
            self._waiting -= 1


def _chosen(searches: dict[str, Search], model: Which) -> Search:
    if model not in searches:
        raise UsageError(f"the model {model!r} is not served here; served: {', '.join(searches)}")
    return searches[model]


def _answer(answer: Answer) -> dict[str, Any]:
    """The answer to one query as JSON; times in milliseconds."""
    return {
        "milliseconds": {
            "encode": round(answer.encode_milliseconds, 3),
            "search": round(answer.search_milliseconds, 3),
        },
        "results": [
            {"id": result.id, "score": result.score, "rank": result.rank, "text": snippet(result.text)}
            for result in answer.results[0]
        ],
    }


def snippet(text: str, longest: int = LONGEST_SNIPPET) -> str:
    """The beginning of a text on one line, cut between words where that is possible."""
    line = " ".join(text[: 4 * longest].split())
    if len(line) <= longest:
        return line
    cut = line[: longest - 1]
    return (cut.rpartition(" ")[0] or cut) + "…"


def _headers(page: str) -> dict[str, str]:
    """Headers of every response; scripts and styles of the page are allowed by their hash, and nothing else is."""
    allowed = {tag: " ".join(_hashes(page, tag)) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _hashes(page: str, tag: str) -> list[str]:
    """Sources for a content security policy of each inline element of that name."""
    inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]


def _guard(service: FastAPI, headers: dict[str, str]) -> None:
    """Give every response the headers, and every error one line of JSON."""

    def failure(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers)

    @service.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(headers)
        return response

    @service.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return failure(422, "; ".join(_complaint(fault) for fault in error.errors()[:3]))

    @service.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        response = failure(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})  # such as Allow
        return response

    @service.exception_handler(SlimseekError)
    async def failed(request: Request, error: SlimseekError) -> Response:
        return failure(503 if isinstance(error, Busy) else 400 if isinstance(error, UsageError) else 500, str(error))

    @service.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return failure(500, "a fault of the service; its log says more")


def _complaint(fault: dict[str, Any]) -> str:
    """One line for a fault: where, and what is allowed there."""
    place = ".".join(str(part) for part in fault["loc"][1:])
    return f"{place or 'body'}: {' '.join(str(fault['msg']).split())}"
