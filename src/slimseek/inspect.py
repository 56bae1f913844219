"""What a model is made of: parameters, bytes and multiply-accumulates of each layer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from slimseek import choose, integers
from slimseek.schema import ModelSpec, QuantizedTensor
from slimseek.value import Value


class LayerReport(Value, frozen=True):
    """One layer.

    Attributes:
        stored: how its weight is stored, such as ``float32`` or ``int4 group of 32``.
        parameters: numbers in its weight.
        bytes: stored bytes of its weight.
        share: of the bytes of all tensors, 0 to 1.
        macs: multiply-accumulates for one item (a text of 128 tokens); 0 for tables, which are only looked up.
        input: how its input is rounded, ``float`` if it is not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stored: str
    parameters: int
    bytes: int
    share: float
    macs: int
    input: str


class ModelReport(Value, frozen=True):
    """A model layer by layer; ``rest_bytes`` are biases, norms and buffers."""

    name: str
    spec: ModelSpec
    parameters: int
    bytes: int
    rest_bytes: int
    files_bytes: int
    macs: int
    layers: tuple[LayerReport, ...]


def inspect(source: str | Path) -> ModelReport:
    """Open a model or artifact and list its layers.

    Raises:
        UsageError: nothing there is a model that can be inspected.
    """
    model = choose.model(source)
    total = sum(integers.stored_bytes(tensor) for tensor in model.tensors.values())
    macs = choose.family(model).layer_macs(model, choose.REFERENCE_LENGTH)
    layers: list[LayerReport] = []
    readers = Counter(layer.weight for layer in model.layers)
    counted: set[str] = set()
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        # What several layers use is stored, and counted, with the first of them.
        size, count = (0, 0) if layer.weight in counted else (integers.stored_bytes(tensor), _count(tensor.shape))
        counted.add(layer.weight)
        how = model.activations.get(layer.weight)
        layers.append(
            LayerReport(
                name=layer.name,
                kind=layer.kind,
                shape=tuple(tensor.shape),
                stored=_stored(tensor),
                parameters=count,
                bytes=size,
                share=size / total,
                macs=macs[layer.weight] // readers[layer.weight],
                input="float" if how is None else f"uint8 {how.mode}",
            )
        )
    return ModelReport(
        name=choose.name_of(source),
        spec=model.spec,
        parameters=model.parameters,
        bytes=total,
        rest_bytes=total - sum(layer.bytes for layer in layers),
        files_bytes=sum(len(content) for content in model.files.values()),
        macs=choose.family(model).macs(model, choose.REFERENCE_LENGTH),
        layers=tuple(layers),
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _stored(tensor) -> str:  # type: ignore[no-untyped-def]
    if not isinstance(tensor, QuantizedTensor):
        return str(tensor.dtype)
    spec = tensor.spec
    scope = f"group of {spec.group_size}" if spec.granularity == "group" else spec.granularity
    if spec.entries:
        return f"{spec.entries} values {scope}"
    number = spec.float8 or f"{'int' if spec.symmetric else 'uint'}{spec.bits}"
    return f"{number} {scope}"
