"""Pictures and recordings that come in over HTTP, and those of a collection that go out: size, kind, files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from starlette.exceptions import HTTPException

from slimseek import plugins
from slimseek.errors import UsageError

MOST_SECONDS = 60
"""Of a spoken query: a longer one would keep all others waiting."""
Kind = Literal["picture", "recording"]
MEDIA_TYPE: dict[Kind, str] = {"picture": "image/", "recording": "audio/"}
CONTENT_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
    ".bmp": "image/bmp", ".avif": "image/avif", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg",
    ".oga": "audio/ogg", ".opus": "audio/ogg", ".mp3": "audio/mpeg",
}  # fmt: skip
"""What goes out, by suffix. Not SVG, which may hold scripts, and nothing that a browser would not show."""


async def received(request: Request, kind: Kind) -> bytes:
    """The body of a request, which the door of the service keeps within bounds.

    Raises:
        HTTPException: 415 for another content type than of a picture or recording, 400 for an empty body.
    """
    wanted, given = MEDIA_TYPE[kind], request.headers.get("content-type", "")
    if not given.lower().startswith(wanted):
        raise HTTPException(415, f"the content type is {given or 'missing'!r}; {wanted}* is expected")
    content = await request.body()
    if not content:
        raise HTTPException(400, f"the {kind} is empty")
    return content


@contextmanager
def kept(content: bytes, kind: Kind) -> Iterator[str]:
    """The path of a file with that content in a folder of its own; both are removed after.

    Nothing of its name comes from the request, and a UsageError that names it says "the picture" or "the recording".
    """
    with tempfile.TemporaryDirectory(prefix="slimseek.") as folder:
        path = Path(folder) / kind
        path.write_bytes(content)
        try:
            yield str(path)
        except UsageError as error:
            raise UsageError(str(error).replace(str(path), f"the {kind}")) from error


def check_seconds(path: str) -> None:
    """Refuse a recording longer than a minute; one that cannot be read is left to what reads it.

    Raises:
        UsageError: with its length.
    """
    soundfile: Any = plugins.require("soundfile")
    try:
        seconds = soundfile.info(path).duration
    except soundfile.SoundFileError:
        return
    if seconds > MOST_SECONDS:
        raise UsageError(f"the recording is {seconds:.0f} seconds long; a query may be {MOST_SECONDS}")


def content_type(file: str) -> str | None:
    """What a picture or recording of that name is; ``None`` for any other file, which is not given out."""
    return CONTENT_TYPES.get(Path(file).suffix.lower())
