"""Small networks of recordings: features against other implementations, settings beside a network, and CTC."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import scipy.fft
import soundfile
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers.audio_utils import mel_filter_bank, spectrogram

from slimseek import choose, compress, data, deploy, pipeline, plugins, rebuild, recipe, spoken
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs import _cepstrum
from slimseek.inputs.vocabulary import Vocabulary
from slimseek.models._array import sound_settings
from slimseek.preprocess import SoundPreprocess
from slimseek.schema import Array, TensorSpec
from slimseek.training import finetune, tasks
from slimseek.training.settings import Settings
from slimseek.training.train import Training

RATE = 8000
MFCC = SoundPreprocess(rate=16_000, features="mfcc", seconds=1.0, window=480, hop=320, mels=40, low=20, high=4000,
                       coefficients=10, channels_last=True)  # fmt: skip
SETTINGS = {"feature_extractor_type": "LogMelFeatureExtractor", "sampling_rate": RATE, "win_length": 200,
            "hop_length": 100, "feature_size": 8, "chunk_length": 0.5, "min_frequency": 100,
            "max_frequency": 4000}  # fmt: skip
TOKENS = {"<blank>": 0, "|": 1, "a": 2, "b": 3}
FRAMES = 39


# ---------------------------------------------------------------- features


def test_the_spectrum_is_the_one_of_another_implementation() -> None:
    """transformers' own spectrogram and HTK filters; the cosine transform is SciPy's."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    filters = mel_filter_bank(
        257, 40, 20.0, 4000.0, 16_000, norm=None, mel_scale="htk", triangularize_in_mel_space=True
    )
    bands = spectrogram(sound, window, 480, 320, fft_length=512, power=1.0, center=False, mel_filters=filters,
                        mel_floor=0.0)  # fmt: skip
    expected = np.log(bands.T + 1e-6)
    assert expected.shape == (49, 40)
    found = _cepstrum.log_mel(sound, MFCC)
    assert np.abs(found - expected).max() < 2e-3
    cosines = scipy.fft.dct(found.astype(np.float64), type=2, norm="ortho")[:, :10]
    assert np.abs(_cepstrum.mfcc(sound, MFCC) - cosines).max() < 1e-5


def test_a_tone_lies_in_its_band() -> None:
    """Bands of equal width in mel: the loudest is the one whose middle is nearest to the tone."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(4000 / 700), 42)
    nearest = int(np.argmin(np.abs(edges[1:-1] - 1127 * np.log1p(1000 / 700))))
    assert set(_cepstrum.log_mel(tone, MFCC).argmax(1)) == {nearest}


def test_a_recording_shorter_than_a_frame_is_filled_up() -> None:
    assert _cepstrum.log_mel(np.ones(3, np.float32), MFCC).shape == (1, 40)
    assert np.isfinite(_cepstrum.mfcc(np.zeros(16_000, np.float32), MFCC)).all()


# ---------------------------------------------------------------- settings


def spec_of(*shape: int | str) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="x", dtype="float32", shape=("batch", *shape)),)


@pytest.mark.parametrize(
    ("shape", "frames_first"),
    [((FRAMES, 8), True), ((8, FRAMES), False), ((1, FRAMES, 8), True), ((8, FRAMES, 1), False), (("frames", 8), True),
     ((8, "frames"), False)],
)  # fmt: skip
def test_the_network_says_what_stands_first(shape: tuple[int | str, ...], frames_first: bool) -> None:
    found = sound_settings.sound(SETTINGS, spec_of(*shape), "here")
    assert found.channels_last == frames_first
    assert sound_settings.frames(found) == FRAMES
    written: dict[str, Any] = msgspec.json.decode(sound_settings.settings_of(found))
    assert sound_settings.sound(written, spec_of(*shape), "here") == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_extractor_type": "Kaldi"}, "feature_extractor_type is 'Kaldi'; MfccFeatureExtractor"),
        ({"sampling_rate": 0}, "sampling_rate is 0; a whole number of 1 or more"),
        ({"max_frequency": 5000}, "min_frequency is 100.0 and max_frequency 5000.0"),
        ({"do_normalize": True}, "do_normalize is True, which is not known"),
        ({"feature_size": 9}, "gives 39 frames of 9 numbers, and the network takes"),
        ({"chunk_length": -1}, "chunk_length is -1; a number of 0 or more"),
        ({"feature_extractor_type": "MfccFeatureExtractor", "num_mel_bins": 4}, "feature_size is 8; at most the 4"),
    ],
)
def test_other_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sound_settings.sound(SETTINGS | changed, spec_of(FRAMES, 8), "here")


# ---------------------------------------------------------------- tokens


def test_letters_become_numbers_and_words_again() -> None:
    vocabulary = Vocabulary(json.dumps({"[PAD]": 3, "|": 0, "a": 1, "B": 2, "ab": 4}).encode())
    assert vocabulary.blank == 3
    assert vocabulary.ids("ab ba xa") == [4, 0, 2, 1, 0, 1]
    assert vocabulary.text([4, 0, 0, 2, 1]) == "ab Ba"


def test_repeated_tokens_are_one_and_blanks_part_them() -> None:
    vocabulary = Vocabulary(json.dumps(TOKENS).encode())
    path = [0, 2, 2, 0, 2, 1, 1, 3, 3, 0, 0]
    scores = np.eye(4, dtype=np.float32)[path][None]
    assert vocabulary.heard(np.concatenate([scores, np.zeros_like(scores)])) == ["aa b", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "not an object of tokens"), ('{"<blank>": 0, "a": 2}', "numbers 2 tokens; each number from 0 on"),
     ('{"a": 0, "b": 1}', "has no blank; one of <blank>")],
)  # fmt: skip
def test_a_broken_file_of_tokens_is_refused(content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Vocabulary(content.encode())


# ---------------------------------------------------------------- the loss


def test_the_loss_sums_over_all_alignments() -> None:
    """By going through every path of five frames, of which those count that collapse to the transcript."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, generator=generator)
    targets = [[1, 1], [2]]
    probability = torch.softmax(logits, -1).numpy()
    expected = []
    for row, wanted in zip(probability, targets, strict=True):
        total = 0.0
        for path in itertools.product(range(3), repeat=5):
            said = [token for token, _ in itertools.groupby(path) if token != 0]
            total += math.prod(row[place, token] for place, token in enumerate(path)) if said == wanted else 0
        expected.append(-math.log(total) / len(wanted))
    target = {"tokens": torch.tensor([[1, 1], [2, 0]]), "lengths": torch.tensor([2, 1])}
    loss = plugins.load("losses", "ctc")(blank=0)
    assert loss(logits, target).tolist() == pytest.approx(expected, rel=1e-5)
    long = {"tokens": torch.full((2, 9), 1), "lengths": torch.tensor([9, 9])}
    assert loss(logits, long).tolist() == [0, 0]


