"""simplify.low_rank: the nearest products by their definition, and networks in which layers have become two."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimseek import artifact, choose, compress, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.batches import batches
from slimseek.methods.simplify._ranks import by_energy, by_parameters, factors, spectrum
from slimseek.rebuild import rebuild
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import BACKENDS, CORPUS, KINDS, bare, conv_network, packaged, tiny_model

TEXTS = list(CORPUS.values())
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)


def factored(model: Model, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", "simplify.low_rank")(**parameters).apply(model, samples)
    return changed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


# ---------------------------------------------------------------- the nearest product


def inputs(width: int, count: int = 200) -> Array:
    """Rows with very different spreads, one direction of which never varies."""
    random = np.random.default_rng(0)
    mixed = random.normal(size=(count, width - 1)) @ random.normal(size=(width - 1, width))
    return mixed * np.logspace(0, 2, width)


def optimum(weight: Array, rows: Array, rank: int) -> float:
    """The least mean square of (W - B A) x by numpy's own decomposition of W X^T, which knows no second moments."""
    sizes = np.linalg.svd(weight @ rows.T, compute_uv=False)
    return float((sizes[rank:] ** 2).sum() / len(rows))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factors_reach_the_least_error_that_any_product_of_their_rank_has(rank: int) -> None:
    random = np.random.default_rng(1)
    weight, rows = random.normal(size=(6, 9)), inputs(9)
    second, first = factors(weight, spectrum(weight, rows.T @ rows / len(rows)), rank)
    assert (second.shape, first.shape) == ((6, rank), (rank, 9))

    def error(product: Array) -> float:
        return float(np.square(rows @ (weight - product).T).sum() / len(rows))

    assert error(second @ first) == pytest.approx(optimum(weight, rows, rank), rel=1e-4)
    for _ in range(200):
        other = [part + random.normal(0, 0.01 * np.abs(part).mean(), part.shape) for part in (second, first)]
        assert error(other[0] @ other[1]) >= error(second @ first) * (1 - 1e-5)
    left, sizes, right = np.linalg.svd(weight)
    plain = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    assert error(second @ first) < error(plain), "the plain decomposition does not know the inputs"


def test_without_inputs_it_is_the_plain_decomposition() -> None:
    weight = np.random.default_rng(1).normal(size=(6, 9))
    left, sizes, right = np.linalg.svd(weight)
    second, first = factors(weight, spectrum(weight, None), 3)
    assert np.allclose(second @ first, (left[:, :3] * sizes[:3]) @ right[:3], atol=1e-5)
    assert np.allclose(second.std(0) * 1e-9 + np.linalg.norm(second, axis=0), np.linalg.norm(first, axis=1), rtol=1e-5)


def test_lost_energy_is_that_of_the_directions_left_out() -> None:
    weight, rows = np.random.default_rng(1).normal(size=(6, 9)), inputs(9)
    found = spectrum(weight, rows.T @ rows / len(rows))
    for rank in range(7):
        assert found.lost[rank] == pytest.approx(optimum(weight, rows, rank) / optimum(weight, rows, 0), abs=1e-9)
    for energy in (0.5, 0.9, 0.999):
        chosen = by_energy({"w": found}, energy, 1)
        least = next(
            rank for rank in range(1, 7) if optimum(weight, rows, rank) <= (1 - energy) * optimum(weight, rows, 0)
        )
        assert chosen == ({"w": least} if least * 15 < 54 else {})


def test_ranks_are_shared_out_as_the_best_of_all_combinations() -> None:
    """Among all ranks of three layers with no more weights, none loses less energy."""
    random = np.random.default_rng(2)
    spectra = {}
    for number, decay in enumerate((0.3, 0.6, 0.9)):
        left, _, right = np.linalg.svd(random.normal(size=(16, 24)), full_matrices=False)
        spectra[str(number)] = spectrum((left * decay ** np.arange(16)) @ right, None)
    whole = 3 * 16 * 24
    for share in (0.3, 0.5, 0.7):
        chosen = by_parameters(spectra, share, 1)
        assert chosen is not None
        options = {name: [(found.cost(rank), found.lost[rank]) for rank in found.ranks(1)] + [(16 * 24, 0.0)]
                   for name, found in spectra.items()}  # fmt: skip
        spent = [spectra[name].cost(rank) for name, rank in chosen.items()]
        cost = sum(spent) + 16 * 24 * (3 - len(chosen))
        loss = sum(spectra[name].lost[rank] for name, rank in chosen.items())
        assert cost <= share * whole
        best = min(
            sum(part[1] for part in parts) for parts in itertools.product(*options.values())
            if sum(part[0] for part in parts) <= cost
        )  # fmt: skip
        assert loss == pytest.approx(best, abs=1e-12)
    assert by_parameters(spectra, 0.05, 1) is None


