"""A smaller network of the same family, as large as a budget of bytes allows, with weights of the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from slimseek import choose, hollow, integers, recipe
from slimseek.bases import Family, Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods import _blocks as blocks
from slimseek.schema import Model, QuantizedTensor, Samples, Tensor, Widths

NEAR = 0.9
"""Shapes with this share of the most parameters under the budget count as equally large."""
BALANCE = 64
"""Channels for each block of the encoders that last: 768 / 12, 384 / 6, 512 / 8, 256 / 4."""
LEAST_BALANCE, MOST_BALANCE = 16, 128
FLOAT_BITS = 32


class Redesign(Step, frozen=True, kw_only=True):
    """Choose blocks, channels, heads and inner units for a budget of bytes, and keep the weights of what stays.

    Heads stay as wide as they are, and the feed-forward part as many times wider than the channels. Of all such shapes
    under the budget whose channels for each block lie between 16 and 128, or no farther off than the model's own, the
    one with the most parameters is taken; of those within a tenth of it the one nearest to 64 channels a block, so
    that neither depth nor width is bought at the other's cost. Blocks are kept evenly spaced with the first and the
    last. The channels that stay are those that weigh most: a subset, no mixture, since norms count single channels.

    The vectors are as wide as the channels, so a training such as ``distil.embedding`` must follow.

    Attributes:
        size: bytes of the weights that are left, such as ``10MB``, or a share of those of the whole model, both as
            they will be with weights of ``bits`` bits.
        bits: of the weights of layers later, one float32 scale a channel included below 16: 2 to 8, 16 or 32.
    """

    size: str | float = "50%"
    bits: int = 8

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 or self.bits in (16, FLOAT_BITS)):
            raise UsageError(f"simplify.redesign: bits is {self.bits}; 2 to 8, 16 and 32 are allowed")
        try:
            recipe.byte_size(self.size, 1000)
        except UsageError as error:
            raise UsageError(f"simplify.redesign: {error}") from None

    def apply(self, model: Model, samples: Samples) -> Model:
        """Choose the shape, keep some blocks, and narrow them."""
        if any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values()):
            raise UsageError("simplify.redesign: the model is quantized; redesign before quantizing")
        if model.activations or model.smoothing:
            raise UsageError("simplify.redesign: the model is smoothed or rounds its inputs; redesign before that")
        integers.check_finite(model, "redesigned")
        family = choose.family(model)
        try:
            blocks.check_untied(model, "redesign")
            now = family.widths(model)
            _check_regular(model, family.narrowed_shapes(model, now.hidden, now.inner))
            found = self._shape(model, family, now)
            if found == now:
                raise NoEffect(f"simplify.redesign: the model's own shape has no more than {self.size}")
            kept = model
            if found.layers < now.layers:
                kept = blocks.kept_only(model, blocks.evenly(now.layers, found.layers))
            return family.narrowed(kept, found.hidden, found.inner) if found.hidden < now.hidden else kept
        except NoEffect:
            raise
        except UsageError as error:
            raise UsageError(f"simplify.redesign: {str(error).removeprefix('simplify.redesign: ')}") from None

    def outline(self, model: Model, samples: Samples) -> Model:
        """The same, whichever channels weigh most."""
        return hollow.model(self.apply(model, samples), model)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Shapes and bytes."""
        family = choose.family(before)
        old, new = family.widths(before), family.widths(after)
        sizes = [predicted({name: tensor.shape for name, tensor in model.tensors.items()}, model, self.bits)
                 for model in (before, after)]  # fmt: skip
        kept = ", ".join(map(str, blocks.evenly(old.layers, new.layers)))
        return (
            f"{_words(old)} -> {_words(new)}",
            f"{sizes[0]:,} -> {sizes[1]:,} bytes of weights at {self.bits} bits; blocks kept: {kept}; channels, heads "
            f"and inner units kept: those that weigh most",
        )

    def _shape(self, model: Model, family: Family, now: Widths) -> Widths:
        """The shape to take."""
        start = blocks.prefix(model, now.layers)
        whole = predicted({name: tensor.shape for name, tensor in model.tensors.items()}, model, self.bits)
        budget = recipe.byte_size(self.size, whole)
        sized: list[tuple[Widths, int, int]] = []
        least = whole
        for hidden, inner in _narrower(now):
            shapes = family.narrowed_shapes(model, hidden, inner)
            for layers in range(1, now.layers + 1):
                shape = Widths(layers=layers, hidden=hidden, heads=hidden * now.heads // now.hidden, inner=inner)
                left = _with_blocks(shapes, start, blocks.evenly(now.layers, layers))
                size = predicted(left, model, self.bits)
                if _is_sound(shape, now):
                    least = min(least, size)
                    sized += [(shape, size, sum(math.prod(one) for one in left.values()))] if size <= budget else []
        if not sized:
            raise NoEffect(
                f"simplify.redesign: size is {self.size}, {budget:,} bytes; the smallest sound shape has {least:,}"
            )
        most = max(parameters for _, _, parameters in sized)
        near = [(shape, parameters) for shape, _, parameters in sized if parameters >= NEAR * most]
        return min(near, key=lambda found: (_imbalance(found[0]), -found[1]))[0]


def predicted(shapes: Mapping[str, tuple[int, ...]], model: Model, bits: int) -> int:
    """Bytes of tensors once the weights of the model's layers have so many bits, one scale a channel, and all else
    is as it is stored now.

    Args:
        shapes: of the tensors that are left, by name.
        model: whose layers and dtypes count.
        bits: 2 to 8, 16 or 32.
    """
    axes = {layer.weight: layer.axis for layer in model.layers}
    total = 0
    for name, shape in shapes.items():
        tensor: Tensor = model.tensors[name]
        assert not isinstance(tensor, QuantizedTensor)
        count = math.prod(shape)
        if name not in axes:
            total += count * tensor.itemsize
        else:
            total += (count * bits + 7) // 8 + (4 * shape[axes[name]] if bits < 16 else 0)
    return total


def _narrower(now: Widths) -> Iterator[tuple[int, int]]:
    """Channels and inner units with 2 heads up to all; one head only where there is no more."""
    width = now.hidden // now.heads
    for heads in range(min(2, now.heads), now.heads + 1):
        yield heads * width, max(1, round(now.inner * heads / now.heads))


def _with_blocks(
    shapes: Mapping[str, tuple[int, ...]], start: str, kept: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """The shapes without those of other blocks."""
    numbers = {str(number) for number in kept}
    return {
        name: shape for name, shape in shapes.items()
        if not name.startswith(f"{start}.") or name.removeprefix(f"{start}.").partition(".")[0] in numbers
    }  # fmt: skip


def _imbalance(shape: Widths) -> float:
    return abs(float(np.log(shape.hidden / shape.layers / BALANCE)))


def _is_sound(shape: Widths, now: Widths) -> bool:
    return LEAST_BALANCE <= shape.hidden / shape.layers <= MOST_BALANCE or _imbalance(shape) <= _imbalance(now)


def _check_regular(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    odd = next((name for name, tensor in model.tensors.items() if tensor.shape != shapes.get(name)), None)
    if odd is not None:
        raise UsageError(f"{odd} has other widths than the configuration says; redesign before pruning or factoring")


def _words(shape: Widths) -> str:
    count = "1 block" if shape.layers == 1 else f"{shape.layers} blocks"
    return f"{count} of {shape.hidden} channels, {shape.heads} heads, {shape.inner} inner units"
