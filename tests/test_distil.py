"""Distillation: each loss against its formula, each student against its teacher, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.linalg import orthogonal_procrustes
from torch import nn

from slimseek import choose, compress, plugins, recipe
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs import unlabelled
from slimseek.inputs.samples import TEXTS
from slimseek.losses.hidden import HiddenStates
from slimseek.losses.similarity import Similarity
from slimseek.losses.soft_label import SoftLabel
from slimseek.methods.distil import _layers as layers
from slimseek.methods.distil import _pair as pairs
from slimseek.methods.distil._logits import with_logits
from slimseek.methods.distil._rotation import ridge, rotation, towards, turned
from slimseek.models._text.static_files import static_model
from slimseek.schema import Array, Model, Recipe, RecipeStep, Samples
from small import CORPUS, SPECIAL, WORDS, many_texts, tiny_model, tiny_tokenizer

TINY = Path(__file__).parent.parent.parent / "shared" / "data" / "tinymodels"
BITS = Samples(calibration=[], texts=[])
FAST = {"steps": 120, "batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Four blocks."""
    return tiny_model(tmp_path_factory.mktemp("model") / "deep", layers=4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network, 48 wide, as a folder."""
    path = tmp_path_factory.mktemp("model") / "wide"
    tiny_model(path, width=48, seed=1)
    return path


def method(name: str, **parameters: object) -> Step:
    step: Step = plugins.load("methods", name)(**parameters)
    return step


def kept(model: Model, *blocks: int) -> Model:
    return method("prune.layers", keep=blocks).apply(model, BITS)


def samples(teacher: Model | None = None, texts: tuple[str, ...] = TEXTS) -> Samples:
    return Samples(calibration=[], texts=texts, original=teacher)


def vectors(model: Model, texts: tuple[str, ...] = TEXTS) -> Array:
    return choose.encoder(model, "x", 1).documents(texts)


def products(rows: Array) -> Array:
    return rows @ rows.T


# ---------------------------------------------------------------- whom and what


def test_items_are_the_texts_further_texts_and_what_stands_for_queries(original: Model, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\ufeffone line\n\n  another line \n", "utf-8")
    (tmp_path / "some.jsonl").write_text('{"_id": "1", "text": "A text. With more."}\n\n{"text": "last"}\n')
    (tmp_path / "notes.md").write_text("no text of ours")
    texts = ["A first sentence of many, many, many words indeed! Second one.", "short"]
    more = ["one line", "another line", "A text. With more.", "last"]
    made = ["A first sentence of many, many, many words indeed!", "A first sentence of many, many, many words",
            "short", "one line", "another line", "A text.", "last"]  # fmt: skip
    given = Samples(calibration=[], texts=texts)
    for step, found, expected in (
        (method("distil.embedding", queries=False), given, texts),
        (method("distil.embedding", queries=False, texts=str(tmp_path)), given, [*texts, *more]),
        (method("distil.embedding", texts=str(tmp_path)), given, [*texts, *more, *made]),
        (method("distil.embedding", texts=str(tmp_path / "more.txt")), dataclasses.replace(given, queries=["short"]),
         [*texts, *more[:2]]),
        (method("distil.embedding", sentences=True, queries=False), given,
         [*texts, "A first sentence of many, many, many words indeed!", "Second one.", "short"]),
    ):  # fmt: skip
        assert step._learned_on(original, found) == expected  # type: ignore[attr-defined]


def test_further_texts_that_cannot_be_read_are_named_with_their_line(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, line 2: there is no text"),
        ("b.jsonl", b"\n{]\n", r"b\.jsonl, line 2: not valid JSON"),
        ("c.jsonl", b"[1]\n", r"c\.jsonl, line 1: there is no text"),
        ("d.txt", b" \n\n", r"d\.txt holds no texts"),
        ("e.txt", b"\xff\xfe\xff", r"cannot read the texts .*e\.txt"),
        ("f.csv", b"x", r"f\.csv holds no texts; a file or a folder of \.txt or \.jsonl"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=words) as error:
            unlabelled.read(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"nowhere\.txt"):
        unlabelled.read(str(tmp_path / "nowhere.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no texts"):
        unlabelled.read(str(tmp_path / "empty"))


def test_the_collections_queries_are_known_to_the_steps() -> None:
    from slimseek import data

    found = data.load("news")
    given = data.samples(found, data.split(found))
    assert given.queries
    assert list(given.texts[-len(given.queries) :]) == list(given.queries)


# ---------------------------------------------------------------- distil.embedding


def test_the_loss_of_similarity_is_its_definition() -> None:
    random = np.random.default_rng(0)
    own, other = (random.normal(size=(5, width)).astype(np.float32) for width in (3, 7))
    expected = [
        sum((own[row] @ own[column] - other[row] @ other[column]) ** 2 for column in range(5)) / 5 for row in range(5)
    ]
    assert np.allclose(Similarity()(torch.from_numpy(own), torch.from_numpy(other)).numpy(), expected, rtol=1e-5)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    moved = Similarity()(torch.from_numpy(own), torch.from_numpy((own @ turn).astype(np.float32)))
    assert float(moved.max()) < 1e-10, "a rotation changes no inner product"


def test_a_rotation_keeps_inner_products_as_far_as_its_width_allows() -> None:
    random = np.random.default_rng(0)
    flat = random.normal(size=(40, 3)) @ random.normal(size=(3, 9)) + 1 * random.normal(size=(1, 3)) @ np.ones((3, 9))
    given = flat.astype(np.float32)
    columns = rotation(given, 4)
    assert np.allclose(columns.T @ columns, np.eye(4), atol=1e-6)
    assert np.allclose(products(given @ columns), products(given), atol=1e-3), "rank 4, the mean among it"
    full = random.normal(size=(40, 9)).astype(np.float32)
    _, _, axes = np.linalg.svd(full.astype(np.float64), full_matrices=False)
    assert np.allclose(np.abs(np.sum(rotation(full, 4) * axes[:4].T, 0)), 1, atol=1e-5), (
        "the singular vectors, by NumPy"
    )
    wider = rotation(full, 12)
    assert wider.shape == (9, 12)
    assert np.allclose(products(full @ wider), products(full), atol=1e-3)
    unit = turned(full, rotation(full, 4), normalised=True)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.allclose(cosines(unit, full @ rotation(full, 4)), 1, atol=1e-6)


def test_a_space_is_turned_towards_another_without_changing_what_a_search_measures() -> None:
    random = np.random.default_rng(0)
    vectors_, wanted = random.normal(size=(60, 5)), np.linalg.qr(random.normal(size=(5, 5)))[0]
    assert np.allclose(towards(vectors_, vectors_ @ wanted), wanted, atol=1e-6), "a rotation is found again"
    others = random.normal(size=(60, 5))
    found = towards(vectors_, others)
    assert np.allclose(found.T @ found, np.eye(5), atol=1e-6)
    expected, _ = orthogonal_procrustes(vectors_, others)
    assert np.allclose(found, expected, atol=1e-6), "SciPy's"


def test_ridge_is_least_squares_with_a_bound_where_columns_depend_on_each_other() -> None:
    random = np.random.default_rng(0)
    inputs, outputs = random.normal(size=(50, 6)), random.normal(size=(50, 2))
    penalty = 0.1 * (inputs**2).sum() / 6
    wide = np.vstack([inputs, np.sqrt(penalty) * np.eye(6)])
    expected, *_ = np.linalg.lstsq(wide, np.vstack([outputs, np.zeros((6, 2))]), rcond=None)
    assert np.allclose(ridge(inputs, outputs, 0.1), expected, atol=1e-5)
    flat = inputs - inputs.mean(1, keepdims=True)  # as behind a layer norm: a hyperplane
    assert np.abs(ridge(flat, outputs)).max() < 1


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher 48 wide whose vectors differ much: a table of random rows."""
    path = tmp_path_factory.mktemp("model")
    rows = np.random.default_rng(0).normal(size=(len(SPECIAL) + len(WORDS) + 72, 48)).astype(np.float32)
    teacher = static_model(rows, tiny_tokenizer(), {})
    choose.family(teacher).save(teacher, path)
    return path


def test_a_students_vectors_come_near_those_of_a_wider_teacher_turned_towards_its_own(
    original: Model, spread: Path
) -> None:
    teacher, given = choose.model(spread), samples(texts=tuple(many_texts(300)))
    step = method("distil.embedding", teacher=str(spread), projection="pca", **FAST | {"steps": 200})
    model = step.apply(original, given)
    items = tuple(dict.fromkeys(step._learned_on(original, given)))  # type: ignore[attr-defined]
    cut = turned(vectors(teacher, items), rotation(vectors(teacher, items), 32), normalised=True)
    target = cut @ towards(cut, vectors(original, items))
    before, after = (float(cosines(vectors(one, items), target).mean()) for one in (original, model))
    assert 1 - after < 0.5 * (1 - before)
    unturned = float(cosines(vectors(original, items), cut).mean())
    assert before > unturned + 0.2, "it starts nearer"
    [note] = step.notes(original, model)
    assert f"vectors of {spread}, loss cosine, projection pca" in note


def test_inner_products_come_near_those_of_a_wider_teacher(original: Model, spread: Path) -> None:
    texts = many_texts(400)
    step = method("distil.embedding", teacher=str(spread), loss="similarity", **FAST | {"steps": 200})
    model = step.apply(original, samples(texts=tuple(texts[:300])))
    unseen = tuple(texts[300:])
    wanted = products(vectors(choose.model(spread), unseen))
    before, after = (float(np.abs(products(vectors(one, unseen)) - wanted).mean()) for one in (original, model))
    assert after < 0.4 * before


def test_a_learned_map_is_thrown_away_and_one_like_it_brings_the_student_to_its_teacher(
    original: Model, spread: Path
) -> None:
    texts = many_texts(400)
    step = method("distil.embedding", teacher=str(spread), projection="learned", **FAST | {"steps": 200})
    model = step.apply(original, samples(texts=tuple(texts[:200])))
    assert {name: value.shape for name, value in model.tensors.items()} == {
        name: value.shape for name, value in original.tensors.items()
    }, "no map is left in the student"
    wanted = vectors(choose.model(spread), tuple(texts))
    errors = []
    for one in (original, model):
        found = vectors(one, tuple(texts))
        errors.append(1 - float(cosines(found[300:] @ ridge(found[:300], wanted[:300]), wanted[300:]).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_a_teacher_of_another_vocabulary_reads_the_texts_itself(original: Model) -> None:
    texts = [text for text in CORPUS.values() if "apple" not in text.lower()]
    given = Samples(calibration=[], texts=[*texts, *map(" ".join, itertools.permutations(texts, 2))])
    teacher = method("simplify.vocabulary").apply(original, given)
    model = method("distil.embedding", **FAST).apply(kept(original, 1), dataclasses.replace(given, original=teacher))
    held = tuple(given.texts)
    before, after = (float(cosines(vectors(one, held), vectors(teacher, held)).mean())
                     for one in (kept(original, 1), model))  # fmt: skip
    assert 1 - after < 0.2 * (1 - before)


def test_widths_and_teachers_that_do_not_fit_are_refused(original: Model, wide: Path) -> None:
    student = kept(original, 1)
    for parameters, words in (
        ({"teacher": str(wide)}, "have 32 elements, its teacher's 48; projection pca or learned"),
        ({"projection": "learned"}, "projection is learned, and both models' vectors have 32 elements; none or pca"),
        ({"teacher": "no such model"}, "there is no model 'no such model'"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            method("distil.embedding", **parameters).apply(student, samples(original))
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------- distil.hidden


def test_states_of_padding_count_for_nothing() -> None:
    """CASES D6: a batch of 80 % padding has the masked mean, whatever stands in the padding."""
    random = np.random.default_rng(0)
    own, other = (random.normal(size=(3, 10, 4)).astype(np.float32) for _ in range(2))
    mask = np.zeros((3, 10), np.int64)
    for row, count in enumerate((1, 2, 3)):
        mask[row, :count] = 1
    expected = [float(((own[row, :count] - other[row, :count]) ** 2).mean()) for row, count in enumerate((1, 2, 3))]
    for rubbish in (0.0, 1e6):
        own[mask == 0] = rubbish
        found = HiddenStates()(
            torch.from_numpy(own), {"states": torch.from_numpy(other), "mask": torch.from_numpy(mask)}
        )
        assert np.allclose(found.numpy(), expected, rtol=1e-6)


def pair_of(student: Model, teacher: Model, **parameters: object) -> tuple[pairs.Pair, Model]:
    cut, ids = layers.shared_tokens(student, teacher, TEXTS, 64)
    networks = [choose.family(one).trainable(one) for one in (student, teacher)]
    places = layers.layer_map(student, teacher, (pairs.depth(networks[0]), pairs.depth(networks[1])), None)
    return pairs.Pair(*networks, places, torch.from_numpy(ids), **{"attention": False} | parameters), cut


def test_a_pair_gives_what_each_network_gives_alone(deep: Model) -> None:
    pair, cut = pair_of(kept(deep, 0, 3), deep, attention=True)
    batch = {name: torch.from_numpy(array) for name, array in choose.encoder(cut, "x", 1).input(TEXTS[:4]).items()}
    found = pair(**batch)
    for side, model in enumerate((kept(deep, 0, 3), deep)):
        network = choose.family(model).trainable(model)
        with torch.no_grad():
            alone = network.transformer(**batch, output_hidden_states=True, output_attentions=True)
            vector = network(**batch)
        places = (0, 1) if side == 0 else (0, 3)
        given = found["teacher" if side else "student"]
        assert torch.allclose(given["vector"], vector, atol=1e-6)
        for block, place in enumerate(places):
            assert torch.allclose(given[f"states {block}"], alone.hidden_states[place + 1], atol=1e-5)
            assert torch.allclose(given[f"attention {block}"], alone.attentions[place], atol=1e-6)
    pairs.pair_loss(found, 1.0, 1.0, 1.0).sum().backward()
    assert pair.student.transformer.embeddings.word_embeddings.weight.grad is not None


def test_the_teacher_in_a_pair_is_never_trained_saved_or_switched(original: Model) -> None:
    """CASES D3."""
    student = kept(original, 1)
    pair, _ = pair_of(student, original)
    [teacher] = pair._teacher
    pair.train()
    assert not any(module.training for module in teacher.modules())
    assert pair.student.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in pair.student.parameters())
    assert all(name.startswith("student.") for name in pair.state_dict())
    before = {name: np.array(value) for name, value in original.tensors.items()}
    changed = method("distil.hidden", **FAST).apply(student, samples(original))
    assert changed is not student
    assert all(np.array_equal(original.tensors[name], value) for name, value in before.items())


def test_attention_is_compared_by_its_divergence() -> None:
    random = torch.Generator().manual_seed(0)
    own, other = (torch.softmax(torch.randn(2, 3, 5, 5, generator=random), -1) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = pairs.divergence(own, other, mask)
    for row, count in enumerate((5, 2)):
        parts = [float(nn.functional.kl_div(own[row, head, token].log(), other[row, head, token], reduction="sum"))
                 for head in range(3) for token in range(count)]  # fmt: skip
        assert float(found[row]) == pytest.approx(np.mean(parts), rel=1e-4)


@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_a_students_layers_come_near_its_teachers(deep: Model, attention: float) -> None:
    """CASES D7: the map is that of the blocks that stayed, and is written down."""
    student = kept(deep, 0, 3)
    step = method("distil.hidden", attention=attention, layers={0: 0, 1: 3}, **FAST)
    model = step.apply(student, samples(deep))
    pair, _ = pair_of(student, deep)
    assert pair.layers == {0: 0, 1: 3}
    assert method("distil.hidden", **FAST).apply(student, samples(deep)) is not None
    assert step.notes(student, model)[1] == "blocks (student <- teacher): 0 <- 0, 1 <- 3"
    before, after = (float(cosines(vectors(one), vectors(deep)).mean()) for one in (student, model))
    assert 1 - after < 0.4 * (1 - before)


def test_the_map_is_in_the_record_and_can_be_run_again(deep: Model) -> None:
    """CASES D7."""
    training = {"steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    for parameters, expected in (({}, "0 <- 0, 1 <- 3"), ({"layers": {1: 2}}, "1 <- 2")):
        step = RecipeStep(method="distil.hidden", parameters=training | parameters)
        ran = compress.run(
            deep,
            Recipe(steps=(RecipeStep(method="prune.layers", parameters={"keep": [0, 3]}), step)),
            Samples(calibration=TEXTS, texts=TEXTS),
        )
        assert ran.records[1].notes[1] == f"blocks (student <- teacher): {expected}"
        read = msgspec.json.decode(msgspec.json.encode(ran.records[1].parameters))
        assert recipe.build(RecipeStep(method="distil.hidden", parameters=read)) == recipe.build(step)


def test_blocks_are_evenly_spread_where_none_is_the_teachers(original: Model, deep: Model) -> None:
    assert layers.layer_map(original, deep, (2, 4), None) == {0: 1, 1: 3}
    assert layers.layer_map(original, deep, (3, 12), None) == {0: 3, 1: 7, 2: 11}
    assert layers.layer_map(kept(deep, 2), deep, (1, 4), None) == {0: 2}
    assert layers.layer_map(original, deep, (2, 4), {1: 0}) == {1: 0}
    for wrong, words in (({2: 0}, "layers has 2: 0; blocks 0 to 1 of the student and 0 to 3"), ({}, "no entry")):
        with pytest.raises(UsageError, match=words):
            layers.layer_map(original, deep, (2, 4), wrong)


def test_projections_stand_where_widths_differ_and_leave_no_trace(original: Model, wide: Path) -> None:
    teacher = choose.model(wide)
    step = method("distil.hidden", teacher=str(wide), **FAST)
    model = step.apply(original, samples())
    assert {name: value.shape for name, value in model.tensors.items()} == {
        name: value.shape for name, value in original.tensors.items()
    }
    pair, cut = pair_of(original, teacher)
    found = plugins.require("slimseek.training.targets").examples(
        cut,
        TEXTS,
        lambda items: np.zeros((len(items), 1), np.float32),
        step._training(),  # type: ignore[attr-defined]
    )
    pair.fit_projections_(found)
    assert {name: tuple(part.weight.shape) for name, part in pair.projections.items()} == dict.fromkeys(
        ("vector", "states 0", "states 1"), (48, 32)
    )
    config = json.loads(original.files["config.json"]) | {"num_attention_heads": 2}
    heads = dataclasses.replace(original, files=dict(original.files) | {"config.json": msgspec.json.encode(config)})
    with pytest.raises(UsageError, match="2 heads in a layer whose teacher has 4; set attention to 0"):
        method("distil.hidden", attention=1.0, **FAST).apply(heads, samples(original))


def test_other_ids_of_the_same_tokens_are_translated_and_other_tokens_are_refused(original: Model) -> None:
    """CASES D8."""
    texts = tuple(text for text in TEXTS if "e" in text)
    cut = method("simplify.vocabulary", min_count=1).apply(kept(original, 1), Samples(calibration=[], texts=texts))
    pair, read = pair_of(cut, original)
    batch = {name: torch.from_numpy(array) for name, array in choose.encoder(read, "x", 1).input(texts).items()}
    assert np.allclose(pair(**batch)["teacher"]["vector"].numpy(), vectors(original, texts), atol=1e-5)
    model = method("distil.hidden", **FAST).apply(cut, samples(original, texts))
    assert model.tensors[model.spec.token_table].shape == cut.tensors[cut.spec.token_table].shape
    document = json.loads(original.files["tokenizer.json"])
    document["model"]["vocab"].pop("river")
    other = dataclasses.replace(
        original, files=dict(original.files) | {"tokenizer.json": json.dumps(document).encode()}
    )
    given = samples(other, ("the cat", "a river", "stone", "winter", "dog"))
    with pytest.raises(UsageError, match=r"'a river' is 4 tokens to the student and 8 others to its teacher") as error:
        method("distil.hidden", **FAST).apply(kept(original, 1), given)
    assert "\n" not in str(error.value)


def test_what_layers_cannot_be_learned_from_is_refused(original: Model) -> None:
    for bad in ({"hidden": -1.0}, {"attention": float("nan")}, {"embedding": float("inf")}):
        with pytest.raises(UsageError, match=rf"distil\.hidden: {next(iter(bad))} is"):
            method("distil.hidden", **bad)
    with pytest.raises(UsageError, match="cache is 'here', and states are not kept"):
        method("distil.hidden", cache="here")
    with pytest.raises(UsageError, match="one of them must be above 0"):
        method("distil.hidden", hidden=0, embedding=0)
    table = method("distil.static", steps=2, dim=8).apply(original, samples())
    with pytest.raises(UsageError, match="layers are known of the family transformer; one model is of static"):
        method("distil.hidden").apply(table, samples(original))
    with pytest.raises(NoEffect, match="its own teacher"):
        method("distil.hidden").apply(original, samples(original))


# ---------------------------------------------------------------- distil.soft_label


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_gradient_is_that_of_soft_cross_entropy(classes: int) -> None:
    """CASES D1: T (softmax(z / T) - softmax(t / T)) / n, whatever the number of classes."""
    random = np.random.default_rng(0)
    own, other = (random.normal(0, 3, (6, classes)) for _ in range(2))
    logits = torch.from_numpy(own).requires_grad_()
    target = {"teacher": torch.from_numpy(other), "label": torch.full((6,), -1)}
    SoftLabel(temperature=(4.0, 4.0))(logits, target).mean().backward()

    def softmax(values: Array) -> Array:
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    assert np.allclose(logits.grad.numpy(), 4 * (softmax(own / 4) - softmax(other / 4)) / 6, atol=1e-12)
    again = torch.from_numpy(own).requires_grad_()
    soft = nn.functional.cross_entropy(again / 4, torch.softmax(target["teacher"] / 4, 1)) * 16
    soft.backward()
    assert np.allclose(logits.grad.numpy(), again.grad.numpy(), atol=1e-12)
    whole = nn.functional.kl_div((again / 4).log_softmax(1), torch.softmax(target["teacher"] / 4, 1),
                                 reduction="batchmean") * 16  # fmt: skip
    assert float(SoftLabel()(again, target).mean().detach()) == pytest.approx(float(whole.detach()), rel=1e-9)


def test_alpha_weighs_labels_and_both_follow_their_lines() -> None:
    random = torch.Generator().manual_seed(0)
    own, other = (torch.randn(4, 5, generator=random) for _ in range(2))
    label = torch.tensor([0, 4, -1, 2])
    loss = SoftLabel(temperature=(8.0, 2.0), alpha=(0.0, 0.5))
    for progress, temperature, alpha in ((0.0, 8.0, 0.0), (0.5, 5.0, 0.25), (1.0, 2.0, 0.5)):
        found = loss(own, {"teacher": other, "label": label}, progress)
        for row in range(4):
            soft = nn.functional.kl_div((own[row] / temperature).log_softmax(0), (other[row] / temperature).softmax(0),
                                        reduction="sum") * temperature**2  # fmt: skip
            share = alpha if label[row] >= 0 else 0.0
            hard = -own[row].log_softmax(0)[label[row]] if label[row] >= 0 else 0.0
            assert float(found[row]) == pytest.approx(float(share * hard + (1 - share) * soft), rel=1e-4)
    assert torch.isfinite(SoftLabel()(own * 1e4, {"teacher": other * 1e4, "label": label})).all()


def classifier(folder: Path, seed: int, *, softmax: bool = True, noise: float = 0.0) -> Model:
    """Eight numbers to five classes through sixteen, as an ``.onnx`` file."""
    random, more = np.random.default_rng(seed), np.random.default_rng(1)
    shapes = {"first": (8, 16), "bias": (16,), "last": (16, 5)}
    arrays = {
        name: (random.normal(size=shape) + noise * more.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "last"], ["z" if softmax else "logits"]),
        *([helper.make_node("Softmax", ["z"], ["logits"], axis=1)] if softmax else []),
    ]
    graph = helper.make_graph(
        nodes, "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 5))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "m.onnx")
    return choose.model(folder / "m.onnx")


def arrays_of(model: Model) -> dict[str, Array]:
    by_shape = {value.shape: np.asarray(value) for value in model.tensors.values()}
    return {"first": by_shape[8, 16], "bias": by_shape[16,], "last": by_shape[16, 5]}


ITEMS = tuple(f"random:{number}" for number in range(120))


@pytest.mark.parametrize("softmax", [True, False])
def test_logits_are_what_stands_before_softmax_and_length(tmp_path: Path, softmax: bool) -> None:
    model = classifier(tmp_path, 0, softmax=softmax)
    plain = with_logits(model)
    assert (plain.spec.output, plain.spec.normalised, plain.spec.dim) == ("class_logits", False, 5)
    assert set(plain.tensors) == set(model.tensors)
    inputs = choose.encoder(model, "x", 1).input(ITEMS[:6])["x"]
    parts = arrays_of(model)
    expected = np.maximum(inputs @ parts["first"] + parts["bias"], 0) @ parts["last"]
    assert np.allclose(vectors(plain, ITEMS[:6]), expected, atol=1e-5)
    assert with_logits(plain) is plain


@pytest.mark.skipif(not TINY.is_dir(), reason="shared/data/tinymodels is not here")
def test_logits_of_a_real_network_are_its_vector_without_the_length() -> None:
    model = choose.model(TINY / "resnet8_cifar10.onnx")
    logits = vectors(with_logits(model), ITEMS[:8])
    assert np.linalg.norm(logits, axis=1).min() > 1.5
    assert np.allclose(cosines(logits, vectors(model, ITEMS[:8])), 1, atol=1e-5)


def test_a_classifier_learns_its_teachers_classes(tmp_path: Path) -> None:
    teacher, student = classifier(tmp_path / "a", 0), classifier(tmp_path / "b", 0, noise=0.5)
    training = {"steps": 300, "batch_size": 16, "learning_rate": 1e-2}
    model = method("distil.soft_label", temperature=(4.0, 1.0), **training).apply(student, samples(teacher, ITEMS))
    unseen = tuple(f"random:{number}" for number in range(1000, 1400))
    wanted = vectors(with_logits(teacher), unseen).argmax(1)
    before, after = (float((vectors(one, unseen).argmax(1) == wanted).mean()) for one in (student, model))
    assert after > before + 0.1
    assert model.spec == student.spec, "it gives vectors as before"
    step = method("distil.soft_label", temperature=(4.0, 1.0), alpha=0.5)
    assert step.notes(student, model)[0].endswith("class logits of the original model, temperature 4 to 1, alpha 0.5")


def test_labels_pull_where_they_are_given(tmp_path: Path) -> None:
    """All labels say class 3: with alpha 1 everything becomes that, with 0 nothing does."""
    teacher, student = classifier(tmp_path / "a", 0), classifier(tmp_path / "b", 0, noise=0.5)
    training = {"steps": 150, "batch_size": 16, "learning_rate": 1e-2}
    given = dataclasses.replace(samples(teacher, ITEMS), labels=[3] * len(ITEMS))
    found = {
        alpha: vectors(method("distil.soft_label", alpha=alpha, **training).apply(student, given), ITEMS).argmax(1)
        for alpha in (0.0, 1.0)
    }
    assert (found[1.0] == 3).all()
    assert (found[0.0] == 3).mean() < 0.5


def named(model: Model, *classes: str) -> Model:
    """The model with its logits, which bear these names."""
    plain = with_logits(model)
    return dataclasses.replace(plain, spec=msgspec.structs.replace(plain.spec, classes=classes))


def test_labels_find_the_models_classes_by_name_whatever_their_order(tmp_path: Path) -> None:
    """All labels say ``d``, the second name of the samples and the model's first."""
    teacher, student = classifier(tmp_path / "a", 0), classifier(tmp_path / "b", 0, noise=0.5)
    names = ("d", "c", "b", "a", "e")
    given = dataclasses.replace(samples(named(teacher, *names), ITEMS), labels=[1] * len(ITEMS), classes=["e", "d"])
    step = method("distil.soft_label", alpha=1.0, steps=150, batch_size=16, learning_rate=1e-2)
    assert (vectors(step.apply(named(student, *names), given), ITEMS).argmax(1) == 0).all()
    unnamed = dataclasses.replace(given, original=teacher)
    for model, found, words in (
        (named(student, *"abcef"), unnamed, "items are labelled 'd', a class that the model does not know by name"),
        (student, unnamed, "items are labelled 'd', a class that the model does not know by name"),
        (named(student, *names), dataclasses.replace(given, labels=[2] * len(ITEMS)), "0 to 1 are the samples' class"),
        (named(student, *"dcbax"), given, "the model has the class 'x', which its teacher does not know"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            step.apply(model, found)
        assert "\n" not in str(error.value)


def test_a_teacher_with_the_same_classes_in_another_order_teaches_the_same(tmp_path: Path) -> None:
    """Its last layer's columns are turned round, and the names with them; without names the places count."""
    teacher, student = classifier(tmp_path / "a", 0, softmax=False), classifier(tmp_path / "b", 0, noise=0.5)
    last = next(name for name, tensor in teacher.tensors.items() if tensor.shape == (16, 5))
    turned_round = {**teacher.tensors, last: np.ascontiguousarray(np.asarray(teacher.tensors[last])[:, ::-1])}
    other = dataclasses.replace(teacher, tensors=turned_round)
    step = method("distil.soft_label", steps=20, batch_size=16, learning_rate=1e-2)
    found = [step.apply(named(student, *"abcde"), samples(one, ITEMS))
             for one in (named(teacher, *"abcde"), named(other, *"edcba"), other)]  # fmt: skip
    logits = [vectors(model, ITEMS) for model in found]
    assert np.allclose(logits[0], logits[1], atol=1e-4)
    assert not np.allclose(logits[0], logits[2], atol=1e-1)


def test_what_has_no_classes_or_others_is_refused(original: Model, tmp_path: Path) -> None:
    teacher, student = classifier(tmp_path / "a", 0), classifier(tmp_path / "b", 0, noise=0.5)
    given = samples(teacher, ITEMS)
    soft = method("distil.soft_label", steps=2)
    other = dataclasses.replace(with_logits(teacher), spec=msgspec.structs.replace(with_logits(teacher).spec, dim=4))
    for step, model, found, words in (
        (soft, kept(original, 1), samples(original), "transformer with 32 outputs gives no class logits"),
        (soft, student, samples(other, ITEMS), "the model has 5 classes, its teacher 4"),
        (method("distil.soft_label", alpha=0.5), student, given, "the items have no labels; 0 needs none"),
        (soft, student, dataclasses.replace(given, labels=[1]), "1 labels for 120 items"),
        (soft, student, dataclasses.replace(given, labels=[5] * 120), "a label is 5; 0 to 4 are"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            step.apply(model, found)
        assert "\n" not in str(error.value)
    for bad in ({"temperature": 0.0}, {"temperature": (4.0, -1.0)}, {"alpha": 1.5}, {"alpha": (0.0, float("nan"))}):
        with pytest.raises(UsageError, match=rf"distil\.soft_label: {next(iter(bad))} is"):
            method("distil.soft_label", **bad)
