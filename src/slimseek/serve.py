"""The search over HTTP, and its page. Routes parse, ask the worker, and answer in JSON."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from itertools import chain
from typing import Annotated, Any

import msgspec
import threadpoolctl
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from slimseek import __version__
from slimseek.errors import SlimseekError, UsageError
from slimseek.recognise import Recogniser
from slimseek.search import Search
from slimseek.serving import files, metrics, shapes
from slimseek.serving.batching import Batcher, Busy
from slimseek.serving.desk import Desk
from slimseek.serving.door import Door, Rules
from slimseek.serving.hosts import hosts
from slimseek.serving.limits import check_host
from slimseek.serving.shapes import Asks, Compared, EmbedRequest, Found, Health, K, Ready, Reply, Texts, Vectors, Which
from slimseek.serving.swap import Current, Served, Version, warming
from slimseek.serving.work import Alone, Role

LOG = logging.getLogger("slimseek.serve")
SECONDS_TO_STOP = 30
MOST_CONNECTIONS = 1000
MOST_HEADER_BYTES = 1 << 17
"""The longest query in any language fits, percent-encoded."""
BOTH: tuple[Which, Which] = ("compressed", "original")


def app(
    search: Search,
    original: Search | None = None,
    recogniser: Recogniser | None = None,
    *,
    rules: Rules | None = None,
    load: Callable[[], Served] | None = None,
) -> FastAPI:
    """The service as an ASGI application; ``app.state`` has its ``current``, its ``batcher``, ``warm``, and
    ``counted``, which gives the text of ``/metrics``.

    Args:
        search: what answers by default, ``compressed`` in requests.
        original: what it is compared with, ``original`` in requests; ``None`` for no comparison.
        recogniser: makes texts of spoken queries; ``None`` for none.
        rules: who may ask, and how much; by default anyone, with the default limits.
        load: opens what is served after a swap; ``None`` for no swaps.
    """
    service = FastAPI(title="slimseek", version=__version__, docs_url=None, redoc_url=None)
    rules, measured = rules or Rules(), metrics.Metrics()
    threads = search.encoder.threads
    batcher = Batcher(rules.batches, begin=lambda: threadpoolctl.threadpool_limits(threads),
                      seen=measured.rows.observe)  # fmt: skip
    measured.watch(lambda: batcher.waiting)
    current = Current(Served(search, original, recogniser), measured, load)
    desk = Desk(current, batcher, measured)
    service.state.current, service.state.batcher, service.state.warm = current, batcher, True
    service.state.counted = measured.text_now
    page = (resources.files("slimseek") / "page" / "search.html").read_text("utf-8")
    _complain(service)
    service.add_middleware(Door, rules=rules, metrics=measured, headers=_headers(page))
    _add_probes(service, current, page)
    _add_texts(service, desk)
    files.add(service, desk)
    return service


def _add_probes(service: FastAPI, current: Current, page: str) -> None:
    """The page, and what supervisors ask."""
    named: dict[int | str, dict[str, Any]] = {421: {"model": shapes.Failure}}

    @service.get("/", response_class=HTMLResponse, responses=named)
    async def show() -> str:
        """The search page."""
        return page

    @service.get("/health", response_model=Health, responses=named)
    async def health() -> Response:
        """What runs, how large it is, and what it can be asked by; answers while a model is busy."""
        version = current.version
        models = {name: msgspec.to_builtins(one.stats()) for name, one in version.searches.items()}
        return Reply({"status": "ok", "version": version.number, "queries": version.queries, "models": models})

    @service.get("/ready", response_model=Ready, responses=named | {503: {"model": Ready}})
    async def ready() -> Response:
        """Whether the models have been run once, so that requests are answered at full speed."""
        done = service.state.warm
        return Reply({"status": "ready" if done else "warming"}, 200 if done else 503)

    @service.get("/metrics", response_class=Response, responses=Desk.refuses() | {200: {"content": {"text/plain": {}}}})
    async def counted() -> Response:
        """Counters and histograms in the text format of Prometheus."""
        return Response(await service.state.counted(), headers={"content-type": metrics.CONTENT_TYPE})


def _add_texts(service: FastAPI, desk: Desk) -> None:
    """Routes for texts."""
    refuses = desk.refuses(400, 503)

    @service.get("/search", response_model=Found, responses=refuses)
    async def find(q: Asks, k: K = 10, model: Which = "compressed") -> Response:
        """The ``k`` documents nearest to the query ``q``."""
        version, search = desk.chosen(model, "text")
        done = await desk.answer(search, q, k)
        return Reply({"query": q, "model": model, **shapes.shown(done.value, model, version.number, done.waited)})

    @service.get("/compare", response_model=Compared, responses=refuses)
    async def compare(q: Asks, k: K = 10) -> Response:
        """The ``k`` documents nearest to the query ``q`` by both models, and where their ranks differ."""
        sides: dict[Which, tuple[Version, Search]] = {name: desk.chosen(name, "text") for name in BOTH}
        done = await asyncio.gather(*(desk.answer(search, q, k) for _, search in sides.values()))
        compressed, original = (
            shapes.shown(one.value, name, version.number, one.waited)
            for one, (name, (version, _)) in zip(done, sides.items(), strict=True)
        )
        return Reply(shapes.compared(q, k, compressed, original))

    @service.get("/embed", response_model=Vectors, responses=refuses)
    async def embed(texts: Annotated[Texts, Query()], model: Which = "compressed", role: Role = "query") -> Response:
        """Vectors of the texts."""
        _, search = desk.chosen(model, "text")
        return Reply(shapes.vectors(await desk.embed(search, texts, role), model))

    @service.post("/embed", response_model=Vectors, responses=desk.refuses(400, 403, 408, 413, 503))
    async def embed_body(body: EmbedRequest) -> Response:
        """Vectors of the texts in the body."""
        return await embed(body.texts, body.model, body.role)


def serve(
    search: Search,
    original: Search | None = None,
    recogniser: Recogniser | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    everyone: bool = False,
    rules: Rules | None = None,
    load: Callable[[], Served] | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what waits then is answered within 30 seconds.

    Args:
        search: what answers by default.
        original: what it is compared with, or ``None``.
        recogniser: makes texts of spoken queries, or ``None``.
        host: address to listen on; ``0.0.0.0`` for all of the machine.
        port: port to listen on; 0 for any that is free.
        everyone: listen to other machines without a key.
        rules: who may ask, and how much; where they name no hosts, it is called by ``host`` or the loopback's names.
        load: opens what is served after SIGHUP; ``None`` for no swaps.
        ready: told the address of the page as soon as it is listened on.

    Raises:
        UsageError: the port is taken or not allowed, or the host is not this machine, or others could ask without a
            key and not ``everyone`` is meant.
    """
    rules = rules or Rules()
    rules = replace(rules, hosts=rules.hosts or hosts(host))
    check_host(host, rules.key, everyone)
    with listen(host, port) as listener:
        service = app(search, original, recogniser, rules=rules, load=load)
        _warm(service)
        _heed_signals(service)
        if ready is not None:
            name = f"[{host}]" if ":" in host else host
            ready(f"http://{name}:{listener.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(configuration(service)).run(sockets=[listener])
        service.state.batcher.close(1)  # all is answered, or took too long


def configuration(service: FastAPI) -> uvicorn.Config:
    """How uvicorn runs it: bounded headers (httptools would take any length), connections, and time to stop."""
    return uvicorn.Config(service, log_level="warning", http="h11", ws="none", lifespan="off", loop="asyncio",
                          h11_max_incomplete_event_size=MOST_HEADER_BYTES, server_header=False, access_log=False,
                          limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=SECONDS_TO_STOP)  # fmt: skip


def _warm(service: FastAPI) -> None:
    """Run the models at several lengths in the worker, one after the other, so that early requests get in between."""
    searches = service.state.current.version.searches.values()
    calls = chain.from_iterable(warming(search) for search in searches)

    def following(before: Future[Any] | None = None) -> None:
        if before is not None and before.exception() is not None:
            LOG.error("the model does not run: %s", before.exception())
            return
        call = next(calls, None)
        if call is not None:
            with suppress(Busy):  # then requests warm it
                service.state.batcher.submit(Alone(call), None).add_done_callback(following)
                return
        service.state.warm = True

    service.state.warm = False
    following()


def _heed_signals(service: FastAPI) -> None:
    """SIGHUP swaps; after SIGTERM, which uvicorn sends once more when all is answered, the process ends well."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: service.state.current.start_swap())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port that is taken is known before anything is promised.

    Raises:
        UsageError: it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} must be from 0 to 65535")
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from error
    # Made anew by its number it knows its protocol. Otherwise asyncio leaves Nagle's algorithm on, and every answer on
    # a connection that is kept open waits for the client's delayed acknowledgement: 40 ms.
    return socket.socket(fileno=listener.detach())


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
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _hashes(page: str, tag: str) -> list[str]:
    """Sources for a content security policy of each inline element of that name."""
    inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]


def _complain(service: FastAPI) -> None:
    """Give every error one line of JSON."""

    def failure(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status, {"Retry-After": "1"} if status == 503 else None)

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


def _complaint(fault: dict[str, Any]) -> str:
    """One line for a fault: where, and what is allowed there."""
    place = ".".join(str(part) for part in fault["loc"][1:])
    return f"{place or 'body'}: {' '.join(str(fault['msg']).split())}"
