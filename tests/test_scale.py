"""A Ray cluster of several nodes on this machine: the same results as without it, also when workers are lost."""

from __future__ import annotations

import dataclasses
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from slimseek import choose, cli, data, deploy, search
from slimseek.budget import loop
from slimseek.budget.bench import Bench, bench
from slimseek.budget.loop import Alone, Effort
from slimseek.budget.store import Store, Terms
from slimseek.collection import Collection
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.measurement import StepRecord
from slimseek.scale.connect import connected
from slimseek.scale.encoding import encode, teaching
from slimseek.scale.helping import asked_together
from slimseek.scale.trials import TRIES, cluster
from slimseek.schema import Array, Model, Recipe, RecipeStep
from slimseek.training import teacher
from slimseek.trial import Budget, Figures, Plan, Trial
from small import many_texts, tiny_collection, tiny_model

pytest.importorskip("ray", reason="Ray is not installed: pip install 'slimseek[ray]'")
from ray.cluster_utils import Cluster as Nodes

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
OURS = ("ray::", "raylet", "gcs_server", "ray/_private", "ray/dashboard", "ray/autoscaler")
BUDGET = Budget(max_loss=0.5)
STEPS: list[list[tuple[str, dict[str, Any]]]] = [
    [("quantize.weights_int", {"bits": 8})],
    [("prune.layers", {"keep": [0]}), ("distil.embedding", {"steps": 4, "batch_size": 4})],
    [("quantize.weights_int", {"bits": 4}), ("quantize.activations_int", {"mode": "dynamic"})],
    [("quantize.weights_int", {"bits": 6})],  # without loss: no clock decides whether it is measured to the end
    [("prune.layers", {"keep": 7})],
    [("quantize.float", {"format": "fp16"})],
    [("prune.layers", {"keep": [0]}), ("distil.embedding", {"steps": 4, "batch_size": 4}),
     ("quantize.weights_int", {"bits": 8})],
]  # fmt: skip


class Listed:
    """The plans of the list, in its order."""

    def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
        first = trials[-1].number
        return [
            Plan(recipe=Recipe(steps=tuple(RecipeStep(method=method, parameters=own) for method, own in steps)),
                 name=str(number))
            for number, steps in enumerate(STEPS[first : first + count], first + 1)
        ]  # fmt: skip


