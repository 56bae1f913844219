"""Documents added to an index and deleted from it: the answers are those of an index made of what is left."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from slimseek import choose, plugins, search, updates
from slimseek import folder as folders
from slimseek.cli import app
from slimseek.errors import ArtifactError, UsageError
from slimseek.progress import shown_on
from small import CORPUS, many_texts, tiny_encoder

KINDS = plugins.names("indexes")
PAIRS = [(kind, each) for kind in KINDS for each in plugins.load("indexes", kind).precisions]
QUERIES = ["a cat near the river", "stone engine", "winter"]
TEXTS = {f"t{number}": text for number, text in enumerate(many_texts(40, seed=1))}
TWICE = TEXTS | {f"again {name}": text for name, text in reversed(TEXTS.items())}
"""Documents, and others of the same texts: the ranges of either half are those of the whole."""


def answers(path: Path) -> list[list[search.Result]]:
    return search.open(path, tiny_encoder()).query(QUERIES, k=15)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    search.index(tiny_encoder(), CORPUS, tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
def test_answers_are_those_of_an_index_made_anew(kind: str, precision: Any, tmp_path: Path) -> None:
    """Half of the documents, then the rest in two parts, then twenty less in the same call as the second."""
    encoder, names = tiny_encoder(), list(TWICE)
    given: dict[str, Any] = {"kind": kind, "precision": precision}
    search.index(encoder, {name: TWICE[name] for name in names[:40]}, tmp_path / "out", **given)
    updates.update(tmp_path / "out", encoder, add={name: TWICE[name] for name in names[40:50]})
    gone = [name for position, name in enumerate(names[:40]) if position % 2]
    manifest = updates.update(
        tmp_path / "out", encoder, add={name: TWICE[name] for name in names[50:]}, delete=gone[::-1]
    )
    left = {name: text for name, text in TWICE.items() if name not in gone}
    search.index(encoder, left, tmp_path / "anew", **given)
    assert manifest.count == 60
    found, wanted = answers(tmp_path / "out"), answers(tmp_path / "anew")
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in wanted]
    assert [[hit.text for hit in hits] for hits in found] == [[hit.text for hit in hits] for hits in wanted]
    if precision in ("f32", "f16"):
        assert found == wanted


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_every_file_is_that_of_an_exact_index_made_anew(precision: Any, path: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder()
    search.index(encoder, CORPUS, path, precision=precision, force=True)
    updates.update(path, encoder, add=TEXTS, delete=["d2", "d6"])
    left = {name: text for name, text in (CORPUS | TEXTS).items() if name not in ("d2", "d6")}
    search.index(encoder, left, tmp_path / "anew", precision=precision)
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    assert len(files) == 5
    for file in files:
        assert (path / file).read_bytes() == (tmp_path / "anew" / file).read_bytes(), file


def test_a_document_is_replaced_and_stands_last(path: Path) -> None:
    updates.update(path, tiny_encoder(), add={"d3": "a new bridge"}, delete=["d3"])
    [hits] = search.open(path, tiny_encoder()).query(["a new bridge"], k=6)
    assert (hits[0].id, hits[0].text) == ("d3", "a new bridge")
    assert sorted(hit.id for hit in hits) == sorted(CORPUS)
    assert [json.loads(line)["id"] for line in (path / "documents.jsonl").open()][-1] == "d3"


def test_all_may_be_replaced(path: Path) -> None:
    updates.update(path, tiny_encoder(), add={"only": "apple"}, delete=list(CORPUS))
    assert [hit.id for hit in search.open(path, tiny_encoder()).query(["cat"], k=9)[0]] == ["only"]


def test_finer_vectors_follow(tmp_path: Path) -> None:
    """The scores of a binary index are those of its int8 vectors, within a step of the true ones."""
    encoder = tiny_encoder()
    search.index(encoder, TWICE, tmp_path / "out", precision="binary")
    manifest = updates.update(tmp_path / "out", encoder, add={"new": "the winter apple"}, delete=["t3", "t4"])
    opened = search.open(tmp_path / "out", encoder)
    assert opened.finer is not None
    assert len(opened.finer.kept) == manifest.count == 79
    hits = opened.query(["the winter apple"], k=5)[0]
    true = encoder.queries(["the winter apple"]) @ encoder.documents([hit.text for hit in hits]).T
    np.testing.assert_allclose([hit.score for hit in hits], true[0], atol=0.02)


def test_values_outside_the_ranges_are_said(tmp_path: Path) -> None:
    encoder, shown = tiny_encoder(), io.StringIO()
    search.index(encoder, {"a": "stone", "b": "stone the"}, tmp_path / "out", precision="int8")
    with shown_on(Console(file=shown, width=200)):
        updates.update(tmp_path / "out", encoder, add={"c": "winter apple dog"})
    assert "lie outside the index's ranges and saturate; index again" in shown.getvalue()


@pytest.mark.parametrize(
    ("add", "delete", "wrong"),
    [({}, [], "nothing to add and nothing to delete"), ({"d1": "x"}, [], "a document 'd1' already"),
     ({}, ["d9", "d8"], "no document 'd8' to delete, and 1 more"), ({}, list(CORPUS), "nothing would be left")],
)  # fmt: skip
def test_refusals_change_nothing(add: dict[str, str], delete: list[str], wrong: str, path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UsageError, match=wrong):
        updates.update(path, tiny_encoder(), add=add, delete=delete)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [each.name for each in path.parent.iterdir()] == ["index"]


def test_another_encoder_or_a_changed_file_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="made by tiny"):
        updates.update(path, tiny_encoder(name="other"), add={"new": "x"})
    (path / "documents.jsonl").write_bytes((path / "documents.jsonl").read_bytes()[:-1])
    with pytest.raises(ArtifactError):
        updates.update(path, tiny_encoder(), delete=["d1"])


def test_a_failure_leaves_the_old_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(path)

    def failing(*_: Any) -> None:
        raise RuntimeError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_json", failing)
        with pytest.raises(RuntimeError):
            updates.update(path, tiny_encoder(), add={"new": "x"})
    assert answers(path) == before


@pytest.mark.parametrize("kind", ["pgvector"])
def test_the_table_of_before_is_dropped_and_the_new_one_kept(kind: str, tmp_path: Path) -> None:
    search.index(tiny_encoder(), CORPUS, tmp_path / "out", kind=kind)
    old = plugins.load("indexes", kind)()
    old.load(tmp_path / "out" / "index")
    updates.update(tmp_path / "out", tiny_encoder(), delete=["d1"])
    assert len(answers(tmp_path / "out")[0]) == 5
    with pytest.raises(UsageError, match="does not exist"):
        old.query(np.ones((1, 32), np.float32), 1)


class TestCommand:
    """The command line, with a made model."""

    @pytest.fixture(autouse=True)
    def _made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choose, "choose", lambda source, threads=None: tiny_encoder())

    def run(self, *arguments: object) -> Any:
        """The printed JSON of ``slimseek index``, or the error."""
        command = ["index", "tiny", "--json", "--quiet", *map(str, arguments)]
        done = CliRunner().invoke(app, command)
        return json.loads(done.stdout) if done.exception is None else done.exception

    def test_a_file_is_indexed_and_changed(self, tmp_path: Path) -> None:
        file, more, ids = (tmp_path / name for name in ("corpus.jsonl", "more.jsonl", "ids"))
        file.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in CORPUS.items()))
        more.write_text('{"_id": "new", "text": "an engine"}\n')
        ids.write_text("d2\n\nd3\n")
        out = tmp_path / "out"
        made = self.run("--data", file, "--out", out, "--kind", "usearch", "--precision", "int8")
        assert (made["documents"], made["kind"], made["precision"]) == (6, "usearch", "int8")
        changed = self.run("--add", more, "--delete", f"@{ids}", "--delete", "d1", "--out", out)
        assert (changed["documents"], changed["kind"], changed["precision"]) == (4, "usearch", "int8")
        [hits] = search.open(out, tiny_encoder()).query(["an engine"], k=9)
        assert hits[0].id == "new"
        assert {hit.id for hit in hits} == {"d4", "d5", "d6", "new"}

    @pytest.mark.parametrize(
        ("arguments", "wrong"),
        [([], "give --data to make an index"), (["--data", "c.jsonl", "--add", "d.jsonl"], "give --data to make"),
         (["--data", "news", "--processes", "2"], "--processes is for a .jsonl file"),
         (["--data", "c.jsonl", "--ray", "auto", "--processes", "2"], "by --processes here; leave one out"),
         (["--delete", "@no such file"], "--delete @no such file: No such file")],
    )  # fmt: skip
    def test_what_does_not_go_together(self, arguments: list[str], wrong: str, path: Path) -> None:
        refused = self.run(*arguments, "--out", path)
        assert isinstance(refused, UsageError)
        assert wrong in str(refused)