def test_an_input_that_is_always_zero_or_a_weight_that_is_zero_does_no_harm() -> None:
    weight = np.random.default_rng(1).normal(size=(6, 9))
    for matrix, second in ((weight, np.zeros((9, 9))), (np.zeros((6, 9)), np.eye(9))):
        found = spectrum(matrix, second)
        both = factors(matrix, found, 2)
        assert all(np.isfinite(part).all() for part in both)
        assert (found.lost == 0).all()


# ---------------------------------------------------------------- transformers


def product(before: Model, after: Model) -> Model:
    """The first model with B A in the place of W, and with the second's biases."""
    tensors = dict(before.tensors)
    for layer in before.layers:
        if layer.weight not in after.tensors:
            stem = layer.weight.removesuffix(".weight")
            both = np.asarray(after.tensors[f"{stem}.1.weight"]) @ np.asarray(after.tensors[f"{stem}.0.weight"])
            tensors[layer.weight] = both if layer.axis == 0 else np.ascontiguousarray(both.T)
            if isinstance(layer.bias, str):
                tensors[layer.bias] = after.tensors[f"{stem}.1.bias"]
    return dataclasses.replace(before, tensors=tensors)


@pytest.mark.parametrize("kind", [*KINDS, "GPT2"])
def test_two_layers_compute_what_one_with_their_product_does(tmp_path: Path, kind: str) -> None:
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} if kind == "GPT2" else {}
    bare(tmp_path / kind, kind, **settings)
    whole = choose.model(tmp_path / kind)
    smaller = factored(whole, parameters=0.7, multiple_of=1)
    assert smaller.parameters < whole.parameters
    vectors = [choose.encoder(one, kind, 1).documents(TEXTS) for one in (smaller, product(whole, smaller))]
    assert np.allclose(*vectors, atol=2e-5)
    assert cosines(vectors[0], choose.encoder(whole, kind, 1).documents(TEXTS)).min() < 1 - 1e-6
    assert {layer.weight for layer in smaller.layers} <= set(smaller.tensors)
    assert {layer.bias for layer in smaller.layers if isinstance(layer.bias, str)} <= set(smaller.tensors)


def test_the_error_of_a_layer_is_the_least_that_its_rank_allows(model: Model) -> None:
    """Measured on what the layer really reads, with a bias that takes the mean: of W (x - E[x]) nothing is nearer."""
    name = "transformer.encoder.layer.0.intermediate.dense"
    smaller = factored(model, energy=0.9, skip=("attention", "output"))
    seen: list[Array] = []

    def visit(weight: str, values: Array) -> None:
        if weight == f"{name}.weight":
            seen.append(values)

    choose.family(model).observe(model, batches(model, TEXTS), visit)
    rows = np.concatenate(seen).astype(np.float64)
    weight, bias = (np.asarray(model.tensors[f"{name}.{part}"], np.float64) for part in ("weight", "bias"))
    first, second = (np.asarray(smaller.tensors[f"{name}.{part}.weight"], np.float64) for part in "01")
    new = np.asarray(smaller.tensors[f"{name}.1.bias"], np.float64)
    error = np.square(rows @ first.T @ second.T + new - rows @ weight.T - bias).sum(1).mean()
    centred = rows - rows.mean(0)
    assert error == pytest.approx(optimum(weight, centred, len(first)), rel=1e-3)
    assert optimum(weight, centred, len(first)) <= 0.1 * optimum(weight, centred, 0)
    assert optimum(weight, centred, len(first) - 8) > 0.1 * optimum(weight, centred, 0), "no rank that is needless"


