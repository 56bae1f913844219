"""What the steps that simplify cost a MiniLM: bytes, nDCG@10, mean of 1 - cosine to the original's documents.

    python benchmarks/simplify.py low_rank
    python benchmarks/simplify.py output_dim
    python benchmarks/simplify.py redesign

Calibrated and trained on the documents and dev queries of xquad_en; judged on the first 300 of its test queries, which
no step sees. The tables of docs/methods come from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimseek import choose, compress, data
from slimseek.evaluate import cosines, quality
from slimseek.schema import Gates, Recipe, RecipeStep

QUERIES = 300
TRAINED = ("distil.embedding", {"steps": 200, "sentences": True})
Steps = Sequence[tuple[str, Mapping[str, Any]]]


def one(step: str, /, **parameters: Any) -> Steps:
    return [(f"simplify.{step}", parameters)]


TABLES: dict[str, dict[str, Steps]] = {
    "low_rank": {
        "`energy: 0.98`": one("low_rank"),
        "`parameters: 0.7`": one("low_rank", parameters=0.7),
        "the same, `weighted: false`": one("low_rank", parameters=0.7, weighted=False),
        "`parameters: 0.7`, then 200 steps of `distil.embedding`": [*one("low_rank", parameters=0.7), TRAINED],
        "`parameters: 0.5`": one("low_rank", parameters=0.5),
    },
    "output_dim": {
        f"`{method}`, {dim}": one("output_dim", dim=dim, method=method)
        for dim in (192, 96, 48)
        for method in ("pca", "cut")
    },
    "redesign": {f"`size: {size}`": one("redesign", size=size, bits=8) for size in ("12MB", "6MB")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", default=str(Path("../shared/data/xquad_en")))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    collection = data.load(arguments.data)
    splits = data.split(collection)
    samples = data.samples(collection, splits)
    judged = data.search_set(collection, {name: splits.test[name] for name in list(splits.test)[:QUERIES]}, "test")
    model = choose.model(arguments.model)
    original = quality(choose.encoder(model, "original", arguments.threads), judged, ["ndcg@10"])
    show("whole", compress.weight_bytes(model), original.documents.nbytes, original.get("ndcg@10").value, 0.0)
    for name, steps in TABLES[arguments.table].items():
        parts = tuple(RecipeStep(method=method, parameters=dict(parameters)) for method, parameters in steps)
        found = compress.run(model, Recipe(steps=parts, gates=Gates()), samples)
        for record in found.records:
            print("   ", record.step, *record.notes, sep="\n        ")
        after = quality(choose.encoder(found.model, name, arguments.threads), judged, ["ndcg@10"])
        same = after.documents.shape == original.documents.shape
        moved = float((1 - cosines(original.documents, after.documents)).mean()) if same else None
        show(name, compress.weight_bytes(found.model), after.documents.nbytes, after.get("ndcg@10").value, moved)


def show(name: str, weights: int, vectors: int, score: float, moved: float | None) -> None:
    distance = "" if moved is None else f" {moved:.3f} |"
    print(f"| {name} | {weights / 1e6:.1f} MB | {vectors:,} | {score:.3f} |{distance}", flush=True)


if __name__ == "__main__":
    main()
