"""What a user could do instead with one call of another library, to stand in the same table."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from slimseek import choose, plugins
from slimseek.encoder import Encoder
from slimseek.schema import Model

FILE = "model.onnx"


def float32(model: Model, threads: int, name: str) -> Encoder:
    """The model as it is, fused, in ONNX Runtime."""
    return _session(plugins.require("slimseek.backends._fusion").fused(model), model, threads, name)


def dynamic_int8(model: Model, threads: int) -> Encoder:
    """ONNX Runtime's own ``quantize_dynamic``: one range for each whole activation tensor, found at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as temporary:
        plain, quantized = Path(temporary) / "plain.onnx", Path(temporary) / FILE
        graph = choose.family(model).to_onnx(model)
        plugins.require("slimseek.backends._fusion").write(graph, plain)
        root = logging.getLogger()  # to which the library advises a pre-processing that fails on PyTorch's graphs
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8)
        finally:
            root.setLevel(level)
        return _open(quantized.read_bytes(), model, threads, "onnxruntime dynamic int8")


def _session(graph, model: Model, threads: int, name: str) -> Encoder:  # type: ignore[no-untyped-def]
    return _open(graph.SerializeToString(), model, threads, name)


def _open(content: bytes, model: Model, threads: int, name: str) -> Encoder:
    open_session = plugins.require("slimseek.backends.onnxruntime").open_session
    rest = len(model.files["tokenizer.json"])
    return choose.assemble(
        name,
        model.spec,
        model.files,
        open_session(content, threads),
        shipped={"weights": len(content), "rest": rest},
        runtime="onnxruntime",
        threads=threads,
    )
