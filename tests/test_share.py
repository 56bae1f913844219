"""simplify.share: code books against the best there are, stored at their true width, the same in every runtime."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from slimseek import artifact, choose, folder, inspect, integers, plugins, rebuild
from slimseek.errors import ArtifactError, NoEffect, UsageError
from slimseek.fingerprint import fingerprint
from slimseek.methods.simplify._clusters import cluster, nearest
from slimseek.methods.simplify._codebook import share
from slimseek.schema import Array, Model, QuantizedTensor, QuantSpec, Samples
from small import BACKENDS, CORPUS, kernels, packaged, tiny_model

TEXTS = [*CORPUS.values(), "stone", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
NO_SAMPLES = Samples(calibration=(), texts=())
TABLE = "transformer.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def shared(model: Model, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", "simplify.share")(**parameters).apply(model, samples)
    return changed


def error(rows: Array, weights: Array, books: Array) -> Array:
    found = np.take_along_axis(books, nearest(rows, books).astype(np.intp), 1)
    wrong: Array = (weights * np.square(found.astype(np.float64) - rows)).sum(1)
    return wrong


def least_error(row: Array, weight: Array, entries: int) -> float:
    """The best there is: dynamic programming over where each cluster of the sorted values ends."""
    order = np.argsort(row)
    row, weight = row[order].astype(np.float64), weight[order].astype(np.float64)
    cost = np.full((len(row) + 1, len(row) + 1), np.inf)
    for start in range(len(row)):
        for end in range(start + 1, len(row) + 1):
            part, mass = row[start:end], weight[start:end]
            cost[start, end] = (mass * (part - (mass * part).sum() / mass.sum()) ** 2).sum()
    best = np.where(np.arange(len(row) + 1) == 0, 0.0, np.inf)
    for _ in range(entries):
        best = (best[:, None] + cost).min(0)
        best[0] = 0.0
    return float(best[-1])


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize("entries", [2, 4, 8])
def test_the_error_is_close_to_the_least_there_is(entries: int) -> None:
    generator = np.random.default_rng(entries)
    rows = np.concatenate([generator.standard_normal((4, 80)), generator.standard_t(3, (4, 80))]).astype(np.float32)
    weights = generator.gamma(1, size=rows.shape).astype(np.float32) + np.float32(0.01)
    found = error(rows, weights, cluster(rows, weights, entries))
    best = np.array([least_error(row, weight, entries) for row, weight in zip(rows, weights, strict=True)])
    assert (found >= best * (1 - 1e-5)).all()
    assert (found <= best * 1.35).all(), "each end is a local one"
    assert found.sum() <= best.sum() * 1.15


@pytest.mark.parametrize(("bits", "decibels"), [(1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22), (5, 26.01)])
def test_normal_values_lose_what_max_computed(bits: int, decibels: float) -> None:
    """J. Max, Quantizing for Minimum Distortion, 1960, table I."""
    row = np.random.default_rng(0).standard_normal((1, 400_000)).astype(np.float32)
    noise = error(row, np.ones_like(row), cluster(row, np.ones_like(row), 2**bits))
    assert 10 * np.log10(np.square(row, dtype=np.float64).sum() / noise[0]) == pytest.approx(decibels, abs=0.05)


def test_heavy_values_are_met_closer() -> None:
    generator = np.random.default_rng(1)
    row = generator.standard_normal((1, 5000)).astype(np.float32)
    weights = np.where(row > 1, 1000, 1).astype(np.float32)
    far = row[0] > 1
    plain, weighted = (cluster(row, mass, 8) for mass in (np.ones_like(row), weights))
    assert error(row[:, far], weights[:, far], weighted) < 0.2 * error(row[:, far], weights[:, far], plain)
    assert error(row[:, ~far], weights[:, ~far], weighted) > error(row[:, ~far], weights[:, ~far], plain)


def test_rows_together_are_clustered_as_each_alone() -> None:
    generator = np.random.default_rng(2)
    rows = (generator.standard_normal((40, 200)) * 10.0 ** generator.integers(-6, 6, (40, 1))).astype(np.float32)
    weights = np.ones_like(rows)
    alone = np.concatenate([cluster(row[None], weights[:1], 8) for row in rows])
    np.testing.assert_allclose(cluster(rows, weights, 8), alone, rtol=1e-5)


def test_no_cluster_stays_empty_where_values_lie_in_heaps() -> None:
    heaps = np.array([-1000.0, 0.0, 0.001, 0.002, 1.0, 999.0], np.float32)
    row = np.repeat(heaps, [1, 500, 500, 500, 500, 1])[None]
    books = cluster(row, np.ones_like(row), 5)
    assert len(np.unique(nearest(row, books))) == 5
    assert error(row, np.ones_like(row), books)[0] == pytest.approx(500 * 2 * 0.0005**2, rel=1e-3)


# ---------------------------------------------------------------- tensors


CASES: dict[str, Array] = {
    "three values": np.random.default_rng(0).choice(np.array([0.1, 0.25, -3e-9], np.float32), (8, 1, 3, 3)),
    "zeros": np.zeros((4, 1, 3, 3), np.float32),
    "one value": np.full((2, 5), 1e-30, np.float32),
    "a vector": np.array([1, -2, 1], np.float32),
    "half, three values": np.random.default_rng(1).choice(np.array([0.0, 0.0, -1.5, 7.1], np.float32), (9, 64)),
}


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("case", CASES)
def test_few_values_are_kept_exactly_in_as_few_bits_as_they_take(case: str, bits: int, granularity: Any) -> None:
    """CASES Q21: fewer unique values than clusters, and a weight of zeros."""
    values = CASES[case]
    tensor = share(values, np.zeros_like(values), bits, granularity, 0)
    assert np.array_equal(integers.dequantize(tensor), values)
    most = max(len(np.unique(row)) for row in (values[None] if granularity == "tensor" else values))
    assert tensor.spec.entries == most
    assert tensor.spec.bits == (2 if most > 2 else 1)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_depthwise_kernel_at_any_width(bits: int, granularity: Any, axis: int) -> None:
    values = np.random.default_rng(bits).standard_normal((16, 4, 3, 3)).astype(np.float32)
    tensor = share(values, np.ones_like(values), bits, granularity, axis)
    found = integers.dequantize(tensor)
    assert np.isfinite(found).all()
    rows, wanted = (np.moveaxis(array, axis, 0).reshape(values.shape[axis], -1) for array in (found, values))
    if granularity == "tensor":
        rows, wanted = rows.reshape(1, -1), wanted.reshape(1, -1)
    for row, given in zip(rows, wanted, strict=True):
        assert len(np.unique(row)) <= 2**bits
        book = np.unique(row).astype(np.float64)
        best = np.abs(given[:, None] - book).min(1)
        np.testing.assert_allclose(np.abs(given - row), best, rtol=1e-5, err_msg="each has the nearest of the values")


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_zeros_of_a_pruned_weight_stay_and_take_a_bit(granularity: Any) -> None:
    generator = np.random.default_rng(3)
    values = generator.standard_normal((40, 300)).astype(np.float32)
    values[generator.random(values.shape) < 0.7] = 0
    tensor = share(values, np.ones_like(values), 4, granularity, 0)
    found = integers.dequantize(tensor)
    assert not found[values == 0].any()
    held = np.count_nonzero(tensor.integers)
    assert tensor.codebook is not None
    assert integers.stored_bytes(tensor) == 40 * 300 // 8 + -(-held * 4 // 8) + tensor.codebook.nbytes
    assert np.square(found - values).sum() < 0.012 * np.square(values).sum()


def test_code_books_of_channels_are_sixteen_bits_where_those_hold_them() -> None:
    values = np.random.default_rng(4).standard_normal((6, 100)).astype(np.float32)
    few = np.where(np.arange(100) < 99, 0.1, values).astype(np.float32)
    arrays = (values, values * 1e-6, values * 1e6, few)
    kinds = [share(array, np.ones_like(array), 3, "channel", 0).codebook for array in arrays]
    assert [kind.dtype.name for kind in kinds if kind is not None] == ["float16", "float32", "float32", "float32"]


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("granularity", "bits"), [("tensor", 1), ("tensor", 3), ("tensor", 8), ("channel", 2), ("channel", 4)]
)
def test_a_model_goes_through_the_artifact_and_its_bytes_are_those_of_the_places(
    original: Model, bits: int, granularity: str, tmp_path: Path
) -> None:
    model = shared(original, bits=bits, granularity=granularity)
    artifact.write(model, tmp_path)
    _, back = artifact.read(tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    several = 0
    for name, tensor in model.tensors.items():
        found = back.tensors[name]
        assert np.array_equal(integers.dequantize(found), integers.dequantize(tensor)), name
        if isinstance(tensor, QuantizedTensor):
            several += 1
            assert isinstance(found, QuantizedTensor)
            assert found.spec == tensor.spec
            assert tensor.codebook is not None
            assert stored[f"{name}#codebook"].tobytes() == tensor.codebook.tobytes()
            assert f"{name}#scale" not in stored
            parts = [stored[part] for part in (name, f"{name}#codebook", f"{name}#mask") if part in stored]
            assert sum(part.nbytes for part in parts) == integers.stored_bytes(tensor)
            assert integers.stored_bytes(tensor) < original.tensors[name].nbytes  # type: ignore[union-attr]
    assert several
    assert {layer.stored for layer in inspect.inspect(tmp_path).layers} & {
        f"{2**bits} values {granularity}"
    }  # fmt: skip


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_document_says_how_a_code_book_is_read(original: Model, granularity: str, tmp_path: Path) -> None:
    """docs/artifact.md read literally, without a line of slimseek."""
    model = shared(original, bits=3, granularity=granularity, layers=("linear",))
    artifact.write(model, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    listed = json.loads((tmp_path / "manifest.json").read_text())["quant"]
    assert listed
    for name, entry in listed.items():
        rows, columns = entry["shape"]
        bits = np.unpackbits(stored[name], bitorder="little")[: rows * columns * entry["spec"]["bits"]]
        places = (bits.reshape(rows, columns, -1) * 2 ** np.arange(entry["spec"]["bits"])).sum(-1)
        book = stored[f"{name}#codebook"].astype(np.float32)
        assert book.shape == (rows if granularity == "channel" else 1, entry["spec"]["entries"])
        values = [[book[row % len(book), place] for place in places[row]] for row in range(rows)]
        assert np.array_equal(values, integers.dequantize(model.tensors[name]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_a_package_computes_with_just_these_values(
    original: Model, backend: str, bits: int, granularity: str, tmp_path: Path
) -> None:
    model = shared(original, bits=bits, granularity=granularity)
    assert integers.is_shared(model.tensors[TABLE]), "the table too"
    expected = choose.encoder(model, "reference", 1).documents(TEXTS)
    found = packaged(model, backend, tmp_path).documents(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_code_books_are_folded_when_a_package_is_loaded(
    original: Model, backend: str, granularity: str, tmp_path: Path
) -> None:
    """What runs with every query is what runs without them, but for one look-up more in each table."""
    packaged(original, backend, tmp_path / "plain")
    packaged(shared(original, granularity=granularity), backend, tmp_path / "thin")
    before, after = (kernels(tmp_path / form, backend) for form in ("plain", "thin"))
    heavy = {kind for kind in before + after if kind.split()[0] in ("MatMul", "FullyConnected", "Gemm", "FusedMatMul")}
    assert heavy
    assert {kind: before[kind] for kind in heavy} == {kind: after[kind] for kind in heavy}
    tables = sum(layer.kind == "embedding" for layer in original.layers)
    assert after["Gather"] - before["Gather"] <= tables
    assert not any(kind.split()[0] == "Transpose" for kind in after - before)


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two convolutions, the second in groups, and a linear layer of 131,072 weights."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, groups=4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 256),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    torch.onnx.export(network.eval(), (torch.randn(2, 3, 8, 8),), str(path), input_names=["x"], output_names=["y"],
                      dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, dynamo=False)  # fmt: skip
    return choose.model(path)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_of_convolutions_in_a_package_that_shrinks_as_much(
    convolutions: Model, backend: str, bits: int, granularity: str, tmp_path: Path
) -> None:
    model = shared(convolutions, NO_SAMPLES, bits=bits, granularity=granularity)
    assert sum(integers.is_shared(tensor) for tensor in model.tensors.values()) >= 2
    values = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    expected = choose.family(model).run(model, 1)({"x": values})
    runtime = plugins.load("backends", backend)()
    sizes = []
    for form, each in (("plain", convolutions), ("thin", model)):
        (tmp_path / form).mkdir()
        runtime.export(each, tmp_path / form)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / form).iterdir()))
    np.testing.assert_allclose(runtime.open(tmp_path / "thin", 1)({"x": values}), expected, atol=2e-5)
    weights = [sum(map(integers.stored_bytes, each.tensors.values())) for each in (convolutions, model)]
    assert weights[0] - weights[1] - (sizes[0] - sizes[1]) < 16_000, "nodes, and a table of 8 kB for all of them"
    assert sizes[1] < 0.35 * sizes[0]


def test_inputs_seen_on_calibration_texts_count(original: Model) -> None:
    """The mean squared change of a layer's outputs is smaller than without them."""
    name = "transformer.encoder.layer.1.output.dense.weight"
    seen: list[Array] = []
    batch = choose.encoder(original, "this", 1).input(TEXTS)
    choose.family(original).observe(original, [batch], lambda at, x: seen.append(x) if at == name else None)
    weight = integers.dequantize(original.tensors[name])
    by_inputs, plain = (
        shared(original, bits=2, weighted=weighted, layers=("linear",)).tensors[name] for weighted in (True, False)
    )
    assert not np.array_equal(integers.dequantize(by_inputs), integers.dequantize(plain))
    squares = np.square(np.concatenate(seen), dtype=np.float64).mean(0)

    def cost(tensor: Any) -> float:
        return float((squares * np.square(integers.dequantize(tensor) - weight)).sum())

    assert cost(by_inputs) < cost(plain)
    without = shared(original, NO_SAMPLES, bits=2, layers=("linear",)).tensors[name]
    assert np.array_equal(integers.dequantize(without), integers.dequantize(plain))


