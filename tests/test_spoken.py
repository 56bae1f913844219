"""Recognisers judged by what is heard and found: with made ones, whose transcripts are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slimseek import choose, compress, data, evaluate, hearing, prove_spoken, spoken, timing
from slimseek.collection import Collection, SearchSet
from slimseek.errors import UsageError
from slimseek.preprocess import SoundPreprocess
from slimseek.recognise import Recogniser
from slimseek.schema import Layer, Model, ModelSpec, TensorSpec
from small import CORPUS, tiny_encoder

SPEC = ModelSpec(
    family="made", modality="speech", output="transcript",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8)),),
    dim=0, normalised=False, preprocess=None, sound=SoundPreprocess(rate=16_000, features="waveform"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Made(Recogniser):
    """One that has learned by heart what to say of each file, by the file's name."""

    known: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def transcripts(self, items: Sequence[str], advance: Callable[[int], None] | None = None) -> list[str]:
        return [self.known[Path(item).name] for item in items]

    def begin(self, item: str) -> None:
        """Nothing is computed."""


def made(known: Mapping[str, str], name: str = "made") -> Made:
    nothing: Any = None
    return Made(name=name, spec=SPEC, input=nothing, transcribe=nothing, scores=nothing, model=None,
                shipped={"weights": 90, "rest": 10}, runtime="none", threads=1, known=known)  # fmt: skip


SAID = {"d1": "the cat sleeps near the river", "d2": "a dog runs through the winter forest",
        "d4": "the bridge over the river is made of stone"}  # fmt: skip


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """Three documents read aloud, the recordings of half a second each."""
    queries = {}
    for document in SAID:
        path = tmp_path / f"{document}.wav"
        soundfile.write(path, np.sin(np.arange(8000) / 9), 16_000)
        queries[f"q-{document}"] = str(path)
    return Collection(
        name="spoken", path=str(tmp_path), corpus=dict(CORPUS), queries=queries,
        qrels={"test": {query: {query.removeprefix("q-"): 1} for query in queries}},
        said={path: SAID[Path(path).stem] for path in queries.values()},
    )  # fmt: skip


@pytest.fixture
def asked(collection: Collection) -> SearchSet:
    return spoken.asked(data.search_set(collection, collection.qrels["test"], "test"))


@pytest.fixture
def found(asked: SearchSet) -> spoken.Search:
    encoder = tiny_encoder()
    return spoken.Search(encoder=encoder, documents=encoder.documents(list(asked.corpus.values())))


def heard(**known: str) -> dict[str, str]:
    return {f"{name}.wav": known.get(name, text) for name, text in SAID.items()}


def test_what_is_understood_is_found_as_if_it_were_typed(asked: SearchSet, found: spoken.Search) -> None:
    names = spoken.metrics_of(asked)
    assert names == ("ndcg@10", "recall@10", "hit@1", "word_error_rate", "character_error_rate")
    right = spoken.quality(made(heard()), asked, names, found)
    typed = spoken.typed(asked, names, found)
    assert right.get("word_error_rate").value == right.get("character_error_rate").value == 0
    assert right.ranking == typed.ranking
    assert [one.name for one in typed.measurements] == list(spoken.SEARCH)
    queries = found.encoder.queries(list(SAID.values()))
    assert right.ranking["q-d1"][0] == list(CORPUS)[int(np.argmax(found.documents @ queries[0]))]


def test_a_wrong_word_is_an_error_and_changes_what_is_found(asked: SearchSet, found: spoken.Search) -> None:
    """One of 21 words is another; the transcript without a word finds nothing."""
    one = spoken.quality(made(heard(d1="the dog sleeps near the river")), asked, ["word_error_rate", "hit@1"], found)
    assert one.get("word_error_rate").value == pytest.approx(1 / 22)
    none = spoken.quality(made(heard(d2=" ... ")), asked, ["word_error_rate", "hit@1"], found)
    assert none.ranking["q-d2"] == []
    assert none.get("word_error_rate").value == pytest.approx(7 / 22)
    assert none.get("hit@1").per_query is not None
    assert none.get("hit@1").per_query[1] == 0


