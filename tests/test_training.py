"""The training loop against one written by hand, and killed in the middle; distillation against its definition."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from slimseek import choose, compress, data, pipeline, plugins, timing
from slimseek.bases import Step
from slimseek.compress import Judge
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines, quality
from slimseek.inputs.samples import TEXTS
from slimseek.losses.cosine import Cosine
from slimseek.losses.mse import MeanSquaredError
from slimseek.measurement import Environment
from slimseek.prove import Options
from slimseek.schema import Array, Gates, Model, ModelSpec, Recipe, RecipeStep, Samples, TensorSpec
from slimseek.training import targets, train
from slimseek.training.examples import Lazy, ahead
from slimseek.training.train import Examples, Training
from small import CORPUS, tiny_bert, tiny_collection


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


# ---------------------------------------------------------------- the loop


class Small(nn.Module):
    """Two layers with dropout and a batch norm, whose statistics training must leave alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def regression(steps: int = 60, size: int = 8) -> Examples:
    """Batches of a linear map with noise."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(5, 3)).astype(np.float32)

    def example(count: int) -> tuple[dict[str, Array], Array]:
        x = random.normal(size=(count, 5)).astype(np.float32)
        return {"x": x}, x @ weight + random.normal(0, 0.1, (count, 3)).astype(np.float32)

    return Examples(train=tuple(example(size) for _ in range(steps)), held_out=(example(12), example(3)))


def by_hand(network: Small, examples: Examples, rates: list[float]) -> float:
    """AdamW on the mean squared error, no weight decay; the loss on the held-out rows, not on their batches."""
    network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    for (inputs, target), rate in zip(examples.train, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.mse_loss(network(torch.from_numpy(inputs["x"])), torch.from_numpy(target)).backward()
        optimizer.step()
    with torch.no_grad():
        errors = [
            (network(torch.from_numpy(inputs["x"])).numpy() - target) ** 2 for inputs, target in examples.held_out
        ]
    return float(np.concatenate(errors).mean())


def test_the_loop_equals_one_written_by_hand() -> None:
    examples, settings = regression(), Training(steps=60, batch_size=8, learning_rate=0.02)
    ours, theirs = Small(), Small()
    untrained = by_hand(Small(), Examples(train=(), held_out=examples.held_out), [])
    fitted = train.fit(ours, examples, MeanSquaredError(), settings)
    expected = by_hand(theirs, examples, [settings.rate(number) for number in range(60)])
    assert fitted.before == pytest.approx(untrained, rel=1e-6)
    assert fitted.after == pytest.approx(expected, rel=1e-6)
    assert fitted.after < 0.5 * fitted.before
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6), name


def test_the_rate_rises_over_a_tenth_and_falls_in_a_cosine() -> None:
    settings = Training(steps=20, learning_rate=2.0)
    rates = [settings.rate(number) for number in range(20)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert rates[11] == pytest.approx(1.0), "half of the 18 steps after the warm-up"
    assert rates[19] == pytest.approx(1 + np.cos(np.pi * 17 / 18))
    assert all(low > high > 0 for low, high in itertools.pairwise(rates[2:]))
    assert Training(steps=1, learning_rate=2.0).rate(0) == 2.0
    assert Training(steps=4, warm_up=1.0, learning_rate=2.0).rate(3) == 2.0


def test_the_network_runs_as_it_will_be_used_and_gets_its_modes_back() -> None:
    network = Small()
    network.train()
    network.drop.eval()
    before = {name: value.clone() for name, value in network.named_buffers()}
    train.fit(network, regression(5), MeanSquaredError(), Training(steps=5, batch_size=8))
    assert [module.training for module in network.modules()] == [True, True, True, False, True]
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), "statistics of the batch norm stay"


def test_frozen_parameters_stay_and_shares_slow_others_down() -> None:
    network, start = Small(), Small()
    network.first.weight.requires_grad_(False)
    [example] = regression(1).train
    examples = Examples(train=(example,), held_out=(example,))
    train.fit(network, examples, MeanSquaredError(), Training(steps=1, learning_rate=0.01), shares={"last.bias": 0.1})
    assert torch.equal(network.first.weight, start.first.weight)
    moved = {name: float((value - dict(start.named_parameters())[name]).abs().max().detach())
             for name, value in network.named_parameters()}  # fmt: skip
    # AdamW's first step moves each value by its rate.
    assert moved["last.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["last.bias"] == pytest.approx(0.001, rel=1e-3)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter"):
        train.fit(network, examples, MeanSquaredError(), Training(steps=1))


def test_the_best_state_is_kept_and_the_untrained_one_is_among_them() -> None:
    """Far too high a rate."""
    network = Small()
    fitted = train.fit(network, regression(), MeanSquaredError(), Training(steps=60, learning_rate=1e3))
    assert fitted.after == fitted.before
    for name, value in Small().state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_a_rate_that_no_number_holds_is_named() -> None:
    with pytest.raises(UsageError, match=r"the loss of step 2 is inf: .*; take a smaller learning_rate"):
        train.fit(Small(), regression(), MeanSquaredError(), Training(steps=60, learning_rate=1e30))


class Killed(Exception):
    """Stands for the end of the process."""


def dying(after: int) -> train.Loss:
    """The loss, until it was computed so often."""
    calls = itertools.count()

    def loss(output: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        if next(calls) == after:
            raise Killed
        return squared(MeanSquaredError(), output, target)

    squared = MeanSquaredError.__call__
    return loss


@pytest.mark.parametrize("share", [1.0, 0.3], ids=["better to the end", "best on the way"])
@pytest.mark.parametrize("after", [1, 5, 27, 45, 69], ids=lambda count: f"dies at loss {count}")
def test_a_killed_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, after: int
) -> None:
    """Bit for bit: with the optimizer's moments, the step of the schedule, and a best state from before the kill."""
    monkeypatch.setattr(train, "CHECK_EVERY", 10)
    examples, settings = regression(), Training(steps=60, batch_size=8, learning_rate=0.02)
    # The way to the trained targets leads past a share of them.
    examples = dataclasses.replace(
        examples, held_out=tuple((inputs, target * np.float32(share)) for inputs, target in examples.held_out)
    )
    whole = Small()
    expected = train.fit(whole, examples, MeanSquaredError(), settings)
    last = by_hand(Small(), examples, [settings.rate(number) for number in range(60)])
    assert expected.after < expected.before
    assert (expected.after < 0.9 * last) == (share < 1), "where the best state is"
    settings = msgspec.structs.replace(settings, checkpoint=str(tmp_path / "deep" / "checkpoint"))
    with pytest.raises(Killed):
        train.fit(Small(), examples, dying(after), settings)
    assert Path(settings.checkpoint).is_file() == (after > 14), "two losses at the start, ten steps, two losses"
    steps = itertools.count()

    def counted(output: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        next(steps)
        return MeanSquaredError()(output, target)

    resumed = Small()
    assert train.fit(resumed, examples, counted, settings) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    done = 10 * max(0, (after - 2) // 12)
    assert next(steps) == 2 + (60 - done) // 10 * 12, "what was done is not done again"
    assert train.fit(again := Small(), examples, MeanSquaredError(), settings) == expected
    assert torch.equal(again.last.weight, whole.last.weight), "a finished training is only read"


def test_a_checkpoint_of_another_training_is_refused_with_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    examples, settings = regression(), Training(steps=60, batch_size=8, checkpoint=str(file))
    train.fit(Small(), examples, MeanSquaredError(), settings)
    wrong = f"{file} is no checkpoint of this training"
    for network, loss, other, reason in (
        (Small(), MeanSquaredError(), {"learning_rate": 0.5}, "learning_rate was 0.0001, is 0.5"),
        (Small(), MeanSquaredError(), {"seed": 7}, "seed was 0, is 7"),
        (Small(1), MeanSquaredError(), {}, "it began with loss"),
        (Small(), Cosine(), {}, "it began with loss"),
    ):
        changed = Training(**{"steps": 60, "batch_size": 8, "checkpoint": str(file)} | other)
        with pytest.raises(UsageError, match=reason) as error:
            train.fit(network, examples, loss, changed)
        assert str(error.value).startswith(wrong)
        assert "\n" not in str(error.value)
    content = file.read_bytes()
    for damaged in (b"", b"nothing", content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match="is no checkpoint of this training"):
            train.fit(Small(), examples, MeanSquaredError(), settings)


def test_settings_outside_their_limits_are_refused() -> None:
    for bad in ({"steps": 0}, {"batch_size": -1}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
                {"max_tokens": 3}, {"warm_up": 1.5}, {"accumulate": 0}, {"patience": -1},
                {"precision": "half"}):  # fmt: skip
        with pytest.raises(UsageError, match=f"^{next(iter(bad))} is"):
            Training(**bad)


def test_a_loss_is_told_how_far_the_training_is_and_gets_targets_by_name() -> None:
    shares: list[float] = []

    def loss(output: torch.Tensor, target: dict[str, torch.Tensor], progress: float) -> torch.Tensor:
        shares.append(progress)
        return progress * MeanSquaredError()(output, target["left"]) + (1 - progress) * MeanSquaredError()(
            output, target["right"]
        )

    network, rows = Small(), np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    given = tuple(({"x": row}, {"left": row[:, :3], "right": row[:, 2:]}) for row in rows)
    settings = Training(steps=4, batch_size=3, learning_rate=1e-2)
    found = train.fit(network, Examples(train=given, held_out=given[:1]), loss, settings)
    assert shares == [1.0, 0.0, 0.25, 0.5, 0.75, 1.0], "held-out items are judged by the loss that holds at the end"
    network.eval()
    with torch.no_grad():
        left = MeanSquaredError()(network(torch.from_numpy(rows[0])), torch.from_numpy(rows[0, :, :3]))
    assert found.after == pytest.approx(float(left.mean()))


def test_a_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []

    def make(number: int) -> train.Example:
        made.append(number)
        return {"x": np.full((1, 5), number, np.float32)}, np.zeros((1, 3), np.float32)

    lazy = Lazy(10, make)
    assert (len(lazy), made) == (10, [])
    assert len(part := lazy[4:8]) == 4
    assert made == []
    assert [inputs["x"][0, 0] for inputs, _ in part[1:3]] == [5, 6]
    assert made == [5, 6]
    assert lazy[-1][0]["x"][0, 0] == 9
    with pytest.raises(IndexError):
        lazy[10]
    made.clear()
    settings = Training(steps=3, accumulate=2, batch_size=1)
    train.fit(Small(), Examples(train=lazy[:6], held_out=lazy[9:]), MeanSquaredError(), settings)
    assert made == [9, 0, 1, 2, 3, 4, 5, 9], "the held-out one before and after; none is read ahead"


def test_two_half_batches_make_the_same_step_as_a_whole_one() -> None:
    examples = regression(20, 8)
    halves = tuple(({"x": inputs["x"][part]}, target[part]) for inputs, target in examples.train
                   for part in (slice(0, 4), slice(4, 8)))  # fmt: skip
    whole, parts = Small(), Small()
    for network, given, settings in (
        (whole, examples.train, Training(steps=20, batch_size=8, learning_rate=0.02)),
        (parts, halves, Training(steps=20, batch_size=4, accumulate=2, learning_rate=0.02)),
    ):
        found = train.fit(network, Examples(train=given, held_out=examples.held_out), MeanSquaredError(), settings)
        assert found.steps == 20
    for name, value in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[name], value, atol=1e-5), name
    assert not torch.equal(whole.last.weight, Small().last.weight)


def test_a_judge_takes_the_place_of_the_held_out_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 2)
    seen: list[torch.Tensor] = []
    verdicts = [0.9, 0.8, 0.3, float("nan"), 0.5, 0.4]

    def judge(network: Small) -> float:
        assert not torch.is_grad_enabled()
        assert not network.training
        seen.append(network.last.weight.detach().clone())
        return verdicts[len(seen) - 1]

    network = Small()
    examples = dataclasses.replace(regression(10), held_out=())
    found = train.fit(network, examples, MeanSquaredError(), Training(steps=10, learning_rate=0.02), judge=judge)
    assert (found.before, found.after, found.steps) == (0.9, 0.3, 10)
    assert torch.equal(network.last.weight, seen[2]), "the state that was judged best"
    assert not torch.equal(seen[2], seen[5])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("target", r"the loss of step 3 is nan: what the network should give, .*, is not finite; check the teacher"),
        ("network", r"the loss of step 3 is nan: what the network gives is not finite; take a smaller learning_rate"),
        ("loss", r"the loss of step 3 is inf: network and target are finite, the loss of them is not; take a smaller"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_cause(fault: str, said: str) -> None:
    """Not after all steps, with a network of NaN that is thrown away."""
    given, steps = regression(6), []
    inputs, target = given.train[2]
    if fault != "loss":
        (target if fault == "target" else inputs["x"])[0, 0] = np.nan

    def loss(output: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        steps.append(progress)
        broken = fault == "loss" and progress == pytest.approx(2 / 6)
        return ((output - target) ** 2).mean(-1) / (0.0 if broken else 1.0)

    with pytest.raises(UsageError, match=said):
        train.fit(Small(), given, loss, Training(steps=6))
    assert max(step for step in steps if step < 1) == pytest.approx(2 / 6), "no step after it"


@pytest.mark.parametrize(("patience", "steps"), [(0, 20), (1, 6), (2, 12), (3, 20)])
def test_it_stops_after_checks_without_a_better_state_and_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, steps: int
) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 2)
    verdicts = [0.9, 0.8, 0.5, 0.5, 0.4, 0.4, 0.6, 0.3, 0.4, 0.4, 0.35]

    def verdict(networks: list[Small]) -> train.Judge:
        def judge(network: Small) -> float:
            networks.append(network)
            return verdicts[len(networks) - 1]

        return judge

    settings = Training(steps=20, learning_rate=0.02, patience=patience, checkpoint=str(tmp_path / "checkpoint"))
    asked: list[Small] = []
    expected = train.fit(Small(), regression(20), MeanSquaredError(), settings, judge=verdict(asked))
    assert expected.steps == steps
    again: list[Small] = []
    found = train.fit(Small(), regression(20), MeanSquaredError(), settings, judge=verdict(again))
    assert found == expected
    assert len(again) == 1, "only the untrained network is judged again; no step is taken"


