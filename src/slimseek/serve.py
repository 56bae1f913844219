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
from time import perf_counter
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from slimseek import uploads
from slimseek.errors import SlimseekError, UsageError
from slimseek.recognise import Recogniser
from slimseek.search import MOST_HITS, Answer, Result, Search

MOST_TEXTS = 64
LONGEST_TEXT = 10_000
LONGEST_SNIPPET = 600
MOST_WAITING = 128

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Which = Literal["compressed", "original"]
Role = Literal["query", "document"]
K = Annotated[int, Query(ge=1, le=MOST_HITS)]


class EmbedRequest(BaseModel, extra="forbid"):
    """The body of ``POST /embed``."""

    texts: Texts
    model: Which = "compressed"
    role: Role = "query"


class Busy(SlimseekError):
    """More requests wait than can be answered soon."""


def app(search: Search, original: Search | None = None, recogniser: Recogniser | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        search: what answers by default, ``compressed`` in requests.
        original: what it is compared with, ``original`` in requests; ``None`` for no comparison.
        recogniser: makes texts of spoken queries; ``None`` for none.
    """
    service = FastAPI(title="slimseek", docs_url=None, redoc_url=None)
    searches = {"compressed": search} | ({} if original is None else {"original": original})
    worker = _Worker()
    page = (resources.files("slimseek") / "page" / "search.html").read_text("utf-8")
    _guard(service, _headers(page))
    _add_texts(service, searches, worker)
    _add_files(service, searches, worker, recogniser)

    @service.get("/", response_class=HTMLResponse)
    async def show() -> str:
        """The search page."""
        return page

    @service.get("/health")
    async def health() -> dict[str, Any]:
        """What runs, how large it is, and what it can be asked by; answers while a model is busy."""
        models = {name: msgspec.to_builtins(one.stats()) for name, one in searches.items()}
        return {"status": "ok", "queries": _queries(search, recogniser), "models": models}

    return service


def _add_texts(service: FastAPI, searches: dict[str, Search], worker: _Worker) -> None:
    """Routes for texts."""

    @service.get("/search")
    async def find(
        q: Annotated[str, Query(max_length=LONGEST_TEXT)], k: K = 10, model: Which = "compressed"
    ) -> dict[str, Any]:
        """The ``k`` documents nearest to the query ``q``."""
        answer = await worker(_chosen(searches, model, "text").answer, [q], k)
        return {"query": q, "model": model, **_answer(answer, model)}

    @service.get("/embed")
    async def embed(
        texts: Annotated[Texts, Query()], model: Which = "compressed", role: Role = "query"
    ) -> dict[str, Any]:
        """Vectors of the texts."""
        vectors = await worker(_chosen(searches, model, "text").embed, texts, role)
        return {"model": model, "dim": vectors.shape[1], "vectors": vectors.tolist()}

    @service.post("/embed")
    async def embed_body(body: EmbedRequest) -> dict[str, Any]:
        """Vectors of the texts in the body."""
        return await embed(body.texts, body.model, body.role)


def _add_files(service: FastAPI, searches: dict[str, Search], worker: _Worker, recogniser: Recogniser | None) -> None:
    """Routes for pictures and recordings: those of queries, and those of documents."""

    @service.post("/search/picture")
    async def by_picture(request: Request, k: K = 10, model: Which = "compressed") -> dict[str, Any]:
        """The ``k`` documents nearest to the picture in the body."""
        search = _chosen(searches, model, "picture")
        answer = await worker(_by_file, search, await uploads.received(request, "picture"), "picture", k)
        return {"model": model, **_answer(answer, model)}

    @service.post("/search/voice")
    async def by_voice(request: Request, k: K = 10, model: Which = "compressed") -> dict[str, Any]:
        """The ``k`` documents nearest to the recording in the body, or to what is said in it."""
        search = _chosen(searches, model, "voice", recogniser)
        content = await uploads.received(request, "recording")
        if recogniser is None:
            return {"model": model, **_answer(await worker(_by_file, search, content, "recording", k), model)}
        heard = await worker(_heard, recogniser, content)
        found = _answer(await worker(search.answer, [heard.text], k), model)
        found["milliseconds"]["transcribe"] = round(heard.milliseconds, 3)
        return {"query": heard.text, "model": model, **found}

    @service.get("/item/{position}")
    async def item(request: Request, position: int, model: Which = "compressed") -> Response:
        """The picture or recording of the document at that position of the index."""
        path = _chosen(searches, model).documents.path(position)
        kind = None if path is None else uploads.content_type(path.name)
        if path is None or kind is None:
            raise HTTPException(404, f"document {position} has no picture or recording that can be shown")
        response = FileResponse(path, media_type=kind, stat_result=path.stat(), headers={"Cache-Control": "no-cache"})
        if request.headers.get("if-none-match") == response.headers["etag"]:
            return Response(status_code=304, headers={"Cache-Control": "no-cache", "ETag": response.headers["etag"]})
        return response


def serve(
    search: Search,
    original: Search | None = None,
    recogniser: Recogniser | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        search: what answers by default.
        original: what it is compared with, or ``None``.
        recogniser: makes texts of spoken queries, or ``None``.
        host: address to listen on; ``0.0.0.0`` for all of the machine.
        port: port to listen on; 0 for any that is free.
        ready: told the address of the page as soon as it is listened on.

    Raises:
        UsageError: the port is taken or not allowed, or the host is not this machine.
    """
    service = app(search, original, recogniser)
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


class _Heard(NamedTuple):
    text: str
    milliseconds: float


def _heard(recogniser: Recogniser, content: bytes) -> _Heard:
    """What is said in a recording; UsageError where that is nothing."""
    begin = perf_counter()
    with uploads.kept(content, "recording") as path:
        uploads.check_seconds(path)
        [text] = recogniser.transcripts([path])
    if not text.strip():
        raise UsageError("no words were heard in the recording")
    return _Heard(text.strip(), 1000 * (perf_counter() - begin))


def _by_file(search: Search, content: bytes, kind: uploads.Kind, k: int) -> Answer:
    with uploads.kept(content, kind) as path:
        return search.answer([path], k)


def _queries(search: Search, recogniser: Recogniser | None = None) -> list[str]:
    """What it can be asked by."""
    takes = {"text": ["text"], "image": ["picture"], "speech": ["voice"]}.get(search.encoder.spec.modality, [])
    return [*takes, *(["voice"] if recogniser is not None and takes == ["text"] else [])]


def _chosen(searches: dict[str, Search], model: Which, query: str = "", recogniser: Recogniser | None = None) -> Search:
    """The search that a request names; UsageError where it is not served, or cannot be asked by such a query."""
    if model not in searches:
        raise UsageError(f"the model {model!r} is not served here; served: {', '.join(searches)}")
    search = searches[model]
    takes = _queries(search, recogniser)
    if query and query not in takes:
        remedy = "; slimseek serve --recogniser adds voice" if (query, takes) == ("voice", ["text"]) else ""
        raise UsageError(f"{search.encoder.name} searches by {' or '.join(takes) or 'array'}, not by {query}{remedy}")
    return search


def _answer(answer: Answer, model: Which) -> dict[str, Any]:
    """The answer to one query as JSON; times in milliseconds."""
    return {
        "milliseconds": {
            "encode": round(answer.encode_milliseconds, 3),
            "search": round(answer.search_milliseconds, 3),
        },
        "results": [_shown(result, model) for result in answer.results[0]],
    }


def _shown(result: Result, model: Which) -> dict[str, Any]:
    """A result as JSON, with the address of its picture or recording where it has one."""
    shown = {"id": result.id, "score": result.score, "rank": result.rank, "text": snippet(result.text)}
    kind = uploads.content_type(result.file) if result.file else None
    if kind is not None:
        shown["picture" if kind.startswith("image/") else "recording"] = f"item/{result.position}?model={model}"
    return shown


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
        "img-src 'self' blob: data:; media-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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
        for name, value in headers.items():
            response.headers.setdefault(name, value)  # a picture may be kept, and asked about again
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
