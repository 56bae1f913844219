"""ExecuTorch packages: the artifact's integers in the program's file, lengths, convolutions, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimseek import choose, integers, plugins
from slimseek.bases import Backend
from slimseek.errors import ArtifactError, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import examples
from slimseek.plugins import require
from slimseek.schema import Array, Model, QuantizedTensor, Samples
from small import conv_network, packaged, tiny_bert

BACKEND: Backend = plugins.load("backends", "executorch")()
pytestmark = pytest.mark.skipif(BACKEND.available() is not None, reason=str(BACKEND.available()))
TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
FOUR_BIT_GROUPS = {"bits": 4, "granularity": "group", "group_size": 32}


def quantized(model: Model, mode: str = "", samples: Samples = SAMPLES, **parameters: object) -> Model:
    model = plugins.load("methods", "quantize.weights_int")(**parameters).apply(model, samples)
    return plugins.load("methods", "quantize.activations_int")(mode=mode).apply(model, samples) if mode else model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[str]]:
    folder = tmp_path_factory.mktemp("pictures")
    path, _ = conv_network(folder / "network")
    generator = np.random.default_rng(1)
    items = [str(folder / f"{number}.npy") for number in range(24)]
    for item in items:
        np.save(item, generator.normal(size=(3, 12, 12)).astype(np.float32))
    return choose.model(path), items


def operators(folder: Path) -> set[str]:
    """Operators of the program that are not XNNPACK's."""
    program = require("executorch.exir._serialize._program").deserialize_pte_binary((folder / "model.pte").read_bytes())
    return {operator.name for operator in program.program.execution_plan[0].operators}


def by_name(
    model: Model, kinds: tuple[str, ...] = ("linear", "embedding", "convolution")
) -> dict[str, QuantizedTensor]:
    """The integer weights that the vector needs."""
    names = {layer.weight for layer in model.layers if layer.kind in kinds and "pooler" not in layer.name}
    tensors = {name: model.tensors[name] for name in names}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, QuantizedTensor)}


def same_integers(model: Model, stored: dict[str, Array]) -> bool:
    expected = by_name(model)
    assert set(stored) == set(expected)
    return all(
        stored[name].dtype == tensor.integers.dtype and np.array_equal(stored[name], tensor.integers)
        for name, tensor in expected.items()
    )