# ---------------------------------------------------------------- a recogniser from nothing


def network(folder: Path, tokens: dict[str, int] = TOKENS) -> Path:
    """A convolution over eight bands and a linear layer, of random weights: [n, 8, 39] to [n, 39, 4]."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.normal(0, 0.1, (16, 8, 9)), "b1": random.normal(0, 0.01, 16), "w2": random.normal(0, 0.1, (16, 4)),
        "b2": np.array([1.0, -3.0, 0.1, -0.1]), "mean": np.array(1.0), "scale": np.array(0.5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["s"]), helper.make_node("Mul", ["s", "scale"], ["z"]),
        helper.make_node("Conv", ["z", "w1", "b1"], ["c"], pads=[4, 4]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["t", "w2"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["scores"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "ctc", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 8, FRAMES))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("n", FRAMES, 4))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    (folder / "vocab.json").write_text(json.dumps(tokens))
    return folder


def tones(text: str, seed: int) -> Array:
    """A low tone for a, a high one for b, a pause between words; half a second."""
    random = np.random.default_rng(seed)
    sound = random.normal(0, 0.01, RATE // 2)
    place = int(random.integers(100, 300))
    for letter in text:
        if letter != " ":
            time = np.arange(500) / RATE
            sound[place : place + 500] += 0.3 * np.sin(2 * np.pi * {"a": 400, "b": 2500}[letter] * time)
        place += 700
    return sound.astype(np.float32)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of up to four tones by twelve speakers, who are split."""
    folder = tmp_path_factory.mktemp("tones")
    lines = ["audio,text,speaker"]
    texts = ["a", "b", "ab", "ba"] * 2
    for number in range(96):
        soundfile.write(folder / f"{number}.wav", tones(texts[number % 8], number), RATE)
        lines.append(f"{number}.wav,{texts[number % 8]},s{number // 8}")
    (folder / "data.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(said: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ctc")
    settings = Settings(metric="character_error_rate",
                        training=Training(steps=500, batch_size=8, learning_rate=2e-2))  # fmt: skip
    tuned = finetune.finetune(network(place / "network"), said, place / "trained", settings, threads=1)
    assert tuned.loss == "ctc"
    assert tuned.before.name == tuned.change.metric == "character_error_rate"
    assert tuned.after.value < 0.5 * tuned.before.value
    return place / "trained"


