"""Which measure of importance loses least: the mean cosine of a model's vectors after pruning, before any training.

    python benchmarks/importance.py minilm ../shared/data/xquad_en --method prune.channels --amount 0.25 --of units
    python benchmarks/importance.py MODEL.onnx COLLECTION --method prune.channels --amount 0.5 --of macs

Importance is told from calibration items; the cosine is taken on other items of the collection. ``random`` is the mean
of three seeds. A cosine of 1 means that nothing was lost.
"""

from __future__ import annotations

import argparse

import numpy as np

from slimseek import choose, data, evaluate, plugins, timing
from slimseek.errors import UsageError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("collection")
    parser.add_argument("--method", default="prune.channels")
    parser.add_argument("--amount", type=float, default=0.25)
    parser.add_argument("--of", default="units")
    parser.add_argument("--strategies", nargs="+", default=["per_layer", "importance"])
    parser.add_argument("--items", type=int, default=200)
    arguments = parser.parse_args()
    model, collection = choose.model(arguments.model), data.load(arguments.collection)
    samples = data.samples(collection, data.split(collection))
    known = set(samples.calibration)
    items = [item for item in samples.texts if item not in known]
    chosen = np.random.default_rng(0).permutation(len(items))[: arguments.items]
    items = [items[position] for position in chosen]
    threads = timing.default_threads()
    original = choose.encoder(model, "original", threads).documents(items)
    method = plugins.load("methods", arguments.method)

    def cosine(importance: str, strategy: str, seed: int) -> float:
        step = method(amount=arguments.amount, of=arguments.of, strategy=strategy, importance=importance, seed=seed)
        vectors = choose.encoder(step.apply(model, samples), importance, threads).documents(items)
        return float(evaluate.cosines(original, vectors).mean())

    print(f"{arguments.model}, {arguments.method}, {arguments.amount:g} of {arguments.of}, n = {len(items)}\n")
    print(f"| importance | {' | '.join(arguments.strategies)} |\n|---|{'---|' * len(arguments.strategies)}")
    for importance in plugins.names("importance"):
        seeds = range(3) if importance == "random" else range(1)
        row = []
        for strategy in arguments.strategies:
            try:
                row.append(f"{np.mean([cosine(importance, strategy, seed) for seed in seeds]):.3f}")
            except UsageError as error:
                row.append(f"refused: {str(error)[:60]}")
        print(f"| {importance} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
