"""Vectors of tokens to the vector of a text, in PyTorch."""

from __future__ import annotations

import torch


def pool(hidden: torch.Tensor, keep: torch.Tensor, pooling: str) -> torch.Tensor:
    """Float32 [batch, sequence, width] and its mask to [batch, width]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return (hidden + (1.0 - keep).unsqueeze(-1) * -1e9).amax(1)
    if pooling == "lasttoken":
        last = keep.sum(1).to(torch.int64) - 1
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
    return (hidden * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True).clamp(min=1e-9)
