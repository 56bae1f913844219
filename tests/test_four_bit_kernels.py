"""Convolutions of four bits beside rounded inputs: what a package stores of them, and what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from slimseek import choose, plugins
from slimseek.inputs.samples import examples
from slimseek.schema import Model, QuantizedTensor, Samples
from small import conv_network, kernels, packaged


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = choose.model(conv_network(tmp_path_factory.mktemp("network"))[0])
    items = list(examples(model.spec))
    for name, how in (("quantize.weights_int", {"bits": 4}), ("quantize.activations_int", {})):
        model = plugins.load("methods", name)(**how).apply(model, Samples(calibration=items, texts=items))
    return model


def test_a_kernel_is_stored_as_four_bits_with_one_scale_a_channel(rounded: Model, tmp_path: Path) -> None:
    """No second scale of eight bits, and no scale of the bias: it is the product of two that are stored."""
    packaged(rounded, "onnxruntime", tmp_path / "package")
    graph = onnx.load(tmp_path / "package" / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for layer in rounded.layers:
        if layer.kind != "convolution":
            continue
        tensor = rounded.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        kept = stored[f"{layer.weight}.integers"]
        assert kept.data_type == onnx.TensorProto.INT4
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept).astype(np.int8), tensor.integers)
        names = {name.removeprefix(layer.weight) for name in stored if name.startswith(f"{layer.weight}.")}
        assert names == {".integers", ".scale", ".bias"}
    kinds = kernels(tmp_path / "package", "onnxruntime")
    assert (kinds["QLinearConv"], kinds["Conv"], kinds["Mul"], kinds["Cast"]) == (3, 0, 0, 0), "all folded"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_package_gives_the_artifacts_vectors(rounded: Model, tmp_path: Path, backend: str) -> None:
    """The artifact computes with the integers' float values: nothing is rounded a second time."""
    items = list(examples(rounded.spec))
    expected = choose.encoder(rounded, "artifact", 1).documents(items)
    found = packaged(rounded, backend, tmp_path / "package").documents(items)
    cosines = (expected * found).sum(1)
    assert cosines.min() > 0.9999


def test_the_integers_are_read_back_from_a_package(rounded: Model, tmp_path: Path) -> None:
    packaged(rounded, "onnxruntime", tmp_path / "package")
    read = plugins.require("slimseek.backends._stored").stored(tmp_path / "package" / "model.onnx")
    for layer in rounded.layers:
        if layer.kind == "convolution":
            tensor = rounded.tensors[layer.weight]
            assert isinstance(tensor, QuantizedTensor)
            np.testing.assert_array_equal(read[layer.weight], tensor.integers)
