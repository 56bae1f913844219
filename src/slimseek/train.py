"""Stage 3: the one training loop. It can be killed and goes on, keeps the best state, and takes no callbacks."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slimseek import plugins, sparse, teacher
from slimseek.errors import UsageError
from slimseek.folder import write_atomically
from slimseek.inputs.reader import reader
from slimseek.progress import say, track
from slimseek.schema import Array, Batch, Model, ModelSpec, Value

if TYPE_CHECKING:
    import torch
    from torch import nn

HELD_OUT = 128
ROWS_IN_CHECK = 32
CHECK_EVERY = 50
BATCHES_SORTED_AT_ONCE = 16

Target = Array | Mapping[str, Array]
"""What a network should give for some items, [n, ...]; several arrays by name for losses that need them."""
Example = tuple[Batch, Target]
"""Inputs of some items, and their target."""
Loss = Callable[[Any, Any, float], "torch.Tensor"]
"""The network's output, the target as tensors, and the share of the training that is done, 0 to 1, to the loss of each
item, [n]. Held-out items are judged by the loss that holds at the end."""


class Training(Value, frozen=True):
    """How to train.

    Attributes:
        steps: batches to train on.
        batch_size: items in a batch.
        learning_rate: highest of AdamW's; it falls to zero in a cosine.
        warm_up: share of the steps over which the rate rises to its highest, 0 to 1.
        max_tokens: longer texts are cut.
        seed: of the choice and the order of items.
        checkpoint: a file that the training saves itself to at every check and goes on from; empty for none.
    """

    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-4
    warm_up: float = 0.1
    max_tokens: int = 128
    seed: int = 0
    checkpoint: str = ""

    def __post_init__(self) -> None:
        """At least one step of one item."""
        for name in ("steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; above 0 is allowed")
        if self.max_tokens < 4:
            raise UsageError(f"max_tokens is {self.max_tokens}; 4 or more is allowed")
        if not 0 <= self.warm_up <= 1:
            raise UsageError(f"warm_up is {self.warm_up}; 0 to 1 is allowed")

    def rate(self, number: int) -> float:
        """The learning rate of a step, numbered from 0."""
        warm = int(self.steps * self.warm_up)
        if number < warm:
            return self.learning_rate * (number + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (number - warm) / (self.steps - warm)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What to train on, a batch for each step, and what to check by, none of which is trained on."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


class Fitted(Value, frozen=True):
    """The loss on held-out items before the training, and of the state that was kept."""

    before: float
    after: float


# ---------------------------------------------------------------- examples


def examples(
    model: Model, items: Sequence[str], target: Callable[[Sequence[str]], Array], settings: Training
) -> Examples:
    """Batches of items of like length with their targets; a quarter of the items, at most 128, is held out.

    Items that the model reads alike, such as texts that differ in case or beyond ``max_tokens``, count once.

    Args:
        model: reads the items.
        items: texts, or paths of arrays; empty ones are left out.
        target: items to what the network should give for each, [n, ...].
        settings: how many are needed, and the seed.

    Raises:
        UsageError: fewer than four items, or one that cannot be read.
    """
    read: Any = reader(_cut(model.spec, settings.max_tokens), model.files)
    generator = random.Random(settings.seed)
    chosen = [item for item in dict.fromkeys(items) if item]
    generator.shuffle(chosen)
    del chosen[HELD_OUT + settings.steps * settings.batch_size :]  # no need to read what is never used
    rows: list[Any] = read.rows(chosen, read.document_prefix)
    alike = {_content(row): position for position, row in enumerate(rows)}
    rows, chosen = [rows[position] for position in alike.values()], [chosen[position] for position in alike.values()]
    held = min(HELD_OUT, len(rows) // 4)
    if held < 1:
        raise UsageError(f"{len(rows)} items are too few to train on; 4 are needed")
    targets = target(chosen)

    def batches(positions: Sequence[int], size: int) -> list[Example]:
        return [
            (read.batch([rows[position] for position in part]), targets[part])
            for part in _parts(positions, [_width(row) for row in rows], size)
        ]

    train: list[Example] = []
    order: list[int] = []
    while len(train) < settings.steps:
        while len(order) < BATCHES_SORTED_AT_ONCE * settings.batch_size:
            order += generator.sample(range(held, len(rows)), len(rows) - held)
        some = batches(order[: BATCHES_SORTED_AT_ONCE * settings.batch_size], settings.batch_size)
        del order[: BATCHES_SORTED_AT_ONCE * settings.batch_size]
        generator.shuffle(some)
        train += some
    return Examples(train=tuple(train[: settings.steps]), held_out=tuple(batches(range(held), ROWS_IN_CHECK)))


def vectors_of(model: Model, max_tokens: int, cache: str = "") -> Callable[[Sequence[str]], Array]:
    """The vectors that a teacher gives: items to float32 [n, dim], texts cut to so many tokens by its own tokenizer.

    They are kept on disk, in the folder ``cache``: see :func:`slimseek.teacher.vectors`.
    """
    cut = dataclasses.replace(model, spec=_cut(model.spec, max_tokens))
    return lambda items: teacher.vectors(cut, items, cache)


def _cut(spec: ModelSpec, max_tokens: int) -> ModelSpec:
    if spec.preprocess is None:
        return spec
    longest = min(spec.preprocess.max_length, max_tokens)
    return msgspec.structs.replace(spec, preprocess=msgspec.structs.replace(spec.preprocess, max_length=longest))


def _content(row: Any) -> Any:
    """What tells rows apart: token ids, or the bytes of arrays."""
    return tuple(row) if isinstance(row, list) else tuple((array.shape, array.tobytes()) for array in row.values())


def _width(row: Any) -> tuple[Any, ...]:
    return (len(row),) if isinstance(row, list) else tuple(array.shape for array in row.values())


def _parts(positions: Sequence[int], widths: Sequence[tuple[Any, ...]], size: int) -> list[list[int]]:
    """At most ``size`` positions of like width each: texts are padded, arrays of different shapes are kept apart."""
    parts: list[list[int]] = []
    for position in sorted(positions, key=lambda position: widths[position]):
        last = parts[-1] if parts else []
        padded = isinstance(widths[position][0], int)
        if last and len(last) < size and (padded or widths[last[0]] == widths[position]):
            last.append(position)
        else:
            parts.append([position])
    return parts


# ---------------------------------------------------------------- the loop


@dataclass(kw_only=True, eq=False)
class _State:
    """How far a training is, and the least loss on held-out items with the weights that gave it."""

    step: int
    loss: float
    weights: dict[str, torch.Tensor]


def fit(
    network: nn.Module, examples: Examples, loss: Loss, settings: Training, *, label: str = "training",
    shares: Mapping[str, float] | None = None,
) -> Fitted:  # fmt: skip
    """Train a network in place; it is left in the state with the least loss on the held-out items.

    The untrained state is among them, so that a training never makes it worse there. The network runs as it will be
    used: without dropout, statistics of batch norms fixed; pruned weights stay zero; on an accelerator where PyTorch
    finds one, and on the CPU again when this returns. A killed training that is called again with the same arguments
    and its checkpoint gives what it would have given.

    Args:
        network: called with a batch's arrays by name; parameters that do not require gradients stay as they are.
        examples: one batch a step.
        loss: output, target and progress to the loss of each item.
        settings: rate, seed, checkpoint.
        label: what is trained, for the progress bar.
        shares: end of a parameter's name to its share of the learning rate; others have 1.

    Raises:
        UsageError: the checkpoint is not one of this training.
    """
    with _in_use(network):
        optimizer, pruned = _optimizer(network, shares or {}), _pruned(network)
        before = _check(network, examples, loss)
        best = _resumed_(network, optimizer, before, settings)
        left = examples.train[best.step :]
        say(f"{label}: {len(left)} batches of {settings.batch_size}, loss {before:.4f} on held-out items")
        with track(label, len(left)) as advance:
            for number, example in enumerate(left, start=best.step):
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate(number) * group["share"]
                _step_(network, optimizer, example, loss, number / settings.steps)
                for weight, zeros in pruned:
                    weight.data[zeros] = 0
                advance(1)
                best.step = number + 1
                if best.step % CHECK_EVERY == 0 or best.step == len(examples.train):
                    found = _check(network, examples, loss)
                    if found < best.loss:  # never true of NaN
                        best.loss, best.weights = found, _copy(network)
                    _save(network, optimizer, before, best, settings)
        network.load_state_dict(best.weights)
    say(f"{label}: kept the state with loss {best.loss:.4f}")
    return Fitted(before=before, after=best.loss)


@contextmanager
def _in_use(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, on the accelerator where there is one, while the block runs; every module gets its own mode
    back, on the CPU.
    """
    accelerator = plugins.require("torch").accelerator
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    if accelerator.is_available():
        network.to(accelerator.current_accelerator())
    try:
        yield
    finally:
        network.cpu()
        for module, mode in modes:
            module.training = mode


