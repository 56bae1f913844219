"""Documents that a search by words would find: what makes a part of a collection as hard as the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tokenizers

from slimseek.plugins import require

DEPTH = 10
"""Documents of each query that are looked at, at least."""


def nearest(queries: Sequence[str], documents: Sequence[str], count: int) -> list[int]:
    """The documents that look most like the queries by BM25: each query's first, then each query's second, and so on.

    Words are those of BERT, without case and accents, so that a Chinese letter is a word.

    Args:
        queries: texts.
        documents: texts.
        count: how many are wanted; fewer are given where fewer share a word with a query.

    Returns:
        Positions in ``documents``, each once, the nearest first.
    """
    if count < 1:
        return []
    asked, given = [words for words in _words(queries) if words], _words(documents)
    if not asked or not any(given):
        return []
    model = require("bm25s").BM25()
    model.index(given, show_progress=False)
    depth = min(len(documents), max(DEPTH, 4 * math.ceil(count / len(asked))))
    places, scores = model.retrieve(asked, k=depth, show_progress=False)
    ranked = (int(place) for column, found in zip(places.T, scores.T, strict=True)
              for place, score in zip(column, found, strict=True) if score > 0)  # fmt: skip
    return list(dict.fromkeys(ranked))[:count]


def _words(texts: Sequence[str]) -> list[list[str]]:
    normalizer, cut = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    return [[word for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(text))] for text in texts]
