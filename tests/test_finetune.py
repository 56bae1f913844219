"""Fine-tuning on judged queries and on labels: what is trained on, what comes of it, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, cli, compress, data, evaluate, pipeline, plugins
from slimseek import recipe as recipes
from slimseek.collection import Collection
from slimseek.errors import NoEffect, UsageError
from slimseek.measurement import Comparison
from slimseek.methods import _blocks as blocks
from slimseek.prove import Options
from slimseek.rebuild import rebuild
from slimseek.schema import Gates, Model, ModelSpec, QuantizedTensor, Recipe, RecipeStep, Samples
from slimseek.training import finetune, pairs, tasks, train
from slimseek.training.settings import Settings
from slimseek.training.train import Training
from small import CORPUS, WORDS, packaged, tiny_bert, tiny_encoder, tiny_model

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
QUICK = Training(steps=100, batch_size=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with one of five words each, and queries with another that stands for it: nothing to see but learn."""
    noise = ["".join(letters) for letters in itertools.permutations("abcdefgh", 3)]
    random.Random(0).shuffle(noise)

    def text(word: str) -> str:
        return f"{word} {noise.pop()}"

    path = tmp_path_factory.mktemp("judged") / "collection"
    (path / "qrels").mkdir(parents=True)
    topics = list(zip(WORDS[:5], WORDS[5:], strict=True))
    documents = {f"{word}-{number}": text(word) for word, _ in topics for number in range(4)}
    queries = {f"{split}-{word}-{number}": text(other) for word, other in topics
               for split, count in (("train", 6), ("dev", 3), ("test", 2)) for number in range(count)}  # fmt: skip
    for name, items in (("corpus", documents), ("queries", queries)):
        lines = [msgspec.json.encode({"_id": key, "text": value}).decode() for key, value in items.items()]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split in ("train", "dev", "test"):
        lines = [f"{query}\t{query.split('-')[1]}-{number}\t1" for query in queries if query.startswith(split)
                 for number in range(4)]  # fmt: skip
        (path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five words each; an animal is in it or not, an apple never."""
    generator = random.Random(0)
    lines = []
    for number in range(240):
        words = generator.sample([word for word in WORDS if word not in ("apple", "cat", "dog")], 5)
        if number % 2:
            words[generator.randrange(5)] = generator.choice(("cat", "dog"))
        lines.append(f"{' '.join(words)}\t{'animal' if number % 2 else 'thing'}")
    path = tmp_path_factory.mktemp("labelled") / "toy"
    path.mkdir()
    (path / "data.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return path


# ---------------------------------------------------------------- what is trained on


def collection(**changes: Any) -> Collection:
    """Two train queries that are not judged by, and others that are, or read like one."""
    queries = {
        "t1": "cat river",
        "t2": "dog winter",
        "t3": "stone",
        "t4": "",
        "d1": "apple",
        "s1": "stone",
        "s2": "cat",
    }
    corpus = {**CORPUS, "twin": CORPUS["d1"], "empty": ""}
    train = {"t1": {"d1": 1, "d6": 1, "d2": 0}, "t2": {"d2": 2, "twin": 1}, "t3": {"d3": 1}, "t4": {"d4": 1}}
    qrels = {"train": train, "dev": {"d1": {"d5": 1}}, "test": {"s1": {"d3": 1}, "s2": {"d1": 1}}}
    given = {"name": "x", "path": "x", "corpus": corpus, "queries": queries, "qrels": qrels}
    return Collection(**{**given, **changes})


def test_no_query_that_judges_or_reads_like_one_is_trained_on() -> None:
    found = collection()
    assert list(tasks.trainable(found, data.split(found))) == ["t1", "t2"], "t3 reads like a test query, t4 is empty"
    train = found.qrels["train"]
    without = dataclasses.replace(found, qrels={"train": train, "test": found.qrels["test"]})
    splits = data.split(without)
    assert set(splits.dev) <= set(train), "dev queries are taken from the train queries"
    with pytest.raises(UsageError, match="x has no train queries but those that are judged by"):
        tasks.trainable(without, splits)


def test_hard_negatives_are_what_is_found_and_never_relevant() -> None:
    found = collection()
    qrels = tasks.trainable(found, data.split(found))
    encoder = tiny_encoder()
    negatives = pairs.hard_negatives(encoder, found, qrels, Settings())
    assert set(negatives["t1"]) == {"d2", "d3", "d4", "d5"}, "nor the twin of a relevant text, nor an empty one"
    assert set(negatives["t2"]) == {"d3", "d4", "d5", "d6"}
    for query, documents in negatives.items():
        vectors = encoder.documents([found.corpus[document] for document in documents])
        scores = vectors @ encoder.queries([found.queries[query]])[0]
        assert scores.tolist() == sorted(scores.tolist(), reverse=True), "the nearest first"


def test_a_batch_holds_queries_passages_and_what_counts_as_relevant(tiny: Path) -> None:
    """Of each query its own passage; another relevant one, and a twin, are marked and so no negatives."""
    model, found = choose.model(tiny), collection()
    settings = Settings(hard_negatives=2, training=Training(steps=20, batch_size=3))
    task = tasks.task(model, found, data.split(found), settings, 1)
    assert (task.name, task.items, len(task.examples.train)) == ("contrastive", 4, 20)
    read: Any = choose.encoder(model, "x", 1).input
    ids = {tuple(row): document for document, row in zip(CORPUS, read.rows(list(CORPUS.values())), strict=True)}
    asked = {tuple(read.rows([found.queries[query]])[0]): query for query in ("t1", "t2")}
    seen = set()
    for number, (batch, target) in enumerate(task.examples.train):
        assert isinstance(target, dict)
        rows = [tuple(row[mask == 1].tolist())
                for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
        queries, passages = [asked[row] for row in rows[:3]], [ids[row] for row in rows[3:]]
        assert target["relevant"].shape == (3, len(passages))
        for query, own, marked in zip(queries, target["positive"], target["relevant"], strict=True):
            relevant = {"t1": {"d1", "d6"}, "t2": {"d2", "d1"}}[query]  # the twin of d1 reads as d1
            assert passages[own] in relevant, (query, passages, own)
            assert [passage in relevant for passage in passages] == marked.tolist()
            seen.add((query, passages[own]))
        again, same = task.examples.train[number]
        assert all(np.array_equal(batch[name], again[name]) for name in batch), "a batch is the same again"
        assert np.array_equal(target["relevant"], same["relevant"])
    assert seen == {("t1", "d1"), ("t1", "d6"), ("t2", "d2"), ("t2", "d1")}


def test_a_teachers_margins_are_of_the_same_query_and_passages(tiny: Path) -> None:
    model, found = choose.model(tiny), collection()
    settings = Settings(loss="margin_mse", teacher=str(tiny), training=Training(steps=8, batch_size=2))
    task = tasks.task(model, found, data.split(found), settings, 1)
    run = choose.family(model).run(model, 1)
    for batch, target in task.examples.train:
        assert isinstance(target, dict)
        vectors = run(batch)
        query, positive, negative = (vectors[target[name]] for name in ("query", "positive", "negative"))
        assert np.allclose((query * (positive - negative)).sum(1), target["margin"], atol=1e-5)
        assert len(target["margin"]) == 2
        assert np.abs(target["margin"]).max() > 1e-4


# ---------------------------------------------------------------- the search


def test_fine_tuning_finds_more_for_queries_that_it_has_not_seen(tiny: Path, judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    result = pipeline.train(tiny, judged, out, Settings(training=QUICK), threads=1)
    assert (result.loss, result.items, result.after.name) == ("contrastive", 120, "ndcg@10")
    assert result.before.value < 0.6
    assert result.after.value > 0.9
    assert result.change.relative == pytest.approx(result.after.value / result.before.value - 1)
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json", "model", "tuned.json", "weights.safetensors",
    ]  # fmt: skip
    found = data.load(str(judged))
    dev = data.search_set(found, found.qrels["dev"], "dev")
    for model, measured in ((tiny, result.before), (out, result.after)):
        score = evaluate.quality(choose.choose(model, 1), dev, ["ndcg@10"]).get("ndcg@10")
        assert score.value == pytest.approx(measured.value), "as every verb measures it"
    assert msgspec.json.decode((out / "tuned.json").read_bytes(), type=finetune.Tuned) == result
    with pytest.raises(UsageError, match="is not empty"):
        pipeline.train(tiny, judged, out, Settings(training=QUICK), threads=1)


def test_the_command_prints_a_table_or_json(
    tiny: Path, judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tiny), "--data", str(judged), "--steps", "40", "--learning-rate", "2e-3", "--threads", "1",
               "--batch-size", "4", "--accumulate", "2", "--hard-negatives", "2", "--seed", "3", "--quiet"]  # fmt: skip
    cli.app([*command, "--out", str(tmp_path / "one")], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "tiny, fine-tuned by contrastive: collection, dev" in shown
    assert "nDCG@10" in shown
    assert "items, steps" in shown
    cli.app([*command, "--out", str(tmp_path / "two"), "--json"], standalone_mode=False)
    found = msgspec.json.decode(capsys.readouterr().out, type=finetune.Tuned)
    assert (found.items, found.steps) == (120, 40)
    settings = Settings(
        hard_negatives=2, training=Training(steps=40, learning_rate=2e-3, batch_size=4, accumulate=2, seed=3)
    )
    assert pipeline.train(tiny, judged, tmp_path / "three", settings, threads=1).after == found.after
    with pytest.raises(UsageError, match="precision is 'half'"):
        cli.app([*command, "--out", str(tmp_path / "four"), "--precision", "half"], standalone_mode=False)


def test_a_smaller_model_learns_a_teachers_margins(tiny: Path, judged: Path, tmp_path: Path) -> None:
    """The teacher is the model after contrastive training."""
    teacher = tmp_path / "teacher"
    taught = pipeline.train(tiny, judged, teacher, Settings(training=QUICK), threads=1)
    settings = Settings(loss="margin_mse", teacher=str(teacher), hard_negatives=3, training=QUICK)
    result = pipeline.train(tiny, judged, tmp_path / "student", settings, threads=1)
    assert result.loss == "margin_mse"
    assert result.after.value > result.before.value + 0.5 * (taught.after.value - taught.before.value)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [3, 11])
def test_a_killed_fine_tuning_goes_on_to_the_same_bits(
    tiny: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 4)
    settings = Settings(training=Training(steps=16, batch_size=3, accumulate=2, learning_rate=3e-3))
    whole, out = tmp_path / "whole", tmp_path / "killed"
    expected = pipeline.train(tiny, judged, whole, settings, threads=1)
    calls, step = itertools.count(), train._step_

    def dying(*given: Any) -> None:
        if next(calls) == after:
            raise Killed
        step(*given)

    monkeypatch.setattr(train, "_step_", dying)
    with pytest.raises(Killed):
        pipeline.train(tiny, judged, out, settings, threads=1)
    assert (out / finetune.CHECKPOINT).is_file() == (after > 4)
    other = msgspec.structs.replace(settings, hard_negatives=2)
    with pytest.raises(UsageError, match="holds an unfinished training with another settings; choose another --out"):
        pipeline.train(tiny, judged, out, other, threads=1)
    done = next(calls)
    result = pipeline.train(tiny, judged, out, settings, threads=1)
    assert next(calls) - done - 1 == 16 - after // 4 * 4, "what was done is not done again"
    assert (result.before, result.after, result.change) == (expected.before, expected.after, expected.change)
    files = [{entry.path: entry.sha256 for entry in artifact.read(path)[0].files if entry.path != "tuned.json"}
             for path in (whole, out)]  # fmt: skip
    assert files[0] == files[1]
    assert not (out / finetune.CHECKPOINT).exists()


def test_what_cannot_be_fine_tuned_is_refused_in_a_line(
    tiny: Path, judged: Path, labelled: Path, tmp_path: Path
) -> None:
    for settings, source, place, reason in (
        ({"loss": "cross_entropy"}, tiny, judged, "has judged queries; contrastive, margin_mse is allowed"),
        ({"loss": "contrastive"}, tiny, labelled, "has labels; cross_entropy, normalised_softmax is allowed"),
        ({"metric": "no"}, tiny, judged, "unknown metric 'no'"),
    ):
        with pytest.raises(UsageError, match=reason) as error:
            pipeline.train(source, place, tmp_path / "out", Settings(training=QUICK, **settings), threads=1)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
    for wrong, reason in (
        (
            {"loss": "cosine"},
            "loss is 'cosine'; contrastive, cross_entropy, ctc, margin_mse, normalised_softmax, transcript are allowed",
        ),
        ({"loss": "margin_mse"}, "needs a teacher"),
        ({"teacher": "minilm"}, "no other loss takes one"),
        ({"hard_negatives": -1}, "hard_negatives is -1"),
        ({"hard_negatives": 0, "training": Training(batch_size=1)}, "nothing to tell apart"),
    ):
        with pytest.raises(UsageError, match=reason):
            Settings(**wrong)
    quantized = plugins.load("methods", "quantize.weights_int")().apply(
        choose.model(tiny), Samples(calibration=[], texts=[])
    )
    with pytest.raises(UsageError, match=r"train: transformer\..* is quantized"):
        finetune._check_float(quantized)


def test_a_training_that_helps_nothing_writes_nothing(tiny: Path, judged: Path, tmp_path: Path) -> None:
    settings = Settings(training=Training(steps=1, batch_size=2, learning_rate=1e-12))
    with pytest.raises(NoEffect, match="no state of 1 steps was better"):
        pipeline.train(tiny, judged, tmp_path / "out", settings, threads=1)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- labels


def test_a_quote_is_a_letter_like_others_in_tsv_and_quotes_in_csv(tmp_path: Path) -> None:
    """CASES A1."""
    (tmp_path / "data.tsv").write_text('source\tlabel\ttext\na\t1\t"Good, they said\nb\t0\tA 5" screen\nc\t1\tfine\n')
    found = data.load(str(tmp_path))
    assert found.labelled
    assert list(found.queries.values()) == ['"Good, they said', 'A 5" screen', "fine"]
    assert found.corpus == {"0": "0", "1": "1"}
    (tmp_path / "test.csv").write_text('label,text\nyes,"one, ""two""\nthree"\nno,"four"\n')
    assert list(data.load(str(tmp_path / "test.csv")).queries.values()) == ['one, "two" three', "four"]
    (tmp_path / "test.csv").write_text('label,text\nyes,one\nno,"four\nyes,five\n')
    with pytest.raises(UsageError, match="is a quote not closed"):
        data.load(str(tmp_path / "test.csv"))
    (tmp_path / "test.csv").write_text("label,text\nyes,one\nno\n")
    with pytest.raises(UsageError, match="line 3: 1 columns; label, text are expected"):
        data.load(str(tmp_path / "test.csv"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_every_line_of_real_labelled_files_is_a_row() -> None:
    """CASES A1: 3,001 lines are a header and 3,000 rows; Python's csv reader finds 2,749 of them."""
    found = data.load(str(SHARED / "uci_sentiment3k"))
    assert len(found.queries) == 3000
    assert sum(len(judged) for judged in found.qrels.values()) == 3000
    texts = [{found.queries[query] for query in found.qrels[split]} for split in ("train", "dev", "test")]
    assert all(not one & other for one, other in itertools.combinations(texts, 2)), "no text lies in two splits"
    assert [round(len(found.qrels[split]) / 300) for split in ("train", "dev", "test")] == [8, 1, 1]
    banking = data.load(str(SHARED / "banking77"))
    assert {split: len(judged) for split, judged in banking.qrels.items()} == {"train": 10003, "test": 3080}
    assert len(banking.corpus) == 77


def test_rows_without_text_and_with_two_labels_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\none\ta\n\tb\none\tb\ntwo\ta\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\ntwo\ta\nthree\tb\n")
    found = data.load(str(tmp_path))
    counted = {finding.what: finding.count for finding in found.findings}
    assert counted == {
        "train.tsv: rows without text, left out": 1, "items that another split has too": 1, "items with two labels": 1,
    }  # fmt: skip
    assert list(tasks.trainable(found, data.Splits(dev={}, test=found.qrels["test"], notice=""))) == [
        "train-2", "train-4",
    ]  # fmt: skip
    samples = data.samples(found, data.Splits(dev={}, test=found.qrels["test"], notice=""))
    assert set(samples.texts) == {"one"}, "neither test texts nor names of classes"
    (tmp_path / "train.tsv").write_text("text\tlabel\none\t\n")
    with pytest.raises(UsageError, match="line 2: there is no label"):
        data.load(str(tmp_path))


@pytest.fixture(scope="module")
def classifier(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, finetune.Tuned]:
    out = tmp_path_factory.mktemp("classifier") / "out"
    settings = Settings(training=Training(steps=150, batch_size=16, learning_rate=2e-3))
    return out, pipeline.train(tiny, labelled, out, settings, threads=1)


def test_a_classifier_learns_and_names_classes_of_texts_that_it_has_not_seen(
    classifier: tuple[Path, finetune.Tuned], labelled: Path
) -> None:
    out, result = classifier
    assert (result.loss, result.after.name) == ("cross_entropy", "accuracy")
    assert result.after.value > 0.9
    model, found = choose.model(out), data.load(str(labelled))
    assert (model.spec.output, model.spec.classes, model.spec.dim) == ("class_logits", ("animal", "thing"), 2)
    test = data.search_set(found, found.qrels["test"], "test")
    quality = evaluate.quality(choose.choose(out, 1), test, ["accuracy"])
    logits = choose.choose(out, 1).documents(list(test.queries.values()))
    right = [
        model.spec.classes[row.argmax()] in test.qrels[query] for query, row in zip(test.queries, logits, strict=True)
    ]
    assert quality.get("accuracy").value == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.85
    interval = quality.get("accuracy").interval
    assert interval is not None
    assert interval[0] <= np.mean(right) <= interval[1]


def test_a_classifier_is_quantized_exported_and_rebuilt_as_sentence_transformers_has_it(
    classifier: tuple[Path, finetune.Tuned], tmp_path: Path
) -> None:
    out, _ = classifier
    model = choose.model(out)
    texts = ["the cat bridge stone", "a stone river winter", "dog", *CORPUS.values()]
    logits = choose.encoder(model, "x", 1).documents(texts)
    assert packaged(model, "onnxruntime", tmp_path / "package").documents(texts) == pytest.approx(logits, abs=1e-4)
    small = plugins.load("methods", "quantize.weights_int")(bits=8).apply(
        model, Samples(calibration=texts, texts=texts)
    )
    assert isinstance(small.tensors["dense.0.linear.weight"], QuantizedTensor)
    rounded = choose.encoder(small, "x", 1).documents(texts)
    assert (rounded.argmax(1) == logits.argmax(1)).mean() > 0.8
    assert not np.array_equal(rounded, logits)
    assert packaged(small, "onnxruntime", tmp_path / "small").documents(texts) == pytest.approx(rounded, abs=1e-3)
    rebuild(out, tmp_path / "rebuilt", threads=1)
    reopened = choose.model(tmp_path / "rebuilt")
    assert reopened.spec == model.spec
    assert reopened.layers == model.layers
    ordinary = plugins.require("sentence_transformers").SentenceTransformer(str(tmp_path / "rebuilt"), device="cpu")
    assert ordinary.encode(texts) == pytest.approx(logits, abs=1e-4)
    config = msgspec.json.decode((tmp_path / "rebuilt" / "config.json").read_bytes())
    assert config["id2label"] == {"0": "animal", "1": "thing"}


def test_a_classifier_is_compressed_and_evaluated_by_its_accuracy(
    classifier: tuple[Path, finetune.Tuned], labelled: Path, tmp_path: Path
) -> None:
    out, _ = classifier
    recipe = Recipe(steps=(RecipeStep(method="quantize.weights_int"),), gates=Gates(max_loss=0.5))
    found = pipeline.compress(out, labelled, recipe, tmp_path / "small", Options(threads=1))
    assert [change.metric for change in found.changes] == ["accuracy"]
    assert {gate.gate: gate.status for gate in found.gates}["quality"] == "passed"
    assert found.records[0].quality is not None
    assert found.records[0].quality.metric == "accuracy"
    measured = pipeline.evaluate(tmp_path / "small", labelled, threads=1)
    accuracy = measured.subject.get("accuracy")
    assert accuracy is not None
    assert accuracy.value == found.changes[0].after
    assert accuracy.interval is not None
    assert accuracy.interval[0] <= accuracy.value <= accuracy.interval[1]


SMALL = (
    RecipeStep(method="prune.layers", parameters={"keep": 1}),
    RecipeStep(method="distil.soft_label", parameters={"alpha": 0.5, "steps": 150, "learning_rate": 3e-3}),
    RecipeStep(method="simplify.vocabulary"),
    RecipeStep(method="quantize.weights_int", parameters={"bits": 4, "granularity": "group", "group_size": 32,
                                                          "rounding": "compensated"}),
    RecipeStep(method="quantize.activations_int", parameters={"mode": "dynamic"}),
)  # fmt: skip


def test_a_small_classifier_is_pruned_taught_cut_and_packed_from_the_command_line(
    classifier: tuple[Path, finetune.Tuned], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names the same classes in both runtimes as in the reference."""
    (tmp_path / "small.yaml").write_text(
        recipes.dump(Recipe(steps=SMALL, gates=Gates(metric="accuracy", max_loss=0.5)))
    )
    out = tmp_path / "small"
    cli.app(["compress", str(classifier[0]), "--data", str(labelled), "--recipe", str(tmp_path / "small.yaml"), "--out",
             str(out), "--threads", "1", "--quiet", "--json"], standalone_mode=False)  # fmt: skip
    found = msgspec.json.decode(capsys.readouterr().out, type=Comparison)
    assert [record.step for record in found.records] == [step.method for step in SMALL]
    assert {gate.gate: gate.status for gate in found.gates if gate.status == "failed"} == {}
    assert found.changes[0].after > 0.85
    test = data.search_set(data.load(str(labelled)), data.load(str(labelled)).qrels["test"], "test")
    texts = list(test.queries.values())
    small = choose.model(out)
    assert (small.spec.classes, blocks.depth(small)) == (("animal", "thing"), 1)
    named = choose.encoder(small, "x", 1).documents(texts).argmax(1)
    for target in ("onnxruntime", "openvino"):
        cli.app(["deploy", str(out), "--target", target, "--data", str(labelled), "--out", str(tmp_path / target),
                 "--threads", "1", "--quiet"], standalone_mode=False)  # fmt: skip
        assert f"next: slimseek evaluate {tmp_path / target} --data" in capsys.readouterr().out
        package = choose.choose(tmp_path / target, 1)
        assert package.documents(texts).argmax(1).tolist() == named.tolist(), target
        accuracy = evaluate.quality(package, test, ["accuracy"]).get("accuracy")
        assert accuracy.value == pytest.approx(found.changes[0].after), target


def test_labels_correct_what_a_teacher_has_wrong(
    classifier: tuple[Path, finetune.Tuned], labelled: Path, tmp_path: Path
) -> None:
    """The teacher's logits are turned round, so that it names the wrong class; only labels can tell."""
    right, found = choose.model(classifier[0]), data.load(str(labelled))
    head = {name: -np.asarray(tensor) for name, tensor in right.tensors.items() if name.startswith("dense.0.")}
    wrong = dataclasses.replace(right, tensors={**right.tensors, **head})
    test = data.search_set(found, found.qrels["test"], "test")
    accuracy = {}
    for alpha in (0.0, 1.0):
        taught = {"alpha": alpha, "steps": 150, "learning_rate": 3e-3, "temperature": 1.0}
        steps = (SMALL[0], RecipeStep(method="distil.soft_label", parameters=taught))
        model = compress.run(wrong, Recipe(steps=steps), data.samples(found, data.split(found))).model
        accuracy[alpha] = evaluate.quality(choose.encoder(model, "x", 1), test, ["accuracy"]).get("accuracy").value
    assert accuracy[0.0] < 0.2
    assert accuracy[1.0] > 0.85


def test_a_classifier_goes_on_with_its_classes_and_is_refused_where_it_has_none(
    classifier: tuple[Path, finetune.Tuned], judged: Path, labelled: Path, tmp_path: Path
) -> None:
    out, _ = classifier
    model = choose.model(out)
    assert tasks.classifier(model, ("animal", "thing"), 0) is model
    with pytest.raises(UsageError, match="a classifier of 2 other classes, such as 'animal'"):
        tasks.classifier(model, ("a", "b"), 0)
    with pytest.raises(UsageError, match="the model is a classifier, and collection has no labels"):
        pipeline.train(out, judged, tmp_path / "x", Settings(training=QUICK), threads=1)
    with pytest.raises(UsageError, match="is a classifier, and collection, test has no labels to name"):
        pipeline.evaluate(out, judged, threads=1)
    found = data.load(str(labelled))
    other = dataclasses.replace(found, corpus={**found.corpus, "plant": "plant"})
    with pytest.raises(UsageError, match="does not know the class 'plant'"):
        evaluate.quality(choose.choose(out, 1), data.search_set(other, other.qrels["test"], "test"), ["accuracy"])
    with pytest.raises(UsageError, match="gives no vectors to search by"):
        plugins.require("slimseek.search").index(choose.choose(out, 1), CORPUS, tmp_path / "index")


def test_a_head_is_random_by_its_seed_and_stands_on_the_pooled_vector(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    family = choose.family(model)
    one, same, other = (family.classifier(model, ("a", "b", "c"), seed) for seed in (0, 0, 1))
    weight = one.tensors["dense.0.linear.weight"]
    assert weight.shape == (3, 32)
    assert np.array_equal(weight, same.tensors["dense.0.linear.weight"])
    assert not np.array_equal(weight, other.tensors["dense.0.linear.weight"])
    texts = list(CORPUS.values())
    logits = choose.encoder(one, "x", 1).documents(texts)
    vectors = choose.encoder(model, "x", 1).documents(texts)  # the pooled ones at length one
    directions = vectors @ np.asarray(weight).T
    cosines = (logits * directions).sum(1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(directions, axis=1)
    assert cosines == pytest.approx(1, abs=1e-5), "the bias begins at zero"
    assert np.abs(np.linalg.norm(logits, axis=1) - 1).min() > 0.01, "logits keep their length"
    assert model.spec.output == "embedding"
    assert "classes" not in msgspec.json.decode(msgspec.json.encode(model.spec)), "artifacts of others stay as they are"


def test_a_spec_goes_to_json_and_back_with_its_classes(classifier: tuple[Path, finetune.Tuned]) -> None:
    spec = choose.model(classifier[0]).spec
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


def test_a_model_of_embeddings_is_measured_by_the_nearest_name_of_a_class(tiny: Path, labelled: Path) -> None:
    model: Model = choose.model(tiny)
    found = data.load(str(labelled))
    test = data.search_set(found, found.qrels["test"], "test")
    encoder = choose.encoder(model, "x", 1)
    nearest = (encoder.queries(list(test.queries.values())) @ encoder.documents(["animal", "thing"]).T).argmax(1)
    right = [
        ("animal", "thing")[place] in test.qrels[query] for query, place in zip(test.queries, nearest, strict=True)
    ]
    assert evaluate.quality(encoder, test, ["accuracy"]).get("accuracy").value == pytest.approx(np.mean(right))


# ---------------------------------------------------------------- arrays


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network of two layers that was trained for nothing, and arrays with the name of their largest third."""
    onnx, helper = plugins.require("onnx"), plugins.require("onnx.helper")
    generator = np.random.default_rng(0)
    weights = {"first": generator.normal(size=(9, 16)) / 3, "second": generator.normal(size=(16, 8)) / 4}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "first"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "second"], ["features"])],
        "small",
        [helper.make_tensor_value_info("x", 1, ["batch", 9])],
        [helper.make_tensor_value_info("features", 1, ["batch", 8])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    place = tmp_path_factory.mktemp("sounds")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), place / "model.onnx")
    data_set = place / "data"
    data_set.mkdir()
    lines = ["path,label,split"]
    for number in range(300):
        values = generator.normal(size=9).astype(np.float32)
        np.save(data_set / f"{number}.npy", values)
        name = ("low", "middle", "high")[int(values.reshape(3, 3).sum(1).argmax())]
        lines.append(f"{number}.npy,{name},{('train', 'train', 'train', 'val', 'test')[number % 5]}")
    (data_set / "labels.csv").write_text("\n".join(lines) + "\n")
    return place / "model.onnx", data_set


def test_a_network_of_arrays_becomes_a_classifier(sounds: tuple[Path, Path], tmp_path: Path) -> None:
    network, labels = sounds
    settings = Settings(training=Training(steps=400, batch_size=16, learning_rate=5e-3))
    result = pipeline.train(network, labels, tmp_path / "out", settings, threads=1)
    assert (result.items, result.after.name, result.after.n) == (180, "accuracy", 60)
    assert result.after.value > 0.9
    model, found = choose.model(tmp_path / "out"), data.load(str(labels))
    assert model.spec.classes == ("high", "low", "middle")
    test = data.search_set(found, found.qrels["test"], "test")
    items = list(test.queries.values())
    logits = choose.encoder(model, "x", 1).documents(items)
    right = [
        model.spec.classes[row.argmax()] in test.qrels[query] for query, row in zip(test.queries, logits, strict=True)
    ]
    assert np.mean(right) > 0.8
    assert evaluate.quality(choose.choose(tmp_path / "out", 1), test, ["accuracy"]).get("accuracy").value == np.mean(
        right
    )
    # By hand, from the weights: no normalisation is left.
    first, second, weight, bias = (next(np.asarray(value) for name, value in model.tensors.items() if part in name)
                                   for part in ("first", "second", "classes.weight", "classes.bias"))  # fmt: skip
    arrays = np.stack([np.load(item) for item in items])
    assert np.maximum(arrays @ first, 0) @ second @ weight + bias == pytest.approx(logits, abs=1e-4)
    assert packaged(model, "onnxruntime", tmp_path / "package").documents(items) == pytest.approx(logits, abs=1e-4)
    small = plugins.load("methods", "quantize.weights_int")(bits=8).apply(
        model, Samples(calibration=items, texts=items)
    )
    assert sum(isinstance(tensor, QuantizedTensor) for tensor in small.tensors.values()) == 3
    rebuild(tmp_path / "out", tmp_path / "rebuilt", threads=1)
    again = choose.model(tmp_path / "rebuilt")
    assert (again.spec.output, again.spec.classes) == ("class_logits", model.spec.classes)
    assert choose.encoder(again, "x", 1).documents(items) == pytest.approx(logits, abs=1e-4)


def test_names_beside_a_network_must_fit_it(sounds: tuple[Path, Path], tmp_path: Path) -> None:
    content = sounds[0].read_bytes()
    for names, reason in (
        ('["a", "b"]', r"gives 8 numbers, and classes.json beside it names 2 classes"),
        ('["a", "a", "b"]', "names 3 classes, 2 of them different"),
        ('{"a": 1}', "is not a list of names"),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        (tmp_path / "classes.json").write_text(names)
        with pytest.raises(UsageError, match=reason):
            choose.model(tmp_path / "model.onnx")


def test_labels_of_arrays_name_files_of_the_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    for row, reason in (
        ("b.npy,x,train", "line 3: there is no file 'b.npy'"),
        ("../a.npy,x,train", "there is no file '../a.npy'"),
        ("a.npy,x,later", "label 'x', split 'later'; a label and one of train, dev, test"),
        ("a.npy,,train", "label '', split 'train'"),
        ("a.npy,x,train", "2 labelled items of 1 classes|1 labelled items of 1 classes"),
    ):
        (tmp_path / "labels.csv").write_text(f"path,label,split\na.npy,x,train\n{row}\n")
        with pytest.raises(UsageError, match=reason):
            data.load(str(tmp_path))
