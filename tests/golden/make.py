"""Writes ``tests/golden/artifact``, ``sparse`` and ``shared``, which every later slimseek must read: run once per
format version, and keep them.

``python tests/golden/make.py`` from the repository's root, with slimseek installed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np

from slimseek import artifact
from slimseek.folder import writing
from slimseek.measurement import (
    Change,
    Comparison,
    Environment,
    GateResult,
    Measurement,
    QueryExample,
    Report,
    StepRecord,
)
from slimseek.preprocess import TextPreprocess
from slimseek.schema import (
    ActivationQuant,
    Array,
    Gates,
    Layer,
    Model,
    ModelSpec,
    QuantizedTensor,
    QuantSpec,
    Recipe,
    RecipeStep,
    TensorSpec,
)

FOLDER = Path(__file__).parent / "artifact"
SPARSE = Path(__file__).parent / "sparse"
SHARED = Path(__file__).parent / "shared"
VERSIONS = {"slimseek": "0.1.0"}
COLLECTION = "collections/six"


def counted(shape: tuple[int, ...], low: int, levels: int, dtype: type) -> Array:
    """Every level from ``low`` on, in steps of 5 that wrap round."""
    count = int(np.prod(shape))
    return (np.arange(count) * 5 % levels + low).astype(dtype).reshape(shape)


def model() -> Model:
    """One tensor of every kind that an artifact stores; integers and scales are given, nothing is computed."""
    table = QuantizedTensor(
        spec=QuantSpec(bits=4, granularity="group", group_size=3),
        integers=counted((5, 7), -7, 15, np.int8),
        scale=(np.arange(1, 16) / 8).astype(np.float16).reshape(5, 3),
    )
    linear = QuantizedTensor(
        spec=QuantSpec(bits=8, granularity="channel"),
        integers=counted((4, 7), -127, 255, np.int8),
        scale=np.array([[0.1], [1e-6], [0.0], [250.0]], np.float32),
    )
    three = QuantizedTensor(
        spec=QuantSpec(bits=3, granularity="channel", symmetric=False, axis=1),
        integers=counted((2, 5), 0, 8, np.uint8),
        scale=np.array([[0.5], [0.25], [1.0], [2.0], [4.0]], np.float32),
        zero_point=np.array([[0], [1], [3], [7], [4]], np.uint8),
    )
    one_scale = QuantizedTensor(
        spec=QuantSpec(bits=2, granularity="tensor"),
        integers=counted((3, 3), -1, 3, np.int8),
        scale=np.array([[0.75]], np.float32),
    )
    layers = (
        Layer(name="table", kind="embedding", weight="table.weight"),
        Layer(name="linear", kind="linear", weight="linear.weight"),
        Layer(name="three", kind="linear", weight="three.weight", axis=1),
    )
    inputs = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids",))
    return Model(
        spec=ModelSpec(
            family="transformer",
            modality="text",
            output="embedding",
            inputs=inputs,
            dim=4,
            normalised=True,
            preprocess=TextPreprocess(max_length=16, query_prefix="query: ", token_table="table.weight"),
        ),
        files={"config.json": b'{"model_type": "tiny"}', "1_Pooling/config.json": b"{}", "vocab.txt": "é\n".encode()},
        tensors={
            "table.weight": table,
            "linear.weight": linear,
            "three.weight": three,
            "one_scale": one_scale,
            "half": np.array([0.5, -65504, 6e-8], np.float16),
            "linear.bias": np.array([1.5, -2, 1e-40, 3.4e38], np.float32),
            "position_ids": np.arange(6, dtype=np.int64).reshape(1, 6),
            "mask": np.array([True, False]),
        },
        layers=layers,
        activations={
            "linear.weight": ActivationQuant(mode="static", scale=0.05, zero_point=100),
            "three.weight": ActivationQuant(mode="dynamic"),
        },
    )


def thinned(array: Array, zero: Array | int = 0) -> Array:
    """The array with ``zero`` in all places but every third and every seventh."""
    places = np.arange(array.size).reshape(array.shape)
    return np.where((places % 3 == 0) | (places % 7 == 0), array, zero).astype(array.dtype)


def sparse_model() -> Model:
    """Tensors of many zeros, of every kind that is stored without them, and one that is too small for it."""
    floats = (counted((30, 41), -600, 1201, np.float32) / 8).astype(np.float32)
    floats[0, :4] = (-0.0, np.float32(1e-45), 0.0, -0.0)
    zero_point = (np.arange(30, dtype=np.uint8) % 8)[:, None]
    return dataclasses.replace(
        model(),
        tensors={
            "table.weight": QuantizedTensor(
                spec=QuantSpec(bits=4, granularity="group", group_size=16),
                integers=thinned(counted((40, 41), -7, 15, np.int8)),
                scale=np.full((40, 3), 0.25, np.float16),
            ),
            "linear.weight": thinned(floats),
            "three.weight": QuantizedTensor(
                spec=QuantSpec(bits=3, granularity="channel", symmetric=False),
                integers=thinned(counted((30, 90), 0, 8, np.uint8), zero_point),
                scale=np.full((30, 1), 0.5, np.float32),
                zero_point=zero_point,
            ),
            "half": thinned(counted((25, 37), -9, 19, np.float16)),
            "small": thinned(counted((4, 5), -9, 19, np.float32)),
            "linear.bias": np.zeros(300, np.float32),
        },
    )


def shared_model() -> Model:
    """Code books of a tensor and of channels, eight-bit floats, factors of smoothing, and a tied table."""
    eight = np.arange(12, dtype=np.float32).reshape(3, 4) / 4
    return dataclasses.replace(
        model(),
        tensors={
            "table.weight": QuantizedTensor(
                spec=QuantSpec(bits=2, granularity="tensor", entries=3),
                integers=counted((5, 7), 0, 3, np.uint8),
                scale=np.ones((1, 1), np.float32),
                codebook=np.array([[-1.5, 0.0, 1e-40]], np.float32),
            ),
            "linear.weight": QuantizedTensor(
                spec=QuantSpec(bits=3, granularity="channel", entries=5),
                integers=counted((4, 7), 0, 5, np.uint8),
                scale=np.ones((1, 1), np.float32),
                codebook=(np.arange(20, dtype=np.float16) / 8).reshape(4, 5),
            ),
            "three.weight": QuantizedTensor(
                spec=QuantSpec(bits=8, granularity="tensor", float8="e4m3"),
                integers=eight.astype(ml_dtypes.float8_e4m3fn),
                scale=np.array([[0.5]], np.float32),
            ),
        },
        activations={},
        smoothing={"linear.weight": np.array([[0.5, 1, 2, 4, 8, 16, 32]], np.float32)},
        tied={"output.weight": "table.weight"},
    )


def recipe() -> Recipe:
    """A recipe with every field."""
    step = RecipeStep(method="quantize.weights_int", parameters={"bits": 4, "granularity": "group", "group_size": 3})
    return Recipe(
        steps=(step,), gates=Gates(metric="mrr@10", max_loss=0.02), targets=("openvino",), seed=3, name="golden"
    )


def comparison() -> Comparison:
    """A report with every field."""
    environment = Environment(
        cpu="a processor", cores=2, threads=1, instruction_sets=("avx2",), memory_bytes=8 * 10**9, system="Linux",
        python="3.12.0", versions=VERSIONS,
    )  # fmt: skip
    score = Measurement(name="mrr@10", value=0.5, n=2, interval=(0.25, 0.75), per_query=(0.0, 1.0))
    size = Measurement(name="size", value=100.0, unit="B", higher_is_better=False, n=1)
    change = Change(
        metric="mrr@10", before=0.5, after=0.5, relative=0.0, interval=(-0.1, 0.1), lower_bound=-0.1, n=2, n_needed=50
    )
    gate = GateResult(gate="quality", status="undecided", detail="too few queries", value=0.0, limit=-0.02)
    record = StepRecord(
        step="quantize.weights_int", parameters=recipe().steps[0].parameters, changed=("table.weight",),
        parameters_before=82, parameters_after=82, bytes_before=400, bytes_after=200, macs_before=1000, macs_after=900,
        seconds=0.25, compression_ratio=0.5, error_mean=0.01, error_max=0.1, sqnr_db=20.5, quality=change,
        gates=(gate,), notes=("a note",),
    )  # fmt: skip
    report = Report(subject="golden", environment=environment, measurements=(score, size))
    return Comparison(
        collection="six, test", original=report, compressed=report, alternatives=(report,), changes=(change,),
        gates=(gate,), records=(record,), bytes_before={"token table": 140}, bytes_after={"token table": 48},
        examples=(QueryExample(query="cat", before=(("A cat.", True),), after=(("A dog.", False),), score_before=1.0,
                               score_after=0.0),),
        command="slimseek compress", notes=("a note",),
    )  # fmt: skip


def write(folder: Path) -> None:
    """Write the artifact into an existing folder."""
    artifact.write(model(), folder, recipe=recipe(), comparison=comparison(), collection=COLLECTION, versions=VERSIONS)


if __name__ == "__main__":
    with writing(FOLDER, force=True) as made:
        write(made)
    print(f"wrote {FOLDER}")
    with writing(SPARSE, force=True) as made:
        artifact.write(sparse_model(), made, collection=COLLECTION, versions=VERSIONS)
    print(f"wrote {SPARSE}")
    with writing(SHARED, force=True) as made:
        artifact.write(shared_model(), made, collection=COLLECTION, versions=VERSIONS)
    print(f"wrote {SHARED}")
