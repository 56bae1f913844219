"""Measures of importance against sums worked out by hand, finite differences, and brute force."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.importance._evidence import Evidence
from slimseek.inputs.batches import batches
from slimseek.methods.prune._structure import Structure, structure
from slimseek.schema import Array, Model, Samples
from small import CORPUS, tiny_model

MEASURES = plugins.names("importance")
SAMPLES = Samples(calibration=tuple(CORPUS.values()), texts=tuple(CORPUS.values()))
WITHOUT_DATA = ("l1", "l2", "geometric_median")
INNER, OUTER = "transformer.encoder.layer.0.intermediate.dense", "transformer.encoder.layer.0.output.dense"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def evidence(model: Model, seed: int = 0) -> tuple[Evidence, Structure]:
    whole = structure(model)
    groups = tuple(group.units for group in whole.groups)
    found = Evidence(model=model, samples=SAMPLES, places=whole.places, count=len(whole.found.parameters),
                     groups=groups, seed=seed)  # fmt: skip
    return found, whole


def scores(name: str, model: Model) -> Array:
    found: Array = plugins.load("importance", name)().scores(evidence(model)[0])
    return found


def inner(model: Model) -> tuple[Array, dict[str, Array]]:
    """Numbers of the units of the first block's feed-forward part, and its tensors."""
    found, _ = evidence(model)
    names = {"inner": f"{INNER}.weight", "bias": f"{INNER}.bias", "outer": f"{OUTER}.weight"}
    tensors = {key: np.asarray(model.tensors[name]) for key, name in names.items()}
    return found.places[f"{INNER}.weight", 0], tensors


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "norm_scale"])
def test_a_measure_gives_each_unit_a_number_and_the_same_again(name: str, model: Model) -> None:
    found = scores(name, model)
    assert found.shape == (len(structure(model).found.parameters),)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert len(np.unique(found)) > 10, "it tells units apart"
    assert np.array_equal(found, scores(name, model))


@pytest.mark.parametrize(
    "name", [name for name in MEASURES if name not in ("norm_scale", "random", "geometric_median")]
)
def test_a_unit_that_does_nothing_matters_least(name: str, model: Model) -> None:
    units, _ = inner(model)
    tensors = {key: np.array(tensor) for key, tensor in model.tensors.items()}
    tensors[f"{INNER}.weight"][3], tensors[f"{INNER}.bias"][3], tensors[f"{OUTER}.weight"][:, 3] = 0, 0, 0
    found = scores(name, dataclasses.replace(model, tensors=tensors))[units]
    assert found[3] == 0
    assert (np.delete(found, 3) > 0).all()


def test_l1_and_l2_are_sums_over_what_makes_and_what_reads_a_channel(model: Model) -> None:
    units, tensors = inner(model)
    made, bias, read = tensors["inner"], tensors["bias"], tensors["outer"]
    expected = np.abs(made).sum(1) + np.abs(bias) + np.abs(read).sum(0)
    assert np.allclose(scores("l1", model)[units], expected, rtol=1e-5)
    expected = np.sqrt((made**2).sum(1) + bias**2 + (read**2).sum(0))
    assert np.allclose(scores("l2", model)[units], expected, rtol=1e-5)


def test_a_head_is_the_sum_of_its_width(model: Model) -> None:
    found, whole = evidence(model)
    attention = "transformer.encoder.layer.0.attention"
    made = [np.asarray(model.tensors[f"{attention}.self.{name}.weight"]) for name in ("query", "key", "value")]
    biases = [np.asarray(model.tensors[f"{attention}.self.{name}.bias"]) for name in ("query", "key", "value")]
    read = np.asarray(model.tensors[f"{attention}.output.dense.weight"])
    expected = sum(np.abs(weight).reshape(4, 8, 32).sum((1, 2)) for weight in made)
    expected = expected + sum(np.abs(bias).reshape(4, 8).sum(1) for bias in biases)
    expected = expected + np.abs(read).sum(0).reshape(4, 8).sum(1)
    units = found.places[f"{attention}.self.query.weight", 0].reshape(4, 8)[:, 0]
    assert np.allclose(scores("l1", model)[units], expected, rtol=1e-5)
    assert whole.found.skipped == ()


