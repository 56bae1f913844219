"""simplify.tie: blocks of one tensor against blocks of equal copies, on disk, in both runtimes, and in training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from slimseek import artifact, choose, compress, inspect, plugins
from slimseek.errors import ArtifactError, NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.fingerprint import fingerprint
from slimseek.rebuild import rebuild
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import BACKENDS, CORPUS, KINDS, bare, many_texts, packaged, tiny_model

TEXTS = [*CORPUS.values(), "stone", "the engine", "a dog near the bridge"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
START = "transformer.encoder.layer"


def applied(model: Model, method: str, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, samples)
    return changed


def tie(model: Model, **parameters: Any) -> Model:
    return applied(model, "simplify.tie", **parameters)


def vectors_of(model: Model) -> Array:
    return choose.encoder(model, "model", 1).documents(TEXTS)


def copies(model: Model, groups: list[list[int]], by: str, start: str = START) -> Model:
    """Equal copies in each block, by hand: an ordinary model whose blocks happen to hold the same values."""
    tensors = dict(model.tensors)
    for group in groups:
        for name in [name for name in tensors if name.startswith(f"{start}.{group[0]}.")]:
            rest = name.removeprefix(f"{start}.{group[0]}.")
            members = [np.asarray(model.tensors[f"{start}.{number}.{rest}"], np.float64) for number in group]
            value = members[0] if by == "first" else np.mean(members, axis=0)
            for number in group:
                tensors[f"{start}.{number}.{rest}"] = value.astype(np.float32)
    return dataclasses.replace(model, tensors=tensors)


def written(model: Model, folder: Path) -> tuple[int, Model]:
    """Bytes of the artifact's weights, and the model read back."""
    folder.mkdir()
    artifact.write(model, folder)
    return (folder / artifact.WEIGHTS).stat().st_size, artifact.read(folder)[1]


def block_bytes(model: Model) -> int:
    return sum(tensor.nbytes for name, tensor in model.tensors.items()
               if name.startswith(f"{START}.0.") and not isinstance(tensor, QuantizedTensor))  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", layers=4)


@pytest.mark.parametrize("by", ["mean", "first"])
@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[3, 1]], [[0, 1, 2, 3]]])
def test_it_computes_what_blocks_of_equal_copies_do(model: Model, groups: list[list[int]], by: str) -> None:
    tied = tie(model, groups=tuple(tuple(group) for group in groups), by=by)
    assert np.allclose(vectors_of(tied), vectors_of(copies(model, groups, by)), atol=1e-6)
    assert not np.allclose(vectors_of(tied), vectors_of(model), atol=1e-2)
    left = 4 - sum(len(group) - 1 for group in groups)
    kept = {int(name.split(".")[3]) for name in tied.tensors if name.startswith(START)}
    assert len(kept) == left
    assert model.parameters - tied.parameters == (4 - left) * block_bytes(model) // 4
    assert choose.family(tied).macs(tied, 16) == choose.family(model).macs(model, 16)
    assert sum(choose.family(tied).layer_macs(tied, 16).values()) == sum(
        choose.family(model).layer_macs(model, 16).values()
    )


def test_neighbours_are_groups_where_none_are_named(model: Model) -> None:
    for given in ({}, {"every": 2}, {"groups": ((0, 1), (2, 3))}):
        assert np.array_equal(vectors_of(tie(model, **given)), vectors_of(tie(model, groups=((0, 1), (2, 3)))))
    three = tie(model, every=3)
    assert {own.split(".")[3] for own in three.tied.values()} == {"0"}
    assert np.allclose(vectors_of(three), vectors_of(copies(model, [[0, 1, 2]], "mean")), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_ties(tmp_path: Path, kind: str) -> None:
    bare(tmp_path, kind)
    model = choose.model(tmp_path)
    groups = [[2, 5], [3, 4]] if kind == "ModernBert" else [[0, 1], [2, 5], [3, 4]]
    tied = tie(model, groups=tuple(map(tuple, groups)))
    expected = copies(model, groups, "mean", f"transformer.{KINDS[kind][1]}")
    assert np.allclose(vectors_of(tied), vectors_of(expected), atol=1e-5)


def test_the_artifact_stores_each_tensor_once_and_gives_it_back(tmp_path: Path, model: Model) -> None:
    tied = tie(model)
    whole, _ = written(model, tmp_path / "whole")
    once, again = written(tied, tmp_path / "once")
    names = 250 * len(tied.tied)  # the header of safetensors has some hundred bytes for each tensor
    assert 2 * block_bytes(model) <= whole - once <= 2 * block_bytes(model) + names
    assert again.tied == tied.tied
    assert again.tensors.keys() == tied.tensors.keys()
    assert np.array_equal(vectors_of(again), vectors_of(tied))
    assert b'"tied"' not in (tmp_path / "whole" / artifact.MANIFEST).read_bytes()
    assert fingerprint(again) == fingerprint(tied)
    other = dict(tied.tied) | {f"{START}.1.output.LayerNorm.bias": f"{START}.2.output.LayerNorm.bias"}
    assert fingerprint(dataclasses.replace(tied, tied=other)) != fingerprint(tied)


@pytest.mark.parametrize("wrong", ["absent", "stored"])
def test_an_artifact_whose_ties_lead_nowhere_is_refused(tmp_path: Path, model: Model, wrong: str) -> None:
    written(tie(model), tmp_path / "artifact")
    manifest = tmp_path / "artifact" / artifact.MANIFEST
    content = json.loads(manifest.read_text())
    name = f"{START}.1.output.LayerNorm.bias"
    if wrong == "absent":
        content["tied"][name] = "no such tensor"
    else:
        content["tied"][f"{START}.0.output.LayerNorm.bias"] = content["tied"].pop(name)
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"cannot be tied to|is not whole|no weight"):
        artifact.read(tmp_path / "artifact")


