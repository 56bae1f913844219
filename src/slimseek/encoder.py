"""Items to vectors with any ``Encode``: tokenized, batched in buckets of like length, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slimseek.errors import UsageError
from slimseek.inputs.text import TextInput
from slimseek.schema import Array, Encode, Model, ModelSpec

TOKENS_IN_BATCH = 4096
ROWS_IN_BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A model ready to encode: what evaluation measures, search uses and deployment compares.

    Attributes:
        name: for reports.
        spec: what it takes and gives.
        input: texts to arrays.
        encode: arrays to vectors.
        model: its weights as data where it can be compressed; ``None`` for a deployed package.
        shipped: bytes by kind (``weights``, ``rest``) that must be shipped to run it.
        runtime: what runs it, for reports.
        threads: how many threads it was opened with.
    """

    name: str
    spec: ModelSpec
    input: TextInput
    encode: Encode
    model: Model | None
    shipped: dict[str, int]
    runtime: str
    threads: int

    def queries(self, texts: Sequence[str]) -> Array:
        """Vectors float32 [n, dim] of queries."""
        return self.vectors(texts, prefix=self.spec.preprocess.query_prefix)

    def documents(self, texts: Sequence[str], advance: Callable[[int], None] | None = None) -> Array:
        """Vectors float32 [n, dim] of documents; ``advance`` is told how many are done after each batch."""
        return self.vectors(texts, prefix=self.spec.preprocess.document_prefix, advance=advance)

    def vectors(self, texts: Sequence[str], prefix: str = "", advance: Callable[[int], None] | None = None) -> Array:
        """Vectors float32 [n, dim], computed in batches of texts of like length.

        A text is always padded to the width of its own bucket, whatever its neighbours are: so little is computed on
        padding, and its vector does not depend on the batch.

        Raises:
            UsageError: a vector is not finite, or is zero.
        """
        rows = self.input.ids(texts, prefix)
        vectors = np.zeros((len(rows), self.spec.dim), np.float32)
        buckets: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            buckets.setdefault(bucket(len(row), self.spec.preprocess.max_length), []).append(position)
        for width, positions in sorted(buckets.items()):
            size = max(1, min(ROWS_IN_BATCH, TOKENS_IN_BATCH // width))
            for start in range(0, len(positions), size):
                chosen = positions[start : start + size]
                vectors[chosen] = self.encode(self.input.batch([rows[p] for p in chosen], width))
                if advance is not None:
                    advance(len(chosen))
        check_finite(vectors, self.name)
        return vectors


def bucket(length: int, longest: int) -> int:
    """The width that a sequence is padded to: a few widths, so that a runtime meets few shapes and memory is bounded.

    Steps of 4 up to 32 tokens, 8 up to 64, 16 up to 128, then 32; never above ``longest``.
    """
    step = 4 if length <= 32 else 8 if length <= 64 else 16 if length <= 128 else 32
    return min(-(-length // step) * step, max(longest, length))


def check_finite(vectors: Array, name: str) -> None:
    """Refuse vectors that poison a ranking.

    Raises:
        UsageError: NaN, infinity, or a zero vector.
    """
    if not np.isfinite(vectors).all():
        raise UsageError(f"{name} gave NaN or infinite vectors for {int((~np.isfinite(vectors)).any(1).sum())} texts")
    zeros = int((~vectors.any(1)).sum())
    if zeros:
        raise UsageError(f"{name} gave zero vectors for {zeros} texts")
