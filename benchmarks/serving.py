r"""Our service against today's usual one: queries a second, memory, cold start, a long run, and too many requests.

    python benchmarks/serving.py --prepare               # the collection, the vectors and the packages, once
    python benchmarks/serving.py                         # everything; --only rate memory start soak overload
    python benchmarks/serving.py --small --work build/serving-small     # a few minutes, to see that it runs
    python benchmarks/serving.py --package static        # the soak alone: a million requests to the smallest package

The collection is 100,000 distinct passages: documents of scifact and xquad_en and the utterances of banking77 are cut
at the ends of sentences, and windows of three sentences in a row, then of two, then of one are taken until there are
enough. They overlap, as passages of one document do; queries are all of scifact's and xquad_en's. Ours is minilm by the
recipe int8 and a graph of int8 vectors (usearch), as `slimseek serve` runs it; theirs is sentence-transformers in
float32 with a flat or an HNSW index of faiss behind FastAPI (benchmarks/_serving_theirs.py). The service has one core,
the load generator (benchmarks/_serving_load.py) the other.

- rate: the most requests a second, at random times, with 95 % answered within 50 ms and none failed: doubled until it
  fails, halved between, and confirmed by a run three times as long.
- memory: resident and proportional set size after 500 queries. start: from the start of the process to the first
  answer, the median of five. soak: --requests, a tenth of 1 to 500 words; resident memory after each twentieth.
  With --package static the model is a table of token vectors made of minilm over 500 passages: what may grow over so
  many requests is the service, and this one costs little else.
- overload: four times the rate, what is refused and how fast, and the latency at half the rate two seconds later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import text_search
from rich.console import Console

from slimseek import choose, compress, data, deploy, index_folder, recipe, search, timing
from slimseek.folder import write_atomically
from slimseek.plugins import require
from slimseek.progress import say, shown_on, track
from slimseek.schema import Array, Recipe, RecipeStep

HERE = Path(__file__).parent
SOURCES = ("scifact", "xquad_en", "banking77")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])")
WINDOWS = (3, 2, 1)
LEAST_WORDS = 3
PASSAGES = 100_000
CHUNK = 2000
P95_MILLISECONDS = 50
SERVER_CORE, LOAD_CORE = 0, 1
SECONDS_TO_START = 120
LENGTHS = 500
SUBJECTS = {
    "ours": (),
    "theirs flat": ("--kind", "flat"),
    "theirs hnsw": ("--kind", "hnsw"),
    "theirs flat, in the loop": ("--kind", "flat", "--loop"),
    "theirs hnsw, in the loop": ("--kind", "hnsw", "--loop"),
}
PARTS = ("rate", "memory", "start", "soak", "overload", "same")
TABLE = Recipe(name="static", steps=(RecipeStep(method="distil.static", parameters={"steps": 50}),))
PASSAGES_OF_TABLE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/serving"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    parser.add_argument("--target", default="onnxruntime", help="runtime of our package")
    parser.add_argument("--package", choices=("int8", "static"), default="int8", help="static: the soak alone")
    parser.add_argument("--kind", default="usearch", help="kind of our index")
    parser.add_argument("--threads", type=int, default=1, help="of each runtime; the service has one core")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--seconds", type=float, default=10, help="of a try at one rate")
    parser.add_argument("--passages", type=int, default=PASSAGES)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--prepare", action="store_true", help="make what is measured, and end")
    parser.add_argument("--small", action="store_true", help="1,000 passages, tries of a second, 2,000 requests")
    given = parser.parse_args()
    if given.small:
        given.passages, given.seconds, given.requests = 1000, 1.0, 2000
    if given.package == "static":
        given.passages = PASSAGES_OF_TABLE
        given.work = given.work.with_name(given.work.name + "-static")
    with shown_on(Console(stderr=True)):
        prepare(given)
        if given.prepare:
            return
        results = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
        if given.package == "static":
            results.setdefault("soak", {})["ours, static"] = soak(given, "ours", results)
            write_atomically(given.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
            return
        results["environment"] = msgspec.to_builtins(timing.environment(given.threads))
        results["passages"] = given.passages
        for part in given.only:
            for subject in given.subjects:
                measured = MEASURES[part](given, subject, results)
                if measured is not None:
                    results.setdefault(part, {})[subject] = measured
                    say(f"{part}, {subject}: {json.dumps(measured)[:300]}")
                    write_atomically(given.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        print_markdown(results)


# ---------------------------------------------------------------- what is measured


def prepare(given: argparse.Namespace) -> None:
    """Passages, queries, both models and both sets of vectors, each made once in --work."""
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    collections = [data.load(str(given.data / name)) for name in SOURCES]
    texts = made(work / "texts.json", lambda: passages(collections, given.passages))
    queries = [text for one in collections[:2] for text in one.queries.values()]
    made(work / "queries.json", lambda: queries)
    made(work / "lengths.json", lambda: of_random_lengths(list(texts.values())))
    package, index = work / f"package-{given.target}", work / f"index-{given.target}-{given.kind}"
    if not (package / choose.PACKAGE).is_file():
        package.mkdir(exist_ok=True)
        steps = TABLE if given.package == "static" else recipe.load("int8")
        small = compress.run(choose.model("minilm"), steps, text_search.unseen(collections[0])).model
        deploy.write(small, given.target, package, texts=list(texts.values())[:48], threads=timing.default_threads())
    if not (index / index_folder.MANIFEST).is_file():
        encoder = choose.choose(package)
        place = work / f"ours-{given.target}"
        search.index(encoder, texts, index, kind=given.kind, precision="int8",
                     encode=lambda chosen: vectors(place, chosen, encoder.documents))  # fmt: skip
    if not (work / "theirs.npy").is_file() and given.package == "int8":
        library = require("sentence_transformers")
        model = library.SentenceTransformer(str(plain_folder(work)), device="cpu")
        encode = lambda chosen: model.encode(list(chosen), normalize_embeddings=True)  # noqa: E731
        np.save(work / "theirs.npy", vectors(work / "theirs", list(texts.values()), encode), allow_pickle=False)


def made(file: Path, make: Callable[[], Any]) -> Any:
    """What a file of JSON holds, which is written first where it is not there."""
    if not file.is_file():
        write_atomically(file, json.dumps(make()).encode())
    return json.loads(file.read_text("utf-8"))


def passages(collections: Sequence[Any], wanted: int) -> dict[str, str]:
    """Id to passage: windows of sentences, distinct, in the order of the documents."""
    cut = {}
    for one in collections:
        for name, text in (one.queries if one.labelled else one.corpus).items():
            cut[name] = SENTENCE.split(" ".join(text.split()))
    found: dict[str, str] = {}
    for width in WINDOWS:
        for name, sentences in cut.items():
            for start in range(max(1, len(sentences) - width + 1)):
                text = " ".join(sentences[start : start + width])
                if len(text.split()) >= LEAST_WORDS:
                    found.setdefault(text, f"{name}:{start}+{width}")
                if len(found) == wanted:
                    return {name: text for text, name in found.items()}
    raise SystemExit(f"the collections give {len(found)} passages of {wanted}")


def of_random_lengths(texts: Sequence[str]) -> list[str]:
    """A query of each length from 1 to 500 words, made of passages in a row."""
    words, chance = " ".join(texts[:2000]).split(), random.Random(0)
    starts = [chance.randrange(len(words) - LENGTHS) for _ in range(LENGTHS)]
    return [" ".join(words[start : start + length + 1]) for length, start in enumerate(starts)]


def vectors(folder: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], Array]) -> Array:
    """Float32 [n, dim] of all texts; every 2,000 are kept, so that a killed run goes on."""
    folder.mkdir(exist_ok=True)
    parts = []
    with track(f"encode, {folder.name}", len(texts)) as advance:
        for start in range(0, len(texts), CHUNK):
            file = folder / f"{start}.npy"
            if not file.is_file():
                np.save(folder / "part.npy", np.asarray(encode(texts[start : start + CHUNK]), np.float32))
                (folder / "part.npy").rename(file)
            parts.append(np.load(file, allow_pickle=False))
            advance(len(parts[-1]))
    return np.concatenate(parts)


def plain_folder(work: Path) -> Path:
    """MiniLM as sentence-transformers reads it."""
    from slimseek.rebuild import rebuild

    if not (work / "plain").is_dir():
        rebuild("minilm", work / "plain")
    return work / "plain"


# ---------------------------------------------------------------- the services


@contextlib.contextmanager
def served(given: argparse.Namespace, subject: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """A service on its core: its address, its process, and the seconds from its start to its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    work = given.work.absolute()
    if subject == "ours":
        command = ["-c", "from slimseek.cli import main; main()", "serve", str(work / f"package-{given.target}"),
                   "--index", str(work / f"index-{given.target}-{given.kind}")]  # fmt: skip
    else:
        command = [str(HERE / "_serving_theirs.py"), "--model", str(work / "plain"), "--texts",
                   str(work / "texts.json"), "--vectors", str(work / "theirs.npy"), *SUBJECTS[subject]]  # fmt: skip
    command += ["--port", str(port), "--threads", str(given.threads)]
    log = (given.work / "service.log").open("w+b")
    begin = time.perf_counter()
    with on_core(SERVER_CORE):
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/"
        answer(url, "a first query", process)
        yield url, psutil.Process(process.pid), time.perf_counter() - begin
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"{subject} ended: {log.read().decode()[-2000:]}")
    finally:
        process.terminate()
        process.wait(SECONDS_TO_START)
        log.close()


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process, and those that it starts meanwhile, on one core; no change where there is but one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < 2:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def answer(url: str, query: str, process: subprocess.Popen[bytes] | None = None) -> list[str]:
    """The ids that a service finds; of one that starts, as soon as it answers."""
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            with urllib.request.urlopen(f"{url}search?k=10&q={urllib.parse.quote(query)}", timeout=60) as response:
                return [hit["id"] for hit in json.load(response)["results"]]
        except OSError:
            if time.monotonic() > end or (process is not None and process.poll() is not None):
                raise
            time.sleep(0.005)


