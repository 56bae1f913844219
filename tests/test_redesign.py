"""simplify.redesign: the shape by its rule, and what is kept by hand-made slices and transformers' own reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel

from slimseek import artifact, choose, compress, integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.methods.simplify.redesign import predicted
from slimseek.rebuild import rebuild
from slimseek.schema import Array, Model, Recipe, RecipeStep, Samples
from small import BACKENDS, CORPUS, DEPTH, KINDS, bare, packaged, tiny_bert, tiny_model

TEXTS = list(CORPUS.values())
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
WIDE = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 128}


def redesigned(model: Model, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", "simplify.redesign")(**parameters).apply(model, SAMPLES)
    return changed


def wide(folder: Path, kind: str) -> Model:
    bare(folder, kind, **WIDE, **({"dim": 64, "n_heads": 8, "hidden_dim": 128} if kind == "DistilBert" else {}))
    return choose.model(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Six blocks of 64 channels, eight heads, with pooling and normalisation."""
    path = tmp_path_factory.mktemp("model") / "wide"
    tiny_bert(path)
    bare(path, "Bert", max_position_embeddings=128, **WIDE)
    pooling = json.loads((path / "1_Pooling" / "config.json").read_text()) | {"word_embedding_dimension": 64}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return choose.model(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_becomes_an_ordinary_smaller_one(tmp_path: Path, kind: str) -> None:
    whole = wide(tmp_path / kind, kind)
    smaller = redesigned(whole, size="12%")
    shape = choose.family(whole).widths(smaller)
    assert shape.hidden < 64
    assert shape.hidden == 8 * shape.heads == smaller.spec.dim
    assert shape.inner == 2 * shape.hidden
    (tmp_path / "again").mkdir()
    choose.family(smaller).save(smaller, tmp_path / "again")
    _, info = AutoModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert all(name.startswith("pooler.") for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    assert not info.get("mismatched_keys")
    vectors = choose.encoder(smaller, kind, 1).documents(TEXTS)
    assert np.allclose(choose.choose(tmp_path / "again", 1).documents(TEXTS), vectors, atol=1e-6)
    assert len({row.tobytes() for row in vectors}) == len(TEXTS), "it tells texts apart"


def shares(*parts: tuple[Array, int]) -> Array:
    """Of each place along an axis: its share of the squares, summed over arrays."""
    found = []
    for array, axis in parts:
        squares = np.moveaxis(np.square(np.asarray(array, np.float64)), axis, 0).reshape(array.shape[axis], -1).sum(1)
        found.append(squares / squares.sum())
    return sum(found)  # type: ignore[return-value]


def test_heads_inner_units_and_channels_are_those_that_weigh_most(model: Model) -> None:
    """BERT by hand, names and axes written out: every tensor of a block is the original's, sliced."""
    smaller = choose.family(model).narrowed(model, 40, 72)
    old, new = ({name: np.asarray(tensor) for name, tensor in one.tensors.items()} for one in (model, smaller))
    table = "transformer.embeddings.word_embeddings.weight"
    channels = [next(place for place in range(64) if np.array_equal(old[table][:, place], column))
                for column in new[table].T]  # fmt: skip
    assert channels == sorted(set(channels))
    assert len(channels) == 40
    for number in range(DEPTH):
        block = f"transformer.encoder.layer.{number}"
        heads = shares(*((old[f"{block}.attention.self.{name}.{part}"], 0)
                         for name in ("query", "key", "value") for part in ("weight", "bias")),
                       (old[f"{block}.attention.output.dense.weight"], 1)).reshape(8, 8).sum(1)  # fmt: skip
        rows = np.concatenate([np.arange(8 * head, 8 * head + 8) for head in np.sort(np.argsort(-heads)[:5])])
        inner = np.sort(np.argsort(-shares(
            (old[f"{block}.intermediate.dense.weight"], 0), (old[f"{block}.intermediate.dense.bias"], 0),
            (old[f"{block}.output.dense.weight"], 1)))[:72])  # fmt: skip
        for name, slices in {
            "attention.self.query.weight": (rows, channels), "attention.self.key.bias": (rows,),
            "attention.self.value.weight": (rows, channels), "attention.output.dense.weight": (channels, rows),
            "attention.output.LayerNorm.weight": (channels,), "intermediate.dense.weight": (inner, channels),
            "intermediate.dense.bias": (inner,), "output.dense.weight": (channels, inner),
            "output.dense.bias": (channels,),
        }.items():  # fmt: skip
            expected = old[f"{block}.{name}"][np.ix_(*slices)]
            assert np.array_equal(new[f"{block}.{name}"], expected), f"{block}.{name}"
    axes = {"embeddings": 1, "LayerNorm": 0}
    weight = shares(*((array, axes["embeddings" if array.ndim == 2 else "LayerNorm"]) for name, array in old.items()
                      if name.startswith("transformer.embeddings.") and array.ndim and array.dtype == np.float32),
                    *residual(old))  # fmt: skip
    assert sorted(np.argsort(-weight)[:40]) == channels


def residual(old: dict[str, Array]) -> list[tuple[Array, int]]:
    """Tensors of the blocks and the pooler along the axes of channels."""
    found = [(old["transformer.pooler.dense.weight"], axis) for axis in (0, 1)] + [
        (old["transformer.pooler.dense.bias"], 0)
    ]
    for number in range(DEPTH):
        block = f"transformer.encoder.layer.{number}"
        found += [(old[f"{block}.attention.self.{name}.weight"], 1) for name in ("query", "key", "value")]
        found += [(old[f"{block}.intermediate.dense.weight"], 1)]
        for name in ("attention.output", "output"):
            found += [(old[f"{block}.{name}.dense.{part}"], 0) for part in ("weight", "bias")]
            found += [(old[f"{block}.{name}.LayerNorm.{part}"], 0) for part in ("weight", "bias")]
    return found


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("size", ["60%", "35%"])
def test_the_budget_is_kept_by_what_is_really_stored(model: Model, bits: int, size: str) -> None:
    smaller = redesigned(model, size=size, bits=bits)
    stored = [one if bits == 32 else plugins.load("methods", "quantize.weights_int")(bits=bits).apply(one, SAMPLES)
              for one in (model, smaller)]  # fmt: skip
    whole, left = (sum(integers.stored_bytes(tensor) for tensor in one.tensors.values()) for one in stored)
    assert left <= whole * float(size.rstrip("%")) / 100
    assert predicted({name: tensor.shape for name, tensor in smaller.tensors.items()}, smaller, bits) == left


def test_of_all_shapes_under_the_budget_the_best_balanced_of_the_largest_is_taken(model: Model) -> None:
    """By building every shape of the grid."""
    family = choose.family(model)
    budget = 60_000
    found = []
    for heads in range(2, 9):
        narrow = family.narrowed(model, 8 * heads, 16 * heads) if heads < 8 else model
        for layers in range(1, DEPTH + 1):
            shape = narrow if layers == DEPTH else plugins.load("methods", "prune.layers")(keep=layers).apply(
                narrow, SAMPLES)  # fmt: skip
            stored = plugins.load("methods", "quantize.weights_int")().apply(shape, SAMPLES)
            size = sum(integers.stored_bytes(tensor) for tensor in stored.tensors.values())
            own, balance = abs(np.log(64 / 6 / 64)), abs(np.log(8 * heads / layers / 64))
            if size <= budget and (16 <= 8 * heads / layers <= 128 or balance <= own):
                found.append((shape.parameters, balance, layers, 8 * heads))
    most = max(parameters for parameters, *_ in found)
    best = min((entry for entry in found if entry[0] >= 0.9 * most), key=lambda entry: (entry[1], -entry[0]))
    shape = family.widths(redesigned(model, size="60KB"))
    assert (shape.layers, shape.hidden) == best[2:]


def test_a_recipe_records_it_and_the_folder_is_one_of_sentence_transformers(tmp_path: Path, model: Model) -> None:
    from sentence_transformers import SentenceTransformer

    ran = compress.run(
        model, Recipe(steps=(RecipeStep(method="simplify.redesign", parameters={"size": "30%"}),)), SAMPLES
    )
    assert ran.failed is None
    [record] = ran.records
    assert record.notes[0].startswith("6 blocks of 64 channels, 8 heads, 128 inner units -> ")
    assert record.bytes_after < 0.4 * record.bytes_before
    (tmp_path / "artifact").mkdir()
    artifact.write(ran.model, tmp_path / "artifact")
    rebuild(tmp_path / "artifact", tmp_path / "again")
    vectors = choose.encoder(ran.model, "x", 1).documents(TEXTS)
    theirs = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert theirs.get_sentence_embedding_dimension() == ran.model.spec.dim
    assert cosines(theirs.encode(TEXTS), vectors).min() > 0.99999
    for backend in BACKENDS:
        assert cosines(packaged(ran.model, backend, tmp_path / backend).documents(TEXTS), vectors).min() > 0.99999


def test_a_dense_module_keeps_its_outputs_and_takes_fewer_channels(model: Model) -> None:
    short = plugins.load("methods", "simplify.output_dim")(dim=12).apply(model, SAMPLES)
    smaller = redesigned(short, size="12%")
    hidden = choose.family(model).widths(smaller).hidden
    assert hidden < 64
    assert smaller.spec.dim == 12
    assert smaller.tensors["dense.0.linear.weight"].shape == (12, hidden)
    assert choose.encoder(smaller, "x", 1).documents(TEXTS).shape == (len(TEXTS), 12)


def test_what_cannot_be_is_refused_in_a_line(tmp_path: Path, model: Model) -> None:
    for parameters, words in (
        ({"size": "10 litres"}, "'10 litres' is not a size"),
        ({"bits": 1}, "bits is 1; 2 to 8, 16 and 32"),
    ):
        with pytest.raises(UsageError, match=f"^simplify.redesign: {words}") as error:
            redesigned(model, **parameters)
        assert not isinstance(error.value, NoEffect)
        assert "\n" not in str(error.value)
    with pytest.raises(NoEffect, match="size is 100B, 100 bytes; the smallest sound shape has"):
        redesigned(model, size="100B")
    with pytest.raises(NoEffect, match="the model's own shape has no more than 100%"):
        redesigned(model, size="100%")
    for method, parameters, words in (
        ("quantize.weights_int", {}, "redesign before quantizing"),
        ("quantize.smooth", {"alpha": 0.5}, "redesign before that"),
        ("prune.heads", {"amount": 0.3, "strategy": "importance"}, "redesign before pruning"),
        ("simplify.low_rank", {"energy": 0.5}, "redesign before"),
    ):
        changed = plugins.load("methods", method)(**parameters).apply(model, SAMPLES)
        with pytest.raises(UsageError, match=words):
            redesigned(changed)
    bare(tmp_path / "albert", "Albert", embedding_size=8)
    with pytest.raises(UsageError, match=r"^simplify\.redesign: .*numbered otherwise"):
        redesigned(choose.model(tmp_path / "albert"))
    tiny = tiny_model(tmp_path / "tiny")
    assert choose.family(tiny).widths(tiny).hidden == 32
