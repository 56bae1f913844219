"""One artifact in every runtime: what each package takes, how fast it answers, and whether the search finds the same.

    slimseek setup paddlelite
    pip install 'slimseek[litert,executorch,tensorrt]'
    python benchmarks/deployment.py --data ../shared/data --quality
    python benchmarks/deployment.py --data ../shared/data --time

MiniLM on xquad_en, EfficientNet-Lite0 on grocery128 and a keyword spotter on spoken digits, each in fp32, with integer
weights, and with rounded inputs too. Parity is what ``slimseek deploy`` measures against the artifact; quality is
nDCG@10 of the test queries through the package, paired against fp32 in ONNX Runtime; times are medians of interleaved
calls, as multiples of that. A cell without a figure has the reason. Everything finished is kept in --work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import array_networks
import msgspec
import numpy as np
import text_search
from rich.console import Console

from slimseek import choose, compress, data, deploy, evaluate, plugins, timing
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/deployment"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deployment.json"))
    parser.add_argument("--models", nargs="+", default=["minilm", "efficientnet_lite0", "dscnn_kws12"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="only packages, parity and quality")
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        results = {"environment": msgspec.to_builtins(timing.environment(arguments.threads)), "models": {}}
        for name in arguments.models:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            model, collection = source(name, arguments.data, place)
            if not arguments.time:
                packages(model, collection, place, arguments.threads)
                quality(collection, place, arguments.threads)
            if not arguments.quality:
                results["models"][name] = table(collection, place, arguments.threads)
                write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        if not arguments.quality:
            print_markdown(results)


def source(name: str, path: Path, place: Path) -> tuple[Model, Collection]:
    if name == "minilm":
        return choose.model(name), data.load(str(path / "xquad_en"))
    file, collection = array_networks.NETWORKS[name](path, place)
    return choose.model(file), data.load(str(collection))


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
        plugins.load("backends", target)().preflight(model)
        deploy.write(model, target, folder, texts=texts, threads=threads)
    except SlimseekError as error:
        return str(error)
    return ""


def quality(collection: Collection, place: Path, threads: int) -> None:
    """nDCG@10 of each query through each package; of one that does not run here, through its stand-in."""
    test = data.search_set(collection, collection.qrels["test"], "test")
    for name, package in written(place).items():
        file = place / f"quality-{name.replace(' ', '-')}.json"
        if not file.is_file():
            say(f"{collection.name}: {name}")
            opened = (choose.choose if package.not_run is msgspec.UNSET else choose.stand_in)(
                folder_of(place, name), threads
            )
            write_atomically(file, msgspec.json.encode(evaluate.quality(opened, test, ["ndcg@10"]).get("ndcg@10")))


def table(collection: Collection, place: Path, threads: int) -> dict[str, dict[str, object]]:
    """One row a form and target; a row without a package has the reason."""
    found = written(place)
    encoders = {
        name: choose.choose(folder_of(place, name), threads)
        for name, package in found.items() if package.not_run is msgspec.UNSET
    }  # fmt: skip
    times, base = clock(encoders, collection), score(place, BASELINE)
    rows: dict[str, dict[str, object]] = {}
    for form in FORMS:
        for target in plugins.names("backends"):
            name, reason = f"{form} {target}", place / f"reason-{key(form, target)}.json"
            if name not in found:
                rows[name] = {"reason": json.loads(reason.read_text()) if reason.is_file() else "not made"}
                continue
            package, change = found[name], evaluate.compare(base, score(place, name))
            size = sum(entry.bytes for entry in package.files)
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
        print("| | MB | cosine | top 10 | nDCG@10 kept (95 %) | a query | a batch |\n|---|---|---|---|---|---|---|")
        for label, row in rows.items():
            if "reason" in row:
                print(f"| {label} | {row['reason']} | | | | | |")
                continue
            low, high = row["kept_interval"]
            speeds = [
                f"{base[what] / row[what]:.2f}" if what in row else "not run" for what in ("query_ms", "batch_ms")
            ]
            print(f"| {label} | {row['size_bytes'] / 1e6:.2f} | {row['cosine']:.5f} | {row['overlap@10']:.3f} "
                  f"| {row['kept']:.1%} ({low:.1%} to {high:.1%}) | {' | '.join(speeds)} |")  # fmt: skip
        for label, row in rows.items():
            if row.get("failed"):
                print(f"\n{label} is not deployed, a gate fails: {row['failed']}")


if __name__ == "__main__":
    main()
