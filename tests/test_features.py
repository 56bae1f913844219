"""simplify.features against numpy on whole rows, in artifacts, both runtimes, training and after a rebuild."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimseek import artifact, choose, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.rebuild import rebuild
from slimseek.schema import Array, Model, Samples
from small import BACKENDS, conv_network, packaged

WIDTH = 12


def network(folder: Path, bias: bool = True) -> tuple[Model, Array, Any]:
    """Two linear layers, opened from a file; its first weight [outputs, inputs]; PyTorch's own module."""
    torch = plugins.require("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, 16, bias=bias), torch.nn.ReLU(), torch.nn.Linear(16, 8)).eval()
    return opened(folder, module), module[0].weight.detach().numpy(), module


def opened(folder: Path, module: Any) -> Model:
    torch = plugins.require("torch")
    torch.onnx.export(module, (torch.zeros(2, WIDTH),), folder / "network.onnx", dynamo=False, input_names=["row"],
                      output_names=["embedding"], dynamic_axes={"row": {0: "N"}}, opset_version=17)  # fmt: skip
    return choose.model(folder / "network.onnx")


def two_branches() -> Any:
    """Two layers that read the row; columns count by the weights of both."""
    torch = plugins.require("torch")

    class Branches(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.one, self.two = torch.nn.Linear(WIDTH, 8), torch.nn.Linear(WIDTH, 8)
            with torch.no_grad():
                self.one.weight *= torch.linspace(0.1, 2, WIDTH)
                self.two.weight *= torch.linspace(2, 0.1, WIDTH)

        def forward(self, row: Any) -> Any:
            return torch.relu(self.one(row)) + torch.tanh(self.two(row))

    return Branches().eval()


def items_in(folder: Path) -> tuple[list[str], Array]:
    """Rows whose columns vary unlike and lie around means unlike zero."""
    random = np.random.default_rng(0)
    rows = (random.normal(size=(64, WIDTH)) * np.linspace(0.05, 2, WIDTH)[::-1] + 1).astype(np.float32)
    for number, row in enumerate(rows):
        np.save(folder / f"{number}.npy", row)
    return [str(folder / f"{number}.npy") for number in range(64)], rows


def reduced(model: Model, items: list[str], **parameters: Any) -> Model:
    step = plugins.load("methods", "simplify.features")(**parameters)
    changed: Model = step.apply(model, Samples(calibration=items, texts=items))
    return changed


def vectors_of(model: Model, items: list[str]) -> Array:
    return choose.encoder(model, "model", 1).documents(items)


def expected(module: Any, rows: Array) -> Array:
    torch = plugins.require("torch")
    with torch.no_grad():
        found: Array = module(torch.from_numpy(rows.astype(np.float32))).numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["weights", "variance", "pca"])
def test_it_computes_what_the_network_does_with_means_in_the_place_of_what_left(
    tmp_path: Path, method: str, bias: bool
) -> None:
    model, weight, module = network(tmp_path, bias)
    items, rows = items_in(tmp_path)
    smaller = reduced(model, items, method=method, keep=5)
    mean = rows.mean(0)
    if method == "pca":
        directions = np.linalg.svd(rows - mean, full_matrices=False)[2][:5]
        near = mean + (rows - mean) @ directions.T @ directions
    else:
        score = rows.var(0) if method == "variance" else np.square(weight).sum(0)
        kept = np.isin(np.arange(WIDTH), np.argsort(-score)[:5])
        near = np.where(kept, rows, mean)
    assert np.allclose(vectors_of(smaller, items), expected(module, near), atol=1e-5)
    assert not np.allclose(near, rows, atol=0.05)
    assert smaller.spec.inputs[0].shape == ("batch", 5)
    assert choose.family(smaller).macs(smaller, 1) == choose.family(model).macs(model, 1) - 7 * 16


def test_every_layer_that_reads_the_row_counts_and_is_narrowed(tmp_path: Path) -> None:
    module = two_branches()
    model = opened(tmp_path, module)
    items, rows = items_in(tmp_path)
    squares = [np.square(layer.weight.detach().numpy()).sum(0) for layer in (module.one, module.two)]
    kept = np.argsort(-sum(squares))[:5]
    assert set(kept) not in [set(np.argsort(-one)[:5]) for one in squares]
    near = np.where(np.isin(np.arange(WIDTH), kept), rows, rows.mean(0))
    assert np.allclose(vectors_of(reduced(model, items, keep=5), items), expected(module, near), atol=1e-5)


def test_a_share_is_rounded_up_and_the_mean_is_that_of_some_of_the_texts(tmp_path: Path) -> None:
    model, weight, module = network(tmp_path)
    items, rows = items_in(tmp_path)
    step = plugins.load("methods", "simplify.features")(keep=0.3, items=4)
    smaller = step.apply(model, Samples(calibration=items[:9], texts=items))
    assert smaller.spec.inputs[0].shape == ("batch", 4), "3.6 of 12"
    kept = np.isin(np.arange(WIDTH), np.argsort(-np.square(weight).sum(0))[:4])
    near = np.where(kept, rows, rows[::16].mean(0))
    assert np.allclose(vectors_of(smaller, items), expected(module, near), atol=1e-5)


def test_without_items_columns_leave_by_the_weights_and_nothing_takes_their_place(tmp_path: Path) -> None:
    model, weight, module = network(tmp_path, bias=False)
    items, rows = items_in(tmp_path)
    smaller = reduced(model, [], keep=5)
    kept = np.isin(np.arange(WIDTH), np.argsort(-np.square(weight).sum(0))[:5])
    assert np.allclose(vectors_of(smaller, items), expected(module, np.where(kept, rows, 0)), atol=1e-5)
    assert smaller.parameters == model.parameters - 7 * 16, "no bias that adds nothing"


def test_the_notes_count_what_the_projection_holds(tmp_path: Path) -> None:
    model, _, _ = network(tmp_path)
    items, _ = items_in(tmp_path)
    weights = 12 * 16 + 16 + 16 * 8 + 8
    for method, more in (("variance", ""), ("pca", "; the projection at reading has 60 numbers")):
        smaller = reduced(model, items, method=method, keep=5)
        notes = plugins.load("methods", "simplify.features")(method=method).notes(model, smaller)
        left = weights - 7 * 16 + 16
        assert notes == (f"12 -> 5 features; {weights} -> {left} weights{more}",), "16 sums of what the others were"


def test_all_components_change_nothing_and_all_columns_say_so(tmp_path: Path) -> None:
    model, _, module = network(tmp_path)
    items, rows = items_in(tmp_path)
    assert np.allclose(
        vectors_of(reduced(model, items, method="pca", keep=1.0), items), expected(module, rows), atol=1e-5
    )
    for method in ("weights", "variance"):
        with pytest.raises(NoEffect, match="all of the 12 features"):
            reduced(model, items, method=method, keep=WIDTH)
    with pytest.raises(NoEffect, match="reduced already"):
        reduced(reduced(model, items), items)


@pytest.mark.parametrize("method", ["variance", "pca"])
def test_items_stay_whole_in_artifacts_packages_training_and_after_a_rebuild(tmp_path: Path, method: str) -> None:
    model, _, _ = network(tmp_path)
    items, _ = items_in(tmp_path)
    smaller = reduced(model, items, method=method)
    vectors = vectors_of(smaller, items)
    (tmp_path / "artifact").mkdir()
    artifact.write(smaller, tmp_path / "artifact")
    assert np.array_equal(choose.choose(tmp_path / "artifact", 1).documents(items), vectors)
    for backend in BACKENDS:
        assert np.allclose(packaged(smaller, backend, tmp_path / backend).documents(items), vectors, atol=1e-5)
    rebuild(tmp_path / "artifact", tmp_path / "again")
    again = choose.model(tmp_path / "again")
    assert again.spec.inputs[0].shape == ("batch", WIDTH)
    assert not again.spec.features
    assert np.allclose(vectors_of(again, items), vectors, atol=1e-5)
    noise = np.random.default_rng(0)
    moved = {name: tensor + noise.normal(0, 0.3, tensor.shape).astype(np.float32)
             for name, tensor in smaller.tensors.items()}  # fmt: skip
    worse = dataclasses.replace(smaller, tensors=moved)
    step = plugins.load("methods", "distil.embedding")(steps=60, batch_size=8, learning_rate=1e-2)
    trained = step.apply(worse, Samples(calibration=items, texts=items, original=smaller))
    lost = [1 - (vectors_of(one, items) * vectors).sum(1).mean() for one in (worse, trained)]
    assert lost[1] < 0.5 * lost[0]


def test_what_has_no_features_or_no_such_number_is_refused(tmp_path: Path) -> None:
    model, _, _ = network(tmp_path)
    items, _ = items_in(tmp_path)
    with pytest.raises(UsageError, match="keep is 13, and there are 12 features"):
        reduced(model, items, keep=13)
    for keep in (0, 0.0, -1, 1.5):
        with pytest.raises(UsageError, match="above 0"):
            reduced(model, items, keep=keep)
    with pytest.raises(UsageError, match="no items to find the variance of"):
        reduced(model, [], method="variance")
    with pytest.raises(NoEffect, match="no linear layer on one row of features"):
        reduced(choose.model(conv_network(tmp_path / "pictures")[0]), items)
    integer = plugins.load("methods", "quantize.weights_int")().apply(model, Samples(calibration=[], texts=[]))
    with pytest.raises(UsageError, match="quantized"):
        reduced(integer, items)
    smooth = dataclasses.replace(model, smoothing={model.layers[0].weight: np.ones((1, WIDTH), np.float32)})
    with pytest.raises(UsageError, match="is smoothed or rounds its inputs"):
        reduced(smooth, items)
