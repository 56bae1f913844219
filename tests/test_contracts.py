"""Every plug-in of every folder, found by itself, through one battery: to add a file is to have it tested."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytrec_eval
import torch

import slimseek
from slimseek import choose, compress, hollow, plugins
from slimseek.bases import Backend, Dataset, ErrorRate, Family, Index, Metric, Step
from slimseek.errors import NoEffect, UsageError
from slimseek.importance._evidence import Importance
from slimseek.losses._loss import Loss
from slimseek.schema import Array, Model, QuantizedTensor, Recipe, RecipeStep, Samples, Tensor
from small import CORPUS, tiny_bert, tiny_model, tiny_whisper, with_outliers

BASES = {
    "methods": Step, "metrics": (Metric, ErrorRate), "backends": Backend, "datasets": Dataset, "indexes": Index,
    "models": Family, "importance": Importance, "losses": Loss,
}  # fmt: skip
ALL = [(folder, name) for folder in BASES for name in plugins.names(folder)]
OUTPUTS = {"distil.soft_label": "class_logits", "distil.transcript": "transcript", "simplify.window": "transcript"}
"""What a model must give for a method."""
SHORTER = {"distil.transcript": {"steps": 12, "batch_size": 4, "learning_rate": 2e-5}}
"""In the place of defaults that take half a minute."""
METHODS = plugins.names("methods")
METRICS = [name for name in plugins.names("metrics") if issubclass(plugins.load("metrics", name), Metric)]
ERROR_RATES = [name for name in plugins.names("metrics") if name not in METRICS]
TEXTS = [CORPUS["d1"], CORPUS["d2"], f"{CORPUS['d2']} {CORPUS['d1']}", "", "a word of letters"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)  # without some words of the vocabulary, so that it can be cut
ROOT = Path(__file__).parent.parent
SOURCE = Path(slimseek.__file__).parent


# ---------------------------------------------------------------- the files


def file_of(folder: str, name: str) -> Path:
    return SOURCE / folder / f"{name.replace('.', '/')}.py"


def test_no_plug_in_is_overlooked() -> None:
    """Every file of a plug-in folder, methods one folder deeper, but for those with an underscore before their name or
    that of their folder.
    """
    for folder in BASES:
        below = SOURCE / folder
        files = [path.relative_to(below).with_suffix("").parts for path in below.rglob("*.py")]
        found = {".".join(parts) for parts in files if not any(part.startswith("_") for part in parts)}
        assert set(plugins.names(folder)) == found
        assert found, f"no plug-in in {folder}"


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_a_plug_in_is_a_file_with_docstrings_and_one_public_class(folder: str, name: str) -> None:
    tree = ast.parse(file_of(folder, name).read_text("utf-8"))
    public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    assert [ast.get_docstring(tree) is not None, len(public)] == [True, 1]
    assert ast.get_docstring(public[0]), f"{public[0].name} has no docstring"
    kind = plugins.load(folder, name)
    assert kind.__name__ == public[0].name
    assert issubclass(kind, BASES[folder])


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_a_plug_in_is_made_without_arguments(folder: str, name: str) -> None:
    made = plugins.load(folder, name)()
    assert isinstance(made, BASES[folder])
    assert type(made).__module__ == f"slimseek.{folder}.{name}"


@pytest.mark.parametrize("folder", BASES)
@pytest.mark.parametrize("name", ["no_such_thing", "", "_private", "../errors", "quantize._ranges"])
def test_an_unknown_plug_in_names_those_there_are(folder: str, name: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.load(folder, name)
    assert repr(name) in str(error.value)
    assert str(error.value).endswith(f"known: {', '.join(plugins.names(folder))}")


@pytest.mark.parametrize("folder", ["methods", "backends"])
def test_every_method_and_backend_has_a_card_and_no_card_is_left_over(folder: str) -> None:
    cards = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / folder).glob("*.md")}
    expected = set(plugins.names(folder))
    assert sorted(expected - set(cards)) == [], f"docs/{folder} lacks these cards"
    assert sorted(set(cards) - expected) == [], f"docs/{folder} has cards of nothing"
    for name, text in cards.items():
        assert text.startswith("# "), name
        assert name in text.splitlines()[0], f"the first line of the card names {name}"
        assert len(text.split()) > 30, f"the card of {name} says something"


@pytest.mark.parametrize("name", METHODS)
def test_the_card_of_a_method_names_each_of_its_parameters(name: str) -> None:
    card = (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8")
    missing = [field.name for field in msgspec.structs.fields(plugins.load("methods", name)) if field.name not in card]
    assert missing == []


# ---------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ...]:
    """A real model of two layers, the same with integer weights, which some methods need, a network of features, a
    graph with two more layers that could be one, a classifier, and two recognisers, of a short window and a long one.

    One block has an outlier.
    """
    folder = tmp_path_factory.mktemp("model") / "tiny"
    plain = with_outliers(tiny_model(folder), 0)
    classifier = dataclasses.replace(plain, spec=msgspec.structs.replace(plain.spec, output="class_logits"))
    integer = plugins.load("methods", "quantize.weights_int")().apply(plain, SAMPLES)
    recognisers = []
    for seconds in (3, 12):
        tiny_whisper(folder.parent / f"whisper{seconds}", seconds=seconds)
        found = choose.model(folder.parent / f"whisper{seconds}")
        filled = {name: np.where(tensor == 0, np.float32(0.01), tensor) for name, tensor in found.tensors.items()}
        recognisers.append(dataclasses.replace(found, tensors=filled))  # zeros are stored in fewer bytes
    return plain, integer, of_features(folder.parent), chained(plain, folder), classifier, *recognisers


def of_features(folder: Path) -> Model:
    """A network whose items are rows of twelve features, half of which hardly count."""
    torch = plugins.require("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)).eval()
    network[0].weight.data[:, ::2] *= 0.05
    torch.onnx.export(network, (torch.zeros(2, 12),), folder / "features.onnx", dynamo=False, input_names=["row"],
                      output_names=["embedding"], dynamic_axes={"row": {0: "N"}}, opset_version=17)  # fmt: skip
    return choose.model(folder / "features.onnx")


def items(model: Model) -> list[str]:
    """Texts, or random rows or recordings for a network that takes these; the recognisers hear words in the first."""
    return TEXTS if model.spec.preprocess is not None else [f"random:{number}" for number in range(5, 5 + len(TEXTS))]


def chained(model: Model, folder: Path) -> Model:
    """The model as an ``.onnx`` file that ends in two products with nothing between them."""
    onnx = plugins.require("onnx")
    graph = choose.family(model).to_onnx(model)
    generator = np.random.default_rng(0)
    end = graph.graph.output[0].name
    for name, shape in (("wide", (32, 16)), ("narrow", (16, 24))):
        values = generator.standard_normal(shape).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        result = f"{name}_product" if name == "wide" else "sentence_embedding"
        graph.graph.node.append(onnx.helper.make_node("MatMul", [end, name], [result]))
        end = result
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["batch", 24]))
    place = folder.parent / "chained"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    onnx.save(graph, place / "model.onnx")
    return choose.model(place / "model.onnx")


def samples(model: Model) -> Samples:
    """With an original that the model is a little off from, as after steps that lost something."""
    random = np.random.default_rng(0)
    tensors = {
        name: tensor + random.normal(0, 0.01, tensor.shape).astype(tensor.dtype)
        if not isinstance(tensor, QuantizedTensor) and tensor.dtype.kind == "f" else tensor
        for name, tensor in model.tensors.items()
    }  # fmt: skip
    texts = items(model)
    return Samples(calibration=texts, texts=texts, original=dataclasses.replace(model, tensors=tensors))


def attempt(step: Step, model: Model) -> Model | UsageError:
    """The changed model, or the refusal."""
    try:
        return step.apply(model, samples(model))
    except UsageError as error:
        return error


def applied(name: str, models: tuple[Model, ...]) -> tuple[Step, Model, Model]:
    """The method with its defaults, or shorter, the first model that it can change, and the changed one."""
    step: Step = plugins.load("methods", name)(**SHORTER.get(name, {}))
    for model in (one for one in models if one.spec.output == OUTPUTS.get(name, one.spec.output)):
        result = attempt(step, model)
        if isinstance(result, Model):
            return step, model, result
        assert isinstance(result, NoEffect)
        assert name in str(result), "NoEffect says which step had none"
    pytest.fail(f"{name} changes neither a float model nor one with integer weights nor a classifier")


def given_by(model: Model) -> Array:
    """The vectors of its items, or the scores of what is said first in them."""
    if model.spec.output != "transcript":
        return choose.encoder(model, "of a test", 1).documents(items(model))
    recogniser = choose.recognising(model, "of a test", 1)
    return recogniser.scores(recogniser.input(items(model)))


def parts(tensor: Tensor) -> tuple[Any, ...]:
    if not isinstance(tensor, QuantizedTensor):
        return tensor.dtype.str, tensor.shape, tensor.tobytes()
    zero_point = None if tensor.zero_point is None else parts(tensor.zero_point)
    codebook = None if tensor.codebook is None else parts(tensor.codebook)
    return tensor.spec, parts(tensor.integers), parts(tensor.scale), zero_point, codebook


def content(model: Model) -> dict[str, Any]:
    """Everything that a model holds, to the last bit."""
    return {
        "spec": model.spec,
        "files": dict(model.files),
        "layers": model.layers,
        "activations": dict(model.activations),
        **{f"tensor {name}": parts(tensor) for name, tensor in model.tensors.items()},
    }


def poisoned(model: Model, name: str, everywhere: bool) -> Model:
    """The same with NaN in that tensor."""
    tensor = model.tensors[name]
    array = (tensor.scale if isinstance(tensor, QuantizedTensor) else tensor).copy()
    array.reshape(-1)[slice(None) if everywhere else array.size // 2] = np.nan
    bad = dataclasses.replace(tensor, scale=array) if isinstance(tensor, QuantizedTensor) else array
    return dataclasses.replace(model, tensors=dict(model.tensors) | {name: bad})


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_settings_are_frozen_and_go_to_json_and_back(name: str) -> None:
    step = plugins.load("methods", name)()
    for field in msgspec.structs.fields(step):
        with pytest.raises(AttributeError):
            setattr(step, field.name, getattr(step, field.name))
    for settings in (step, *other_settings(name)):
        assert msgspec.json.decode(msgspec.json.encode(settings), type=type(step)) == settings
        assert msgspec.convert(msgspec.to_builtins(settings), type(step)) == settings
    with pytest.raises(msgspec.ValidationError, match="no_such_setting"):
        msgspec.convert({"no_such_setting": 1}, type(step))


def other_settings(name: str) -> list[Step]:
    """Each choice of each setting that is one of a few words."""
    kind = plugins.load("methods", name)
    found = []
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        if isinstance(field.type, msgspec.inspect.LiteralType):
            found += [kind(**{field.name: value}) for value in field.type.values]
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_a_new_model_and_leaves_the_old_one_bit_for_bit(name: str, models: tuple[Model, ...]) -> None:
    before = [content(model) for model in models]
    _, model, changed = applied(name, models)
    assert changed is not model
    assert content(changed) != content(model), "a step that changes nothing raises NoEffect"
    assert [content(model) for model in models] == before


@pytest.mark.parametrize("name", METHODS)
def test_a_changed_model_still_encodes(name: str, models: tuple[Model, ...]) -> None:
    """Finite vectors of the right width, close to those before or, where they have fewer elements, as like one another
    as those before; pruning, tied blocks and a new design may lose more, which training wins back.
    """
    _, model, changed = applied(name, models)
    vectors, original = given_by(changed), given_by(model)
    assert vectors.shape == (len(TEXTS), changed.spec.dim)
    assert np.isfinite(vectors).all()
    if name == "simplify.redesign":
        assert changed.spec.dim <= model.spec.dim
        return
    if name == "simplify.output_dim":
        assert changed.spec.dim < model.spec.dim
        assert np.abs(vectors @ vectors.T - original @ original.T).max() < 0.1
        return
    assert changed.spec.dim == model.spec.dim
    if name == "simplify.tie":  # the mean of random blocks has nothing of either
        return
    cosines = (vectors * original).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(original, axis=1)
    assert cosines.min() > (0.5 if name.startswith("prune.") else 0.9), "the defaults are sound"


@pytest.mark.parametrize("name", METHODS)
def test_the_same_method_gives_the_same_model_again(name: str, models: tuple[Model, ...]) -> None:
    _, _, first = applied(name, models)
    _, _, second = applied(name, models)
    assert content(first) == content(second)


@pytest.mark.parametrize("name", METHODS)
def test_applied_twice_a_method_changes_more_or_says_that_it_does_not(name: str, models: tuple[Model, ...]) -> None:
    step, _, changed = applied(name, models)
    again = attempt(step, changed)
    if isinstance(again, Model):
        assert content(again) != content(changed)
        return
    assert isinstance(again, NoEffect)
    assert name in str(again)
    assert "\n" not in str(again)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_in_what_a_method_changes_is_refused_and_the_tensor_named(
    name: str, models: tuple[Model, ...], everywhere: bool
) -> None:
    """CASES Q22: by the method, or by the gate that follows every step."""
    step, model, changed = applied(name, models)
    tensors = [tensor for tensor in model.tensors if changed.tensors.get(tensor) is not model.tensors[tensor]]
    for tensor in tensors[:3]:
        bad = poisoned(model, tensor, everywhere)
        result = attempt(step, bad)
        if isinstance(result, UsageError):
            assert tensor in str(result)
            assert "\n" not in str(result)
            continue
        recipe = Recipe(steps=(RecipeStep(method=name, parameters=msgspec.to_builtins(step)),))
        failed = compress.run(bad, recipe, SAMPLES).failed
        assert failed is not None
        assert (failed.gate, failed.status) == ("finite", "failed")
        assert tensor in failed.detail


@pytest.mark.parametrize("name", METHODS)
def test_an_outline_has_the_bytes_of_the_changed_model(name: str, models: tuple[Model, ...]) -> None:
    """Exactly, or at least these where the method says that its size hangs on values."""
    step, model, changed = applied(name, models)
    outline = step.outline(model, samples(model))
    found, expected = compress.weight_bytes(outline), compress.weight_bytes(changed)
    assert found >= expected if type(step).bounds else found == expected
    assert outline.spec.dim == changed.spec.dim
    assert set(outline.activations) >= set(changed.activations), "calibration may not reach every layer"
    if type(step).bounds:
        return
    assert shapes(outline) == shapes(changed)
    assert (outline.layers, dict(outline.files)) == (changed.layers, dict(changed.files))


def shapes(model: Model) -> dict[str, Any]:
    """All of the tensors but their values."""
    return {
        name: (tensor.spec, tensor.shape, tensor.scale.shape, tensor.scale.dtype)
        if isinstance(tensor, QuantizedTensor) else (tensor.shape, tensor.dtype)
        for name, tensor in model.tensors.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_an_outline_can_be_outlined_and_reads_no_values(name: str, models: tuple[Model, ...]) -> None:
    """Of a hollow model it is the same, and a further step can be outlined on it."""
    step, model, _ = applied(name, models)
    tensors = {place: hollow.tensor(tensor) for place, tensor in model.tensors.items()}
    emptied = dataclasses.replace(model, tensors=tensors)
    outline = step.outline(emptied, samples(model))
    assert compress.weight_bytes(outline) == compress.weight_bytes(step.outline(model, samples(model)))
    again = plugins.load("methods", "quantize.float")(format="bf16")
    try:
        assert compress.weight_bytes(again.outline(outline, SAMPLES)) <= compress.weight_bytes(outline)
    except NoEffect:
        assert all(isinstance(tensor, QuantizedTensor) or tensor.dtype != np.float32
                   for tensor in outline.tensors.values())  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_looks_at_what_a_model_computes_refuses_nan_there(name: str, models: tuple[Model, ...]) -> None:
    step, model, changed = applied(name, models)
    if any(changed.tensors.get(tensor) is not model.tensors[tensor] for tensor in model.tensors):
        pytest.skip("it changes tensors; see above")
    table = model.spec.preprocess.token_table
    assert table is not None
    with pytest.raises(UsageError, match="NaN or infinite"):
        step.apply(poisoned(model, table, everywhere=True), SAMPLES)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_notes_are_lines(name: str, models: tuple[Model, ...]) -> None:
    step, model, changed = applied(name, models)
    notes = step.notes(model, changed)
    assert isinstance(notes, tuple)
    assert all(isinstance(note, str) and note and "\n" not in note for note in notes)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_made_is_recorded_so_that_it_can_be_made_again(name: str, models: tuple[Model, ...]) -> None:
    step, model, changed = applied(name, models)
    ran = compress.run(
        model, Recipe(steps=(RecipeStep(method=name, parameters=SHORTER.get(name, {})),)), samples(model)
    )
    assert ran.failed is None
    assert content(ran.model) == content(changed)
    [record] = ran.records
    assert record.step == name
    assert record.parameters == msgspec.to_builtins(step), "defaults too: a later default may differ"
    assert record.changed
    assert (record.bytes_before, record.bytes_after) == (compress.weight_bytes(model), compress.weight_bytes(changed))
    assert (record.parameters_before, record.parameters_after) == (model.parameters, changed.parameters)
    assert record.compression_ratio == record.bytes_after / record.bytes_before
    assert record.macs_before > 0
    assert {gate.gate for gate in record.gates} >= {"finite", "invariance"}


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_one_for_a_perfect_and_zero_for_an_empty_ranking(name: str) -> None:
    metric = plugins.load("metrics", name)()
    documents = [f"d{number}" for number in range(5)]
    qrels = {"q": dict.fromkeys(documents, 1)}
    assert metric.per_query(qrels, {"q": documents}, 5) == {"q": pytest.approx(1.0)}
    for empty in ({"q": []}, {}, {"q": ["x", "y"]}):
        assert metric.per_query(qrels, empty, 5) == {"q": 0.0}
    assert metric.label
    assert metric.higher_is_better


@pytest.mark.parametrize("name", METRICS)
def test_in_a_metric_the_order_matters(name: str) -> None:
    metric = plugins.load("metrics", name)()
    ranked = ["good", "x", "y", "z"]
    values = [
        metric.per_query({"q": {"good": 1}}, {"q": ranked[4 - turn :] + ranked[: 4 - turn]}, 2)["q"]
        for turn in range(4)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[3]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_lies_between_zero_and_one_and_agrees_with_pytrec_eval(name: str) -> None:
    """200 random rankings of 15 of 30 documents, graded 0 to 3."""
    trec = {"ndcg": "ndcg_cut_7", "mrr": "recip_rank", "map": "map_cut_7", "recall": "recall_7", "precision": "P_7",
            "accuracy": "success_7", "hit": "success_7"}  # fmt: skip
    generator = random.Random(0)
    documents = [f"d{number}" for number in range(30)]
    qrels = {
        f"q{number}": {document: generator.randint(0, 3) for document in generator.sample(documents, 10)} | {"d0": 1}
        for number in range(200)
    }
    ranking = {query: generator.sample(documents, 15) for query in qrels}
    found = plugins.load("metrics", name)().per_query(qrels, ranking, 7)
    assert set(found) == set(qrels)
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in found.values())
    assert len(set(found.values())) > (1 if name in ("accuracy", "hit") else 3)
    if name in trec:
        measure = trec[name].replace("_7", ".7")
        cut = 7 if name == "mrr" else 15  # trec_eval's reciprocal rank knows no cutoff
        run = {query: {row: 1.0 / place for place, row in enumerate(rows[:cut], 1)} for query, rows in ranking.items()}
        reference = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run)
        assert found == {query: pytest.approx(values[trec[name]]) for query, values in reference.items()}


# ---------------------------------------------------------------- losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossCase:
    """An output and a target, and the loss by its definition in numpy.

    Attributes:
        touched: a row of the output, and the items whose loss hangs on it.
    """

    output: Array
    target: Any
    formula: Callable[[Array, Any], Array]
    touched: tuple[int, tuple[int, ...]]


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def info_nce(output: Array, target: Any) -> Array:
    """By loops: of each query its own passage against all that are not relevant to it."""
    count, found = len(target["positive"]), []
    for query, own in enumerate(target["positive"]):
        scores = [np.exp(output[query] @ passage / 0.05) for passage in output[count:]]
        others = sum(score for score, relevant in zip(scores, target["relevant"][query], strict=True) if not relevant)
        found.append(-np.log(scores[own] / (scores[own] + others)))
    return np.array(found)


def by_centres(output: Array, target: Any) -> Array:
    """By loops: of each vector its own class's centre against all, a tenth of the weight on every class alike."""
    rows = [row / np.linalg.norm(row) for row in output]
    vectors, centres, found = rows[: len(target)], rows[len(target) :], []
    for vector, label in zip(vectors, target, strict=True):
        scores = [20 * vector @ centre for centre in centres]
        total = np.log(sum(np.exp(score) for score in scores))
        found.append(sum((0.1 / len(centres) + 0.9 * (number == label)) * (total - score)
                         for number, score in enumerate(scores)))  # fmt: skip
    return np.array(found)