def load(given: argparse.Namespace, url: str, *arguments: Any, queries: str = "queries") -> dict[str, Any]:
    """What the load generator measured, on the other core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    command = [sys.executable, str(HERE / "_serving_load.py"), "--url", url, "--queries",
               str(given.work / f"{queries}.json"), *map(str, arguments)]  # fmt: skip
    command += ["--core", str(LOAD_CORE)] if cores > 1 else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---------------------------------------------------------------- the measures


def rate(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, Any]:
    """The most requests a second that are answered in time."""
    with served(given, subject) as (url, _, _):
        load(given, url, "--requests", 200, "--clients", 2)
        tried: dict[float, dict[str, Any]] = {}

        def holds(offered: float, times: int = 1) -> bool:
            tried[offered] = load(given, url, "--rate", offered, "--seconds", times * given.seconds)
            time.sleep(1)
            return in_time(tried[offered])

        low, high = 0.0, 8.0
        while holds(high):
            low, high = high, 2 * high
        while high - low > max(1.0, 0.03 * high):
            middle = round((low + high) / 2, 1)
            low, high = (middle, high) if holds(middle) else (low, middle)
        while low > 1 and not holds(low, 3):
            low = round(0.95 * low, 1)
        return {"queries_a_second": low, "confirmed": tried.get(low), "tries": list(tried.values())}


def in_time(found: dict[str, Any]) -> bool:
    """Whether none failed, 95 % were within the limit, and the generator itself was not late by as much."""
    return (
        found["failed"] == 0
        and found["statuses"]["200"]["p95"] <= P95_MILLISECONDS
        and found["late_milliseconds"] < P95_MILLISECONDS
    )


def memory(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, int]:
    """Bytes after 500 queries."""
    with served(given, subject) as (url, process, _):
        load(given, url, "--requests", 500, "--clients", 4)
        full = process.memory_full_info()
        return {"rss": full.rss, "pss": getattr(full, "pss", 0), "uss": full.uss}


def start(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the start of the process to the first answer; files are in the system's cache."""
    seconds = []
    for _ in range(2 if given.small else 6):
        with served(given, subject) as (_, _, spent):
            seconds.append(round(spent, 3))
    return {"seconds": statistics.median(seconds[1:]), "all": seconds[1:]}


