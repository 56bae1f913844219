"""The command line as a user meets it: every command in a real process, every fault one line and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from small import tiny_bert, tiny_collection

RECIPE = """version: 1
steps:
  - quantize.weights_int: {bits: 8}
  - quantize.activations_int: {mode: static}
gates: {metric: ndcg@10, max_loss: 0.5}
"""


def slimseek(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from slimseek.cli import main; main()",
        *(str(argument) for argument in arguments),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a collection, a recipe, and the artifact that the recipe gives."""
    path = tmp_path_factory.mktemp("home")
    tiny_bert(path / "model")
    tiny_collection(path / "collection")
    (path / "recipe.yaml").write_text(RECIPE)
    done = slimseek(
        "compress", "model", "--data", "collection", "--recipe", "recipe.yaml", "--out", "artifact", "--threads", "1",
        "--alternatives", home=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


def fault(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of a refused command."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("slimseek:")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return lines[0]


def test_compress_writes_a_smaller_artifact_with_its_proof(home: Path) -> None:
    names = {path.name for path in (home / "artifact").iterdir()}
    assert names == {"manifest.json", "weights.safetensors", "model", "report.json", "report.html"}
    before = (home / "model" / "model.safetensors").stat().st_size
    assert (home / "artifact" / "weights.safetensors").stat().st_size < 0.5 * before
    report = json.loads((home / "artifact" / "report.json").read_text())
    assert [record["step"] for record in report["records"]] == ["quantize.weights_int", "quantize.activations_int"]
    assert {gate["gate"] for gate in report["gates"]} == {"quality", "parity", "shapes", "invariance", "smaller"}
    assert report["alternatives"][0]["subject"] == "onnxruntime dynamic int8"
    assert report["command"].startswith("slimseek compress model --data collection")
    assert report["records"][0]["sqnr_db"] > 30


def test_the_same_command_twice_needs_force(home: Path) -> None:
    command = [
        "compress",
        "model",
        "--data",
        "collection",
        "--recipe",
        "recipe.yaml",
        "--out",
        "artifact",
        "--threads",
        "1",
    ]
    assert "--force" in fault(slimseek(*command, home=home))


def test_rebuild_gives_an_ordinary_model(home: Path) -> None:
    done = slimseek("rebuild", "artifact", "--out", "rebuilt", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"] > 0.9999
    script = (
        "import sys; from transformers import AutoModel; from sentence_transformers import SentenceTransformer;"
        "AutoModel.from_pretrained('rebuilt');"
        "print(SentenceTransformer('rebuilt', device='cpu').encode(['a cat']).shape);"
        "assert 'slimseek' not in sys.modules"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=home, check=True)
    assert "(1, 32)" in loaded.stdout


def test_deploy_index_and_query_find_the_document(home: Path) -> None:
    for target in ("onnxruntime", "openvino"):
        done = slimseek(
            "deploy", "artifact", "--target", target, "--out", f"served-{target}", "--json", "--threads", "1", home=home
        )
        assert done.returncode == 0, done.stderr
        package = json.loads(done.stdout)
        assert package["target"] == target
        assert all(gate["status"] == "passed" for gate in package["gates"])
        indexed = slimseek(
            "index", f"served-{target}", "--data", "collection", "--out", f"index-{target}", "--threads", "1", home=home
        )
        assert indexed.returncode == 0, indexed.stderr
        text = "The bridge over the river is made of stone."
        found = slimseek(
            "query", f"index-{target}", text, "--model", f"served-{target}", "--k", "2", "--json", home=home
        )
        assert json.loads(found.stdout)[0]["id"] == "d4"


def test_evaluate_prints_one_json_document_with_paired_differences(home: Path) -> None:
    done = slimseek(
        "evaluate", "artifact", "--data", "collection", "--baseline", "model", "--json", "--threads", "1", home=home
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = {measurement["name"] for measurement in document["subject"]["measurements"]}
    assert {"ndcg@10", "recall@100", "mrr@10", "map", "size", "latency_p50", "latency_p99", "throughput", "cold_start",
            "peak_memory", "parameters", "macs"} <= names  # fmt: skip
    assert [change["metric"] for change in document["changes"]] == ["ndcg@10", "recall@100", "mrr@10", "map"]


@pytest.mark.parametrize(
    "command",
    [
        ["models"], ["models", "--json"], ["inspect", "model"], ["inspect", "artifact", "--json"], ["recipe"],
        ["recipe", "int8"], ["data", "collection", "--model", "model"], ["--version"], ["--help"],
    ],
)  # fmt: skip
def test_small_commands_answer(home: Path, command: list[str]) -> None:
    done = slimseek(*command, home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "--json" in command:
        json.loads(done.stdout)


def test_a_printed_recipe_is_one_that_compress_takes(home: Path) -> None:
    from slimseek import recipe

    assert (
        recipe.parse(slimseek("recipe", "int4-vocabulary", home=home).stdout).steps[0].method == "simplify.vocabulary"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compress", "nowhere", "--data", "collection", "--out", "x"], "no model 'nowhere'"),
        (["compress", "model", "--data", "nowhere", "--out", "x"], "nowhere"),
        (["compress", "model", "--data", "collection", "--out", "x", "--recipe", "magic"], "unknown recipe 'magic'"),
        (["compress", "model", "--data", "collection", "--out", "model"], "input"),
        (["compress", "model", "--data", "collection", "--out", "x", "--target", "abacus"], "abacus"),
        (["compress", "model", "--data", "collection", "--out", "x", "--metric", "luck@10"], "luck"),
        (["compress", "model", "--data", "collection", "--out", "x", "--max-loss", "2"], "'2' is not a share"),
        (["compress", "model", "--out", "x"], "--data"),
        (["compress", "model", "--data", "collection", "--out", "x", "--bits", "4"], "--bits"),
        (["evaluate", "model", "--data", "collection", "--split", "holiday"], "holiday"),
        (["deploy", "model", "--target", "abacus", "--out", "x"], "abacus"),
        (["rebuild", "collection", "--out", "x"], "not a model"),
        (["report", "model", "--out", "x.html"], "artifact"),
        (["query", "collection", "cat", "--model", "model"], "index"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing(home: Path, arguments: list[str], words: str) -> None:
    before = sorted(path.name for path in home.iterdir())
    assert words in fault(slimseek(*arguments, home=home))
    assert sorted(path.name for path in home.iterdir()) == before


@pytest.mark.parametrize("bits", ["1", "9", "four"])
def test_bits_that_no_integer_has_are_refused(home: Path, bits: str) -> None:
    (home / "bad.yaml").write_text(f"version: 1\nsteps:\n  - quantize.weights_int: {{bits: {bits}}}\n")
    line = fault(slimseek("compress", "model", "--data", "collection", "--recipe", "bad.yaml", "--out", "x", home=home))
    assert "bits" in line


def test_nan_weights_are_refused_by_the_tensors_name(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    line = fault(slimseek("compress", tmp_path / "model", "--data", "collection", "--out", "x", home=home))
    assert "NaN" in line
    assert not (home / "x").exists()


@pytest.mark.parametrize("damage", ["truncate", "change", "remove", "newer"])
def test_a_damaged_artifact_is_refused(home: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(home / "artifact", tmp_path / "artifact")
    weights, manifest = tmp_path / "artifact" / "weights.safetensors", tmp_path / "artifact" / "manifest.json"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "change":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "remove":
        weights.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))
    line = fault(slimseek("rebuild", tmp_path / "artifact", "--out", tmp_path / "x"))
    assert "weights.safetensors" in line or "version 99" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("corpus.jsonl", "", "corpus"),
        ("corpus.jsonl", "not json\n", "line 1"),
        ("queries.jsonl", '{"text": "no id"}\n', "_id"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\ntest-d1\tghost\t1\n", "ghost"),
    ],
)
def test_a_broken_collection_is_refused_by_file_and_line(
    home: Path, tmp_path: Path, file: str, content: str, words: str
) -> None:
    shutil.copytree(home / "collection", tmp_path / "collection")
    (tmp_path / "collection" / file).write_text(content)
    line = fault(slimseek("evaluate", home / "model", "--data", tmp_path / "collection"))
    assert words in line


def test_a_gate_that_fails_keeps_the_last_good_model_and_says_so(home: Path) -> None:
    (home / "harsh.yaml").write_text(
        "version: 1\nsteps:\n  - quantize.weights_int: {bits: 8}\n  - simplify.vocabulary: {min_count: 1000}\n"
        "gates: {metric: ndcg@10, max_loss: 0.0}\n"
    )
    done = slimseek(
        "compress",
        "model",
        "--data",
        "collection",
        "--recipe",
        "harsh.yaml",
        "--out",
        "kept",
        "--threads",
        "1",
        home=home,
    )
    report = json.loads((home / "kept" / "report.json").read_text())
    failed = [gate for gate in report["gates"] if gate["status"] == "failed"]
    assert done.returncode == 3, done.stderr
    assert failed
    assert "last good model" in done.stderr
    opened = slimseek("inspect", "kept", "--json", home=home)
    assert json.loads(opened.stdout)["layers"][0]["stored"].startswith("int8")
