"""One artifact in every runtime: what each package takes, how fast it answers, and whether the search finds the same.

    slimseek setup paddlelite
    pip install 'slimseek[litert,executorch,tensorrt]'
    python benchmarks/deployment.py --data ../shared/data --quality
    python benchmarks/deployment.py --data ../shared/data --time

MiniLM on xquad_en, EfficientNet-Lite0 on photographs of grocery128 and a keyword spotter on spoken digits, each in
fp32, with integer weights, and with rounded inputs too. Parity is what ``slimseek deploy`` measures against the
artifact; quality is nDCG@10 of the test queries through the package, or hit@1 (called recall@1 in image search), paired
against fp32 in ONNX Runtime; times are medians of interleaved calls, as multiples of that. A cell without a figure has
the reason. Everything finished is kept in --work; models that are not named keep their rows in --out. The tables that
are printed are those of docs/deploying.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import array_networks
import msgspec
import numpy as np
import text_search
from rich.console import Console

from slimseek import choose, compress, data, deploy, evaluate, plugins, similar, timing
from slimseek.choose import Package
from slimseek.collection import Collection
from slimseek.encoder import Encoder
from slimseek.errors import SlimseekError
from slimseek.folder import write_atomically
from slimseek.measurement import Measurement
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Recipe, RecipeStep

BASELINE = "fp32 onnxruntime"
WEIGHTS = RecipeStep(method="quantize.weights_int", parameters={"bits": 8})
FORMS: dict[str, tuple[RecipeStep, ...]] = {
    "fp32": (),
    "int8 weights": (WEIGHTS,),
    "int8 static": (
        RecipeStep(method="quantize.smooth", parameters={}),
        WEIGHTS,
        RecipeStep(method="quantize.activations_int", parameters={"mode": "static", "estimator": "percentile"}),
    ),
}
BATCH = 16
METRICS = {"minilm": "ndcg@10", "efficientnet_lite0": "hit@1", "dscnn_kws12": "ndcg@10"}
LABELS = {"ndcg@10": "nDCG@10", "hit@1": "recall@1"}
DOCUMENTS, QUERIES = 1000, 400
"""Photographs, of those in grocery128."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/deployment"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deployment.json"))
    parser.add_argument("--models", nargs="+", default=["minilm", "efficientnet_lite0", "dscnn_kws12"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="packages, parity and quality, no time")
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        results = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {"models": {}}
        if not arguments.quality:  # times are what hangs on it
            results["environment"] = msgspec.to_builtins(timing.environment(arguments.threads))
        for name in arguments.models:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            model, collection = source(name, arguments.data, place)
            if not arguments.time:
                packages(model, collection, place, arguments.threads)
                quality(collection, place, METRICS[name], arguments.threads)
            times = {} if arguments.quality else clock(opened(place, arguments.threads), collection)
            results["models"][name] = table(place, times)
            write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        print_markdown(results)


def source(name: str, path: Path, place: Path) -> tuple[Model, Collection]:
    if name == "minilm":
        return choose.model(name), data.load(str(path / "xquad_en"))
    if name == "efficientnet_lite0":
        return choose.model("efficientnet-lite0"), photographs(path)
    file, collection = array_networks.NETWORKS[name](path, place)
    return choose.model(file), data.load(str(collection))


def photographs(path: Path) -> Collection:
    """Products to find by a photograph of the test split, in a part of grocery128."""
    whole = similar.similar(data.load(str(path / "grocery128")))
    generator = np.random.default_rng(0)

    def some(names: Iterable[str], most: int) -> list[str]:
        return [str(name) for name in generator.permutation(list(names))[:most]]

    corpus = {name: whole.corpus[name] for name in some(whole.corpus, DOCUMENTS)}
    asked = {split: some(rows, QUERIES) for split, rows in whole.qrels.items()}
    qrels = {
        split: {query: row for query in names
                if (row := {name: value for name, value in whole.qrels[split][query].items() if name in corpus})}
        for split, names in asked.items()
    }  # fmt: skip
    queries = {query: whole.queries[query] for rows in qrels.values() for query in rows}
    return dataclasses.replace(whole, corpus=corpus, queries=queries, qrels=qrels)


def packages(model: Model, collection: Collection, place: Path, threads: int) -> None:
    """Every form for every target, and beside them why some are not there."""
    samples, texts = text_search.unseen(collection), list(collection.items.values())[:48]
    for form, steps in FORMS.items():
        made: list[Model] = []
        for target, missing in deploy.targets().items():
            folder, file = place / key(form, target), place / f"reason-{key(form, target)}.json"
            if (folder / choose.PACKAGE).is_file() or file.is_file():
                continue
            made = made or [compress.run(model, Recipe(steps=steps), samples).model if steps else model]
            reason = missing or refused(made[0], target, folder, texts, threads)
            if reason:
                say(f"{form} {target}: {reason}")
                write_atomically(file, json.dumps(reason).encode())


def refused(model: Model, target: str, folder: Path, texts: list[str], threads: int) -> str:
    """Why a target does not take the model; ``""`` where its package is written."""
    folder.mkdir(exist_ok=True)
    try:
        ready = deploy.check_target(target, model)
        deploy.write(model, target, folder, texts=texts, threads=threads, ready=ready)
    except SlimseekError as error:
        return str(error)
    return ""


def quality(collection: Collection, place: Path, metric: str, threads: int) -> None:
    """The metric of each query through each package; of one that does not run here, through its stand-in."""
    test = data.search_set(collection, collection.qrels["test"], "test")
    for name, package in written(place).items():
        file = place / f"quality-{name.replace(' ', '-')}.json"
        if not file.is_file():
            say(f"{collection.name}: {name}")
            run = choose.choose if package.not_run is msgspec.UNSET else choose.stand_in
            found = evaluate.quality(run(folder_of(place, name), threads), test, [metric]).get(metric)
            write_atomically(file, msgspec.json.encode(found))


def opened(place: Path, threads: int) -> dict[str, Encoder]:
    """The packages that run here."""
    return {
        name: choose.choose(folder_of(place, name), threads)
        for name, package in written(place).items() if package.not_run is msgspec.UNSET
    }  # fmt: skip


def table(place: Path, times: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, object]]:
    """One row a form and target; a row without a package has the reason."""
    found, base = written(place), score(place, BASELINE)
    rows: dict[str, dict[str, object]] = {}
    for form in FORMS:
        for target in plugins.names("backends"):
            name, reason = f"{form} {target}", place / f"reason-{key(form, target)}.json"
            if name not in found:
                rows[name] = {"reason": json.loads(reason.read_text()) if reason.is_file() else "not made"}
                continue
            package, change = found[name], evaluate.compare(base, score(place, name))
            size = sum(choose.sizes(package).values())
            failed = next((gate.detail for gate in package.gates if gate.status == "failed"), "")
            rows[name] = {
                "size_bytes": size, "cosine": package.parity["cosine_mean"],
                "overlap@10": package.parity["top10_overlap"],
                "kept": 1 + change.relative, "kept_interval": [1 + end for end in change.interval], "n": change.n,
                "not_run": package.not_run or "", "failed": failed, **times.get(name, {}),
            }  # fmt: skip
    return rows


