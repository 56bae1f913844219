"""Small copies of the pictures that a page shows beside each other, kept in memory as long as there is room."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

import anyio.to_thread

from slimseek.errors import SlimseekError
from slimseek.inputs import pictures

MEDIA_TYPE = "image/jpeg"
QUALITY = 85
MOST_KEPT = 32_000_000
"""Bytes of all copies."""
AT_ONCE = 2
"""Pictures that are decoded at the same time: each may take 200 MB meanwhile."""


class Thumbnails:
    """Copies by a key that changes with the picture; of many, those asked for last are kept."""

    def __init__(self, most_bytes: int = MOST_KEPT) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._slots = anyio.CapacityLimiter(AT_ONCE)

    async def of(self, path: Path, key: str, side: int) -> bytes | None:
        """A JPEG of at most ``side`` pixels each way; ``None`` where the picture is no larger, or cannot be read."""
        return await anyio.to_thread.run_sync(self._of, path, key, side, limiter=self._slots)

    def _of(self, path: Path, key: str, side: int) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = _made(path, side)
        if made is not None:
            self._keep(key, made)
        return made

    def _keep(self, key: str, made: bytes) -> None:
        with self._lock:
            self._bytes += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1])


def _made(path: Path, side: int) -> bytes | None:
    """The copy; a browser may still show what cannot be read here."""
    try:
        if max(pictures.size(path)) <= side:
            return None
        found = pictures.reduced(path, side)
    except SlimseekError:
        return None
    written = io.BytesIO()
    found.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()
