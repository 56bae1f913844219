"""A search under a budget, whole: what it writes, that a kill costs one trial, and what it says of a budget not met."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, compress, data, deploy, indexes, integers, recipe, within
from slimseek.budget import bench, prefixes, space
from slimseek.budget.limits import Limits
from slimseek.budget.loop import Effort
from slimseek.budget.store import Store, Terms
from slimseek.errors import UsageError
from slimseek.fingerprint import fingerprint
from slimseek.prove import Options
from slimseek.schema import Model, QuantizedTensor, Recipe, RecipeStep, Samples
from slimseek.trial import Found, Trial
from small import tiny_bert, tiny_collection

OPTIONS = Options(threads=1)


EFFORTS = (0, 3)
"""Batches of distillation: enough to see that it is done."""


@pytest.fixture(scope="module", autouse=True)
def _short_trainings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "EFFORTS", EFFORTS)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    tiny_bert(path / "model")
    tiny_collection(path / "collection")
    return path


def search(home: Path, out: str, trials: int, limits: Limits | None = None, options: Options = OPTIONS) -> Found:
    return within.compress_within(
        home / "model", home / "collection", limits or Limits(size="60%", loss="50%"), home / out,
        Effort(seconds=600, trials=trials), options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(home: Path) -> Found:
    return search(home, "out", 6)


def test_the_result_keeps_its_budget_and_is_the_artifact(home: Path, found: Found) -> None:
    chosen = next(trial for trial in found.trials if trial.number == found.chosen)
    original = found.trials[0]
    assert original.figures.size is not None
    assert chosen.figures.size is not None
    assert found.budget.size == int(0.6 * original.figures.size)
    assert found.met, found.unmet
    assert chosen.figures.size <= found.budget.size
    manifest, model = artifact.read(home / "out" / "artifact")
    assert manifest.recipe is not None
    assert manifest.recipe.steps == chosen.plan.recipe.steps
    assert compress.weight_bytes(model) == chosen.records[-1].bytes_after
    assert found.test is not None
    assert found.test.compressed.get("size").value == pytest.approx(chosen.figures.size, rel=0.05, abs=1000), (
        "its gates are written beside it"
    )
    written = json.loads((home / "out" / "search.json").read_bytes())
    assert written == json.loads(msgspec.json.encode(found))
    assert "<svg" in (home / "out" / "search.html").read_text("utf-8")


def test_a_folder_of_a_search_stands_for_its_artifact(home: Path, found: Found) -> None:
    inside, outside = (choose.model(path) for path in (home / "out" / "artifact", home / "out"))
    assert choose.size_of(home / "out") == (inside.parameters, choose.family(inside).macs(inside, 128))
    assert outside.spec == inside.spec


def test_no_test_query_is_among_the_development_queries_and_no_plan_is_tried_twice(found: Found) -> None:
    plans = [msgspec.json.encode((trial.plan.recipe.steps, trial.plan.precision)) for trial in found.trials]
    assert len(set(plans)) == len(plans) == 7
    assert [trial.number for trial in found.trials] == list(range(7))


def test_recipes_of_the_front_give_the_same_bytes_again(home: Path, found: Found) -> None:
    files = sorted((home / "out" / "front").glob("*.yaml"))
    assert [int(file.stem) for file in files] == sorted(number for number in found.front if number)
    for file in files[:2]:
        steps = recipe.load(file)
        trial = found.trials[int(file.stem)]
        assert steps.steps == trial.plan.recipe.steps
        assert [step.method for step in steps.steps] == [record.step for record in trial.records] or any(
            recipe.build(step).as_needed for step in steps.steps
        )


def test_more_trials_go_on_where_the_first_ended(home: Path, found: Found) -> None:
    """And propose what one run of as many trials proposes."""
    search(home, "apart", 3)
    more = search(home, "apart", 6)
    assert [trial.plan for trial in more.trials] == [trial.plan for trial in found.trials]
    qualities = [[trial.per_query for trial in result.trials] for result in (more, found)]
    assert qualities[0] == qualities[1]


def test_another_budget_begins_with_what_is_known(home: Path, found: Found) -> None:
    tighter = search(home, "out", 6, Limits(size="45%", loss="60%"))
    assert [trial.number for trial in tighter.trials] == list(range(7))
    assert [trial.seconds for trial in tighter.trials] == [trial.seconds for trial in found.trials]


def test_vectors_of_the_original_are_kept_for_the_proof_and_done_without_where_they_are_damaged(
    home: Path, found: Found, tmp_path: Path
) -> None:
    shutil.copytree(home / "out" / "cache", tmp_path / "cache")
    original, collection = choose.model(home / "model"), data.load(str(home / "collection"))

    def opened() -> bench.Bench:
        return bench.bench(original, collection, Store(tmp_path),
                           Terms(target="onnxruntime", metric="ndcg@10", threads=1, seed=0))  # fmt: skip

    measured = opened()
    assert measured.examiner.sets["part"].corpus.items() <= measured.examiner.sets["whole"].corpus.items()
    items = list(measured.examiner.sets["whole"].corpus.values())
    known = measured.vectors
    assert known.keys() == set(items)
    vectors = measured.package.documents(items)
    assert np.abs(np.stack([known[item] for item in items]) - vectors).max() < 1e-6
    whole, file = measured.seconds_of_proof(0.5), tmp_path / "cache" / bench.VECTORS
    for damaged in (file.read_bytes()[:200], b"", b"no array"):
        file.write_bytes(damaged)
        assert opened().vectors == {}
    np.save(file, vectors[:-1])
    assert opened().vectors == {}, "of other documents"
    pace = measured.baseline.seconds_per_item
    assert opened().seconds_of_proof(0.5) - whole == pytest.approx(pace * len(items))


def test_an_unmet_budget_writes_the_nearest_and_says_what_would_do(home: Path) -> None:
    unmet = search(home, "unmet", 2, Limits(latency="0.001ms"))
    assert not unmet.met
    assert "latency p95" in unmet.unmet
    assert "--max-latency" in unmet.unmet
    assert artifact.is_artifact(home / "unmet" / "artifact")


def test_a_size_that_nothing_reaches_is_refused_before_the_first_trial(home: Path) -> None:
    with pytest.raises(UsageError, match=r"--max-size is 0\.00 MB; the smallest that can be reached is about"):
        search(home, "absurd", 2, Limits(size="500B"))
    assert [path.name for path in (home / "absurd" / "trials").glob("*")] == []
    assert not (home / "absurd" / "artifact").exists()


def test_a_fault_in_a_trial_is_kept_with_it_and_the_search_goes_on(home: Path, monkeypatch) -> None:
    export = deploy.export

    def failing(model: Model, *arguments: object, **more: object) -> object:
        if any(isinstance(tensor, QuantizedTensor) and tensor.spec.bits == 4 for tensor in model.tensors.values()):
            raise ValueError("a runtime that fails")
        return export(model, *arguments, **more)

    monkeypatch.setattr(deploy, "export", failing)
    found = search(home, "faults", 6)
    ended = {trial.plan.name: trial.ended for trial in found.trials if trial.ended}
    assert ended == dict.fromkeys(
        ("4 bits, dynamic", "table of token vectors, 4 bits"), "a fault, ValueError: a runtime that fails"
    )
    assert found.met


@pytest.mark.parametrize("dear", [False, True])
def test_what_took_long_outlives_the_run_that_made_it(dear: bool, home: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(prefixes, "DEAR_SECONDS", 0.0 if dear else 3600.0)
    original = choose.model(home / "model")
    steps = Recipe(steps=(RecipeStep(method="quantize.weights_int", parameters={"bits": 4}),))
    expected, records = prefixes.Prefixes(original, Samples(calibration=(), texts=()), tmp_path, 0).run(steps)
    taken: list[object] = []
    take = compress.take
    monkeypatch.setattr(compress, "take", lambda *given: taken.append(given) or take(*given))
    model, found = prefixes.Prefixes(original, Samples(calibration=(), texts=()), tmp_path, 0).run(steps)
    assert len(taken) == (not dear)
    assert (found[0].seconds == records[0].seconds) == dear
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(integers.dequantize(tensor), integers.dequantize(expected.tensors[name]))


def test_a_total_is_kept_by_model_and_index_together(home: Path) -> None:
    """What each precision costs the original comes first; vectors of a model are encoded once for all of them."""
    shared = search(home, "total", 5, Limits(total="70%"))
    assert shared.budget.total is not None
    precisions = [trial.plan.precision for trial in shared.trials]
    assert precisions[:4] == ["f32", "f16", "int8", "binary"]
    documents = sum(1 for _ in (home / "collection" / "corpus.jsonl").open())
    for trial in shared.trials[1:3]:
        assert trial.reached == "whole"
        assert trial.figures.index_size == indexes.bytes_of(documents, 32, trial.plan.precision)
        assert trial.figures.size == pytest.approx(shared.trials[0].figures.size, rel=0.001)
    chosen = next(trial for trial in shared.trials if trial.number == shared.chosen)
    assert shared.met, shared.unmet
    assert chosen.figures.size + chosen.figures.index_size <= shared.budget.total
    assert shared.test is not None
    assert shared.test.compressed.get("index_size").value == chosen.figures.index_size


def test_the_original_with_a_smaller_index_can_be_what_a_total_asks_for(home: Path) -> None:
    """Then there is no step to run, and the artifact is the original."""
    original = choose.model(home / "model")
    documents = sum(1 for _ in (home / "collection" / "corpus.jsonl").open())
    alone = search(home, "alone", 3, Limits(total="99.7%"))
    chosen = next(trial for trial in alone.trials if trial.number == alone.chosen)
    assert (chosen.number, chosen.plan.recipe.steps) != (0, ())
    assert chosen.plan.recipe.steps == ()
    assert alone.met, alone.unmet
    assert chosen.plan.precision != "f32"
    binary = alone.trials[3].figures
    assert alone.trials[3].plan.precision == "binary"
    assert binary.index_size == documents * 32 // 8 + 2 * 32 * 4, "bits and ranges in memory"
    assert binary.total == binary.size + indexes.bytes_of(documents, 32, "binary") + indexes.bytes_of(
        documents, 32, "int8"
    )
    _, model = artifact.read(home / "alone" / "artifact")
    assert {name: tensor.tobytes() for name, tensor in model.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in original.tensors.items()
    }


def test_a_model_that_is_quantized_is_refused_before_anything_is_measured(home: Path, found: Found) -> None:
    with pytest.raises(UsageError, match="budget: the model is quantized already"):
        within.compress_within(home / "out" / "artifact", home / "collection", Limits(size="60%"), home / "twice")
    assert not (home / "twice").exists()


def test_an_index_is_kept_through_a_search(home: Path) -> None:
    """Only queries are encoded anew, judged by what the original finds; no plan shortens the vectors."""
    options = dataclasses.replace(OPTIONS, keep_index=True)
    kept_index = search(home, "kept", 2, Limits(size="60%"), options)
    assert kept_index.budget.metric == "recall@10"
    assert kept_index.trials[0].change is not None
    assert kept_index.trials[0].change.before == 1.0
    manifest, model = artifact.read(home / "kept" / "artifact")
    assert manifest.index_of is not None
    assert manifest.index_of.fingerprint == fingerprint(choose.model(home / "model"))
    assert model.spec.dim == choose.model(home / "model").spec.dim
    with pytest.raises(UsageError, match=r"other settings \(metric recall@10 and not ndcg@10\)"):
        search(home, "kept", 2, Limits(size="60%"))


COMMAND = f"from slimseek.budget import space; space.EFFORTS = {EFFORTS}; from slimseek.cli import main; main()"


def _run(home: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "compress", "model", "--data", "collection", "--max-size", "60%",
               "--max-loss", "50%", "--out", "killed", "--threads", "1", "--trials", "5", *more]  # fmt: skip
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_search_that_is_killed_at_random_moments_goes_on(home: Path, found: Found) -> None:
    """No trial that ended is lost or tried again, no file is half-written, and the end is that of one run."""
    place, random_ = home / "killed" / "trials", random.Random(7)
    ended: dict[str, bytes] = {}
    for _ in range(4):
        process = _run(home)
        until = time.monotonic() + random_.uniform(4, 12)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
        process.wait()
        now = {path.name: path.read_bytes() for path in place.glob("[0-9]*.json")} if place.is_dir() else {}
        assert ended.items() <= now.items()
        for content in now.values():
            msgspec.json.decode(content, type=Trial)
        ended = now
    done = _run(home, "--json")
    printed, said = done.communicate()
    assert done.returncode == 0, said
    result = msgspec.convert(json.loads(printed), Found)
    assert [trial.plan for trial in result.trials] == [trial.plan for trial in found.trials[:6]]
    assert [trial.per_query for trial in result.trials] == [trial.per_query for trial in found.trials[:6]]
    leftover = [path.name for path in (home / "killed").rglob(".*") if path.is_file()]
    assert leftover == []
