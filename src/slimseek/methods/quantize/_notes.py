"""What a step that rounds weights leaves to say: what stayed float, and where rounding cost most."""

from __future__ import annotations

import math

import numpy as np

from slimseek import choose, integers
from slimseek.schema import Model, QuantizedTensor, is_float

LARGE = 0.01
"""Share of all stored bytes above which a tensor that stays float is named."""
WORST = 3


def left_float(model: Model) -> tuple[str, ...]:
    """One line that names the large float tensors that belong to no layer, what reads them, and their share.

    Vectors are left out: biases and norms stay float on purpose.
    """
    layers = {layer.weight for layer in model.layers}
    whole = sum(integers.stored_bytes(tensor) for tensor in model.tensors.values())
    shares = {
        name: tensor.nbytes / whole
        for name, tensor in model.tensors.items()
        if name not in layers
        and not isinstance(tensor, QuantizedTensor)
        and is_float(tensor)
        and sum(size > 1 for size in tensor.shape) > 1
        and tensor.nbytes > LARGE * whole
    }
    if not shares:
        return ()
    readers = choose.family(model).readers(model)
    named = [
        f"{name} ({share:.0%} of the bytes{f', read by {readers[name]}' if name in readers else ''})"
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    fused = sorted({reader for name in shares if "." in (reader := readers.get(name, ""))})
    advice = f"; {' and '.join(fused)} are fused operators of a runtime: export it without them" if fused else ""
    return (f"stay float, since they are the weight of no layer: {', '.join(named)}{advice}",)


def worst_layers(before: Model, after: Model) -> tuple[str, ...]:
    """One line with the layers that rounding to integers cost most: 10 log10(sum of w^2 / sum of (rounded - w)^2)."""
    found: dict[str, float] = {}
    for layer in after.layers:
        rounded, plain = after.tensors[layer.weight], before.tensors[layer.weight]
        if not isinstance(rounded, QuantizedTensor) or isinstance(plain, QuantizedTensor):
            continue
        weight = integers.dequantize(plain)
        signal, noise = (
            float(np.square(values, dtype=np.float64).sum())
            for values in (weight, integers.dequantize(rounded) - weight)
        )
        if signal and noise:
            found[layer.name] = 10 * math.log10(signal / noise)
    worst = sorted(found, key=lambda name: found[name])[:WORST]
    if len(found) < 2:
        return ()
    return (f"most rounding noise: {', '.join(f'{name} {found[name]:.1f} dB' for name in worst)}",)
