"""Finishes the check of TensorRT packages on a machine with an NVIDIA GPU: parity and latency, written as JSON.

    pip install 'slimseek[text,tensorrt]'      # or tensorrt itself, and a PyTorch with CUDA
    python benchmarks/verify_tensorrt.py --model minilm --data xquad_en/ --out tensorrt-verified.json

Packages of the model in float32, fp16 and int8 (static) run on the GPU. Each is compared with its artifact and with
what stood in for it where it was written. The figures to beat are float32 in ONNX Runtime, on the GPU where it finds
one, and the network in PyTorch on the GPU, as it is and in fp16.
``--rehearse`` runs the script without a GPU: the stand-ins take the packages' place, and the file says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slimseek import choose, data, plugins, recipe, timing
from slimseek.bases import Backend
from slimseek.encoder import Encoder
from slimseek.evaluate import cosines, neighbours_shared
from slimseek.folder import read_json, write_json
from slimseek.inputs.samples import examples
from slimseek.schema import Array, Batch, Encode, Model, RecipeStep, Samples

Steps = Sequence[tuple[str, Mapping[str, Any]]]
STATIC: Steps = [("quantize.weights_int", {"bits": 8}), ("quantize.activations_int", {"mode": "static"})]
FORMS: dict[str, Steps] = {"float32": [], "fp16": [("quantize.float", {})], "int8": STATIC}
LEAST = {"float32": 0.999, "fp16": 0.999, "int8": 0.99}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def main() -> int:
    arguments = _arguments()
    backend: Backend = plugins.load("backends", "tensorrt")()
    reason = backend.available() or (None if arguments.rehearse else backend.runs())
    if reason is not None:
        print(f"nothing was verified: {reason}", file=sys.stderr)
        return 2
    items, calibration = _items(arguments)
    original = choose.model(arguments.model)
    samples = Samples(calibration=calibration, texts=calibration)
    found: dict[str, Any] = {}
    encoders = {f"onnxruntime float32 ({_provider()})": _baseline(original, arguments.threads)}
    if not arguments.rehearse:
        encoders |= {f"pytorch {form}": _in_pytorch(original, form) for form in ("float32", "fp16")}
    with tempfile.TemporaryDirectory() as temporary:
        for form, steps in FORMS.items():
            model = original
            for method, given in steps:
                model = recipe.build(RecipeStep(method=method, parameters=dict(given))).apply(model, samples)
            folder = Path(temporary) / form
            folder.mkdir()
            backend.export(model, folder)
            stand_in = _encoder(model, "stand-in", backend.stand_in(folder, arguments.threads))
            opened = stand_in if arguments.rehearse else _encoder(model, form, backend.open(folder, arguments.threads))
            encoders[f"tensorrt {form}"] = opened
            artifact = choose.encoder(model, "artifact", arguments.threads)
            found[form] = {
                "bytes": sum(path.stat().st_size for path in folder.iterdir()),
                "against the artifact": _parity(artifact.documents(items), opened.documents(items)),
                "against the stand-in": _parity(stand_in.documents(items), opened.documents(items)),
                "built for": read_json(folder / "tensorrt.json", dict)["built_for"],
            }
        seconds = _times(encoders, items)
    failed = [form for form in FORMS if found[form]["against the artifact"]["cosine_mean"] < LEAST[form]]
    write_json(arguments.out, {
        "model": arguments.model, "items": len(items), "ran on": "stand-ins" if arguments.rehearse else _gpu(),
        "versions": backend.versions() | timing.versions(("slimseek", "torch", "onnxruntime-gpu")),
        "environment": timing.environment(arguments.threads), "packages": found, "seconds": seconds, "failed": failed,
    })  # fmt: skip
    for name, figures in seconds.items():
        print(
            f"{name}: {figures['one_p50'] * 1000:.2f} ms a query, {1 / figures['an_item_of_many']:.0f} items a second"
        )
    print(f"written to {arguments.out}; parity failed: {', '.join(failed) or 'none'}")
    return 3 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", help="a collection; the built-in examples without it")
    parser.add_argument("--out", type=Path, default=Path("tensorrt-verified.json"))
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--threads", type=int, default=timing.default_threads())
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, by the stand-ins")
    return parser.parse_args()


def _items(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Items to compare and time, and others to calibrate with; built-in examples are both."""
    if not arguments.data:
        built_in = list(examples(choose.model(arguments.model).spec))
        return built_in, built_in
    items = list(data.load(arguments.data).items.values())
    return items[: arguments.items], items[arguments.items :][:64] or items[:64]


def _provider() -> str:
    return CUDA if CUDA in onnxruntime.get_available_providers() else CPU


def _baseline(model: Model, threads: int) -> Encoder:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = plugins.require("slimseek.backends._fusion").fused(model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=[_provider()])

    def encode(batch: Batch) -> Array:
        result: Array = session.run(None, batch)[0]
        return result

    return _encoder(model, "onnxruntime", encode)


def _in_pytorch(model: Model, form: str) -> Encoder:
    """The network on the GPU as PyTorch runs it; ``fp16`` by its own mixed precision."""
    torch = plugins.require("torch")
    network = choose.family(model).trainable(model).eval().to("cuda")

    def encode(batch: Batch) -> Array:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=form == "fp16"):
            inputs = {name: torch.from_numpy(rows).to("cuda") for name, rows in batch.items()}
            result: Array = network(**inputs).float().cpu().numpy()
        return result

    return _encoder(model, f"pytorch {form}", encode)


def _encoder(model: Model, name: str, encode: Encode) -> Encoder:
    return choose.assemble(name, model.spec, model.files, encode, shipped={}, runtime=name, threads=1)


def _parity(expected: Array, found: Array) -> dict[str, float]:
    cosine = cosines(expected, found)
    return {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()),
            "top10_overlap": neighbours_shared(expected, found)}  # fmt: skip


def _times(encoders: Mapping[str, Encoder], items: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds of one query, median and 95th percentile, and of an item among many."""
    short = sorted(items, key=len)[: max(2, len(items) // 2)]

    def query(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.queries([short[number % len(short)]])

    def documents(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.documents(items)

    one = timing.interleaved({name: query(encoder) for name, encoder in encoders.items()}, rounds=5, calls=20)
    many = timing.interleaved({name: documents(encoder) for name, encoder in encoders.items()}, rounds=3, calls=1)
    return {
        name: {
            "one_p50": float(np.median(one[name])),
            "one_p95": float(np.percentile(one[name], 95)),
            "an_item_of_many": float(np.median(many[name])) / len(items),
        }
        for name in encoders
    }


def _gpu() -> str:
    torch = plugins.require("torch")
    return f"{torch.cuda.get_device_name(0)}, compute capability {torch.cuda.get_device_capability(0)}"


if __name__ == "__main__":
    sys.exit(main())
