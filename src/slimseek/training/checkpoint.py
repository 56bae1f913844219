"""A training on disk: everything that the rest of it depends on, as safetensors; no pickle is ever opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slimseek import plugins
from slimseek.errors import UsageError
from slimseek.folder import write_atomically
from slimseek.reading import check_file

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(kw_only=True, eq=False)
class State:
    """How far a training is, and the best found on the way.

    Attributes:
        step: steps that are done.
        loss: the least of all checks.
        waited: checks since then.
        weights: those that gave it.
    """

    step: int
    loss: float
    waited: int
    weights: dict[str, torch.Tensor]


def copy(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of a network as it is now."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def save(
    path: Path, network: nn.Module, optimizer: Any, before: float, best: State, settings: Mapping[str, Any]
) -> None:
    """Write a checkpoint in one go.

    Args:
        path: the file.
        network: as it is after the last step.
        optimizer: with its moments.
        before: loss of the untrained network.
        best: how far it is, and the best state.
        settings: plain values that a training must share to go on from here.
    """
    parts = {"network": copy(network), "best": best.weights}
    parts |= {f"optimizer.{number}": state for number, state in optimizer.state_dict()["state"].items()}
    tensors = {f"{part}.{name}": value.contiguous() for part, state in parts.items() for name, value in state.items()}
    numbers = {"step": repr(best.step), "loss": repr(best.loss), "waited": repr(best.waited), "before": repr(before)}
    noted = numbers | {"settings": msgspec.json.encode(settings).decode()}
    write_atomically(path, plugins.require("safetensors.torch").save(tensors, noted))


def resume_(path: Path, network: nn.Module, optimizer: Any, before: float, settings: Mapping[str, Any]) -> State:
    """The state that a checkpoint holds; network and optimizer are brought to it.

    Raises:
        UsageError: it is damaged, or of another training; the text says what differs.
    """
    opening = plugins.require("safetensors").safe_open
    try:
        with opening(check_file(path), framework="pt") as file:
            noted = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_same(noted, before, settings)
        best = State(step=int(noted["step"]), loss=float(noted["loss"]), waited=int(noted["waited"]),
                     weights=_part(tensors, "best."))  # fmt: skip
        network.load_state_dict(_part(tensors, "network."))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    except Exception as error:  # safetensors, a KeyError, or torch for weights of another model
        reason = str(error) if isinstance(error, UsageError) else type(error).__name__
        raise UsageError(f"{path} is no checkpoint of this training ({reason}); delete it to start anew") from error
    return best


def _check_same(noted: Mapping[str, str], before: float, now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other settings; or of another network, loss or items, whose first loss is another."""
    then = msgspec.json.decode(noted["settings"])
    differing = [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]
    if not differing and not math.isclose(float(noted["before"]), before, rel_tol=1e-3, abs_tol=1e-6):
        differing = [f"it began with loss {float(noted['before']):.4g}, this one with {before:.4g}"]
    if differing:
        raise UsageError(", ".join(differing))


def _part(tensors: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
