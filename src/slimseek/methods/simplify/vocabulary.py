"""Tokens that the collection never uses leave the token table and the tokenizer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import numpy as np
from tokenizers import Tokenizer

from slimseek import hollow
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import take_rows
from slimseek.methods.simplify._tokenizer import Vocabulary, rewrite
from slimseek.schema import Model, Samples


class VocabularyCut(Step, frozen=True, kw_only=True):
    """Keep the tokens of the documents and of the train and dev queries, special tokens, and single characters.

    A word that later queries bring and the cut vocabulary lacks is spelled with the shorter pieces that stay, down
    to single characters; it becomes unknown only where it would have been unknown before.

    Attributes:
        min_count: a token stays when the texts use it at least so often.
        keep_first: the first so many tokens stay in any case; vocabularies list frequent tokens first.
    """

    min_count: int = 1
    keep_first: int = 0

    def __post_init__(self) -> None:
        if self.min_count < 1 or self.keep_first < 0:
            raise UsageError(
                f"simplify.vocabulary: min_count is {self.min_count} (at least 1 is allowed), keep_first "
                f"{self.keep_first} (at least 0)"
            )

    def apply(self, model: Model, samples: Samples) -> Model:
        """Cut the table's rows and rewrite the tokenizer's ids alike."""
        preprocess = model.spec.preprocess
        if preprocess is None or preprocess.token_table is None:
            raise UsageError("simplify.vocabulary: this model's token table is not known")
        table = preprocess.token_table
        vocabulary = Vocabulary.read(model.files[TOKENIZER])
        kept = self._kept(model, samples, vocabulary, preprocess.pad_id)
        rows = model.tensors[table].shape[0]
        kept = kept[kept < rows]
        if len(kept) == rows:
            raise NoEffect("simplify.vocabulary: the texts use every token")
        new_ids = {int(old): new for new, old in enumerate(kept)}
        files = dict(model.files) | rewrite(model.files, vocabulary, new_ids)
        preprocess = msgspec.structs.replace(preprocess, pad_id=new_ids.get(preprocess.pad_id, 0))
        tensors = dict(model.tensors) | {table: take_rows(model.tensors[table], kept)}
        spec = msgspec.structs.replace(model.spec, preprocess=preprocess)
        return dataclasses.replace(model, spec=spec, files=files, tensors=tensors)

    def outline(self, model: Model, samples: Samples) -> Model:
        """The same, with a hollow table."""
        table = model.spec.token_table
        if table is None:
            return self.apply(model, samples)  # which says why it cannot
        emptied = dataclasses.replace(model, tensors=dict(model.tensors) | {table: hollow.tensor(model.tensors[table])})
        return hollow.model(self.apply(emptied, samples), model)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Tokens kept."""
        table = before.spec.token_table
        assert table is not None
        kept, rows = after.tensors[table].shape[0], before.tensors[table].shape[0]
        return (f"{kept:,} of {rows:,} tokens kept",)

    def _kept(self, model: Model, samples: Samples, vocabulary: Vocabulary, pad_id: int) -> np.ndarray:
        """Ids to keep, ascending."""
        counts = _counts(model.files[TOKENIZER], tuple(samples.texts))
        kept = {token for token, count in counts.items() if count >= self.min_count}
        kept |= vocabulary.always | set(range(self.keep_first)) | {pad_id}
        return np.array(sorted(vocabulary.closed(kept)), np.int64)


@lru_cache(maxsize=4)
def _counts(tokenizer: bytes, texts: tuple[str, ...]) -> Mapping[int, int]:
    """How often the texts use each token; the last few answers are kept, since many plans cut the same vocabulary."""
    reader = Tokenizer.from_buffer(tokenizer)
    reader.no_padding()
    reader.no_truncation()
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 1024):
        for row in reader.encode_batch(list(texts[start : start + 1024])):
            counts.update(row.ids)
    return counts
