"""prune.channels and prune.heads: strategies and targets against brute force, and what is rebuilt in a new process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from slimseek import artifact, choose, compress, plugins, rebuild
from slimseek import recipe as recipes
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.samples import examples
from slimseek.methods.prune._forward import pruned, three_batches
from slimseek.methods.prune._selection import Limits, importance, least_level, per_layer
from slimseek.methods.prune._structure import macs, masked, parameters, structure, without
from slimseek.methods.prune._units import UnitGroup
from slimseek.schema import Model, Recipe, RecipeStep, Samples
from small import CORPUS, tiny_bert, tiny_model, tiny_tokenizer

TEXTS = tuple(CORPUS.values())
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
NO_DATA = Samples(calibration=(), texts=())
TINY = Path(__file__).parent.parent.parent / "shared" / "data" / "tinymodels"
INNER = "transformer.encoder.layer.{}.intermediate.dense.weight"
QUERY = "transformer.encoder.layer.{}.attention.self.query.weight"
SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {}, "Roberta": {}, "MPNet": {}, "Electra": {"embedding_size": 16},
    "DistilBert": {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 2},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 8},
}  # fmt: skip


def less(method: str, model: Model, samples: Samples = SAMPLES, **settings: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**settings).apply(model, samples)
    return changed


def vectors(model: Model, items: tuple[str, ...] = TEXTS) -> np.ndarray:
    return choose.encoder(model, "model", 1).documents(items)


def widths(model: Model, name: str) -> list[int]:
    return [model.tensors[name.format(block)].shape[0] for block in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small residual network of pictures with a depthwise convolution."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 32, 3, padding=1)
            self.inner = nn.Conv2d(32, 48, 3, padding=1)
            self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
            self.back = nn.Conv2d(48, 32, 1)
            self.last = nn.Linear(32, 16)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            kept = self.first(given).relu()
            inner = self.depthwise(self.inner(kept).relu()).relu()
            return self.last((kept + self.back(inner)).relu().mean((2, 3)))

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("network") / "network.onnx"
    torch.onnx.export(
        Network().eval(), (torch.randn(2, 3, 12, 12),), file, dynamo=False, opset_version=17,
        input_names=["pixels"], output_names=["vector"], dynamic_axes={"pixels": {0: "batch"}},
    )  # fmt: skip
    return choose.model(file)


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["prune.channels", "prune.heads"])
def test_less_of_a_transformer_gives_what_zeros_give_in_transformers_own_model(
    kind: str, method: str, tmp_path: Path
) -> None:
    """The whole model by transformers, with zeros in the layers that read what left, against what is left."""
    config = getattr(transformers, f"{kind}Config")(**(SMALL | KINDS[kind]))
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    network.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").write_bytes(tiny_tokenizer())
    whole = choose.model(tmp_path / "whole")
    found = less(method, whole, multiple_of=4) if method == "prune.channels" else less(method, whole)
    assert found.parameters < whole.parameters
    chosen = gone(whole, found, method)
    for name, columns in chosen.items():
        network.get_submodule(name.removeprefix("transformer.").removesuffix(".weight")).weight.data[:, columns] = 0
    read = choose.encoder(whole, "whole", 1).input
    batch = {name: torch.from_numpy(array) for name, array in read(list(TEXTS)).items()}
    with torch.no_grad():
        hidden = network(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert np.allclose(choose.encoder(found, "less", 1).documents(TEXTS), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["prune.channels", "prune.heads"])
def test_an_untrained_network_whose_biases_are_all_zero_is_pruned_layer_by_layer(method: str, tmp_path: Path) -> None:
    """An exporter makes one constant of all equal ones, which would seem to couple the layers."""
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer())
    whole = choose.model(tmp_path)
    assert not np.any(whole.tensors["transformer.encoder.layer.1.intermediate.dense.bias"])
    found = less(method, whole)
    assert len(structure(whole).groups) == 4
    name, expected = (INNER, 24) if method == "prune.channels" else (QUERY, 16)
    assert widths(found, name) == [expected, expected]
    assert found.tensors[name.format(1).replace("weight", "bias")].shape == (expected,)


def gone(whole: Model, found: Model, method: str) -> dict[str, np.ndarray]:
    """For each weight that lost inputs, and kept its outputs, the numbers of those that left: found by comparing."""
    result = {}
    for layer in whole.layers:
        before, after = np.asarray(whole.tensors[layer.weight]), np.asarray(found.tensors[layer.weight])
        if layer.kind == "linear" and before.shape[0] == after.shape[0] and before.shape[1] > after.shape[1]:
            rest = {column.tobytes() for column in after.T}
            result[layer.weight] = np.array([number for number, column in enumerate(before.T)
                                             if column.tobytes() not in rest])  # fmt: skip
            assert len(result[layer.weight]) == before.shape[1] - after.shape[1]
    assert result, method
    return result


def test_less_of_a_network_of_pictures_is_smaller_and_gives_what_zeros_give(network: Model) -> None:
    found = less("prune.channels", network, NO_DATA, importance="l1")
    shapes = sorted(tensor.shape for tensor in found.tensors.values() if tensor.ndim == 4)
    assert shapes == [(16, 3, 3, 3), (16, 24, 1, 1), (24, 1, 3, 3), (24, 16, 3, 3)]
    assert found.spec.dim == network.spec.dim == 16
    whole = structure(network)
    chosen = [unit for unit in range(len(whole.found.parameters)) if not kept(whole.places, network, found, unit)]
    items = examples(network.spec)
    assert np.allclose(vectors(found, items), vectors(masked(whole, chosen), items), atol=1e-5)
    assert not np.allclose(vectors(found, items), vectors(network, items), atol=1e-2)


def kept(places: Any, before: Model, after: Model, unit: int) -> bool:
    """Whether the weights that make a unit are still there."""
    (name, _), line = next((place, line) for place, line in places.items()
                              if (line == unit).any() and before.tensors[place[0]].ndim == 1)  # fmt: skip
    return bool(np.isin(np.asarray(before.tensors[name])[line == unit], np.asarray(after.tensors[name])).all())


# ---------------------------------------------------------------- which, and how many


def group(*units: int, width: int = 1) -> UnitGroup:
    return UnitGroup("layer", np.array(units), {("layer", 0): width})


def test_what_is_left_of_a_layer_is_a_multiple_and_at_least_its_share() -> None:
    limits = Limits(least=0.25, multiple_of=8)
    assert [limits.removable(group(*range(64)), share) for share in (0, 0.5, 0.51, 0.6, 1)] == [0, 32, 32, 32, 48]
    assert limits.removable(group(*range(8)), 0.9) == 0, "narrower than the multiple"
    assert limits.removable(group(*range(12), width=32), 0.5) == 6, "a head is wide enough"
    assert Limits(least=0, multiple_of=1).removable(group(0, 1, 2), 1.0) == 2, "one stays"


def test_per_layer_takes_the_same_share_and_importance_the_least_of_all() -> None:
    groups, limits = [group(*range(10)), group(*range(10, 30))], Limits(least=0.1, multiple_of=1)
    scores = np.concatenate([np.linspace(0.9, 1.1, 10), np.linspace(0, 40, 20)])
    assert per_layer(groups, scores, limits)(0.3) == {0, 1, 2, 10, 11, 12, 13, 14, 15}
    # Divided by their means, the first layer's scores lie round 1 and the second's from 0 to 2.
    assert importance(groups, scores, limits)(0.3) == set(range(10, 19))
    assert importance(groups, scores, limits)(1.0) == set(range(9)) | set(range(10, 28)), "the floor of each layer"


def test_the_least_level_is_the_first_that_meets_the_target() -> None:
    ranking = per_layer([group(*range(100))], np.arange(100.0), Limits(least=0, multiple_of=1))
    assert least_level(ranking, lambda chosen: 100 - len(chosen), 61.5) == frozenset(range(39))
    assert least_level(ranking, lambda chosen: 100 - len(chosen), 0.5) is None


def test_a_layer_of_tiny_scales_is_not_emptied(network: Model) -> None:
    """CASES P17: one layer's weights times 1e-4 and 70 % of the whole model: each layer keeps its floor."""
    tensors = {name: np.array(tensor) for name, tensor in network.tensors.items()}
    tiny = next(name for name, tensor in tensors.items() if tensor.shape == (48, 32, 3, 3))
    tensors[tiny] *= 1e-4
    scaled = dataclasses.replace(network, tensors=tensors)
    found = less("prune.channels", scaled, NO_DATA, amount=0.7, strategy="importance", least=0.25)
    assert min(found.tensors[tiny].shape[:2]) >= 8
    assert np.isfinite(vectors(found, examples(found.spec))).all()


