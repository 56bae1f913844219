"""Killed at any moment, on a full disk, without rights or memory: nothing half-written, and one line that says why.

``SLIMSEEK_KILLS=200`` kills each command as often, at other moments than usual.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import Forks
from slimseek import artifact, choose, search
from slimseek import folder as folders
from small import CORPUS, tiny_bert, tiny_collection, tiny_encoder

KILLS = int(os.environ.get("SLIMSEEK_KILLS", "0"))
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="forks and limits as Linux has them")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a collection and an artifact."""
    home = tmp_path_factory.mktemp("home")
    tiny_bert(home / "model", layers=1, width=16, heads=2)
    tiny_collection(home / "collection")
    (home / "artifact").mkdir()
    artifact.write(choose.model(home / "model"), home / "artifact")
    lines = [json.dumps({"_id": f"d{number}", "text": f"the cat {number}"}) for number in range(60)]
    (home / "many.jsonl").write_text("\n".join(lines))
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole_index(out: Path) -> None:
    assert search.open(out, tiny_encoder()).query(["the river"], 1)[0][0].id in CORPUS | {"new": 1, "d3": 1}


def whole_bulk(out: Path) -> None:
    assert len(search.open(out, tiny_encoder()).documents) in (len(CORPUS), 60)


def whole_pictures(out: Path) -> None:
    assert (out / "slimseek.json").is_file()
    assert (out / "labels.csv").is_file()


def moments(total: int, count: int, name: str) -> list[int]:
    """Different numbers of writes to be killed at, the last two among them: the renames."""
    chosen = random.Random(f"{name} {KILLS}").sample(range(1, total + 1), min(total, KILLS or count))
    return sorted({*chosen, max(1, total - 1), total})


