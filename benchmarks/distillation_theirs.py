r"""Four of MiniLM's six blocks, taught by MiniLM: sentence-transformers' recipe beside ours, on the same texts.

    pip install sentence-transformers datasets accelerate
    python benchmarks/distillation_theirs.py --data ../shared/data --out benchmarks/results/distillation_theirs.json

Sentence-transformers' example of model distillation keeps some layers of the teacher and trains them to its vectors by
``MSELoss`` (AdamW at 1e-4, a tenth of the steps to warm up). Both sides keep the blocks 0, 2, 3 and 5, learn from the
same texts (scifact's documents and train queries, cut at 128 tokens), in the same number of batches of the same size.
Quality is nDCG@10 on the test queries, paired against MiniLM in float32, all as float32 packages of ONNX Runtime. No
step saw a query of xquad_en. Everything finished is kept in --work, so a killed run goes on with the next student.
--time measures what a batch takes on an idle machine, the teacher's vectors of it included: the difference of two short
trainings, so that what opens and writes the models counts for nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import text_search
from rich.console import Console

from slimseek import artifact, choose, compress, data, recipe, timing
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically, writing
from slimseek.models._text import built_in
from slimseek.plugins import require
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Samples

TRAINED_ON, UNSEEN = "scifact", "xquad_en"
BLOCKS = (0, 2, 3, 5)
MAX_TOKENS = 128
LEARNING_RATE = 1e-4
MODEL = "minilm"
OURS = """
version: 1
steps:
  - prune.layers: {{keep: {blocks}}}
  - {method}: {{steps: {steps}, batch_size: {batch_size}, max_tokens: {max_tokens}{cache}}}
"""
CACHE = {"distil.embedding": ', cache: "{}"'}
"""Where the teacher's vectors are kept; distil.hidden keeps none."""
METHODS = {"4 blocks, distil.embedding": "distil.embedding", "4 blocks, distil.hidden": "distil.hidden"}
TIMED = (10, 50)
"""Batches of two short trainings."""
HELD_OUT = 128
"""Texts that our trainings check by."""
Maker = Callable[[Path, Samples, int], None]
THEIRS, UNTAUGHT = "4 blocks, sentence-transformers (theirs)", "4 blocks, not taught"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/distillation_theirs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/distillation_theirs.json"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--collections", nargs="+", default=[TRAINED_ON, UNSEEN], choices=[TRAINED_ON, UNSEEN])
    parser.add_argument("--time", action="store_true", help="only time, of short trainings")
    arguments = parser.parse_args()
    require("torch").set_num_threads(arguments.threads)
    samples = text_search.unseen(data.load(str(arguments.data / TRAINED_ON)))
    results: dict[str, Any] = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {}
    with shown_on(Console(stderr=True)):
        if arguments.time:
            results["environment"] = msgspec.to_builtins(timing.environment(arguments.threads))
            results["seconds_per_batch"] = seconds(arguments, samples)
        else:
            results |= {"steps": arguments.steps, "batch_size": arguments.batch_size, "texts": len(samples.texts)}
            results["collections"] = quality(arguments, samples)
    write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
    print_markdown(results)


def quality(arguments: argparse.Namespace, samples: Samples) -> dict[str, Any]:
    """What each student keeps of MiniLM's nDCG@10, by collection."""
    students, results = taught(arguments, samples), {}
    for name in arguments.collections:
        collection, place = data.load(str(arguments.data / name)), arguments.work / name
        place.mkdir(parents=True, exist_ok=True)
        found: dict[str, Callable[[], Encoder]] = {}
        package = text_search.packager(found, collection, place, arguments.threads)
        for student, model in students.items():
            package(student, model, "onnxruntime")
        text_search.quality(collection, found, place)
        results[name] = text_search.table(found, place, {})
    return results


def seconds(arguments: argparse.Namespace, samples: Samples) -> dict[str, float]:
    """Of a batch, by student: the median of three pairs of trainings, the sides by turns."""
    makers, found = recipes(arguments), {}
    for _ in range(3):
        for name, make in makers.items():
            took = []
            for steps in TIMED:
                with tempfile.TemporaryDirectory() as folder:
                    some = random.Random(steps).sample(list(samples.texts), steps * arguments.batch_size + HELD_OUT)
                    place = Path(folder) / "student"
                    place.mkdir()
                    start = time.perf_counter()
                    make(place, dataclasses.replace(samples, texts=some), steps)
                    took.append(time.perf_counter() - start)
            found.setdefault(name, []).append((took[1] - took[0]) / (TIMED[1] - TIMED[0]))
    return {name: float(np.median(values)) for name, values in found.items()}


