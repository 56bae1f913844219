"""Recurrent operators of ONNX over PyTorch's tensors: LSTM, GRU, RNN, step by step, of any length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimseek.errors import UsageError
from slimseek.models._torch.arithmetic import Operator, allow

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "softsign": torch.nn.functional.softsign,
}
USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _lstm(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None, memory: Tensor | None = None, peepholes: Tensor | None = None, *,
    activations: Sequence[str] = (), activation_alpha: Sequence[float] = (), activation_beta: Sequence[float] = (),
    clip: float = math.inf, direction: str = "forward", hidden_size: int = 0, input_forget: int = 0, layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gates in the order input, output, forget, candidate; peepholes input, output, forget."""
    allow("LSTM: layout", layout, 0)
    chosen = _chosen("LSTM", activations, activation_alpha, len(weight))

    def cell(number: int, step: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before, kept = state
        gate, candidate, squash = chosen[number]
        i, o, f, c = (step + _recurring(before, recurrence, bias, number)).chunk(4, -1)
        seen = peepholes[number].chunk(3) if peepholes is not None else (None,) * 3
        i, f = _peeped(i, seen[0], kept), _peeped(f, seen[2], kept)
        opened = gate(_clipped(i, clip))
        kept_share = 1 - opened if input_forget else gate(_clipped(f, clip))
        after = kept_share * kept + opened * candidate(_clipped(c, clip))
        return gate(_clipped(_peeped(o, seen[1], after), clip)) * squash(after), after

    starts = _start(x, recurrence, hidden), _start(x, recurrence, memory)
    outputs, (last, remembered) = _run(x, weight, bias, lengths, starts, direction, cell)
    return outputs, last, remembered


def _gru(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None, *, activations: Sequence[str] = (), activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (), clip: float = math.inf, direction: str = "forward", hidden_size: int = 0,
    layout: int = 0, linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gates in the order update, reset, candidate."""
    allow("GRU: layout", layout, 0)
    chosen = _chosen("GRU", activations, activation_alpha, len(weight))

    def cell(number: int, step: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (before,) = state
        gate, candidate = chosen[number]
        update, reset, new = step.chunk(3, -1)
        whole = _recurring(before, recurrence, bias, number)
        of_update, of_reset, of_new = whole.chunk(3, -1)
        opened = gate(_clipped(update + of_update, clip))
        kept = gate(_clipped(reset + of_reset, clip))
        if linear_before_reset:
            inner = kept * of_new
        else:
            width = before.shape[-1]
            inner = (kept * before) @ recurrence[number, 2 * width :].T
            inner = inner if bias is None else inner + bias[number, 5 * width :]
        return (((1 - opened) * candidate(_clipped(new + inner, clip)) + opened * before),)

    outputs, (last,) = _run(x, weight, bias, lengths, (_start(x, recurrence, hidden),), direction, cell)
    return outputs, last


def _rnn(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None = None, lengths: Tensor | None = None,
    hidden: Tensor | None = None, *, activations: Sequence[str] = (), activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (), clip: float = math.inf, direction: str = "forward", hidden_size: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    allow("RNN: layout", layout, 0)
    chosen = _chosen("RNN", activations, activation_alpha, len(weight))

    def cell(number: int, step: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (chosen[number][0](_clipped(step + _recurring(state[0], recurrence, bias, number), clip)),)

    outputs, (last,) = _run(x, weight, bias, lengths, (_start(x, recurrence, hidden),), direction, cell)
    return outputs, last


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, starts: tuple[Tensor, ...],
    direction: str, cell: Callable[[int, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Hidden states [time, directions, batch, hidden], and the last of each state [directions, batch, hidden]."""
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    outputs, ends = [], []
    for number, backward in enumerate(backwards):
        steps = x @ weight[number].T
        if bias is not None:
            steps = steps + bias[number].chunk(2)[0]
        state = tuple(start[number] for start in starts)
        shown: list[Tensor] = [state[0]] * len(x)
        for time in reversed(range(len(x))) if backward else range(len(x)):
            after = cell(number, steps[time], state)
            if lengths is None:
                state, shown[time] = after, after[0]
            else:  # shorter items wait until their last step, or for it; their outputs beyond it are zero
                live = (time < lengths)[:, None]
                state = tuple(torch.where(live, new, old) for new, old in zip(after, state, strict=True))
                shown[time] = torch.where(live, after[0], torch.zeros_like(after[0]))
        outputs.append(torch.stack(shown))
        ends.append(state)
    return torch.stack(outputs, 1), tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _start(x: Tensor, recurrence: Tensor, given: Tensor | None) -> Tensor:
    return x.new_zeros(len(recurrence), x.shape[1], recurrence.shape[-1]) if given is None else given


def _recurring(hidden: Tensor, recurrence: Tensor, bias: Tensor | None, number: int) -> Tensor:
    product = hidden @ recurrence[number].T
    return product if bias is None else product + bias[number].chunk(2)[1]


def _peeped(gate: Tensor, share: Tensor | None, memory: Tensor) -> Tensor:
    return gate if share is None else gate + share * memory


def _clipped(x: Tensor, limit: float) -> Tensor:
    return x if math.isinf(limit) else x.clamp(-limit, limit)


def _chosen(kind: str, named: Sequence[str], alpha: Sequence[float], directions: int) -> list[list[Activation]]:
    """The activations of each direction."""
    names = [name.lower() for name in (named or USUAL[kind] * directions)]
    for name in names:
        allow(f"{kind}: activations", name, *ACTIVATIONS)
    if alpha:
        raise UsageError(f"{kind} has activation_alpha, which cannot be trained with")
    each = len(names) // directions
    return [[ACTIVATIONS[name] for name in names[each * part : each * (part + 1)]] for part in range(directions)]


OPERATORS: dict[str, Operator] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
"""Operators by their names in ONNX."""
