"""An ONNX graph as a PyTorch network that can be trained, computed node by node.

onnx2torch does the like, but knows neither recurrent nor newer operators (reductions of opset 18, Gelu,
GroupNormalization), and keeps weights under names of its own.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from slimseek.errors import UsageError, first_line
from slimseek.models._onnx.graph import Weights, _opset, _settings
from slimseek.models._torch import arithmetic, layout, recurrent, windows
from slimseek.models._torch.arithmetic import Operator
from slimseek.schema import is_float

OPERATORS: dict[str, Operator] = {
    **arithmetic.OPERATORS,
    **layout.OPERATORS,
    **recurrent.OPERATORS,
    **windows.OPERATORS,
}
SEVERAL = ("GRU", "LSTM", "RNN", "Split", "TopK")
"""Operators whose every output is computed; of others only the first."""
STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that training leaves as they are."""


@dataclass(frozen=True, eq=False)
class Call:
    """A node: its function, names of values (``""`` for what is left out), attributes, and values no longer needed."""

    title: str
    function: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]
    ended: tuple[str, ...]


class Held(nn.Module):
    """One tensor, called ``value``: its own name may hold dots, or be that of an attribute of every module."""

    def __init__(self, array: np.ndarray, trained: bool) -> None:
        """A copy of a float32 array; gradients only where it is trained."""
        super().__init__()
        self.value = nn.Parameter(torch.from_numpy(array.copy()), requires_grad=trained)


class GraphNetwork(nn.Module):
    """Takes the graph's inputs by name and gives its first output.

    ``state_dict`` carries the float tensors under the names and in the shapes that they have in the graph.
    """

    def __init__(self, graph: onnx.ModelProto, weights: Weights) -> None:
        """A graph without its weights, and these; statistics of batch norms are not trained.

        Raises:
            UsageError: an operator or an attribute that is not known here, by name.
        """
        super().__init__()
        self._calls = _calls(graph)
        self._output = graph.graph.output[0].name
        frozen = {node.input[place] for node in graph.graph.node for place in STATISTICS.get(node.op_type, ())}
        self._names = tuple(name for name, array in weights.items() if is_float(array))
        self.held = nn.ModuleList(Held(weights[name], trained=name not in frozen) for name in self._names)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        constants |= {name: array for name, array in weights.items() if not is_float(array)}
        self._constants = {name: f"constant_{number}" for number, name in enumerate(constants)}
        for name, place in self._constants.items():
            self.register_buffer(place, torch.from_numpy(constants[name].copy()), persistent=False)
        self.register_state_dict_post_hook(_to_names)
        self.register_load_state_dict_pre_hook(_from_names)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Inputs of the graph to its first output; UsageError where PyTorch cannot compute a node."""
        values: dict[str, Any] = {"": None, **inputs}
        values |= {name: held.value for name, held in zip(self._names, self.held, strict=True)}
        values |= {name: getattr(self, place) for name, place in self._constants.items()}
        for call in self._calls:
            try:
                found = call.function(*(values[name] for name in call.inputs), **call.settings)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise UsageError(f"{call.title} cannot be computed in PyTorch: {first_line(error)}") from error
            values.update(zip(call.outputs, found if isinstance(found, tuple) else (found,), strict=False))
            for name in call.ended:
                del values[name]
        result: Tensor = values[self._output]
        return result

    def places(self, prefix: str) -> dict[str, str]:
        """Where each tensor lies among the modules: names in ``state_dict`` to names of parameters."""
        return {prefix + name: f"{prefix}held.{number}.value" for number, name in enumerate(self._names)}


def _to_names(module: Any, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    _rename_keys_(state, {place: name for name, place in module.places(prefix).items()})


def _from_names(module: Any, state: dict[str, Tensor], prefix: str, *others: object) -> None:
    _rename_keys_(state, module.places(prefix))


def _rename_keys_(state: dict[str, Tensor], names: Mapping[str, str]) -> None:
    renamed = {names.get(name, name): value for name, value in state.items()}
    for name in list(state):
        del state[name]
    state.update(renamed)


# ---------------------------------------------------------------- reading the nodes


def _calls(graph: onnx.ModelProto) -> tuple[Call, ...]:
    _refuse_unknown(graph.graph.node)
    opset = _opset(graph)
    last = {name: number for number, node in enumerate(graph.graph.node) for name in (*node.input, *node.output)}
    last[graph.graph.output[0].name] = len(graph.graph.node)
    made = {name for node in graph.graph.node for name in node.output if name}
    ends: dict[int, list[str]] = {}
    for name in made:
        ends.setdefault(last[name], []).append(name)
    return tuple(_call(node, opset, ends.get(number, ())) for number, node in enumerate(graph.graph.node))


def _refuse_unknown(nodes: Sequence[Any]) -> None:
    """Every operator that has no function here, and outputs that are read but not computed."""
    unknown = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type for node in nodes
    )
    missing = sorted(set(unknown) - set(OPERATORS))
    if missing:
        raise UsageError(f"this network has {', '.join(missing)}, which cannot be trained here")
    read = {name for node in nodes for name in node.input if name}
    for node in nodes:
        if node.op_type not in SEVERAL and read & set(node.output[1:]):
            raise UsageError(f"{_title(node)} gives more than one output, which cannot be trained here")


def _call(node: Any, opset: int, ended: Sequence[str]) -> Call:
    function = OPERATORS[node.op_type]
    given = {name: _plain(value) for name, value in _settings(node).items()}
    allowed = _keywords(function)
    unknown = sorted(given.keys() - allowed)
    if unknown:
        raise UsageError(f"{_title(node)} has the attribute {', '.join(unknown)}, which cannot be trained with here")
    asked = {"opset": opset, "results": len(node.output)}
    settings = given | {name: value for name, value in asked.items() if name in allowed}
    return Call(_title(node), function, tuple(node.input), tuple(node.output), settings, tuple(ended))


def _keywords(function: Operator) -> set[str]:
    """Attributes that a function takes: what can be given by name alone; none for PyTorch's compiled functions."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return set()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _title(node: Any) -> str:
    return f"{node.op_type} {node.name}".strip()


def _plain(value: Any) -> Any:
    """An attribute's value: text for bytes, a tensor for a tensor."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [one.decode() for one in value]
    return torch.from_numpy(numpy_helper.to_array(value).copy()) if isinstance(value, onnx.TensorProto) else value
