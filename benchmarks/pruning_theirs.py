"""Torch-Pruning on a network that slimseek opened: the same graph, the same weights, a slimseek model afterwards.

    pip install --no-deps torch_pruning==1.6.1

Torch-Pruning looks for modules, so the graph's convolutions and linear layers become modules and everything between
them stays functions. Nothing else differs from what slimseek prunes: batch norms are folded on both sides.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning
from torch import nn

from slimseek import choose
from slimseek.integers import dense
from slimseek.models._onnx.graph import Weights, _graph, _settings
from slimseek.models._torch.graph import GraphNetwork
from slimseek.progress import say
from slimseek.schema import Batch, Model

HALVINGS = 12
TOLERANCE = 0.02
LARGEST_RATIO = 0.9
Attempt = Callable[[float, int], Model]


def pruned(attempt: Attempt, goal: int, multiple_of: int) -> tuple[Model, dict[str, float]]:
    """The model nearest to ``goal`` multiply-accumulates of one item, with the ``ratio`` and ``round_to`` that gave it.

    The ratio is found by halving. One ratio for all layers makes many of them narrower at once, so that multiples may
    jump over the goal by more than 2 %: then a half of the multiple is tried, down to single channels.
    """
    found: dict[tuple[float, int], tuple[int, Model]] = {}

    def miss(key: tuple[float, int]) -> float:
        return abs(found[key][0] / goal - 1)

    while multiple_of and not (found and min(map(miss, found)) <= TOLERANCE):
        low, high = 0.0, LARGEST_RATIO
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            tried = attempt(ratio, multiple_of)
            macs = choose.family(tried).macs(tried, 0)
            found[ratio, multiple_of] = (macs, tried)
            say(f"torch-pruning: {ratio:.4f}, {multiple_of}: {macs / 1e6:.2f} M of {goal / 1e6:.2f} M MACs are left")
            if miss((ratio, multiple_of)) <= TOLERANCE:
                break
            low, high = (ratio, high) if macs > goal else (low, ratio)
        multiple_of //= 2
    best = min(found, key=miss)
    return found[best][1], {"ratio": best[0], "round_to": best[1]}


def on_graph(model: Model, batches: Sequence[Batch], *, gradients: bool, everywhere: bool) -> Attempt:
    """A pruning ratio and its ``round_to`` to what Torch-Pruning makes with it of the graph of a model.

    Args:
        model: float, opened from ONNX.
        batches: items to take gradients on.
        gradients: GroupTaylorImportance in the place of GroupMagnitudeImportance.
        everywhere: one ranking of the whole network (its ``global_pruning``) and not one of each layer.
    """
    slopes = slopes_of(model, batches) if gradients else None

    def attempt(ratio: float, multiple_of: int) -> Model:
        network = Layered(_graph(model), dense(model))
        if slopes is None:
            measure = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        else:
            measure = torch_pruning.importance.GroupTaylorImportance()
            for parameter, slope in zip(network.layers.parameters(), slopes, strict=True):
                parameter.grad = slope.clone()
        inputs = {name: torch.from_numpy(array) for name, array in batches[0].items()}
        prune_(network, inputs, measure, ratio, network.last, multiple_of, everywhere)
        changed = network.rebuilt(model)
        check(network, changed, batches[0])
        return changed

    return attempt


def on_module(
    make: Callable[[], nn.Module], last: Callable[[Any], list[nn.Module]], opened: Callable[[nn.Module], Model],
    size: int,
) -> Attempt:  # fmt: skip
    """As ``on_graph``, of a PyTorch network as its authors wrote it, by the norm alone.

    Args:
        make: the network, anew for each ratio.
        last: its layers that must keep their widths.
        opened: exports it and opens that.
        size: of the pictures, in pixels.
    """

    def attempt(ratio: float, multiple_of: int) -> Model:
        network = make()
        measure = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        prune_(network, torch.zeros(2, 3, size, size), measure, ratio, last(network), multiple_of, everywhere=False)
        return opened(network)

    return attempt


def prune_(
    network: nn.Module, inputs: Any, measure: Any, ratio: float, last: list[nn.Module], multiple_of: int,
    everywhere: bool,
) -> None:  # fmt: skip
    """One pass of Torch-Pruning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            network, inputs, importance=measure, global_pruning=everywhere, pruning_ratio=ratio,
            max_pruning_ratio=LARGEST_RATIO, round_to=multiple_of, ignored_layers=last,
        ).step()  # fmt: skip


