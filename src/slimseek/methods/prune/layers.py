"""Whole blocks of a transformer leave it: half of the depth is half of the time."""

from __future__ import annotations

from slimseek import integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods import _blocks as blocks
from slimseek.schema import Model, Samples


class LayerPruning(Step, frozen=True, kw_only=True):
    """Keep some blocks of a transformer, or of a recogniser's decoder, and close the gaps; the configuration says the
    new depth.

    What is left gives other vectors than before, until a step such as ``distil.embedding`` trains it.

    Attributes:
        keep: numbers of the blocks to keep, from 0, ascending; or how many, evenly spaced with the first and the last
            among them; ``None`` for half of them, rounded up.
    """

    keep: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, tuple):
            if not self.keep:
                raise UsageError("prune.layers: keep is empty; at least one block must stay")
            if any(low >= high for low, high in zip(self.keep, self.keep[1:], strict=False)):
                raise UsageError(f"prune.layers: keep is {list(self.keep)}; each block once and ascending is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Drop the other blocks' tensors, renumber the rest, and rewrite the configuration."""
        _check_family(model)
        integers.check_finite(model, "pruned")
        return self._kept_only(model)

    def outline(self, model: Model, samples: Samples) -> Model:
        """Tensors but leave."""
        _check_family(model)
        return self._kept_only(model)

    def _kept_only(self, model: Model) -> Model:
        depth = blocks.depth(model)
        kept = self._kept(depth)
        if len(kept) == depth:
            raise NoEffect(f"prune.layers: keep is all of the {depth} blocks")
        try:
            return blocks.kept_only(model, kept)
        except UsageError as error:
            raise UsageError(f"prune.layers: {error}") from None

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Which block became which."""
        depth = blocks.depth(before)
        kept = self._kept(depth)
        places = ", ".join(f"{old} -> {new}" for new, old in enumerate(kept))
        gone = ", ".join(str(old) for old in range(depth) if old not in kept)
        return (f"blocks kept (old -> new): {places}; dropped: {gone}",)

    def _kept(self, depth: int) -> tuple[int, ...]:
        """Numbers of the blocks to keep of so many."""
        if isinstance(self.keep, tuple):
            if self.keep[0] < 0 or self.keep[-1] >= depth:
                raise UsageError(f"prune.layers: keep is {list(self.keep)}; blocks 0 to {depth - 1} are there")
            return self.keep
        count = (depth + 1) // 2 if self.keep is None else self.keep
        if not 1 <= count <= depth:
            raise UsageError(f"prune.layers: keep is {count}; 1 to {depth} blocks can be kept")
        return blocks.evenly(depth, count)


def _check_family(model: Model) -> None:
    if model.spec.family not in ("transformer", blocks.WHISPER):
        raise UsageError(
            f"prune.layers: blocks are known of the families transformer and {blocks.WHISPER}; this model is of "
            f"{model.spec.family}"
        )
