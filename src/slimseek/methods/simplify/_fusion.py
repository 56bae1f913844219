"""Arithmetic with constants beside a layer, and layers without anything between them, as one layer.

All functions change the graph and the weights that they are given. A linear layer computes x M + b with M [in, out].
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from slimseek.models._onnx.folding import _change, _values
from slimseek.models._onnx.graph import Weights, _is_convolution, _linear_axis, _settings, _uses
from slimseek.schema import Array

AFFINE = ("Add", "Sub", "Mul", "Div")


@dataclass(kw_only=True, eq=False)
class Fusion:
    """A graph on its way.

    Attributes:
        graph: the main graph; weights are not in it.
        weights: float32 arrays by name.
        done: what was fused, in words, with how often.
        counted: how often each value is read, as long as nothing has changed since.
    """

    graph: onnx.GraphProto
    weights: Weights
    done: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] | None = None

    def run(self) -> None:
        """Fuse until nothing is left to fuse."""
        self._skip_dropouts()
        while any(self._fuse(node) for node in list(self.graph.node)):
            pass

    def _fuse(self, node: Any) -> bool:
        fused = self._take_before(node) or self._take_after(node)
        if fused:
            self.counted = None
        return fused

    def _skip_dropouts(self) -> None:
        """What reads a Dropout reads its input, as it passes on when nothing is trained."""
        ends = {value.name for value in self.graph.output}
        for node in list(self.graph.node):
            if node.op_type != "Dropout" or len(node.input) > 2 or set(node.output) & ends:
                continue
            if any(name and self._uses()[name] for name in node.output[1:]):
                continue
            self._reroute(node.output[0], node.input[0])
            self.graph.node.remove(node)
            self.counted = None
            self.done["dropouts left out"] += 1

    def _take_before(self, node: Any) -> bool:
        """Whether the layer took in what makes its input."""
        source = self._maker(node.input[0]) if node.input else None
        if source is None or len(node.input) < 2 or self._uses()[node.input[1]] != 1:
            return False
        if _linear_axis(node, self.weights) is not None:
            return self._linear_takes(node, source)
        if _is_convolution(node, self.weights):
            return self._convolution_takes(node, source)
        return False

    def _linear_takes(self, node: Any, source: Any) -> bool:
        matrix = self._matrix(node)
        if _linear_axis(source, self.weights) is not None:
            first = self._matrix(source)
            if first.shape[0] * matrix.shape[1] > first.size + matrix.size or self._uses()[source.input[1]] != 1:
                return False
            given = _values(source.input[2], self.graph, self.weights) if len(source.input) > 2 else None
            if len(source.input) > 2 and (given is None or given.size not in (1, first.shape[1])):
                return False
            shift = None if given is None else np.broadcast_to(given.reshape(-1), first.shape[1:]) @ matrix
            self._give(node, first @ matrix, shift, source.input[0])
            self.done["linear layers into the next"] += 1
        else:
            change = self._affine(source, (len(matrix),))
            if change is None:
                return False
            data, factor, shift = change
            self._give(node, factor[:, None] * matrix, shift @ matrix, data)
            self.done["factors and summands into the layer behind them"] += 1
        self.graph.node.remove(source)
        return True

    def _convolution_takes(self, node: Any, source: Any) -> bool:
        weight, settings = self.weights[node.input[1]], _settings(node)
        groups = settings.get("group", 1)
        channels = weight.shape[1] * groups
        change = self._affine(source, (channels, *[1] * (weight.ndim - 2)))
        padded = any(settings.get("pads", ())) or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if change is None or (padded and change[2].any()):
            return False
        data, factor, shift = change
        # The inputs of a group's kernels are its own channels.
        beside = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        grouped = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
        summed = (grouped * shift.reshape(beside)).reshape(len(weight), -1).sum(1)
        self.weights[node.input[1]] = (grouped * factor.reshape(beside)).reshape(weight.shape).astype(np.float32)
        if summed.any():
            self._shift_third_input(node, summed)
        node.input[0] = data
        self.graph.node.remove(source)
        self.done["factors and summands into the layer behind them"] += 1
        return True

    def _take_after(self, node: Any) -> bool:
        """Whether the MatMul before a factor or a batch norm took it in, past its bias. Opening folds those behind a
        Gemm or a convolution.
        """
        if node.op_type not in (*AFFINE, "BatchNormalization") or not node.input:
            return False
        source = next((name for name in node.input if self._maker(name) is not None), "")
        layer = self._maker(source)
        bias = layer if layer is not None and layer.op_type == "Add" else None
        if bias is not None:
            layer = next((made for made in map(self._maker, bias.input) if made is not None), None)
        if layer is None or layer.op_type != "MatMul" or _linear_axis(layer, self.weights) is None:
            return False
        matrix = self._matrix(layer)
        width = matrix.shape[1]
        change = _change(node, source, (1, width), self.graph, self.weights)
        if change is None or self._uses()[layer.input[1]] != 1 or (bias is None and node.op_type in ("Add", "Sub")):
            return False
        added = np.zeros(width)
        if bias is not None:
            found = self._affine(bias, (width,))
            if found is None:
                return False
            added = found[2]
        factor, shift = change
        end = node.output[0]
        for gone in (node, *([bias] if bias is not None else [])):
            self.graph.node.remove(gone)
        layer.output[0] = end
        self._give(layer, matrix * factor, added * factor + shift, layer.input[0])
        self.done["factors and norms into the layer before them"] += 1
        return True

    def _give(self, node: Any, matrix: Array, shift: Array | None, data: str) -> None:
        """The linear layer computes data times matrix plus shift plus its old bias from now on."""
        turned = _linear_axis(node, self.weights) == 0
        self.weights[node.input[1]] = np.ascontiguousarray(matrix.T if turned else matrix).astype(np.float32)
        node.input[0] = data
        if shift is None or not np.any(shift):
            return
        if node.op_type == "Gemm":
            self._shift_third_input(node, shift)
            return
        name = f"{node.input[1]}.fused_bias"
        while name in self.weights:
            name += "_"
        self.weights[name] = shift.astype(np.float32)
        inner, end = f"{name}.before", node.output[0]
        node.output[0] = inner
        place = list(self.graph.node).index(node)
        self.graph.node.insert(place + 1, helper.make_node("Add", [inner, name], [end], name=f"{name}.add"))
        self._join_summands(end, name)

    def _join_summands(self, end: str, name: str) -> None:
        """A bias that follows at once takes the new one in."""
        self.counted = None
        users = [node for node in self.graph.node if end in node.input]
        if len(users) != 1 or users[0].op_type != "Add" or self._uses()[end] != 1:
            return
        [user] = users
        found = self._affine(user, (len(self.weights[name]),))
        if found is None:
            return
        self.weights[name] = (self.weights[name] + found[2]).astype(np.float32)
        adder = next(node for node in self.graph.node if node.output and node.output[0] == end)
        adder.output[0] = user.output[0]
        self.graph.node.remove(user)

    def _shift_third_input(self, node: Any, shift: Array) -> None:
        """Add to the bias of a Gemm or a convolution, under a name of its own."""
        given = node.input[2] if len(node.input) > 2 else ""
        old = _values(given, self.graph, self.weights) if given else np.zeros(1)
        assert old is not None
        name = f"{node.input[1]}.fused_bias"
        self.weights[name] = (shift + old.reshape(-1)).astype(np.float32)
        del node.input[2:]
        node.input.append(name)

    def _affine(self, node: Any, channels: tuple[int, ...]) -> tuple[str, Array, Array] | None:
        """What the node reads, and the factor and summand by which it changes each channel, float64 [channels];
        ``None`` for any other node. Channels lie along the first of these axes, the last ones of the value.
        """
        if node.op_type not in AFFINE or node.domain:
            return None
        constants = [_values(name, self.graph, self.weights) for name in node.input]
        known = [array for array in constants if array is not None]
        if len(known) != 1 or (node.op_type in ("Sub", "Div") and constants[1] is None):
            return None
        [number] = known
        width = channels[0]
        trimmed = number.reshape(number.shape[next((i for i, size in enumerate(number.shape) if size > 1), 0) :])
        plain = number.size == 1 or (trimmed.shape == channels and number.ndim <= len(channels) + 1)
        if not plain or (number.size == 1 and number.ndim > len(channels) + 1) or number.dtype.kind != "f":
            return None
        if node.op_type == "Div" and not number.all():
            return None
        data = node.input[0] if constants[0] is None else node.input[1]
        values = np.broadcast_to(number.reshape(-1), (width,)).astype(np.float64)
        one, none = np.ones(width), np.zeros(width)
        if node.op_type in ("Add", "Sub"):
            return data, one, values if node.op_type == "Add" else -values
        return data, values if node.op_type == "Mul" else 1 / values, none

    def _matrix(self, node: Any) -> Array:
        """A linear layer's weight, float64 [in, out]."""
        weight = self.weights[node.input[1]].astype(np.float64)
        matrix: Array = weight.T if _linear_axis(node, self.weights) == 0 else weight
        return matrix

    def _maker(self, name: str) -> Any:
        """The node that makes a value which one node alone reads, and that is not given out; else ``None``."""
        if not name or self._uses()[name] != 1:
            return None
        return next((node for node in self.graph.node if node.output and node.output[0] == name), None)

    def _uses(self) -> Counter[str]:
        if self.counted is None:
            self.counted = Counter(name for node in self.graph.node for name in _uses(node))
            self.counted.update(value.name for value in self.graph.output)
        return self.counted

    def _reroute(self, before: str, after: str) -> None:
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == before:
                    node.input[position] = after