@pytest.mark.parametrize("after", [3, 9, 14])
def test_a_killed_training_with_accumulation_judge_and_patience_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 2)
    examples = regression(40)
    [(inputs, target), _] = examples.held_out

    def judge(network: Small) -> float:
        """Past a share of the targets: best on the way."""
        return float((network(torch.from_numpy(inputs["x"])) - 0.3 * torch.from_numpy(target)).square().mean())

    settings = Training(steps=20, accumulate=2, batch_size=8, learning_rate=0.03, patience=3)
    whole = Small()
    expected = train.fit(whole, examples, MeanSquaredError(), settings, judge=judge)
    assert expected.after < expected.before
    assert 8 < expected.steps < 20, "it stopped early"
    settings = msgspec.structs.replace(settings, checkpoint=str(tmp_path / "checkpoint"))
    with pytest.raises(Killed):
        train.fit(Small(), examples, dying(after), settings, judge=judge)
    resumed = Small()
    assert train.fit(resumed, examples, MeanSquaredError(), settings, judge=judge) == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    changed = msgspec.structs.replace(settings, accumulate=1)
    with pytest.raises(UsageError, match="accumulate was 2, is 1"):
        train.fit(Small(), examples, MeanSquaredError(), changed, judge=judge)


def test_bfloat16_is_used_where_it_is_asked_for_and_refused_where_the_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products in bfloat16, the loss and the weights in float32; a check is as exact as without."""
    seen: list[torch.dtype] = []

    def loss(output: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(output.dtype)
        return MeanSquaredError()(output, target)

    def trained(precision: str) -> tuple[Small, train.Fitted]:
        network = Small()
        products: list[torch.dtype] = []
        network.last.register_forward_hook(lambda module, given, result: products.append(result.dtype))
        settings = Training(steps=30, batch_size=8, learning_rate=0.02, precision=precision)
        found = train.fit(network, regression(30), loss, settings)
        narrow = torch.bfloat16 if precision == "bfloat16" else torch.float32
        assert products == [*[torch.float32] * 2, *[narrow] * 30, *[torch.float32] * 2]
        return network, found

    monkeypatch.setattr(timing, "environment", lambda threads: cpu("avx512_bf16"))
    exact, before = trained("float32")
    rough, after = trained("bfloat16")
    assert after.before == before.before
    assert set(seen) == {torch.float32}
    assert rough.last.weight.dtype == torch.float32
    assert after.after == pytest.approx(before.after, rel=0.1)
    assert not torch.equal(rough.last.weight, exact.last.weight)
    if not torch.accelerator.is_available():
        assert torch.equal(trained("auto")[0].last.weight, exact.last.weight)
    monkeypatch.setattr(timing, "environment", lambda threads: cpu("avx2"))
    if not torch.accelerator.is_available():
        with pytest.raises(UsageError, match="precision is bfloat16, for which this CPU has no instructions"):
            trained("bfloat16")


def cpu(*sets: str) -> Environment:
    return Environment(cpu="x", cores=1, threads=1, instruction_sets=sets, memory_bytes=1, system="", python="",
                       versions={})  # fmt: skip


def test_the_losses_are_their_definitions() -> None:
    output, target = (np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32) for seed in (0, 1))
    pair = torch.from_numpy(output), torch.from_numpy(target)
    norms = np.linalg.norm(output, axis=1) * np.linalg.norm(target, axis=1)
    assert np.allclose(Cosine()(*pair).numpy(), 1 - (output * target).sum(1) / norms, atol=1e-6)
    assert np.allclose(MeanSquaredError()(*pair).numpy(), ((output - target) ** 2).mean(1), atol=1e-6)


# ---------------------------------------------------------------- what is trained on


def marks(items: list[str]) -> Array:
    """A target that tells the item: its letters' codes, summed."""
    return np.array([[float(sum(map(ord, item)))] for item in items], np.float32)