def _optimizer(network: nn.Module, shares: Mapping[str, float]) -> Any:
    groups: dict[float, list[Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            share = next((share for ending, share in shares.items() if name.endswith(ending)), 1.0)
            groups.setdefault(share, []).append(parameter)
    if not groups:
        raise UsageError("no parameter of this network can be trained")
    given = [{"params": parameters, "share": share} for share, parameters in groups.items()]
    return plugins.require("torch").optim.AdamW(given, weight_decay=0.0)


def _pruned(network: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The weights that were pruned before, and where they are zero: training would fill them again."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [(parameter, parameter == 0) for parameter in trained if sparse.is_pruned(parameter.detach().cpu().numpy())]


def _step_(network: nn.Module, optimizer: Any, example: Example, loss: Loss, progress: float) -> None:
    inputs, target = _tensors(example, network)
    optimizer.zero_grad()
    mean: Any = loss(network(**inputs), target, progress).mean()
    mean.backward()
    optimizer.step()


def _check(network: nn.Module, examples: Examples, loss: Loss) -> float:
    """Mean loss over the held-out items."""
    torch = plugins.require("torch")
    with torch.no_grad():
        pairs = (_tensors(example, network) for example in examples.held_out)
        return float(torch.cat([loss(network(**inputs), target, 1.0) for inputs, target in pairs]).mean())


def _tensors(example: Example, network: nn.Module) -> tuple[dict[str, torch.Tensor], Any]:
    """Inputs and target where the network is."""
    torch = plugins.require("torch")
    device = next(network.parameters()).device

    def moved(arrays: Mapping[str, Array]) -> dict[str, Any]:
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    inputs, target = example
    return moved(inputs), moved(target) if isinstance(target, Mapping) else torch.from_numpy(target).to(device)


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


# ---------------------------------------------------------------- checkpoints


def _save(network: nn.Module, optimizer: Any, before: float, best: _State, settings: Training) -> None:
    """Everything that the rest of the training depends on, as safetensors: no pickle is ever opened."""
    if not settings.checkpoint:
        return
    parts = {"network": _copy(network), "best": best.weights}
    parts |= {f"optimizer.{number}": state for number, state in optimizer.state_dict()["state"].items()}
    tensors = {f"{part}.{name}": value.contiguous() for part, state in parts.items() for name, value in state.items()}
    numbers = {"step": repr(best.step), "loss": repr(best.loss), "before": repr(before)}
    content = plugins.require("safetensors.torch").save(tensors, numbers | {"settings": _identity(settings)})
    write_atomically(Path(settings.checkpoint), content)


def _resumed_(network: nn.Module, optimizer: Any, before: float, settings: Training) -> _State:
    """The state that a checkpoint holds, network and optimizer brought to it; the untrained one where there is none."""
    if not settings.checkpoint or not Path(settings.checkpoint).is_file():
        return _State(step=0, loss=before, weights=_copy(network))
    opening = plugins.require("safetensors").safe_open
    try:
        with opening(settings.checkpoint, framework="pt") as file:
            noted = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_same(noted, before, settings)
        best = _State(step=int(noted["step"]), loss=float(noted["loss"]), weights=_part(tensors, "best."))
        network.load_state_dict(_part(tensors, "network."))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    except Exception as error:  # safetensors, a KeyError, or torch for weights of another model
        reason = str(error) if isinstance(error, UsageError) else type(error).__name__
        raise UsageError(
            f"{settings.checkpoint} is no checkpoint of this training ({reason}); delete it to start anew"
        ) from error
    return best


def _check_same(noted: Mapping[str, str], before: float, settings: Training) -> None:
    """Refuse a checkpoint of other settings; or of another network, loss or items, whose first loss is another."""
    now, then = msgspec.json.decode(_identity(settings)), msgspec.json.decode(noted["settings"])
    differing = [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]
    if not differing and not math.isclose(float(noted["before"]), before, rel_tol=1e-3, abs_tol=1e-6):
        differing = [f"it began with loss {float(noted['before']):.4g}, this one with {before:.4g}"]
    if differing:
        raise UsageError(", ".join(differing))


def _identity(settings: Training) -> str:
    return msgspec.json.encode(msgspec.structs.replace(settings, checkpoint="")).decode()


def _part(tensors: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
