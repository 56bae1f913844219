"""The base of all losses."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from slimseek.value import Value


class Loss(Value, frozen=True):
    """A loss; its fields are its parameters."""

    @abstractmethod
    def __call__(self, output: Any, target: Any, progress: float = 1.0) -> Tensor:
        """The loss of each item, [n], of which the training lowers the mean.

        Args:
            output: what the network gives, [n, ...].
            target: what it should give, [n, ...]; or several tensors by name.
            progress: share of the training that is done, 0 to 1; held-out items are judged at 1.
        """
