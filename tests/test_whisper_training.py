"""Recognisers with a decoder in training: shorter windows, what a teacher hears, and what a student learns of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch
import transformers

from slimseek import choose, deploy, integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs import sound
from slimseek.models._whisper.files import PLACES
from slimseek.models.whisper import Whisper
from slimseek.progress import shown_on
from slimseek.recognise import IDS, LOGITS, transcriber
from slimseek.schema import Batch, Model, QuantizedTensor, QuantSpec, Samples
from slimseek.training import transcripts
from slimseek.training.finetune import finetune
from slimseek.training.settings import Settings
from slimseek.training.train import Training
from slimseek.training.transcripts import TOKENS, Heard, heard_by
from small import tiny_model, tiny_whisper

ITEMS = [f"random:{seed}" for seed in range(24)]
MOST = 14
TRAINING = Training(steps=6, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """It hears three seconds, says few tokens, and ends as transformers does."""
    folder = tmp_path_factory.mktemp("whisper") / "tiny"
    tiny_whisper(folder, seconds=3)
    found = choose.model(folder)
    assert found.spec.decoding
    decoding = msgspec.structs.replace(found.spec.decoding, most=MOST, end_above=0.0)
    return dataclasses.replace(found, spec=msgspec.structs.replace(found.spec, decoding=decoding))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("whisper") / "several"
    tiny_whisper(folder, seconds=3, several=True)
    return choose.model(folder)


def step(model: Model, method: str, samples: Samples | None = None, **parameters: Any) -> Model:
    given = samples or Samples(calibration=ITEMS, texts=ITEMS)
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, given)
    return changed


def noisy(model: Model) -> Model:
    random = np.random.default_rng(0)
    tensors = {name: tensor + random.normal(0, 0.05, tensor.shape).astype(np.float32)
               for name, tensor in model.tensors.items()}  # fmt: skip
    return dataclasses.replace(model, tensors=tensors)


def loss_of(model: Model, teacher: Model, cache: str) -> float:
    """The mean loss of a tokens that the teacher says, on recordings that no training here is fed with."""
    items = [f"random:{seed}" for seed in range(100, 116)]
    found = transcripts.examples(model, items, heard_by(teacher, cache), TRAINING).held_out
    network, loss = Whisper().trainable(model), plugins.load("losses", "transcript")()
    values = []
    for inputs, target in found:
        with torch.no_grad():
            output = network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        values += loss(output, {TOKENS: torch.from_numpy(target[TOKENS])}).tolist()
    return float(np.mean(values))


# ---------------------------------------------------------------- windows


def test_a_shorter_window_is_an_ordinary_whisper(model: Model, tmp_path: Path) -> None:
    """Its places, its configurations, and token for token what transformers hears with them."""
    short = step(model, "simplify.window", seconds=1)
    assert np.array_equal(short.tensors[PLACES], model.tensors[PLACES][:50])
    assert short.spec.inputs[0].shape == ("batch", 80, 100)
    assert short.spec.sound
    assert short.spec.sound.seconds == 1
    assert short.spec.decoding
    assert short.spec.decoding.most == 8, "224 tokens in 30 seconds"
    Whisper().save(short, tmp_path)
    network = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)
    samples = sound.made(3, 16000)[:12800]
    soundfile.write(tmp_path / "one.wav", samples, 16000, "FLOAT")
    read = choose.recognising(short, "short", 1)
    given = extractor(samples, sampling_rate=16000, return_tensors="np").input_features
    assert given.shape == (1, 80, 100)
    row = next(read.input.windows(str(tmp_path / "one.wav")))
    assert np.allclose(row, given[0], atol=1e-4)
    said = network.generate(torch.from_numpy(given), max_new_tokens=8)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert read.transcripts([str(tmp_path / "one.wav")]) == [
        tokenizer.decode(said[0], skip_special_tokens=True).strip()
    ]
    again = choose.model(tmp_path)
    assert (again.spec.sound, again.spec.inputs) == (short.spec.sound, short.spec.inputs)


def test_integers_of_places_leave_too(model: Model) -> None:
    """As artifacts have them that were made when places were rounded."""
    rounded = integers.quantize(np.asarray(model.tensors[PLACES]), QuantSpec(bits=4, granularity="channel"))
    before = dataclasses.replace(model, tensors=dict(model.tensors) | {PLACES: rounded})
    small = step(before, "simplify.window", seconds=1)
    places = small.tensors[PLACES]
    assert isinstance(places, QuantizedTensor)
    assert places.shape == (50, 32)


@pytest.fixture(scope="module")
def unshortened(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model that says as much as it has time for."""
    folder = tmp_path_factory.mktemp("unshortened")
    Whisper().save(model, folder)
    return choose.model(folder)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a short window of one second one that fits, one that does not, and one that takes two windows of three."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, seconds in enumerate((0.8, 1.6, 4.0)):
        samples = np.concatenate([sound.made(number + part, 16000) for part in range(3)])
        soundfile.write(folder / f"{number}.wav", samples[: round(seconds * 16000)], 16000, "FLOAT")
    return [str(folder / f"{number}.wav") for number in range(3)]


