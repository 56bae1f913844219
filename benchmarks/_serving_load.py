"""A load generator in a process of its own, pinned to a core; benchmarks/serving.py starts it.

    python benchmarks/_serving_load.py --url http://127.0.0.1:8000/ --queries FILE.json --rate 200 --seconds 10 --core 1

With --rate requests come at random times (Poisson) whether or not earlier ones are answered, and a latency counts from
the time at which its request was due. With --requests so many are sent by --clients, each of which waits for its
answer. What was measured is printed as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
import urllib.parse
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

MOST_CONNECTIONS = 400
PATIENCE = 60.0


class Pool:
    """Connections that are kept open, and made as they are needed."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        self.host, self.port = parts.hostname, parts.port or 80
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.slots = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, query: str) -> int:
        """The status of the answer, which is read to its end; 0 where there was none. A connection that the server
        closed while nothing used it, as servers do after some seconds, is made anew.
        """
        async with self.slots:
            while self.free:
                reader, writer = self.free.pop()
                if not reader.at_eof():
                    with suppress(ConnectionResetError, asyncio.IncompleteReadError):
                        return await self._asked(query, reader, writer)
            try:
                return await self._asked(query, *await asyncio.open_connection(self.host, self.port))
            except (OSError, asyncio.IncompleteReadError):
                return 0

    async def _asked(self, query: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        path = f"/search?k=10&q={urllib.parse.quote(query)}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            writer.close()
        else:
            self.free.append((reader, writer))
        return int(lines[0].split()[1])


class Record:
    """Latencies in milliseconds by status."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.latencies: dict[int, list[float]] = {}

    def add(self, status: int, due: float) -> None:
        self.latencies.setdefault(status, []).append(1000 * (time.perf_counter() - due))

    def summary(self, offered: float, late: float) -> dict[str, object]:
        """What was sent and answered: the offered rate, how late the generator itself was at worst, percentiles."""
        seconds = time.perf_counter() - self.begin
        found = {
            str(status): {"n": len(values)} | {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}
            for status, values in sorted(self.latencies.items())
        }
        done = Counter({status: len(values) for status, values in self.latencies.items()})
        return {"offered": offered, "seconds": round(seconds, 3), "answered": round(done[200] / seconds, 2),
                "failed": done.total() - done[200], "late_milliseconds": round(late, 3), "statuses": found}  # fmt: skip


async def open_loop(pool: Pool, queries: list[str], rate: float, seconds: float, seed: int) -> dict[str, object]:
    """Requests at random times, ``rate`` a second on average."""
    chance, record, tasks, late = random.Random(seed), Record(), set(), 0.0

    async def one(due: float) -> None:
        record.add(await asyncio.wait_for(pool.ask(chance.choice(queries)), PATIENCE), due)

    due = time.perf_counter()
    end = due + seconds
    while due < end:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        late = max(late, -1000 * wait)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    return record.summary(rate, late)


async def closed_loop(pool: Pool, queries: list[str], requests: int, clients: int, seed: int) -> dict[str, object]:
    """So many requests, as fast as they are answered."""
    chance, record, left = random.Random(seed), Record(), iter(range(requests))

    async def client() -> None:
        for _ in left:
            due = time.perf_counter()
            record.add(await asyncio.wait_for(pool.ask(chance.choice(queries)), PATIENCE), due)

    await asyncio.gather(*(client() for _ in range(clients)))
    return record.summary(0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--core", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {given.core})
    queries = json.loads(given.queries.read_text("utf-8"))

    async def run() -> dict[str, object]:
        pool = Pool(given.url)
        if given.rate > 0:
            return await open_loop(pool, queries, given.rate, given.seconds, given.seed)
        return await closed_loop(pool, queries, given.requests, given.clients, given.seed)

    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    main()
