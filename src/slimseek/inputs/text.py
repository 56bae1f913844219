"""Texts to token ids, through the model's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from slimseek import reading
from slimseek.errors import UsageError, first_line
from slimseek.schema import Array, Batch, ModelSpec

TOKENIZER = "tokenizer.json"
TOKENS_IN_BATCH = 4096
ROWS_IN_BATCH = 64
PANIC = "PanicException"
ARRAYS = ("input_ids", "attention_mask", "token_type_ids")
HIGHEST_ID = 2**24
"""Of a token; the library takes memory for every id up to the highest."""


class _Token(msgspec.Struct):
    """A token that was added."""

    id: int


class _Vocabulary(msgspec.Struct):
    """Token to id, or a list of tokens whose ids are their places."""

    vocab: dict[str, int] | list[Any] = msgspec.field(default_factory=dict)


class _Ids(msgspec.Struct):
    """What of a ``tokenizer.json`` names ids."""

    model: _Vocabulary
    added_tokens: list[_Token] | None = None


def tokenizer_of(content: bytes) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``; one that cannot be read raises UsageError."""
    try:
        found = reading.decoded(content, _Ids)
    except msgspec.DecodeError as error:
        raise UsageError(f"{TOKENIZER} cannot be read: {error}") from error
    numbers = found.model.vocab.values() if isinstance(found.model.vocab, dict) else ()
    highest = max((*(token.id for token in found.added_tokens or ()), *numbers), default=0)
    if highest > HIGHEST_ID:
        raise UsageError(f"{TOKENIZER} has the id {highest}; up to {HIGHEST_ID:,} are read")
    with _faults("cannot be read"):
        return Tokenizer.from_buffer(content)


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """The library raises bare Exception for any fault of the file, and panics, which are no Exception, for some."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise UsageError(f"{TOKENIZER} {what}: {first_line(error)}") from error


class TextInput:
    """Tokenizes as the model wants it.

    Padding that the file asks for is switched off: rows are padded to the batch's longest, no further. Ids and mask
    are int64.
    """

    def __init__(self, spec: ModelSpec, tokenizer_json: bytes) -> None:
        """Read the tokenizer of a text model; a broken one raises UsageError."""
        assert spec.preprocess is not None
        self._tokenizer = tokenizer_of(tokenizer_json)
        self._tokenizer.no_padding()
        try:
            self._tokenizer.enable_truncation(spec.preprocess.max_length)
        except OverflowError as error:
            raise UsageError(f"the model takes {spec.preprocess.max_length} tokens; 1 or more are possible") from error
        if not 0 <= spec.preprocess.pad_id <= HIGHEST_ID:
            raise UsageError(f"the padding id is {spec.preprocess.pad_id}; 0 to {HIGHEST_ID:,} are possible")
        self._preprocess = spec.preprocess
        self.query_prefix, self.document_prefix = spec.preprocess.query_prefix, spec.preprocess.document_prefix
        self._names = tuple(tensor.name for tensor in spec.inputs)
        unknown = [name for name in self._names if name not in ARRAYS]
        if unknown:
            raise UsageError(f"the model takes {unknown[0]!r}; of a text there are {', '.join(ARRAYS)}")

    def rows(self, texts: Sequence[str], prefix: str = "") -> list[list[int]]:
        """Token ids of each text, special tokens included, cut at the model's longest; UsageError for a tokenizer that
        puts more around a text than the model takes.
        """
        with _faults("cannot be used"):
            rows = self._tokenizer.encode_batch([prefix + text for text in texts])
        longest = max((len(row.ids) for row in rows), default=0)
        if longest > self._preprocess.max_length:  # its own tokens are not cut
            raise UsageError(f"{TOKENIZER} makes {longest} tokens of a text; the model takes "
                             f"{self._preprocess.max_length}")  # fmt: skip
        # A tokenizer without special tokens gives nothing for an empty text; one padding token keeps it finite.
        return [row.ids or [self._preprocess.pad_id] for row in rows]

    def width(self, row: Sequence[int]) -> int:
        """The width that a row is padded to, whatever its neighbours in the batch."""
        return bucket(len(row), self._preprocess.max_length)

    def rows_in_batch(self, width: int) -> int:
        """How many rows of a width a batch takes, so that its memory is bounded."""
        return max(1, min(ROWS_IN_BATCH, TOKENS_IN_BATCH // width))

    def batch(self, rows: Sequence[Sequence[int]], length: int | None = None) -> Batch:
        """Rows of ids as arrays [n, length], padded with ``pad_id`` where the mask is 0.

        Args:
            rows: token ids, each at most ``length`` long.
            length: the width of the arrays; ``None`` for the longest row.
        """
        width = length or max(len(row) for row in rows)
        ids = np.full((len(rows), width), self._preprocess.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for row, values in enumerate(rows):
            ids[row, : len(values)] = values
            mask[row, : len(values)] = 1
        arrays: dict[str, Array] = dict(zip(ARRAYS, (ids, mask, np.zeros_like(ids)), strict=True))
        return {name: arrays[name] for name in self._names}

    def __call__(self, texts: Sequence[str]) -> Batch:
        """Texts to one batch of arrays."""
        return self.batch(self.rows(texts))

    def truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the model's longest sequence."""
        return sum(bool(row.overflowing) for row in self._tokenizer.encode_batch(list(texts)))


def bucket(length: int, longest: int) -> int:
    """The width that a sequence is padded to: a few widths, so that a runtime meets few shapes and memory is bounded.

    Steps of 4 up to 32 tokens, 8 up to 64, 16 up to 128, then 32; never above ``longest``.
    """
    step = 4 if length <= 32 else 8 if length <= 64 else 16 if length <= 128 else 32
    return min(-(-length // step) * step, max(longest, length))
