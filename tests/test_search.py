"""Stage 8: an index on disk that answers as the vectors do, and says clearly when it cannot."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from slimseek import plugins, search
from slimseek.errors import ArtifactError, UsageError
from slimseek.progress import shown_on
from slimseek.search import Manifest, Result
from small import CORPUS, tiny_encoder

KINDS = plugins.names("indexes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    search.index(tiny_encoder(), CORPUS, tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("kind", "precision"), [(kind, each) for kind in KINDS for each in plugins.load("indexes", kind).precisions]
)
def test_results_follow_the_vectors(kind: str, precision: Any, tmp_path: Path) -> None:
    """Ranks, scores, ids and texts are those of the inner products computed here; binary vectors are rescored."""
    encoder = tiny_encoder()
    manifest = search.index(encoder, CORPUS, tmp_path / "out", kind=kind, precision=precision)
    assert (manifest.kind, manifest.precision, manifest.dim, manifest.count) == (kind, precision, 32, 6)
    queries = ["a cat and a dog", "stone bridge"]
    found = search.open(tmp_path / "out", encoder).query(queries, k=3)
    scores = encoder.queries(queries) @ encoder.documents(list(CORPUS.values())).T
    ids = list(CORPUS)
    for row, results in enumerate(found):
        best = np.argsort(-scores[row])[:3]
        assert [result.id for result in results] == [ids[position] for position in best]
        assert [result.text for result in results] == [CORPUS[ids[position]] for position in best]
        assert [result.rank for result in results] == [1, 2, 3]
        np.testing.assert_allclose([result.score for result in results], scores[row][best], atol=0.02)


def test_a_text_finds_itself(path: Path) -> None:
    for name, text in CORPUS.items():
        [[result]] = search.open(path, tiny_encoder()).query([text], k=1)
        assert result == Result(id=name, score=result.score, text=text, rank=1)
        assert result.score == pytest.approx(1, abs=1e-5)


def test_queries_get_the_query_prefix(tmp_path: Path) -> None:
    encoder = tiny_encoder(query_prefix="winter ")
    search.index(encoder, CORPUS, tmp_path / "out")
    [[result]] = search.open(tmp_path / "out", encoder).query(["apple trees in."], k=1)
    assert result.id == "d5"
    assert result.score == pytest.approx(1, abs=1e-5)


def test_more_hits_than_documents(path: Path) -> None:
    [results] = search.open(path, tiny_encoder()).query(["river"], k=1000)
    assert sorted(result.id for result in results) == sorted(CORPUS)
    assert [result.rank for result in results] == [1, 2, 3, 4, 5, 6]


def test_no_queries(path: Path) -> None:
    assert search.open(path, tiny_encoder()).query([]) == []


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_out_of_range(path: Path, k: int) -> None:
    with pytest.raises(UsageError, match=f"k is {k}; it must be from 1 to 1000"):
        search.open(path, tiny_encoder()).query(["cat"], k)


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_empty_query(path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="text 2 of 2 is empty"):
        search.open(path, tiny_encoder()).query(["cat", text])


def test_texts_of_any_script_come_back_unchanged(tmp_path: Path) -> None:
    corpus = {"ä/1": "Füße\nund \u2028 \x00 <b>Zeichen</b>", "二": "河边的猫 \U0001f408", "\\n": 'quote " and \\'}
    search.index(tiny_encoder(), corpus, tmp_path / "out")
    [results] = search.open(tmp_path / "out", tiny_encoder()).query(["cat"], k=3)
    assert {result.id: result.text for result in results} == corpus


def test_answer_is_timed(path: Path) -> None:
    answer = search.open(path, tiny_encoder()).answer(["river", "stone"], k=2)
    assert [len(results) for results in answer.results] == [2, 2]
    assert answer.encode_milliseconds > 0
    assert answer.search_milliseconds > 0


def test_stats(path: Path) -> None:
    stats = search.open(path, tiny_encoder()).stats()
    assert (stats.model, stats.runtime, stats.threads, stats.documents, stats.dim) == ("tiny", "numpy", 1, 6, 32)
    assert (stats.kind, stats.precision) == ("exact", "f32")
    assert stats.model_bytes == 512 * 32 * 4 + 2000
    assert stats.index_bytes == sum(file.stat().st_size for file in (path / "index").iterdir())


class TestRescore:
    """Finer vectors on disk rank what a compact index finds."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("rescore", ["f32", "f16", "int8"])
    def test_scores_are_those_of_the_finer_vectors(self, kind: str, rescore: Any, tmp_path: Path) -> None:
        """Four times three candidates are all six documents, so that the answer is that of an index of finer ones."""
        encoder, queries = tiny_encoder(), ["a cat and a dog", "stone bridge", "winter"]
        search.index(encoder, CORPUS, tmp_path / "out", kind=kind, precision="binary", rescore=rescore)
        search.index(encoder, CORPUS, tmp_path / "finer", precision=rescore)
        found = search.open(tmp_path / "out", encoder).query(queries, k=3)
        assert found == search.open(tmp_path / "finer", encoder).query(queries, k=3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_only_the_candidates_are_ranked(self, kind: str, tmp_path: Path) -> None:
        """60 documents, oversampled twice: the best by inner product among the twenty that the index itself finds."""
        encoder = tiny_encoder()
        corpus = {str(number): f"{list(CORPUS.values())[number % 6]} text {number * 37}" for number in range(60)}
        given = {"kind": kind, "precision": "binary"}
        search.index(encoder, corpus, tmp_path / "out", rescore="f32", oversample=2, **given)  # type: ignore[arg-type]
        search.index(encoder, corpus, tmp_path / "alone", rescore="none", **given)  # type: ignore[arg-type]
        text = "a cat near the river"
        [candidates] = search.open(tmp_path / "alone", encoder).query([text], k=20)
        [found] = search.open(tmp_path / "out", encoder).query([text], k=10)
        scores = encoder.documents([document.text for document in candidates]) @ encoder.queries([text])[0]
        best = np.argsort(-scores, kind="stable")[:10]
        assert [result.id for result in found] == [candidates[position].id for position in best]
        np.testing.assert_allclose([result.score for result in found], scores[best], atol=1e-6)
        assert {result.id for result in found} != {result.id for result in candidates[:10]}

    def test_equal_documents_stand_in_order(self, tmp_path: Path) -> None:
        corpus = {str(number): CORPUS["d1" if number % 2 else "d2"] for number in range(40)}
        search.index(tiny_encoder(), corpus, tmp_path / "out", precision="binary")
        [found] = search.open(tmp_path / "out", tiny_encoder()).query([CORPUS["d1"]], k=9)
        assert [result.id for result in found] == [str(number) for number in range(1, 19, 2)]

    @pytest.mark.parametrize(
        ("precision", "rescore", "finer"),
        [("binary", "auto", "int8"), ("int8", "auto", None), ("f32", "auto", None), ("int8", "f16", "f16"),
         ("binary", "none", None)],
    )  # fmt: skip
    def test_bytes_in_memory_and_on_disk(self, precision: Any, rescore: Any, finer: str | None, tmp_path: Path) -> None:
        """What is read at every query and what stays on disk are counted apart; finer vectors are mapped, not read."""
        manifest = search.index(tiny_encoder(), CORPUS, tmp_path / "out", precision=precision, rescore=rescore)
        opened = search.open(tmp_path / "out", tiny_encoder())
        stats = opened.stats()
        assert (stats.rescore, stats.index_bytes, stats.rescore_bytes) == (
            finer,
            sum(file.stat().st_size for file in (tmp_path / "out" / "index").iterdir()),
            sum(file.stat().st_size for file in (tmp_path / "out").glob("rescore/*")),
        )
        assert manifest.oversample == 4
        assert (opened.finer is None) == (finer is None) == (stats.rescore_bytes == 0)
        if opened.finer is not None:
            assert isinstance(opened.finer.kept, np.memmap)
            assert opened.finer.kept.shape == (6, 32)

    def test_senseless_settings_are_refused_before_any_work(self, tmp_path: Path) -> None:
        for precision, rescore in (("f32", "f32"), ("f16", "int8"), ("int8", "int8")):
            with pytest.raises(UsageError, match=f"rescore {rescore} is no finer than the index's {precision}"):
                search.index(tiny_encoder(), CORPUS, tmp_path / "out", precision=precision, rescore=rescore)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="unknown rescore 'binary'; known: auto, none, f32, f16, int8"):
            search.index(tiny_encoder(), CORPUS, tmp_path / "out", rescore="binary")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="oversample is 0; it must be 1 or more"):
            search.index(tiny_encoder(), CORPUS, tmp_path / "out", precision="binary", oversample=0)
        assert not list(tmp_path.iterdir())