def test_a_recogniser_is_trained_from_nothing(trained: Path, said: Path) -> None:
    """Speakers whom it has not heard; what is written is opened again."""
    found = data.load(str(said))
    test = spoken.asked(data.search_set(found, found.qrels["test"], "test"))
    opened = choose.recogniser(trained, 1)
    assert opened.spec.output == "transcript"
    heard = spoken.quality(opened, test, ["character_error_rate"])
    assert heard.get("character_error_rate").value < 0.5
    with pytest.raises(UsageError, match="is a recogniser"):
        choose.choose(trained, 1)


def test_it_is_compressed_and_its_package_hears_the_same(trained: Path, said: Path, tmp_path: Path) -> None:
    original, found = choose.model(trained), data.load(str(said))
    samples = spoken.samples(found, data.split(found))
    small = compress.run(original, recipe.load("int8"), samples).model
    assert compress.weight_bytes(small) < 0.4 * compress.weight_bytes(original)
    items = list(found.queries.values())[:24]
    package = deploy.write(small, "onnxruntime", tmp_path, texts=items[:8], threads=1)
    assert {gate.status for gate in package.gates} == {"passed"}
    reference = choose.recognising(small, "artifact", 1).transcripts(items)
    assert choose.recogniser(tmp_path, 1).transcripts(items) == reference
    assert sum(one == other for one, other in zip(reference, choose.recogniser(trained, 1).transcripts(items),
                                                  strict=True)) > 16  # fmt: skip


def test_a_package_is_compared_on_the_recordings_of_its_collection(trained: Path, said: Path, tmp_path: Path) -> None:
    """Its documents are texts: they are not what a recogniser takes."""
    package = pipeline.deploy_on(str(trained), "onnxruntime", tmp_path / "served", data=str(said), threads=1)
    assert package.parity["recordings"] > 0
    assert package.parity["cosine_min"] > 0.999
    recordings = list(data.load(str(said)).queries.values())[:4]
    assert choose.recogniser(tmp_path / "served", 1).transcripts(recordings) == choose.recogniser(
        trained, 1).transcripts(recordings)  # fmt: skip


def test_it_is_written_back_with_its_settings(trained: Path, tmp_path: Path) -> None:
    gate = rebuild.rebuild(trained, tmp_path / "plain", threads=1)
    assert gate.value is not None
    assert gate.value > 0.9999
    assert choose.model(tmp_path / "plain").spec == choose.model(trained).spec
    assert {"vocab.json", "preprocessor_config.json"} <= {file.name for file in (tmp_path / "plain").iterdir()}


def test_what_cannot_be_trained_is_refused(said: Path, tmp_path: Path) -> None:
    model, found = choose.model(network(tmp_path / "network")), data.load(str(said))
    splits = data.split(found)
    with pytest.raises(UsageError, match="loss is contrastive, and the model gives transcripts; ctc is allowed"):
        tasks.check(model, found, splits, Settings(loss="contrastive"))
    with pytest.raises(UsageError, match="has no train recording with a transcript"):
        tasks.check(model, dataclasses.replace(found, said={}), splits, Settings())
    with pytest.raises(UsageError, match="metric 'ndcg@10' is of a search"):
        finetune.finetune(tmp_path / "network", said, tmp_path / "out", Settings(metric="ndcg@10"), threads=1)


def test_scores_that_fit_no_token_are_refused(tmp_path: Path) -> None:
    place = network(tmp_path / "network", TOKENS | {"c": 4})
    with pytest.raises(UsageError, match=r"one output \[batch, frames, 5\], a score for each token"):
        choose.model(place)


def test_a_network_without_tokens_gives_a_vector_of_recordings(tmp_path: Path) -> None:
    """The same graph with its frames summed up: a search for recordings alike."""
    place = network(tmp_path / "network")
    (place / "vocab.json").unlink()
    model = onnx.load(place / "model.onnx")
    model.graph.node.append(helper.make_node("ReduceMean", ["scores"], ["embedding"], axes=[1], keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("n", 4)))
    onnx.save(model, place / "model.onnx")
    opened = choose.choose(place, 1)
    assert (opened.spec.modality, opened.spec.output) == ("speech", "embedding")
    soundfile.write(tmp_path / "a.wav", tones("ab", 0), RATE)
    soundfile.write(tmp_path / "b.wav", np.repeat(tones("ab", 0)[:, None], 2, 1), RATE)  # stereo
    vectors = opened.documents([str(tmp_path / "a.wav"), str(tmp_path / "b.wav")])
    assert vectors.shape == (2, 4)
    assert vectors[0] @ vectors[1] == pytest.approx(1, abs=1e-4)


def test_no_better_state_is_no_effect(said: Path, trained: Path, tmp_path: Path) -> None:
    settings = Settings(training=Training(steps=1, batch_size=8, learning_rate=1e-12))
    with pytest.raises(NoEffect):
        finetune.finetune(trained, said, tmp_path / "again", settings, threads=1)
