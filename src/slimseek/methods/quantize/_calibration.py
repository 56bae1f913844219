"""What calibration refuses to learn from."""

from __future__ import annotations

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array


def check_inputs(name: str, values: Array) -> None:
    """Refuse what a layer reads, or sums of it.

    Args:
        name: of the layer's weight.
        values: float, of any shape.

    Raises:
        UsageError: NaN or infinity; the text names the layer.
    """
    if not np.isfinite(values).all():
        raise UsageError(f"the input of {name} is NaN or infinite on calibration texts")
