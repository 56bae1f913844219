"""What the service counts and measures, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from slimseek.search import Search

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64)
PHASES = ("wait", "encode", "search", "total")
REASONS = {401: "key", 403: "origin", 408: "slow", 413: "size", 421: "host", 429: "rate", 503: "queue"}
"""Why a request was refused, by the status of the answer."""
OUTCOMES = ("done", "refused")


class Metrics:
    """Those of one application, in a registry of its own; each is there from the start, at zero."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("slimseek_requests", "Requests by route and status", ("route", "status"),
                                registry=self.registry)  # fmt: skip
        seconds = Histogram("slimseek_seconds", "Seconds of a search or an embedding by phase", ("phase",),
                            buckets=SECONDS, registry=self.registry)  # fmt: skip
        self.seconds = {phase: seconds.labels(phase) for phase in PHASES}
        self.rows = Histogram("slimseek_batch_rows", "Rows of each batch that was encoded",
                              buckets=ROWS, registry=self.registry)  # fmt: skip
        refused = Counter("slimseek_refused", "Requests that were refused, by reason", ("reason",),
                          registry=self.registry)  # fmt: skip
        self.refused = {reason: refused.labels(reason) for reason in REASONS.values()}
        swaps = Counter("slimseek_swaps", "Changes to a new model or index", ("outcome",), registry=self.registry)
        self.swaps = {outcome: swaps.labels(outcome) for outcome in OUTCOMES}
        self._model = self._gauge("model_bytes", "Bytes of the model that is shipped", "model")
        self._index = self._gauge("index_bytes", "Bytes of the index in memory", "model")
        self._version = self._gauge("version", "How many models and indexes have been served, this one included")
        process = psutil.Process()
        self._gauge("resident_bytes", "Resident memory of the process").set_function(lambda: process.memory_info().rss)

    def watch(self, waiting: Callable[[], float]) -> None:
        """Ask for the length of the queue whenever metrics are asked for."""
        self._gauge("waiting", "Requests that are not answered yet").set_function(waiting)

    def serves(self, searches: dict[str, Search], version: int) -> None:
        """Note the sizes of what is served from now on."""
        for name, search in searches.items():
            stats = search.stats()
            self._model.labels(name).set(stats.model_bytes)
            self._index.labels(name).set(stats.index_bytes)
        self._version.set(version)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)

    async def text_now(self) -> bytes:
        """The same, for whoever may have to ask others for it."""
        return self.text()

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"slimseek_{name}", says, labels, registry=self.registry)


class _Together(Collector):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text.decode()):
                kept = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                kept.samples += [sample._replace(labels=sample.labels | {"replica": replica})
                                 for sample in family.samples]  # fmt: skip
        yield from found.values()


def together(texts: Mapping[str, bytes]) -> bytes:
    """The metrics of several services as one text: each of their samples has the label ``replica`` besides."""
    registry = CollectorRegistry()
    registry.register(_Together(texts))
    return generate_latest(registry)
