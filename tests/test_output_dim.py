"""simplify.output_dim against numpy on the original's vectors, and against sentence-transformers itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimseek import artifact, choose, compress, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.methods._principal import leading
from slimseek.rebuild import rebuild
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples
from small import BACKENDS, CORPUS, bare, conv_network, packaged, tiny_bert, tiny_model

TEXTS = [*CORPUS.values(), "stone", "the engine", "a dog near the bridge", "winter apples", "forest 7"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)


def shortened(model: Model, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", "simplify.output_dim")(**parameters).apply(model, samples)
    return changed


def vectors_of(model: Model, items: list[str] = TEXTS) -> Array:
    return choose.encoder(model, "model", 1).documents(items)


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def principal(vectors: Array, dim: int) -> Array:
    """Coordinates on the leading right singular vectors: numpy's own decomposition, of the vectors themselves."""
    return vectors @ np.linalg.svd(vectors.astype(np.float64), full_matrices=False)[2][:dim].T


def sentence_transformers_vectors(folder: Path) -> Array:
    """What sentence-transformers gives in a process that has never imported slimseek."""
    script = (
        "import sys, json; from sentence_transformers import SentenceTransformer;"
        "v = SentenceTransformer(sys.argv[1], device='cpu').encode(json.loads(sys.argv[2]));"
        "assert 'slimseek' not in sys.modules; print(json.dumps(v.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder), json.dumps(TEXTS)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return np.array(json.loads(done.stdout.strip().splitlines()[-1]), np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_pca_keeps_the_inner_products_as_near_as_that_many_elements_can(model: Model) -> None:
    whole, found = vectors_of(model), vectors_of(shortened(model, dim=6))
    assert found.shape == (len(TEXTS), 6)
    expected = unit(principal(whole, 6))
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    matrix, kept = leading(whole, 6)
    assert np.allclose(matrix @ matrix.T, np.eye(6), atol=1e-5)
    sizes = np.linalg.svd(whole.astype(np.float64), compute_uv=False) ** 2
    assert kept == pytest.approx(sizes[:6].sum() / sizes.sum())
    random = np.random.default_rng(0)
    error = np.square(whole @ matrix.T @ matrix - whole).sum()
    for _ in range(100):
        other = np.linalg.qr((matrix + random.normal(0, 0.1, matrix.shape)).T)[0].T
        assert np.square(whole @ other.T @ other - whole).sum() >= error - 1e-6


def test_cut_is_the_first_elements(model: Model) -> None:
    found = vectors_of(shortened(model, dim=6, method="cut"))
    assert np.allclose(found, unit(vectors_of(model)[:, :6]), atol=1e-6)


@pytest.mark.parametrize("method", ["pca", "cut"])
def test_sentence_transformers_runs_what_is_rebuilt(tmp_path: Path, model: Model, method: str) -> None:
    ran = compress.run(model, Recipe(steps=(RecipeStep(method="simplify.output_dim", parameters={
        "dim": 12, "method": method}),)), SAMPLES)  # fmt: skip
    assert ran.failed is None
    assert ran.records[0].notes[0].startswith("32 -> 12 elements: ")
    smaller = ran.model
    assert (smaller.spec.dim, smaller.spec.normalised) == (12, True)
    assert smaller.parameters == model.parameters + 12 * 32
    (tmp_path / "artifact").mkdir()
    artifact.write(smaller, tmp_path / "artifact")
    vectors = vectors_of(smaller)
    assert np.array_equal(choose.choose(tmp_path / "artifact", 1).documents(TEXTS), vectors)
    rebuild(tmp_path / "artifact", tmp_path / "again")
    modules = json.loads((tmp_path / "again" / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert [module["idx"] for module in modules] == [0, 1, 2, 3]
    assert np.allclose(sentence_transformers_vectors(tmp_path / "again"), vectors, atol=1e-5)
    opened = choose.choose(tmp_path / "again", 1)
    assert opened.spec.dim == 12
    assert np.allclose(opened.documents(TEXTS), vectors, atol=1e-6)


def test_a_bare_folder_of_transformers_becomes_one_of_sentence_transformers(tmp_path: Path) -> None:
    bare(tmp_path / "bare", "Roberta")
    smaller = shortened(choose.model(tmp_path / "bare"), dim=5)
    choose.family(smaller).save(smaller, tmp_path / "bare")
    opened = choose.model(tmp_path / "bare")
    assert opened.spec.dim == 5
    assert np.allclose(vectors_of(opened), vectors_of(smaller), atol=1e-6)
    names = [module["type"].rpartition(".")[2] for module in json.loads(opened.files["modules.json"])]
    assert names == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_again_it_goes_into_the_map_that_is_there(model: Model) -> None:
    once = shortened(model, dim=20)
    twice = shortened(once, dim=7)
    assert twice.spec.dim == 7
    assert twice.tensors["dense.0.linear.weight"].shape == (7, 32)
    assert [name for name in twice.tensors if name.startswith("dense.")] == ["dense.0.linear.weight"]
    expected = unit(principal(vectors_of(once), 7))
    assert np.allclose(vectors_of(twice) @ vectors_of(twice).T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_a_dense_module_with_a_bias_keeps_its_function(tmp_path: Path, activation: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer, models

    tiny_bert(tmp_path / "base")
    base = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    torch.manual_seed(0)
    dense = models.Dense(32, 14, bias=True, activation_function=getattr(torch.nn, activation)())
    torch.nn.init.normal_(dense.linear.bias)
    SentenceTransformer(modules=[base[0], base[1], dense, base[2]], device="cpu").save(str(tmp_path / "dense"))
    model = choose.model(tmp_path / "dense")
    smaller = shortened(model, dim=5)
    weights = [name for name in smaller.tensors if name.startswith("dense.") and name.endswith("weight")]
    assert len(weights) == (2 if activation == "Tanh" else 1), "a map behind a curve cannot go into what is before it"
    expected = unit(principal(vectors_of(model), 5))
    assert np.allclose(vectors_of(smaller) @ vectors_of(smaller).T, expected @ expected.T, atol=1e-5)
    (tmp_path / "again").mkdir()
    choose.family(smaller).save(smaller, tmp_path / "again")
    assert np.allclose(sentence_transformers_vectors(tmp_path / "again"), vectors_of(smaller), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_runtimes_run_it_float_and_rounded(tmp_path: Path, model: Model, backend: str) -> None:
    smaller = shortened(model, dim=16)
    assert cosines(packaged(smaller, backend, tmp_path / "float").documents(TEXTS), vectors_of(smaller)).min() > 0.99999
    rounded = smaller
    for method, parameters in (("quantize.weights_int", {}), ("quantize.activations_int", {"mode": "static"})):
        rounded = plugins.load("methods", method)(**parameters).apply(rounded, SAMPLES)
    assert isinstance(rounded.tensors["dense.0.linear.weight"], QuantizedTensor)
    mine = vectors_of(rounded)
    assert cosines(packaged(rounded, backend, tmp_path / "int8").documents(TEXTS), mine).min() > 0.999
    assert cosines(mine, vectors_of(smaller)).min() > 0.98
    later = shortened(plugins.load("methods", "quantize.weights_int")().apply(model, SAMPLES), dim=16)
    assert cosines(packaged(later, backend, tmp_path / "later").documents(TEXTS), vectors_of(later)).min() > 0.999


def test_a_graph_gets_a_product_behind_its_vector(tmp_path: Path, model: Model) -> None:
    """A text encoder and a network of pictures, each rebuilt and in both runtimes, and shortened once more."""
    random = np.random.default_rng(0)
    for number in range(12):
        np.save(tmp_path / f"{number}.npy", random.normal(size=(3, 12, 12)).astype(np.float32))
    pictures = [str(tmp_path / f"{number}.npy") for number in range(12)]
    (tmp_path / "text").mkdir()
    low = plugins.load("methods", "simplify.low_rank")(energy=0.5).apply(model, SAMPLES)
    choose.family(low).save(low, tmp_path / "text")
    for folder, items in ((tmp_path / "text", TEXTS), (conv_network(tmp_path / "net")[0], pictures)):
        whole = choose.model(folder)
        assert whole.spec.family.startswith("onnx_")
        smaller = shortened(whole, Samples(calibration=items, texts=items), dim=9)
        expected = unit(principal(vectors_of(whole, items), 9))
        vectors = vectors_of(smaller, items)
        assert smaller.spec.dim == 9
        assert np.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
        again = shortened(smaller, Samples(calibration=items, texts=items), dim=4)
        assert vectors_of(again, items).shape == (len(items), 4)
        target = tmp_path / smaller.spec.family
        target.mkdir()
        choose.family(smaller).save(smaller, target / "")
        opened = choose.model(target)
        assert opened.spec.dim == 9
        assert np.allclose(vectors_of(opened, items), vectors, atol=1e-5)
        for backend in BACKENDS:
            run = packaged(smaller, backend, tmp_path / f"{smaller.spec.family}-{backend}")
            assert cosines(run.documents(items), vectors).min() > 0.99999


def test_what_cannot_be_is_refused_in_a_line(model: Model) -> None:
    for parameters, samples, words in (
        ({"dim": 1}, SAMPLES, "dim is 1; 2 or more"),
        ({"dim": 33}, SAMPLES, "dim is 33, and the model's vectors have 32 elements"),
        ({"texts": 0}, SAMPLES, "texts is 0; 1 or more"),
        ({"dim": 8}, Samples(calibration=[], texts=[]), "there are no texts to find directions by"),
    ):
        with pytest.raises(UsageError, match=f"^simplify.output_dim: {words}") as error:
            shortened(model, samples, **parameters)
        assert not isinstance(error.value, NoEffect)
        assert "\n" not in str(error.value)
    with pytest.raises(NoEffect, match="the vectors have 32 elements already"):
        shortened(model, dim=32)
