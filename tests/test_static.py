"""Tables of token vectors: as sentence-transformers and model2vec keep them, through every stage, and distilled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from slimseek import artifact, choose, compress, plugins, rebuild
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import TEXTS
from slimseek.methods.distil._tokens import shares, token_vectors
from slimseek.models._text.static_files import TABLE, static_model
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import CORPUS, many_texts, packaged, tiny_model, tiny_tokenizer

EMPTY = Samples(calibration=[], texts=[])
FULL = [text for text in TEXTS if text]


def table(width: int = 16) -> Array:
    rows = Tokenizer.from_buffer(tiny_tokenizer()).get_vocab_size()
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Model:
    return static_model(table(), tiny_tokenizer(), {})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def vectors(model: Model, texts: list[str] = FULL) -> Array:
    return choose.encoder(model, "x", 1).documents(texts)


def by_hand(rows: Array, tokenizer: bytes, text: str) -> Array:
    ids = Tokenizer.from_buffer(tokenizer).encode(text, add_special_tokens=False).ids
    mean = rows[ids].mean(0)
    return mean / np.linalg.norm(mean)


# ---------------------------------------------------------------- the family


def test_a_vector_is_the_mean_of_rows_without_special_tokens(model: Model) -> None:
    for text, vector in zip(FULL, vectors(model), strict=True):
        assert np.allclose(vector, by_hand(table(), tiny_tokenizer(), text), atol=1e-5), text
    plain = static_model(table(), tiny_tokenizer(), {}, normalise=False)
    ids = Tokenizer.from_buffer(tiny_tokenizer()).encode("the cat", add_special_tokens=False).ids
    assert np.allclose(vectors(plain, ["the cat"])[0], table()[ids].mean(0), atol=1e-6)
    assert np.allclose(vectors(model, [""])[0], table()[0] / np.linalg.norm(table()[0]), atol=1e-6), "[PAD]'s row"
    assert choose.family(model).macs(model, 128) == 128 * 16


def test_the_trainable_network_and_the_graph_compute_the_same(model: Model) -> None:
    for normalise in (True, False):
        one = static_model(table(), tiny_tokenizer(), {}, normalise=normalise)
        batch = choose.encoder(one, "x", 1).input(TEXTS)
        network = choose.family(one).trainable(one)
        with torch.no_grad():
            found = network(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
        assert np.allclose(found, vectors(one, list(TEXTS)), atol=1e-5)
        assert [name for name, _ in network.named_parameters()] == [TABLE]


def test_sentence_transformers_loads_what_is_saved_and_what_it_saves_is_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    choose.family(model).save(model, tmp_path / "ours")
    loaded = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert np.allclose(loaded.encode(FULL), vectors(model), atol=1e-5)
    embedding = StaticEmbedding(Tokenizer.from_buffer(tiny_tokenizer()), embedding_weights=table())
    for modules in ([embedding, Normalize()], [embedding]):
        place = tmp_path / f"theirs{len(modules)}"
        SentenceTransformer(modules=modules, device="cpu").save(str(place))
        found = choose.model(place)
        assert found.spec.family == "static"
        assert np.allclose(vectors(found), vectors(model), atol=1e-5)
    found = [name for name in plugins.names("models") if plugins.load("models", name)().recognises(place)]
    assert found == ["static"]


def test_a_folder_of_model2vec_is_read_with_shared_rows_and_weights(tmp_path: Path) -> None:
    rows, count = table()[:10], len(table())
    mapping, weights = np.arange(count) % 10, np.random.default_rng(1).uniform(0.5, 2, count).astype(np.float32)
    save_file({"embeddings": rows, "mapping": mapping, "weights": weights}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    found = choose.model(tmp_path)
    assert np.allclose(found.tensors[TABLE], rows[mapping] * weights[:, None])
    assert np.allclose(vectors(found, ["the river"])[0],
                       by_hand(rows[mapping] * weights[:, None], tiny_tokenizer(), "the river"), atol=1e-5)  # fmt: skip


def test_broken_folders_are_refused_in_a_line(model: Model, tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        (tmp_path / name).mkdir()
        choose.family(model).save(model, tmp_path / name)
        return tmp_path / name

    (saved("a") / "tokenizer.json").unlink()
    (saved("b") / "model.safetensors").write_bytes(b"nothing")
    save_file({"other": table()}, saved("c") / "model.safetensors")
    save_file({TABLE: table()[:9]}, saved("d") / "model.safetensors")
    listed = json.loads((saved("e") / "modules.json").read_text())
    listed[1]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "e" / "modules.json").write_text(json.dumps(listed))
    (saved("f") / "modules.json").write_text('[{"type": "StaticEmbedding"')
    for name, words in (
        ("a", "has no tokenizer.json"), ("b", "cannot be read as safetensors"), ("c", "has no table"),
        ("d", "and the table 9 rows"), ("e", "asks for Dense beside StaticEmbedding"), ("f", "is not valid"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words) as error:
            choose.model(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_both_runtimes_give_the_same_vectors(model: Model, tmp_path: Path, backend: str, bits: int) -> None:
    if bits < 32:
        step = plugins.load("methods", "quantize.weights_int")(bits=bits, granularity="group", group_size=16)
        model = step.apply(model, EMPTY)
        assert isinstance(model.tensors[TABLE], QuantizedTensor)
    package = packaged(model, backend, tmp_path)
    assert cosines(package.documents(list(TEXTS)), vectors(model, list(TEXTS))).min() > 0.9999
    assert (tmp_path / "model.onnx").stat().st_size < table().nbytes * bits / 32 * 1.3 + 6000


def test_a_table_goes_through_the_stages(model: Model, tmp_path: Path) -> None:
    """Vocabulary cut, integers, artifact, and back to a folder that sentence-transformers loads."""
    texts = list(CORPUS.values())
    steps = tuple(RecipeStep(method=name) for name in ("simplify.vocabulary", "quantize.weights_int"))
    ran = compress.run(model, Recipe(steps=steps), Samples(calibration=texts, texts=[texts[0], texts[3]]))
    assert ran.failed is None
    assert ran.model.tensors[TABLE].shape[0] < len(table())
    (tmp_path / "artifact").mkdir()
    artifact.write(ran.model, tmp_path / "artifact")
    read = artifact.read(tmp_path / "artifact")[1]
    assert np.array_equal(vectors(read), vectors(ran.model))
    assert rebuild.rebuild(tmp_path / "artifact", tmp_path / "rebuilt", threads=1).status == "passed"
    loaded = SentenceTransformer(str(tmp_path / "rebuilt"), device="cpu")
    assert cosines(loaded.encode([texts[0]]), vectors(model, [texts[0]])).min() > 0.99


# ---------------------------------------------------------------- distil.static


def test_tokens_are_those_of_the_teacher_between_its_special_tokens(teacher: Model) -> None:
    ids = Tokenizer.from_buffer(tiny_tokenizer()).get_vocab()
    found = token_vectors(teacher, tiny_tokenizer(), 1)
    encoder = choose.encoder(teacher, "x", 1)
    for word in ("river", "apple", "q"):
        assert np.allclose(found[ids[word]], encoder.documents([word])[0], atol=1e-5)
    piece = encoder.encode(encoder.input.batch([[ids["[CLS]"], ids["##q"], ids["[SEP]"]]]))
    assert np.allclose(found[ids["##q"]], piece[0], atol=1e-5)
    document = json.loads(tiny_tokenizer())
    document["model"]["vocab"] |= {"snow": len(ids), "##now": len(ids) + 1}
    more = token_vectors(teacher, json.dumps(document).encode(), 1)
    assert np.allclose(more[len(ids)], encoder.documents(["snow"])[0], atol=1e-5), "spelled by the teacher's tokenizer"
    assert np.allclose(more[len(ids) + 1], encoder.documents(["now"])[0], atol=1e-5)
    assert np.allclose(more[: len(ids)], found, atol=1e-6)


def test_shares_are_counts_with_one_added() -> None:
    ids = Tokenizer.from_buffer(tiny_tokenizer()).get_vocab()
    found = shares(tiny_tokenizer(), ["the cat the", "cat dog the"])
    total = 6 + len(ids)
    assert found.sum() == pytest.approx(1)
    for word, count in (("the", 3), ("cat", 2), ("dog", 1), ("river", 0), ("[CLS]", 0)):
        assert found[ids[word]] == pytest.approx((count + 1) / total)


@pytest.mark.parametrize("loss", ["cosine", "similarity"])
def test_a_table_takes_the_teachers_place(teacher: Model, tmp_path: Path, loss: str) -> None:
    texts = many_texts(400)
    step = plugins.load("methods", "distil.static")(steps=200, batch_size=16, loss=loss)
    student = step.apply(teacher, Samples(calibration=[], texts=texts[:300]))
    assert (student.spec.family, student.spec.dim, student.spec.normalised) == ("static", 32, True)
    own, other = vectors(student, texts[300:]), vectors(teacher, texts[300:])
    plain = static_model(token_vectors(teacher, tiny_tokenizer(), 1), tiny_tokenizer(), {})
    error, of_plain = (float(np.abs(one @ one.T - other @ other.T).mean())
                       for one in (own, vectors(plain, texts[300:])))  # fmt: skip
    assert error < 0.7 * of_plain, "unseen texts lie to each other as for the teacher"
    assert np.allclose(cosines(vectors(student, [""]), vectors(teacher, [""])), 1, atol=1e-4) or loss == "similarity"
    [note] = step.notes(teacher, student)
    assert note.startswith(f"a table of {len(table())} tokens x 32 in the place of {teacher.parameters:,} weights")
    (tmp_path / "saved").mkdir()
    choose.family(student).save(student, tmp_path / "saved")
    assert np.allclose(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts[:5]),
                       vectors(student, texts[:5]), atol=1e-5)  # fmt: skip


def test_the_first_table_is_mapped_to_the_teachers_vectors_before_any_training(teacher: Model) -> None:
    texts = many_texts(400)
    step = plugins.load("methods", "distil.static")(steps=1, learning_rate=1e-9)
    student = step.apply(teacher, Samples(calibration=[], texts=texts[:300]))
    share = shares(tiny_tokenizer(), texts[:300])
    weighted = token_vectors(teacher, tiny_tokenizer(), 1) * (1e-3 / (1e-3 + share))[:, None].astype(np.float32)
    unmapped = static_model(weighted, tiny_tokenizer(), {})
    mapped, plain = (1 - float(cosines(vectors(one, texts[300:]), vectors(teacher, texts[300:])).mean())
                     for one in (student, unmapped))  # fmt: skip
    assert mapped < 0.7 * plain


def test_the_width_is_the_asked_one_and_the_tokenizer_the_models_own(teacher: Model) -> None:
    texts = [text for text in many_texts(400) if "apple" not in text]
    given = Samples(calibration=[], texts=texts, original=teacher)
    cut = plugins.load("methods", "simplify.vocabulary")().apply(teacher, given)
    student = plugins.load("methods", "distil.static")(steps=20, dim=8).apply(cut, given)
    assert student.tensors[TABLE].shape == (cut.tensors[cut.spec.token_table].shape[0], 8)
    own, other = vectors(student, texts[:50]), vectors(teacher, texts[:50])
    assert np.corrcoef((own @ own.T).ravel(), (other @ other.T).ravel())[0, 1] > 0.7


def test_what_cannot_be_put_in_a_table_is_refused(teacher: Model, model: Model) -> None:
    given = Samples(calibration=[], texts=FULL)
    step = plugins.load("methods", "distil.static")(steps=2)
    with pytest.raises(NoEffect, match="is a table of token vectors already"):
        step.apply(model, given)
    arrays = dataclasses.replace(
        teacher, spec=msgspec.structs.replace(teacher.spec, family="onnx_array", preprocess=None)
    )
    with pytest.raises(UsageError, match="a model of the family onnx_array takes no texts"):
        step.apply(arrays, given)
    name = next(iter(teacher.tensors))
    broken = dataclasses.replace(teacher, tensors=dict(teacher.tensors) | {name: teacher.tensors[name] * np.nan})
    with pytest.raises(UsageError, match=f"{name} holds NaN"):
        step.apply(broken, given)
    for bad in ({"dim": 0}, {"weight": 0.0}, {"weight": float("inf")}, {"steps": 0}):
        with pytest.raises(UsageError, match=rf"distil\.static: {next(iter(bad))} is"):
            plugins.load("methods", "distil.static")(**bad)
