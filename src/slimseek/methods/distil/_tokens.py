"""Tokens one by one: what a teacher gives for each, and how often texts use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from slimseek import choose
from slimseek.encoder import Encoder
from slimseek.inputs.text import TOKENIZER
from slimseek.progress import track
from slimseek.schema import Array, Model

ROWS = 512
TEXTS_AT_ONCE = 1024
MARKS = ("##", "Ġ", "▁")
"""What vocabularies put before a piece inside a word, or before one that begins a word."""


def token_vectors(teacher: Model, tokenizer: bytes, threads: int) -> Array:
    """The teacher's vector of each token, between the special tokens that it puts around a text.

    A token that the teacher's vocabulary lacks is read as a text by the teacher's tokenizer.

    Args:
        teacher: any text model.
        tokenizer: tokenizer.json with the vocabulary.
        threads: of the runtime.

    Returns:
        Float32 [largest id + 1, the teacher's dim]; zeros for ids that no token has.
    """
    encoder = choose.encoder(teacher, "the teacher", threads)
    vocabulary = Tokenizer.from_buffer(tokenizer).get_vocab(with_added_tokens=True)
    rows = _rows(list(vocabulary), Tokenizer.from_buffer(teacher.files[TOKENIZER]), encoder)
    ids, read = list(vocabulary.values()), cast(Any, encoder.input)
    vectors = np.zeros((max(ids) + 1, teacher.spec.dim), np.float32)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    with track("vectors of the tokens", len(rows)) as advance:
        for start in range(0, len(order), ROWS):
            some = order[start : start + ROWS]
            vectors[[ids[place] for place in some]] = encoder.encode(read.batch([rows[one] for one in some]))
            advance(len(some))
    return vectors


def shares(tokenizer: bytes, texts: Sequence[str]) -> Array:
    """Each token's share of the texts, as if each stood there once more: float64 [largest id + 1], sums to 1."""
    read = Tokenizer.from_buffer(tokenizer)
    read.no_truncation()
    counts = np.ones(max(read.get_vocab(with_added_tokens=True).values()) + 1)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        for row in read.encode_batch(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False):
            np.add.at(counts, row.ids, 1)
    return counts / counts.sum()


def _rows(tokens: Sequence[str], read: Tokenizer, encoder: Encoder) -> list[list[int]]:
    """Ids of the teacher for each token."""
    read.no_padding()
    known, frame = read.get_vocab(with_added_tokens=True), read.encode("a")
    inside = [place for place, special in enumerate(frame.special_tokens_mask) if not special]
    before, after = frame.ids[: inside[0]], frame.ids[inside[-1] + 1 :]
    padding = [encoder.spec.preprocess.pad_id if encoder.spec.preprocess is not None else 0]
    pieces = ([known[token]] if token in known else read.encode(_bare(token), add_special_tokens=False).ids
              for token in tokens)  # fmt: skip
    return [[*before, *piece, *after] or padding for piece in pieces]


def _bare(token: str) -> str:
    """The token without the mark of its place in a word."""
    mark = next((mark for mark in MARKS if token.startswith(mark) and token != mark), "")
    return token.removeprefix(mark)