def text_rows(found: tuple[train.Example, ...]) -> list[tuple[tuple[int, ...], float]]:
    """Token ids without padding, and the target."""
    return [
        (tuple(ids[mask == 1].tolist()), float(target[0]))
        for batch, targets in found
        for ids, mask, target in zip(batch["input_ids"], batch["attention_mask"], targets, strict=True)
    ]


def test_texts_come_with_their_targets_and_none_held_out_is_trained_on(original: Model) -> None:
    texts = [f"{one} {two} {'stone ' * count}" for one, two, count in
             itertools.product(("apple", "cat", "dog"), ("river", "the", "forest"), (0, 1, 5))]  # fmt: skip
    found = targets.examples(original, [*texts, "", *texts], marks, Training(steps=50, batch_size=4))
    assert len(found.train) == 50
    assert all(len(targets) <= 4 for _, targets in found.train)
    tokenizer = choose.encoder(original, "x", 1).input
    ids = {tuple(row): mark for row, mark in zip(tokenizer.rows(texts), marks(texts)[:, 0], strict=True)}
    trained, held = text_rows(found.train), text_rows(found.held_out)
    assert dict(trained) | dict(held) == ids, "each with its own target, and all of them are used"
    assert len(held) == len(texts) // 4
    assert {row for row, _ in trained} & {row for row, _ in held} == set()
    counts = Counter(row for row, _ in trained)
    assert max(counts.values()) - min(counts.values()) <= 2, "each as often as the others, but for the last pass"


