"""The transformer family against sentence-transformers and transformers themselves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import AutoModel

from slimseek import choose, integers, plugins
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.text import TOKENIZER, TextInput
from slimseek.models import _eight_bit, transformer
from slimseek.models._text import skeleton
from slimseek.models.transformer import Transformer
from slimseek.rebuild import rebuild
from slimseek.schema import ActivationQuant, Model, Samples
from small import tiny_bert, tiny_model

TEXTS = [
    "the cat sleeps",
    "a dog runs through the winter forest near the river",
    "stone",
    "",
    "engine of stone and iron",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return path


def sentence_transformers_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """What sentence-transformers gives in a process that has never imported slimseek."""
    script = (
        "import sys, json, numpy as np; from sentence_transformers import SentenceTransformer;"
        "v = SentenceTransformer(sys.argv[1], device='cpu').encode(json.loads(sys.argv[2]));"
        "assert 'slimseek' not in sys.modules; print(json.dumps(v.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), json.dumps(texts)], capture_output=True, text=True, check=True
    )
    return np.array(json.loads(done.stdout.strip().splitlines()[-1]), np.float32)


def set_pooling(folder: Path, **modes: bool) -> None:
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("pooling_mode")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config | modes))


def test_vectors_equal_those_of_sentence_transformers(folder: Path) -> None:
    ours = choose.choose(folder, 1).documents(TEXTS)
    assert np.allclose(ours, sentence_transformers_vectors(folder, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "reduce"),
    [
        ("pooling_mode_cls_token", lambda hidden, mask: hidden[:, 0]),
        ("pooling_mode_mean_tokens", lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1)),
        ("pooling_mode_max_tokens", lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1)),
        (
            "pooling_mode_lasttoken",
            lambda hidden, mask: torch.stack([row[int(m.sum()) - 1] for row, m in zip(hidden, mask, strict=True)]),
        ),
    ],
)
def test_every_pooling_equals_its_definition_on_the_hidden_states(tmp_path: Path, mode: str, reduce) -> None:  # type: ignore[no-untyped-def]
    tiny_bert(tmp_path / "m")
    set_pooling(tmp_path / "m", **{mode: True})
    encoder = choose.choose(tmp_path / "m", 1)
    batch = encoder.input(TEXTS)
    network = AutoModel.from_pretrained(tmp_path / "m").eval()
    with torch.inference_mode():
        hidden = network(**{name: torch.from_numpy(array) for name, array in batch.items()}).last_hidden_state
    expected = reduce(hidden, torch.from_numpy(batch["attention_mask"])[..., None])
    assert cosines(encoder.encode(batch), expected.numpy()).min() > 0.99999


def test_a_dense_module_after_pooling_is_honoured(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer, models

    tiny_bert(tmp_path / "base")
    base = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    torch.manual_seed(0)
    dense = models.Dense(in_features=32, out_features=12)
    SentenceTransformer(modules=[base[0], base[1], dense], device="cpu").save(str(tmp_path / "dense"))
    ours = choose.choose(tmp_path / "dense", 1)
    assert ours.spec.dim == 12
    assert cosines(ours.documents(TEXTS), sentence_transformers_vectors(tmp_path / "dense", TEXTS)).min() > 0.99999
    rebuild(tmp_path / "dense", tmp_path / "again")
    assert cosines(ours.documents(TEXTS), sentence_transformers_vectors(tmp_path / "again", TEXTS)).min() > 0.99999


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("1_Pooling/config.json", "1_Pooling"),
    ],
)
def test_half_a_folder_is_refused_with_what_is_missing(tmp_path: Path, remove: str, message: str) -> None:
    tiny_bert(tmp_path / "m")
    (tmp_path / "m" / remove).unlink()
    with pytest.raises(UsageError, match=message):
        choose.model(tmp_path / "m")


def test_a_folder_that_is_no_model_says_what_a_model_looks_like(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a model"):
        choose.model(tmp_path)
    with pytest.raises(UsageError, match="no model 'nowhere'"):
        choose.model("nowhere")


def test_a_pickled_checkpoint_is_never_opened(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickle"):
        choose.model(tmp_path / "m")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        choose.model(tmp_path / "m")


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_bert(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    gone = next(name for name in weights if "intermediate" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UsageError, match="lack 1 tensors"):
        choose.model(tmp_path / "m")


def test_static_rounding_equals_torch_fake_quantize() -> None:
    values = torch.randn(3, 5, 32) * 4
    steps, step = _eight_bit.rounded(values, ActivationQuant(mode="static", scale=0.05, zero_point=100))
    assert torch.equal(steps, steps.round())
    assert torch.allclose(steps * step, torch.fake_quantize_per_tensor_affine(values, 0.05, 100, 0, 255), atol=1e-6)


def test_dynamic_rounding_of_a_row_does_not_depend_on_other_rows() -> None:
    values = torch.randn(4, 6, 32)
    louder = values.clone()
    louder[1:] *= 30
    steps, step = _eight_bit.rounded(values, ActivationQuant(mode="dynamic"))
    others, _ = _eight_bit.rounded(louder, ActivationQuant(mode="dynamic"))
    assert torch.equal(steps[0], others[0])
    assert (steps * step - values).abs().max() <= values.abs().amax(-1).max() / 254 + 1e-6


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_layer_is_a_product_of_whole_numbers_and_the_same_in_any_batch(
    folder: Path, bits: int, mode: Literal["static", "dynamic"]
) -> None:
    """Against numpy's int64; to the last bit, whatever else is in the batch."""
    model = choose.model(folder)
    layer = next(layer for layer in model.layers if layer.kind == "linear")
    model = plugins.load("methods", "quantize.weights_int")(bits=bits).apply(model, Samples(calibration=[], texts=[]))
    how = ActivationQuant(mode=mode, scale=0.05 if mode == "static" else 0.0, zero_point=100)
    compute = _eight_bit.eight_bit(
        dataclasses.replace(model, activations={layer.weight: how}), layer, Transformer().trainable(model)
    )
    values = torch.randn(7, 5, 32) * 2
    together = compute(values)
    assert all(torch.equal(compute(values[row : row + 1])[0], together[row]) for row in range(7))
    steps, step = _eight_bit.rounded(values, how)
    weights, scale = integers.eight_bit_steps(model.tensors[layer.weight])
    assert np.array_equal(weights, np.rint(weights))
    products = steps.numpy().astype(np.int64) @ weights.astype(np.int64).T
    expected = products * (np.asarray(step) * scale.reshape(-1)) + np.asarray(model.tensors[str(layer.bias)])
    assert np.allclose(together.detach().numpy(), expected, atol=1e-5)


