"""A network with a centre for each class, which is trained with it and thrown away."""

from __future__ import annotations

import torch
from torch import nn


class Centred(nn.Module):
    """A network's vectors, and centres beside them."""

    def __init__(self, network: nn.Module, classes: int, dim: int, seed: int) -> None:
        """Centres begin at random, float32 [classes, dim], normal of mean 0 and deviation 1."""
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        self.centres = nn.Parameter(torch.randn(classes, dim, generator=generator))

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """The batch's arrays by name to its vectors and behind them the centres, float32 [n + classes, dim]."""
        return torch.cat([self.network(**batch).float(), self.centres])