def soft_labels(output: Array, target: Any) -> Array:
    taught, own = softmax(target["teacher"] / 4), softmax(output / 4)
    return 16 * (taught * (np.log(taught) - np.log(own))).sum(1)


def all_alignments(output: Array, target: Any) -> Array:
    """By going through every path of the frames: those count that collapse to the transcript, of which blank is 0."""
    found = []
    for row, tokens, length in zip(softmax(output), target["tokens"], target["lengths"], strict=True):
        total = 0.0
        for path in itertools.product(range(row.shape[1]), repeat=len(row)):
            said = [token for token, _ in itertools.groupby(path) if token]
            if said == list(tokens[:length]):
                total += float(np.prod([row[place, token] for place, token in enumerate(path)]))
        found.append(-np.log(total) / length)
    return np.array(found)


def tokens_said(output: Array, target: Any) -> Array:
    """By loops: of each transcript the places that count."""
    return np.array([
        np.mean([-np.log(softmax(place)[token]) for place, token in zip(row, said, strict=True) if token >= 0])
        for row, said in zip(output, target["tokens"], strict=True)
    ])  # fmt: skip


def loss_cases() -> dict[str, LossCase]:
    random = np.random.default_rng(0)
    output, target = random.normal(size=(6, 4)), random.normal(size=(6, 4))
    tokens, states = random.normal(size=(3, 5, 4)), random.normal(size=(3, 5, 4))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    labels = np.array([0, 3, 1, 1, 2, 0])
    relevant = np.array([[True, True, False, False], [False, True, False, False]])
    rows = {"query": np.array([0, 1, 1]), "positive": np.array([2, 3, 3]), "negative": np.array([4, 4, 5])}
    return {
        "cosine": LossCase(
            output=output, target=target, touched=(2, (2,)),
            formula=lambda one, other: 1 - ((one * other).sum(1) / np.linalg.norm(one, axis=1)
                                            / np.linalg.norm(other, axis=1)),
        ),
        "mse": LossCase(output=output, target=target, touched=(2, (2,)),
                        formula=lambda one, other: ((one - other) ** 2).mean(1)),
        "cross_entropy": LossCase(output=output, target=labels, touched=(2, (2,)),
                                  formula=lambda one, other: -np.log(softmax(one)[range(len(one)), other])),
        # Of two queries and four passages the second is relevant to both: its row touches only the query it is of.
        "contrastive": LossCase(output=output / 4, target={"positive": np.array([0, 1]), "relevant": relevant},
                                touched=(3, (1,)), formula=info_nce),
        "margin_mse": LossCase(
            output=output, target=rows | {"margin": np.array([0.5, -1.0, 2.0])}, touched=(5, (2,)),
            formula=lambda one, other: ((one[other["query"]] * (one[other["positive"]] - one[other["negative"]])).sum(1)
                                        - other["margin"]) ** 2,
        ),
        "similarity": LossCase(output=output, target=target[:, :3], touched=(2, (0, 1, 2, 3, 4, 5)),
                               formula=lambda one, other: ((one @ one.T - other @ other.T) ** 2).mean(1)),
        "hidden": LossCase(
            output=tokens, target={"states": states, "mask": mask}, touched=(2, (2,)),
            formula=lambda one, other: np.array([((one[row, :size] - other["states"][row, :size]) ** 2).mean()
                                                 for row, size in enumerate((5, 2, 1))]),
        ),
        # Four vectors and two centres.
        "normalised_softmax": LossCase(output=output, target=np.array([1, 0, 0, 1]), touched=(2, (2,)),
                                       formula=by_centres),
        "ctc": LossCase(
            output=tokens[:, :, :3], touched=(2, (2,)), formula=all_alignments,
            target={"tokens": np.array([[1, 1], [2, 0], [2, 1]]), "lengths": np.array([2, 1, 2])},
        ),
        "transcript": LossCase(
            output=tokens, target={"tokens": np.array([[-1, 1, 3, 0, -1], [-1, 2, -1, -1, -1], [-1, 0, 1, 2, 3]])},
            touched=(2, (2,)), formula=tokens_said,
        ),
        "soft_label": LossCase(output=output, target={"teacher": target, "label": labels}, touched=(2, (2,)),
                               formula=soft_labels),
    }  # fmt: skip


