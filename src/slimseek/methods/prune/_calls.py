"""One node of a graph, as the rules of pruning read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek.methods.prune._sizes import Sizes
from slimseek.methods.prune._tracks import Bonds, Value, extent, fixed
from slimseek.models._onnx.graph import _settings
from slimseek.schema import Array


@dataclass(frozen=True, eq=False)
class Call:
    """One node: its settings, its integer arguments by position, which of them are constants, its outputs' shapes."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    integers: Mapping[int, Array]
    constant: frozenset[int]
    shapes: tuple[tuple[int, ...], ...]
    opset: int

    def argument(self, position: int, setting: str) -> list[int] | None:
        """A list of integers that older opsets have as an attribute; ``None`` where it is not given."""
        if position in self.integers:
            return np.atleast_1d(self.integers[position]).tolist()
        found = self.settings.get(setting)
        return None if found is None else np.atleast_1d(found).tolist()

    @property
    def reason(self) -> str:
        """Why something stays that meets, in this operator, what cannot shrink."""
        return f"meets what cannot shrink in {self.kind} {self.name}"


Rule = Callable[[Bonds, Call, Sequence[Value]], Sequence[Value]]
"""What an operator does to the tracks of its inputs: the values of its outputs."""


def call_of(node: Any, sizes: Sizes, opset: int) -> Call:
    """What the rules need to know of a node."""
    places = list(enumerate(node.input))
    return Call(
        name=node.name or node.output[0],
        kind=node.op_type,
        settings=_settings(node),
        integers={place: sizes.integers[name] for place, name in places if name in sizes.integers},
        constant=frozenset(place for place, name in places if name in sizes.constant),
        shapes=tuple(sizes.shapes.get(name, ()) for name in node.output),
        opset=opset,
    )


def held_entirely(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Nothing that goes in may shrink."""
    for value in values:
        fixed(bonds, value, extent(value), f"{call.kind} {call.name}")
    return [Value(shape) for shape in call.shapes]