def test_a_short_window_hears_what_fits_and_the_whole_one_the_rest(
    unshortened: Model, recordings: list[str], tmp_path: Path
) -> None:
    """Each as a model of that window alone; the weights are those of before."""
    both = step(unshortened, "simplify.window", seconds=1, longer="whole")
    alone = step(unshortened, "simplify.window", seconds=1)
    assert both.spec.sound
    assert (both.spec.sound.seconds, both.spec.sound.short) == (3, 1)
    assert both.spec.inputs[0].shape == ("batch", 80, "frames")
    assert all(both.tensors[name] is tensor for name, tensor in unshortened.tensors.items() if name != PLACES)
    assert np.array_equal(both.tensors[PLACES], unshortened.tensors[PLACES])
    heard = {name: choose.recognising(one, name, 1) for name, one in
             (("both", both), ("short", alone), ("whole", unshortened))}  # fmt: skip
    frames = [[row.shape[1] for row in heard["both"].input.windows(item)] for item in recordings]
    assert frames == [[100], [300], [300, 300]]
    expected = [heard["short"].transcripts(recordings[:1])[0], *heard["whole"].transcripts(recordings[1:2])]
    assert heard["both"].transcripts(recordings[:2]) == expected
    assert expected[0] != heard["whole"].transcripts(recordings[:1])[0]
    assert heard["both"].transcripts(recordings[::-1]) == heard["both"].transcripts(recordings)[::-1]
    with pytest.raises(NoEffect, match="has a short window of 1 seconds already"):
        step(both, "simplify.window", seconds=1, longer="whole")
    Whisper().save(both, tmp_path)
    again = choose.model(tmp_path)
    assert (again.spec.sound, again.spec.inputs, again.spec.decoding) == (
        both.spec.sound, both.spec.inputs, both.spec.decoding)  # fmt: skip
    _, info = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert transformers.WhisperFeatureExtractor.from_pretrained(tmp_path).chunk_length == 3
    cut = step(both, "simplify.window", seconds=2)
    assert cut.spec.sound
    assert (cut.spec.sound.seconds, cut.spec.sound.short) == (2, 0)


