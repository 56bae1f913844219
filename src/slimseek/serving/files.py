"""Routes for pictures and recordings: those of queries, and those of documents."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NamedTuple

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from slimseek.errors import UsageError
from slimseek.recognise import Recogniser
from slimseek.search import Answer, Search
from slimseek.serving import shapes, uploads
from slimseek.serving.desk import Desk
from slimseek.serving.shapes import Found, K, Reply, Which
from slimseek.serving.thumbnails import MEDIA_TYPE, Thumbnails

TAKES: dict[uploads.Kind, dict[str, Any]] = {
    kind: {"requestBody": {"required": True,
                           "content": {f"{media}*": {"schema": {"type": "string", "format": "binary"}}}}}
    for kind, media in uploads.MEDIA_TYPE.items()
}  # fmt: skip
SHOWN = {media: {"schema": {"type": "string", "format": "binary"}} for media in uploads.CONTENT_TYPES.values()}
Side = Annotated[int | None, Query(ge=16, le=1024)]


class _Heard(NamedTuple):
    text: str
    milliseconds: float


def add(service: FastAPI, desk: Desk) -> None:
    """Add the routes."""
    thumbnails = Thumbnails()
    refuses = desk.refuses(400, 403, 408, 413, 415, 503)

    @service.post("/search/picture", response_model=Found, responses=refuses, openapi_extra=TAKES["picture"])
    async def by_picture(request: Request, k: K = 10, model: Which = "compressed") -> Response:
        """The ``k`` documents nearest to the picture in the body."""
        version, search = desk.chosen(model, "picture")
        done = await desk.alone(_by_file, search, await uploads.received(request, "picture"), "picture", k)
        return Reply({"model": model, **shapes.shown(done.value, model, version.number, done.waited)})

    @service.post("/search/voice", response_model=Found, responses=refuses, openapi_extra=TAKES["recording"])
    async def by_voice(request: Request, k: K = 10, model: Which = "compressed") -> Response:
        """The ``k`` documents nearest to the recording in the body, or to what is said in it."""
        version, search = desk.chosen(model, "voice")
        content = await uploads.received(request, "recording")
        if version.recogniser is None:
            done = await desk.alone(_by_file, search, content, "recording", k)
            return Reply({"model": model, **shapes.shown(done.value, model, version.number, done.waited)})
        heard = await desk.alone(_heard, version.recogniser, content)
        done = await desk.answer(search, heard.value.text, k)
        found = shapes.shown(done.value, model, version.number, heard.waited + done.waited)
        found["milliseconds"]["transcribe"] = round(heard.value.milliseconds, 3)
        return Reply({"query": heard.value.text, "model": model, **found})

    @service.get("/item/{position}", response_class=FileResponse,
                 responses=desk.refuses(400, 404, 410) | {200: {"content": SHOWN}})  # fmt: skip
    async def item(
        request: Request, position: int, model: Which = "compressed", version: int = 0, side: Side = None
    ) -> Response:
        """The picture or recording of the document at that position of the index, of which ``version`` is known; with
        ``side`` a copy of a picture with at most so many pixels each way.
        """
        current, search = desk.chosen(model)
        if version not in (0, current.number):
            raise HTTPException(
                410, f"version {version} of the index has been replaced by {current.number}; search again"
            )
        path = search.documents.path(position)
        kind = None if path is None else uploads.content_type(path.name)
        if path is None or kind is None:
            raise HTTPException(404, f"document {position} has no picture or recording that can be shown")
        response = FileResponse(path, media_type=kind, stat_result=path.stat(), headers={"Cache-Control": "no-cache"})
        tag = response.headers["etag"] = _tag(path, response.headers["etag"], side)
        kept = {"Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=kept)
        small = await thumbnails.of(path, tag, side) if side and kind.startswith("image/") else None
        return response if small is None else Response(small, media_type=MEDIA_TYPE, headers=kept)


def _tag(path: Path, dated: str, side: int | None) -> str:
    """What a browser knows a file by: also where it lies, since another index may have another file of the same size
    and date at this address.
    """
    return f'"{hashlib.sha256(os.fsencode(path) + f" {dated} {side}".encode()).hexdigest()[:32]}"'


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