def _processes() -> list[psutil.Process]:
    """Ray's processes that this one began."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(part in " ".join(process.cmdline()) for part in OURS):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait_until_none() -> None:
    end = time.monotonic() + 20
    while _processes() and time.monotonic() < end:
        time.sleep(0.1)
    assert _processes() == []


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three nodes of one core; none of their processes is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # workers of 15, Ray's own, starve on a machine that is busy
        patch.delenv("RAY_ADDRESS", raising=False)
        found = Nodes()
        try:
            for _ in range(3):
                found.add_node(**NODE)
            yield found
        finally:
            found.shutdown()
        _wait_until_none()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_collection(folder)
    return data.load(str(folder))


def _bench(original: Model, collection: Collection, folder: Path) -> Bench:
    return bench(original, collection, Store(folder),
                 Terms(target="onnxruntime", metric="ndcg@10", threads=1, seed=0))  # fmt: skip


def _known(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """All of trials but what a clock says."""
    found = []
    for trial in trials:
        costs = Figures(size=trial.figures.size, index_size=trial.figures.index_size)
        records = _written([msgspec.structs.replace(record, seconds=0.0) for record in trial.records])
        found.append(
            msgspec.structs.asdict(msgspec.structs.replace(trial, figures=costs, records=(), seconds=0.0))
            | {"records": records}
        )
    return found


def _written(records: Sequence[StepRecord]) -> Any:
    """As they stand in a file, where tuples are lists."""
    return msgspec.json.decode(msgspec.json.encode(records))


def _same(one: Sequence[Trial], two: Sequence[Trial]) -> None:
    for first, second in zip(_known(one), _known(two), strict=True):
        for name, value in first.items():
            assert value == second[name], (first["number"], name)


@contextmanager
def _while_tried(act: Callable[[psutil.Process], bool]) -> Iterator[list[int]]:
    """``act`` on every process that begins with a trial, until it says that it is enough; the processes it was done
    to.
    """
    done: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for process in _processes():
                try:
                    if "ray::Worker.attempt" in " ".join(process.cmdline()) and process.pid not in done:
                        done.append(process.pid)
                        if act(process):
                            return
                except psutil.Error:
                    continue
            stop.wait(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def test_a_cluster_of_this_machine_is_gone_with_its_work(original: Model):
    texts, encoder = many_texts(70), choose.encoder(original, "here", 1)
    here = np.concatenate([encoder.documents(texts[start : start + 32]) for start in (0, 32, 64)])
    np.testing.assert_array_equal(encode(original, texts, "local", chunk=32), here)
    _wait_until_none()


# ---------------------------------------------------------------- trials


def test_trials_of_a_cluster_are_those_of_one_machine_though_a_worker_is_killed(
    nodes: Nodes, original: Model, collection: Collection, tmp_path: Path
):
    measured, effort = _bench(original, collection, tmp_path / "alone"), Effort(seconds=3600, trials=len(STEPS))
    alone = loop.run(measured, BUDGET, Store(tmp_path / "alone"), effort, Listed(), Alone(measured, 3))

    def kill(process: psutil.Process) -> bool:
        process.kill()
        return True

    there = _bench(original, collection, tmp_path / "spread")
    with connected(nodes.address) as ray, cluster(ray, original, collection, there) as workers:
        assert workers.count == 3
        with _while_tried(kill) as killed:
            spread = loop.run(there, BUDGET, Store(tmp_path / "spread"), effort, Listed(), workers)
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0])
    _same(spread, alone)
    assert spread[5].ended == "prune.layers: keep is 7; 1 to 2 blocks can be kept"
    others = [trial for trial in spread if trial.number != 5]
    assert all(trial.reached == "whole" and trial.figures.latency_p50 and not trial.ended for trial in others)
    assert [record.step for record in spread[2].records] == ["prune.layers", "distil.embedding"]
    kept = [trial.number for trial in Store(tmp_path / "spread").trials()]
    assert kept == [trial.number for trial in spread] == list(range(len(STEPS) + 1))
    assert list(Path(tempfile.gettempdir()).glob(f"{workers._settings.folder}*")) == []
    # What one machine trained, with the seconds that this took, is what another and this one go on with.
    trained = _written(spread[2].records)
    assert _written(spread[7].records[:2]) == _written(there.prefixes.run(spread[2].plan.recipe)[1]) == trained
    vectors = [sorted((tmp_path / name / "cache" / "teachers").iterdir()) for name in ("alone", "spread")]
    assert [path.name for path in vectors[0]] == [path.name for path in vectors[1]]
    assert vectors[0][0].read_bytes() == vectors[1][0].read_bytes()


def test_a_trial_whose_worker_is_lost_again_and_again_ends_with_the_reason(
    nodes: Nodes, original: Model, collection: Collection, tmp_path: Path
):
    measured = _bench(original, collection, tmp_path)
    killed: list[int]

    def kill(process: psutil.Process) -> bool:
        process.kill()
        return False

    with connected(nodes.address) as ray, cluster(ray, original, collection, measured, count=1) as workers:
        run = partial(loop.run, measured, BUDGET, Store(tmp_path), proposer=Listed(), workers=workers)
        with _while_tried(kill) as killed:
            first = run(effort=Effort(seconds=3600, trials=1))
        assert len(killed) == TRIES
        assert first[1].ended.startswith("its worker was lost 3 times: The actor died")
        assert (first[1].reached, first[1].change) == ("size", None)
        second = run(effort=Effort(seconds=3600, trials=2))
    assert second[:2] == first
    assert second[2].reached == "whole"


def test_a_lost_machine_costs_its_trial_and_a_new_one_is_used(
    nodes: Nodes, original: Model, collection: Collection, tmp_path: Path
):
    measured, effort = _bench(original, collection, tmp_path / "one"), Effort(seconds=3600, trials=3)
    alone = loop.run(measured, BUDGET, Store(tmp_path / "one"), effort, Listed(), Alone(measured, 3))

    def cut(process: psutil.Process) -> bool:
        """The node of the process goes, unless it is the head, or the one that this process works through."""
        own = ray._private.worker.global_worker.node._raylet_socket_name
        others = [one for one in nodes.list_all_nodes() if not one.head and one._raylet_socket_name != own]
        raylet = next(one for one in process.parents() if "raylet" in one.name())
        node = next((one for one in others if one.all_processes["raylet"][0].process.pid == raylet.pid), None)
        if node is None:
            return False
        nodes.remove_node(node, allow_graceful=False)
        return True

    there = _bench(original, collection, tmp_path / "two")
    with connected(nodes.address) as ray, cluster(ray, original, collection, there, count=3) as workers:
        with _while_tried(cut):
            spread = loop.run(there, BUDGET, Store(tmp_path / "two"), effort, Listed(), workers)
        assert len(nodes.list_all_nodes()) == 2
        _same(spread, alone)
        nodes.add_node(**NODE)
        nodes.wait_for_nodes()
        loop.run(there, BUDGET, Store(tmp_path / "two"), Effort(seconds=3600, trials=6), Listed(), workers)
        assert len(workers._workers) == 3


class Alike(Listed):
    """Two plans that begin with the same training, in one round."""

    def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
        first = [msgspec.structs.replace(trials[0], number=number) for number in (1, 6)]
        return [super(Alike, self).propose([trial], 1)[0] for trial in first]


def test_plans_of_one_round_that_begin_alike_train_once(
    nodes: Nodes, original: Model, collection: Collection, tmp_path: Path
):
    measured = _bench(original, collection, tmp_path)
    with connected(nodes.address) as ray, cluster(ray, original, collection, measured, count=2) as workers:
        found = loop.run(measured, BUDGET, Store(tmp_path), Effort(seconds=3600, trials=2), Alike(), workers)
    taught = [_written(trial.records[:2]) for trial in found[1:]]
    assert taught[0] == taught[1]  # with the seconds that it took
    assert [len(trial.records) for trial in found[1:]] == [2, 3]


class Slow:
    """A teacher that is asked here, and takes its time; how often it was."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.calls = encoder, 0

    def documents(self, items: Sequence[str]) -> Array:
        self.calls += 1
        time.sleep(2)
        return self.encoder.documents(items)


