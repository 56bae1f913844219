"""A network and the teacher that it learns from, both asked about the same batch: for what no two batches share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slimseek.training.train import Loss


class Brought(nn.Module):
    """A teacher's vectors as its student shall give them."""

    columns: Tensor | None

    def __init__(self, teacher: nn.Module, name: str, columns: Tensor | None, normalised: bool) -> None:
        """A teacher of one input, which is never trained.

        Args:
            teacher: gives vectors [n, dim].
            name: of its input; the student's may bear another.
            columns: float32 [dim, the student's dim], which they are multiplied with; ``None``: they are as they are.
            normalised: they are brought to length one behind that.
        """
        super().__init__()
        self.teacher, self._name, self._normalised = teacher, name, normalised
        self.register_buffer("columns", columns)
        self.requires_grad_(False).eval()

    def forward(self, batch: Tensor) -> Tensor:
        """A batch to float [n, the student's dim]."""
        vectors: Tensor = self.teacher(**{self._name: batch})
        if self.columns is None:
            return vectors
        vectors = vectors.float() @ self.columns
        return nn.functional.normalize(vectors) if self._normalised else vectors


class Beside(nn.Module):
    """The teacher is no part of the module: it is neither trained, saved nor switched to another mode."""

    def __init__(self, student: nn.Module, teacher: Brought) -> None:
        """The student is called with a batch's array by name."""
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # in a tuple, so that it is not registered

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The one array of a batch to the ``student``'s vectors and the ``teacher``'s, float [n, dim] each."""
        [array], [teacher] = batch.values(), self._teacher
        with torch.no_grad():
            taught = teacher.to(array.device)(array)
        return {"student": self.student(**batch), "teacher": taught}


def of_both(loss: Loss) -> Loss:
    """A loss of vectors and a teacher's as one of what :class:`Beside` gives."""

    def found(output: Any, target: Any, progress: float) -> Tensor:
        return loss(output["student"], output["teacher"], progress)

    return found
