"""The stage of deployment: what is refused before any work, packages that do not run here, all targets, benches."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import api, bench, choose, cli, compress, deploy, evaluate, pipeline, plugins, service, verify
from slimseek.backends import _fusion
from slimseek.cli import catalogue
from slimseek.errors import ArtifactError, GateFailed, UsageError
from slimseek.evaluate import cosines
from slimseek.measurement import Measurement
from slimseek.schema import Array, Batch
from small import CORPUS, conv_network, packaged, tiny_bert, tiny_collection, tiny_encoder

TEXTS = [*CORPUS.values()]
REASON = "there is no accelerator; plug one in"
HERE = [name for name, reason in deploy.targets().items() if reason is None]
ONNX = [name for name in HERE if name in ("onnxruntime", "openvino")]
KERAS = Path(__file__).parent / "data" / "onnx_in" / "keras_convolutions.onnx"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deploy") / "model"
    tiny_bert(path)
    return path


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Only the two runtimes that read ONNX, so that the figures below are those of known targets."""
    monkeypatch.setattr(deploy, "targets", lambda: {"onnxruntime": None, "openvino": None})
    return "onnxruntime", "openvino"


def backend(name: str) -> Any:
    return plugins.load("backends", name)


def does_not_run(monkeypatch: pytest.MonkeyPatch, name: str = "onnxruntime") -> None:
    """As a runtime without its device: it writes, does not open, and something else computes the same."""
    kind = backend(name)
    opened = kind.open
    monkeypatch.setattr(kind, "runs", lambda self: REASON)
    monkeypatch.setattr(kind, "stand_in", opened)
    monkeypatch.setattr(kind, "open", lambda self, folder, threads: pytest.fail("it cannot be opened here"))


# ---------------------------------------------------------------- packages that do not run here


def test_a_package_that_does_not_run_here_is_checked_by_its_stand_in_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does_not_run(monkeypatch)
    package = deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert package.not_run == REASON
    assert choose.read_package(tmp_path / "out") == package
    assert [gate.gate for gate in package.gates] == ["parity", "shapes", "invariance"]
    assert all(gate.detail.endswith(f"; in a stand-in, not run here: {REASON}") for gate in package.gates)
    expected = choose.choose(model, 1).documents(TEXTS)
    assert cosines(expected, choose.stand_in(tmp_path / "out", 1).documents(TEXTS)).min() > 0.99999
    words = f"{tmp_path / 'out'} is a package for onnxruntime, which does not run here: {REASON}"
    tiny_collection(tmp_path / "collection")
    for use in (
        lambda: choose.choose(tmp_path / "out"),
        lambda: pipeline.evaluate(tmp_path / "out", tmp_path / "collection"),
        lambda: service.serve_on(str(tmp_path / "out"), str(tmp_path / "collection")),
        lambda: bench.bench([tmp_path / "out"]),
    ):
        with pytest.raises(UsageError) as error:
            use()
        assert str(error.value) == words


