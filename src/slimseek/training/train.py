"""Stage 3: the one training loop. It can be killed and goes on, keeps the best state, and takes no callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np

from slimseek import plugins, sparse, timing
from slimseek.errors import UsageError
from slimseek.progress import say, track
from slimseek.schema import Array, Model, QuantizedTensor, Tensor, is_float
from slimseek.training import checkpoint
from slimseek.training.checkpoint import State
from slimseek.training.examples import Example, Examples, ahead
from slimseek.value import Value

if TYPE_CHECKING:
    import torch
    from torch import nn

CHECK_EVERY, MOST_CHECKS = 50, 40
"""Steps from one check to the next, and how many there are at most: those of a long training lie further apart."""

Precision = Literal["auto", "float32", "bfloat16"]
BFLOAT16_SETS = {"avx512_bf16", "amx_bf16"}
Loss = Callable[[Any, Any, float], "torch.Tensor"]
"""The network's output, the target as tensors, and the share of the training that is done, 0 to 1, to the loss of each
item, [n]. Held-out items are judged by the loss that holds at the end."""
Judge = Callable[[Any], float]
"""How bad a network is, lower is better, such as 1 - nDCG on development queries; it is asked without gradients."""


class Training(Value, frozen=True):
    """How to train.

    Attributes:
        steps: updates of the weights.
        batch_size: items in a batch.
        learning_rate: highest of AdamW's; it falls to zero in a cosine.
        warm_up: share of the steps over which the rate rises to its highest, 0 to 1.
        max_tokens: longer texts are cut.
        seed: of the choice and the order of items.
        checkpoint: a file that the training saves itself to at every check and goes on from; empty for none.
        accumulate: batches whose mean gradient makes one step: as one large batch, in the memory of a small one.
        patience: checks in a row without a better state after which it stops; 0 for never.
        precision: of the products: ``float32``, ``bfloat16`` (weights, loss and checks stay float32), or ``auto``:
            bfloat16 on an accelerator and float32 on a CPU.
        views: side in pixels of random views of pictures (crops, mirrored ones, in other light) that stand in their
            place; 0 for the pictures as they are. Views smaller than what the network takes cost less, and bring
            things to the size that they have in whole pictures (Touvron et al., 2019).
    """

    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-4
    warm_up: float = 0.1
    max_tokens: int = 128
    seed: int = 0
    checkpoint: str = ""
    accumulate: int = 1
    patience: int = 0
    precision: Precision = "auto"
    views: int = 0

    def __post_init__(self) -> None:
        """At least one step of one item."""
        for name in ("steps", "batch_size", "learning_rate", "accumulate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; above 0 is allowed")
        if self.max_tokens < 4:
            raise UsageError(f"max_tokens is {self.max_tokens}; 4 or more is allowed")
        if not 0 <= self.warm_up <= 1:
            raise UsageError(f"warm_up is {self.warm_up}; 0 to 1 is allowed")
        if self.patience < 0:
            raise UsageError(f"patience is {self.patience}; 0 or more is allowed")
        if self.views < 0:
            raise UsageError(f"views is {self.views}; a side in pixels, or 0, is allowed")
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision is {self.precision!r}; {', '.join(get_args(Precision))} are allowed")

    @property
    def batches(self) -> int:
        """How many batches it takes."""
        return self.steps * self.accumulate

    def rate(self, number: int) -> float:
        """The learning rate of a step, numbered from 0."""
        warm = int(self.steps * self.warm_up)
        if number < warm:
            return self.learning_rate * (number + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (number - warm) / (self.steps - warm)))


class Fitted(Value, frozen=True):
    """The loss on held-out items (or what was judged) before the training, and of the state that was kept.

    Attributes:
        steps: how many were taken, fewer than asked for where it stopped early.
    """

    before: float
    after: float
    steps: int


# ---------------------------------------------------------------- the loop


def fit(
    network: nn.Module, examples: Examples, loss: Loss, settings: Training, *, label: str = "training",
    shares: Mapping[str, float] | None = None, judge: Judge | None = None,
) -> Fitted:  # fmt: skip
    """Train a network in place; it is left in the state with the least loss on the held-out items.

    The untrained state is among them, so that a training never makes it worse there. The network runs as it will be
    used: without dropout, statistics of batch norms fixed; pruned weights stay zero; on an accelerator where PyTorch
    finds one, and on the CPU again when this returns. A killed training that is called again with the same arguments
    and its checkpoint gives what it would have given.

    Args:
        network: called with a batch's arrays by name; parameters that do not require gradients stay as they are.
        examples: ``settings.accumulate`` batches a step.
        loss: output, target and progress to the loss of each item.
        settings: rate, seed, checkpoint.
        label: what is trained, for the progress bar.
        shares: end of a parameter's name to its share of the learning rate; others have 1.
        judge: what to keep the best by, in the place of the loss on held-out items.

    Raises:
        UsageError: the checkpoint is not one of this training, bfloat16 is asked of a CPU that has none, or a loss
            is not finite.
    """
    total = -(-len(examples.train) // settings.accumulate)
    every = max(CHECK_EVERY, total // MOST_CHECKS)
    with _in_use(network):
        optimizer, pruned = _optimizer(network, shares or {}), _pruned(network)
        cast = _cast(settings.precision, next(network.parameters()).device.type)
        before = _check(network, examples, loss, judge)
        best = _begun_(network, optimizer, before, settings)
        say(f"{label}: {total - best.step} steps of {settings.batch_size * settings.accumulate}, "
            f"{'judged' if judge else 'loss on held-out items'} {before:.4f}")  # fmt: skip
        fed = ahead(examples.train, best.step * settings.accumulate, timing.default_threads())
        with closing(fed), track(label, total - best.step) as advance:
            while best.step < total and not (settings.patience and best.waited >= settings.patience):
                _step_(network, optimizer, list(islice(fed, settings.accumulate)), loss, best.step, settings, cast)
                for weight, zeros in pruned:
                    weight.data[zeros] = 0
                advance(1)
                best.step += 1
                if best.step % every == 0 or best.step == total:
                    found = _check(network, examples, loss, judge)
                    best.waited += 1
                    if found < best.loss:  # never true of NaN
                        best.loss, best.weights, best.waited = found, checkpoint.copy(network), 0
                    if settings.checkpoint:
                        checkpoint.save(Path(settings.checkpoint), network, optimizer, before, best, _same(settings))
        network.load_state_dict(best.weights)
    say(f"{label}: kept the state with {best.loss:.4f} after {best.step} steps")
    return Fitted(before=before, after=best.loss, steps=best.step)


def _begun_(network: nn.Module, optimizer: Any, before: float, settings: Training) -> State:
    """Where the checkpoint left off; the untrained state where there is none."""
    if not settings.checkpoint or not Path(settings.checkpoint).is_file():
        return State(step=0, loss=before, waited=0, weights=checkpoint.copy(network))
    return checkpoint.resume_(Path(settings.checkpoint), network, optimizer, before, _same(settings))


def _same(settings: Training) -> dict[str, Any]:
    """What a training that goes on from a checkpoint must share."""
    found: dict[str, Any] = msgspec.to_builtins(settings)
    del found["checkpoint"]
    return found


def _cast(precision: Precision, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The context that products are computed in.

    On a CPU bfloat16 must be asked for by name: whether it is faster hangs on the layers' shapes, and a timing that
    decided would give one training two results.
    """
    if precision == "bfloat16" and device == "cpu" and not BFLOAT16_SETS & set(timing.environment(1).instruction_sets):
        raise UsageError("precision is bfloat16, for which this CPU has no instructions; float32 is allowed here")
    if precision == "float32" or (precision == "auto" and device == "cpu"):
        return nullcontext
    torch = plugins.require("torch")
    return lambda: torch.autocast(device, dtype=torch.bfloat16)  # type: ignore[no-any-return]


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