def soak(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, Any] | None:
    """Ours alone: memory over many requests, a tenth of which are of 500 random lengths."""
    if subject != "ours":
        return None
    resident, failed, part = [], 0, given.requests // 20
    with served(given, subject) as (url, process, _):
        for number in range(20):
            failed += load(given, url, "--requests", part * 9 // 10, "--seed", number)["failed"]
            failed += load(given, url, "--requests", part // 10, "--seed", number, queries="lengths")["failed"]
            resident.append(process.memory_info().rss)
            say(f"soak: {number + 1} of 20 parts, {failed} failed, {resident[-1] / 1e6:.1f} MB")
    return {"requests": 20 * (part * 9 // 10 + part // 10), "failed": failed, "resident": resident,
            "growth_after_a_tenth": resident[-1] - resident[1]}  # fmt: skip


def overload(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, Any]:
    """Four times what it can, and half of it two seconds later."""
    most = results.get("rate", {}).get(subject, {}).get("queries_a_second", 0) or 20.0
    with served(given, subject) as (url, _, _):
        load(given, url, "--requests", 200, "--clients", 2)
        during = load(given, url, "--rate", 4 * most, "--seconds", given.seconds)
        time.sleep(2)
        return {"during": during, "after": load(given, url, "--rate", most / 2, "--seconds", given.seconds)}


def same(given: argparse.Namespace, subject: str, results: dict[str, Any]) -> dict[str, Any]:
    """The share of the first ten of an exact search in float32 that a service finds, over 200 queries."""
    queries = json.loads((given.work / "queries.json").read_text("utf-8"))[:200]
    with served(given, "theirs flat") as (url, _, _):
        wanted = [set(answer(url, query)) for query in queries]
    with served(given, subject) as (url, _, _):
        found = [len(set(answer(url, query)) & one) / len(one) for query, one in zip(queries, wanted, strict=True)]
    return {"overlap_at_10": round(float(np.mean(found)), 4)}


MEASURES: dict[str, Callable[[argparse.Namespace, str, dict[str, Any]], dict[str, Any] | None]] = {
    "rate": rate, "memory": memory, "start": start, "soak": soak, "overload": overload, "same": same,
}  # fmt: skip


def print_markdown(results: dict[str, Any]) -> None:
    """The table of the page."""
    print("| service | queries a second | p95 ms | RSS MB | PSS MB | first answer s | overlap@10 |")
    print("|---|---|---|---|---|---|---|")
    for subject in SUBJECTS:
        one = {part: results.get(part, {}).get(subject, {}) for part in PARTS}
        confirmed = (one["rate"].get("confirmed") or {}).get("statuses", {}).get("200", {})
        print(f"| {subject} | {one['rate'].get('queries_a_second', '')} | {confirmed.get('p95', '')} | "
              f"{one['memory'].get('rss', 0) / 1e6:.0f} | {one['memory'].get('pss', 0) / 1e6:.0f} | "
              f"{one['start'].get('seconds', '')} | {one['same'].get('overlap_at_10', '')} |")  # fmt: skip


if __name__ == "__main__":
    main()
