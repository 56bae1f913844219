"""Small networks of speech at eight bits: a keyword spotter, and a recogniser (CTC) that is trained from nothing.

    python benchmarks/keywords.py --data ../shared/data --out benchmarks/results/keywords.json

Both hear the spoken digits of fsdd, whole speakers apart: four to train by, one to choose by, one to report on. The
spotter is the depthwise separable network of MLPerf Tiny (12 keywords, MFCC 49 x 10), fine-tuned to name the digit.
The recogniser is five convolutions over 40 mel bands that spell strings of one to three digits, letter by letter; its
recordings are digits of one speaker put behind each other. Each is compressed by the recipe int8; quality and bytes are
of the packages for ONNX Runtime, on all recordings of the test's speaker, paired.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import msgspec
import numpy as np
import soundfile
import torch
from rich.console import Console

from slimseek import choose, compress, data, deploy, evaluate, recipe, spoken, timing
from slimseek.collection import Collection
from slimseek.folder import write_atomically
from slimseek.measurement import Measurement
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Samples
from slimseek.training import finetune
from slimseek.training.settings import Settings
from slimseek.training.train import Training

RATE = 8000
SECONDS = 3.0
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STRINGS = {"train": 5000, "dev": 150, "test": 400}
MFCC = {
    "feature_extractor_type": "MfccFeatureExtractor", "sampling_rate": 16000, "win_length": 480, "hop_length": 320,
    "num_mel_bins": 40, "feature_size": 10, "chunk_length": 1.0, "min_frequency": 20, "max_frequency": 4000,
}  # fmt: skip
LOG_MEL = {
    "feature_extractor_type": "LogMelFeatureExtractor", "sampling_rate": RATE, "win_length": 256, "hop_length": 80,
    "feature_size": 40, "chunk_length": SECONDS, "min_frequency": 60, "max_frequency": 4000,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/keywords"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/keywords.json"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    results: dict[str, object] = {"environment": msgspec.to_builtins(timing.environment(arguments.threads))}
    with shown_on(Console(stderr=True)):
        for name, make in (("keyword spotter", spotter), ("recogniser of digits", recogniser)):
            network, collection, training = make(arguments.data, arguments.work / name.split()[0])
            results[name] = row(network, collection, training, arguments.threads)
            write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
            print(name, json.dumps(results[name]))


# ---------------------------------------------------------------- networks and recordings


def spotter(source: Path, place: Path) -> tuple[Path, Path, Training]:
    """MLPerf Tiny's, with the features that it was trained on."""
    network = place / "network"
    network.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tinymodels" / "dscnn_kws12.onnx", network / "model.onnx")
    (network / "preprocessor_config.json").write_text(json.dumps(MFCC))
    return network, source / "fsdd", Training(steps=600, batch_size=32, learning_rate=1e-3)


class Spelling(torch.nn.Module):
    """Scores [n, frames / 4, tokens] of log-mel spectra [n, 40, frames]."""

    def __init__(self, tokens: int, width: int = 96) -> None:
        super().__init__()
        self.first = torch.nn.Conv1d(40, width, 5, stride=2, padding=2)
        self.second = torch.nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.third = torch.nn.Conv1d(width, width, 5, padding=2)
        self.fourth = torch.nn.Conv1d(width, width, 5, padding=2)
        self.last = torch.nn.Conv1d(width, tokens, 1)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        value = (spectrum - spectrum.mean(2, keepdim=True)) / 2
        for layer in (self.first, self.second, self.third, self.fourth):
            value = torch.relu(layer(value))
        return self.last(value).transpose(1, 2)


def recogniser(source: Path, place: Path) -> tuple[Path, Path, Training]:
    """One of random weights, and strings of digits."""
    network = place / "network"
    network.mkdir(parents=True, exist_ok=True)
    letters = sorted(set("".join(DIGITS)))
    vocabulary = {"<blank>": 0, "|": 1} | {letter: number for number, letter in enumerate(letters, 2)}
    torch.manual_seed(0)
    frames = 1 + (round(SECONDS * RATE) - 256) // 80
    torch.onnx.export(Spelling(len(vocabulary)).eval(), (torch.zeros(2, 40, frames),), network / "model.onnx",
                      dynamo=False, input_names=["spectrum"], output_names=["logits"],
                      dynamic_axes={"spectrum": {0: "N"}}, opset_version=17)  # fmt: skip
    (network / "vocab.json").write_text(json.dumps(vocabulary))
    (network / "preprocessor_config.json").write_text(json.dumps(LOG_MEL))
    collection = place / "strings"
    if not collection.is_dir():
        strings(data.load(str(source / "fsdd")), collection)
    return network, collection, Training(steps=4000, batch_size=16, learning_rate=2e-3)


def strings(digits: Collection, folder: Path) -> None:
    """Recordings of one to three digits of one speaker, three seconds at most, with ``data.csv``."""
    (folder / "audio").mkdir(parents=True)
    generator = random.Random(0)
    lines = ["audio,text,speaker,split"]
    for split, count in STRINGS.items():
        of: dict[str, list[str]] = {}
        for query in digits.qrels[split]:
            of.setdefault(query.split("_")[1], []).append(query)
        for number in range(count):
            speaker = generator.choice(sorted(of))
            chosen = generator.sample(of[speaker], generator.randint(1, 3))
            parts, said = [], []
            for query in chosen:
                sound, _ = soundfile.read(digits.queries[query], dtype="float32")
                if sum(map(len, parts)) + len(sound) < SECONDS * RATE - 800:
                    parts += [sound, np.zeros(400, np.float32)]
                    said.append(DIGITS[int(query[0])])
            soundfile.write(folder / "audio" / f"{split}{number}.wav", np.concatenate(parts), RATE)
            lines.append(f"audio/{split}{number}.wav,{' '.join(said)},{speaker},{split}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")


# ---------------------------------------------------------------- figures


def row(network: Path, collection: Path, training: Training, threads: int) -> dict[str, object]:
    """Quality and bytes of the packages in float32 and at eight bits."""
    trained = network.parent / "trained"
    if not (trained / "manifest.json").is_file():
        finetune.finetune(network, collection, trained, Settings(training=training), threads=threads)
    original, found = choose.model(trained), data.load(str(collection))
    splits = data.split(found)
    hears = original.spec.output == "transcript"
    samples: Samples = spoken.samples(found, splits) if hears else data.samples(found, splits)
    small = compress.run(original, recipe.load("int8"), samples).model
    scores, sizes = {}, {}
    for name, model in (("float32", original), ("int8", small)):
        say(f"{network.parent.name}: {name}")
        place = network.parent / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        deploy.write(model, "onnxruntime", place, texts=list(samples.calibration)[:16], threads=threads)
        sizes[name] = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        scores[name] = quality(model, place, found, threads)
    change = evaluate.compare(scores["float32"], scores["int8"])
    return {
        "metric": change.metric, "float32": change.before, "int8": change.after, "n": change.n,
        "points": 100 * (change.after - change.before), "bytes": sizes, "share": sizes["int8"] / sizes["float32"],
        "parameters": original.parameters,
    }  # fmt: skip


def quality(model: Model, package: Path, found: Collection, threads: int) -> Measurement:
    test = data.search_set(found, data.split(found).test, "test")
    if model.spec.output == "transcript":
        name = "word_error_rate"
        return spoken.quality(choose.recogniser(package, threads), spoken.asked(test), [name]).get(name)
    return evaluate.quality(choose.choose(package, threads), test, ["accuracy"]).get("accuracy")


if __name__ == "__main__":
    main()