def test_texts_that_the_model_reads_alike_are_not_both_held_out_and_trained_on(original: Model) -> None:
    """They differ in case, or beyond the cut."""
    texts = [
        f"{word} stone river {end}" for word in ("apple", "cat", "dog", "engine") for end in ("the cat", "the dog")
    ]
    found = targets.examples(original, texts, marks, Training(steps=9, batch_size=2, max_tokens=6))
    trained, held = ({row for row, _ in text_rows(part)} for part in (found.train, found.held_out))
    assert (len(trained), len(held)) == (3, 1)
    assert trained & held == set()
    end = choose.encoder(original, "x", 1).input.rows(["a"])[0][-1]
    assert all(len(row) == 6 and row[-1] == end for row in trained | held), "a cut text still has its closing token"


def test_the_seed_chooses_and_few_items_are_refused(original: Model) -> None:
    def rows(seed: int) -> list[tuple[tuple[int, ...], float]]:
        return text_rows(targets.examples(original, TEXTS, marks, Training(steps=6, seed=seed)).train)

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    with pytest.raises(UsageError, match="3 items are too few"):
        targets.examples(original, ["a", "b", "c", "", "a"], marks, Training())


def test_no_more_is_read_than_is_needed(original: Model) -> None:
    texts = [f"{number}" for number in range(3000)]
    seen: list[int] = []

    def counted(items: list[str]) -> Array:
        seen.append(len(items))
        return marks(items)

    targets.examples(original, texts, counted, Training(steps=2, batch_size=8))
    assert seen == [targets.HELD_OUT + 16]


