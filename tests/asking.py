"""Two searches that differ, requests to a service of them without a network, and a service that a user starts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from slimseek import choose, deploy, search, serve
from slimseek.schema import Precision
from slimseek.search import Search
from small import CORPUS, many_texts, tiny_bert, tiny_encoder


def two_searches(folder: Path) -> tuple[Search, Search]:
    """The compressed and the original search over the same sixty documents."""
    documents = {f"d{number}": text for number, text in enumerate(many_texts(60))}
    compressed, original = tiny_encoder(name="small", noise=0.5), tiny_encoder(name="big")
    search.index(compressed, documents, folder / "compressed", precision="int8")
    search.index(original, documents, folder / "original")
    return search.open(folder / "compressed", compressed), search.open(folder / "original", original)


class Client:
    """Requests to an app without a network."""

    def __init__(self, *served: Any, **settings: Any) -> None:
        self.app = serve.app(*served, **settings)
        self.transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)

    def __call__(self, url: str, method: str = "GET", **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(method, url, **arguments)

        return asyncio.run(send())

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Name and values of labels to value."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self("/metrics").text)
            for sample in family.samples
        }


# ---------------------------------------------------------------- a process of its own

SERVE = "from slimseek.cli import main; main()"


class Started:
    """``slimseek serve`` as a user starts it; its standard error is kept."""

    def __init__(self, *arguments: str, seconds: float) -> None:
        """Start it, and wait until it says where its page is."""
        self._seconds = seconds
        command = [sys.executable, "-c", SERVE, "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = self.line("search page: ").split()[2]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def line(self, start: str) -> str:
        """The first line that begins so, as soon as there is one."""
        self.until(lambda: any(line.startswith(start) for line in self.lines))
        return next(line for line in self.lines if line.startswith(start))

    def until(self, met: Callable[[], Any]) -> None:
        """Wait until it is so, while the process lives."""
        end = time.monotonic() + self._seconds
        while not met():
            assert time.monotonic() < end, "".join(self.lines)
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.01)


def two_packages(folder: Path, precision: Precision = "f32") -> None:
    """Two models with an index of the six documents each, in ``a`` and ``b`` as ``model`` and ``index``."""
    for seed, name in enumerate("ab"):
        tiny_bert(folder / "plain" / name, seed)
        deploy.deploy(folder / "plain" / name, "onnxruntime", folder / name / "model", texts=list(CORPUS.values()))
        search.index(choose.choose(folder / name / "model", 1), CORPUS, folder / name / "index", precision=precision)
