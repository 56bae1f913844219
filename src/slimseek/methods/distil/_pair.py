"""A student and its teacher on the same tokens: vectors, states and attention, the teacher's without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slimseek.errors import UsageError
from slimseek.losses.cosine import Cosine
from slimseek.losses.hidden import HiddenStates
from slimseek.methods.distil._rotation import ridge
from slimseek.training.examples import Examples

SMALLEST = 1e-9
"""Of an attention weight, for its logarithm."""


class Pair(nn.Module):
    """The student with linear maps to the teacher's widths, which are thrown away after the training.

    The teacher is no part of the module: it is neither trained, saved nor switched to another mode.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, layers: Mapping[int, int], ids: torch.Tensor, attention: bool
    ) -> None:
        """``ids``: int64 [the student's ids], the teacher's id of each; ``attention``: whether maps are wanted."""
        super().__init__()
        self.student, self.layers, self.attention, self.ids = student, dict(layers), attention, ids
        self.projections = nn.ModuleDict()
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        self._teacher = (teacher.eval(),)  # in a tuple, so that it is not registered
        self._seen: dict[nn.Module, Any] = {}
        for network in (student, teacher):
            _watch(network, self._seen, attention)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Int64 [n, tokens] twice to the ``mask``, and of ``student`` and ``teacher`` the ``vector`` [n, dim] and, by
        the student's block, ``states 0`` [n, tokens, width] and ``attention 0`` [n, heads, tokens, tokens].
        """
        [teacher] = self._teacher
        with torch.no_grad():
            ids = self.ids.to(input_ids.device)[input_ids]
            taught = {"vector": teacher.to(input_ids.device)(input_ids=ids, attention_mask=attention_mask)}
        own = {"vector": self.student(input_ids=input_ids, attention_mask=attention_mask)}
        for network, found, places in ((self.student, own, self.layers), (teacher, taught, self.layers.values())):
            for block, place in zip(self.layers, places, strict=True):
                found[f"states {block}"] = self._seen[network].hidden_states[place + 1]
                if self.attention:
                    found[f"attention {block}"] = self._seen[network].attentions[place]
        self._seen.clear()
        return {"mask": attention_mask, "student": self._widened(own), "teacher": taught}

    def _widened(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: self.projections[name](value) if name in self.projections else value for name, value in own.items()
        }

    def fit_projections_(self, found: Examples) -> None:
        """A map wherever widths differ, that which fits best before any training: ridge regression on one batch."""
        batch, _ = found.train[0]
        with torch.no_grad():
            given = self(**{name: torch.from_numpy(array) for name, array in batch.items()})
        real = given["mask"].bool()
        for name, own in given["student"].items():
            other = given["teacher"][name]
            if name.startswith("attention") or own.shape[-1] == other.shape[-1]:
                continue
            pair = (own, other) if name == "vector" else (own[real], other[real])
            linear = nn.Linear(own.shape[-1], other.shape[-1], bias=False)
            linear.weight.data = torch.from_numpy(ridge(*(side.numpy() for side in pair))).T.contiguous()
            self.projections[name] = linear


def pair_loss(output: Mapping[str, Any], hidden: float, attention: float, embedding: float) -> torch.Tensor:
    """The weighted sum of a pair's losses of each item, [n], a layer's share as large as the others'.

    Args:
        output: what a :class:`Pair` gives.
        hidden: weight of the masked mean squared difference of states.
        attention: weight of the Kullback-Leibler divergence of attention, KL(teacher || student), the mean over heads
            and real tokens (Wang et al., MiniLM, 2020).
        embedding: weight of 1 - cosine of the vectors.
    """
    own, other, mask = output["student"], output["teacher"], output["mask"]
    loss = embedding * Cosine()(own["vector"], other["vector"])
    for kind, weight in (("states", hidden), ("attention", attention)):
        names = [name for name in own if name.startswith(kind)] if weight else []
        for name in names:
            found = (
                divergence(own[name], other[name], mask)
                if kind == "attention"
                else HiddenStates()(own[name], {"states": other[name], "mask": mask})
            )
            loss = loss + weight / len(names) * found
    return loss


def divergence(own: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(other || own) of attention, the mean over heads and real tokens: [n, heads, tokens, tokens] twice and
    [n, tokens] to [n].

    Raises:
        UsageError: the numbers of heads differ.
    """
    if own.shape != other.shape:
        raise UsageError(
            f"distil.hidden: attention cannot be compared: the student has {own.shape[1]} heads in a layer whose "
            f"teacher has {other.shape[1]}; set attention to 0"
        )
    logarithms = other.clamp(min=SMALLEST).log() - own.clamp(min=SMALLEST).log()
    of_tokens = (other * logarithms).sum(-1).mean(1)
    real = mask.to(own.dtype)
    return (of_tokens * real).sum(1) / real.sum(1).clamp(min=1)


def depth(network: Any) -> int:
    """How many blocks a transformer has."""
    return int(network.transformer.config.num_hidden_layers)


def _watch(network: Any, seen: dict[nn.Module, Any], attention: bool) -> None:
    """Have a network leave what its transformer gives, states and attention among it, under its name."""
    network.transformer.config.output_hidden_states = True
    network.transformer.config.output_attentions = attention

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[network] = output

    network.transformer.register_forward_hook(hook)
