"""What tied blocks save and cost: bytes of the artifact and of both packages; mean of 1 - cosine to the original's
vectors before a training and after it.

    python benchmarks/tying.py
    python benchmarks/tying.py --form 1 --max-tokens 32 --held-out 30

Passages of scifact: the first ones are held out, the others are trained on. The table of docs/methods/simplify.tie.md
comes from here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zeros import sizes

from slimseek import choose, data, plugins, recipe
from slimseek.evaluate import cosines
from slimseek.schema import Model, RecipeStep, Samples

FORMS = {
    "whole": {},
    "3 groups of 2, mean": {"every": 2},
    "3 groups of 2, first": {"every": 2, "by": "first"},
    "2 groups of 3, mean": {"every": 3},
    "all 6, mean": {"every": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--form", type=int, help="the number of one row of the table, from 0; else all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    passages = list(data.load(str(arguments.data)).corpus.values())
    held_out, texts = passages[: arguments.held_out], passages[arguments.held_out :]
    original = choose.model(arguments.model)
    samples = Samples(calibration=texts[:64], texts=texts, original=original)
    expected = choose.encoder(original, "original", arguments.threads).documents(held_out)

    def lost(model: Model) -> str:
        found = choose.encoder(model, "changed", arguments.threads).documents(held_out)
        return f"{1 - cosines(expected, found).mean():.4f}"

    targets = plugins.names("backends")
    print(f"| | artifact | {' | '.join(targets)} | before | after |\n|---|---|{'---|' * len(targets)}---|---|")
    chosen = list(FORMS.items())
    for name, given in chosen if arguments.form is None else [chosen[arguments.form]]:
        model = original
        if given:
            model = recipe.build(RecipeStep(method="simplify.tie", parameters=given)).apply(model, samples)
        taken = " | ".join(f"{size / 1e6:.1f} MB" for size in sizes(model, targets))
        before = after = lost(model)
        if given:
            training = {"steps": arguments.steps, "max_tokens": arguments.max_tokens}
            after = lost(recipe.build(RecipeStep(method="distil.embedding", parameters=training)).apply(model, samples))
        print(f"| {name} | {taken} | {before} | {after} |", flush=True)


if __name__ == "__main__":
    main()