def test_a_short_window_says_as_many_tokens_as_it_has_time_for(unshortened: Model, recordings: list[str]) -> None:
    both = step(unshortened, "simplify.window", seconds=1, longer="whole")
    assert unshortened.spec.decoding
    assert unshortened.spec.decoding.most == 23, "224 tokens in 30 seconds"
    functions = Whisper().computed(both, 1)
    asked: list[int] = []

    def decoder(batch: Batch) -> Batch:
        asked.append(1)
        given = dict(functions["decoder"](batch))
        given[LOGITS] = np.array(given[LOGITS])
        given[LOGITS][:, both.spec.decoding.end] = -np.inf  # type: ignore[union-attr]
        given[LOGITS][:, 40 + len(asked)] = np.inf  # no loop
        return given

    heard = transcriber({"encoder": functions["encoder"], "decoder": decoder}, both.spec, both.files)
    for item, most in ((recordings[0], 8), (recordings[1], 23)):
        asked.clear()
        heard(choose.recognising(both, "both", 1).input([item]))
        assert len(asked) == most


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_package_of_two_windows_says_what_its_artifact_says(
    target: str, unshortened: Model, recordings: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(target)
    small = step(step(unshortened, "quantize.weights_int", bits=8), "simplify.window", seconds=1, longer="whole")
    package = deploy.write(small, target, tmp_path, texts=recordings, threads=1)
    assert [(gate.gate, gate.status) for gate in package.gates] == [("parity", "passed"), ("invariance", "passed")]
    assert package.parity["equal_transcripts"] == 1
    assert package.parity["recordings"] == 3
    assert choose.recogniser(tmp_path, 1).transcripts(recordings) == choose.recognising(
        small, "artifact", 1).transcripts(recordings)  # fmt: skip


def test_a_short_window_is_learned_and_calibrated_in(model: Model, recordings: list[str], tmp_path: Path) -> None:
    """Batches of one length each."""
    both = step(model, "simplify.window", seconds=1, longer="whole")
    items = [*recordings[:2], *(f"random:{seed}" for seed in range(8))]
    learned = plugins.load("methods", "distil.transcript")(steps=2, batch_size=2, cache=str(tmp_path))
    trained = learned.apply(both, Samples(calibration=items, texts=items, original=model))
    assert any(not np.array_equal(trained.tensors[name], both.tensors[name]) for name in both.tensors)
    assert np.array_equal(trained.tensors[PLACES], both.tensors[PLACES]), "else packages would have to store them"
    rounded = plugins.load("methods", "quantize.weights_int")(bits=4, rounding="compensated", granularity="group")
    assert any("error-compensated" in note for note in rounded.apply(
        both, Samples(calibration=items, texts=items)).said)  # fmt: skip


@pytest.mark.parametrize("short", ["15", -1, 3, 0.5])
def test_a_file_that_asks_for_a_window_that_is_none_is_refused(short: object, model: Model, tmp_path: Path) -> None:
    Whisper().save(model, tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"short_chunk_length": short}))
    with pytest.raises(UsageError, match=r"short_chunk_length is .*; whole seconds, fewer than the window's 3"):
        choose.model(tmp_path)


def test_windows_that_cannot_become_shorter(model: Model, tmp_path: Path) -> None:
    with pytest.raises(NoEffect, match=r"simplify\.window: the model's window has 3 seconds"):
        step(model, "simplify.window", seconds=3)
    with pytest.raises(UsageError, match="seconds is 0; 1 or more is allowed"):
        step(model, "simplify.window", seconds=0)
    with pytest.raises(UsageError, match="this model has no window of recordings"):
        step(tiny_model(tmp_path / "text"), "simplify.window", seconds=1)


def test_a_whisper_finds_silence_behind_each_window(model: Model, tmp_path: Path) -> None:
    """A recording as long as the window is cut, and one that leaves a sixth of it is not; others are cut as before."""
    read = choose.recognising(model, "tiny", 1).input
    for name, seconds, windows in (("short", 2.4, 1), ("long", 2.9, 2)):
        file = tmp_path / f"{name}.wav"
        soundfile.write(file, np.tile(sound.made(1, 16000), 2)[: round(seconds * 16000)], 16000, "FLOAT")
        assert len(list(read.windows(str(file)))) == windows
        assert read.fits(str(file)) == (windows == 1)


# ---------------------------------------------------------------- what is learned


