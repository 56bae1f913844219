"""Character error rate: insertions, deletions and substitutions of characters, divided by those that were said."""

from __future__ import annotations

from collections.abc import Mapping

from slimseek.bases import ErrorRate
from slimseek.metrics._said import characters, shares


class CharacterErrorRate(ErrorRate):
    """Of the whole set, as :class:`~slimseek.metrics.word_error_rate.WordErrorRate` is; blanks do not count.

    For languages that are written without blanks, such as Chinese, Japanese and Thai, where a text is one word.
    """

    label = "CER"

    def per_query(self, references: Mapping[str, str], hypotheses: Mapping[str, str]) -> dict[str, float]:
        """The value of each recording, 0 or more; UsageError where no reference holds a character."""
        return shares("characters", references, hypotheses, characters)
