"""The mode that keeps an index: queries alone are compressed, judged and proven against the original's vectors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, compress, data, deploy, kept, pipeline, prove, search
from slimseek.errors import UsageError
from slimseek.schema import Gates, Model, Recipe, RecipeStep, Samples
from small import CORPUS, tiny_bert, tiny_collection, tiny_encoder

INT8 = RecipeStep(method="quantize.weights_int", parameters={"bits": 8})
NARROW = RecipeStep(method="simplify.output_dim", parameters={"dim": 8})


def recipe(*steps: RecipeStep, metric: str = "ndcg@10", **fields: str) -> Recipe:
    return Recipe(steps=steps, gates=Gates(metric=metric, max_loss=0.5), **fields)


OPTIONS = prove.Options(threads=1, keep_index=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its index of a tiny collection, the artifact that keeps it, and that deployed."""
    path = tmp_path_factory.mktemp("home")
    tiny_bert(path / "model")
    tiny_bert(path / "other", seed=1)
    tiny_bert(path / "narrow", width=16)
    tiny_collection(path / "collection")
    search.index(choose.choose(path / "model", 1), CORPUS, path / "index")
    search.index(choose.choose(path / "other", 1), CORPUS, path / "index of other")
    pipeline.compress(path / "model", path / "collection", recipe(INT8), path / "artifact", OPTIONS)
    pipeline.deploy_on(path / "artifact", "onnxruntime", path / "served", threads=1)
    return path


# ---------------------------------------------------------------- judged by queries alone


def test_the_original_finds_all_of_its_own_and_a_twin_a_share() -> None:
    """A twin with noise: its first ten, of the original's vectors, by a loop over sets."""
    texts = {f"d{number}": f"{text} {number}" for number, text in enumerate([*CORPUS.values()] * 8)}
    judged = data.SearchSet(name="set", queries=dict(texts), corpus=texts, qrels={name: {name: 1} for name in texts})
    original, twin = tiny_encoder(), tiny_encoder(noise=0.7)
    first = kept.original(original, judged, ["recall@10", "mrr@10"])
    assert first.get("recall@10").per_query == (1.0,) * len(texts)
    assert [measurement.name for measurement in first.measurements] == ["recall@10", "mrr@10"]
    found = kept.quality(twin, judged, first, ["mrr@10", "recall@10"])
    scores = twin.queries(list(texts.values())).astype(np.float64) @ first.documents.T
    own = first.queries.astype(np.float64) @ first.documents.T
    nearest, wanted = (np.argsort(-one.astype(np.float32), axis=1, kind="stable")[:, :10] for one in (scores, own))
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(nearest, wanted, strict=True)]
    assert found.get("recall@10").per_query == pytest.approx(shares)
    assert 0.1 < found.get("recall@10").value < 0.95
    assert found.get("mrr@10").value == pytest.approx(
        np.mean([1 / (list(row).index(place) + 1) if place in row else 0 for place, row in enumerate(nearest)])
    )


def judging(home: Path) -> tuple[Model, Samples, compress.Judge]:
    """The model, what steps may see, and who judges them by what the model finds."""
    model = choose.model(home / "model")
    collection = data.load(str(home / "collection"))
    splits = data.split(collection)
    dev = data.search_set(collection, splits.dev, "dev")
    judge = compress.Judge(
        search_set=dev, original=kept.original(choose.encoder(model, "original", 1), dev, ["recall@10"]), threads=1,
        keep_index=True,
    )  # fmt: skip
    return model, data.samples(collection, splits), judge


