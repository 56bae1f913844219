"""prune.layers against transformers' own models with the same blocks, loaded from the files it leaves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import AutoModel

from slimseek import choose, compress, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.schema import Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import CORPUS, DEPTH, KINDS, bare, tiny_bert

TEXTS = list(CORPUS.values())
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)


def pruned(model: Model, keep: Any = None) -> Model:
    changed: Model = plugins.load("methods", "prune.layers")(keep=keep).apply(model, SAMPLES)
    return changed


def saved(model: Model, folder: Path) -> Path:
    folder.mkdir()
    choose.family(model).save(model, folder)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of six blocks, with pooling and normalisation."""
    path = tmp_path_factory.mktemp("model") / "deep"
    tiny_bert(path)
    bare(path, "Bert", hidden_size=32, num_attention_heads=4, max_position_embeddings=128)
    return choose.model(path)


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize("keep", [(0, 2, 5), (0, 1), (0,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_is_transformers_own_with_those_blocks(tmp_path: Path, kind: str, keep: tuple[int, ...]) -> None:
    """CASES D4: configuration, weights and file agree. The reference is the saved network with a shorter list."""
    reference = bare(tmp_path / "whole", kind)
    model = pruned(choose.model(tmp_path / "whole"), keep)
    folder = saved(model, tmp_path / "pruned")
    blocks = reference.get_submodule(KINDS[kind][1])
    parent, _, name = KINDS[kind][1].rpartition(".")
    setattr(reference.get_submodule(parent), name, nn.ModuleList([blocks[number] for number in keep]))
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] or all(key.startswith("pooler.") for key in info["missing_keys"])
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == len(keep)
    written, given = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "whole"))
    assert written["n_layers" if kind == "DistilBert" else "num_hidden_layers"] == len(keep)
    assert set(written) == set(given), "no second key says another depth"
    ids = torch.randint(5, 90, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        ours = loaded.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        theirs = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)
    # What slimseek itself makes of the data, and of the folder.
    vectors = choose.encoder(model, "pruned", 1).documents(TEXTS)
    assert np.allclose(choose.choose(folder, 1).documents(TEXTS), vectors, atol=1e-6)
    names = set(load_file(folder / "model.safetensors"))
    assert names == {tensor.removeprefix("transformer.") for tensor in model.tensors}
    assert {layer.weight for layer in model.layers} <= set(model.tensors)
    assert {layer.bias for layer in model.layers if isinstance(layer.bias, str)} <= set(model.tensors)
    assert sum(value.size for value in load_file(folder / "model.safetensors").values()) == sum(
        value.size for value in model.tensors.values()
    )


def test_a_fresh_process_loads_it_with_sentence_transformers(deep: Model, tmp_path: Path) -> None:
    model = pruned(deep, (0, 2, 5))
    folder = saved(model, tmp_path / "pruned")
    script = (
        "import sys, json; from sentence_transformers import SentenceTransformer; from transformers import AutoModel;"
        "v = SentenceTransformer(sys.argv[1], device='cpu').encode(json.loads(sys.argv[2]));"
        "assert AutoModel.from_pretrained(sys.argv[1]).config.num_hidden_layers == 3;"
        "assert 'slimseek' not in sys.modules; print(json.dumps(v.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), json.dumps(TEXTS)], capture_output=True, text=True, check=True
    )
    theirs = np.array(json.loads(done.stdout.strip().splitlines()[-1]), np.float32)
    assert np.allclose(choose.encoder(model, "pruned", 1).documents(TEXTS), theirs, atol=1e-5)


def test_attention_kinds_go_with_their_blocks(tmp_path: Path) -> None:
    """ModernBERT's files often give the period alone; blocks 0 and 4 look at all tokens, the rest nearby."""
    bare(tmp_path / "m", "ModernBert")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config.pop("layer_types")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"global_attn_every_n_layers": 4}))
    reference = AutoModel.from_pretrained(tmp_path / "m").eval()
    reference.layers = nn.ModuleList([reference.layers[number] for number in (0, 3, 4)])
    model = pruned(choose.model(tmp_path / "m"), (0, 3, 4))
    assert json.loads(model.files["config.json"])["layer_types"] == [
        "full_attention", "sliding_attention", "full_attention",
    ]  # fmt: skip
    loaded = AutoModel.from_pretrained(saved(model, tmp_path / "pruned")).eval()
    ids = torch.randint(5, 90, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded(ids).last_hidden_state, reference(ids).last_hidden_state, atol=1e-5)


# ---------------------------------------------------------------- which blocks


@pytest.mark.parametrize(
    ("keep", "blocks"),
    [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (4, [0, 1, 3, 5]), (5, [0, 1, 2, 3, 5]), (None, [0, 2, 5])],
)
def test_a_number_is_spread_evenly_and_the_map_is_written(deep: Model, keep: int | None, blocks: list[int]) -> None:
    """CASES D7: which blocks survive is said, and is not always the first ones."""
    ran = compress.run(deep, Recipe(steps=(RecipeStep(method="prune.layers", parameters={"keep": keep}),)), SAMPLES)
    gone = [number for number in range(DEPTH) if number not in blocks]
    places = ", ".join(f"{old} -> {new}" for new, old in enumerate(blocks))
    [record] = ran.records
    assert record.notes == (f"blocks kept (old -> new): {places}; dropped: {', '.join(map(str, gone))}",)
    assert record.error_mean is None, "blocks in one another's place are no rounding error"
    for new, old in enumerate(blocks):
        name = "transformer.encoder.layer.{}.output.dense.weight"
        assert ran.model.tensors[name.format(new)] is deep.tensors[name.format(old)]
    assert record.parameters_before - record.parameters_after == len(gone) * (
        4 * (32 * 32 + 32) + 2 * 32 * 24 + 24 + 32 + 4 * 32
    )
    assert record.macs_after < record.macs_before