def tensors(values: Any) -> Any:
    return (
        {name: torch.tensor(array) for name, array in values.items()}
        if isinstance(values, dict)
        else torch.tensor(values)
    )


def loss_case(name: str) -> tuple[Loss, LossCase]:
    cases = loss_cases()
    assert name in cases, f"the loss {name} has no case here: add its definition in numpy"
    return plugins.load("losses", name)(), cases[name]


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_a_loss_is_its_definition_for_each_item(name: str) -> None:
    loss, case = loss_case(name)
    found = loss(torch.tensor(case.output), tensors(case.target)).numpy()
    assert found.ndim == 1
    assert found == pytest.approx(case.formula(case.output, case.target), rel=1e-6)
    assert (found >= 0).all()


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_the_gradient_of_a_loss_is_its_slope(name: str) -> None:
    """Against differences of the definition, in float64."""
    loss, case = loss_case(name)
    output = torch.tensor(case.output, requires_grad=True)
    loss(output, tensors(case.target)).mean().backward()
    assert output.grad is not None
    slopes, step = np.zeros(case.output.size), 1e-6
    for place in range(case.output.size):
        moved = [case.output.copy(), case.output.copy()]
        for side, sign in zip(moved, (1, -1), strict=True):
            side.reshape(-1)[place] += sign * step
        ends = [case.formula(side, case.target).mean() for side in moved]
        slopes[place] = (ends[0] - ends[1]) / (2 * step)
    assert output.grad.numpy().reshape(-1) == pytest.approx(slopes, rel=1e-4, abs=1e-7)
    assert np.abs(slopes).max() > 1e-3


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_the_loss_of_an_item_hangs_on_its_own_rows_alone(name: str) -> None:
    loss, case = loss_case(name)
    row, items = case.touched
    changed = case.output.copy()
    changed[row] += np.linspace(0.1, 0.5, case.output.shape[-1])
    before, after = (loss(torch.tensor(output), tensors(case.target)).numpy() for output in (case.output, changed))
    assert tuple(np.flatnonzero(before != after)) == items