FORMS: dict[str, Callable[[Model], Model]] = {
    "int8": quantized,
    "int8 asymmetric": lambda model: quantized(model, symmetric=False),
    "int8 asymmetric, rows rounded": lambda model: quantized(model, "dynamic", symmetric=False),
    "int5": lambda model: quantized(model, bits=5),
    "int4 in groups, rows rounded": lambda model: quantized(model, "dynamic", **FOUR_BIT_GROUPS),
    "int4 asymmetric in groups, rows rounded": lambda model: quantized(
        model, "dynamic", symmetric=False, **FOUR_BIT_GROUPS
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_file_holds_the_integers_of_the_artifact(original: Model, form: str, tmp_path: Path) -> None:
    """Bit for bit; its vectors are those of the artifact; every product is XNNPACK's."""
    model = FORMS[form](original)
    found = packaged(model, "executorch", tmp_path).documents(TEXTS)
    assert same_integers(model, dict(BACKEND.stored(tmp_path)))
    expected = choose.encoder(model, "artifact", 1).documents(TEXTS)
    assert cosines(expected, found).min() > (0.99 if model.activations else 0.99999)
    assert not operators(tmp_path) & {"aten::linear", "aten::addmm", "aten::mm", "aten::bmm"}


def test_groups_that_xnnpack_lacks_become_eight_bits_a_channel(original: Model, tmp_path: Path) -> None:
    """Half a step of the new grid away at most; tables keep their groups."""
    model = quantized(original, bits=3, granularity="group", group_size=16)
    packaged(model, "executorch", tmp_path)
    stored = BACKEND.stored(tmp_path)
    for name, tensor in by_name(model, ("linear",)).items():
        values = integers.dequantize(tensor)
        step = np.abs(values).max(1, keepdims=True) / 127
        assert stored[name].dtype == np.float32
        assert (np.abs(stored[name] - values) <= 0.501 * step).all()
    for name, tensor in by_name(model, ("embedding",)).items():
        assert np.array_equal(stored[name], tensor.integers)


def test_a_file_of_small_weights_is_small_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m", width=128)
    model = choose.model(tmp_path / "m")
    sizes = {}
    half = plugins.load("methods", "quantize.float")().apply(model, SAMPLES)
    forms = {"float": model, "half": half, "int8": quantized(model), "int4": quantized(model, bits=4)}
    for name, form in forms.items():
        packaged(form, "executorch", tmp_path / name)
        sizes[name] = (tmp_path / name / "model.pte").stat().st_size
    weights = sum(tensor.size for tensor in model.tensors.values() if isinstance(tensor, np.ndarray))
    assert sizes["float"] - sizes["half"] > 1.5 * weights
    assert sizes["float"] - sizes["int8"] > 2.2 * weights
    assert sizes["int8"] - sizes["int4"] > 0.3 * weights
    content = (tmp_path / "int8" / "model.pte").read_bytes()
    (tmp_path / "int8" / "model.pte").write_bytes(content[:2000])
    with pytest.raises((UsageError, ArtifactError), match=r"model\.pte"):
        BACKEND.open(tmp_path / "int8", 1)


def test_one_program_takes_every_length_and_a_longer_row_is_refused(original: Model, tmp_path: Path) -> None:
    encoder = packaged(original, "executorch", tmp_path)
    reference = choose.encoder(original, "artifact", 1)
    assert original.spec.preprocess is not None
    longest = original.spec.preprocess.max_length
    generator = np.random.default_rng(0)
    for count, length in ((1, 1), (2, 2), (3, 17), (1, longest)):
        ids = generator.integers(4, 14, (count, length))
        mask = np.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        assert cosines(reference.encode(batch), encoder.encode(batch)).min() > 0.99999
    ids = np.ones((1, longest + 1), np.int64)
    with pytest.raises(UsageError, match=f"a row has {longest + 1} tokens"):
        encoder.encode({"input_ids": ids, "attention_mask": ids})


def test_convolutions_run_on_the_integers_of_the_artifact(pictures: tuple[Model, list[str]], tmp_path: Path) -> None:
    original, items = pictures
    model = quantized(original, "static", Samples(calibration=items, texts=items))
    found = packaged(model, "executorch", tmp_path).documents(items)
    assert same_integers(model, dict(BACKEND.stored(tmp_path)))
    assert cosines(choose.encoder(model, "artifact", 1).documents(items), found).min() > 0.99
    assert "aten::convolution" not in operators(tmp_path)


def test_a_residual_connection_runs_on_the_integers_of_the_artifact(tmp_path: Path) -> None:
    """A rounded picture that two read: a convolution with two more behind it, and the sum after these."""
    torch = require("torch")
    torch.manual_seed(0)

    class Residual(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 16, 1)
            self.wide, self.each = torch.nn.Conv2d(8, 24, 1), torch.nn.Conv2d(24, 24, 3, padding=1, groups=24)
            self.narrow = torch.nn.Conv2d(24, 8, 1)

        def forward(self, pixels: Any) -> Any:
            x = self.first(pixels).relu()
            y = self.narrow(torch.clamp(self.each(torch.clamp(self.wide(x), 0, 6)), 0, 6))
            return self.last(x + y).relu().mean((2, 3))

    torch.onnx.export(Residual().eval(), (torch.zeros(2, 3, 12, 12),), tmp_path / "m.onnx", dynamo=False,
                      input_names=["pixels"], output_names=["embedding"], dynamic_axes={"pixels": {0: "N"}},
                      opset_version=17)  # fmt: skip
    original = choose.model(tmp_path / "m.onnx")
    items = list(examples(original.spec))
    model = quantized(original, "static", Samples(calibration=items, texts=items))
    found = packaged(model, "executorch", tmp_path / "p").documents(items)
    assert same_integers(model, dict(BACKEND.stored(tmp_path / "p")))
    assert cosines(choose.encoder(model, "artifact", 1).documents(items), found).min() > 0.99
    assert not {"aten::convolution", "aten::add"} & operators(tmp_path / "p")


def test_what_the_runtime_does_not_take_is_refused_with_a_target_that_does(pictures: tuple[Model, list[str]]) -> None:
    original, items = pictures
    model = quantized(original, samples=Samples(calibration=items, texts=items))
    with pytest.raises(UsageError, match=r"ExecuTorch has convolutions of float32 weights.*deploy for onnxruntime"):
        BACKEND.preflight(model)
    BACKEND.preflight(original)
