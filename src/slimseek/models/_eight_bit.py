"""Linear layers of a PyTorch network in eight-bit arithmetic, as the runtimes do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from slimseek.integers import eight_bit_steps
from slimseek.schema import ActivationQuant, Layer, Model


def eight_bit(model: Model, layer: Layer, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear layer in eight-bit arithmetic as the runtimes do it: whole numbers are multiplied and added, and scales
    come after. Such sums are exact in float32 up to 2^24, so that they do not depend on the batch; a last bit that
    did would be rounded elsewhere in the next layer.
    """
    steps, scale = eight_bit_steps(model.tensors[layer.weight])
    if scale.size > 1 and scale.shape[layer.axis] == 1:  # one for each input
        steps, scale = steps * scale, np.ones((1, 1), np.float32)
    weight = torch.from_numpy(np.ascontiguousarray(steps if layer.axis == 1 else steps.T))
    outputs = torch.from_numpy(scale.reshape(-1).copy())
    bias: Any = network.get_submodule(layer.name).bias
    activation = model.activations[layer.weight]
    smoothing = model.smoothing.get(layer.weight)
    factors = None if smoothing is None else torch.from_numpy(1 / smoothing.reshape(-1))

    def forward(values: torch.Tensor) -> torch.Tensor:
        whole, step = rounded(values if factors is None else values * factors, activation)
        result = (whole @ weight) * (step * outputs)
        return result if bias is None else result + bias

    return forward


def rounded(values: torch.Tensor, activation: ActivationQuant) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Whole numbers of eight bits, and the step that they count: one for all, or one for each row."""
    if activation.mode == "static":
        zero = activation.zero_point
        return ((values / activation.scale).round() + zero).clamp(0, 255).sub(zero), activation.scale
    step = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / step).round(), step
