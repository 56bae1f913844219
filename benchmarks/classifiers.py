r"""Classifiers, from fine-tuning to a small one that is deployed: bytes, and accuracy paired against the whole one.

    python benchmarks/classifiers.py --data ../shared/data --out benchmarks/results/classifiers.json

MiniLM is fine-tuned on the train items of each collection, and is the teacher. Each recipe makes it smaller; the one of
the small student prunes, distils with labels, cuts the vocabulary and packs. What steps look at are train and dev
items; test items are classified once, at the end, by the deployed packages. The difference of accuracies is in points,
with a 95 % interval of 10,000 resamples of the items, both sides together, and with the exact test of McNemar: whether
as many items were lost as were won. Everything finished is kept in --work, so a killed run goes on; a fine-tuning goes
on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import text_search
from rich.console import Console
from scipy import stats

from slimseek import artifact, choose, compress, data, deploy, evaluate, pipeline, recipe, timing
from slimseek.collection import Collection
from slimseek.folder import write_atomically, writing
from slimseek.plugins import require
from slimseek.progress import say, shown_on
from slimseek.schema import Model
from slimseek.training.settings import Settings
from slimseek.training.train import Training

TEACHERS = {
    "banking77": Training(steps=600, batch_size=32, learning_rate=1e-4),
    "uci_sentiment3k": Training(steps=300, batch_size=16, learning_rate=1e-4),
}
RECIPES = {
    "int8": ("onnxruntime",),
    "int4": ("onnxruntime",),
    "benchmarks/recipes/classifier-small.yaml": ("onnxruntime", "openvino"),
}
BASELINE = "fp32 onnxruntime"
PARITY_TEXTS = 48
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/classifiers"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/classifiers.json"))
    parser.add_argument("--collections", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="shorthands, or files")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    environment = msgspec.to_builtins(timing.environment(arguments.threads))
    results: dict[str, Any] = {"environment": environment, "collections": {}}
    with shown_on(Console(stderr=True)):
        for name in arguments.collections:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            found = data.load(str(arguments.data / name))
            teacher = fine_tuned(found, TEACHERS[name], place, arguments.threads)
            subjects = packages(teacher, found, arguments.recipes, place, arguments.threads)
            results["collections"][name] = table(found, subjects, place, arguments.threads)
    write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
    print_markdown(results["collections"])


def fine_tuned(found: Collection, training: Training, place: Path, threads: int) -> Model:
    """MiniLM with a head for the collection's classes; it is trained once."""
    folder = place / "teacher"
    if not artifact.is_artifact(folder):
        pipeline.train("minilm", found.path, folder, Settings(training=training), threads=threads)
    return choose.model(folder)


def packages(teacher: Model, found: Collection, recipes: Sequence[str], place: Path, threads: int) -> dict[str, Path]:
    """Name to package; each is written once."""
    texts = list(text_search.unseen(found).texts)[:PARITY_TEXTS]
    written: dict[str, Path] = {}

    def package(name: str, target: str, shorthand: str = "") -> None:
        folder = written[f"{name} {target}"] = place / f"{name}-{target}"
        if not (folder / choose.PACKAGE).is_file():
            model = smaller(teacher, found, shorthand, place, threads) if shorthand else teacher
            folder.mkdir(exist_ok=True)
            deploy.write(model, target, folder, texts=texts, threads=threads)

    package("fp32", "onnxruntime")
    for shorthand in recipes:
        for target in RECIPES.get(shorthand, ("onnxruntime",)):
            package(Path(shorthand).stem, target, shorthand)
    return written


def smaller(teacher: Model, found: Collection, shorthand: str, place: Path, threads: int) -> Model:
    """What a recipe makes of the teacher; it runs once."""
    folder = place / Path(shorthand).stem
    if not artifact.is_artifact(folder):
        steps = recipe.load(shorthand)
        require("torch").set_num_threads(threads)
        made = compress.run(teacher, steps, text_search.unseen(found))
        if made.failed is not None:
            raise SystemExit(f"{found.name}, {shorthand}: {made.failed.detail}")
        with writing(folder) as written:
            artifact.write(made.model, written, recipe=steps)
    return artifact.read(folder)[1]


def table(found: Collection, subjects: dict[str, Path], place: Path, threads: int) -> dict[str, object]:
    """One row a package: bytes, accuracy, and how it differs from the teacher's on the same items."""
    scored = {name: classified(found, folder, place / f"quality-{folder.name}.json", threads)
              for name, folder in subjects.items()}  # fmt: skip
    base, rows = scored[BASELINE], {}
    for name, score in scored.items():
        rows[name] = {
            "size_bytes": score["size"], "accuracy": float(np.mean(score["right"])), "n": len(score["right"]),
            "interval": score["interval"],
            "same_class": float(np.mean(np.array(score["named"]) == np.array(base["named"]))),
            **difference(np.array(base["right"]), np.array(score["right"])),
        }  # fmt: skip
    return rows


def classified(found: Collection, folder: Path, file: Path, threads: int) -> dict[str, Any]:
    """The class that a package names for each test item, and whether it is right; what is known is not asked again."""
    if not file.is_file():
        encoder = choose.choose(folder, threads)
        say(f"{found.name}: {folder.name}")
        quality = evaluate.quality(encoder, data.search_set(found, found.qrels["test"], "test"), [evaluate.ACCURACY])
        accuracy = quality.get(evaluate.ACCURACY)
        document = {"right": accuracy.per_query, "interval": accuracy.interval, "size": sum(encoder.shipped.values()),
                    "named": [row[0] for row in quality.ranking.values()]}  # fmt: skip
        write_atomically(file, msgspec.json.encode(document))
    known: dict[str, Any] = json.loads(file.read_bytes())
    return known


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, object]:
    """Accuracy after less before, in points, on the same items: 1 or 0 for each, right or wrong.

    To draw items with both sides together is to draw how many of them are lost, the same and won.
    """
    lost, won, n = int((before > after).sum()), int((before < after).sum()), len(before)
    drawn = np.random.default_rng(0).multinomial(n, [lost / n, 1 - (lost + won) / n, won / n], RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 2] - drawn[:, 0]) / n, [2.5, 97.5])
    p_value = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    return {"points": 100 * (won - lost) / n, "points_interval": [float(low), float(high)], "lost": lost, "won": won,
            "mcnemar_p": float(p_value)}  # fmt: skip


def print_markdown(collections: dict[str, Any]) -> None:
    """The table as it stands in docs/training.md."""
    print("| collection | package | MB shipped | accuracy | points (95 %) | lost, won | p | same class |")
    print("|---|---|---|---|---|---|---|---|")
    for collection, rows in collections.items():
        for name, row in rows.items():
            low, high = row["points_interval"]
            paired = [f"{row['points']:+.1f} ({low:+.1f} to {high:+.1f})", f"{row['lost']}, {row['won']}",
                      f"{row['mcnemar_p']:.2f}", f"{row['same_class']:.1%}"]  # fmt: skip
            cells = [collection, name, f"{row['size_bytes'] / 1e6:.1f}", f"{row['accuracy']:.3f}",
                     *([""] * len(paired) if name == BASELINE else paired)]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
