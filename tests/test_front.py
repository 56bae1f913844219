"""The front of a search, its limits and what each step saved: by brute force and by hand, and flags read back."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimseek import recipe as recipes
from slimseek.budget import attribution as parts
from slimseek.budget import front as fronts
from slimseek.measurement import Change, StepRecord
from slimseek.schema import Recipe, RecipeStep
from slimseek.trial import Budget, Figures, Plan, Trial

INT4, INT8 = RecipeStep(method="quantize.weights_int", parameters={"bits": 4}), RecipeStep(
    method="quantize.weights_int", parameters={"bits": 8}
)  # fmt: skip
VOCABULARY, LAYERS = RecipeStep(method="simplify.vocabulary"), RecipeStep(method="prune.layers")


def change(relative: float, bound: float | None = None, n: int = 300) -> Change:
    lower = relative - 0.01 if bound is None else bound
    return Change(metric="ndcg@10", before=0.6, after=0.6 * (1 + relative), relative=relative,
                  interval=(lower - 0.002, 2 * relative - lower), lower_bound=lower, n=n)  # fmt: skip


def trial(number: int, size: int | None = 10_000_000, latency: float | None = 5.0, relative: float | None = -0.01,
          **more: Any) -> Trial:  # fmt: skip
    """A trial measured to the end; ``more`` are fields of the trial, its plan, its figures or its change."""
    changed = None if relative is None else change(relative, more.pop("bound", None), more.pop("n", 300))
    plan = Plan(recipe=Recipe(steps=more.pop("steps", ())), choices=more.pop("choices", {}),
                precision=more.pop("precision", "f32"))  # fmt: skip
    figures = Figures(
        size=size, latency_p95=latency, memory=more.pop("memory", None), index_size=more.pop("index", None)
    )
    given = {"number": number, "plan": plan, "reached": "whole", "figures": figures, "change": changed} | more
    return Trial(**given)


# ---------------------------------------------------------------- the front


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=25))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int, int]]) -> None:
    trials = [trial(i + 1, a, float(b), -c / 100, index=d) for i, (a, b, c, d) in enumerate(points)]
    beaten = {
        i + 1
        for (i, p), q in itertools.product(enumerate(points), points)
        if q != p and q[0] <= p[0] and q[1] <= p[1] and q[2] <= p[2] and q[3] <= p[3]
    }
    found = fronts.front(trials)
    assert set(found) == {t.number for t in trials} - beaten
    assert list(found) == sorted(found, key=lambda number: (points[number - 1][0], number))


def test_only_trials_measured_to_the_end_are_on_the_front() -> None:
    trials = [
        trial(0, 90, 12.0, None),
        trial(1, 10, 5.0, -0.01),
        trial(2, 5, 1.0, -0.001, reached="part"),
        trial(3, 4, None, None, reached="size"),
        trial(4, 3, 1.0, 0.0, ended="it gave NaN"),
        trial(5, 2, 1.0, math.nan),
    ]
    assert fronts.front(trials) == (1, 0)


def test_a_cost_that_was_not_measured_is_the_worst() -> None:
    assert fronts.front([trial(1, 10, None, -0.01), trial(2, 10, 5.0, -0.01)]) == (2,)
    assert fronts.front([trial(1, 10, None, -0.01), trial(2, 11, None, -0.01)]) == (1,)
    # A smaller index keeps a trial that is beaten in all else; the same index for all decides nothing.
    assert fronts.front([trial(1, 10, 5.0, index=8), trial(2, 11, 6.0, index=4)]) == (1, 2)
    assert fronts.front([trial(1, 10, 5.0, index=8), trial(2, 11, 6.0, index=8)]) == (1,)


# ---------------------------------------------------------------- hypervolume


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([], (1, 1), 0.0),
        ([(1, 1)], (3, 4), 6.0),
        # Steps of 1 x 1, 1 x 2 and 1 x 3 under the point (4, 4).
        ([(1, 3), (2, 2), (3, 1)], (4, 4), 6.0),
        ([(1, 3), (2, 2), (3, 1), (3, 3), (2, 2)], (4, 4), 6.0),
        ([(1, 3), (4, 0), (5, 5), (math.inf, 0)], (4, 4), 3.0),
        ([(0, 0, 0)], (2, 3, 4), 24.0),
        # Two boxes of 2 x 2 x 1 and 1 x 1 x 2 that share a cube of 1.
        ([(0, 0, 1), (1, 1, 0)], (2, 2, 2), 5.0),
    ],
)
def test_volumes_worked_by_hand(points: list[tuple[float, ...]], reference: tuple[float, ...], volume: float) -> None:
    assert fronts.hypervolume(points, reference) == pytest.approx(volume)


@pytest.mark.parametrize("width", [2, 3])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_volume_is_the_number_of_cells_that_are_dominated(width: int, data: st.DataObject) -> None:
    """On whole coordinates the volume is a count of unit cells, which brute force gives exactly."""
    points = data.draw(st.lists(st.tuples(*[st.integers(0, 7)] * width), max_size=12))
    cells = np.stack(np.meshgrid(*[np.arange(6)] * width, indexing="ij"), axis=-1).reshape(-1, width)
    dominated = np.zeros(len(cells), dtype=bool)
    for point in points:
        dominated |= (cells >= np.array(point)).all(axis=1)
    assert fronts.hypervolume(points, (6,) * width) == pytest.approx(int(dominated.sum()))


# ---------------------------------------------------------------- limits

BUDGET = Budget(size=8_000_000, max_loss=0.01)


@pytest.mark.parametrize(
    ("found", "budget", "said"),
    [
        (trial(1, 7_900_000, bound=-0.01), BUDGET, ""),
        (trial(1, 9_640_000, bound=-0.01), BUDGET, "size 9.64 MB of at most 8 MB: --max-size 9.7MB would do"),
        (trial(1, 8_000_001, bound=0.0), BUDGET,
         "size 8,000,001 B of at most 8,000,000 B: --max-size 8.1MB would do"),
        (trial(1, 61_234, bound=0.0), Budget(size=50_000),
         "size 61,234 B of at most 50,000 B: --max-size 61.3kB would do"),
        (trial(1, None), Budget(size=50_000_000),
         "size not measured, of at most 50 MB: no other value of these limits would do"),
        (trial(1, latency=5.31), Budget(latency_p95=5.0),
         "latency p95 5.31 ms of at most 5 ms: --max-latency 5.4ms would do"),
        (trial(1, memory=148_000_000), Budget(memory=100_000_000),
         "memory 148 MB of at most 100 MB: --max-memory 148.1MB would do"),
        (trial(1, index=21_000_000), Budget(index_size=20_000_000),
         "index 21 MB of at most 20 MB: --max-index 21.1MB would do"),
        (trial(1, 9_000_000, index=5_000_000), Budget(total=13_000_000),
         "package and index 14 MB of at most 13 MB: --max-total 14.1MB would do"),
        # (0.0121 / 0.006)^2 * 300 = 1220.1, and of that two digits, rounded up.
        (trial(1, 7_000_000, relative=-0.004, bound=-0.0161), BUDGET,
         "loss 0.4 %, proven to be at most 1.61 % with n = 300, of at most 1 %: "
         "--max-loss 1.7% (or about 1,300 development queries in place of --max-loss) would do"),
        (trial(1, 7_000_000, relative=-0.02, bound=-0.03), BUDGET,
         "loss 2 %, proven to be at most 3 % with n = 300, of at most 1 %: --max-loss 3% would do"),
        (trial(1, 7_000_000, relative=0.003, bound=-0.0119, n=50), BUDGET,
         "no loss measured, proven to be at most 5.82 % with n = 50, of at most 1 %: "  # 0.9418 ^ 50 = 0.05
         "--max-loss 5.9% (or about 300 development queries in place of --max-loss) would do"),
        (trial(1, 9_640_000, relative=-0.004, bound=-0.0161), BUDGET,
         "size 9.64 MB of at most 8 MB, loss 0.4 %, proven to be at most 1.61 % with n = 300, of at most 1 %: "
         "--max-size 9.7MB and --max-loss 1.7% (or about 1,300 development queries in place of --max-loss) would do"),
        (trial(1, 7_000_000, relative=-1.0, bound=-1.0), BUDGET,
         "loss 100 %, proven to be at most 100 % with n = 300, of at most 1 %: "
         "no other value of these limits would do"),
        (trial(1, 7_000_000, relative=0.0, bound=0.0, n=1), BUDGET,
         "loss not measured, of at most 1 %: no other value of these limits would do"),
        (trial(0, 90_000_000, relative=None), BUDGET, "size 90 MB of at most 8 MB: --max-size 90.1MB would do"),
    ],
)  # fmt: skip
def test_what_is_not_kept_and_what_would_do(found: Trial, budget: Budget, said: str) -> None:
    assert fronts.unmet(found, budget) == said
    assert (fronts.missed(found, budget) == ()) == (said == "")


def test_the_gate_is_the_bound_and_not_the_mean() -> None:
    just, over = trial(1, 1, bound=-0.01), trial(1, 1, relative=0.0, bound=math.nextafter(-0.01, -1))
    assert fronts.missed(just, BUDGET) == ()
    assert [limit.name for limit in fronts.missed(over, BUDGET)] == ["loss"]


@settings(deadline=None)
@given(st.integers(1_000, 10**12), st.floats(0.001, 10_000), st.floats(-0.998, -1e-6))
def test_the_budget_that_would_do_is_kept_when_it_is_read(size: int, latency: float, bound: float) -> None:
    found = trial(1, size, latency, 0.0, bound=bound, memory=size, index=size)
    budget = Budget(size=size - 1, memory=size - 1, index_size=1, latency_p95=latency / 2, max_loss=0.0)
    flags = dict(limit.flag.split(" ", 1) for limit in fronts.missed(found, budget))
    assert set(flags) == {"--max-size", "--max-memory", "--max-index", "--max-latency", "--max-loss"}
    sizes = {name: recipes.byte_size(flags[f"--max-{name}"], 1) for name in ("size", "memory", "index")}
    milliseconds = float(flags["--max-latency"].removesuffix("ms"))
    wider = Budget(size=sizes["size"], memory=sizes["memory"], index_size=sizes["index"], latency_p95=milliseconds,
                   max_loss=recipes.share(flags["--max-loss"]))  # fmt: skip
    assert fronts.missed(found, wider) == ()
    assert wider.size is not None
    assert wider.size <= size * 1.2
    assert milliseconds <= latency + 0.11


# ---------------------------------------------------------------- the choice


def test_with_a_limit_of_cost_the_best_quality_is_chosen_and_then_the_smallest() -> None:
    trials = [trial(0, 90_000_000, relative=None), trial(1, 7_000_000, relative=-0.004, bound=-0.009),
              trial(2, 7_500_000, relative=-0.002, bound=-0.008), trial(3, 7_400_000, relative=-0.002, bound=-0.009),
              trial(4, 7_100_000, relative=0.1, bound=-0.02),
              trial(5, 1_000_000, relative=0.2, reached="part")]  # fmt: skip
    assert fronts.choose(trials, BUDGET) == (3, True)
    assert fronts.choose(trials, Budget(max_loss=0.01)) == (1, True)
    assert fronts.choose(trials, Budget(max_loss=0.03)) == (1, True)
    assert fronts.choose(trials, Budget(size=8_000_000)) == (4, True)
    assert fronts.choose(trials, Budget(max_loss=0.0)) == (0, True)


def test_where_nothing_keeps_the_budget_the_nearest_is_chosen() -> None:
    # Excesses: 9.2 / 8 - 1 = 15 %; loss 1.2 of 1 %: 20 %; 8.8 / 8 - 1 = 10 % but loss 1.5 of 1 %: 50 %.
    trials = [trial(0, 90_000_000, relative=None), trial(1, 9_200_000, bound=-0.01), trial(2, 7_000_000, bound=-0.012),
              trial(3, 8_800_000, bound=-0.015)]  # fmt: skip
    assert fronts.choose(trials, BUDGET) == (1, False)
    assert fronts.nearest(trials[:1] + trials[2:], BUDGET).number == 2
    assert fronts.nearest(trials[:1], BUDGET).number == 0
    better = trial(4, 9_200_000, relative=-0.005, bound=-0.01)
    assert fronts.nearest([*trials, better], BUDGET).number == 4


def test_a_loss_of_nothing_can_be_asked() -> None:
    asked = trial(1, 9, bound=-0.001, n=10_000)
    [limit] = fronts.limits(asked, Budget(max_loss=0.0))
    assert limit.excess == pytest.approx(1.0)


# ---------------------------------------------------------------- what each step saved


def record(
    step: str, before: int, after: int, relative: float | None, macs: tuple[int, int] = (100, 100)
) -> StepRecord:
    return StepRecord(
        step=step, parameters={}, changed=(), parameters_before=1, parameters_after=1, bytes_before=before,
        bytes_after=after, macs_before=macs[0], macs_after=macs[1], seconds=1.0, compression_ratio=after / before,
        quality=None if relative is None else change(relative),
    )  # fmt: skip


ORIGINAL = trial(0, 91, 12.0, None)
BUILT = trial(3, 11, 4.0, -0.02, steps=(LAYERS, INT8, VOCABULARY), records=(
    record("prune.layers", 90, 60, -0.03, (100, 70)), record("quantize.weights_int", 60, 15, -0.01),
    record("simplify.vocabulary", 15, 9, -0.015),
))  # fmt: skip


def test_each_step_saved_what_its_record_says_and_the_rows_add_up() -> None:
    begun = trial(1, 62, 9.0, -0.03, steps=(LAYERS,))
    rows = parts.attribution(BUILT, ORIGINAL, [ORIGINAL, begun, BUILT])
    assert [row.step for row in rows] == ["prune.layers", "quantize.weights_int", "simplify.vocabulary", parts.REST]
    assert [row.bytes for row in rows] == [30, 45, 6, -1]  # 91 - 11 = 80 in all
    assert [row.macs for row in rows] == [30, 0, 0, 0]
    # After two steps nothing was timed: the first saved 12 - 9, and 9 - 4 is not told apart.
    assert [row.milliseconds for row in rows] == [3.0, None, None, 5.0]
    assert [row.quality for row in rows] == pytest.approx([-0.03, 0.02, -0.005, -0.005])
    middle = trial(2, 16, 5.5, -0.01, steps=(LAYERS, INT8))
    timed = [row.milliseconds for row in parts.attribution(BUILT, ORIGINAL, [begun, middle])]
    assert timed == [3.0, 3.5, 1.5, 0.0]


def test_a_step_that_was_judged_later_has_no_quality_of_its_own() -> None:
    records = (record("prune.layers", 90, 60, None), *BUILT.records[1:])
    rows = parts.attribution(msgspec.structs.replace(BUILT, records=records), ORIGINAL)
    assert [row.quality for row in rows] == [None, None, pytest.approx(-0.005), pytest.approx(-0.015)]


def test_a_student_is_not_taken_for_the_original() -> None:
    recipe = msgspec.structs.replace(BUILT.plan.recipe, student="small")
    student = msgspec.structs.replace(BUILT, plan=Plan(recipe=recipe))
    assert [row.milliseconds for row in parts.attribution(student, ORIGINAL)] == [None, None, None, 8.0]
    begun = trial(1, 62, 9.0, -0.03, steps=(LAYERS,))
    assert [row.milliseconds for row in parts.attribution(student, ORIGINAL, [begun])] == [None, None, None, 8.0]


def test_only_trials_with_the_first_steps_tell_milliseconds_apart() -> None:
    others = [trial(1, 62, 9.0, -0.03, steps=(VOCABULARY,)), trial(2, 62, 8.0, -0.03, steps=(LAYERS, VOCABULARY))]
    rows = parts.attribution(BUILT, ORIGINAL, others)
    assert [row.milliseconds for row in rows] == [None, None, None, 8.0]


def effect(trials: list[Trial], kind: str) -> list[parts.Effect]:
    return [found for found in parts.effects(trials) if found.kind == kind]


def test_a_choice_is_judged_by_the_pairs_that_differ_in_it_alone() -> None:
    trials = [
        trial(0, 91, 12.0, None),
        trial(1, 20, 5.0, -0.01, choices={"bits": 8, "blocks": 6}),
        trial(2, 12, 4.0, -0.03, choices={"bits": 4, "blocks": 6}),
        trial(3, 9, 2.0, -0.07, choices={"bits": 4, "blocks": 3}),
        trial(4, 15, 3.5, -0.04, choices={"bits": 8, "blocks": 3}),
        trial(5, 8, 3.0, -0.5, choices={"bits": 2, "blocks": 3, "vocabulary": True}),
    ]
    blocks, bits = sorted(effect(trials, "choice"), key=lambda found: found.before, reverse=True)[::-1]
    assert (blocks.name, blocks.before, blocks.after) == ("blocks", "6", "3")
    assert blocks.pairs == ((1, 4), (2, 3))
    assert blocks.bytes == parts.Spread(mean=-4.0, low=-5, high=-3)
    assert (bits.name, bits.before, bits.after) == ("bits", "8", "4")
    assert bits.pairs == ((1, 2), (4, 3))
    assert bits.bytes == parts.Spread(mean=-7.0, low=-8, high=-6)
    assert bits.milliseconds == parts.Spread(mean=-1.25, low=-1.5, high=-1.0)
    assert (bits.quality.mean, bits.quality.low, bits.quality.high) == pytest.approx((-0.025, -0.03, -0.02))


def test_a_step_is_judged_in_each_place() -> None:
    trials = [
        trial(1, 20, None, -0.01, steps=(INT8,)),
        trial(2, 12, 4.0, -0.02, steps=(VOCABULARY, INT8)),
        trial(3, 13, 4.0, -0.05, steps=(INT8, VOCABULARY)),
        trial(4, 9, 4.0, -0.05, steps=(LAYERS, INT8)),
        trial(5, 6, 3.0, -0.06, steps=(LAYERS, INT8, VOCABULARY)),
        trial(6, 6, 3.0, -0.06, steps=(LAYERS,), precision="int8"),  # another index: it pairs with none
        trial(7, 6, 3.0, -0.06, steps=(LAYERS, INT4)),  # another step in the place of one
    ]
    assert {number for found in parts.effects(trials) for pair in found.pairs for number in pair} == {1, 2, 3, 4, 5}
    places = {found.after: found for found in effect(trials, "step") if found.name == "simplify.vocabulary"}
    assert set(places) == {"first", "behind quantize.weights_int"}
    assert places["first"].pairs == ((1, 2),)
    assert places["first"].milliseconds is None
    assert places["first"].quality.mean == pytest.approx(-0.01)
    behind = places["behind quantize.weights_int"]
    assert behind.pairs == ((1, 3), (4, 5))
    assert behind.bytes == parts.Spread(mean=-5.0, low=-7, high=-3)
    assert behind.quality.mean == pytest.approx((-0.04 - 0.01) / 2)
    [order] = effect(trials, "order")
    assert order.pairs == ((3, 2),)  # the larger package first
    assert (order.before, order.after) == (
        "quantize.weights_int, simplify.vocabulary", "simplify.vocabulary, quantize.weights_int",
    )  # fmt: skip
    assert order.quality.mean == pytest.approx(0.03)


def test_effects_do_not_depend_on_the_order_of_the_trials() -> None:
    trials = [trial(i, int(size), 1.0 + i, -0.01 * i, choices={"a": i % 2, "b": i // 2})
              for i, size in enumerate((50, 40, 45, 60, 20, 10))]  # fmt: skip
    told = {(e.name, e.before, e.after): (sorted(e.pairs), e.bytes) for e in parts.effects(trials)}
    back = {(e.name, e.before, e.after): (sorted(e.pairs), e.bytes) for e in parts.effects(trials[::-1])}
    assert told == back
    # a: 0 -> 1 makes 50 -> 40, 45 -> 60, 20 -> 10; each pair once.
    assert told["a", "0", "1"] == ([(0, 1), (2, 3), (4, 5)], parts.Spread(mean=-5 / 3, low=-10, high=15))