def slopes_of(model: Model, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Gradients of the layers' weights: of the vectors' product with random signs, since there are no labels, as
    slimseek's own ``taylor`` takes them.
    """
    network = Layered(_graph(model), dense(model))
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        vectors = network(**{name: torch.from_numpy(array) for name, array in batch.items()})
        signs = torch.randint(0, 2, vectors.shape, generator=generator).to(vectors.dtype) * 2 - 1
        (vectors * signs).sum().backward()
    return [parameter.grad for parameter in network.layers.parameters()]


def check(network: nn.Module, model: Model, batch: Batch) -> None:
    """What was pruned in PyTorch and what is written back give the same vectors."""
    with torch.no_grad():
        expected = network(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    found = choose.family(model).run(model, 0)(batch)
    if not np.allclose(found, expected, atol=1e-3):
        raise RuntimeError(f"the pruned network gives other vectors as ONNX: {np.abs(found - expected).max():.3g}")


class Layered(GraphNetwork):
    """A graph whose convolutions and linear layers are modules.

    Attributes:
        layers: these modules, in the order of the graph.
        last: those that make the vector, which must keep their widths.
    """

    def __init__(self, graph: onnx.ModelProto, weights: Weights) -> None:
        super().__init__(graph, weights)
        places, layers, calls = [], [], []
        for number, (call, node) in enumerate(zip(self._calls, graph.graph.node, strict=True)):
            made = _layer(node, weights)
            if made is None:
                calls.append(call)
                continue
            function, layer = made
            places.append(number)
            layers.append(layer)
            calls.append(dataclasses.replace(call, function=function, inputs=call.inputs[:1], settings={}))
        used = [graph.graph.node[number].input[1] for number in places]
        if len(set(used)) < len(used):
            raise RuntimeError("layers share a weight, which modules of their own cannot")
        self._calls = tuple(calls)
        read = {name for call in calls for name in call.inputs}
        kept = [pair for pair in zip(self._names, self.held, strict=True) if pair[0] in read]
        self._names, self.held = tuple(name for name, _ in kept), nn.ModuleList(held for _, held in kept)
        self.layers, self._places = nn.ModuleList(layers), places
        ends = _ends(graph, places)
        self.last = [layer for number, layer in zip(places, layers, strict=True) if number in ends]
        self.eval()

    def rebuilt(self, model: Model) -> Model:
        """The model with the modules' weights in the place of its own."""
        graph, tensors = _graph(model), dict(model.tensors)
        for number, layer in zip(self._places, self.layers, strict=True):
            node = graph.graph.node[number]
            weight = layer.weight.detach().numpy()
            turned = isinstance(layer, nn.Linear) and not _settings(node).get("transB", 0)
            tensors[node.input[1]] = np.ascontiguousarray(weight.T if turned else weight)
            if len(node.input) > 2 and node.input[2]:
                tensors[node.input[2]] = layer.bias.detach().numpy().copy()
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = layer.groups
        return choose.family(model).resized(model, graph, tensors)


def _layer(node: Any, weights: Mapping[str, np.ndarray]) -> tuple[Callable[..., Any], Any] | None:
    """A function of the input, and its module; ``None`` for what is no convolution or linear layer."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
        return None
    weight, settings = weights[node.input[1]], _settings(node)
    bias = weights[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "Conv":
        return _convolution(weight, bias, settings)
    stored = weight if settings.get("transB", 0) else weight.T
    layer = nn.Linear(stored.shape[1], stored.shape[0], bias=bias is not None)
    _fill_(layer, stored, bias)
    return layer, layer


def _convolution(
    weight: np.ndarray, bias: np.ndarray | None, settings: Mapping[str, Any]
) -> tuple[Callable[..., Any], Any]:
    if settings.get("auto_pad", b"NOTSET") != b"NOTSET" or weight.ndim != 4:
        raise RuntimeError("only convolutions of pictures with their padding written out are known here")
    top, left, bottom, right = settings.get("pads") or (0, 0, 0, 0)
    even = (top, left) == (bottom, right)
    groups = settings.get("group", 1)
    layer = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], stride=tuple(settings.get("strides") or (1, 1)),
        padding=(top, left) if even else 0, dilation=tuple(settings.get("dilations") or (1, 1)), groups=groups,
        bias=bias is not None,
    )  # fmt: skip
    _fill_(layer, weight, bias)
    return (layer if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)), layer


def _fill_(layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> None:
    layer.weight.data = torch.from_numpy(weight.copy())
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias.copy())


def _ends(graph: onnx.ModelProto, places: Sequence[int]) -> set[int]:
    """Which of the layers the output comes from without another one between that has inputs of another width."""
    makers = {name: number for number, node in enumerate(graph.graph.node) for name in node.output}
    open_names, found = [graph.graph.output[0].name], set()
    while open_names:
        number = makers.get(open_names.pop())
        if number is None:
            continue
        node = graph.graph.node[number]
        if number in places:
            found.add(number)
        if number not in places or _settings(node).get("group", 1) > 1:
            open_names += node.input
    return found
