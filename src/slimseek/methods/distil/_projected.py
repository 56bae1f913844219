"""A student with linear maps behind it that are trained with it and thrown away."""

from __future__ import annotations

import torch
from torch import nn

from slimseek.methods.distil._rotation import ridge
from slimseek.training.examples import Examples

ROWS_FITTED = 1024


class Projected(nn.Module):
    """A student's vector, brought to another width by a linear map."""

    def __init__(self, student: nn.Module, columns: torch.Tensor) -> None:
        """``columns``: float32 [the student's width, the teacher's], where the map begins."""
        super().__init__()
        self.student = student
        self.projection = nn.Linear(columns.shape[0], columns.shape[1], bias=False)
        self.projection.weight.data = columns.T.contiguous()

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """The batch's arrays by name to float32 [n, the teacher's width]."""
        return self.projection(self.student(**batch))


def projected(student: nn.Module, found: Examples) -> Projected:
    """The student with the map that fits best before any training, by ridge regression on the first batches."""
    inputs, outputs, rows = [], [], 0
    with torch.no_grad():
        for batch, target in found.train:
            inputs.append(student(**{name: torch.from_numpy(array) for name, array in batch.items()}))
            outputs.append(torch.from_numpy(target))
            rows += len(target)
            if rows >= ROWS_FITTED:
                break
    columns = ridge(torch.cat(inputs).numpy(), torch.cat(outputs).numpy())
    return Projected(student, torch.from_numpy(columns))