@pytest.mark.parametrize(
    ("name", "arguments", "whole", "kills"),
    [
        ("index", ("python:index", "out"), whole_index, 12),
        ("bulk", ("python:bulk", "out", "many.jsonl"), whole_bulk, 12),
        ("update", ("python:update", "out"), whole_index, 12),
        ("pictures", ("python:pictures", "out"), whole_pictures, 1),
    ],
)
def test_killed_at_any_write_it_leaves_the_old_or_the_new(
    name: str, arguments: tuple[str, ...], whole: object, kills: int, home: Path, forks: Forks, tmp_path: Path
) -> None:
    """A process that kills itself before its n-th write; then the same command again."""
    assert callable(whole)
    shutil.copy(home / "many.jsonl", tmp_path / "many.jsonl")
    given = set(os.listdir(tmp_path))
    if name != "pictures":
        assert forks.run("python:index", "out", folder=str(tmp_path))[0] == 0
    before = contents(tmp_path / "out") if name != "pictures" else {}
    code, said, total = forks.run(*arguments, folder=str(tmp_path))
    assert code == 0, said
    after = contents(tmp_path / "out")
    for number in moments(total, kills, name):
        shutil.rmtree(tmp_path / "out")
        for path, content in before.items():
            (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / path).write_bytes(content)
        code, said, _ = forks.run(*arguments, folder=str(tmp_path), kill_at=number)
        assert code == -9, (number, said)
        moved = list(tmp_path.glob(".out.old-*/folder"))
        if (tmp_path / "out").exists():
            whole(tmp_path / "out")
        elif before:
            assert contents(moved[0]) == before, number
        code, said, _ = forks.run(*arguments, folder=str(tmp_path))
        if name == "update" and code and contents(tmp_path / "out") == after:
            assert "there is a document 'new' already" in said  # it had been done before the kill
            with folders.writing(tmp_path / "out", force=True) as folder:  # whatever writes there next clears up
                shutil.copytree(tmp_path / "out", folder, dirs_exist_ok=True)
        else:
            assert code == 0, (number, said)
        assert contents(tmp_path / "out") == after, number
        assert set(os.listdir(tmp_path)) - given == {"out"}, number


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "model", "--data", "collection", "--recipe", "int8", "--out", "out", "--quiet", "--threads", "1"),
        ("deploy", "artifact", "--target", "onnxruntime", "--out", "out", "--quiet", "--threads", "1"),
        ("rebuild", "artifact", "--out", "out", "--quiet", "--threads", "1"),
        ("index", "model", "--data", "collection", "--out", "out", "--quiet", "--threads", "1"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_was_killed_leaves_nothing_and_the_next_runs(
    arguments: tuple[str, ...], home: Path, forks: Forks
) -> None:
    given = set(os.listdir(home))
    code, said, total = forks.run(*arguments, folder=str(home))
    assert code == 0, said
    manifests = {
        "compress": "manifest.json",
        "deploy": "package.json",
        "rebuild": "modules.json",
        "index": "index.json",
    }
    for number in random.Random(KILLS).sample(range(1, total // 2), KILLS or 1):  # what is cached needs fewer writes
        shutil.rmtree(home / "out", ignore_errors=True)
        code, said, _ = forks.run(*arguments, folder=str(home), kill_at=number)
        assert code == -9, (number, said)
        assert not (home / "out").exists() or (home / "out" / manifests[arguments[0]]).is_file(), number
    shutil.rmtree(home / "out", ignore_errors=True)
    code, said, _ = forks.run(*arguments, folder=str(home))
    assert code == 0, said
    assert (home / "out" / manifests[arguments[0]]).is_file()
    assert set(os.listdir(home)) - given == {"out"}
    shutil.rmtree(home / "out")


COMMANDS = {
    "compress": ("compress", "model", "--data", "collection", "--recipe", "int8", "--out", "new/out", "--threads", "1"),
    "deploy": ("deploy", "artifact", "--target", "onnxruntime", "--out", "new/out", "--threads", "1"),
    "rebuild": ("rebuild", "artifact", "--out", "new/out", "--threads", "1"),
    "index": ("index", "model", "--data", "collection", "--out", "new/out", "--threads", "1"),
    "index of a file": ("index", "model", "--data", "many.jsonl", "--out", "new/out", "--threads", "1"),
    "graph": ("index", "model", "--data", "many.jsonl", "--kind", "usearch", "--out", "new/out", "--threads", "1"),
    "faiss": ("index", "model", "--data", "many.jsonl", "--kind", "faiss_flat", "--out", "new/out", "--threads", "1"),
    "train": ("train", "model", "--data", "collection", "--out", "new/out", "--steps", "4", "--threads", "1"),
}


def one_line(said: str) -> str:
    """The one line of the error, whatever was told of progress before it; there is no traceback."""
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("slimseek: ")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_nothing(name: str, home: Path, forks: Forks) -> None:
    """No file may be larger than 120 bytes: the system says so as of a full disk."""
    shutil.rmtree(home / "new", ignore_errors=True)
    code, said, _ = forks.run(*COMMANDS[name], "--quiet", folder=str(home), file_bytes=120)
    line = one_line(said)
    assert code == 2, said
    assert "File too large" in line or "could be written" in line, line
    assert not (home / "new").exists() or not any(
        path.is_file() for path in (home / "new" / "out").rglob("*") if path.suffix != ".json"
    )
    shutil.rmtree(home / "new", ignore_errors=True)


@pytest.mark.parametrize("name", ["compress", "deploy", "index", "index of a file", "train"])
def test_a_folder_without_rights_is_one_line(name: str, home: Path, forks: Forks, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be nobody")
    here = shutil.copytree(home, tmp_path / "home")
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 1:
            os.chmod(parent, parent.stat().st_mode | 0o11)
    code, said, _ = forks.run(*COMMANDS[name], "--quiet", folder=str(here), nobody=True)
    assert code == 2, said
    assert "Permission denied" in one_line(said)


def test_an_input_without_rights_is_one_line(home: Path, forks: Forks, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be nobody")
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 1:
            os.chmod(parent, parent.stat().st_mode | 0o11)
    here = shutil.copytree(home, tmp_path / "home")
    os.chmod(here / "model" / "model.safetensors", 0)
    for folder in (tmp_path, here):
        os.chmod(folder, 0o777)
    code, said, _ = forks.run("evaluate", "model", "--data", "collection", "--quiet", folder=str(here), nobody=True)
    assert code == 2, said
    assert "model.safetensors" in one_line(said)


@pytest.mark.parametrize("megabytes", [30, 100])
def test_too_little_memory_is_one_line_or_enough(megabytes: int, home: Path, forks: Forks) -> None:
    """Limits of the address space beyond what the process has; a library of C may end the process itself. With next to
    nothing left the interpreter fails before any code of ours, by errors that say nothing of memory.
    """
    for name in ("index", "deploy"):
        code, said, _ = forks.run(*COMMANDS[name], "--quiet", folder=str(home), memory=megabytes * 1_000_000)
        assert "Traceback" not in said, said
        assert code in (0, 2) or code < 0, said
        assert code != 2 or one_line(said)
        assert not list((home / "new").glob(".out.*-*")) or code < 0
        shutil.rmtree(home / "new", ignore_errors=True)