def _step_(
    network: nn.Module, optimizer: Any, batches: Sequence[Example], loss: Loss, number: int, settings: Training,
    cast: Callable[[], AbstractContextManager[Any]],
) -> None:  # fmt: skip
    """One update by the mean gradient of some batches, each of which counts alike."""
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(number) * group["share"]
    optimizer.zero_grad()
    for example in batches:
        inputs, target = tensors(example, network)
        with cast():
            output = network(**inputs)
        mean: Any = loss(_widened(output), target, number / settings.steps).mean()
        if not mean.isfinite():
            raise UsageError(f"training: the loss of step {number + 1} is {mean.item()}: {_cause(output, target)}")
        (mean / len(batches) if len(batches) > 1 else mean).backward()
    optimizer.step()


def _cause(output: Any, target: Any) -> str:
    """What it is of a batch that made its loss infinite or no number, and what helps."""
    if not _finite(target):
        return "what the network should give, such as a teacher's vectors, is not finite; check the teacher"
    if not _finite(output):
        return "what the network gives is not finite; take a smaller learning_rate, or check its weights"
    return "network and target are finite, the loss of them is not; take a smaller learning_rate"


def _finite(values: Any) -> bool:
    if isinstance(values, Mapping):
        return all(map(_finite, values.values()))
    return bool(values.isfinite().all())


def _widened(output: Any) -> Any:
    """Float32, in which losses are computed whatever the precision of the network."""
    return {name: _widened(value) for name, value in output.items()} if isinstance(output, Mapping) else output.float()


def _check(network: nn.Module, examples: Examples, loss: Loss, judge: Judge | None) -> float:
    """What the judge finds, else the mean loss over the held-out items."""
    torch = plugins.require("torch")
    with torch.no_grad():
        if judge is not None:
            return float(judge(network))
        pairs = (tensors(example, network) for example in examples.held_out)
        return float(torch.cat([loss(network(**inputs), target, 1.0) for inputs, target in pairs]).mean())


def tensors(example: Example, network: nn.Module) -> tuple[dict[str, torch.Tensor], Any]:
    """Inputs and target where the network is."""
    inputs, target = example
    if isinstance(target, Mapping):
        return moved(inputs, network), moved(target, network)
    return moved(inputs, network), moved({"": target}, network)[""]


def moved(arrays: Mapping[str, Array], network: nn.Module) -> dict[str, torch.Tensor]:
    """Arrays as tensors where the network is."""
    torch = plugins.require("torch")
    device = next(network.parameters()).device
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def trained(model: Model, network: nn.Module) -> dict[str, Tensor]:
    """The model's tensors with the network's values, in the dtypes that the model stores.

    Integers, and what training left as it was, stay the same objects.
    """
    state = network.state_dict()
    tensors: dict[str, Tensor] = dict(model.tensors)
    for name, tensor in model.tensors.items():
        if name in state and not isinstance(tensor, QuantizedTensor) and is_float(tensor):
            value = state[name].cpu().numpy().astype(tensor.dtype)
            if not np.array_equal(value, tensor):
                tensors[name] = value
    return tensors
