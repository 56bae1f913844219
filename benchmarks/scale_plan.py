"""A plan on paper for very many documents: nodes, hours and bytes, from what one machine encodes in a second.

    python benchmarks/scale_plan.py PACKAGE
    python benchmarks/scale_plan.py PACKAGE --data ../shared/data/scifact --documents 100000000 --cores 2

As many processes as cores, each with one thread and a package of its own, encode at once: what the workers of
``slimseek index --ray`` do on each machine. Prints the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from slimseek import choose, data, timing
from slimseek.indexes import bytes_of, rescore_bytes_of
from slimseek.scale import bulk
from slimseek.scale._documents import DOCUMENTS_IN_SHARD
from slimseek.schema import Precision
from slimseek.search import DOCUMENTS_IN_CHUNK

NODES = (1, 4, 16, 64)
SHARD = 5_000_000
"""Documents of one part of an index."""


@dataclass(frozen=True)
class Measured:
    """What one machine does.

    Attributes:
        rate: documents in a second, of all its cores together.
        cores: how many those are.
        dim: width of the vectors.
        characters: mean of a document.
        model_bytes: of the package, which each worker holds.
    """

    rate: float
    cores: int
    dim: int
    characters: float
    model_bytes: int


def hours(documents: int, rate: float, nodes: int) -> float:
    """Wall time of so many machines, each of which encodes ``rate`` documents in a second."""
    return documents / (rate * nodes) / 3600


def bytes_by_precision(documents: int, dim: int) -> dict[str, tuple[float, int, int]]:
    """Precision to bytes of a vector, bytes of all in memory, and bytes of finer vectors on disk."""
    found = {}
    for precision in get_args(Precision):
        size = bytes_of(documents, dim, precision)
        found[precision] = size / documents, size, rescore_bytes_of(documents, dim, precision)
    return found


def measure(package: str, texts: Sequence[str], cores: int, rounds: int) -> float:
    """Documents in a second: every process begins when all have opened the package; the slowest one counts."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(cores), context.Queue()
    processes = [context.Process(target=_encode, args=(package, texts, rounds, barrier, answers)) for _ in range(cores)]
    for process in processes:
        process.start()
    seconds = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return cores * rounds * len(texts) / max(seconds)


def _encode(package: str, texts: Sequence[str], rounds: int, barrier: Any, answers: Any) -> None:
    encoder = choose.choose(package, 1)
    encoder.documents(texts[:DOCUMENTS_IN_CHUNK])
    barrier.wait()
    start = time.perf_counter()
    for _ in range(rounds):
        for place in range(0, len(texts), DOCUMENTS_IN_CHUNK):
            encoder.documents(texts[place : place + DOCUMENTS_IN_CHUNK])
    answers.put(time.perf_counter() - start)


def tables(measured: Measured, documents: int) -> str:
    """The tables of the page, in Markdown."""
    shards = -(-documents // SHARD)
    text, held = documents * measured.characters, bulk.SHARDS_IN_CALL * DOCUMENTS_IN_SHARD
    lines = [
        f"Measured on one machine of {measured.cores} cores: {measured.rate:,.0f} documents a second "
        f"({measured.characters:,.0f} characters each), a package of {measured.model_bytes / 1e6:.1f} MB, "
        f"{measured.dim} dimensions.",
        "",
        f"| machines | hours for {documents / 1e6:,.0f} million | machine-hours |",
        "|---|---|---|",
        *(f"| {nodes} | {hours(documents, measured.rate, nodes):,.1f} | "
          f"{nodes * hours(documents, measured.rate, nodes):,.0f} |" for nodes in NODES),
        "",
        "| precision | bytes of a vector | GB in memory | GB of finer vectors on disk |",
        "|---|---|---|---|",
        *(f"| {precision} | {each:,.0f} | {size / 1e9:,.1f} | {finer / 1e9:,.1f} |"
          for precision, (each, size, finer) in bytes_by_precision(documents, measured.dim).items()),
        "",
        f"Through the network: {text / 1e9:,.0f} GB of text to the machines, and "
        f"{4 * documents * measured.dim / 1e9:,.0f} GB of vectors back. In {shards:,} parts of "
        f"{SHARD / 1e6:,.0f} million documents, the machine that writes them holds "
        f"{4 * held * measured.dim / 1e9:.1f} GB of vectors and {held * measured.characters / 1e9:.1f} GB of text at a "
        "time.",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--data", default="news")
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--sample", type=int, default=1024, help="documents to measure with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=timing.default_threads())
    asked = parser.parse_args()
    texts = list(data.load(asked.data).corpus.values())[: asked.sample]
    encoder = choose.choose(asked.package, 1)
    measured = Measured(
        rate=measure(asked.package, texts, asked.cores, asked.rounds), cores=asked.cores, dim=encoder.spec.dim,
        characters=sum(map(len, texts)) / len(texts), model_bytes=sum(encoder.shipped.values()),
    )  # fmt: skip
    print(tables(measured, asked.documents))


if __name__ == "__main__":
    main()
