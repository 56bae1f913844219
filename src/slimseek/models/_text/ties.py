"""Parts of a PyTorch network that use the same tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def tie_(network: nn.Module, tied: Mapping[str, str]) -> None:
    """Put one parameter, or buffer, in the place of several: training then sums their gradients.

    Args:
        network: has all of these names, with tensors of equal shapes.
        tied: a name to the name of the tensor that takes its place.
    """
    held = network.state_dict(keep_vars=True)
    for name, own in tied.items():
        parent, _, key = name.rpartition(".")
        setattr(network.get_submodule(parent), key, held[own])
