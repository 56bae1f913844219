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
from slimseek.inputs import unlabelled
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import take_rows
from slimseek.methods.simplify._tokenizer import Vocabulary, rewrite
from slimseek.preprocess import Decoding
from slimseek.schema import Model, ModelSpec, Samples


class VocabularyCut(Step, frozen=True, kw_only=True):
    """Keep the tokens of the documents and of the train and dev queries, special tokens, and single characters.

    A word that later queries bring and the cut vocabulary lacks is spelled with the shorter pieces that stay, down
    to single characters; it becomes unknown only where it would have been unknown before.

    Of a recogniser, whose items are recordings, only ``texts`` are counted, each as it would be said: with a blank
    before it, and small and capital letters alike, since it is the pauses that make it write a capital. Of its special
    tokens those stay that a transcript can begin or end with.

    Attributes:
        min_count: a token stays when the texts use it at least so often.
        keep_first: the first so many tokens stay in any case; vocabularies list frequent tokens first.
        texts: a file or folder of further texts to count: ``.txt`` with one a line, ``.jsonl`` with ``text``.
    """

    min_count: int = 1
    keep_first: int = 0
    texts: str = ""

    def __post_init__(self) -> None:
        if self.min_count < 1 or self.keep_first < 0:
            raise UsageError(
                f"simplify.vocabulary: min_count is {self.min_count} (at least 1 is allowed), keep_first "
                f"{self.keep_first} (at least 0)"
            )

    def apply(self, model: Model, samples: Samples) -> Model:
        """Cut the table's rows and rewrite the tokenizer's ids alike."""
        table = model.token_table
        if table is None:
            raise UsageError("simplify.vocabulary: this model's token table is not known")
        vocabulary = Vocabulary.read(model.files[TOKENIZER])
        kept = self._kept(model, samples, vocabulary)
        rows = model.tensors[table].shape[0]
        kept = kept[kept < rows]
        if len(kept) == rows:
            raise NoEffect("simplify.vocabulary: the texts use every token")
        new_ids = {int(old): new for new, old in enumerate(kept)}
        files = dict(model.files) | rewrite(model.files, vocabulary, new_ids)
        tensors = dict(model.tensors) | {table: take_rows(model.tensors[table], kept)}
        return dataclasses.replace(model, spec=_renumbered(model.spec, new_ids), files=files, tensors=tensors)

    def outline(self, model: Model, samples: Samples) -> Model:
        """The same, with a hollow table."""
        table = model.token_table
        if table is None:
            return self.apply(model, samples)  # which says why it cannot
        emptied = dataclasses.replace(model, tensors=dict(model.tensors) | {table: hollow.tensor(model.tensors[table])})
        return hollow.model(self.apply(emptied, samples), model)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Tokens kept."""
        table = before.token_table
        assert table is not None
        kept, rows = after.tensors[table].shape[0], before.tensors[table].shape[0]
        return (f"{kept:,} of {rows:,} tokens kept",)

    def _kept(self, model: Model, samples: Samples, vocabulary: Vocabulary) -> np.ndarray:
        """Ids to keep, ascending."""
        decoding, further = model.spec.decoding, unlabelled.read(self.texts) if self.texts else []
        if decoding and not further and not self.keep_first:
            raise UsageError(
                "simplify.vocabulary: a recogniser says what no collection lists; texts must name broad text, "
                "or keep_first how many tokens stay"
            )
        texts = [f" {text}" for text in further] if decoding else [*samples.texts, *further]
        counts = _counts(model.files[TOKENIZER], tuple(texts))
        counts = _alike(counts, vocabulary.ids) if decoding else counts
        kept = {token for token, count in counts.items() if count >= self.min_count} | set(range(self.keep_first))
        if decoding:
            kept = (kept | vocabulary.always) - vocabulary.special - set(decoding.suppressed) | _said(decoding)
        else:
            assert model.spec.preprocess is not None
            kept |= vocabulary.always | {model.spec.preprocess.pad_id}
        return np.array(sorted(vocabulary.closed(kept)), np.int64)


def _alike(counts: Mapping[int, int], ids: Mapping[str, int]) -> dict[int, int]:
    """The count of each token with those of all tokens that differ from it by capital letters alone."""
    whole: Counter[str] = Counter()
    for token, number in ids.items():
        whole[_small(token)] += counts.get(number, 0)
    return {number: whole[_small(token)] for token, number in ids.items()}


def _small(token: str) -> str:
    """With small letters, of ASCII: in a byte-level vocabulary other characters stand for bytes."""
    return "".join(chr(ord(one) + 32) if "A" <= one <= "Z" else one for one in token)


def _said(decoding: Decoding) -> set[int]:
    """Ids that a transcript begins or ends with."""
    return {decoding.end, *decoding.prompt, *decoding.languages.values()}


def _renumbered(spec: ModelSpec, new_ids: Mapping[int, int]) -> ModelSpec:
    """The spec with the new ids; what is suppressed and gone needs no mention any more."""
    if spec.preprocess is not None:
        pad = new_ids.get(spec.preprocess.pad_id, 0)
        spec = msgspec.structs.replace(spec, preprocess=msgspec.structs.replace(spec.preprocess, pad_id=pad))
    if not spec.decoding:
        return spec
    before = spec.decoding
    decoding = msgspec.structs.replace(
        before,
        end=new_ids[before.end],
        prompt=tuple(new_ids[token] for token in before.prompt),
        languages={name: new_ids[token] for name, token in before.languages.items()},
        suppressed=tuple(new_ids[token] for token in before.suppressed if token in new_ids),
        suppressed_first=tuple(new_ids[token] for token in before.suppressed_first if token in new_ids),
    )
    return msgspec.structs.replace(spec, dim=len(new_ids), decoding=decoding)


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
