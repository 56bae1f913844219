"""Models with NaN or infinite weights, which no step can read anything from."""

from __future__ import annotations

import numpy as np

from slimseek import integers
from slimseek.errors import UsageError
from slimseek.schema import Model


def check_finite(model: Model, done: str) -> None:
    """Refuse a model whose weights are not finite.

    Args:
        model: any.
        done: what would be done to it, such as ``trained``.

    Raises:
        UsageError: a tensor holds NaN or infinite values; the text names it.
    """
    for name, tensor in model.tensors.items():
        if not np.isfinite(integers.dequantize(tensor)).all():
            raise UsageError(f"the tensor {name} holds NaN or infinite values; the model cannot be {done}")