def test_arrays_of_different_shapes_are_kept_apart_and_a_network_learns_from_them(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", "time", 5)),)
    spec = ModelSpec(
        family="onnx_array", modality="array", output="embedding", inputs=inputs, dim=3, normalised=False,
        preprocess=None,
    )  # fmt: skip
    model = Model(spec=spec, files={}, tensors={}, layers=())
    random = np.random.default_rng(0)
    weight, items = random.normal(size=(5, 3)).astype(np.float32), []
    for number in range(40):
        items.append(str(tmp_path / f"{number}.npy"))
        np.save(items[-1], random.normal(size=(2 + number % 3, 5)).astype(np.float32))
    np.save(tmp_path / "twin.npy", np.load(items[0]))

    def target(paths: list[str]) -> Array:
        return np.stack([np.load(path).mean(0) @ weight for path in paths])

    settings = Training(steps=150, batch_size=8, learning_rate=0.1)
    found = targets.examples(model, [*items, str(tmp_path / "twin.npy")], target, settings)
    assert len(found.train) == 150
    assert sum(len(given) for _, given in found.held_out) == 10
    for batch, given in (*found.train, *found.held_out):
        assert np.allclose(batch["x"].mean(1) @ weight, given, atol=1e-6), "each with its own target"
    assert {batch["x"].shape[1] for batch, _ in found.train} == {2, 3, 4}
    held = {row.tobytes() for batch, _ in found.held_out for row in batch["x"]}
    assert not held & {row.tobytes() for batch, _ in found.train for row in batch["x"]}

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.mean(1))

    network = Mean()
    fitted = train.fit(network, found, MeanSquaredError(), settings)
    assert fitted.after < 0.01 * fitted.before
    assert np.allclose(network.linear.weight.detach().numpy(), weight.T, atol=0.05)


