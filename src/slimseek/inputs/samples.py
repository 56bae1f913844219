"""Items for checks that need an input and have no collection at hand: texts of many lengths and scripts, noise."""

from __future__ import annotations

from slimseek.inputs.arrays import RANDOM
from slimseek.schema import ModelSpec

_SENTENCES = (
    "search engine",
    "how do I reset my password?",
    "cheap flights from Lisbon to Warsaw in October",
    "The library was founded in 1850 and moved to its present building after the great fire.",
    "Café crème brûlée with naïve façade",
    "搜索引擎 可以 找到 相同的 文章",
    "👌🏻 emoji only? 🙂",
    "RFC 2616, section 14.9.1: what is cacheable; 3.14159 and -273.15 °C",
    "A dose of 5 mg/kg reduced tumour growth in 12 of 20 mice (p < 0.01), whereas the control group showed no change.",
    "Поиск похожих документов по смыслу",
    "def encode(batch): return model(**batch).last_hidden_state.mean(1)",
    "The committee met on Tuesday. It discussed the budget, the new bridge and the school; nothing was decided, and "
    "the meeting ended at nine.",
)

TEXTS: tuple[str, ...] = (
    *_SENTENCES,
    *(" ".join(_SENTENCES[: count + 2]) for count in range(len(_SENTENCES) - 2)),
    "a",
    " ".join(_SENTENCES) * 3,
)
"""24 texts of 1 to several hundred tokens."""


def examples(spec: ModelSpec) -> tuple[str, ...]:
    """24 items that a model takes: ``TEXTS``, random arrays, or made recordings."""
    return TEXTS if spec.preprocess is not None else tuple(f"{RANDOM}{seed}" for seed in range(len(TEXTS)))