def test_observe_shows_the_inputs_of_linear_layers_without_padding(folder: Path) -> None:
    model = choose.model(folder)
    read = TextInput(model.spec, model.files[TOKENIZER])
    batch = read(TEXTS)
    rows: dict[str, int] = {}
    Transformer().observe(model, [batch], lambda name, values: rows.update({name: len(values)}))
    tokens = int(batch["attention_mask"].sum())
    attended = {name: count for name, count in rows.items() if "pooler" not in name}
    assert len(attended) == 12
    assert set(attended.values()) == {tokens}


def test_macs_are_those_of_the_matrix_products(folder: Path) -> None:
    model = choose.model(folder)
    length, width, inner, heads_and_layers = 10, 32, 64, 2
    linear = heads_and_layers * length * (4 * width * width + 2 * width * inner)
    attention = heads_and_layers * 2 * length * length * width
    pooler = width * width
    assert Transformer().macs(model, length) in (linear + attention, linear + attention + pooler)


def test_macs_of_a_model_with_few_positions_are_those_of_its_longest_text(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = AutoModel.from_pretrained(tmp_path)
    table = network.embeddings.position_embeddings
    table.weight.data = table.weight.data[:40]
    table.num_embeddings = network.config.max_position_embeddings = 40
    network.save_pretrained(tmp_path)
    model = choose.model(tmp_path)
    assert Transformer().macs(model, 128) == Transformer().macs(model, 40) > Transformer().macs(model, 39)


def test_the_graph_takes_every_shape_and_gives_the_same_vectors(folder: Path) -> None:
    from slimseek.backends.onnxruntime import open_session

    model = choose.model(folder)
    session = open_session(Transformer().to_onnx(model).SerializeToString(), 1)
    reference = Transformer().run(model, 1)
    generator = np.random.default_rng(0)
    for rows, length in ((1, 3), (3, 17), (8, 64)):
        batch = {
            "input_ids": generator.integers(5, 20, (rows, length)),
            "attention_mask": np.ones((rows, length), np.int64),
        }
        batch["attention_mask"][0, length // 2 + 1 :] = 0
        assert np.allclose(session(batch), reference(batch), atol=1e-5)


def test_every_weight_of_the_graph_carries_its_tensors_name(folder: Path) -> None:
    model = choose.model(folder)
    names = {initializer.name.partition("#")[0] for initializer in Transformer().to_onnx(model).graph.initializer}
    used = {layer.weight for layer in model.layers if "pooler" not in layer.name}
    assert used <= names


# ---------------------------------------------------------------- graphs of one structure


def _traced(model: Model) -> bytes:
    skeleton._known.clear()
    transformer._graph.cache_clear()
    graph: bytes = Transformer().to_onnx(model).SerializeToString(deterministic=True)
    return graph


def _noisy(model: Model, seed: int) -> Model:
    random = np.random.default_rng(seed)
    tensors = {
        name: tensor + random.normal(0, 0.02, tensor.shape).astype(tensor.dtype) if tensor.dtype.kind == "f" else tensor
        for name, tensor in model.tensors.items()
    }
    return dataclasses.replace(model, tensors=tensors)


def test_a_graph_of_a_known_structure_is_not_traced_and_has_the_same_bytes(tmp_path, monkeypatch):
    first, second = (_noisy(tiny_model(tmp_path / "model"), seed) for seed in (0, 1))
    expected = _traced(second)
    _traced(first)
    monkeypatch.setattr(skeleton, "export", None)  # not callable: a trace would fail
    found = Transformer().to_onnx(second).SerializeToString(deterministic=True)
    assert found == expected


def test_a_graph_with_fewer_tokens_comes_from_the_same_skeleton(tmp_path, monkeypatch):
    model = _noisy(tiny_model(tmp_path / "model"), 0)
    texts = Samples(calibration=["one two"], texts=["one two three"])
    cut = plugins.load("methods", "simplify.vocabulary")().apply(model, texts)
    expected = _traced(cut)
    _traced(model)
    monkeypatch.setattr(skeleton, "export", None)
    assert Transformer().to_onnx(cut).SerializeToString(deterministic=True) == expected


def test_a_graph_in_which_tensors_were_merged_is_no_skeleton(tmp_path):
    """Untrained biases are all alike: the exporter makes one of them, which cannot be told apart again."""
    model = tiny_model(tmp_path / "model")
    biases = {name: np.full_like(tensor, 0.25) for name, tensor in model.tensors.items() if name.endswith("key.bias")}
    _traced(dataclasses.replace(model, tensors={**model.tensors, **biases}))
    other = _noisy(model, 3)
    found = Transformer().to_onnx(other).SerializeToString(deterministic=True)
    assert found == _traced(other)


def test_a_skeleton_that_does_not_compute_the_network_is_traced_anew(tmp_path, monkeypatch):
    first, second = (_noisy(tiny_model(tmp_path / "model"), seed) for seed in (0, 1))
    expected = _traced(second)
    _traced(first)
    [(structure, known)] = skeleton._known.items()
    wrong = {name: (tensor, not turned) for name, (tensor, turned) in known.turned.items() if "query" in tensor}
    skeleton._known[structure] = dataclasses.replace(known, turned=dict(known.turned) | wrong)
    found = Transformer().to_onnx(second).SerializeToString(deterministic=True)
    assert found == expected