def test_an_index_of_version_1_is_read(path: Path) -> None:
    """Its manifest knows nothing of rescoring."""
    expected = search.open(path, tiny_encoder()).query(["cat", "stone"], k=4)
    manifest = msgspec.json.decode((path / "index.json").read_bytes())
    for name in ("rescore", "rescore_bytes", "oversample"):
        del manifest[name]
    (path / "index.json").write_bytes(msgspec.json.encode(manifest | {"format_version": 1}))
    opened = search.open(path, tiny_encoder())
    assert opened.query(["cat", "stone"], k=4) == expected
    assert opened.stats().rescore is None


def test_indexing_twice_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    search.index(tiny_encoder(), CORPUS, tmp_path / "again")
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    assert len(files) == 5
    for file in files:
        assert (path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_progress_sees_every_document(tmp_path: Path) -> None:
    corpus = {str(number): f"text {number}" for number in range(600)}
    shown = io.StringIO()
    with shown_on(Console(file=shown, width=200)):
        search.index(tiny_encoder(), corpus, tmp_path / "out")
    assert "encode documents, tiny: 600 in" in shown.getvalue()
    [[result]] = search.open(tmp_path / "out", tiny_encoder()).query(["text 599"], k=1)
    assert result.id == "599"


class TestRefusals:
    def test_no_documents(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no documents"):
            search.index(tiny_encoder(), {}, tmp_path / "out")

    def test_unknown_kind_or_precision_before_any_work(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown index 'annoy'; known: exact"):
            search.index(tiny_encoder(), CORPUS, tmp_path / "out", kind="annoy")
        with pytest.raises(UsageError, match="precision 'int4'"):
            search.index(tiny_encoder(), CORPUS, tmp_path / "out", precision="int4")  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())

    def test_a_taken_folder_needs_force(self, path: Path) -> None:
        with pytest.raises(UsageError, match="not empty"):
            search.index(tiny_encoder(), CORPUS, path)
        search.index(tiny_encoder(), {"only": "a new stone"}, path, force=True)
        assert search.open(path, tiny_encoder()).stats().documents == 1

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        def broken(batch: Any) -> Any:
            raise RuntimeError("the model broke")

        with pytest.raises(RuntimeError):
            search.index(dataclasses.replace(tiny_encoder(), encode=broken), CORPUS, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_another_dim(self, path: Path) -> None:
        with pytest.raises(UsageError, match="32 dimensions by tiny, and narrow gives 16"):
            search.open(path, tiny_encoder(name="narrow", dim=16))

    def test_another_encoder(self, path: Path) -> None:
        with pytest.raises(UsageError, match="made by tiny, whose settings differ from those of other"):
            search.open(path, tiny_encoder(name="other"))
        with pytest.raises(UsageError, match="made by tiny"):
            search.open(path, tiny_encoder(query_prefix="query: "))

    def test_the_same_name_with_other_weights(self, path: Path) -> None:
        """As after compressing anew into the same folder; what only rounds otherwise is let through."""
        with pytest.raises(UsageError, match=r"other vectors than tiny gives now: cosine 0\.9\d+ .*index again"):
            search.open(path, tiny_encoder(noise=0.3))
        search.open(path, tiny_encoder(noise=0.001))

    def test_every_file_is_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "index"
        search.index(tiny_encoder(), CORPUS, path, precision="binary")
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            whole = file.read_bytes()
            changed = bytearray(whole)
            changed[-3] ^= 1
            for content in (whole[:-1], bytes(changed)):
                file.write_bytes(content)
                with pytest.raises(ArtifactError):
                    search.open(path, tiny_encoder())
            file.write_bytes(whole)
        search.open(path, tiny_encoder())

    def test_no_index_there(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"index\.json: No such file"):
            search.open(tmp_path, tiny_encoder())

    def test_a_newer_version(self, path: Path) -> None:
        manifest = msgspec.json.decode((path / "index.json").read_bytes(), type=Manifest)
        newer = msgspec.structs.replace(manifest, format_version=3)
        (path / "index.json").write_bytes(msgspec.json.encode(newer))
        with pytest.raises(ArtifactError, match="format version 3"):
            search.open(path, tiny_encoder())

    def test_a_manifest_that_counts_wrong(self, path: Path) -> None:
        manifest = msgspec.json.decode((path / "index.json").read_bytes(), type=Manifest)
        wrong = msgspec.structs.replace(manifest, count=5)
        (path / "index.json").write_bytes(msgspec.json.encode(wrong))
        with pytest.raises(ArtifactError, match=r"offsets\.npy does not fit"):
            search.open(path, tiny_encoder())


def test_rank_is_exact() -> None:
    """By hand: the query (1, 2) scores 1, 2, 3, 3 with these documents; of the equal ones the first comes first."""
    documents = np.array([[1, 0], [0, 1], [1, 1], [1, 1]], np.float32)
    hits = search.rank(np.array([[1, 2]], np.float32), documents, 5)
    assert hits.ids.tolist() == [[2, 3, 1, 0, -1]]
    assert hits.scores.tolist() == [[3, 3, 2, 1, -np.inf]]