def test_documents_are_encoded_once_by_the_original(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of the steps asks the compressed model for queries alone, but for the texts of its invariance."""
    model, samples, judge = judging(home)
    asked = []
    documents = choose.Encoder.documents

    def count(self: choose.Encoder, items: list[str], *rest: object) -> object:
        asked.append(len(items))
        return documents(self, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(choose.Encoder, "documents", count)
    done = compress.run(model, recipe(INT8, metric="recall@10"), samples, judge)
    texts = min(compress.INVARIANCE_TEXTS, len(samples.calibration))
    assert asked == [texts, *[1] * texts]
    [record] = done.records
    assert record.quality is not None
    assert (record.quality.metric, record.quality.before) == ("recall@10", 1.0)


def test_queries_come_first_in_the_calibration(home: Path) -> None:
    collection = data.load(str(home / "collection"))
    splits = data.split(collection)
    first, mixed = (data.samples(collection, splits, count=8, queries_first=first) for first in (True, False))
    assert set(first.calibration) <= set(first.queries)
    assert len(first.calibration) == len(mixed.calibration) == 8
    assert len(set(mixed.calibration) & set(CORPUS.values())) == 4
    assert first.texts == mixed.texts
    many = data.samples(collection, splits, count=16, queries_first=True)
    assert set(many.queries) <= set(many.calibration), "documents fill up"
    assert len(many.calibration) == 16


# ---------------------------------------------------------------- the proof


def test_the_proof_is_against_the_original(home: Path) -> None:
    """Recall@10 of what the original finds is the gate's; judged metrics stand beside it; the notes say so."""
    report = choose.report_of(home / "artifact")
    assert [change.metric for change in report.changes][:2] == ["recall@10", "ndcg@10"]
    assert report.changes[0].before == 1.0
    assert report.changes[0].after == 1.0, "six documents: each is among the first ten"
    assert report.notes[0].startswith("The index is kept: only queries are encoded by the compressed model")
    for subject in (report.original, report.compressed):
        size = subject.get("index_size")
        assert size is not None
        assert size.value == len(CORPUS) * 32 * 4


def test_a_metric_that_was_named_is_kept(home: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, metric="ndcg@10")
    found = pipeline.compress(home / "model", home / "collection", recipe(INT8), tmp_path / "out", options)
    assert found.changes[0].metric == "ndcg@10"
    assert kept.gates(Gates(max_loss=0.1), "") == Gates(metric="recall@10", max_loss=0.1)
    assert kept.gates(Gates(metric="mrr@10"), "") == Gates(metric="mrr@10")


def test_vectors_at_a_precision_are_the_compressed_models(home: Path, tmp_path: Path) -> None:
    options = prove.Options(threads=1, precision="binary")
    found = pipeline.compress(home / "model", home / "collection", recipe(INT8), tmp_path / "out", options)
    sizes = [
        {name: one.value for name in ("index_size", "rescore_size") if (one := subject.get(name)) is not None}
        for subject in (found.original, found.compressed)
    ]
    assert sizes == [{"index_size": 6 * 128}, {"index_size": 6 * 4 + 256, "rescore_size": 6 * 32 + 256}]
    assert found.notes[0] == ("The index of the compressed model keeps vectors at binary, and int8 vectors on disk "
                              "rank what it finds; that of model at float32.")  # fmt: skip


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("steps", "fields", "words"),
    [
        ((INT8, NARROW), {}, "simplify.output_dim: the index that is kept holds vectors of 32 dimensions"),
        (
            (INT8,),
            {"student": "narrow"},
            "vectors of 16 dimensions cannot search the index that is kept, which holds 32",
        ),
        ((INT8,), {"student": "other"}, "has vectors of its own, which no index of the original holds"),
    ],
)
def test_what_cannot_search_the_index_is_refused_before_any_work(
    home: Path, tmp_path: Path, steps: tuple[RecipeStep, ...], fields: dict[str, str], words: str
) -> None:
    given = {name: str(home / value) for name, value in fields.items()}
    with pytest.raises(UsageError, match=words):
        pipeline.compress(home / "model", home / "collection", recipe(*steps, **given), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_step_that_changes_the_width_is_refused_by_its_name(home: Path) -> None:
    model, samples, judge = judging(home)
    with pytest.raises(UsageError, match=r"simplify\.output_dim: vectors of 8 dimensions cannot search"):
        compress.run(model, recipe(NARROW, metric="recall@10"), samples, judge)


def test_vectors_of_any_length_do_not_stand_for_those_of_length_one() -> None:
    spec = tiny_encoder().spec
    with pytest.raises(
        UsageError, match="step: vectors of any length cannot stand for the original's vectors of length"
    ):
        kept.check_space("step", msgspec.structs.replace(spec, normalised=False), spec)


def test_classes_have_no_index_to_keep(home: Path) -> None:
    model = choose.model(home / "model")
    with pytest.raises(UsageError, match="kept for a search of texts"):
        kept.check(model, model, recipe(INT8), labelled=True)


# ---------------------------------------------------------------- the index of the original


def test_the_artifact_says_whose_index_it_searches(home: Path) -> None:
    manifest = json.loads((home / "artifact" / artifact.MANIFEST).read_text())
    assert manifest["index_of"]["model"] == "model"
    assert len(manifest["index_of"]["fingerprint"]) == 64
    probe = choose.choose(home / "model", 1).documents([kept.PROBE_TEXT])[0]
    np.testing.assert_allclose(manifest["index_of"]["probe"], probe, atol=1e-6)
    assert choose.index_of(home / "served") == choose.index_of(home / "artifact") is not None
    assert choose.index_of(home / "model") is None


@pytest.mark.parametrize("place", ["artifact", "served"])
def test_artifact_and_package_search_the_index_of_the_original(home: Path, place: str) -> None:
    """What is found is what the artifact's queries find among the original's vectors."""
    encoder = choose.choose(home / place, 1)
    queries = [*CORPUS.values(), "the cat and the river"]
    results = search.open(home / "index", encoder).query(queries, 6)
    documents = choose.choose(home / "model", 1).documents(list(CORPUS.values()))
    order = np.argsort(-(encoder.queries(queries) @ documents.T), axis=1, kind="stable")
    assert [[result.id for result in row] for row in results] == [
        [list(CORPUS)[position] for position in row] for row in order
    ]


@pytest.mark.parametrize("place", ["artifact", "served"])
def test_the_index_of_another_model_is_refused(home: Path, place: str) -> None:
    with pytest.raises(UsageError, match="was not made by model, whose index"):
        search.open(home / "index of other", choose.choose(home / place, 1))


def test_an_index_that_a_package_of_the_original_made_is_taken(home: Path, tmp_path: Path) -> None:
    """It has another name and runs elsewhere; its vectors are the original's."""
    deploy.deploy(home / "model", "onnxruntime", tmp_path / "package", threads=1)
    search.index(choose.choose(tmp_path / "package", 1), CORPUS, tmp_path / "index")
    assert search.open(tmp_path / "index", choose.choose(home / "artifact", 1)).query(["a cat"], 3)


def test_an_index_of_the_compressed_model_is_not_the_originals(home: Path, tmp_path: Path) -> None:
    """The same artifact without the mark makes an index, whose vectors are not the original's: 4 bits move them."""
    four = RecipeStep(method="quantize.weights_int", parameters={"bits": 4})
    pipeline.compress(home / "model", home / "collection", recipe(four), tmp_path / "model", prove.Options(threads=1))
    search.index(choose.choose(tmp_path / "model", 1), CORPUS, tmp_path / "index")
    with pytest.raises(UsageError, match="was not made by model"):
        search.open(tmp_path / "index", choose.choose(home / "artifact", 1))


def test_documents_are_not_encoded_by_a_model_of_queries(home: Path, tmp_path: Path) -> None:
    for place in ("artifact", "served"):
        with pytest.raises(UsageError, match=f"{place} encodes queries alone, for an index of model"):
            search.session(choose.choose(home / place, 1), CORPUS)
    assert search.session(choose.choose(home / "served", 1), {}, str(home / "index")).query(["a cat"], 2)