def test_a_package_that_came_from_elsewhere_runs_where_it_can(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        does_not_run(without)
        deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    found = choose.choose(tmp_path / "out", 1).documents(TEXTS)
    assert cosines(choose.choose(model, 1).documents(TEXTS), found).min() > 0.99999


def test_the_fresh_process_opens_what_it_is_told_to(model: Path, tmp_path: Path) -> None:
    """A package for a runtime that is there, in which the two differ in nothing but the path that opens them."""
    deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    run, stands_in = (
        verify.encode_in_fresh_process(tmp_path / "out", TEXTS, 1, stand_in=stand_in) for stand_in in (False, True)
    )
    assert np.array_equal(run, stands_in)


def test_the_fresh_process_opens_the_stand_in_of_what_does_not_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of that process, run in this one, where opening the package itself is a failure."""
    does_not_run(monkeypatch)
    ran = []

    def here(command: list[str], *, input: bytes, **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(command[2])
        monkeypatch.setattr(sys, "argv", command[2:])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(input)))
        runpy.run_module(command[2], run_name="__main__")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(verify.subprocess, "run", here)
    package = deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert ran == ["slimseek.probe"]
    assert package.parity["cosine_mean"] > 0.99999


def test_the_manifest_of_a_package_that_ran_has_no_new_field(model: Path, tmp_path: Path) -> None:
    package = deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert package.not_run is msgspec.UNSET
    assert "not_run" not in json.loads((tmp_path / "out" / "package.json").read_text())


def test_what_does_not_run_is_no_candidate_for_the_fastest(
    two: tuple[str, ...], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does_not_run(monkeypatch)
    assert deploy.deploy(model, "auto", tmp_path / "out", texts=TEXTS, threads=1).target == "openvino"


def test_a_recipe_is_not_measured_in_what_does_not_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does_not_run(monkeypatch)
    tiny_collection(tmp_path / "collection")
    for run in (
        lambda: pipeline.compress(model, tmp_path / "collection", "int8", tmp_path / "out"),
        lambda: api.compress_within(model, tmp_path / "collection", api.Limits(size="50%"), tmp_path / "out"),
    ):
        with pytest.raises(UsageError, match=r"packages for onnxruntime do not run here.*: there is no accelerator"):
            run()
    assert not (tmp_path / "out").exists()


def test_the_list_of_backends_says_what_writes_and_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    does_not_run(monkeypatch)
    assert catalogue.catalogue().backends["onnxruntime"] == f"writes; does not run here: {REASON}"
    monkeypatch.setattr(backend("onnxruntime"), "available", lambda self: "not installed; run: pip")
    assert catalogue.catalogue().backends["onnxruntime"] == "not installed; run: pip"


# ---------------------------------------------------------------- refused before any long work


def test_a_model_that_a_target_does_not_take_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: object, model: object) -> None:
        raise UsageError("it has the operator Abacus; deploy for openvino")

    kind = backend("onnxruntime")
    monkeypatch.setattr(kind, "preflight", refuses)
    monkeypatch.setattr(kind, "export", lambda *_: pytest.fail("exported"))
    monkeypatch.setattr(compress, "run", lambda *_: pytest.fail("compressed"))
    tiny_collection(tmp_path / "collection")
    for run in (
        lambda: deploy.deploy(model, "onnxruntime", tmp_path / "out"),
        lambda: pipeline.compress(model, tmp_path / "collection", "int8", tmp_path / "out"),
        lambda: api.compress_within(model, tmp_path / "collection", api.Limits(size="50%"), tmp_path / "out"),
    ):
        with pytest.raises(UsageError, match="Abacus"):
            run()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("openvino" not in HERE, reason="openvino is not installed")
def test_openvino_names_the_operator_that_it_does_not_have_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES S4: determinants of matrices, which ONNX Runtime has."""
    file = graph(tmp_path, [("Det", ["x"], "embedding", {})], {}, ["n", 8, 3, 3])
    monkeypatch.setattr(backend("openvino"), "export", lambda *_: pytest.fail("exported"))
    with pytest.raises(
        UsageError, match=r"OpenVINO cannot compile the graph of the model \(.*Det.*\); deploy for onnxruntime"
    ) as e:
        deploy.deploy(file, "openvino", tmp_path / "out")
    assert "\n" not in str(e.value)
    assert deploy.deploy(file, "onnxruntime", tmp_path / "out", threads=1).target == "onnxruntime"


@pytest.mark.parametrize("target", [name for name in HERE if name not in ("onnxruntime", "web")])
def test_what_the_check_of_a_target_built_is_written_and_not_built_again(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other two look at no graph before they write."""
    found = choose.model(conv_network(tmp_path / "model")[0])
    folders = tmp_path / "whole", tmp_path / "ready"
    for folder in folders:
        folder.mkdir()
    backend(target)().export(found, folders[0])
    ready = deploy.check_target(target, found)
    monkeypatch.setattr(type(choose.family(found)), "to_onnx", lambda *_: pytest.fail("the graph was built again"))
    backend(target)().export(found, folders[1], ready)
    written = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert written[0] == written[1]


@pytest.mark.parametrize("everything", [False, True])
def test_a_deployment_hands_what_the_check_built_to_the_export(
    everything: bool, two: tuple[str, ...], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, given = object(), []
    kind = backend("onnxruntime")
    export = kind.export

    def exports(self: Any, model: Any, folder: Path, ready: object = None) -> None:
        given.append(ready)
        export(self, model, folder)

    monkeypatch.setattr(kind, "preflight", lambda self, model: built)
    monkeypatch.setattr(kind, "export", exports)
    if everything:
        deploy.deploy_all(model, tmp_path / "out", texts=TEXTS, threads=1)
    else:
        deploy.deploy(model, "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert given == [built]


# ---------------------------------------------------------------- all targets


@pytest.mark.skipif(len(ONNX) < 2, reason="openvino is not installed")
def test_all_targets_get_a_folder_each_and_one_that_fails_stops_no_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: object, model: object, folder: Path, ready: object) -> None:
        (folder / "half").write_bytes(b"1")
        raise RuntimeError("the stars are wrong\nand a stack")

    monkeypatch.setattr(deploy, "targets", lambda: {"away": "not here; buy one", "onnxruntime": None, "openvino": None})
    with monkeypatch.context() as broken:
        broken.setattr(backend("onnxruntime"), "export", breaks)
        found = deploy.deploy_all(model, tmp_path / "out", texts=TEXTS, threads=1)
    assert list(found.packages) == ["openvino"]
    assert found.left_out == {"away": "not here; buy one", "onnxruntime": "a fault, RuntimeError: the stars are wrong"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["openvino", "targets.json"]
    assert json.loads((tmp_path / "out" / "targets.json").read_text()) == {
        "format_version": 1, "written": ["openvino"], "left_out": found.left_out,
    }  # fmt: skip
    assert choose.read_package(tmp_path / "out" / "openvino") == found.packages["openvino"]
    with pytest.raises(UsageError, match="--force"):
        deploy.deploy_all(model, tmp_path / "out", texts=TEXTS, threads=1)
    again = deploy.deploy_all(model, tmp_path / "out", texts=TEXTS, threads=1, force=True)
    assert list(again.packages) == ["onnxruntime", "openvino"]


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["slimseek", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def test_the_command_for_all_targets_ends_in_a_table_of_what_was_written_and_why_not(
    two: tuple[str, ...], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    does_not_run(monkeypatch)
    monkeypatch.setattr(backend("openvino"), "preflight", lambda self, model: refuse("it has the operator Abacus"))
    command = ("deploy", model, "--target", "all", "--out", tmp_path / "out", "--threads", 1)
    assert run_cli(monkeypatch, *command) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "onnxruntime" in line)
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "onnxruntime").iterdir())
    assert f"{size / 1e3:.1f} kB"[:2] in row
    assert f"parity, shapes, invariance passed in a stand-in; not run here: {REASON}" in row
    assert "it has the operator Abacus" in next(line for line in shown.splitlines() if "openvino" in line)
    assert run_cli(monkeypatch, *command, "--force", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packages"]["onnxruntime"]["not_run"] == REASON
    assert document["left_out"] == {"openvino": "it has the operator Abacus"}
    monkeypatch.setattr(backend("onnxruntime"), "preflight", lambda self, model: refuse("it has Abacus, too"))
    assert run_cli(monkeypatch, *command, "--force", "--json") == 3
    ended = capsys.readouterr()
    assert json.loads(ended.out)["packages"] == {}
    assert ended.err.strip().splitlines()[-1] == (
        f"slimseek: no target passes its gates here; {tmp_path / 'out' / 'targets.json'} says why"
    )


def refuse(words: str) -> None:
    raise UsageError(words)


# ---------------------------------------------------------------- benches


def figures(latency: float, throughput: float) -> tuple[Measurement, ...]:
    return (
        Measurement(name="latency_p50", value=latency, unit="ms", higher_is_better=False),
        Measurement(name="throughput", value=throughput, unit="items/s"),
    )


@pytest.mark.parametrize(
    ("fast", "speeds", "speed_up"),
    [
        ((1.0, 400.0), (1.0, 4.0), 4.0),  # sqrt(4 x 4)
        ((1.0, 100.0), (1.0, 2.0), 2.0),  # sqrt(4 x 1)
        ((3.84, 100.0), (1.0, (4 / 3.84) ** 0.5), None),  # 1.02
        ((8.0, 100.0), (1.0, 0.5**0.5), 2**0.5),
    ],
)
def test_speed_is_of_a_query_and_of_batches_alike_and_less_than_a_twentieth_is_none(
    fast: tuple[float, float], speeds: tuple[float, ...], speed_up: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"first": figures(4.0, 100.0), "second": figures(*fast)}
    monkeypatch.setattr(evaluate, "cost", lambda subjects, queries, documents: {name: costs[name] for name in subjects})
    found = bench.side_by_side({name: (tiny_encoder(name=name), "") for name in costs}, ["a"], ["a"])
    assert found.speeds == pytest.approx(speeds)
    assert found.fastest == ("second" if speeds[1] > 1 else "first")
    assert found.speed_up == (None if speed_up is None else pytest.approx(speed_up))
    assert ("no speed-up over first: less than 5%" in bench.verdict(found)) == (speed_up is None)
    assert found.notes == ()


def test_vectors_of_other_widths_are_only_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "cost", lambda subjects, *_: dict.fromkeys(subjects, figures(1, 1)))
    wide = {"a": (tiny_encoder(name="a"), ""), "b": (tiny_encoder(name="b", dim=16), "")}
    assert bench.side_by_side(wide, ["a"], ["a"]).notes == (
        "vectors differ in their number of elements: a 32, b 16",
    )  # fmt: skip


def test_a_runtime_that_is_far_behind_is_not_measured_to_the_end() -> None:
    quick = tiny_encoder(name="quick")

    def slowly(batch: Batch) -> Array:
        time.sleep(0.3)  # hundreds of times as long as the tiny network
        return quick.encode(batch)

    slow = dataclasses.replace(quick, name="slow", encode=slowly)
    twice = dataclasses.replace(slow, name="twice", encode=lambda batch: (time.sleep(0.3), slowly(batch))[1])
    assert list(bench.in_reach({"slow": slow, "quick": quick}, TEXTS, TEXTS)) == ["quick"]
    assert list(bench.in_reach({"slow": slow, "twice": twice}, TEXTS, TEXTS)) == ["slow", "twice"]  # two of four times


def test_packages_are_measured_each_with_its_bytes_and_the_memory_of_its_own_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_collection(tmp_path / "collection")
    deploy.deploy(model, "onnxruntime", tmp_path / "p", texts=TEXTS, threads=1)
    names = [str(tmp_path / "p"), str(model)]
    assert run_cli(monkeypatch, "bench", *names, "--data", tmp_path / "collection", "--threads", 1, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in document["subjects"]] == names
    for one in document["subjects"]:
        measured = {measurement["name"]: measurement["value"] for measurement in one["measurements"]}
        assert {"size", "latency_p50", "latency_p95", "throughput", "peak_memory", "cold_start"} <= set(measured)
        assert 2e7 < measured["peak_memory"] < 4e9
    size = sum(path.stat().st_size for path in (tmp_path / "p").iterdir())
    [shipped] = [one["value"] for one in document["subjects"][0]["measurements"] if one["name"] == "size"]
    assert shipped == size
    assert document["fastest"] in names
    assert run_cli(monkeypatch, "bench", names[0], "--quiet") == 0
    assert "alone was measured" in capsys.readouterr().out


def test_what_cannot_be_compared_is_not_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is named twice"):
        bench.bench([model, str(model)])
    with pytest.raises(UsageError, match=r"keras_convolutions\.onnx takes other items than .*model; measure them"):
        bench.bench([model, KERAS])


# ---------------------------------------------------------------- graphs of others (CASES)


def graph(
    folder: Path, nodes: list[tuple[str, list[str], str, dict[str, Any]]], constants: dict[str, np.ndarray],
    shape: list[int | str], *, version: int = 8,
) -> Path:  # fmt: skip
    """A network from ``x`` to ``embedding`` [n, 8] as its user exported it."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node(kind, inputs, output.split(), **settings) for kind, inputs, output, settings in nodes],
        "network", [value("x", TensorProto.FLOAT, shape)], [value("embedding", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    network = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=version)
    (folder / "network.onnx").write_bytes(network.SerializeToString())
    return folder / "network.onnx"


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """At length one, as embeddings are given."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows(folder: Path, *shape: int, count: int = 4) -> tuple[list[str], np.ndarray]:
    """Items as files, and what is in them."""
    values = np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)
    for number, row in enumerate(values):
        np.save(folder / f"{number}.npy", row)
    return [str(folder / f"{number}.npy") for number in range(count)], values


@pytest.mark.parametrize("target", HERE)
def test_one_package_takes_every_batch_and_length(model: Path, target: str, tmp_path: Path) -> None:
    """CASES E1, S7: sizes that no tracing saw, alone and eight at once."""
    opened = choose.model(model)
    package, reference = packaged(opened, target, tmp_path), choose.encoder(opened, "artifact", 1)
    for count, length in ((1, 1), (3, 7), (8, 64), (1, 64)):
        ids = np.random.default_rng(length).integers(5, 30, (count, length))
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        assert cosines(reference.encode(batch), package.encode(batch)).min() > 0.9999, (count, length)


def test_a_network_whose_batch_is_baked_in_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """CASES E1: a Reshape to the batch of 1 that was traced."""
    nodes = [("Reshape", ["x", "to"], "flat", {}), ("MatMul", ["flat", "w"], "embedding", {})]
    file = graph(tmp_path, nodes, {"to": np.array([1, 16]), "w": random(16, 8)}, ["n", 4, 4])
    with pytest.raises(UsageError, match=r"network\.onnx cannot be run on 3 random items: .*\{3,4,4\}") as error:
        deploy.deploy(file, "onnxruntime", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_recurrent_state_of_one_traced_row_is_refused(tmp_path: Path) -> None:
    """CASES E2."""
    nodes = [
        ("Transpose", ["x"], "steps", {"perm": [1, 0, 2]}),
        ("LSTM", ["steps", "W", "R", "B", "", "state", "state"], "all last cell", {"hidden_size": 8}),
        ("Squeeze", ["last", "axis"], "embedding", {}),
    ]
    constants = {"W": random(1, 32, 6), "R": random(1, 32, 8), "B": random(1, 64), "state": random(1, 1, 8),
                 "axis": np.array([0])}  # fmt: skip
    with pytest.raises(UsageError, match="Input initial_h must have shape"):
        deploy.deploy(graph(tmp_path, nodes, constants, ["n", 5, 6]), "onnxruntime", tmp_path / "out")


@pytest.mark.parametrize("target", ONNX)
def test_dropout_that_was_exported_in_training_does_nothing(target: str, tmp_path: Path) -> None:
    """CASES E6."""
    nodes = [("MatMul", ["x", "w"], "all", {}), ("Dropout", ["all", "ratio", "train"], "embedding", {})]
    weight = random(16, 8)
    file = graph(tmp_path, nodes, {"w": weight, "ratio": np.array(0.5, np.float32), "train": np.array(True)}, ["n", 16])
    items, values = rows(tmp_path, 16)
    deploy.deploy(file, target, tmp_path / "out", threads=1)
    assert choose.choose(tmp_path / "out", 1).documents(items) == pytest.approx(unit(values @ weight), abs=1e-5)


def test_batch_norms_that_were_exported_in_training_fail_a_gate(tmp_path: Path) -> None:
    """CASES E6: their result hangs on the batch, which one gate or the other sees."""
    settings = {"training_mode": 1}
    nodes = [("MatMul", ["x", "w"], "all", {}),
             ("BatchNormalization", ["all", "s", "b", "m", "v"], "embedding m2 v2", settings)]  # fmt: skip
    ones = np.ones(8, np.float32)
    file = graph(tmp_path, nodes, {"w": random(16, 8), "s": ones, "b": random(8), "m": random(8), "v": ones}, ["n", 16])
    with pytest.raises(GateFailed, match=r"fails its gate (shapes|invariance)"):
        deploy.deploy(file, "onnxruntime", tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ONNX)
def test_a_graph_too_large_for_one_file_brings_its_data_file_and_misses_it(
    model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES E8, E7: under a name that hangs on nothing, counted as weights, hashed; the folder can be moved."""
    monkeypatch.setattr(_fusion, "LARGEST_SINGLE_FILE", 10_000)
    (tmp_path / "model.onnx.data").write_bytes(b"of somebody else")
    monkeypatch.chdir(tmp_path)
    deploy.deploy(model, target, "out", texts=TEXTS, threads=1)
    shutil.move("out", "moved")
    names = {path.name for path in Path("moved").iterdir()} - {"openvino.json"}
    assert names == {"model.onnx", "model.onnx.data", "package.json", "tokenizer.json"}
    assert Path("moved/model.onnx").stat().st_size < Path("moved/model.onnx.data").stat().st_size
    opened = choose.choose("moved", 1)
    assert opened.shipped["weights"] == sum(Path("moved", name).stat().st_size for name in names if "model" in name)
    assert cosines(choose.choose(model, 1).documents(TEXTS), opened.documents(TEXTS)).min() > 0.99999
    Path("moved/model.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data is missing; copy the whole folder again"):
        choose.choose("moved", 1)


@pytest.mark.parametrize("target", ONNX)
def test_a_version_that_no_runtime_knows_is_written_as_one_that_they_do(target: str, tmp_path: Path) -> None:
    """CASES E9."""
    weight = random(16, 8)
    file = graph(tmp_path, [("MatMul", ["x", "w"], "embedding", {})], {"w": weight}, ["n", 16], version=99)
    deploy.deploy(file, target, tmp_path / "out", threads=1)
    assert onnx.load(tmp_path / "out" / "model.onnx").ir_version <= 10
    items, values = rows(tmp_path, 16)
    assert choose.choose(tmp_path / "out", 1).documents(items) == pytest.approx(unit(values @ weight), abs=1e-5)


@pytest.mark.parametrize("target", ONNX)
def test_the_largest_of_integers_means_to_the_end_in_every_runtime(target: str, tmp_path: Path) -> None:
    """CASES S3: a Slice to 2^63 - 1, which fewer bits would cut to another place."""
    nodes = [("Slice", ["x", "from", "to", "axis"], "part", {}), ("MatMul", ["part", "w"], "embedding", {})]
    constants = {"from": np.array([2]), "to": np.array([2**63 - 1]), "axis": np.array([1]), "w": random(14, 8)}
    deploy.deploy(graph(tmp_path, nodes, constants, ["n", 16]), target, tmp_path / "out", threads=1)
    items, values = rows(tmp_path, 16)
    expected = unit(values[:, 2:] @ constants["w"])
    assert choose.choose(tmp_path / "out", 1).documents(items) == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound to cores here")
def test_a_process_on_one_core_uses_one_thread_whatever_the_host_has(model: Path, tmp_path: Path) -> None:
    """CASES S1: two sessions add no thread, and the report says so."""
    packaged(choose.model(model), "onnxruntime", tmp_path)
    script = f"""
import os, psutil
from slimseek import plugins, timing
from slimseek.backends.onnxruntime import OnnxRuntime
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
threads = timing.default_threads()
import numpy as np
ids = np.ones((8, 64), np.int64)
before = psutil.Process().num_threads()
for _ in range(2):
    OnnxRuntime().open(__import__('pathlib').Path({str(tmp_path)!r}), threads)(dict(input_ids=ids, attention_mask=ids))
made = timing.environment(threads)
print(threads, psutil.Process().num_threads() - before, made.cores, made.threads)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0", "1", "1"]


def test_a_network_of_keras_goes_through_every_target(two: tuple[str, ...], tmp_path: Path) -> None:
    """By tf2onnx (``data/onnx_in/make.py``): batches of 1, 3 and 8, and what Keras itself gives for its items."""
    stored = np.load(KERAS.with_suffix(".npz"))
    names = [name for name in stored.files if name != "expected"]
    for number, row in enumerate(stored[names[0]]):
        np.save(tmp_path / f"{number}.npy", row)
    items = [str(tmp_path / f"{number}.npy") for number in range(len(stored["expected"]))]
    found = deploy.deploy_all(KERAS, tmp_path / "out", texts=items, threads=1)
    assert tuple(found.packages) == two
    for target in two:
        vectors = choose.choose(tmp_path / "out" / target, 1).documents(items)
        assert cosines(stored["expected"], vectors).min() > 0.9999


@pytest.mark.parametrize("target", ONNX)
def test_integers_whose_channels_are_columns_are_read_back_as_they_stand(target: str, tmp_path: Path) -> None:
    """A square MatMul by [in, out], where a wrong orientation would show in nothing but the order."""
    file = graph(tmp_path, [("MatMul", ["x", "w"], "embedding", {})], {"w": random(8, 8)}, ["n", 8])
    step = plugins.load("methods", "quantize.weights_int")(bits=6, granularity="group", group_size=5)
    changed = step.apply(choose.model(file), None)
    [layer] = changed.layers
    assert layer.axis == 1
    packaged(changed, target, tmp_path / "package")
    stored = backend(target)().stored(tmp_path / "package")
    assert np.array_equal(stored[layer.weight], changed.tensors[layer.weight].integers)
