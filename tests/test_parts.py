"""An index in parts: answers are those of one index, a killed build goes on, and parts cannot be mixed up."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from asking import Client
from slimseek import choose, documents, index_folder, parts, search, updates
from slimseek.cli import app
from slimseek.collection import Hits
from slimseek.errors import ArtifactError, UsageError
from slimseek.indexes import _vectors
from slimseek.scale import _documents, bulk, joining
from slimseek.serving.swap import Served
from small import many_texts, tiny_collection, tiny_encoder

COUNT, EACH = 700, 256
NAMES = ("part-0000", "part-0001", "part-0002")
QUERIES = ["a cat near the river", "stone engine", "winter", "the dog", "apple apple bridge"]


def corpus(count: int = COUNT) -> dict[str, str]:
    """Documents of which a third occur in all parts with the same text, so that scores are equal across parts."""
    texts = many_texts(count, seed=2)
    return {f"d{number}": texts[number % 90 if number % 3 == 0 else number] for number in range(count)}


def written(path: Path, found: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in found.items()))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def made_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MODEL of a test is the small encoder; shards are small."""
    monkeypatch.setattr(choose, "choose", lambda source, threads=None: tiny_encoder())
    monkeypatch.setattr(_documents, "DOCUMENTS_IN_SHARD", 64)


def parted(folder: Path, found: dict[str, str] | None = None, **how: Any) -> Path:
    """An index in parts of 256."""
    file = written(folder / "corpus.jsonl", found or corpus())
    bulk.index("tiny", file, folder / "parts", documents_per_part=EACH, **how)
    return folder / "parts"


def slices(found: dict[str, str]) -> list[dict[str, str]]:
    names = list(found)
    return [{name: found[name] for name in names[start : start + EACH]} for start in range(0, len(names), EACH)]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("kind", ["exact", "usearch", "faiss_flat"])
@pytest.mark.parametrize("precision", ["f32", "int8", "binary"])
def test_each_part_is_the_index_of_its_documents_alone(
    kind: str, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_documents, "DOCUMENTS_IN_SHARD", EACH)
    path = parted(tmp_path, kind=kind, precision=precision)
    assert sorted(found.name for found in path.iterdir()) == [*NAMES, "parts.json"]
    for name, own in zip(NAMES, slices(corpus()), strict=True):
        search.index(tiny_encoder(), own, tmp_path / name, kind=kind, precision=precision)
        assert contents(path / name) == contents(tmp_path / name)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["corpus.jsonl", *NAMES, "parts"]


@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_exact_index_in_parts_answers_as_one(precision: Any, threads: int, tmp_path: Path) -> None:
    """Ids, scores to the last bit, texts and order; equal scores stand in the order of the documents over all parts."""
    encoder = dataclasses.replace(tiny_encoder(), threads=threads)
    search.index(encoder, corpus(), tmp_path / "one", precision=precision)
    one = search.open(tmp_path / "one", encoder)
    many = search.open(parted(tmp_path, precision=precision), encoder)
    for k in (1, 10, 300, 1000):
        assert many.query(QUERIES, k) == one.query(QUERIES, k)
    scores = [hit.score for hit in many.query(QUERIES, 50)[0]]
    assert len(set(scores)) < len(scores), "some are equal"
    assert (many.stats().documents, many.stats().precision) == (COUNT, precision)
    assert many.stats().index_bytes - one.stats().index_bytes == 2 * 128, "two heads of files more"