@pytest.mark.parametrize("samples", [SAMPLES, Samples(calibration=(), texts=TEXTS)])
def test_unweighted_or_without_texts_98_percent_of_the_squares_of_a_weight_are_kept(
    model: Model, samples: Samples
) -> None:
    """By numpy's own decomposition, of weights whose directions count ever less; the bias stays."""
    tensors = dict(model.tensors)
    for layer in choose.family(model).factorable(model):
        left, sizes, right = np.linalg.svd(np.asarray(tensors[layer.weight]), full_matrices=False)
        tensors[layer.weight] = (left * 0.6 ** np.arange(len(sizes)) @ right).astype(np.float32)
    model = dataclasses.replace(model, tensors=tensors)
    smaller = factored(model, samples, weighted=bool(not samples.calibration), multiple_of=1)
    seen = 0
    for layer in model.layers:
        if layer.weight in smaller.tensors:
            continue
        name = layer.weight.removesuffix(".weight")
        first, second = (np.asarray(smaller.tensors[f"{name}.{part}.weight"], np.float64) for part in "01")
        weight = np.asarray(model.tensors[layer.weight], np.float64)
        left, sizes, right = np.linalg.svd(weight, full_matrices=False)
        kept = np.cumsum(sizes**2) / (sizes**2).sum()
        assert len(first) == int((kept < 0.98).sum()) + 1
        assert np.allclose(
            second @ first, (left[:, : len(first)] * sizes[: len(first)]) @ right[: len(first)], atol=1e-5
        )
        assert np.array_equal(smaller.tensors[f"{name}.1.bias"], model.tensors[f"{name}.bias"])
        seen += 1
    assert seen > 0


def test_the_notes_name_the_ranks_and_count_the_weights(model: Model) -> None:
    smaller = factored(model, parameters=0.5, skip=("attention",))
    count, ranks = notes = plugins.load("methods", "simplify.low_rank")(parameters=0.5).notes(model, smaller)
    assert len(notes) == 2
    gone = [layer for layer in model.layers if layer.weight not in smaller.tensors]
    pairs = [[np.asarray(smaller.tensors[layer.weight.replace(".weight", f".{part}.weight")]) for part in "01"]
             for layer in gone]  # fmt: skip
    before = sum(np.asarray(model.tensors[layer.weight]).size for layer in gone)
    after, least, most = (
        sum(one.size for pair in pairs for one in pair),
        *(pick(len(first) for first, _ in pairs) for pick in (min, max)),
    )
    assert count == f"{len(gone)} layers became two: {before:,} -> {after:,} weights, ranks {least} to {most}"
    assert ranks == "ranks: " + ", ".join(
        f"{layer.name} {len(first)}" for layer, (first, _) in zip(gone, pairs, strict=True)
    )


