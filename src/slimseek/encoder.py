"""Items to vectors with any ``Encode``: read, batched in buckets of like width, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek.artifact import KeptIndex
from slimseek.errors import UsageError
from slimseek.inputs.reader import Input
from slimseek.schema import Array, Batch, Encode, Model, ModelSpec

WIDEST = 1_000_000
ITEMS_READ_AT_ONCE = 16384


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A model ready to encode: what evaluation measures, search uses and deployment compares.

    Attributes:
        name: for reports.
        spec: what it takes and gives.
        input: items to arrays.
        encode: arrays to vectors.
        model: its weights as data where it can be compressed; ``None`` for a deployed package.
        shipped: bytes by kind (``weights``, ``rest``) that must be shipped to run it.
        runtime: what runs it, for reports.
        threads: how many threads it was opened with.
        index_of: the original whose vectors its queries search; ``None`` for one that encodes documents too.
    """

    name: str
    spec: ModelSpec
    input: Input
    encode: Encode
    model: Model | None
    shipped: dict[str, int]
    runtime: str
    threads: int
    index_of: KeptIndex | None = None

    def queries(self, items: Sequence[str]) -> Array:
        """Vectors float32 [n, dim] of queries."""
        return self.vectors(items, prefix=self.input.query_prefix)

    def documents(self, items: Sequence[str], advance: Callable[[int], None] | None = None) -> Array:
        """Vectors float32 [n, dim] of documents; ``advance`` is told how many are done after each batch."""
        return self.vectors(items, prefix=self.input.document_prefix, advance=advance)

    def vectors(self, items: Sequence[str], prefix: str = "", advance: Callable[[int], None] | None = None) -> Array:
        """Vectors float32 [n, dim] of texts, or of what is in files, computed in batches of rows of like width.

        A text is always padded to the width of its own bucket, whatever its neighbours are: so little is computed on
        padding, and its vector does not depend on the batch.

        Raises:
            UsageError: a vector is not finite, or is zero; an item cannot be read.
        """
        if not 0 < self.spec.dim <= WIDEST:
            raise UsageError(
                f"{self.name} says that its vectors have {self.spec.dim} dimensions; 1 to {WIDEST:,} are possible"
            )
        vectors = np.zeros((len(items), self.spec.dim), np.float32)
        for start in range(0, len(items), ITEMS_READ_AT_ONCE):
            rows = self.input.rows(items[start : start + ITEMS_READ_AT_ONCE], prefix)
            for chosen, batch in self._batches(rows):
                found = self.encode(batch)
                if found.shape != (len(chosen), self.spec.dim):
                    raise UsageError(f"{self.name} gave {list(found.shape)} for {len(chosen)} items of {self.spec.dim} "
                                     "dimensions")  # fmt: skip
                vectors[[start + position for position in chosen]] = found
                if advance is not None:
                    advance(len(chosen))
        check_finite(vectors, self.name)
        return vectors

    def _batches(self, rows: Sequence[Any]) -> Iterator[tuple[list[int], Batch]]:
        """Positions of rows and their batch, one width after the other."""
        buckets: dict[Any, list[int]] = {}
        for position, row in enumerate(rows):
            buckets.setdefault(self.input.width(row), []).append(position)
        for width, positions in sorted(buckets.items()):
            size = self.input.rows_in_batch(width)
            for start in range(0, len(positions), size):
                chosen = positions[start : start + size]
                yield chosen, self.input.batch([rows[position] for position in chosen], width)


def check_finite(vectors: Array, name: str) -> None:
    """Refuse vectors that poison a ranking.

    Raises:
        UsageError: NaN, infinity, or a zero vector.
    """
    if not np.isfinite(vectors).all():
        raise UsageError(f"{name} gave NaN or infinite vectors for {int((~np.isfinite(vectors)).any(1).sum())} items")
    zeros = int((~vectors.any(1)).sum())
    if zeros:
        raise UsageError(f"{name} gave zero vectors for {zeros} items")