def test_the_network_reads_a_transcript_and_should_say_it_one_token_earlier(model: Model, several: Model) -> None:
    """By hand: bytes are tokens; a prompt, the blank before the text, the end, and nothing behind it."""

    def heard(items: Any) -> list[Heard]:
        return [Heard(text="ab", language="es") if item == "random:1" else Heard(text="", language="en")
                for item in items]  # fmt: skip

    for chosen in (model, several):
        found = transcripts.examples(chosen, ITEMS[:8], heard, TRAINING)
        tokenizer = transcripts._tokenizer(chosen)
        ids = {text: tokenizer.token_to_id(text) for text in ("<|startoftranscript|>", "<|es|>", "<|en|>",
               "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>", "Ġ", "a", "b")}  # fmt: skip
        start, end = [ids["<|startoftranscript|>"], ids["<|notimestamps|>"]], ids["<|endoftext|>"]
        if chosen is several:
            start = [start[0], ids["<|es|>"], ids["<|transcribe|>"], start[1]]
        rows = [
            (list(inputs[IDS][row]), list(target[TOKENS][row]))
            for inputs, target in [*found.train, *found.held_out]
            for row in range(len(inputs[IDS]))
        ]
        said = [*start, ids["Ġ"], ids["a"], ids["b"]]
        assert ([*said], [-1] * (len(start) - 1) + [*said[len(start) :], end]) in rows
        spoken = {tuple(tokens[len(start) - 1 :]) for _, tokens in rows}
        assert any(set(tokens[1:]) <= {-1} and tokens[0] == end for tokens in spoken), "silence ends at once"
        assert all(ids[0] == start[0] and ids[len(start) - 1] == start[-1] for ids, _ in rows)


def test_a_language_that_the_student_does_not_have_is_named(several: Model) -> None:
    with pytest.raises(UsageError, match="the model has no language 'de'; it has en, es"):
        transcripts.examples(several, ITEMS, lambda items: [Heard(text="x", language="de") for _ in items], TRAINING)