def test_the_worst_and_the_changed_recordings_are_shown(asked: SearchSet, found: spoken.Search) -> None:
    before = spoken.quality(made(heard()), asked, ["word_error_rate"], found)
    after = spoken.quality(made(heard(d2="a dog runs", d4="The bridge, over the river; is made of stone!")), asked,
                           ["word_error_rate"], found)  # fmt: skip
    [worst] = hearing.worst(after, asked)
    assert (worst.said, worst.heard, worst.errors) == (SAID["d2"], "a dog runs", pytest.approx(4 / 7))
    first, second = spoken.examples(asked, before, after, "word_error_rate")
    assert first.query == SAID["d2"]
    assert (first.before, first.after) == (((SAID["d2"], True),), (("a dog runs", False),))
    assert second.after == (("The bridge, over the river; is made of stone!", True),)
    assert spoken.examples(asked, before, before, "word_error_rate") == ()


def test_typed_queries_are_left_out(collection: Collection) -> None:
    mixed = dataclasses.replace(
        collection, queries=collection.queries | {"q9": "typed"},
        qrels={"test": collection.qrels["test"] | {"q9": {"d1": 1}}},
    )  # fmt: skip
    assert set(spoken.asked(data.search_set(mixed, mixed.qrels["test"], "test")).queries) == set(collection.queries)
    silent = dataclasses.replace(collection, said={})
    with pytest.raises(UsageError, match="no query is a recording with a transcript"):
        spoken.asked(data.search_set(silent, silent.qrels["test"], "test"))


def test_labelled_recordings_are_not_searched(asked: SearchSet) -> None:
    labelled = dataclasses.replace(asked, labelled=True)
    assert spoken.metrics_of(labelled) == ("word_error_rate", "character_error_rate")
    with pytest.raises(UsageError, match="metric 'ndcg@10' is of a search, and spoken, test holds no texts to find"):
        spoken.check_metrics(["ndcg@10"], labelled)
    with pytest.raises(UsageError, match="holds no texts to find"):
        spoken.search(labelled, "minilm")
    assert spoken.search(labelled) is None


def test_characters_decide_where_words_are_not_parted(asked: SearchSet) -> None:
    said = dict.fromkeys(asked.said, "\u641c\u7d22\u5f15\u64ce\u53ef\u4ee5\u627e\u5230")
    chinese = dataclasses.replace(asked, said=said, labelled=True)
    assert spoken.metrics_of(chinese) == ("character_error_rate", "word_error_rate")