QUANTIZED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "float": [],
    "float16": [("quantize.float", {})],
    "4 bits": [("quantize.weights_int", {"bits": 4, "granularity": "group"})],
    "code book": [("simplify.share", {})],
    "8 bits static": [("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "static"})],
    "8 bits dynamic": [("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "dynamic"})],
    "smoothed": [("quantize.smooth", {"alpha": 0.5}), ("quantize.weights_int", {}), ("quantize.activations_int", {})],
    "compensated": [("quantize.weights_int", {"rounding": "compensated", "correct_bias": True})],
    "sparse": [("prune.weights", {"ratio": 0.9})],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", QUANTIZED)
def test_packages_hold_a_tied_tensor_once_however_it_is_stored(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, backend: str, how: str
) -> None:
    model = tiny_model(tmp_path / "wide", layers=4, width=128)
    tied, whole = tie(model), model
    for method, parameters in QUANTIZED[how]:
        tied, whole = applied(tied, method, **parameters), applied(whole, method, **parameters)
    assert not any(name in tied.tensors for name in tied.tied)
    for one, folder in ((tied, "tied"), (whole, "whole")):
        found = packaged(one, backend, tmp_path / folder).documents(TEXTS)
        assert cosines(found, vectors_of(one)).min() > (0.999 if how.startswith(("8", "smoothed")) else 0.99999)
    sizes = [(tmp_path / folder / "model.onnx").stat().st_size for folder in ("tied", "whole")]
    stored = [compress.weight_bytes(one) for one in (tied, whole)]
    assert sizes[1] - sizes[0] > 0.9 * (stored[1] - stored[0]) > 0
    graph = onnx.load(tmp_path / "tied" / "model.onnx").graph
    large = [constant.raw_data for constant in graph.initializer if len(constant.raw_data) > 4096]
    assert large
    assert len(set(large)) == len(large)
    kept, again = written(tied, tmp_path / "artifact")
    assert np.array_equal(vectors_of(again), vectors_of(tied))
    assert written(whole, tmp_path / "other")[0] - kept > 0.9 * (stored[1] - stored[0])


def test_training_moves_the_one_tensor_by_the_gradients_of_all_its_readers(model: Model) -> None:
    import torch

    tied = tie(model, groups=((0, 2),))
    network = choose.family(tied).trainable(tied)
    name, other = f"{START}.0.output.dense.weight", f"{START}.2.output.dense.weight"
    assert network.get_parameter(name) is network.get_parameter(other)
    apart = choose.family(model).trainable(copies(model, [[0, 2]], "mean"))
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    for one in (network, apart):
        one(ids, torch.ones_like(ids))[:, :5].sum().backward()
    gradients = [apart.get_parameter(key).grad for key in (name, other)]
    assert torch.allclose(network.get_parameter(name).grad, gradients[0] + gradients[1], atol=1e-5)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-3)


@pytest.mark.parametrize(("method", "parameters"), [
    ("distil.embedding", {}), ("distil.hidden", {}), ("quantize.aware_training", {"bits": 4, "granularity": "channel"}),
])  # fmt: skip
def test_a_trained_model_is_tied_still_and_nearer_to_the_original(
    tmp_path: Path, model: Model, method: str, parameters: dict[str, Any]
) -> None:
    texts = many_texts(200)
    tied = tie(model)
    samples = Samples(calibration=texts[:20], texts=texts, original=model)
    steps = {"steps": 60, "batch_size": 8, "learning_rate": 1e-3, **parameters}
    changed = applied(tied, method, samples, **steps)
    assert changed.tied == tied.tied
    assert changed.tensors.keys() == tied.tensors.keys()
    _, again = written(changed, tmp_path / "artifact")
    assert np.array_equal(vectors_of(again), vectors_of(changed))
    if method == "quantize.aware_training":
        plain = applied(tied, "quantize.weights_int", samples, symmetric=False, **parameters)
        before, after = (1 - cosines(vectors_of(one), vectors_of(tied)).mean() for one in (plain, changed))
    else:
        before, after = (1 - cosines(vectors_of(one), vectors_of(model)).mean() for one in (tied, changed))
    assert after < 0.8 * before


def test_rebuilt_it_is_an_ordinary_model_and_the_gate_says_so(tmp_path: Path, model: Model) -> None:
    tied = tie(model)
    written(tied, tmp_path / "artifact")
    parity = rebuild(tmp_path / "artifact", tmp_path / "again")
    assert f"; {len(tied.tied)} tensors that it stores once are copies here" in parity.detail
    opened = choose.model(tmp_path / "again")
    assert not opened.tied
    assert opened.tensors.keys() == model.tensors.keys()
    assert np.allclose(vectors_of(opened), vectors_of(tied), atol=1e-6)
    written(model, tmp_path / "plain")
    assert "copies" not in rebuild(tmp_path / "plain", tmp_path / "plain again").detail


def test_zeros_are_the_same_in_all_blocks_that_are_one(model: Model) -> None:
    thin = applied(tie(model), "prune.n_m")
    assert np.allclose(vectors_of(thin), vectors_of(choose_copies(thin)), atol=1e-6)
    first = thin.tensors[f"{START}.0.output.dense.weight"]
    assert not isinstance(first, QuantizedTensor)
    assert (first == 0).mean() == pytest.approx(0.5, abs=0.01)


def choose_copies(tied: Model) -> Model:
    return dataclasses.replace(tied, tensors=tied.named, tied={})


@pytest.mark.parametrize(("method", "parameters"), [
    ("prune.layers", {}), ("prune.heads", {}), ("prune.channels", {}), ("simplify.low_rank", {}),
    ("simplify.redesign", {}),
])  # fmt: skip
def test_what_takes_a_block_apart_is_refused_by_the_tensors_name(
    model: Model, method: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=rf"{START}\.1\..* is the same tensor as {START}\.0\..*simplify\.tie") as error:
        applied(tie(model), method, **parameters)
    assert "\n" not in str(error.value)


def test_the_step_is_recorded_and_a_tie_that_is_there_has_no_effect(model: Model) -> None:
    ran = compress.run(model, Recipe(steps=(RecipeStep(method="simplify.tie", parameters={"every": 4}),)), SAMPLES)
    assert ran.failed is None
    [record] = ran.records
    assert record.notes[0] == "blocks that use the same tensors, their mean: 0 = 1 = 2 = 3"
    assert record.bytes_before - record.bytes_after == 3 * block_bytes(model)
    for given in ({"every": 1}, {"groups": ()}, {"groups": ((0,), (2,))}):
        with pytest.raises(NoEffect, match=r"simplify\.tie: no group has two blocks"):
            tie(model, **given)
    with pytest.raises(NoEffect, match="already"):
        tie(ran.model, groups=((0, 1, 2, 3),))


@pytest.mark.parametrize(("given", "says"), [
    ({"every": 0}, "every is 0; 1 or more"),
    ({"every": 2, "groups": ((0, 1),)}, "one of them is allowed"),
    ({"groups": ((0, 1), (1, 2))}, "each block once"),
    ({"groups": ((0, 4),)}, "blocks 0 to 3 are there"),
    ({"groups": ((-1, 2),)}, "blocks 0 to 3 are there"),
])  # fmt: skip
def test_bad_groups_are_one_line(model: Model, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        tie(model, **given)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("simplify.tie: ")


def test_what_cannot_be_tied_is_refused(tmp_path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="quantized; tie before quantizing"):
        tie(applied(model, "quantize.weights_int"))
    with pytest.raises(UsageError, match="smoothed or rounds"):
        tie(applied(model, "quantize.smooth", alpha=0.5))
    with pytest.raises(UsageError, match="name all groups in one step"):
        tie(tie(model), every=4)
    bare(tmp_path / "modern", "ModernBert")
    with pytest.raises(UsageError, match="the blocks 0 and 1 differ in attn_norm"):
        tie(choose.model(tmp_path / "modern"))
    bad = dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, family="static"))
    with pytest.raises(UsageError, match="of the family transformer; this model is of static"):
        tie(bad)


def test_inspect_counts_a_tied_tensor_once(tmp_path: Path, model: Model) -> None:
    written(tie(model), tmp_path / "tied")
    found = inspect.inspect(tmp_path / "tied")
    layers = {layer.name: layer for layer in found.layers}
    first, second = (layers[f"{START}.{number}.output.dense"] for number in (0, 1))
    assert (first.bytes, second.bytes) == (4 * 32 * 64, 0)
    assert first.macs == second.macs == 128 * 32 * 64
    assert found.rest_bytes + sum(layer.bytes for layer in found.layers) == found.bytes