def recipes(arguments: argparse.Namespace) -> dict[str, Maker]:
    """Student to what makes it: a folder to write into, texts and batches."""
    cut = {"blocks": list(BLOCKS), "batch_size": arguments.batch_size, "max_tokens": MAX_TOKENS}

    def theirs(place: Path, samples: Samples, steps: int) -> None:
        sentence_transformers(samples.texts, steps, arguments.batch_size).save_pretrained(str(place))

    def ours(method: str, place: Path, samples: Samples, steps: int) -> None:
        cache = CACHE.get(method, "").format(place.parent / "vectors")
        given = OURS.format(**cut, method=method, steps=steps, cache=cache)
        artifact.write(compress.run(choose.model(MODEL), recipe.parse(given), samples).model, place)

    return {THEIRS: theirs, **{name: partial(ours, method) for name, method in METHODS.items()}}


def taught(arguments: argparse.Namespace, samples: Samples) -> dict[str, Callable[[], Model]]:
    """Name to a function that opens the student, each trained once."""
    makers = recipes(arguments)
    for name, make in makers.items():
        if not (arguments.work / name).is_dir():
            say(name)
            with writing(arguments.work / name) as place:
                make(place, samples, arguments.steps)
    keep = recipe.parse(f"version: 1\nsteps:\n  - prune.layers: {{keep: {list(BLOCKS)}}}\n")
    return {
        text_search.BASELINE: lambda: choose.model(MODEL),
        UNTAUGHT: lambda: compress.run(choose.model(MODEL), keep, samples).model,
        **{name: lambda name=name: choose.model(arguments.work / name) for name in makers},  # type: ignore[misc]
    }


def sentence_transformers(texts: Sequence[str], steps: int, batch_size: int) -> Any:
    """The student that sentence-transformers' example of model distillation makes of these texts."""
    library, torch = require("sentence_transformers"), require("torch")
    own = require("sentence_transformers.sentence_transformer")
    folder = str(built_in.place(MODEL))
    teacher, student = library.SentenceTransformer(folder), library.SentenceTransformer(folder)
    longest = student.max_seq_length
    teacher.max_seq_length = student.max_seq_length = MAX_TOKENS
    network = student[0].auto_model
    network.encoder.layer = torch.nn.ModuleList([network.encoder.layer[block] for block in BLOCKS])
    network.config.num_hidden_layers = len(BLOCKS)
    chosen = list(texts)
    random.Random(0).shuffle(chosen)
    vectors = teacher.encode(chosen, batch_size=32, show_progress_bar=False)
    rows = require("datasets").Dataset.from_dict({"sentence": chosen, "label": vectors.tolist()})
    settings = library.SentenceTransformerTrainingArguments(
        output_dir="build/sentence-transformers", max_steps=steps, per_device_train_batch_size=batch_size,
        learning_rate=LEARNING_RATE, warmup_steps=steps // 10, save_strategy="no", report_to=[], use_cpu=True, seed=0,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = library.SentenceTransformerTrainer(
        model=student, args=settings, train_dataset=rows, loss=own.losses.MSELoss(student)
    )
    trainer.train()
    student.max_seq_length = longest
    return student


def print_markdown(results: dict[str, Any]) -> None:
    """The table as it stands in docs/distillation.md."""
    collections = results.get("collections", {})
    print(f"| {' | '.join(['', *(f'{name}, kept (95 %)' for name in collections), 'seconds a batch'])} |")
    print("|---" * (len(collections) + 2) + "|")
    for name in next(iter(collections.values()), {}):
        cells = [name]
        for rows in collections.values():
            low, high = rows[name]["kept_interval"]
            cells.append(f"{rows[name]['kept']:.1%} ({low:.1%} to {high:.1%})")
        took = results.get("seconds_per_batch", {}).get(name)
        print(f"| {' | '.join([*cells, f'{took:.2f}' if took else ''])} |")


if __name__ == "__main__":
    main()