def test_a_recipe_file_takes_both_forms(deep: Model) -> None:
    from slimseek import recipe

    for text, keep in (("[0, 2, 5]", (0, 2, 5)), ("3", 3)):
        read = recipe.parse(f"version: 1\nsteps:\n  - prune.layers: {{keep: {text}}}\n")
        assert recipe.build(read.steps[0]).keep == keep
    for text in ("half", "[0, a]", "true", "0.5"):
        with pytest.raises(UsageError, match="a whole number is wanted, or a list") as error:
            recipe.build(recipe.parse(f"version: 1\nsteps:\n  - prune.layers: {{keep: {text}}}\n").steps[0])
        assert "\n" not in str(error.value)


def test_what_cannot_be_kept_is_refused_in_a_line(deep: Model) -> None:
    for keep, words in (
        ((), "keep is empty"),
        ((0, 2, 2), r"keep is \[0, 2, 2\]; each block once"),
        ((3, 1), r"keep is \[3, 1\]; each block once and ascending"),
        ((0, 6), r"keep is \[0, 6\]; blocks 0 to 5"),
        ((-1, 3), r"keep is \[-1, 3\]; blocks 0 to 5"),
        (0, "keep is 0; 1 to 6"),
        (-2, "keep is -2; 1 to 6"),
        (7, "keep is 7; 1 to 6"),
    ):
        with pytest.raises(UsageError, match=f"^prune.layers: {words}") as error:
            pruned(deep, keep)
        assert not isinstance(error.value, NoEffect)
        assert "\n" not in str(error.value)
    for keep in (6, (0, 1, 2, 3, 4, 5)):
        with pytest.raises(NoEffect, match=r"prune\.layers: keep is all of the 6 blocks"):
            pruned(deep, keep)


# ---------------------------------------------------------------- models of other kinds


def test_integers_roundings_and_factors_go_with_their_blocks(deep: Model) -> None:
    model = deep
    for method, parameters in (
        ("quantize.smooth", {"alpha": 0.5}),
        ("quantize.weights_int", {"bits": 8, "granularity": "channel"}),
        ("quantize.activations_int", {"mode": "static"}),
    ):
        model = plugins.load("methods", method)(**parameters).apply(model, SAMPLES)
    after = pruned(model, (0, 4))
    old, new = (f"transformer.encoder.layer.{number}.intermediate.dense.weight" for number in (4, 1))
    assert isinstance(after.tensors[new], QuantizedTensor)
    assert after.tensors[new] is model.tensors[old]
    assert after.smoothing[new] is model.smoothing[old]
    assert after.activations[new] == model.activations[old]
    for part in (after.smoothing, after.activations):
        assert {name for name in part if ".layer." in name and name.split(".layer.")[1][0] not in "01"} == set()
    # The same as rounding the pruned model: the order of the two makes no difference to the blocks' integers.
    first = plugins.load("methods", "quantize.weights_int")(bits=8, granularity="channel").apply(
        pruned(deep, (0, 4)), SAMPLES
    )
    plain = pruned(plugins.load("methods", "quantize.weights_int")(bits=8, granularity="channel").apply(deep, SAMPLES),
                   (0, 4))  # fmt: skip
    vectors = [choose.encoder(one, "x", 1).documents(TEXTS) for one in (first, plain)]
    assert np.array_equal(*vectors)
    assert np.isfinite(choose.encoder(after, "x", 1).documents(TEXTS)).all()


def test_models_whose_blocks_cannot_be_told_or_moved_are_refused(tmp_path: Path) -> None:
    bare(tmp_path / "albert", "Albert", embedding_size=8)
    bare(tmp_path / "modern", "ModernBert")
    for folder, keep, words in (
        ("albert", 3, r"config.json says 6 blocks, and the tensors are numbered otherwise \(1 of transformer.encoder"),
        ("modern", (1, 3), r"block 1 cannot take the place of block 0: they differ in attn_norm.weight; keep 0"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            pruned(choose.model(tmp_path / folder), keep)
        assert "\n" not in str(error.value)


def test_models_of_other_families_are_refused(deep: Model) -> None:
    spec = msgspec.structs.replace(deep.spec, family="onnx_graph")
    with pytest.raises(UsageError, match="this model is of onnx_graph"):
        pruned(dataclasses.replace(deep, spec=spec), 2)


def test_a_dense_layer_of_the_same_number_is_no_block(tmp_path: Path) -> None:
    """Two blocks and two Dense modules: their tensors are numbered alike."""
    from sentence_transformers import SentenceTransformer, models

    tiny_bert(tmp_path / "base")
    base = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    dense = [models.Dense(32, 32) for _ in range(2)]
    SentenceTransformer(modules=[base[0], base[1], *dense], device="cpu").save(str(tmp_path / "dense"))
    model = choose.model(tmp_path / "dense")
    after = pruned(model, 1)
    assert {name for name in after.tensors if name.startswith("dense.")} == {
        name for name in model.tensors if name.startswith("dense.")
    }
    assert json.loads(after.files["config.json"])["num_hidden_layers"] == 1
