"""Few bits with and without training: what rounding, compensated rounding and quantize.aware_training keep of MiniLM.

    python benchmarks/aware_training.py --data ../shared/data --out benchmarks/results/aware_training.json

Weights alone, asymmetric groups of 32; inputs stay float, so that the rows differ in nothing but the weights. Trained
and calibrated on passages of xquad_en and on abstracts and train queries of scifact, never on a question of xquad_en.
Quality is nDCG@10 on all 1,190 of those, paired against fp32, run in PyTorch. Every finished row is kept in --work,
and a training saves itself there, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from slimseek import choose, compress, data, evaluate, recipe, timing
from slimseek.collection import SearchSet
from slimseek.folder import write_atomically
from slimseek.progress import say, shown_on
from slimseek.schema import Model, RecipeStep, Samples

CALIBRATION = 256
GROUPS = {"granularity": "group", "group_size": 32, "symmetric": False}
ROUNDINGS = ("nearest", "compensated", "trained", "compensated-trained")
START = {"trained": "nearest", "compensated-trained": "compensated"}
"""Where a training begins."""
BASELINE = "fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/aware_training"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/aware_training.json"))
    parser.add_argument("--bits", type=int, nargs="+", default=(3, 2))
    parser.add_argument("--tables", type=int, nargs="+", default=(0, 4), help="bits of tables; 0: those of the rest")
    parser.add_argument("--roundings", nargs="+", default=ROUNDINGS, choices=ROUNDINGS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with shown_on(Console(stderr=True)):
        original = choose.model(arguments.model)
        searched, samples = texts(arguments.data)
        rows = {BASELINE: row(original, original, searched, arguments.work / "fp32.json", arguments.threads)}
        for bits in arguments.bits:
            for table in arguments.tables:
                for rounding in arguments.roundings:
                    training = {"steps": arguments.steps, "learning_rate": arguments.learning_rate}
                    name, steps = subject(bits, table or bits, rounding, training, arguments.work)
                    file = arguments.work / f"{name.replace(' ', '-').replace(',', '')}.json"
                    say(name)
                    model = original if file.is_file() else made(original, steps, samples)
                    rows[name] = row(original, model, searched, file, arguments.threads)
                    write(arguments.out, rows, arguments.threads)
        print_markdown(rows)


def texts(source: Path) -> tuple[SearchSet, Samples]:
    """What is searched, and what steps see: no question of xquad_en."""
    xquad, scifact = data.load(str(source / "xquad_en")), data.load(str(source / "scifact"))
    passages, others = list(xquad.corpus.values()), list(scifact.corpus.values())
    asked = [scifact.queries[query] for query in scifact.qrels["train"]]
    half = CALIBRATION // 2
    calibration = [*passages[:half], *asked[:half]]
    return data.search_set(xquad, xquad.qrels["test"], "test"), Samples(
        calibration=calibration, texts=[*passages, *others, *asked]
    )


def subject(
    bits: int, table: int, rounding: str, training: dict[str, object], work: Path
) -> tuple[str, list[RecipeStep]]:
    """Its name and steps. Tables are rounded to nearest first where they get other bits than the rest."""
    name, last = f"{bits} bits, {rounding}", ("linear", "embedding")
    steps = []
    if table != bits:
        name, last = f"{bits} bits, tables at {table}, {rounding}", ("linear",)
        given = {"bits": table, "layers": ["embedding"], **GROUPS}
        steps.append(RecipeStep(method="quantize.weights_int", parameters=given))
    given = {"bits": bits, "layers": list(last), **GROUPS}
    if rounding in START:
        name += f", {training['steps']} steps at {training['learning_rate']}"
        checkpoint = str(work / f"{name.replace(' ', '-').replace(',', '')}.safetensors")
        given |= training | {"checkpoint": checkpoint, "rounding": START[rounding]}
        return name, [*steps, RecipeStep(method="quantize.aware_training", parameters=given)]
    given |= {"rounding": rounding, "correct_bias": rounding == "compensated"}
    return name, [*steps, RecipeStep(method="quantize.weights_int", parameters=given)]


def made(model: Model, steps: Sequence[RecipeStep], samples: Samples) -> Model:
    samples = dataclasses.replace(samples, original=model)
    for step in steps:
        model = recipe.build(step).apply(model, samples)
    return model


def row(original: Model, model: Model, searched: SearchSet, file: Path, threads: int) -> dict[str, object]:
    """Bytes and quality against the baseline, whose file lies beside this one."""
    if not file.is_file():
        quality = evaluate.quality(choose.encoder(model, file.stem, threads), searched, ["ndcg@10"])
        document = {"bytes": compress.weight_bytes(model), "ndcg": quality.get("ndcg@10")}
        write_atomically(file, msgspec.json.encode(document))
    found, base = (json.loads(path.read_bytes()) for path in (file, file.with_name("fp32.json")))
    change = evaluate.compare(*(msgspec.convert(one["ndcg"], evaluate.Measurement) for one in (base, found)))
    return {
        "weights_bytes": found["bytes"],
        "ndcg@10": change.after,
        "kept": 1 + change.relative,
        "kept_interval": [1 + change.interval[0], 1 + change.interval[1]],
        "n": change.n,
    }


def write(out: Path, rows: dict[str, dict[str, object]], threads: int) -> None:
    """Rows of other runs that stand there already are kept, such as those of other steps."""
    before = json.loads(out.read_bytes())["collections"]["xquad_en"] if out.is_file() else {}
    document = {
        "environment": msgspec.to_builtins(timing.environment(threads)),
        "collections": {"xquad_en": before | rows},
    }
    write_atomically(out, msgspec.json.format(json.dumps(document).encode(), indent=1))


def print_markdown(rows: dict[str, dict[str, object]]) -> None:
    print("| | MB of weights | nDCG@10 kept (95 %) |\n|---|---|---|")
    for name, found in rows.items():
        low, high = found["kept_interval"]  # type: ignore[misc]
        print(f"| {name} | {found['weights_bytes'] / 1e6:.1f} | {found['kept']:.1%} ({low:.1%} to {high:.1%}) |")  # type: ignore[operator]


if __name__ == "__main__":
    main()
