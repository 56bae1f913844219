"""What a user has beside slimseek: each alternative as an encoder with the same input, pooling and calibration.

    pip install nncf==3.4.0
    pip install --no-deps torchao==0.18.0 neural-compressor==3.10 onnx-neural-compressor==1.0
    pip install prettytable==3.18.0

Intel Neural Compressor 3.10 has no ONNX Runtime part any more: that is onnx-neural-compressor 1.0 (of 2024; it asks
for NumPy below 2, and works with 2.4). The static int8 of 3.10 for a CPU goes through PyTorch's exporter, torchao's
quantizer for x86 and PyTorch's compiler, which needs a C++ compiler and a minute for each new kind of shape. It saves
weights in float beside their scales, so that its file is no smaller than the model, and it refuses a linear layer
whose result nobody uses, so that an encoder's pooler is taken off before. torchao rounds the weights of linear layers
only; tables stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slimseek import choose
from slimseek.encoder import Encoder
from slimseek.plugins import require
from slimseek.schema import Array, Batch, Model

TOKENIZER = "tokenizer.json"


def assembled(name: str, model: Model, encode: Callable[[Batch], Array], size: int, threads: int) -> Encoder:
    """An encoder of the model's own input; ``size``: bytes of the weights' file."""
    shipped = {"weights": size, "rest": len(model.files.get(TOKENIZER, b""))}
    return choose.assemble(name, model.spec, model.files, encode, shipped=shipped, runtime=name, threads=threads)


# ---------------------------------------------------------------- OpenVINO


def in_openvino(name: str, model: Model, file: Path, threads: int, precision: str = "f32") -> Encoder:
    """An OpenVINO file, opened for latency; ``precision``: ``f32``, or ``bf16``, its own default."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads)}  # fmt: skip
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    weights = file.with_suffix(".bin")
    size = file.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    return assembled(name, model, lambda batch: request.infer(batch)[0].copy(), size, threads)


def nncf_static(plain: Path, batches: Sequence[Batch], file: Path, **how: Any) -> None:
    """NNCF's static int8 of an ONNX file, calibrated on the batches; ``how`` goes to ``nncf.quantize``."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(plain)
    quantized = nncf.quantize(graph, nncf.Dataset(list(batches)), subset_size=len(batches), **how)
    openvino.save_model(quantized, file)


# ---------------------------------------------------------------- ONNX Runtime


def in_onnxruntime(name: str, model: Model, file: Path, threads: int) -> Encoder:
    """An ONNX file with all its weights."""
    import onnx

    content = onnx.load(file).SerializeToString()
    open_session = require("slimseek.backends.onnxruntime").open_session
    return assembled(name, model, open_session(content, threads), len(content), threads)


def onnx_neural_compressor_static(plain: Path, batches: Sequence[Batch], file: Path) -> None:
    """Static int8 of an ONNX file by Neural Compressor's ONNX Runtime part: U8 by S8, minmax, per channel."""
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader:
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self.left, None)

        def __iter__(self) -> Iterator[Batch]:
            return self.left

    quantize(str(plain), str(file), config.StaticQuantConfig(
        Reader(), quant_format=QuantFormat.QDQ, per_channel=True, calibration_sampling_size=len(batches)
    ))  # fmt: skip


# ---------------------------------------------------------------- PyTorch


def compiled(name: str, model: Model, network: Any, size: int, threads: int) -> Encoder:
    """A network in PyTorch's compiler, weights taken as constants as its guide to int8 on x86 has it."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    run = torch.compile(network, dynamic=True)

    def encode(batch: Batch) -> Array:
        torch.set_num_threads(threads)
        with torch.no_grad():
            result: Array = run(*_tensors(batch)).numpy()
        return result

    return assembled(name, model, encode, size, threads)


def neural_compressor_static(name: str, model: Model, batches: Sequence[Batch], folder: Path, threads: int) -> Encoder:
    """Intel Neural Compressor's static int8 of a text encoder: U8 by S8, minmax, per channel, its defaults."""
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

    file = folder / "quantized_weight.pt"
    if not file.is_file():
        network = _network(model)
        axes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("sequence", min=2, max=512)}
        example = _tensors({key: value.repeat(3, 0) for key, value in batches[0].items()})
        prepared = prepare(export(network, example, dynamic_shapes=(axes, axes)), INT8StaticQuantConfig())
        with torch.no_grad():
            for batch in batches:
                prepared(*_tensors(batch))
        convert(prepared).save(example_inputs=example, output_dir=str(folder))
    quantized = torch.export.load(file).module()
    return compiled(name, model, quantized, file.stat().st_size, threads)


def torchao_int8(name: str, model: Model, file: Path, threads: int, *, dynamic: bool) -> Encoder:
    """Int8 of torchao for linear layers: inputs rounded row by row at run time, or weights alone."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    network = _network(model)
    quantize_(network, Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig())
    torch.save(network.state_dict(), file)
    return compiled(name, model, network, file.stat().st_size, threads)


def _network(model: Model) -> Any:
    """The text encoder in PyTorch, from ids and mask to the vector, without a pooler that the vector does not use."""
    network: Any = choose.family(model).trainable(model).eval()
    if getattr(network.transformer, "pooler", None) is not None:
        network.transformer.pooler = None
    return network


def _tensors(batch: Batch) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