def test_arrays_are_not_kept_but_read_when_a_batch_needs_them(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 5)),)
    spec = ModelSpec(
        family="onnx_array", modality="array", output="embedding", inputs=inputs, dim=3, normalised=False,
        preprocess=None,
    )  # fmt: skip
    items = [str(tmp_path / f"{number}.npy") for number in range(12)]
    for number, item in enumerate(items):
        np.save(item, np.full(5, number, np.float32))
    found = targets.examples(Model(spec=spec, files={}, tensors={}, layers=()), items, marks, Training(steps=3))
    assert len({float(value) for value in found.train[0][0]["x"][:, 0]}) > 3
    for item in items:
        np.save(item, np.full(5, 7, np.float32))
    assert {float(value) for batch, _ in found.train for value in batch["x"][:, 0]} == {7.0}


def test_a_teachers_vectors_are_those_of_the_cut_text(original: Model) -> None:
    long, short = "the cat and " * 10, "stone"
    found = targets.vectors_of(original, 6)([long, short])
    encoder = choose.encoder(original, "x", 1)
    ids = encoder.input.rows([long])[0]
    expected = encoder.encode(encoder.input.batch([[*ids[:5], ids[-1]]]))
    assert np.allclose(found[0], expected[0], atol=1e-6)
    assert np.allclose(found[1], encoder.documents([short])[0], atol=1e-6)


# ---------------------------------------------------------------- distil.embedding


def shallow(model: Model) -> Model:
    pruned: Model = plugins.load("methods", "prune.layers")(keep=(1,)).apply(model, Samples(calibration=[], texts=[]))
    return pruned


def distilled(model: Model, teacher: Model | None, **parameters: object) -> Model:
    settings = {"steps": 120, "batch_size": 8, "learning_rate": 3e-3} | parameters
    step = plugins.load("methods", "distil.embedding")(**settings)
    changed: Model = step.apply(model, Samples(calibration=[], texts=TEXTS, original=teacher))
    return changed


def nearness(model: Model, teacher: Model) -> float:
    return float(cosines(*(choose.encoder(one, "x", 1).documents(TEXTS) for one in (model, teacher))).mean())


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_student_comes_near_its_teacher_and_neither_given_model_changes(original: Model, loss: str) -> None:
    student = shallow(original)
    before = [{name: value.copy() for name, value in model.tensors.items()} for model in (student, original)]
    model = distilled(student, original, loss=loss)
    assert 1 - nearness(model, original) < 0.2 * (1 - nearness(student, original))
    for tensors, given in zip(before, (student, original), strict=True):
        assert all(np.array_equal(given.tensors[name], value) for name, value in tensors.items())
    [note] = plugins.load("methods", "distil.embedding")().notes(student, model)
    changed = sum(not np.array_equal(value, student.tensors[name]) for name, value in model.tensors.items())
    assert note.startswith(f"{changed} of {len(student.tensors)} tensors trained")
    assert 0 < changed < len(student.tensors), "the pooler, which no vector uses, stays"


def test_a_student_of_halves_stays_one(original: Model) -> None:
    half = plugins.load("methods", "quantize.float")(format="fp16").apply(
        shallow(original), Samples(calibration=[], texts=[])
    )
    model = distilled(half, original)
    assert {name: value.dtype for name, value in model.tensors.items()} == {
        name: value.dtype for name, value in half.tensors.items()
    }
    assert nearness(model, original) > nearness(half, original)


def test_a_student_with_a_cut_vocabulary_learns_from_the_same_texts(original: Model) -> None:
    """CASES D8, of our kind: their ids differ, so that ids of one would be nonsense to the other."""
    texts = [text for text in CORPUS.values() if "apple" not in text.lower()]
    samples = Samples(calibration=[], texts=[*texts, *map(" ".join, itertools.permutations(texts, 2))])
    cut = plugins.load("methods", "simplify.vocabulary")().apply(shallow(original), samples)
    step = plugins.load("methods", "distil.embedding")(steps=120, batch_size=8, learning_rate=3e-3)
    model = step.apply(cut, dataclasses.replace(samples, original=original))

    def error(one: Model) -> float:
        return 1 - float(cosines(*(choose.encoder(m, "x", 1).documents(samples.texts) for m in (one, original))).mean())

    assert error(model) < 0.2 * error(cut)