@pytest.mark.parametrize("strategy", ["per_layer", "importance"])
@pytest.mark.parametrize("amount", [0.2, 0.4])
@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_target_is_met_and_the_count_is_that_of_the_model_that_is_left(
    of: str, amount: float, strategy: str, network: Model
) -> None:
    found = less("prune.channels", network, NO_DATA, amount=amount, of=of, strategy=strategy, multiple_of=1)
    family = choose.family(network)
    before, after = ((network.parameters, found.parameters) if of == "parameters"
                     else (family.macs(network, 1), family.macs(found, 1)))  # fmt: skip
    assert after <= (1 - amount) * before
    assert after >= (1 - amount - 0.06) * before, "and not much more goes"


def test_what_a_choice_will_cost_is_what_it_costs(model: Model, network: Model) -> None:
    for opened in (model, network):
        whole = structure(opened)
        chosen = [unit for found in whole.groups for unit in found.units[: len(found.units) // 2].tolist()]
        left = without(whole, chosen)
        assert parameters(whole, ()) == opened.parameters
        assert parameters(whole, chosen) == left.parameters < opened.parameters
        assert macs(whole, chosen) == macs(structure(left), ())
    assert macs(whole, ()) == choose.family(network).macs(network, 1)
    assert macs(whole, chosen) == choose.family(left).macs(left, 1)


def test_backward_stops_where_the_vectors_would_move_too_far(model: Model) -> None:
    strict = {"strategy": "backward", "amount": 0.5, "multiple_of": 1}
    loose = less("prune.channels", model, max_loss=2.0, **strict)
    assert widths(loose, INNER) == [32, 32], "all that per_layer would take"
    some = less("prune.channels", model, max_loss=0.03, **strict)
    assert sum(widths(some, INNER)) > 64
    moved = 1 - (vectors(some) * vectors(model)).sum(1)
    assert moved.mean() <= 0.03
    with pytest.raises(NoEffect, match="no unit can go"):
        less("prune.channels", model, max_loss=1e-9, **strict)


@pytest.mark.parametrize("of", ["units", "parameters"])
def test_rounds_reach_the_amount_in_equal_shares(of: str, model: Model) -> None:
    """Four rounds, each on what the last one left; with gradients of the model as it then is."""
    settings = {"amount": 0.5 if of == "units" else 0.15, "of": of, "importance": "taylor", "multiple_of": 1}
    at_once, step_by_step = (less("prune.channels", model, rounds=rounds, **settings) for rounds in (1, 4))
    if of == "units":
        assert widths(step_by_step, INNER) == widths(at_once, INNER) == [32, 32]
    assert step_by_step.parameters <= (1 - 0.15) * model.parameters
    names = [name for name, tensor in at_once.tensors.items()
             if not np.array_equal(tensor, step_by_step.tensors[name])]  # fmt: skip
    assert names, "what is least is told anew in each round"


def test_recovery_between_the_rounds_wins_back_what_was_lost(model: Model, tmp_path: Path) -> None:
    recovery = {"steps": 30, "batch_size": 4, "learning_rate": 1e-3, "checkpoint": str(tmp_path / "checkpoint")}
    texts = tuple(f"{first} {second}" for first in TEXTS for second in TEXTS)
    samples = Samples(calibration=TEXTS, texts=texts, original=model)
    plain = less("prune.channels", model, samples, amount=0.75)
    step = recipes.build(
        RecipeStep(method="prune.channels", parameters={"amount": 0.75, "rounds": 2, "recovery": recovery})
    )
    found = step.apply(model, samples)
    assert widths(found, INNER) == widths(plain, INNER) == [16, 16]
    lost, left = ((1 - (vectors(changed) * vectors(model)).sum(1)).mean() for changed in (plain, found))
    assert left < 0.5 * lost
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.1", "checkpoint.2"}


def test_latency_is_a_target_too(network: Model) -> None:
    """No time is asserted: what is chosen meets the target on the clock by which it was chosen."""
    found = less("prune.channels", network, NO_DATA, amount=0.05, of="latency")
    assert found.parameters < network.parameters


@pytest.mark.parametrize("strategy", ["per_layer", "importance", "backward"])
def test_a_layer_that_is_skipped_stays_whole(strategy: str, model: Model) -> None:
    """Named by what makes it or by what reads it; the note does not speak of it."""
    settings = {"strategy": strategy, "amount": 0.25, "max_loss": 2.0}
    for part in (INNER.format(0), "layer.0.output.dense"):
        found = less("prune.channels", model, skip=(part,), **settings)
        assert widths(found, INNER) == [64, 48]
        step = plugins.load("methods", "prune.channels")(skip=(part,))
        assert step.notes(model, found) == (f"{INNER.format(1)} 64 -> 48",)


def test_a_target_is_met_by_the_layers_that_are_left(model: Model) -> None:
    found = less("prune.channels", model, of="parameters", amount=0.08, multiple_of=1, skip=("layer.1",))
    assert widths(found, INNER)[1] == 64
    assert model.parameters * 0.9 < found.parameters <= model.parameters * 0.92


# ---------------------------------------------------------------- refusals


def test_a_skip_that_fits_no_layer_or_every_layer_is_refused(model: Model) -> None:
    with pytest.raises(UsageError) as error:
        less("prune.channels", model, skip=("layer.0", "layer.7"))
    assert str(error.value) == (
        f"prune.channels: skip is 'layer.7', which no layer's name contains; there are {INNER.format(0)}, "
        f"{INNER.format(1)}"
    )
    with pytest.raises(NoEffect, match=r"prune\.heads: skip leaves none of 2 layers to take units of"):
        less("prune.heads", model, skip=("attention",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amount": 1.0}, "prune.channels: amount is 1.0; 0 to below 1 is allowed"),
        ({"amount": -0.1}, "prune.channels: amount is -0.1; 0 to below 1 is allowed"),
        ({"least": 1.5}, "prune.channels: least is 1.5; 0 to 1 is allowed"),
        ({"max_loss": 0.0}, "prune.channels: max_loss is 0.0; above 0 and up to 2 is allowed"),
        ({"skip": ("a", "")}, "prune.channels: skip holds an empty name, which every layer's contains; parts of names"),
        ({"multiple_of": 0}, "prune.channels: multiple_of is 0; 1 or more is allowed"),
        ({"rounds": 0}, "prune.channels: rounds is 0; 1 or more is allowed"),
        ({"importance": "l3"}, "prune.channels: importance is 'l3'; known: activation, geometric_median, hessian, l1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.load("methods", "prune.channels")(**settings)
    assert str(error.value).startswith(message)


def test_a_recovery_that_is_no_training_is_refused() -> None:
    with pytest.raises(UsageError, match=r'recovery is \{"step":5\}; a mapping of steps, batch_size, learning_rate'):
        recipes.build(RecipeStep(method="prune.channels", parameters={"recovery": {"step": 5}}))


def test_what_cannot_be_done_says_why(model: Model, network: Model) -> None:
    with pytest.raises(NoEffect, match=r"prune\.channels: amount is 0"):
        less("prune.channels", model, amount=0.0)
    with pytest.raises(UsageError, match=r"amount is 0\.99 of parameters, and at most 0\.\d+ can be removed"):
        less("prune.channels", model, amount=0.99, of="parameters")
    with pytest.raises(UsageError, match="the model is quantized or smoothed; prune before that"):
        less("prune.channels", plugins.load("methods", "quantize.weights_int")().apply(model, SAMPLES))
    with pytest.raises(NoEffect, match=r"prune\.heads: the model has nothing of this kind"):
        less("prune.heads", network)


def test_a_recurrent_layer_is_listed_and_never_counted(tmp_path: Path) -> None:
    """CASES P11."""
    layer = nn.LSTM(8, 16, batch_first=True)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["given"], ["time"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["time", "weight", "state", "bias"], ["", "hidden"], "lstm", hidden_size=16),
            helper.make_node("Squeeze", ["hidden", "axes"], ["last"]),
            helper.make_node("Gemm", ["last", "inner"], ["wide"]),
            helper.make_node("Relu", ["wide"], ["positive"]),
            helper.make_node("Gemm", ["positive", "outer"], ["vector"]),
        ],
        "recurrent",
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["batch", 5, 8])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(layer.weight_ih_l0.detach().numpy()[None], "weight"),
            numpy_helper.from_array(layer.weight_hh_l0.detach().numpy()[None], "state"),
            numpy_helper.from_array(np.zeros((1, 128), np.float32), "bias"),
            numpy_helper.from_array(np.array([0]), "axes"),
            numpy_helper.from_array(np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32), "inner"),
            numpy_helper.from_array(np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32), "outer"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "r.onnx")
    opened = choose.model(tmp_path / "r.onnx")
    step = plugins.load("methods", "prune.channels")()
    found = step.apply(opened, NO_DATA)
    assert found.tensors["inner"].shape == (16, 16)
    assert found.tensors["state"].shape == opened.tensors["state"].shape
    assert "LSTM lstm" in step.notes(opened, found)[1]


def test_a_layer_that_fails_the_forward_check_is_rolled_back_and_named(model: Model) -> None:
    """One group's places are spoilt: its weights would be cut elsewhere than in the graph."""
    whole = structure(model)
    groups = [found for found in whole.groups if len(found.units) == 64]
    places = dict(whole.places)
    reading = next(place for place in groups[0].places if place[0].endswith("output.dense.weight"))
    own = (reading[0], 1)
    places[own] = np.roll(places[own], 1)
    spoilt = dataclasses.replace(whole, places=places)
    chosen = [unit for found in groups for unit in found.units[:8].tolist()]
    result = pruned(spoilt, chosen, groups, SAMPLES)
    assert result.chosen == frozenset(groups[1].units[:8].tolist())
    assert list(result.refused) == [groups[0].name]
    assert "its vectors are off by" in result.refused[groups[0].name]
    assert widths(result.model, INNER) == [64, 56]


def test_the_check_runs_three_shapes(model: Model, network: Model) -> None:
    for opened in (model, network):
        shapes = {next(iter(batch.values())).shape for batch in three_batches(opened, NO_DATA)}
        assert len(shapes) == 3


# ---------------------------------------------------------------- rebuilt


def in_a_new_process(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_uniform_widths_load_with_automodel_and_sentence_transformers_in_a_new_process(
    model: Model, tmp_path: Path
) -> None:
    """CASES P16."""
    found = less("prune.channels", model)
    written(found, tmp_path / "artifact")
    rebuild.rebuild(tmp_path / "artifact", tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["intermediate_size"] == 32
    code = (
        "import json\nfrom sentence_transformers import SentenceTransformer\nfrom transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(tmp_path / 'plain')!r})\n"
        f"vectors = SentenceTransformer({str(tmp_path / 'plain')!r}, device='cpu').encode({list(TEXTS)!r})\n"
        "print(json.dumps([sum(p.numel() for p in model.parameters()), vectors.tolist()]))"
    )
    count, given = in_a_new_process(code)
    assert count == found.parameters
    assert np.allclose(given, vectors(found), atol=1e-5)


def test_fewer_heads_are_kept_in_the_artifact_and_rebuilt_as_a_graph(model: Model, tmp_path: Path) -> None:
    """CASES P14 and P16: widths that no configuration of BERT has, read again in a new process."""
    found = less("prune.heads", model, amount=0.25)
    assert widths(found, QUERY) == [24, 24]
    written(found, tmp_path / "artifact")
    again = artifact.read(tmp_path / "artifact")[1]
    assert {name: tensor.shape for name, tensor in again.tensors.items()} == {
        name: tensor.shape for name, tensor in found.tensors.items()
    }
    rebuild.rebuild(tmp_path / "artifact", tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*.safetensors"))
    batch = choose.encoder(found, "found", 1).input(list(TEXTS))
    np.savez(tmp_path / "batch.npz", **batch)
    code = (
        "import json, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(tmp_path / 'plain' / 'model.onnx')!r})\n"
        f"print(json.dumps(session.run(None, dict(numpy.load({str(tmp_path / 'batch.npz')!r})))[0].tolist()))"
    )
    assert np.allclose(in_a_new_process(code), choose.family(found).run(found, 1)(batch), atol=1e-5)


def test_a_network_of_pictures_is_rebuilt_as_a_smaller_file(network: Model, tmp_path: Path) -> None:
    """CASES P18: what left is gone from the file."""
    for name, found in (("whole", network), ("less", less("prune.channels", network, NO_DATA))):
        (tmp_path / name).mkdir()
        choose.family(found).save(found, tmp_path / name)
    sizes = {name: (tmp_path / name / "model.onnx").stat().st_size for name in ("whole", "less")}
    assert sizes["less"] < 0.5 * sizes["whole"]


def test_a_pruned_model_can_be_trained(model: Model) -> None:
    """CASES P12 and P13: two optimiser steps after heads and channels left, and the loss falls."""
    found = less("prune.channels", less("prune.heads", model), amount=0.25)
    network = choose.family(found).trainable(found)
    batch = {name: torch.from_numpy(array) for name, array in three_batches(found, SAMPLES)[1].items()}
    target = torch.from_numpy(choose.family(model).run(model, 1)({key: one.numpy() for key, one in batch.items()}))
    optimiser, losses = torch.optim.SGD(network.parameters(), lr=0.05), []
    for _ in range(3):
        optimiser.zero_grad()
        loss = (network(**batch) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_a_recipe_prunes_trains_and_quantizes(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "tiny", seed=3)
    original = choose.model(tmp_path / "tiny")
    steps = (
        RecipeStep(method="prune.layers", parameters={"keep": [0]}),
        RecipeStep(method="prune.channels", parameters={"amount": 0.5, "importance": "activation"}),
        RecipeStep(method="distil.embedding", parameters={"steps": 20, "batch_size": 4, "learning_rate": 1e-3}),
        RecipeStep(method="quantize.weights_int"),
    )
    found = compress.run(original, Recipe(steps=steps), SAMPLES)
    assert found.failed is None
    assert [record.step for record in found.records] == [step.method for step in steps]
    assert [record.macs_after < record.macs_before for record in found.records] == [True, True, False, False]
    assert compress.weight_bytes(found.model) < 0.25 * compress.weight_bytes(original)


def written(found: Model, folder: Path) -> None:
    folder.mkdir()
    artifact.write(found, folder)