@pytest.mark.parametrize("name", plugins.names("losses"))
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["all zero", "far too large"])
def test_a_loss_of_degenerate_rows_is_finite_and_so_is_its_gradient(name: str, scale: float) -> None:
    loss, case = loss_case(name)
    output = torch.tensor(case.output * scale, dtype=torch.float32, requires_grad=True)
    target = tensors(case.target)
    narrow = {key: value.float() if value.is_floating_point() else value
              for key, value in (target if isinstance(target, dict) else {"": target}).items()}  # fmt: skip
    found = loss(output, narrow if isinstance(target, dict) else narrow[""])
    found.mean().backward()
    assert torch.isfinite(found).all()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("name", ERROR_RATES)
def test_an_error_rate_is_zero_for_the_same_and_one_for_nothing(name: str) -> None:
    metric = plugins.load("metrics", name)()
    said = {"a": "one two", "b": "three four five"}
    assert metric.per_query(said, said) == {"a": 0.0, "b": 0.0}
    for nothing in ({"a": "", "b": ""}, {}):
        assert np.mean(list(metric.per_query(said, nothing).values())) == pytest.approx(1.0)
    assert metric.label
    assert not metric.higher_is_better


# ---------------------------------------------------------------- backends, datasets, families, indexes


@pytest.mark.parametrize("name", plugins.names("backends"))
def test_a_backend_works_here_or_says_in_a_line_what_brings_it(name: str) -> None:
    backend = plugins.load("backends", name)()
    reason = backend.available()
    if reason is None:
        versions = backend.versions()
        assert versions
        assert all(version and version[0].isdigit() for version in versions.values())
    else:
        assert "\n" not in reason
        assert re.search(r"\b(pip|npm) install |\bslimseek setup ", reason)