def test_a_rebuilt_model_is_an_ordinary_one_with_the_shared_values(original: Model, tmp_path: Path) -> None:
    model = shared(original)
    (tmp_path / "small").mkdir()
    artifact.write(model, tmp_path / "small")
    rebuild.rebuild(tmp_path / "small", tmp_path / "plain", threads=1)
    back = choose.model(tmp_path / "plain")
    for layer in back.layers:
        tensor = back.tensors[layer.weight]
        assert isinstance(tensor, np.ndarray)
        if integers.is_shared(model.tensors[layer.weight]):
            assert len(np.unique(tensor)) <= 16


def test_shared_weights_are_not_trained_rounded_pruned_or_shared_again(original: Model) -> None:
    model = shared(original)
    samples = dataclasses.replace(SAMPLES, original=original)
    with pytest.raises(UsageError):
        plugins.load("methods", "distil.embedding")().apply(model, samples)
    with pytest.raises(UsageError, match="prune before"):
        plugins.load("methods", "prune.weights")().apply(model, SAMPLES)
    for method, parameters in (("quantize.activations_int", {}), ("simplify.share", {"bits": 2})):
        with pytest.raises(NoEffect):
            plugins.load("methods", method)(**parameters).apply(model, SAMPLES)


def test_a_model_with_another_code_book_is_another_teacher(original: Model) -> None:
    model = shared(original)
    name, tensor = next((name, one) for name, one in model.tensors.items() if isinstance(one, QuantizedTensor))
    assert tensor.codebook is not None
    other = dataclasses.replace(tensor, codebook=tensor.codebook * np.float32(2))
    changed = dataclasses.replace(model, tensors=dict(model.tensors) | {name: other})
    assert fingerprint(changed) != fingerprint(model)
    assert fingerprint(dataclasses.replace(model)) == fingerprint(model)


