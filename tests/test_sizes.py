"""The size of a plan before anything is built: outlines against what steps give, predictions against real packages."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from slimseek import choose, compress, data, deploy, hollow, integers, plugins
from slimseek import outline as outlines
from slimseek.bases import Backend
from slimseek.budget import sizes
from slimseek.budget.bench import bench
from slimseek.budget.store import Store, Terms
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.methods.quantize._allocation import allocate
from slimseek.methods.quantize.mixed import _filled
from slimseek.methods.simplify import vocabulary
from slimseek.methods.simplify._ranks import even
from slimseek.schema import Array, Encode, Model, QuantizedTensor, QuantSpec, Recipe, RecipeStep, Samples
from slimseek.trial import Budget, Plan
from small import BACKENDS, CORPUS, conv_network, tiny_collection, tiny_model

TEXTS = [CORPUS["d1"], CORPUS["d2"], "a word of letters"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
DYNAMIC = {"quantize.activations_int": {"mode": "dynamic"}}


def grouped(bits: int, size: int = 16) -> dict[str, Any]:
    return {"quantize.weights_int": {"bits": bits, "granularity": "group", "group_size": size, "symmetric": False}}


def recipe(*steps: dict[str, Any]) -> Recipe:
    """From steps as a recipe's file has them."""
    return Recipe(steps=tuple(RecipeStep(method=method, parameters=parameters or {})
                              for step in steps for method, parameters in step.items()))  # fmt: skip


