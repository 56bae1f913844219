"""What the figures of a run are called: the label of each, what it is, and the words for better and worse."""

from __future__ import annotations

from slimseek.report._words import later

LABELS = {
    "size": (later("Size"), later("all that is shipped")),
    "size_weights": (later("Weights"), later("their part of the size")),
    "size_rest": (later("Rest"), later("tokenizer, graph, settings")),
    "parameters": (later("Parameters"), ""),
    "macs": (later("Multiply-accumulates"), later("one item; a text has 128 tokens")),
    "latency_p50": (later("Latency p50"), later("one query, median")),
    "latency_p95": (later("Latency p95"), later("one query, 95th percentile")),
    "latency_p99": (later("Latency p99"), later("one query, 99th percentile")),
    "latency_first_token": (later("First token"), later("what is said first in a recording")),
    "throughput": (later("Throughput"), later("items in batches")),
    "cold_start": (later("Cold start"), later("load to first answer")),
    "peak_memory": (later("Peak memory"), ""),
    "index_size": (later("Index"), later("vectors of all documents")),
    "rescore_size": (later("Finer vectors"), later("on disk, to rank candidates")),
    "invariance": (later("Invariance"), later("least cosine, alone or in a batch")),
    "real_time_factor": (later("Real-time factor"), later("computing for a second of sound")),
}
"""Label and explanation of each figure that is not a metric."""

_SMALLER, _LARGER = later("{ratio} times smaller"), later("{ratio} times larger")
_FEWER, _MORE = later("{ratio} times fewer"), later("{ratio} times more")
_FASTER, _SLOWER = later("{ratio} times faster"), later("{ratio} times slower")
WORDS = {
    "size": (_SMALLER, _LARGER, later("no smaller")),
    "parameters": (_FEWER, _MORE, later("no fewer")),
    "macs": (_FEWER, _MORE, later("no fewer")),
    "latency": (_FASTER, _SLOWER, later("no faster")),
    "throughput": (_FASTER, _SLOWER, later("no faster")),
    "cold": (_FASTER, _SLOWER, later("no faster")),
    "peak": (later("{ratio} times less"), _MORE, later("no less")),
    "real": (_FASTER, _SLOWER, later("no faster")),
    "index": (_SMALLER, _LARGER, later("no smaller")),
}
"""How each figure is called when it is better, worse, or neither."""
