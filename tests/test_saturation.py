"""Sums of eight-bit products: what the CPU does, what is predicted, and the way around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from slimseek import choose, plugins, timing
from slimseek.backends import _saturation
from slimseek.evaluate import cosines
from slimseek.inputs.samples import TEXTS
from slimseek.schema import Model, QuantizedTensor, Samples
from small import tiny_bert

SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)


@pytest.mark.parametrize(
    ("sets", "exact"),
    [
        (("avx2", "fma"), False),
        (("avx2", "avx512f"), False),
        (("avx2", "avx512f", "avx512_vnni"), True),
        (("avx2", "avx_vnni"), True),
        (("asimd",), True),
        ((), False),
    ],
)
def test_vnni_or_arm_is_what_makes_sums_exact(sets: tuple[str, ...], exact: bool) -> None:
    assert timing.products_are_exact(sets) == exact


def test_the_trial_agrees_with_the_prediction_where_that_is_exact() -> None:
    if not timing.products_are_exact(timing.environment(1).instruction_sets):
        pytest.skip("this CPU has no VNNI: whether the runtime saturates depends on its kernel")
    assert not _saturation.saturates()


def test_unsigned_weights_give_the_same_sums_exactly() -> None:
    """CASES Q6: on any CPU."""
    inputs = np.full((3, 64), 255, np.uint8)
    weights = np.random.default_rng(0).integers(-127, 128, (64, 8)).astype(np.int8)
    weights[:, 0] = 127
    shifted = (weights.astype(np.int16) + 128).astype(np.uint8)
    assert np.array_equal(_saturation.product(inputs, shifted), inputs.astype(np.int32) @ weights.astype(np.int32))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize(
    "parameters", [{}, {"symmetric": False}, {"bits": 4, "granularity": "group", "group_size": 16}]
)
def test_a_package_for_a_cpu_that_saturates_gives_the_same_vectors(
    mode: str, parameters: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bert(tmp_path / "tiny")
    model: Model = choose.model(tmp_path / "tiny")
    for name, settings in (("weights_int", parameters), ("activations_int", {"mode": mode})):
        model = plugins.load("methods", f"quantize.{name}")(**settings).apply(model, SAMPLES)
    vectors = []
    for number, saturates in enumerate((False, True)):
        monkeypatch.setattr(_saturation, "saturates", lambda answer=saturates: answer)
        folder = tmp_path / str(number)
        folder.mkdir()
        backend = plugins.load("backends", "onnxruntime")()
        backend.export(model, folder)
        run = backend.open(folder, 1)
        encoder = choose.assemble("m", model.spec, model.files, run, shipped={}, runtime="onnxruntime", threads=1)
        vectors.append(encoder.documents(TEXTS))
    assert cosines(*vectors).min() > 0.99999
    graph = onnx.load(tmp_path / "1" / "model.onnx").graph
    dtypes = {one.name: numpy_helper.to_array(one).dtype for one in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMulIntegerToFloat", "QuantizeLinear")]
    weights = {dtypes[node.input[-1]] for node in products if "int8_zero_point" in node.input[-1]}
    weights |= {dtypes[node.input[1]] for node in products if node.input[1].endswith((".integers", ".integers.T"))}
    assert weights == {np.dtype(np.uint8)}, "whether stored or expanded, weights of linear layers are unsigned"
    stored = plugins.load("backends", "onnxruntime")().stored(tmp_path / "1")
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        if layer.weight in stored and isinstance(tensor, QuantizedTensor):
            shift = 128 if stored[layer.weight].dtype != tensor.integers.dtype else 0
            assert np.array_equal(stored[layer.weight].astype(np.int16) - shift, tensor.integers), layer.weight
