r"""An encoder for text search: what each recipe and each alternative costs and keeps, in one run.

    python benchmarks/text_search.py --data ../shared/data --out benchmarks/results/text_search.json
    python benchmarks/text_search.py --model all-mpnet-base-v2 --collections xquad_en --work build/mpnet_search \
        --out benchmarks/results/text_search_mpnet.json

Quality: nDCG@10 on the test queries of scifact and xquad_en, paired against fp32 in ONNX Runtime. Time: medians of
interleaved blocks at three shapes and on the real queries. The alternatives are what a user has today: ONNX Runtime's
quantize_dynamic; NNCF's static int8 for OpenVINO, which is what sentence-transformers' OpenVINO export calls; Intel
Neural Compressor's static int8 in ONNX Runtime and in PyTorch's compiler, and torchao's int8 there
(benchmarks/_alternatives.py says what to install). Everything finished is kept in --work, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _alternatives
import msgspec
import numpy as np
from rich.console import Console

from slimseek import alternatives, choose, compress, data, deploy, evaluate, recipe, timing
from slimseek.backends.openvino import FILE as OPENVINO_FILE
from slimseek.collection import Collection, SearchSet
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically
from slimseek.plugins import require
from slimseek.progress import say, shown_on
from slimseek.schema import Batch, Model, Samples

COLLECTIONS = ("xquad_en", "scifact")
RECIPES = {
    "int8": ("onnxruntime", "openvino"),
    "int8-dynamic": ("onnxruntime",),
    "fp8": ("onnxruntime",),
    "int4": ("onnxruntime",),
    "int3": ("onnxruntime",),
    "int4-vocabulary": ("onnxruntime", "openvino"),
}
SHAPES = ((1, 12), (1, 128), (32, 128))
CALIBRATION = 300
BASELINE = "fp32 onnxruntime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="shorthands, or files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/text_search"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/text_search.json"))
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS)
    parser.add_argument("--without", nargs="+", default=(), help="words of alternatives to leave out, such as torchao")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="only quality, and a table without times")
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        original = choose.model(arguments.model)
        results = {"environment": msgspec.to_builtins(timing.environment(arguments.threads)), "collections": {}}
        for name in arguments.collections:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            collection = data.load(str(arguments.data / name))
            found = subjects(original, collection, arguments.recipes, arguments.without, place, arguments.threads)
            if not arguments.time:
                quality(collection, found, place)
            timed = {} if arguments.quality else costs(collection, found, place, arguments.threads)
            results["collections"][name] = table(found, place, timed)
        write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        if not arguments.quality:
            print_markdown(results)


def subjects(
    original: Model, collection: Collection, recipes: Sequence[str], without: Sequence[str], place: Path, threads: int
) -> dict[str, Callable[[], Encoder]]:
    """Name to a function that opens it; packages are written once, beside the seconds that the compression took."""
    samples = unseen(collection)
    found: dict[str, Callable[[], Encoder]] = {}
    package = packager(found, collection, place, threads)
    package(BASELINE, lambda: original, "onnxruntime")
    package("fp32 openvino", lambda: original, "openvino")
    found |= {
        name: open_subject
        for name, open_subject in others(original, samples.calibration, place, threads).items()
        if not any(word.lower() in name.lower() for word in without)
    }
    for shorthand in recipes:
        steps = recipe.load(shorthand)
        made: list[Model] = []

        def compressed(shorthand=shorthand, steps=steps, made=made) -> Model:  # type: ignore[no-untyped-def]
            if not made:
                start = time.perf_counter()
                made.append(compress.run(original, steps, samples).model)
                seconds_file(place, shorthand).write_text(json.dumps(time.perf_counter() - start))
            return made[0]

        for target in RECIPES.get(shorthand, ("onnxruntime",)):
            package(f"{Path(shorthand).stem} {target}", compressed, target)
    return found


def packager(
    found: dict[str, Callable[[], Encoder]], collection: Collection, place: Path, threads: int
) -> Callable[[str, Callable[[], Model], str], None]:
    """What writes a package of a name, a model and a target, unless it is there, and adds it to what is ``found``."""

    def package(name: str, model: Callable[[], Model], target: str) -> None:
        folder = place / name.replace(" ", "-")
        if not (folder / choose.PACKAGE).is_file():
            folder.mkdir(exist_ok=True)
            deploy.write(model(), target, folder, texts=list(collection.corpus.values())[:48], threads=threads)
        found[name] = lambda: choose.choose(folder, threads)

    return package


def unseen(collection: Collection) -> Samples:
    """What steps may look at: of the test queries none, since all are reported on. Where a collection has no others, a
    split would choose by a half of them.
    """
    return data.samples(collection, dataclasses.replace(data.split(collection), test=collection.qrels["test"]))


def others(original: Model, texts: Sequence[str], place: Path, threads: int) -> dict[str, Callable[[], Encoder]]:
    """The alternatives by name, calibrated on the same texts as ours."""

    def batches() -> list[Batch]:
        read = choose.encoder(original, "original", threads).input
        return [read([text]) for text in texts[:CALIBRATION]]

    def plain() -> Path:
        file = place / "plain.onnx"
        require("slimseek.backends._fusion").write(choose.family(original).to_onnx(original), file)
        return file

    def onnx_neural_compressor(name: str) -> Encoder:
        file = place / "onnx_neural_compressor" / "model.onnx"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            _alternatives.onnx_neural_compressor_static(plain(), batches(), file)
        return _alternatives.in_onnxruntime(name, original, file, threads)

    def nncf(name: str) -> Encoder:
        file = place / "nncf.xml"
        if not file.is_file():
            kind = require("nncf").ModelType.TRANSFORMER
            _alternatives.nncf_static(plain(), batches(), file, model_type=kind)
        return _alternatives.in_openvino(name, original, file, threads)

    def default(name: str) -> Encoder:
        package = place / "fp32-openvino" / OPENVINO_FILE
        return _alternatives.in_openvino(name, original, package, threads, "bf16")

    def neural_compressor(name: str) -> Encoder:
        folder = place / "neural_compressor"
        return _alternatives.neural_compressor_static(name, original, batches(), folder, threads)

    def torchao(name: str) -> Encoder:
        dynamic = name.startswith("dynamic")
        file = place / f"torchao-{'dynamic' if dynamic else 'weights'}.pt"
        return _alternatives.torchao_int8(name, original, file, threads, dynamic=dynamic)

    named: dict[str, Callable[[str], Encoder]] = {
        "dynamic int8 onnxruntime (theirs)": lambda name: alternatives.dynamic_int8(original, threads),
        "static int8 onnxruntime (Neural Compressor)": onnx_neural_compressor,
        "static int8 openvino (NNCF)": nncf,
        "bf16 openvino (its default)": default,
        "static int8 pytorch (Neural Compressor)": neural_compressor,
        "dynamic int8 pytorch (torchao)": torchao,
        "int8 weights pytorch (torchao)": torchao,
    }
    return {name: lambda name=name, make=make: make(name) for name, make in named.items()}  # type: ignore[misc]


def seconds_file(place: Path, shorthand: str) -> Path:
    return place / f"seconds-{Path(shorthand).stem}.json"


def quality(
    collection: Collection, found: dict[str, Callable[[], Encoder]], place: Path,
    metrics: Sequence[str] = evaluate.METRICS,
) -> None:  # fmt: skip
    """Scores of every subject, one file each; what is there is not computed again."""
    test = data.search_set(collection, collection.qrels["test"], "test")
    for name, open_subject in found.items():
        file = place / f"quality-{name.replace(' ', '-')}.json"
        if file.is_file():
            continue
        encoder = open_subject()
        say(f"{collection.name}: {name}")
        scored = evaluate.quality(encoder, test, metrics)
        invariance = evaluate.invariance(encoder, list(test.queries.values())[:256])
        document = {"measurements": scored.measurements, "ranking": {q: r[:10] for q, r in scored.ranking.items()},
                    "invariance": invariance.value, "size": sum(encoder.shipped.values()),
                    "weights": encoder.shipped["weights"]}  # fmt: skip
        write_atomically(file, msgspec.json.encode(document))


def costs(
    collection: Collection, found: dict[str, Callable[[], Encoder]], place: Path, threads: int
) -> dict[str, dict[str, float]]:
    """What each subject takes: times at each shape and on real queries, memory, seconds to compress."""
    test = data.search_set(collection, collection.qrels["test"], "test")
    clocked = clock({name: open_subject() for name, open_subject in found.items()}, test)
    return {name: row | footprint(place, name, threads) for name, row in clocked.items()}


def table(
    found: dict[str, Callable[[], Encoder]], place: Path, timed: dict[str, dict[str, float]]
) -> dict[str, object]:
    """One row a subject: bytes, quality against the baseline, and what was timed."""
    rows: dict[str, object] = {}
    measured = {name: read(place, name) for name in found}
    for name in found:
        change = evaluate.compare(measured[BASELINE]["score"], measured[name]["score"])
        rows[name] = {
            "size_bytes": measured[name]["size"],
            "weights_bytes": measured[name]["weights"],
            "ndcg@10": change.after,
            "kept": 1 + change.relative,
            "kept_interval": [1 + change.interval[0], 1 + change.interval[1]],
            "n": change.n,
            "overlap@10": evaluate.overlap(measured[BASELINE]["ranking"], measured[name]["ranking"]),
            "invariance": measured[name]["invariance"],
            **timed.get(name, {}),
        }
    return rows


def footprint(place: Path, name: str, threads: int) -> dict[str, float]:
    """Of our packages: peak memory of a fresh process that answers one query, and the seconds to compress."""
    folder, seconds = place / name.replace(" ", "-"), seconds_file(place, name.partition(" ")[0])
    if not (folder / choose.PACKAGE).is_file():
        return {}
    found: dict[str, float] = {"peak_memory_bytes": timing.fresh_start(str(folder), threads).peak_memory_bytes}
    return found | ({"compress_seconds": json.loads(seconds.read_text())} if seconds.is_file() else {})


def read(place: Path, name: str, metric: str = "ndcg@10") -> dict[str, object]:
    """What :func:`quality` kept of a subject, with the ``score`` that counts."""
    document = json.loads((place / f"quality-{name.replace(' ', '-')}.json").read_bytes())
    score = next(m for m in document["measurements"] if m["name"] == metric)
    return document | {"score": msgspec.convert(score, evaluate.Measurement)}


def clock(encoders: dict[str, Encoder], test: SearchSet) -> dict[str, dict[str, float]]:
    """Milliseconds a call at fixed shapes (runtime alone), and of a real query (tokenizer included)."""
    generator = np.random.default_rng(0)
    read = next(iter(encoders.values())).input
    rows = [row for row in read.rows(list(test.corpus.values())[:400]) if len(row) >= 128]
    times: dict[str, dict[str, float]] = {name: {} for name in encoders}
    for count, length in SHAPES:
        chosen = [
            rows[int(position)][: length - 1] + rows[0][-1:] for position in generator.integers(0, len(rows), count)
        ]
        calls = {}
        for name, encoder in encoders.items():
            # A cut vocabulary has other ids for the same tokens: every id is brought into its range.
            limit = 5000
            batch = encoder.input.batch([[token % limit for token in row] for row in chosen], length)
            calls[name] = lambda number, e=encoder, b=batch: e.encode(b)
        seconds = timing.interleaved(calls, rounds=7, calls=30 if count * length < 200 else 2, warm_up=3)
        for name, values in seconds.items():
            times[name][f"ms_{count}x{length}"] = float(np.median(values)) * 1000
    queries = list(test.queries.values())[:200]
    calls = {}
    for name, encoder in encoders.items():
        calls[name] = lambda number, e=encoder: e.queries([queries[number % len(queries)]])
    seconds = timing.interleaved(calls, rounds=5, calls=40, warm_up=3)
    for name, values in seconds.items():
        times[name] |= {f"query_ms_p{p}": float(np.percentile(values, p)) * 1000 for p in (50, 95)}
    return times


def print_markdown(results: dict[str, object]) -> None:
    """The tables as they stand in the README."""
    for collection, rows in results["collections"].items():  # type: ignore[attr-defined]
        base = rows[BASELINE]
        print(f"\n{collection}\n")
        columns = ("MB shipped", "nDCG@10 kept (95 %)", "invariance", "query p50", "1x12", "1x128", "32x128", "memory",
                   "to compress")  # fmt: skip
        print(f"| | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 1) + "|")
        for name, row in rows.items():
            low, high = row["kept_interval"]
            times = [f"ms_{count}x{length}" for count, length in SHAPES]
            speeds = " | ".join(f"{base[shape] / row[shape]:.2f}" for shape in times)
            memory = f"{row['peak_memory_bytes'] / 1e6:.0f} MB" if "peak_memory_bytes" in row else ""
            seconds = f"{row['compress_seconds']:.0f} s" if "compress_seconds" in row else ""
            print(
                f"| {name} | {row['size_bytes'] / 1e6:.1f} | {row['kept']:.1%} ({low:.1%} to {high:.1%}) "
                f"| {row['invariance']:.5f} | {row['query_ms_p50']:.2f} ms | {speeds} | {memory} | {seconds} |"
            )


if __name__ == "__main__":
    main()
