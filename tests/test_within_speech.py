"""A search under a budget for recognisers: judged by what is heard, proven on recordings that no step has heard."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from slimseek import artifact, choose, compress, data, spoken, within
from slimseek.budget import bench, plans, space
from slimseek.budget.limits import Limits
from slimseek.budget.loop import Effort, line
from slimseek.budget.proposals import first_guesses
from slimseek.errors import UsageError
from slimseek.metrics._said import normalised
from slimseek.prove import Options
from slimseek.recognise import Recogniser
from slimseek.schema import Gates, Model
from slimseek.trial import Budget, Found, Trial
from small import Page, tiny_bert, tiny_collection, tiny_whisper

RATE, SECONDS, MOST = 16_000, 3, 14
DEV, TEST = 15, 12
OPTIONS = Options(threads=1)


@pytest.fixture(scope="module", autouse=True)
def _windows_of_a_small_one() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "WINDOWS", (2,))
        patch.setattr(space, "EFFORTS", (0,))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser, and recordings of which everything that it hears was said."""
    path = tmp_path_factory.mktemp("home")
    tiny_whisper(path / "model", seconds=SECONDS)
    settings = json.loads((path / "model" / "generation_config.json").read_bytes()) | {"max_length": MOST}
    (path / "model" / "generation_config.json").write_text(json.dumps(settings))
    clips = path / "spoken"
    clips.mkdir()
    random = np.random.default_rng(5)
    names = {f"{split}-{number}.wav": split for split, most in (("dev", DEV), ("test", TEST)) for number in range(most)}
    for name in names:
        places = np.arange(RATE * 3 // 2) / RATE
        sound = sum(np.sin(2 * np.pi * places * random.uniform(90, 3000) + random.uniform(0, 6)) for _ in range(5))
        soundfile.write(clips / name, 0.1 * sound, RATE)
    recogniser = choose.recognising(choose.model(path / "model"), "original", 1)
    heard = recogniser.transcripts([str(clips / name) for name in names])
    with (clips / "table.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("audio", "text", "split"))
        for (name, split), text in zip(names.items(), heard, strict=True):
            table.writerow((name, normalised(text) or "nothing", split))
    return path


def search(home: Path, out: str, trials: int, options: Options = OPTIONS, **limits: str) -> Found:
    return within.compress_within(
        home / "model", home / "spoken" / "table.csv", Limits(**limits or {"size": "60%"}), home / out,
        Effort(seconds=600, trials=trials), options, metric="word_error_rate",
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(home: Path) -> Found:
    return search(home, "out", 4)


def worst_of(found: Found) -> Trial:
    """The trial that hears most wrongly."""
    return min((trial for trial in found.trials if trial.change), key=lambda trial: trial.change.relative)  # type: ignore[union-attr]


def test_the_chosen_one_keeps_the_size_and_its_errors_are_told_in_points(home: Path, found: Found) -> None:
    chosen = next(trial for trial in found.trials if trial.number == found.chosen)
    assert found.met, found.unmet
    assert found.budget.size is not None
    assert chosen.figures.size is not None
    assert chosen.figures.size <= found.budget.size
    assert chosen.change is not None
    assert chosen.change.points is True
    assert chosen.change.n == DEV * 2 // 3
    assert chosen.change.after - chosen.change.before == pytest.approx(-chosen.change.relative)
    best = max(trial.change.relative for trial in found.trials[1:] if trial.change and not trial.ended)
    assert chosen.change.relative == best
    worst = worst_of(found)
    assert worst.change is not None
    assert f"word_error_rate {-100 * worst.change.relative:+.1f} points" in line(worst)
    manifest, model = artifact.read(home / "out" / "artifact")
    assert manifest.recipe is not None
    assert manifest.recipe.steps == chosen.plan.recipe.steps
    assert compress.weight_bytes(model) == chosen.records[-1].bytes_after
    assert found.test is not None
    assert found.test.changes[0].metric == "word_error_rate"
    assert found.test.changes[0].n == TEST


def test_the_page_says_points_and_not_shares(home: Path, found: Found) -> None:
    page = Page((home / "out" / "search.html").read_text("utf-8"))
    change = worst_of(found).change
    assert change is not None
    assert change.relative < 0
    assert "WER kept" not in page.words
    assert f"{-100 * change.relative:+.1f} points" in page.words
    assert "WER, points more  ↑ fewer is better" in page.words


def test_recordings_that_choose_and_those_of_the_test_are_heard_by_no_step(home: Path) -> None:
    """Where all are of dev or test, a third of dev's are for the steps."""
    original, collection = choose.model(home / "model"), data.load(str(home / "spoken" / "table.csv"))
    splits = bench.judging(original, collection)
    assert len(splits.dev) == DEV * 2 // 3
    assert len(splits.test) == TEST
    seen = bench.unseen(original, collection, seed=0)
    items = {collection.queries[query] for query in (*splits.dev, *splits.test)}
    assert items.isdisjoint([*seen.calibration, *seen.texts, *seen.queries])
    assert len(set(seen.texts)) == DEV - DEV * 2 // 3
    more = {**collection.qrels, "train": {"more": {next(iter(collection.corpus)): 1}}}
    trained = dataclasses.replace(collection, queries={**collection.queries, "more": "more.wav"}, qrels=more,
                                  said={**collection.said, "more.wav": "more"})  # fmt: skip
    assert len(bench.judging(original, trained).dev) == DEV, "there is one for the steps already"
    assert bench.unseen(original, trained, seed=0).texts == ["more.wav"]


def test_what_was_heard_in_a_part_is_not_heard_again() -> None:
    asked: list[str] = []

    class Listening:
        name = "listening"

        def transcripts(self, items: Sequence[str], advance: Callable[[int], None] | None = None) -> list[str]:
            asked.extend(items)
            return [f"heard {item}" for item in items]

    items = {f"q{number}": f"{number}.wav" for number in range(4)}
    searched = data.SearchSet(name="made", queries=items, corpus={"d": "a"}, qrels={query: {"d": 1} for query in items},
                              said={item: f"heard {item}" for item in items.values()})  # fmt: skip
    listening: Recogniser = Listening()  # type: ignore[assignment]
    known = {"1.wav": "heard 1.wav", "3.wav": "something else altogether"}
    heard = spoken.quality(listening, searched, ["word_error_rate"], known=known)
    assert asked == ["0.wav", "2.wav"]
    assert heard.transcripts == {query: known.get(item, f"heard {item}") for query, item in items.items()}
    assert heard.get("word_error_rate").per_query == pytest.approx([0, 0, 0, 1])


def test_what_is_found_by_what_is_heard_can_decide(home: Path) -> None:
    tiny_bert(home / "reader")
    tiny_collection(home / "texts")
    texts = {row["_id"]: row["text"] for row in map(json.loads, (home / "texts" / "corpus.jsonl").open())}
    mixed = home / "mixed"
    (mixed / "qrels").mkdir(parents=True)
    (mixed / "corpus.jsonl").write_bytes((home / "texts" / "corpus.jsonl").read_bytes())
    rows, judged = [], {"dev": [], "test": []}
    for number, name in enumerate(sorted((home / "spoken").glob("*.wav"))):
        document = list(texts)[number % len(texts)]
        rows.append(json.dumps({"_id": name.stem, "audio": str(Path("..") / "spoken" / name.name), "text": "a"}))
        judged[name.stem.split("-")[0]].append(f"{name.stem}\t{document}\t1")
    for name in (home / "spoken").glob("*.wav"):
        (mixed / name.name).write_bytes(name.read_bytes())
    (mixed / "queries.jsonl").write_text("\n".join(rows).replace("../spoken/", ""))
    for split, lines in judged.items():
        (mixed / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    options = dataclasses.replace(OPTIONS, search_with=str(home / "reader"))
    found = within.compress_within(home / "model", mixed, Limits(size="90%"), home / "found", Effort(600, 1), options)
    assert found.budget.metric == "ndcg@10"
    assert found.trials[1].change is not None
    assert found.trials[1].change.points is not True
    assert found.test is not None
    assert {change.metric for change in found.test.changes} >= {"ndcg@10", "word_error_rate"}
    with pytest.raises(UsageError, match="search_with"):
        within.compress_within(home / "model", mixed, Limits(size="90%"), home / "found", Effort(600, 1), OPTIONS)


@pytest.mark.parametrize(
    ("limits", "options", "metric", "message"),
    [
        ({"index": "1MB"}, {}, "", "--max-index is not for recognisers, which keep no vectors"),
        ({"total": "50%"}, {}, "", "--max-total is not for recognisers"),
        ({"size": "50%"}, {"keep_index": True}, "", "--keep-index is not for recognisers"),
        ({"size": "50%"}, {}, "no_such_rate", "no_such_rate"),
    ],
)
def test_what_is_about_vectors_is_refused_before_any_work(
    home: Path, tmp_path: Path, limits: dict[str, str], options: dict[str, bool], metric: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        within.compress_within(home / "model", home / "spoken" / "table.csv", Limits(**limits), tmp_path / "out",
                               Effort(trials=1), dataclasses.replace(OPTIONS, **options), metric=metric)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_search_of_texts_is_refused_for_what_hears_nothing(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model")
    tiny_collection(tmp_path / "collection")
    options = dataclasses.replace(OPTIONS, search_with="minilm")
    with pytest.raises(UsageError, match=r"--search-with is for recognisers; .*model gives no transcripts"):
        within.compress_within(tmp_path / "model", tmp_path / "collection", Limits(size="60%"), tmp_path / "out",
                               options=options)  # fmt: skip


# ---------------------------------------------------------------- what can be chosen


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return choose.model(home / "model")


def methods(plan: plans.Plan) -> list[str]:
    return [step.method for step in plan.recipe.steps]


def test_a_recogniser_may_hear_less_at_once_and_its_convolutions_stay_at_eight_bits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "FEW", 10.0)  # of so small a one the convolutions are the larger part
    budget = Budget(size=1, metric="word_error_rate")
    can = space.space(model, budget)
    assert can.values["window"] == (SECONDS, 2)
    assert "blocks" not in can.values
    assert "width" not in can.values
    assert can.few_convolutions
    assert can.gates == Gates(metric="word_error_rate", max_loss=can.gates.max_loss)
    plan = plans.plan(can, {"window": 2, "bits": 4, "table_bits": 3, "activations": "dynamic"})
    assert plan.name == "windows of 2 s, table 3 bits, rest 4 bits, dynamic"
    bits = {tuple(step.parameters["layers"]): step.parameters["bits"] for step in plan.recipe.steps[1:4]}
    assert bits == {("embedding",): 3, ("convolution",): 8, ("linear", "recurrent"): 4}
    assert methods(plan)[0] == "simplify.window"
    even = plans.plan(can, {"bits": 4})
    assert {tuple(step.parameters["layers"]): step.parameters["bits"] for step in even.recipe.steps} == {
        ("embedding",): 4, ("convolution",): 8, ("linear", "recurrent"): 4}  # fmt: skip
    guesses = first_guesses(can, Budget(metric="word_error_rate"), lambda plan: None)
    assert any("simplify.window" in methods(guess) for guess in guesses)


def test_what_a_shorter_window_costs_can_be_learned_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "EFFORTS", (0, 3))
    can = space.space(model, Budget(size=1, metric="word_error_rate"))
    plan = plans.plan(can, {"window": 2, "teach": 3, "bits": 8})
    assert methods(plan) == ["simplify.window", "distil.transcript", "quantize.weights_int"]
    assert plan.recipe.steps[1].parameters["steps"] == 3
    assert methods(plans.plan(can, {"teach": 3, "bits": 8})) == ["quantize.weights_int"], "nothing was lost"
    short = space.space(model, Budget(size=1, metric="word_error_rate"), seconds=1.0, pace=1.0)
    assert "teach" not in short.values
    assert msgspec.structs.replace(can, values=short.values).effort(0) == 0