@pytest.mark.parametrize("lost", [False, True])
def test_idle_workers_help_with_what_a_teacher_gives(
    lost: bool, nodes: Nodes, original: Model, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = many_texts(5 * teacher.PART + 7, seed=7)
    here, slow = teacher.vectors(original, texts, str(tmp_path / "vectors")), Slow(teacher.encoder(original))
    monkeypatch.setattr(teacher, "encoder", lambda _: slow)
    measured = _bench(original, collection, tmp_path / "search")
    with connected(nodes.address) as ray, cluster(ray, original, collection, measured) as workers:
        loop.run(measured, BUDGET, Store(tmp_path / "search"), Effort(seconds=3600, trials=1), Listed(), workers)
        others = [workers._workers[machine] for machine in workers._ready]
        for other in others if lost else []:
            ray.kill(other)
        np.testing.assert_array_equal(asked_together(others, original, texts), here)
        slow.calls, calls = 0, slow.calls
        np.testing.assert_array_equal(asked_together(others, original, texts[: teacher.PART]), here[: teacher.PART])
    assert (calls == 6) == lost
    assert slow.calls == 1  # a single part is not shared


# ---------------------------------------------------------------- encoding


def test_vectors_of_a_cluster_are_bit_for_bit_those_of_the_same_chunks_here(nodes: Nodes, original: Model):
    texts, encoder = many_texts(1000), choose.encoder(original, "here", 1)
    found = encode(original, texts, nodes.address, chunk=64)
    chunks = [encoder.documents(texts[start : start + 64]) for start in range(0, 1000, 64)]
    np.testing.assert_array_equal(found, np.concatenate(chunks))
    np.testing.assert_allclose(found, encoder.documents(texts), atol=1e-6)
    assert encode(original, [], nodes.address).shape == (0, original.spec.dim)


def test_a_package_travels_with_its_files(nodes: Nodes, original: Model, tmp_path: Path):
    (tmp_path / "package").mkdir()
    deploy.export(original, "onnxruntime", tmp_path / "package")
    texts = many_texts(100)
    found = encode(tmp_path / "package", texts, nodes.address, chunk=32)
    encoder = choose.choose(tmp_path / "package", 1)
    here = np.concatenate([encoder.documents(texts[start : start + 32]) for start in range(0, 100, 32)])
    np.testing.assert_array_equal(found, here)


def test_vectors_that_are_not_finite_are_refused_in_the_words_of_one_machine(nodes: Nodes, original: Model):
    name = next(name for name in original.tensors if name.endswith("word_embeddings.weight"))
    spoilt = dict(original.tensors) | {name: np.full_like(original.tensors[name], np.nan)}
    with pytest.raises(UsageError, match="gave NaN or infinite vectors for 10 items"):
        encode(dataclasses.replace(original, tensors=spoilt), many_texts(10), nodes.address)


def test_a_teacher_asked_on_a_cluster_is_not_asked_again(
    nodes: Nodes, original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = many_texts(1500, seed=3)
    here = teacher.vectors(original, texts, str(tmp_path / "here"))
    monkeypatch.setattr(teacher, "encoder", None)  # it is not asked here
    with teaching(nodes.address):
        found = teacher.vectors(original, texts, str(tmp_path / "there"))
    np.testing.assert_allclose(found, here, atol=1e-6)
    names = [sorted(path.name for path in (tmp_path / place).rglob("*.npy")) for place in ("here", "there")]
    assert names[0] == names[1]
    assert len(names[0]) == 1
    np.testing.assert_array_equal(teacher.vectors(original, texts, str(tmp_path / "there")), found)


# ---------------------------------------------------------------- the command line


def _refused(arguments: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["slimseek", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("parts", [0, 2])
def test_an_index_from_a_cluster_is_the_one_made_here(
    parts: int, nodes: Nodes, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a folder, and of its file in parts of two documents."""
    tiny_model(tmp_path / "model")
    given = [collection.path]
    if parts:
        given = [f"{collection.path}/corpus.jsonl", "--documents-per-part", parts]
    for name, more in {"here": [], "there": ["--ray", nodes.address]}.items():
        arguments = ["index", tmp_path / "model", "--data", *given, "--out", tmp_path / name, "--threads", "1"]
        monkeypatch.setattr("sys.argv", ["slimseek", *map(str, arguments), *more, "--quiet"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    assert (tmp_path / "here" / "part-0002").is_dir() == bool(parts)
    for file in (path for path in (tmp_path / "here").rglob("*.*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "there" / file.relative_to(tmp_path / "here")).read_bytes()
    found = search.open(tmp_path / "there", choose.choose(tmp_path / "model", 1)).query(["a cat and a dog"], 2)
    assert len(found[0]) == 2


class Web(BaseHTTPRequestHandler):
    """A web server that logs nothing."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Callable[[bool], str]]:
    """Addresses where something listens that is no Ray: silent, or a web server."""
    opened: list[Any] = []

    def start(speaks: bool) -> str:
        if speaks:
            server = HTTPServer(("127.0.0.1", 0), Web)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            opened.append((server.shutdown, server.server_close))
            return f"127.0.0.1:{server.server_port}"
        silent = socket.create_server(("127.0.0.1", 0))
        opened.append((silent.close,))
        return f"127.0.0.1:{silent.getsockname()[1]}"

    yield start
    for ends in opened:
        for end in ends:
            end()


def test_an_address_without_a_cluster_is_one_line(
    listener: Callable[[bool], str], collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tiny_model(tmp_path / "model")
    index = ["index", tmp_path / "model", "--data", collection.path, "--out", tmp_path / "out", "--quiet", "--ray"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for address, said in {
        "cluster": "--ray cluster: a cluster's HOST:PORT is allowed",
        "ray://127.0.0.1:10001": "HOST:PORT is allowed",
        "127.0.0.1:99999": "HOST:PORT is allowed",
        nobody: "no Ray cluster answers there (Connection refused)",
        "no-such-host.invalid:6379": "no Ray cluster answers there",
        listener(False): "no Ray cluster answers there (no answer)",
        listener(True): "what answers there is no Ray cluster",
    }.items():
        assert said in _refused([*index, address], monkeypatch, capsys)
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    assert f"--ray {nobody}: no Ray cluster answers" in _refused([*index, "auto"], monkeypatch, capsys)
    assert not (tmp_path / "out").exists()


LESSON = """version: 1
steps:
  - prune.layers: {keep: [0]}
  - distil.embedding: {steps: 4, batch_size: 4, cache: CACHE}
gates: {max_loss: 0.9}
"""


def test_the_teacher_of_a_recipe_is_asked_on_the_cluster(
    nodes: Nodes, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_model(tmp_path / "model")
    for name, more in {"here": [], "there": ["--ray", nodes.address]}.items():
        (tmp_path / f"{name}.yaml").write_text(LESSON.replace("CACHE", str(tmp_path / f"{name}-vectors")))
        arguments = ["compress", tmp_path / "model", "--data", collection.path, "--out", tmp_path / name, "--threads",
                     "1", "--recipe", tmp_path / f"{name}.yaml", *more, "--quiet"]  # fmt: skip
        monkeypatch.setattr("sys.argv", ["slimseek", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        monkeypatch.setattr(teacher, "encoder", None)  # it is not asked here any more
    files = [sorted(path.name for path in (tmp_path / f"{name}-vectors").iterdir()) for name in ("here", "there")]
    assert files[0] == files[1]
    assert len(files[0]) == 1
    models = [choose.model(tmp_path / name) for name in ("here", "there")]
    for name, tensor in models[0].tensors.items():
        np.testing.assert_allclose(tensor, models[1].tensors[name], atol=1e-4)


@pytest.mark.parametrize(("flag", "why"), [
    (("--ray", "auto"), "of a recipe the cluster computes the vectors that a teacher gives, and no step asks for any"),
    (("--at-once", "2"), "--at-once is of a search under a budget"),
])  # fmt: skip
def test_a_recipe_refuses_what_would_do_nothing(
    flag: tuple[str, str], why: str, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    tiny_model(tmp_path / "model")
    arguments = ["compress", tmp_path / "model", "--data", collection.path, "--out", tmp_path / "o", "--recipe", "int8"]
    assert why in _refused([*arguments, *flag], monkeypatch, capsys)
    assert not (tmp_path / "o").exists()


def test_a_connection_that_is_there_is_used_and_left(nodes: Nodes):
    with connected(nodes.address) as ray:
        with connected("nonsense") as inner:
            assert inner.__name__ == "ray"
        assert ray.is_initialized()
    assert not ray.is_initialized()


# ---------------------------------------------------------------- the plan on paper


def test_hours_and_bytes_of_a_plan_are_those_worked_by_hand(monkeypatch: pytest.MonkeyPatch):
    """100 million at 200 a second on 10 machines: 50,000 s. 384 int8 dimensions: 384 B each, and ranges of 3,072 B."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scale_plan

    assert scale_plan.hours(100_000_000, 200.0, 10) == pytest.approx(13.888888)
    found = scale_plan.bytes_by_precision(100_000_000, 384)
    assert found["f32"] == (1536.0, 153_600_000_000, 0)
    assert found["int8"][1:] == (38_400_003_072, 0)
    assert found["binary"][1:] == (4_800_003_072, 38_400_003_072)
    measured = scale_plan.Measured(rate=200.0, cores=2, dim=384, characters=1000.0, model_bytes=6_000_000)
    text = scale_plan.tables(measured, 100_000_000)
    assert "| 4 | 34.7 | 139 |" in text
    assert "| f16 | 768 | 76.8 | 0.0 |" in text
    assert "100 GB of text to the machines, and 154 GB of vectors back" in text
    assert "In 20 parts of 5 million documents, the machine that writes them holds 0.4 GB of vectors and 0.3 GB" in text