def clock(encoders: dict[str, Encoder], collection: Collection) -> dict[str, dict[str, float]]:
    """Milliseconds of one query and of a batch of documents, in turns."""
    queries, documents = list(collection.queries.values())[:40], list(collection.items.values())[:BATCH]

    def one(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.queries([queries[number % len(queries)]])

    def batch(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.documents(documents)

    single = timing.interleaved({name: one(e) for name, e in encoders.items()}, rounds=5, calls=20, warm_up=3)
    many = timing.interleaved({name: batch(e) for name, e in encoders.items()}, rounds=3, calls=1, warm_up=1)
    return {
        name: {"query_ms": float(np.median(single[name])) * 1000, "batch_ms": float(np.median(many[name])) * 1000}
        for name in encoders
    }


def key(form: str, target: str) -> str:
    return f"{form.replace(' ', '-')}-{target}"


def folder_of(place: Path, name: str) -> Path:
    return place / name.replace(" ", "-")


def written(place: Path) -> dict[str, Package]:
    names = [f"{form} {target}" for form in FORMS for target in plugins.names("backends")]
    return {
        name: choose.read_package(folder_of(place, name))
        for name in names if (folder_of(place, name) / choose.PACKAGE).is_file()
    }  # fmt: skip


def score(place: Path, name: str) -> Measurement:
    file = place / f"quality-{name.replace(' ', '-')}.json"
    return msgspec.json.decode(file.read_bytes(), type=Measurement)


def print_markdown(results: dict[str, object]) -> None:
    """The tables as they stand in docs/deploying.md; times as multiples of fp32 in ONNX Runtime."""
    for name, rows in results["models"].items():  # type: ignore[attr-defined]
        base = rows[BASELINE]
        print(f"\n**{name}** (n = {base['n']})\n")
        kept = f"{LABELS[METRICS[name]]} kept (95 %)"
        print(f"| | MB | cosine | top 10 | {kept} | a query | a batch |\n|---|---|---|---|---|---|---|")
        for label, row in rows.items():
            if "reason" in row:
                print(f"| {label} | {row['reason']} | | | | | |")
                continue
            low, high = row["kept_interval"]
            none = "not run" if row["not_run"] else "not timed"
            speeds = [f"{base[what] / row[what]:.2f}" if what in row else none for what in ("query_ms", "batch_ms")]
            print(f"| {label} | {row['size_bytes'] / 1e6:.2f} | {row['cosine']:.5f} | {row['overlap@10']:.3f} "
                  f"| {row['kept']:.1%} ({low:.1%} to {high:.1%}) | {' | '.join(speeds)} |")  # fmt: skip
        for label, row in rows.items():
            if row.get("failed"):
                print(f"\n{label} is not deployed, a gate fails: {row['failed']}")


if __name__ == "__main__":
    main()