def test_a_killed_distillation_goes_on(original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = dying(20)
    monkeypatch.setattr(train, "CHECK_EVERY", 10)
    student, file = shallow(original), str(tmp_path / "checkpoint")
    expected = distilled(student, original, steps=30, loss="mse")
    with monkeypatch.context() as patch:
        patch.setattr(MeanSquaredError, "__call__", lambda _, *arguments: dies(*arguments))
        with pytest.raises(Killed):
            distilled(student, original, steps=30, loss="mse", checkpoint=file)
    assert Path(file).is_file()
    model = distilled(student, original, steps=30, loss="mse", checkpoint=file)
    for name, value in expected.tensors.items():
        assert np.array_equal(model.tensors[name], value), name


def test_what_cannot_be_distilled_is_refused_in_a_line(original: Model) -> None:
    student, samples = shallow(original), Samples(calibration=TEXTS, texts=TEXTS)
    integer = plugins.load("methods", "quantize.weights_int")().apply(student, samples)
    smooth = plugins.load("methods", "quantize.smooth")(alpha=0.9).apply(student, samples)
    wide = dataclasses.replace(original, spec=msgspec.structs.replace(original.spec, dim=48))
    name = next(iter(student.tensors))
    broken = dataclasses.replace(student, tensors={**student.tensors, name: student.tensors[name] * np.nan})
    for model, teacher, words in (
        (student, None, "no original is given"),
        (integer, original, "is quantized; distil before quantizing"),
        (smooth, original, "is smoothed"),
        (student, wide, "have 32 elements, its teacher's 48; projection pca or learned, or the loss similarity"),
        (broken, original, f"{name} holds NaN"),
        (student, broken, f"{name} holds NaN"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            distilled(model, teacher)
        assert "\n" not in str(error.value)
    with pytest.raises(NoEffect, match="its own teacher"):
        distilled(original, original)
    with pytest.raises(NoEffect, match="did not lower the loss"):
        distilled(student, original, steps=2, learning_rate=100.0)
    for bad in ({"steps": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"max_tokens": 1}):
        with pytest.raises(UsageError, match=rf"^distil\.embedding: {next(iter(bad))} is"):
            plugins.load("methods", "distil.embedding")(**bad)


# ---------------------------------------------------------------- in a recipe


def judge(original: Model, folder: Path) -> tuple[Judge, Samples]:
    tiny_collection(folder)
    found = data.load(str(folder))
    splits = data.split(found)
    dev = data.search_set(found, splits.dev, "dev")
    scores = quality(choose.encoder(original, "original", 1), dev, ["ndcg@10"])
    return Judge(search_set=dev, original=scores, threads=1), data.samples(found, splits)


def steps(*named: tuple[str, dict[str, object]]) -> tuple[RecipeStep, ...]:
    return tuple(RecipeStep(method=method, parameters=parameters) for method, parameters in named)


def test_the_teacher_is_the_model_before_the_first_step(original: Model, tmp_path: Path) -> None:
    _, samples = judge(original, tmp_path / "collection")
    training = {"steps": 40, "batch_size": 4, "learning_rate": 3e-3}
    recipe = Recipe(steps=steps(("prune.layers", {"keep": [1]}), ("distil.embedding", training)))
    ran = compress.run(original, recipe, samples)
    step = plugins.load("methods", "distil.embedding")(**training)
    expected = step.apply(shallow(original), dataclasses.replace(samples, original=original))
    for name, value in expected.tensors.items():
        assert np.array_equal(ran.model.tensors[name], value), name
    assert [record.error_mean for record in ran.records] == [None, None], "neither is an error of rounding"


def test_quality_is_judged_after_the_training_that_wins_it_back(original: Model, tmp_path: Path) -> None:
    """What a step lost stops a recipe only where no later step trains; the last good model is what passed."""
    asked, samples = judge(original, tmp_path / "collection")
    # A student that finds nothing: all texts get nearly the same vector, until it is trained.
    flat = {name: value * 0.0 if "word_embeddings" in name else value for name, value in original.tensors.items()}
    given = dataclasses.replace(original, tensors=flat)
    samples = dataclasses.replace(samples, original=original)
    prune, longer = ("prune.layers", {"keep": [1]}), {"steps": 150, "batch_size": 8, "learning_rate": 1e-2}
    alone = compress.run(given, Recipe(steps=steps(prune)), samples, asked)
    assert alone.failed is not None
    assert (alone.failed.gate, alone.model) == ("quality", given)
    both = compress.run(given, Recipe(steps=steps(prune, ("distil.embedding", longer))), samples, asked)
    assert both.failed is None
    assert [gate.status for gate in both.records[0].gates if gate.gate == "quality"] == ["failed"]
    assert len(both.model.layers) < len(original.layers)
    short = {"steps": 1, "batch_size": 2, "learning_rate": 1e-6}
    neither = compress.run(given, Recipe(steps=steps(prune, ("distil.embedding", short))), samples, asked)
    assert neither.failed is not None
    assert neither.model is given, "the pruned model had failed too"


def test_a_loss_that_waits_for_a_training_that_is_left_out_fails(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training finds out that the model does not need it; then nothing has won back what the step before lost."""

    class NotNeeded(Step, frozen=True):
        trains: ClassVar[bool] = True

        @property
        def as_needed(self) -> bool:
            return True

        def apply(self, model: Model, samples: Samples) -> Model:
            raise NoEffect("not needed")

    asked, samples = judge(original, tmp_path / "collection")
    flat = {name: value * 0.0 if "word_embeddings" in name else value for name, value in original.tensors.items()}
    given = dataclasses.replace(original, tensors=flat)
    build = compress.build
    monkeypatch.setattr(compress, "build", lambda step: NotNeeded() if step.method == "last" else build(step))
    ran = compress.run(given, Recipe(steps=steps(("prune.layers", {"keep": [1]}), ("last", {}))), samples, asked)
    assert ran.failed is not None
    assert (ran.failed.gate, ran.failed.status, ran.model) == ("quality", "failed", given)
    assert len(ran.records) == 1


def test_a_student_is_judged_by_the_original_and_learns_from_it(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "big")
    tiny_bert(tmp_path / "small", seed=1)
    tiny_collection(tmp_path / "collection")
    big, small = (choose.model(tmp_path / name) for name in ("big", "small"))
    steps = Recipe(
        steps=(RecipeStep(method="distil.embedding", parameters={"steps": 60, "learning_rate": 1e-3}),),
        student=str(tmp_path / "small"), gates=Gates(max_loss=0.9),
    )  # fmt: skip
    collection = str(tmp_path / "collection")
    comparison = pipeline.compress(tmp_path / "big", collection, steps, tmp_path / "out", Options(threads=1))
    made = choose.model(tmp_path / "out")
    texts = list(data.load(collection).corpus.values())
    vectors = {name: choose.encoder(one, name, 1).documents(texts)
               for name, one in (("big", big), ("small", small), ("made", made))}  # fmt: skip
    assert cosines(vectors["made"], vectors["big"]).mean() > cosines(vectors["small"], vectors["big"]).mean() + 0.05
    test = data.search_set(data.load(collection), data.split(data.load(collection)).test, "test")
    expected = quality(choose.encoder(big, "big", 1), test, ["ndcg@10"]).get("ndcg@10")
    assert comparison.original.get("ndcg@10") is not None
    assert comparison.original.get("ndcg@10").value == pytest.approx(expected.value)
    assert any("began with small" in note for note in comparison.notes)


def test_batches_made_ahead_come_in_order_each_once() -> None:
    made: list[int] = []

    def make(number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        time.sleep(0.01 if number % 2 else 0)
        made.append(number)
        return {"x": np.array([number])}, np.array([number])

    assert [int(target[0]) for _, target in ahead(Lazy(9, make), 2, 3)] == list(range(2, 9))
    assert sorted(made) == list(range(2, 9))


def test_few_batches_are_made_ahead_of_their_use_and_none_after_the_end() -> None:
    made: list[int] = []

    def make(number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        made.append(number)
        if number == 30:
            raise UsageError("batch 30 cannot be read")
        return {"x": np.array([number])}, np.array([number])

    fed = ahead(Lazy(1000, make), 0, 2)
    next(fed)
    fed.close()
    assert max(made) <= 5
    with pytest.raises(UsageError, match="batch 30"):
        list(ahead(Lazy(1000, make), 0, 2))
    assert len(made) < 50


def test_a_long_training_is_judged_a_limited_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 2)
    monkeypatch.setattr(train, "MOST_CHECKS", 5)
    asked: list[int] = []

    def judge(network: torch.nn.Module) -> float:
        asked.append(1)
        return 1.0

    train.fit(Small(), regression(), MeanSquaredError(), Training(steps=60, batch_size=8), judge=judge)
    assert len(asked) == 1 + 5
