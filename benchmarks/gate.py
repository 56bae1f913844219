"""Does the gate keep its word: how often is a loss accepted that lies just at the limit?

    python benchmarks/gate.py
    python benchmarks/gate.py --data ../shared/data --scores scores.npz

The scores are nDCG@10 of MiniLM for each of scifact's 1,109 train and test queries, computed once and kept in
``--scores``. A run draws n of them and takes quality away in one of several ways, each of which loses exactly the limit
on average: the gate must not pass more often than 5 times in 100. Then the same with nothing lost on average: how often
it passes is its power. ``percentile`` is the bound that was used before, ``gate`` the one of today.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from slimseek import bootstrap, choose, data, evaluate
from slimseek.measurement import Measurement
from slimseek.schema import Array

RUNS = 1000
COUNTS = (50, 100, 300, 1000)
LIMITS = (0.01, 0.02)
RESULT = Path(__file__).parent / "results" / "gate.json"
Shape = Callable[[Array, float, np.random.Generator], Array]
UP, DOWN = 1.37, 0.63
"""What a rank lost, 1 to 2, leaves of a score; and what brings as much."""


def lost_whole(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """A few queries lose all; without a loss nothing changes."""
    return np.where(random.random(scores.shape) < loss, 0, scores)


def lost_half(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """Twice as many lose a half."""
    return np.where(random.random(scores.shape) < 2 * loss, scores / 2, scores)


def all_lose(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """Every query loses a little, one more than another."""
    return scores * (1 - loss * random.standard_exponential(scores.shape))


def noise(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """Symmetric noise on three queries of ten, and the loss on all."""
    hit = random.random(scores.shape) < 0.3
    return scores * (1 - loss) + hit * 0.1 * random.standard_normal(scores.shape)


def ranks(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """One query of ten moves up or down a rank, down more often."""
    down = random.random(scores.shape) < (loss / 0.1 + UP - 1) / (UP - DOWN)
    moved = random.random(scores.shape) < 0.1
    return np.where(moved, np.where(down, DOWN, UP) * scores, scores)


def ranks_and_whole(scores: Array, loss: float, random: np.random.Generator) -> Array:
    """One of ten moves up or down as often, which hides a few that lose all."""
    return lost_whole(ranks(scores, 0, random), loss, random)


SHAPES: dict[str, Shape] = {
    "a few lose all": lost_whole,
    "a few lose half": lost_half,
    "all lose a little": all_lose,
    "noise and a loss": noise,
    "ranks move": ranks,
    "ranks move, a few lose all": ranks_and_whole,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scores", type=Path, default=Path("build/gate_scores.npz"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    scores = scores_of(arguments.scores, arguments.data / "scifact", arguments.threads)
    print(f"{len(scores)} queries, mean {scores.mean():.4f}")
    rows = [row(scores, shape, n, limit) for n in COUNTS for limit in LIMITS for shape in SHAPES]
    RESULT.write_bytes(msgspec.json.format(msgspec.json.encode({
        "model": "minilm", "collection": "scifact", "metric": "ndcg@10", "queries": len(scores),
        "mean": float(scores.mean()), "runs": RUNS, "resamples": bootstrap.RESAMPLES, "rows": rows,
    })))  # fmt: skip


def scores_of(path: Path, folder: Path, threads: int) -> Array:
    """nDCG@10 of every judged query of the collection, float64 [queries], computed unless ``path`` holds it."""
    if not path.exists():
        found, encoder = data.load(str(folder)), choose.choose("minilm", threads)
        sets = [data.search_set(found, found.qrels[split], split) for split in ("test", "train")]
        documents, parts = None, []
        for one in sets:
            quality = evaluate.quality(encoder, one, ["ndcg@10"], documents=documents)
            documents = quality.documents
            parts.append(quality.get("ndcg@10").per_query)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **dict(zip(("test", "train"), parts, strict=True)))
    with np.load(path, allow_pickle=False) as stored:
        return np.concatenate([stored["test"], stored["train"]])


def row(scores: Array, shape: str, n: int, limit: float) -> dict[str, Any]:
    """How often a loss at the limit, and none, are accepted by the bound of before and by today's gate."""
    random = np.random.default_rng([n, int(limit * 1000), list(SHAPES).index(shape)])
    found: dict[str, Any] = {"shape": shape, "n": n, "limit": limit}
    for name, loss in (("wrong", limit), ("right", 0.0)):
        before = scores[random.integers(0, len(scores), (RUNS, n))]
        after = SHAPES[shape](before, loss, random)
        passed = bootstrap.change_bounds(before, after)[1] >= -limit
        passed &= n >= bootstrap.fewest_queries(limit)
        check_alike(before[0], after[0], limit, bool(passed[0]))
        found[name] = {"percentile": rate(percentile(before, after) >= -limit), "gate": rate(passed)}
    words = [f"{name} {found[name][how][0]:.3f}" for name in ("wrong", "right") for how in ("percentile", "gate")]
    print(f"n = {n:5} limit {limit:.0%} {shape:28}", *words, flush=True)
    return found


def percentile(before: Array, after: Array) -> Array:
    """The bound of before, [runs]: 5th percentile of the change of means, queries [runs, n] drawn with replacement."""
    n, random, drawn = before.shape[-1], np.random.default_rng(0), []
    for _ in range(0, bootstrap.RESAMPLES, 500):
        counts = random.multinomial(n, np.full(n, 1 / n), 500).T.astype(np.float64)
        drawn.append((after @ counts) / (before @ counts) - 1)
    bounds: Array = np.percentile(np.concatenate(drawn, axis=-1), 5, axis=-1)
    return bounds


def check_alike(before: Array, after: Array, limit: float, passed: bool) -> None:
    """That what was computed for many runs at once is what a recipe is judged by."""
    first, second = (
        Measurement(name="ndcg@10", value=float(one.mean()), n=len(one), per_query=tuple(one.tolist()))
        for one in (before, after)
    )
    assert (evaluate.quality_gate(evaluate.compare(first, second, limit), limit).status == "passed") == passed


def rate(passed: Array) -> tuple[float, float, float]:
    """The share of runs that passed, and its 95 % interval (Clopper and Pearson)."""
    interval = stats.binomtest(int(passed.sum()), len(passed)).proportion_ci(0.95)
    return float(passed.mean()), float(interval.low), float(interval.high)


if __name__ == "__main__":
    main()
