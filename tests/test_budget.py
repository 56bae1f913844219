"""A budget: how it is written, what it comes to, and the folder in which a search survives a kill."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from slimseek.budget import store
from slimseek.budget.limits import Limits, milliseconds, seconds
from slimseek.errors import ArtifactError, UsageError
from slimseek.schema import Recipe, RecipeStep
from slimseek.trial import Budget, Figures, Plan, Trial

ORIGINAL = Figures(size=90_000_000, latency_p50=8.0, latency_p95=10.0, memory=500_000_000, index_size=10_000_000)


# ---------------------------------------------------------------- limits


def test_absolute_limits_are_taken_as_they_are():
    limits = Limits(size="10MB", latency="5ms", memory="0.2 GB", index="20MB", total="40 mb", loss="1%")
    budget = limits.absolute(ORIGINAL, metric="ndcg@10", target="openvino")
    assert budget == Budget(size=10_000_000, latency_p95=5.0, memory=200_000_000, index_size=20_000_000,
                            total=40_000_000, max_loss=0.01, metric="ndcg@10", target="openvino")  # fmt: skip


def test_percentages_are_of_the_original():
    limits = Limits(size="10%", latency="50%", memory="20%", index="25%", total="12%", loss="0.02")
    budget = limits.absolute(ORIGINAL, metric="map", target="onnxruntime")
    assert (budget.size, budget.latency_p95, budget.memory) == (9_000_000, 5.0, 100_000_000)
    assert (budget.index_size, budget.total, budget.max_loss) == (2_500_000, 12_000_000, 0.02)


def test_what_is_not_asked_is_not_limited():
    budget = Limits(loss="1%").absolute(ORIGINAL, metric="map", target="onnxruntime")
    assert budget == Budget(max_loss=0.01, metric="map", target="onnxruntime")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "a budget needs a limit; add --max-size"),
        ({"size": "ten"}, "--max-size: 'ten' is not a size; write 10MB"),
        ({"size": "0MB"}, "--max-size: '0MB' is not a size"),
        ({"size": "-3MB"}, "--max-size: '-3MB' is not a size"),
        ({"index": "120%"}, "--max-index: '120%' is not a size"),
        ({"latency": "5"}, "'5' is not a latency; write 5ms"),
        ({"latency": "0ms"}, "'0ms' is not a latency"),
        ({"latency": "nan ms"}, "'nan ms' is not a latency"),
        ({"loss": "100%"}, "'100%' is not a share"),
        ({"loss": "-1%"}, "'-1%' is not a share"),
    ],
)
def test_a_limit_that_is_none_is_refused_before_any_work(asked: dict[str, str], said: str):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        Limits(**asked)


def test_times_and_latencies_have_units():
    assert [seconds(text) for text in ("90s", "20m", "1.5h", " 2 M ")] == [90.0, 1200.0, 5400.0, 120.0]
    assert [milliseconds(text, 8.0) for text in ("5ms", "0.5s", "25%", ".5ms")] == [5.0, 500.0, 2.0, 0.5]
    for text in ("20", "m", "0m", "-1h", "1e3s", "20min"):
        with pytest.raises(UsageError, match="write 90s, 20m or 1h"):
            seconds(text)


# ---------------------------------------------------------------- the folder

RUN = store.Run(
    format_version=1, made_with="0.1.0", model_sha256="a" * 64, collection_sha256="b" * 64, metric="ndcg@10",
    target="onnxruntime", keep_index=False, cpu="a CPU", threads=2, seed=0,
)  # fmt: skip


def _trial(number: int) -> Trial:
    plan = Plan(recipe=Recipe(steps=(RecipeStep(method="quantize.weights_int", parameters={"bits": number % 7 + 2}),)))
    return Trial(number=number, plan=plan, reached="whole", figures=Figures(size=1000 + number), seconds=1.5)


def test_trials_are_there_again_and_in_order(tmp_path: Path):
    with store.opened(tmp_path / "run", RUN) as opened:
        for number in (0, 2, 1, 11):
            opened.add(_trial(number))
    with store.opened(tmp_path / "run", RUN) as opened:
        assert opened.trials() == [_trial(number) for number in (0, 1, 2, 11)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_sha256": "c" * 64}, "a search of another model"),
        ({"collection_sha256": "c" * 64}, "a search of another collection"),
        ({"made_with": "0.2.0"}, "a search of slimseek 0.1.0"),
        ({"metric": "map"}, "a search of other settings (metric ndcg@10 and not map)"),
        ({"cpu": "another CPU"}, "a search of other settings (cpu a CPU and not another CPU)"),
    ],
)
def test_a_folder_of_another_search_is_refused_unless_forced(tmp_path: Path, change: dict[str, str], said: str):
    other = msgspec.structs.replace(RUN, **change)
    with store.opened(tmp_path / "run", RUN) as opened:
        opened.add(_trial(0))
    with pytest.raises(UsageError) as caught, store.opened(tmp_path / "run", other):
        pass
    assert said in str(caught.value)
    assert "add --force to begin anew" in str(caught.value)
    with store.opened(tmp_path / "run", other, force=True) as opened:
        assert opened.trials() == []


def test_a_folder_of_something_else_is_refused_even_if_forced(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("Dear")
    for force in (False, True):
        with (
            pytest.raises(UsageError, match="holds something else than a search"),
            store.opened(tmp_path, RUN, force=force),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_trial_that_was_changed_by_hand_is_named(tmp_path: Path):
    with store.opened(tmp_path, RUN) as opened:
        opened.add(_trial(3))
        (tmp_path / "trials" / "0003.json").write_text('{"number": "three"}')
        with pytest.raises(ArtifactError, match=r"0003\.json is not valid"):
            opened.trials()


WRITER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_budget import RUN, _trial
    from slimseek.budget import store
    with store.opened(Path(sys.argv[1]), RUN) as opened:
        for number in range(len(opened.trials()), 100000):
            opened.add(_trial(number))
            print(number, flush=True)
"""


def _writer(folder: Path) -> subprocess.Popen[str]:
    code = textwrap.dedent(WRITER.format(tests=str(Path(__file__).parent)))
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_while_the_first_one_searches(tmp_path: Path):
    writer = _writer(tmp_path)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(UsageError, match="another process writes to"), store.opened(tmp_path, RUN):
            pass
    finally:
        writer.kill()
        writer.wait()


def test_whatever_ended_before_a_kill_is_kept(tmp_path: Path):
    """Killed again and again while it writes: each run goes on after the last trial, and every file is whole."""
    known = 0
    for round_ in range(5):
        writer = _writer(tmp_path)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        assert first == known
        time.sleep(0.01 * round_)
        writer.kill()
        printed = [first, *(int(line) for line in writer.stdout.read().splitlines())]
        writer.wait()
        with store.opened(tmp_path, RUN) as opened:
            found = opened.trials()
        assert found == [_trial(number) for number in range(len(found))]
        assert len(found) >= printed[-1] + 1
        known = len(found)
