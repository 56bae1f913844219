"""What zeros cost and save: mean cosine to the original's vectors, and bytes of the artifact and of both packages.

    python benchmarks/zeros.py
    python benchmarks/zeros.py --held-out 30 --calibration 16

Passages of scifact, held out and for calibration apart. The tables of docs/methods/prune.*.md come from here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimseek import artifact, choose, data, plugins, recipe
from slimseek.evaluate import cosines
from slimseek.schema import Model, RecipeStep, Samples

Steps = Sequence[tuple[str, Mapping[str, Any]]]
HALF: Steps = [("prune.weights", {"ratio": 0.5})]
HALF_BY_INPUTS: Steps = [("prune.weights", {"ratio": 0.5, "importance": "activation"})]
INT8: Steps = [("quantize.weights_int", {"bits": 8})]
GROUPS = {"bits": 4, "granularity": "group", "group_size": 64, "symmetric": False}
INT4: Steps = [("quantize.weights_int", {**GROUPS, "rounding": "compensated", "correct_bias": True})]
FORMS: dict[str, Steps] = {
    "float32": [],
    "half, magnitude": HALF,
    "half, activation": HALF_BY_INPUTS,
    "2:4, magnitude": [("prune.n_m", {})],
    "2:4, activation": [("prune.n_m", {"importance": "activation"})],
    "int8": INT8,
    "half, activation, then int8": [*HALF_BY_INPUTS, *INT8],
    "int4": INT4,
    "half, activation, then int4": [*HALF_BY_INPUTS, *INT4],
    "half of the model, magnitude": [("prune.weights", {"ratio": 0.5, "scope": "model"})],
    "0.3, magnitude": [("prune.weights", {"ratio": 0.3})],
    "0.3, activation": [("prune.weights", {"ratio": 0.3, "importance": "activation"})],
    "half of the tables alone": [("prune.weights", {"ratio": 0.5, "layers": ["embedding"]})],
}


def main(forms: Mapping[str, Steps], about: str | None) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    passages = list(data.load(str(arguments.data)).corpus.values())
    held_out = passages[: arguments.held_out]
    calibration = passages[arguments.held_out :][: arguments.calibration]
    samples = Samples(calibration=calibration, texts=calibration)
    original = choose.model(arguments.model)
    expected = choose.encoder(original, "original", arguments.threads).documents(held_out)
    targets = plugins.names("backends")
    print(f"| | cosine | artifact | {' | '.join(targets)} |\n|---|---|---|{'---|' * len(targets)}", flush=True)
    for name, steps in forms.items():
        model = original
        for method, given in steps:
            model = recipe.build(RecipeStep(method=method, parameters=dict(given))).apply(model, samples)
        found = choose.encoder(model, name, arguments.threads).documents(held_out)
        taken = " | ".join(f"{size / 1e6:.1f} MB" for size in sizes(model, targets))
        print(f"| {name} | {cosines(expected, found).mean():.4f} | {taken} |", flush=True)


def sizes(model: Model, targets: Sequence[str]) -> list[int]:
    """Bytes of the weights in the artifact, and of each runtime's graph."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.write(model, Path(folder))
        found = [(Path(folder) / artifact.WEIGHTS).stat().st_size]
        for target in targets:
            package = Path(folder) / target
            package.mkdir()
            plugins.load("backends", target)().export(model, package)
            found.append(sum(path.stat().st_size for path in package.iterdir()))
    return found


if __name__ == "__main__":
    main(FORMS, __doc__)