def test_a_cut_vocabulary_takes_rows_with_their_code_books(original: Model) -> None:
    for granularity in ("tensor", "channel"):
        model = shared(original, granularity=granularity)
        rows = np.array([0, 5, 9])
        taken = integers.take_rows(model.tensors[TABLE], rows)
        assert np.array_equal(integers.dequantize(taken), integers.dequantize(model.tensors[TABLE])[rows])


def test_notes_say_what_shares_and_what_does_not(original: Model) -> None:
    step = plugins.load("methods", "simplify.share")(bits=8, granularity="channel")
    with pytest.raises(NoEffect, match="no layer would become smaller"):
        step.apply(original, SAMPLES)
    step = plugins.load("methods", "simplify.share")(bits=4)
    [first, *_] = step.notes(original, step.apply(original, SAMPLES))
    assert "share at most 16 values a tensor" in first
    assert 15 < float(first.rpartition(": ")[2].removesuffix(" dB")) < 30


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range_are_one_line(bits: int) -> None:
    with pytest.raises(UsageError, match=f"simplify.share: bits is {bits}; 1 to 8 are allowed"):
        plugins.load("methods", "simplify.share")(bits=bits)


def test_nan_is_refused_by_the_tensors_name(original: Model) -> None:
    bad = np.array(original.tensors[TABLE])
    bad[3, 3] = np.nan
    model = dataclasses.replace(original, tensors=dict(original.tensors) | {TABLE: bad})
    with pytest.raises(UsageError, match=f"{TABLE} holds NaN"):
        shared(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda codebook: None,
        lambda codebook: codebook[:, :-1],
        lambda codebook: codebook.astype(np.float64),
        lambda codebook: codebook[0],
        lambda codebook: np.repeat(codebook, 2, axis=0),
    ],
)
def test_a_code_book_that_does_not_fit_is_one_line_that_names_the_tensor(
    original: Model, change: Any, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    written = artifact.write(shared(original), place)
    stored = load_file(place / "weights.safetensors")
    codebook = change(stored.pop(f"{TABLE}#codebook"))
    save_file(stored | ({} if codebook is None else {f"{TABLE}#codebook": codebook}), place / "weights.safetensors")
    rewritten(place, written)
    with pytest.raises(ArtifactError, match=f"the tensor {TABLE} is not whole"):
        artifact.read(place)


def rewritten(place: Path, written: artifact.Artifact) -> None:
    """The manifest with the hashes of what lies there now."""
    files = folder.entries(place, leave_out=artifact.MANIFEST)
    folder.write_json(place / artifact.MANIFEST, msgspec.structs.replace(written, files=files))


def test_a_place_outside_of_the_code_book_is_refused(original: Model, tmp_path: Path) -> None:
    name = original.layers[-1].weight
    tensor = share(original.tensors[name], np.ones(original.tensors[name].shape, np.float32), 2, "tensor", 0)
    assert tensor.codebook is not None
    spec = QuantSpec(bits=2, granularity="tensor", entries=3)
    wrong = dataclasses.replace(tensor, spec=spec, codebook=tensor.codebook[:, :3])
    artifact.write(dataclasses.replace(original, tensors=dict(original.tensors) | {name: wrong}), tmp_path)
    with pytest.raises(ArtifactError, match="names entry 3 of a code book of 3"):
        artifact.read(tmp_path)


@pytest.mark.parametrize("wrong", [{"bits": 9}, {"entries": 5}, {"entries": 0}, {"symmetric": False}, {"axis": 2},
                                   {"granularity": "group", "group_size": 8}, {"float8": "e4m3"}])  # fmt: skip
def test_a_spec_that_no_code_book_has_is_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"bits": 2, "granularity": "channel", "entries": 4} | wrong
    with pytest.raises(UsageError, match="does not fit a tensor"):
        integers.codebook_shape((4, 32), QuantSpec(**fields))
    with pytest.raises(UsageError, match="takes no scales"):
        integers.scale_shape((4, 32), QuantSpec(bits=2, granularity="channel", entries=4))