def test_recordings_longer_than_the_window_are_left_out(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = str(tmp_path / "long.wav")
    soundfile.write(long, np.tile(sound.made(1, 16000), 2), 16000, "FLOAT")  # four seconds
    seen: list[str] = []

    def heard(items: Any) -> list[Heard]:
        seen.extend(items)
        return [Heard(text="x") for _ in items]

    from rich.console import Console

    short = step(model, "simplify.window", seconds=1)
    with pytest.raises(UsageError, match="0 items are too few to train on"):
        transcripts.examples(short, ITEMS, heard, TRAINING)  # made recordings have two seconds
    with shown_on(Console(width=200)):
        transcripts.examples(model, [*ITEMS[:8], long], heard, TRAINING)
    assert long not in seen
    assert "1 of 9 recordings are longer than the model's window of 3 seconds, and left out" in capsys.readouterr().out


def test_a_teacher_hears_each_recording_once(
    model: Model, several: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it hears are its transcripts; a second run, and one that was killed, hear the rest alone."""
    cache = str(tmp_path)
    heard = heard_by(model, cache)(ITEMS[:6])
    assert [one.text for one in heard] == choose.recognising(model, "tiny", 1).transcripts(ITEMS[:6])
    assert {one.language for one in heard_by(several, cache)(ITEMS[:6])} <= {"en", "es"}
    real, asked = transcripts._listened, []

    def listened(teacher: Model, functions: Any, items: Any) -> Iterator[Heard]:
        asked.append(list(items))
        return real(teacher, functions, items)  # type: ignore[return-value]

    monkeypatch.setattr(transcripts, "_listened", listened)
    assert heard_by(model, cache)(ITEMS[:8])[:6] == heard
    assert asked == [ITEMS[6:8]]
    monkeypatch.setattr(transcripts, "PART", 4)

    def killed(teacher: Model, functions: Any, items: Any) -> Iterator[Heard]:
        if ITEMS[16] in items:
            raise KeyboardInterrupt
        return listened(teacher, functions, items)

    monkeypatch.setattr(transcripts, "_listened", killed)
    with pytest.raises(KeyboardInterrupt):
        heard_by(model, cache)(ITEMS[:20])
    monkeypatch.setattr(transcripts, "_listened", listened)
    asked.clear()
    heard_by(model, cache)(ITEMS[:20])
    assert asked == [ITEMS[16:20]]
    [file] = [path for path in tmp_path.iterdir() if len(json.loads(path.read_text())) == 20]
    file.write_text(file.read_text()[:-9])
    assert heard_by(model, cache)(ITEMS[:6]) == heard, "a damaged file is made anew"


def test_a_student_learns_what_its_teacher_says(model: Model, tmp_path: Path) -> None:
    teacher, cache = model, str(tmp_path)
    student = noisy(model)
    samples = Samples(calibration=ITEMS, texts=ITEMS, original=teacher)
    before = {name: tensor.copy() for name, tensor in teacher.tensors.items()}
    learned = step(student, "distil.transcript", samples, steps=60, batch_size=6, learning_rate=3e-3, cache=cache)
    assert loss_of(learned, teacher, cache) < 0.8 * loss_of(student, teacher, cache)
    assert all(np.array_equal(teacher.tensors[name], tensor) for name, tensor in before.items())
    assert set(learned.tensors) == set(student.tensors)


def test_whom_it_cannot_learn_from(model: Model, tmp_path: Path) -> None:
    samples = Samples(calibration=ITEMS, texts=ITEMS, original=model)
    text = tiny_model(tmp_path / "text")
    with pytest.raises(NoEffect, match="its own teacher"):
        step(model, "distil.transcript", samples)
    with pytest.raises(UsageError, match=r"distil\.transcript: the model is no recogniser with a decoder"):
        step(text, "distil.transcript", samples)
    with pytest.raises(UsageError, match="its teacher is no recogniser with a decoder"):
        step(noisy(model), "distil.transcript", dataclasses.replace(samples, original=text))
    with pytest.raises(UsageError, match="texts and sentences are for texts"):
        step(noisy(model), "distil.transcript", samples, sentences=True)


def test_a_recogniser_is_trained_on_its_grid(model: Model, tmp_path: Path) -> None:
    """Integers of three bits that say more of what the float model says than those that were only rounded."""
    samples = Samples(calibration=ITEMS, texts=ITEMS)
    given = {"bits": 3, "granularity": "group", "group_size": 16, "symmetric": False, "layers": ("linear",)}
    small = step(model, "quantize.aware_training", samples, **given, steps=60, batch_size=6, learning_rate=3e-3,
                 cache=str(tmp_path))  # fmt: skip
    rounded = step(model, "quantize.weights_int", samples, **given)
    integer = {name for name, tensor in small.tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert integer == {name for name, tensor in rounded.tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert loss_of(small, model, str(tmp_path)) < loss_of(rounded, model, str(tmp_path))


# ---------------------------------------------------------------- labels


def test_a_whisper_is_fine_tuned_on_transcripts(tmp_path: Path) -> None:
    """Tones below 500 Hz are "low" and those above "high": an untrained network learns to write it down."""
    random = np.random.default_rng(0)
    (tmp_path / "data" / "audio").mkdir(parents=True)
    (tmp_path / "data" / "qrels").mkdir()
    queries, rows = [], {split: ["query-id\tcorpus-id\tscore"] for split in ("train", "dev", "test")}
    for number in range(60):
        word, pitch = [("low", random.uniform(150, 400)), ("high", random.uniform(800, 3000))][number % 2]
        tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(16000) / 16000)
        soundfile.write(tmp_path / "data" / "audio" / f"{number}.wav", tone, 16000)
        queries.append({"_id": f"q{number}", "audio": f"audio/{number}.wav", "text": word})
        rows["train" if number < 44 else "dev" if number < 56 else "test"].append(f"q{number}\t{word}\t1")
    for name, records in (("queries", queries), ("corpus", [{"_id": word, "text": word} for word in ("low", "high")])):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for split, lines in rows.items():
        (tmp_path / "data" / "qrels" / f"{split}.tsv").write_text("\n".join([*lines, ""]))
    tiny_whisper(tmp_path / "tiny", seconds=3)
    settings = Settings(metric="character_error_rate", training=Training(steps=200, batch_size=8, learning_rate=3e-3))
    tuned = finetune(tmp_path / "tiny", tmp_path / "data", tmp_path / "tuned", settings, threads=1)
    assert (tuned.loss, tuned.items) == ("transcript", 44)
    assert tuned.after.value < 0.2 < tuned.before.value
    heard = choose.recogniser(tmp_path / "tuned", 1).transcripts([str(tmp_path / "data" / "audio" / "58.wav")])
    assert heard == ["low"]
    with pytest.raises(UsageError, match="loss is ctc, and the model gives transcripts; transcript is allowed"):
        finetune(
            tmp_path / "tiny", tmp_path / "data", tmp_path / "other", msgspec.structs.replace(settings, loss="ctc")
        )