def test_activation_weighs_columns_by_what_they_read(model: Model) -> None:
    units, tensors = inner(model)
    network = choose.family(model).trainable(model)
    seen: list[torch.Tensor] = []
    layer = network.get_submodule(OUTER)
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0][mask].detach()))
    for batch in batches(model, list(CORPUS.values())):
        tensors_of = {name: torch.from_numpy(array) for name, array in batch.items()}
        mask = tensors_of["attention_mask"].bool()
        network(**tensors_of)
    squares = torch.cat(seen).double().square().mean(0).numpy()
    expected = np.sqrt(squares * (tensors["outer"].astype(float) ** 2).sum(0))
    assert np.allclose(scores("activation", model)[units], expected, rtol=1e-4)


def test_geometric_median_is_the_sum_of_all_distances(model: Model) -> None:
    units, tensors = inner(model)
    rows = np.concatenate([tensors["inner"], tensors["bias"][:, None], tensors["outer"].T], 1).astype(float)
    expected = [sum(np.linalg.norm(row - other) for other in rows) for row in rows]
    assert np.allclose(scores("geometric_median", model)[units], expected, rtol=1e-5)


def test_taylor_tells_how_far_the_vectors_move(model: Model) -> None:
    """Scaling a unit's output by 1 - epsilon moves the vectors by epsilon times its score, for what reads it alone.

    ``taylor`` adds what makes the unit and its bias, whose movement is another; so the reference moves all of them.
    """
    units, _ = inner(model)
    found = scores("taylor", model)[units]
    items = list(CORPUS.values())
    original = choose.encoder(model, "original", 1).documents(items).astype(float)
    step, moved = 0.01, []
    for unit in range(len(units)):
        tensors = {key: np.array(tensor) for key, tensor in model.tensors.items()}
        tensors[f"{INNER}.weight"][unit] *= 1 - step
        tensors[f"{INNER}.bias"][unit] *= 1 - step
        tensors[f"{OUTER}.weight"][:, unit] *= 1 - step
        vectors = choose.encoder(dataclasses.replace(model, tensors=tensors), "moved", 1).documents(items)
        moved.append(np.linalg.norm((vectors - original) / step))
    # Random directions, one a batch: an estimate, whose order must be that of the movements.
    assert np.corrcoef(np.log(found), np.log(moved))[0, 1] > 0.7


def test_hessian_is_the_curvature_of_the_squared_error(model: Model) -> None:
    """Against the whole Jacobian: sum over items, outputs and a unit's weights of (dv / dw * w)^2."""
    units, _ = inner(model)
    found = scores("hessian", model)[units]
    network = choose.family(model).trainable(model)
    weights = [network.get_parameter(name) for name in (f"{INNER}.weight", f"{INNER}.bias", f"{OUTER}.weight")]
    expected = np.zeros(len(units))
    for batch in batches(model, list(CORPUS.values())):
        vectors = network(**{name: torch.from_numpy(array) for name, array in batch.items()})
        for value in vectors.flatten():
            gradients = torch.autograd.grad(value, weights, retain_graph=True)
            made, bias, read = ((gradient * weight).square().detach().numpy() for gradient, weight in
                                zip(gradients, weights, strict=True))  # fmt: skip
            expected += made.sum(1) + bias + read.sum(0)
    assert np.corrcoef(np.log(found), np.log(expected))[0, 1] > 0.7


def test_random_is_another_order_for_another_seed(model: Model) -> None:
    first, second = (plugins.load("importance", "random")().scores(evidence(model, seed)[0]) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_norm_scale_reads_the_scale_and_refuses_where_there_is_none(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no unit goes through a norm"):
        scores("norm_scale", model)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    scale = torch.tensor([0.5, -3.0, 0.1, 2.0, 1.0, 0.2])
    network[2].weight.data = scale
    torch.onnx.export(network, (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx", dynamo=False, opset_version=17,
                      input_names=["given"], output_names=["vector"], dynamic_axes={"given": {0: "batch"}})  # fmt: skip
    opened = choose.model(tmp_path / "net.onnx")
    whole = structure(opened)
    [place] = [(name, axis) for name, axis in whole.places if opened.tensors[name].shape == (6, 3, 3, 3) and axis == 0]
    found = Evidence(
        model=opened, samples=Samples(calibration=(), texts=()), places=whole.places,
        count=len(whole.found.parameters), groups=tuple(group.units for group in whole.groups),
    )  # fmt: skip
    measured = plugins.load("importance", "norm_scale")().scores(found)[whole.places[place]]
    assert np.allclose(measured, np.abs(scale.numpy()))