def nothing_to_recognise(folder: Path) -> list[Path]:
    """Paths that are no model and no collection."""
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.png").write_bytes(b"\x89PNG")
    return [folder / "empty", folder / "photos", folder / "text.txt", folder / "absent", Path("no/such/place")]


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_a_dataset_recognises_nothing_in_a_random_path(name: str, tmp_path: Path) -> None:
    reader = plugins.load("datasets", name)()
    for path in [*map(str, nothing_to_recognise(tmp_path)), "no such name", str(SOURCE)]:
        assert reader.recognises(path) is False, path


@pytest.mark.parametrize("name", plugins.names("models"))
def test_a_family_recognises_nothing_in_an_empty_folder(name: str, tmp_path: Path) -> None:
    family = plugins.load("models", name)()
    for path in [*nothing_to_recognise(tmp_path), SOURCE]:
        assert family.recognises(path) is False, path


def test_one_family_and_no_other_recognises_a_model(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "tiny")
    found = [name for name in plugins.names("models") if plugins.load("models", name)().recognises(tmp_path / "tiny")]
    assert found == ["transformer"]


@pytest.mark.parametrize("name", plugins.names("indexes"))
def test_an_index_is_made_without_arguments_and_keeps_float32(name: str) -> None:
    """What an index does is in test_indexes.py."""
    index = plugins.load("indexes", name)()
    assert index.precision == "f32"
    vectors: Array = np.eye(3, dtype=np.float32)
    index.build(vectors)
    assert index.query(vectors, 1).ids.tolist() == [[0], [1], [2]]


def test_a_library_that_is_absent_is_named_with_what_brings_it() -> None:
    """Every library of ``plugins.EXTRAS`` belongs to an extra that pyproject.toml has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(plugins.EXTRAS.values()) <= set(extras)
