"""Two searches that differ, and requests to a service of them without a network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from slimseek import search, serve
from slimseek.search import Search
from small import many_texts, tiny_encoder


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