def test_evaluation_against_a_baseline(
    collection: Collection, found: spoken.Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognisers = {"good": made(heard(), "good"), "bad": made(heard(d1="a forest engine"), "bad")}
    monkeypatch.setattr(choose, "recogniser", lambda source, threads=None: recognisers[source])
    monkeypatch.setattr(choose, "choose", lambda source, threads=None: found.encoder)
    monkeypatch.setattr(timing, "fresh_start", lambda source, threads: timing.Start(seconds=1, peak_memory_bytes=2))
    said = hearing.evaluation("bad", collection, baseline="good", search_with="tiny")
    assert [one.name for one in said.typed] == list(spoken.SEARCH)
    [words] = [change for change in said.changes if change.metric == "word_error_rate"]
    assert (words.points, words.relative) == (True, pytest.approx(-6 / 22))
    assert [change.metric for change in said.spoken] == list(spoken.SEARCH)
    names = {one.name for one in said.subject.measurements}
    assert names >= {"size", "real_time_factor", "latency_p50", "latency_first_token", "word_error_rate", "ndcg@10",
                     "cold_start", "peak_memory"}  # fmt: skip
    factor = said.subject.get("real_time_factor")
    assert factor is not None
    assert factor.n == 3
    assert said.worst[0].heard == "a forest engine"


def test_a_batch_that_changes_words_is_no_invariance() -> None:
    class Uneven(Made):
        def transcripts(self, items: Sequence[str], advance: Callable[[int], None] | None = None) -> list[str]:
            return ["alone" if len(items) == 1 else "one of many"] * len(items)

    base = {field.name: getattr(made(heard()), field.name) for field in dataclasses.fields(Made)}
    assert spoken.invariance(Uneven(**base), ["a", "b"]).status == "failed"
    assert spoken.invariance(made(heard()), [f"{name}.wav" for name in SAID]).status == "passed"


def test_a_recogniser_that_says_no_word_anywhere_says_the_same_in_a_batch() -> None:
    silent = made({"a.wav": "", "b.wav": "...", "c.wav": "–"})
    found = spoken.invariance(silent, ["a.wav", "b.wav", "c.wav"])
    assert (found.status, found.value) == ("passed", 0.0)


# ---------------------------------------------------------------- compression


def test_recordings_of_the_test_are_no_samples(collection: Collection) -> None:
    qrels = collection.qrels["test"]
    parted = dataclasses.replace(collection, qrels={
        "train": {"q-d1": qrels["q-d1"]}, "test": {"q-d2": qrels["q-d2"], "q-d4": qrels["q-d4"]},
    })  # fmt: skip
    samples = spoken.samples(parted, data.split(parted))
    assert samples.calibration == samples.texts == [collection.queries["q-d1"]]
    alone = dataclasses.replace(collection, queries=dict.fromkeys(collection.queries, collection.queries["q-d1"]))
    with pytest.raises(UsageError, match="no recordings to calibrate by but those of the test"):
        spoken.samples(alone, data.Splits(dev={}, test=alone.qrels["test"], notice=""))


def network(scale: float) -> Model:
    """An encoder, a decoder and its table, each of one tensor; the position table belongs to the decoder."""
    names = ("encoder.fc", "decoder.fc", "decoder.embed_tokens", "decoder.embed_positions")
    return Model(
        spec=SPEC, files={}, tensors={f"{name}.weight": np.full((2, 2), scale, np.float32) for name in names},
        layers=tuple(Layer(name=name, kind="embedding" if "embed" in name else "linear", weight=f"{name}.weight")
                     for name in names),
    )  # fmt: skip


def test_each_part_is_compressed_alone() -> None:
    before, after = network(1.0), network(2.0)
    found = prove_spoken.parts(before, after)
    changed = {
        part: {name for name, tensor in model.tensors.items() if float(tensor[0, 0]) == 2.0}  # type: ignore[index]
        for part, model in found.items()
    }
    assert changed == {
        "encoder": {"encoder.fc.weight"}, "token table": {"decoder.embed_tokens.weight"},
        "decoder": {"decoder.fc.weight", "decoder.embed_positions.weight"},
    }  # fmt: skip
    half = dataclasses.replace(
        before, tensors=dict(before.tensors) | {"encoder.fc.weight": after.tensors["encoder.fc.weight"]}
    )
    assert set(prove_spoken.parts(before, half)) == {"encoder"}
    smaller = dataclasses.replace(before, tensors={"encoder.fc.weight": before.tensors["encoder.fc.weight"]})
    assert prove_spoken.parts(before, smaller) == {}


def test_the_loss_is_attributed_to_the_part_that_has_it(
    asked: SearchSet, found: spoken.Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recogniser whose decoder, once compressed, loses three words."""

    def opened(model: Model, name: str, threads: int) -> Made:
        spoilt = float(model.tensors["decoder.fc.weight"][0, 0]) == 2.0  # type: ignore[index]
        return made(heard(d1="the cat sleeps") if spoilt else heard())

    monkeypatch.setattr(choose, "recognising", opened)
    original = spoken.quality(made(heard()), asked, ["hit@1"], found)
    losses = prove_spoken.attribution(network(1.0), network(2.0), asked, original, 1)
    assert {part: round(22 * change.relative) for part, change in losses.items()} == {
        "encoder": 0, "decoder": -3, "token table": 0
    }  # fmt: skip


def test_a_step_is_judged_by_the_search(
    asked: SearchSet, found: spoken.Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = heard()
    monkeypatch.setattr(compress, "recognising", lambda model, name, threads: made(known))
    monkeypatch.setattr(compress, "family", lambda model: None)
    from slimseek.schema import Gates, Recipe, Samples

    judge = compress.Judge(search_set=asked, threads=1, search=found,
                           original=spoken.quality(made(heard()), asked, ["hit@1"], found))  # fmt: skip
    samples = Samples(calibration=list(asked.queries.values()), texts=list(asked.queries.values()))
    recipe = Recipe(steps=(), gates=Gates(metric="hit@1", max_loss=0.5))
    change, gates = compress._judge(network(1.0), samples, recipe, judge)
    assert change is not None
    assert change.relative == 0
    assert {gate.gate: gate.status for gate in gates} == {
        "finite": "passed",
        "invariance": "passed",
        "quality": "undecided",
    }
    known |= {"d1.wav": "", "d2.wav": "", "d4.wav": ""}
    change, gates = compress._judge(network(1.0), samples, recipe, judge)
    assert change is not None
    assert change.after == 0
    assert gates[-1].status == "failed"


def test_the_metrics_of_a_search_need_one(asked: SearchSet) -> None:
    heard_only = spoken.quality(made(heard()), asked, ["word_error_rate"])
    assert heard_only.ranking == {}
    assert spoken.error_rate("ndcg@10") is None
    with pytest.raises(UsageError, match="an error rate has no cutoff; word_error_rate is allowed"):
        spoken.error_rate("word_error_rate@5")
    with pytest.raises(UsageError, match="only a recogniser of speech gives"):
        evaluate.metric("word_error_rate")