RECIPES = {
    "fp16": recipe({"quantize.float": {}}),
    "bf16": recipe({"quantize.float": {"format": "bf16"}}),
    "fp8": recipe({"quantize.float": {"format": "e4m3"}}),
    "int8": recipe({"quantize.weights_int": {}}, {"quantize.activations_int": {}}),
    "int8-dynamic": recipe({"quantize.weights_int": {}}, DYNAMIC),
    "int4": recipe(grouped(4), DYNAMIC),
    "int4, float inputs": recipe(grouped(4)),
    "int3, short groups": recipe(grouped(3, 20), DYNAMIC),
    "2 blocks, vocabulary, 2 bits": recipe({"prune.layers": {"keep": 2}}, {"simplify.vocabulary": {}}, grouped(2)),
    "6 bits, 24 elements": recipe({"simplify.output_dim": {"dim": 24}}, grouped(6), DYNAMIC),
    "tied, int4": recipe({"simplify.tie": {}}, grouped(4), DYNAMIC),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny BERT of four blocks."""
    return tiny_model(tmp_path_factory.mktemp("sizes") / "tiny", layers=4, width=64)


@pytest.fixture(scope="module")
def built(model: Model) -> dict[str, Model]:
    """What each recipe really gives."""
    found = {}
    for name, one in RECIPES.items():
        changed = model
        for step in one.steps:
            changed = plugins.load("methods", step.method)(**step.parameters).apply(changed, SAMPLES)
        found[name] = changed
    return found


def shipped(model: Model, target: str, folder: Path) -> int:
    """Bytes of a package but its manifest."""
    folder.mkdir(parents=True)
    plugins.load("backends", target)().export(model, folder)
    return sum(path.stat().st_size for path in folder.iterdir()) + len(model.files.get(TOKENIZER, b""))


# ---------------------------------------------------------------- outlines


def test_a_hollow_array_has_the_bytes_of_a_real_one_and_takes_none() -> None:
    array = hollow.array((30522, 384), np.float16)
    assert (array.nbytes, array.shape, array.strides) == (30522 * 384 * 2, (30522, 384), (0, 0))
    assert hollow.is_hollow(array)
    assert not hollow.is_hollow(np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("bits", "granularity", "symmetric"),
    itertools.product((2, 3, 4, 5, 8), ("tensor", "channel", "group"), (True, False)),
)
def test_an_outline_of_integers_has_the_form_of_quantized_values(bits: int, granularity: Any, symmetric: bool) -> None:
    spec = QuantSpec(bits=bits, granularity=granularity, symmetric=symmetric, axis=1,
                     group_size=5 if granularity == "group" else None)  # fmt: skip
    values = np.random.default_rng(0).normal(size=(33, 7)).astype(np.float32)
    real, outline = integers.quantize(values, spec), outlines.quantized(values.shape, spec)
    assert integers.stored_bytes(outline) == integers.stored_bytes(real)
    parts = (real.integers, outline.integers), (real.scale, outline.scale), (real.zero_point, outline.zero_point)
    for one, other in parts:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("name", RECIPES)
def test_the_outline_of_a_recipe_has_the_bytes_of_what_it_gives(
    name: str, model: Model, built: dict[str, Model]
) -> None:
    outline, changed = sizes.outlined(model, RECIPES[name], SAMPLES), built[name]
    assert compress.bytes_by_part(outline) == compress.bytes_by_part(changed)
    assert outline.files[TOKENIZER] == changed.files[TOKENIZER]
    assert (outline.layers, outline.spec, dict(outline.tied)) == (changed.layers, changed.spec, dict(changed.tied))


def test_an_outline_leaves_the_model_and_keeps_no_values(model: Model) -> None:
    before = {name: id(tensor) for name, tensor in model.tensors.items()}
    outline = sizes.outlined(model, RECIPES["2 blocks, vocabulary, 2 bits"], SAMPLES)
    assert {name: id(tensor) for name, tensor in model.tensors.items()} == before
    quantized = [tensor for tensor in outline.tensors.values() if isinstance(tensor, QuantizedTensor)]
    assert quantized
    assert all(hollow.is_hollow(part) for tensor in quantized for part in (tensor.integers, tensor.scale))


def test_a_hundred_plans_with_the_vocabulary_count_tokens_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text} cat" for text in TEXTS]
    samples = Samples(calibration=texts, texts=texts)
    first = sizes.outlined(model, recipe({"simplify.vocabulary": {}}), samples)

    class Refuses:
        @staticmethod
        def from_buffer(content: bytes) -> None:
            pytest.fail("the texts are tokenized again")

    monkeypatch.setattr(vocabulary, "Tokenizer", Refuses)
    for bits in range(2, 9):
        again = sizes.outlined(model, recipe({"simplify.vocabulary": {}}, grouped(bits)), samples)
        table = model.spec.token_table
        assert table is not None
        assert again.tensors[table].shape == first.tensors[table].shape
    with pytest.raises(pytest.fail.Exception):
        sizes.outlined(model, recipe({"simplify.vocabulary": {}}), dataclasses.replace(samples, texts=["a stone"]))


def test_a_step_without_effect_says_so_unless_it_finds_out_by_itself(model: Model) -> None:
    with pytest.raises(NoEffect, match=r"prune\.layers"):
        sizes.outlined(model, recipe({"prune.layers": {"keep": 4}}), SAMPLES)
    smoothed = sizes.outlined(model, recipe({"quantize.smooth": {}}), SAMPLES)
    again = sizes.outlined(smoothed, recipe({"quantize.smooth": {}}), SAMPLES)
    assert compress.weight_bytes(again) == compress.weight_bytes(smoothed) > compress.weight_bytes(model)
    with pytest.raises(UsageError, match=r"simplify\.low_rank: the weight .* is quantized"):
        sizes.outlined(model, recipe(grouped(4), {"simplify.low_rank": {"parameters": 0.5}}), SAMPLES)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.62, 0.75, 0.9])
def test_low_ranks_of_an_outline_are_at_least_the_weights_asked_for_and_little_more(share: float, model: Model) -> None:
    step = {"simplify.low_rank": {"parameters": share, "weighted": False}}
    outline = sizes.outlined(model, recipe(step), SAMPLES)
    real = plugins.load("methods", "simplify.low_rank")(parameters=share, weighted=False).apply(model, SAMPLES)
    asked = sum(np.prod(model.tensors[layer.weight].shape) for layer in choose.family(model).factorable(model))
    assert compress.weight_bytes(real) <= compress.weight_bytes(outline)
    assert compress.weight_bytes(outline) <= compress.weight_bytes(real) + 4 * 0.1 * asked


@pytest.mark.parametrize("seed", range(20))
def test_even_ranks_reach_the_share_and_go_one_step_beyond_at_most(seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = {f"layer {number}": tuple(random.integers(8, 200, 2).tolist()) for number in range(6)}
    share, multiple_of = float(random.uniform(0.1, 0.9)), int(random.choice([1, 4, 8]))
    ranks = even(shapes, share, multiple_of)
    whole = sum(outputs * inputs for outputs, inputs in shapes.values())
    left = sum(ranks[name] * sum(shape) if name in ranks else shape[0] * shape[1] for name, shape in shapes.items())
    assert all(rank % multiple_of == 0 and rank * sum(shapes[name]) < np.prod(shapes[name])
               for name, rank in ranks.items())  # fmt: skip
    assert left >= share * whole
    if len(ranks) == len(shapes):
        assert left <= share * whole + max(multiple_of * sum(shape) for shape in shapes.values())


@pytest.mark.parametrize("seed", range(20))
def test_mixed_bits_of_an_outline_take_what_is_allowed_and_no_more_than_a_step_beyond(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = np.cumsum(random.integers(10, 400, (4, 7)), 0)
    sizes_of = [{f"layer {number}": int(size) for number, size in enumerate(row)} for row in steps]
    most = int(random.integers(steps[0].sum(), steps[-1].sum()))
    taken = sum(sizes_of[choice][name] for name, choice in _filled(sizes_of, most).items())
    best = allocate(steps.T, random.uniform(0, 1, (7, 4)), most)
    assert taken >= np.take_along_axis(steps.T, best[:, None], 1).sum()
    assert taken <= most + np.diff(steps, axis=0).max()


def test_mixed_bits_say_what_cannot_be_reached(model: Model) -> None:
    with pytest.raises(UsageError, match="allow at least that"):
        sizes.outlined(model, recipe({"quantize.mixed": {"size": 0.05}}), SAMPLES)


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_predicted_size_is_that_of_the_package(
    name: str, target: str, model: Model, built: dict[str, Model], tmp_path: Path
) -> None:
    """But for some nodes: those that round an input which several layers read are counted for each of these."""
    outline = sizes.outlined(model, RECIPES[name], SAMPLES)
    manifest = sizes.PACKAGE + len(sizes.msgspec.json.encode(outline.spec))
    true = shipped(built[name], target, tmp_path / "package") + manifest
    assert sizes.predicted(outline, target) == pytest.approx(true, rel=0.035, abs=3600)


@pytest.mark.parametrize("target", BACKENDS)
def test_every_file_of_a_written_package_is_counted_and_what_it_tells_is_exact(
    target: str, model: Model, tmp_path: Path
) -> None:
    plan = RECIPES["int4"]
    changed = compress.run(model, plan, SAMPLES).model
    deploy.write(changed, target, tmp_path, threads=1)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == sum(choose.choose(tmp_path, 1).shipped.values())
    outline = sizes.outlined(model, plan, SAMPLES)
    assert sizes.predicted(outline, target) == pytest.approx(size, rel=0.03)
    known = [sizes.learned(changed, target, size)]
    assert sizes.predicted(outline, target, known) == size


@pytest.mark.parametrize("target", BACKENDS)
def test_a_package_tells_the_size_of_others_with_as_many_layers_of_these_forms(
    target: str, model: Model, tmp_path: Path
) -> None:
    """Learned from a narrow model, asked of a wider one with another vocabulary: within 0.2 %."""
    narrow = tiny_model(tmp_path / "narrow", layers=4, width=32)
    plan = recipe(grouped(4), DYNAMIC)
    found, wide = (compress.run(one, plan, SAMPLES).model for one in (narrow, model))
    known = [sizes.learned(found, target, shipped(found, target, tmp_path / "one"))]
    true = shipped(wide, target, tmp_path / "other")
    outline = sizes.outlined(model, plan, SAMPLES)
    assert sizes.structure(outline, target) == known[0].structure
    assert sizes.predicted(outline, target, known) == pytest.approx(true, rel=0.002)


def test_a_structure_hangs_on_blocks_and_bits_and_not_on_rows(model: Model) -> None:
    def of(*steps: dict[str, Any]) -> str:
        return sizes.structure(sizes.outlined(model, recipe(*steps), SAMPLES), "onnxruntime")

    plain = of(grouped(4), DYNAMIC)
    assert plain == of({"simplify.vocabulary": {}}, grouped(4), DYNAMIC)
    others = [of(grouped(3), DYNAMIC), of(grouped(4)), of({"prune.layers": {"keep": 2}}, grouped(4), DYNAMIC)]
    assert len({plain, *others}) == 4


@pytest.mark.parametrize("target", BACKENDS)
def test_an_unseen_depth_is_estimated_from_the_nearest_that_was_written(
    target: str, model: Model, tmp_path: Path
) -> None:
    known = [sizes.learned(model, target, shipped(model, target, tmp_path / "whole"))]
    smaller = sizes.outlined(model, recipe({"prune.layers": {"keep": 1}}), SAMPLES)
    real = plugins.load("methods", "prune.layers")(keep=1).apply(model, SAMPLES)
    true = shipped(real, target, tmp_path / "one")
    assert sizes.predicted(smaller, target, known) == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("target", BACKENDS)
def test_networks_that_are_graphs_are_predicted_too(target: str, tmp_path: Path) -> None:
    """Thirty kilobytes, of which the nodes that round values between layers are known by number alone."""
    network = choose.model(conv_network(tmp_path)[0])
    items = Samples(calibration=["random:1", "random:2"], texts=["random:1"])
    for name in ("int8", "fp16"):
        changed = compress.run(network, RECIPES[name], items).model
        true = shipped(changed, target, tmp_path / name / target)
        outline = sizes.outlined(network, RECIPES[name], items)
        manifest = sizes.PACKAGE + len(sizes.msgspec.json.encode(outline.spec))
        assert sizes.predicted(outline, target) == pytest.approx(true + manifest, rel=0.08)


@pytest.mark.parametrize("target", BACKENDS)
def test_the_smallest_plan_can_be_built_and_none_of_the_table_is_smaller(
    target: str, model: Model, tmp_path: Path
) -> None:
    size, words = sizes.smallest(model, SAMPLES, target)
    assert words.startswith("1 block, vocabulary, 2 bits")
    steps = [{"prune.layers": {"keep": 1}}, {"simplify.vocabulary": {}},
             {"quantize.weights_int": {"bits": 2, "granularity": "channel"}}]  # fmt: skip
    steps += [{"quantize.float": {}}] if "16 bits" in words else []
    real = compress.run(model, recipe(*steps), SAMPLES).model
    manifest = sizes.PACKAGE + len(sizes.msgspec.json.encode(real.spec))
    assert size == pytest.approx(shipped(real, target, tmp_path / "package") + manifest, rel=0.03)
    others = [sizes.predicted(sizes.outlined(model, one, SAMPLES), target) for one in RECIPES.values()]
    assert size < min(others)


# ---------------------------------------------------------------- a runtime that was never measured


class Flat(Backend):
    """Takes no graph in ONNX: one file of the tensors' bytes behind a long head, and a number to find the model by."""

    head = 300_000
    models: ClassVar[list[Model]] = []

    def available(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {}

    def export(self, model: Model, folder: Path, ready: None = None) -> None:
        self.models.append(model)
        unused = choose.family(model).unused(model)
        size = sum(integers.stored_bytes(one) for name, one in model.tensors.items() if name not in unused)
        (folder / "model.flat").write_bytes(bytes([len(self.models) - 1]) * (size + self.head))

    def open(self, folder: Path, threads: int) -> Encode:
        model = self.models[(folder / "model.flat").read_bytes()[0]]
        return choose.family(model).run(model, threads)

    def stored(self, folder: Path) -> Mapping[str, Array]:
        return {}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> str:
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda folder, name: Flat if name == "flat" else load(folder, name))
    return "flat"


@pytest.mark.parametrize("name", RECIPES)
def test_a_runtime_without_onnx_is_guessed_like_onnx_runtime_until_its_first_package(
    name: str, flat: str, model: Model, built: dict[str, Model], tmp_path: Path
) -> None:
    outline = sizes.outlined(model, RECIPES[name], SAMPLES)
    assert sizes.predicted(outline, flat) == sizes.predicted(outline, "onnxruntime")
    manifest = sizes.PACKAGE + len(sizes.msgspec.json.encode(outline.spec))
    first = shipped(model, flat, tmp_path / "original") + manifest
    known = [sizes.learned(model, flat, first)]
    assert sizes.predicted(model, flat, known) == first
    true = shipped(built[name], flat, tmp_path / "package") + manifest
    guessed, told = (abs(sizes.predicted(outline, flat, one) - true) for one in ((), known))
    assert guessed > Flat.head / 3
    assert told < Flat.head / 2, "nodes, which it does not have, are all that is left to be guessed"


def test_a_search_measures_its_trials_in_a_runtime_that_was_never_measured(
    flat: str, model: Model, tmp_path: Path
) -> None:
    tiny_collection(tmp_path / "collection")
    measured = bench(model, data.load(str(tmp_path / "collection")), Store(tmp_path),
                     Terms(target=flat, metric="ndcg@10", threads=1, seed=0))  # fmt: skip
    size, words = sizes.smallest(model, SAMPLES, flat, measured.known)
    assert measured.baseline.figures.size is not None
    assert Flat.head < size < measured.baseline.figures.size
    assert "2 bits" in words
    plan = Plan(recipe=RECIPES["int4"], name="int4")
    trial = measured.attempt(1, plan, lambda _: "", Budget(max_loss=0.5))
    assert (trial.ended, trial.reached) == ("", "whole")
    assert trial.figures.size == pytest.approx(
        sizes.predicted(sizes.outlined(model, plan.recipe, SAMPLES), flat, measured.known), rel=0.2
    )