def test_parameters_is_kept_and_what_is_skipped_stays(model: Model) -> None:
    smaller = factored(model, parameters=0.5, skip=("layer.1.output",))
    kept = "transformer.encoder.layer.1.output.dense.weight"
    assert smaller.tensors[kept] is model.tensors[kept]
    layers = [layer for layer in model.layers
              if layer.kind == "linear" and "pooler" not in layer.name and layer.weight != kept]  # fmt: skip
    sizes = [sum(np.prod(one.tensors[name].shape) for name in names) for one, names in (
        (model, [layer.weight for layer in layers]),
        (smaller, [layer.weight for layer in smaller.layers
                   if layer.kind == "linear" and "pooler" not in layer.name and layer.weight != kept]),
    )]  # fmt: skip
    assert 0.25 * sizes[0] < sizes[1] <= 0.5 * sizes[0]
    assert model.parameters - smaller.parameters == sizes[0] - sizes[1]
    assert choose.family(smaller).macs(smaller, 16) < choose.family(model).macs(model, 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_runtimes_run_two_products_float_and_rounded(tmp_path: Path, model: Model, backend: str) -> None:
    import onnx

    smaller = factored(model, parameters=0.6)
    gone = sum(layer.weight not in smaller.tensors for layer in model.layers)
    assert gone
    reference = choose.encoder(smaller, "reference", 1).documents(TEXTS)
    assert cosines(packaged(smaller, backend, tmp_path / "float").documents(TEXTS), reference).min() > 0.99999
    graphs = [choose.family(one).to_onnx(one).graph for one in (model, smaller)]
    products = [sum(node.op_type in ("MatMul", "Gemm") for node in graph.node) for graph in graphs]
    assert products[1] == products[0] + gone
    rounded = smaller
    for method, parameters in (("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "static"})):
        rounded = plugins.load("methods", method)(**parameters).apply(rounded, SAMPLES)
    factors = [layer.weight for layer in smaller.layers if layer.weight not in model.tensors]
    assert all(isinstance(rounded.tensors[name], QuantizedTensor) for name in factors)
    assert set(factors) <= set(rounded.activations)
    mine = choose.encoder(rounded, "reference", 1).documents(TEXTS)
    assert cosines(packaged(rounded, backend, tmp_path / "int8").documents(TEXTS), mine).min() > 0.999
    assert cosines(mine, reference).min() > 0.98
    assert (tmp_path / "int8" / "model.onnx").stat().st_size < (tmp_path / "float" / "model.onnx").stat().st_size
    assert onnx.load(tmp_path / "int8" / "model.onnx").graph.node


def test_an_artifact_and_a_rebuilt_graph_give_the_same_in_a_process_of_their_own(tmp_path: Path, model: Model) -> None:
    step = RecipeStep(method="simplify.low_rank", parameters={"parameters": 0.6})
    ran = compress.run(model, Recipe(steps=(step,)), SAMPLES)
    [record] = ran.records
    assert ran.failed is None
    assert record.bytes_after < record.bytes_before
    assert record.macs_after < record.macs_before
    (tmp_path / "artifact").mkdir()
    artifact.write(ran.model, tmp_path / "artifact")
    vectors = choose.encoder(ran.model, "factored", 1).documents(TEXTS)
    assert np.array_equal(choose.choose(tmp_path / "artifact", 1).documents(TEXTS), vectors)
    rebuild(tmp_path / "artifact", tmp_path / "again")
    script = (
        "import sys, json; from slimseek import choose; encoder = choose.choose(sys.argv[1], 1);"
        "print(json.dumps(encoder.documents(json.loads(sys.argv[2])).tolist()))"
    )
    for folder in ("artifact", "again"):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / folder), json.dumps(TEXTS)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        found = np.array(json.loads(done.stdout.strip().splitlines()[-1]), np.float32)
        assert np.allclose(found, vectors, atol=1e-5), folder
    assert not (tmp_path / "again" / "model.safetensors").exists()


def test_the_factors_train_and_other_steps_go_on_with_them(model: Model) -> None:
    smaller = factored(model, parameters=0.3, multiple_of=4)
    samples = dataclasses.replace(SAMPLES, original=model)
    trained = plugins.load("methods", "distil.embedding")(steps=80, batch_size=4, learning_rate=1e-3).apply(
        smaller, samples
    )
    original = choose.encoder(model, "original", 1).documents(TEXTS)
    before, after = (
        cosines(choose.encoder(one, "x", 1).documents(TEXTS), original).mean() for one in (smaller, trained)
    )
    assert after > before
    name = next(layer.weight for layer in smaller.layers if layer.weight.endswith(".0.weight"))
    assert not np.array_equal(trained.tensors[name], smaller.tensors[name])
    for method, parameters in (
        ("prune.layers", {"keep": (0,)}),
        ("prune.channels", {"amount": 0.25}),
        ("prune.heads", {"amount": 0.5}),
        ("quantize.smooth", {"alpha": 0.5}),
    ):
        again = plugins.load("methods", method)(**parameters).apply(smaller, SAMPLES)
        assert np.isfinite(choose.encoder(again, method, 1).documents(TEXTS)).all(), method


def test_what_cannot_be_factored_is_refused_in_a_line(model: Model) -> None:
    for parameters, words in (
        ({"energy": 1.0}, "energy is 1.0; above 0 and below 1"),
        ({"parameters": 0.0}, "parameters is 0.0; above 0 and below 1"),
        ({"energy": 0.9, "parameters": 0.5}, "one of them is allowed"),
        ({"multiple_of": 0}, "multiple_of is 0; 1 or more"),
        ({"parameters": 0.05}, "which ranks of 8 or more do not reach"),
    ):
        with pytest.raises(UsageError, match=f"^simplify.low_rank: .*{words}") as error:
            factored(model, **parameters)
        assert not isinstance(error.value, NoEffect)
        assert "\n" not in str(error.value)
    rounded = plugins.load("methods", "quantize.weights_int")().apply(model, SAMPLES)
    with pytest.raises(UsageError, match="is quantized; factor the model before quantizing"):
        factored(rounded)
    smoothed = plugins.load("methods", "quantize.smooth")(alpha=0.5).apply(model, SAMPLES)
    with pytest.raises(UsageError, match="is smoothed or rounds its inputs"):
        factored(smoothed)
    names = [layer.weight for layer in model.layers[:2]]
    with pytest.raises(UsageError, match=r"^simplify.low_rank: .* is the same tensor as .*; factor before that"):
        factored(dataclasses.replace(model, tied={names[1]: names[0]}))


def test_where_no_product_is_smaller_it_says_so(model: Model) -> None:
    for parameters in ({"energy": 0.9999999}, {"multiple_of": 32}):
        with pytest.raises(NoEffect, match="no product of two is smaller"):
            factored(model, **parameters)
    with pytest.raises(NoEffect, match="no layer that could become two"):
        factored(model, skip=("encoder",))
    every = factored(model, energy=0.1)
    assert choose.family(every).factorable(every) == ()
    with pytest.raises(NoEffect, match="no layer that could become two"):
        factored(every)


# ---------------------------------------------------------------- other networks


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("items")
    generator = np.random.default_rng(1)
    for number in range(24):
        np.save(folder / f"{number}.npy", generator.normal(size=(3, 12, 12)).astype(np.float32))
    return [str(folder / f"{number}.npy") for number in range(24)]


def test_convolutions_and_products_of_a_graph_become_two(tmp_path: Path, items: list[str]) -> None:
    """Against PyTorch with the product of both factors as the weight of each layer."""
    import torch

    path, network = conv_network(tmp_path / "net")
    model = choose.model(path)
    samples = Samples(calibration=items, texts=items)
    smaller = factored(model, samples, energy=0.7, multiple_of=2)
    gone = [layer for layer in model.layers if layer.weight not in smaller.tensors]
    windows = {model.tensors[layer.weight].shape[2:] for layer in gone}
    assert windows == {(), (1, 1), (3, 3)}
    grouped = next(layer.weight for layer in model.layers if model.tensors[layer.weight].shape == (48, 1, 3, 3))
    assert grouped in smaller.tensors
    state = network.state_dict()
    for layer in gone:
        first, second = (np.asarray(smaller.tensors[f"{layer.weight}.{part}"]) for part in "01")
        shape = model.tensors[layer.weight].shape
        if layer.kind == "convolution":
            both = (second.reshape(len(second), -1) @ first.reshape(len(first), -1)).reshape(shape)
        else:
            both = second @ first if layer.axis == 0 else (first @ second).T
        state[layer.weight] = torch.from_numpy(np.ascontiguousarray(both))
    state |= {name: torch.from_numpy(np.asarray(smaller.tensors[name])) for name in state if name.endswith("bias")}
    network.load_state_dict(state)
    with torch.no_grad():
        expected = network(torch.from_numpy(np.stack([np.load(item) for item in items]))).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = choose.encoder(smaller, "smaller", 1).documents(items)
    assert np.allclose(vectors, expected, atol=1e-5)
    assert cosines(vectors, choose.encoder(model, "whole", 1).documents(items)).mean() > 0.6
    rebuild_and_run(smaller, vectors, items, tmp_path)


def rebuild_and_run(smaller: Model, vectors: Array, items: list[str], folder: Path) -> None:
    """The rebuilt file, both packages float and in eight bits, and PyTorch."""
    (folder / "artifact").mkdir()
    artifact.write(smaller, folder / "artifact")
    rebuild(folder / "artifact", folder / "again")
    assert np.allclose(choose.choose(folder / "again", 1).documents(items), vectors, atol=1e-5)
    rounded = smaller
    samples = Samples(calibration=items, texts=items)
    for method, parameters in (("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "static"})):
        rounded = plugins.load("methods", method)(**parameters).apply(rounded, samples)
    mine = choose.encoder(rounded, "reference", 1).documents(items)
    assert cosines(mine, vectors).min() > 0.97
    for backend in BACKENDS:
        assert cosines(packaged(smaller, backend, folder / backend).documents(items), vectors).min() > 0.99999
        assert cosines(packaged(rounded, backend, folder / f"{backend}-8").documents(items), mine).min() > 0.995
    choose.family(smaller).trainable(smaller)  # compares PyTorch with ONNX Runtime


def test_a_text_encoder_that_is_a_graph_is_factored_too(tmp_path: Path, model: Model) -> None:
    """Rebuilt and opened again it has all the layers, and those that are factors stay."""
    folder = tmp_path / "graph"
    folder.mkdir()
    choose.family(model).save(factored(model, energy=0.9, skip=("output",)), folder)
    opened = choose.model(folder)
    assert opened.spec.family == "onnx_graph"
    smaller = factored(opened, parameters=0.8)
    vectors = [choose.encoder(one, "x", 1).documents(TEXTS) for one in (smaller, opened)]
    assert cosines(*vectors).min() > 0.9
    assert smaller.parameters < opened.parameters
    for backend in BACKENDS:
        assert cosines(packaged(smaller, backend, tmp_path / backend).documents(TEXTS), vectors[0]).min() > 0.99999