def test_int8_in_parts_is_right_within_its_rounding(tmp_path: Path) -> None:
    """Every part has ranges of its own; a score is off by half a step in each dimension at most."""
    encoder, found = tiny_encoder(), corpus()
    path = parted(tmp_path, precision="int8")
    opened = search.open(path, encoder)
    queries = encoder.queries(QUERIES)
    true = queries.astype(np.float64) @ encoder.documents(list(found.values())).astype(np.float64).T
    steps = [_vectors.load_ranges(path / name / "index", "int8") for name in NAMES]
    assert not np.array_equal(steps[0], steps[1])
    most = np.stack([np.abs(queries) @ ranges[1] / 2 for ranges in steps if ranges is not None], axis=1)
    hits = opened.hits(queries, COUNT)
    for row in range(len(QUERIES)):
        assert sorted(hits.ids[row].tolist()) == list(range(COUNT))
        wrong = np.abs(hits.scores[row] - true[row, hits.ids[row]])
        assert (wrong <= most[row, hits.ids[row] // EACH] + 1e-5).all()
        assert (np.diff(hits.scores[row]) <= 0).all()


@pytest.mark.parametrize(("kind", "precision"), [("exact", "binary"), ("usearch", "int8"), ("faiss_hnsw", "f32")])
def test_other_kinds_find_what_one_index_of_them_finds(kind: Any, precision: Any, tmp_path: Path) -> None:
    """Of the first ten of an exact index at least as many as one index of that kind; binary ones are rescored."""
    encoder, found = tiny_encoder(), {f"d{number}": text for number, text in enumerate(many_texts(COUNT, seed=5))}
    search.index(encoder, found, tmp_path / "true")
    search.index(encoder, found, tmp_path / "one", kind=kind, precision=precision)
    true, one, many = (
        [{hit.id for hit in hits} for hits in search.open(path, encoder).query(QUERIES, 10)]
        for path in (tmp_path / "true", tmp_path / "one", parted(tmp_path, found, kind=kind, precision=precision))
    )
    shares = [sum(len(a & b) for a, b in zip(true, each, strict=True)) for each in (one, many)]
    assert shares[1] >= shares[0] - 1
    assert shares[1] >= 40


def test_hits_are_merged_as_worked_by_hand() -> None:
    """Two documents, one, and three, of which a graph found only one: 0.5 stands twice, the first document first."""

    def part(ids: list[int], scores: list[float]) -> Any:
        return lambda vectors, k: Hits(ids=np.array([ids]), scores=np.array([scores], np.float32))

    several = [part([1, 0], [0.9, 0.5]), part([0], [0.5]), part([2, -1, -1], [0.7, -np.inf, -np.inf])]
    hits = parts.Merged(several, [2, 1, 3], 2).query(np.zeros((1, 4), np.float32), 5)
    assert hits.ids.tolist() == [[1, 5, 0, 2, -1]]
    assert hits.scores[0, :4].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.5])


# ---------------------------------------------------------------- building


