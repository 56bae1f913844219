"""How far quantization moves an encoder's vectors: mean of 1 - cosine to the original's, on texts held out.

    python benchmarks/vector_noise.py smoothing
    python benchmarks/vector_noise.py rounding
    python benchmarks/vector_noise.py smoothing --model all-mpnet-base-v2 --held-out 30 --calibration 64

Calibrated on passages and questions of xquad_en; held out are other passages of it, passages of scifact, which the
calibration never saw, and other questions. The tables of docs/methods come from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimseek import choose, data, recipe
from slimseek.encoder import Encoder
from slimseek.evaluate import cosines
from slimseek.schema import Array, RecipeStep, Samples

STATIC = ("quantize.activations_int", {"mode": "static", "estimator": "percentile"})
INT8 = ("quantize.weights_int", {"bits": 8, "granularity": "channel"})
GROUPS = {"granularity": "group", "group_size": 64, "symmetric": False}
ROUNDINGS = {
    "nearest, max": {"scaling": "max"},
    "nearest, mse": {"scaling": "mse"},
    "nearest, mse, correct_bias": {"scaling": "mse", "correct_bias": True},
    "compensated": {"rounding": "compensated"},
    "compensated, correct_bias": {"rounding": "compensated", "correct_bias": True},
}
Steps = Sequence[tuple[str, Mapping[str, Any]]]
TABLES: dict[str, dict[str, Steps]] = {
    "smoothing": {
        "without": [INT8, STATIC],
        **{f"alpha {alpha}": [("quantize.smooth", {"alpha": alpha}), INT8, STATIC] for alpha in (0.5, 0.7, 0.9)},
        "chosen": [("quantize.smooth", {}), INT8, STATIC],
    },
    "rounding": {
        f"{bits} bits, {name}": [("quantize.weights_int", {"bits": bits, **GROUPS, **how})]
        for bits in (4, 3, 2)
        for name, how in ROUNDINGS.items()
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--held-out", type=int, default=100, help="passages of each collection")
    parser.add_argument("--calibration", type=int, default=128, help="passages, and as many questions")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    passages = list(data.load(str(arguments.data / "xquad_en")).corpus.values())
    questions = list(data.load(str(arguments.data / "xquad_en")).queries.values())
    calibration = [*passages[100 : 100 + arguments.calibration], *questions[::10][: arguments.calibration]]
    samples = Samples(calibration=calibration, texts=calibration)
    held_out = {
        "xquad_en": passages[: arguments.held_out],
        "scifact": list(data.load(str(arguments.data / "scifact")).corpus.values())[: arguments.held_out],
        "questions": questions[1::12][: arguments.held_out],
    }
    original = choose.model(arguments.model)
    expected = vectors(choose.encoder(original, "original", arguments.threads), held_out)
    print(f"| | {' | '.join(held_out)} |\n|---{'|---' * len(held_out)}|")
    for name, steps in TABLES[arguments.table].items():
        model = original
        for method, given in steps:
            model = recipe.build(RecipeStep(method=method, parameters=dict(given))).apply(model, samples)
        found = vectors(choose.encoder(model, name, arguments.threads), held_out)
        noise = [float((1 - cosines(expected[part], found[part])).mean()) for part in held_out]
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in noise)} |", flush=True)


def vectors(encoder: Encoder, parts: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    return {name: encoder.documents(texts) for name, texts in parts.items()}


if __name__ == "__main__":
    main()