def encoded(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> int:
    """How many shards a run encodes, which fails as if it were killed when it has done so many."""
    done, one = [0], bulk._encoded

    def counting(*arguments: Any) -> int:
        if done[0] == most:
            raise RuntimeError("the power failed")
        done[0] += 1
        return one(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_encoded", counting)
        bulk.index("tiny", file, out, documents_per_part=EACH, precision="int8")
    return done[0]


def test_a_killed_build_goes_on_with_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven shards in parts of four, four and three: killed after six, five are left; a cut part is redone."""
    file = written(tmp_path / "corpus.jsonl", corpus())
    bulk.index("tiny", file, tmp_path / "whole", documents_per_part=EACH, precision="int8")
    with pytest.raises(RuntimeError):
        encoded(file, tmp_path / "out", monkeypatch, most=6)
    work = tmp_path / ".out.work"
    [ready] = work.glob("ready-*")
    assert len(list(work.glob("0*.npy"))) == 2, "the shards of the part that is done are gone"
    assert encoded(file, tmp_path / "out", monkeypatch) == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not work.exists()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(RuntimeError):
        encoded(file, tmp_path / "out", monkeypatch, most=6)
    (ready / "index" / "vectors.npy").write_bytes(b"cut")
    assert encoded(file, tmp_path / "out", monkeypatch) == 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("precision", "text"), [("f16", "the same"), ("int8", "another engine")])
def test_a_part_of_other_settings_or_texts_is_not_taken_over(
    precision: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as int8 and with the first text; then either the one or the other changes."""
    found = corpus() | {"d3": "the same"}
    file = written(tmp_path / "corpus.jsonl", found)
    with pytest.raises(RuntimeError):
        encoded(file, tmp_path / "out", monkeypatch, most=6)
    found["d3"] = text
    bulk.index("tiny", written(file, found), tmp_path / "out", documents_per_part=EACH, precision=precision)
    bulk.index("tiny", file, tmp_path / "anew", documents_per_part=EACH, precision=precision)
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


@pytest.mark.parametrize(("count", "each", "wanted"), [(5, 2, [2, 2, 1]), (4, 2, [2, 2]), (3, 7, [3]), (3, 1, [1] * 3)])
def test_any_number_of_documents(count: int, each: int, wanted: list[int], tmp_path: Path) -> None:
    file = written(tmp_path / "corpus.jsonl", corpus(count))
    assert bulk.index("tiny", file, tmp_path / "out", documents_per_part=each).count == count
    assert [part.count for part in parts.read(tmp_path / "out")] == wanted
    [found] = search.open(tmp_path / "out", tiny_encoder()).query(["stone"], 1000)
    assert {hit.id: hit.text for hit in found} == corpus(count)


def test_an_id_that_occurs_in_two_parts_is_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path / "corpus.jsonl", corpus())
    with file.open("a") as more:
        more.write('{"_id": "d5", "text": "stone"}\n')
    with pytest.raises(UsageError, match="line 701: the _id 'd5' occurs a second time"):
        bulk.index("tiny", file, tmp_path / "out", documents_per_part=EACH)
    assert not (tmp_path / "out").exists()


def test_what_is_encoded_elsewhere_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cluster does it: calls of two shards, none of which holds texts of two parts."""
    monkeypatch.setattr(bulk, "SHARDS_IN_CALL", 2)
    calls: list[int] = []

    def encode(texts: Any) -> Any:
        calls.append(len(texts))
        return tiny_encoder().documents(texts)

    here = parted(tmp_path)
    bulk.index("tiny", tmp_path / "corpus.jsonl", tmp_path / "elsewhere", documents_per_part=EACH, encode=encode)
    assert calls == [128, 128, 128, 128, 128, 60]
    assert contents(tmp_path / "elsewhere") == contents(here)


# ---------------------------------------------------------------- joining


def test_indexes_made_apart_are_joined(tmp_path: Path) -> None:
    """One of 256, one in two parts of the others, and the answers of one index of all."""
    encoder, [first, *_] = tiny_encoder(), slices(corpus())
    others = {name: text for name, text in corpus().items() if name not in first}
    search.index(encoder, first, tmp_path / "a")
    given = [tmp_path / "a", parted(tmp_path, others)]
    before = [contents(path) for path in given]
    manifest = joining.join(given, encoder, tmp_path / "out")
    assert manifest.count == COUNT
    search.index(encoder, corpus(), tmp_path / "one")
    out, one = (search.open(tmp_path / name, encoder) for name in ("out", "one"))
    assert out.query(QUERIES, 1000) == one.query(QUERIES, 1000)
    assert [part.count for part in parts.read(tmp_path / "out")] == [256, 256, 188]
    updates.update(tmp_path / "a", encoder, delete=["d0"])
    updates.update(tmp_path / "out", encoder, delete=["d1"])
    assert len(search.open(tmp_path / "out", encoder).documents) == COUNT - 1
    assert contents(given[1]) == before[1]


def test_indexes_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    encoder, [first, second, _] = tiny_encoder(), slices(corpus())
    search.index(encoder, first, tmp_path / "a")
    search.index(encoder, second | {"d7": "stone"}, tmp_path / "b")
    search.index(encoder, second, tmp_path / "c", precision="int8")

    def refused(*names: str) -> str:
        with pytest.raises(UsageError) as error:
            joining.join([tmp_path / name for name in names], encoder, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    said = refused("a", "b")
    assert said == f"{tmp_path / 'b'} has a document 'd7', and so has another; an id may occur once in all indexes"
    assert "has a document 'd0', and so has another" in refused("a", "a")
    assert "part 1 has precision int8, and the first has f32" in refused("a", "c")
    assert "No such file" in refused("a", "absent")
    with pytest.raises(UsageError, match="is, holds or lies in the input"):
        joining.join([tmp_path / "a"], encoder, tmp_path / "a", force=True)


# ---------------------------------------------------------------- damage


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = parted(tmp_path)
    listed = (path / "parts.json").read_bytes()

    def refused(said: str) -> None:
        with pytest.raises(ArtifactError, match=said):
            search.open(path, tiny_encoder())

    search.index(tiny_encoder(), {"x": "stone"}, path / "part-0001", force=True, precision="int8")
    refused("part-0001 is another one than parts.json names")
    parts.write(path, {name: 1 for name in NAMES})
    refused("part 1 has precision int8, and the first has f32; all parts must be alike")
    shutil.rmtree(path / "part-0001")
    (path / "parts.json").write_bytes(listed)
    refused("part-0001 is missing")
    manifest = msgspec.json.decode(listed)
    for name in ("../one", "/etc", "part-0000/..", "part-x"):
        wrong = [manifest["parts"][0] | {"name": name}]
        (path / "parts.json").write_bytes(msgspec.json.encode(manifest | {"parts": wrong}))
        refused("which is no part of the folder")
    for wrong in ([], manifest["parts"][:1] * 2):
        (path / "parts.json").write_bytes(msgspec.json.encode(manifest | {"parts": wrong}))
        refused("names no part, or one twice")
    (path / "parts.json").write_bytes(msgspec.json.encode(manifest | {"format_version": 2}))
    refused("format version 2")


def test_a_part_by_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    path = parted(tmp_path)
    (path / "part-0001").rename(tmp_path / "elsewhere")
    (path / "part-0001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="'part-0001', which is no part of the folder"):
        search.open(path, tiny_encoder())


def test_every_file_of_every_part_is_checked(tmp_path: Path) -> None:
    path = parted(tmp_path, precision="binary")
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError):
            search.open(path, tiny_encoder())
        file.write_bytes(whole)
    with pytest.raises(UsageError, match="made by tiny, whose settings differ"):
        search.open(path, tiny_encoder(name="other"))


# ---------------------------------------------------------------- changes


def test_only_parts_that_change_are_written_anew(tmp_path: Path) -> None:
    """Two are deleted of the first part and one is replaced, which comes last; the second stays as it is."""
    path, encoder = parted(tmp_path), tiny_encoder()
    before = contents(path / "part-0001")
    manifest = updates.update(path, encoder, add={"d9": "a new stone", "new": "a cat"}, delete=["d3", "d200", "d9"])
    assert manifest.count == COUNT - 1
    left = {name: text for name, text in corpus().items() if name not in ("d3", "d200", "d9")}
    search.index(encoder, left | {"d9": "a new stone", "new": "a cat"}, tmp_path / "anew")
    found, wanted = (search.open(one, encoder).query(QUERIES, 1000) for one in (path, tmp_path / "anew"))
    assert found == wanted
    assert contents(path / "part-0001") == before
    assert [part.count for part in parts.read(path)] == [253, 256, 190]
    with pytest.raises(UsageError, match="there is a document 'd5' already"):
        updates.update(path, encoder, add={"d5": "x"})
    with pytest.raises(UsageError, match="no document 'd3' to delete"):
        updates.update(path, encoder, delete=["d3"])


def test_a_part_without_documents_is_gone(tmp_path: Path) -> None:
    path, encoder = parted(tmp_path), tiny_encoder()
    updates.update(path, encoder, delete=[f"d{number}" for number in range(EACH, 2 * EACH)])
    assert [part.name for part in parts.read(path)] == ["part-0000", "part-0002"]
    assert sorted(found.name for found in path.iterdir()) == ["part-0000", "part-0002", "parts.json"]
    [found] = search.open(path, encoder).query(["stone"], 1000)
    assert len(found) == COUNT - EACH
    updates.update(path, encoder, add={"new": "a cat"}, delete=[f"d{number}" for number in range(2 * EACH, COUNT)])
    assert [part.count for part in parts.read(path)] == [EACH, 1]
    before = contents(path)
    with pytest.raises(UsageError, match="nothing would be left of the index; delete its folder instead"):
        updates.update(path, encoder, delete=["new", *(f"d{number}" for number in range(EACH))])
    assert contents(path) == before


# ---------------------------------------------------------------- service


def test_the_service_answers_as_by_one_index_and_swaps(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    search.index(encoder, corpus(), tmp_path / "one")
    path = parted(tmp_path)
    one, many = (search.open(found, encoder) for found in (tmp_path / "one", path))
    wanted, client = Client(one), Client(many, load=lambda: Served(search.open(path, encoder)))
    for url in ("/search?q=stone+bridge&k=20", "/search?q=winter&k=500"):
        assert client(url).json()["results"] == wanted(url).json()["results"]
    assert client("/health").json()["models"]["compressed"]["documents"] == COUNT
    updates.update(path, encoder, add={"new": "the river forest river"})
    assert client.app.state.current.swap()
    assert client("/search?q=the+river+forest+river&k=1").json()["results"][0]["id"] == "new"
    assert client("/health").json()["models"]["compressed"]["documents"] == COUNT + 1


def test_a_picture_of_a_part_is_found_by_its_place_among_all(tmp_path: Path) -> None:
    """Two parts of two files each, of which the last is not there any more."""
    encoder, found = tiny_encoder(), {f"d{number}": f"stone {number}" for number in range(4)}
    files = {name: str(tmp_path / f"{name}.png") for name in found}
    for file in list(files.values())[:3]:
        Path(file).write_bytes(b"picture")
    media = documents.Media(folder=tmp_path, files=files, said={})
    for name, own in (("part-0000", ["d0", "d1"]), ("part-0001", ["d2", "d3"])):
        search.index(encoder, {one: found[one] for one in own}, tmp_path / "out" / name, media=media)
    parts.write(tmp_path / "out", {"part-0000": 2, "part-0001": 2})
    opened = search.open(tmp_path / "out", encoder)
    places = [opened.documents.path(place) for place in range(-1, 6)]
    assert places == [None, *(Path(files[f"d{number}"]).resolve() for number in range(3)), None, None, None]
    assert {hit.id: hit.position for hit in opened.query(["stone"], 4)[0]} == {f"d{place}": place for place in range(4)}
    with pytest.raises(ArtifactError, match="names document 4, and there are 4"):
        opened.documents[4]


# ---------------------------------------------------------------- command line


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(part) for part in arguments])

    file, out = written(tmp_path / "corpus.jsonl", corpus()), tmp_path / "out"
    given = ("index", "m", "--out", out, "--quiet")
    made = run(*given, "--data", file, "--documents-per-part", EACH, "--precision", "int8", "--json")
    assert json.loads(made.stdout)["documents"] == COUNT
    assert parts.are_in(out)
    again = run(*given, "--data", file, "--documents-per-part", 400, "--force")
    assert again.exit_code == 0, again.output
    assert [part.count for part in parts.read(out)] == [400, 300]
    assert run(*given, "--delete", "d399", "--delete", "d400").exit_code == 0
    assert [part.count for part in parts.read(out)] == [399, 299]
    found = json.loads(run("query", out, corpus()["d1"], "--model", "m", "--k", 3, "--json").stdout)
    assert found[0]["text"] == corpus()["d1"]
    assert run("index", "m", "--out", tmp_path / "joined", "--join", out, "--quiet").exit_code == 0
    assert contents(tmp_path / "joined" / "part-0001") == contents(out / "part-0001")
    assert "give --data to make an index, or" in str(run(*given, "--join", out, "--data", file).exception)
    tiny_collection(tmp_path / "news")
    refused = run(*given, "--data", tmp_path / "news", "--documents-per-part", 3, "--force")
    assert "--documents-per-part is for a .jsonl file, such as" in str(refused.exception)
    refused = run(*given, "--data", file, "--documents-per-part", 3, "--force", "--kind", "pgvector")
    assert "pgvector keeps all vectors in one place of its own, and cannot be in parts" in str(refused.exception)
    assert index_folder.MANIFEST not in {found.name for found in out.iterdir()}
