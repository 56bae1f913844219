"""Word error rate: insertions, deletions and substitutions of words, divided by the words that were said."""

from __future__ import annotations

from collections.abc import Mapping

from slimseek.bases import ErrorRate
from slimseek.metrics._said import normalised, shares


class WordErrorRate(ErrorRate):
    """Of the whole set: all errors / all words of the references, 0 for none; more than 1 where words are invented.

    The value of one recording is errors_i n / words, where n counts the recordings and ``words`` those of all
    references: its mean is then the rate of the whole set, in which a long recording counts more than a short one,
    and the bootstrap over recordings works as for any other metric. The mean of each recording's own rate would be
    another figure, which one short recording can spoil.

    A recording in which nothing is said has no words, and every word that is heard in it is an error. One in which
    nothing is heard has as many errors as words. Case and punctuation do not count (:mod:`slimseek.metrics._said`).
    """

    label = "WER"

    def per_query(self, references: Mapping[str, str], hypotheses: Mapping[str, str]) -> dict[str, float]:
        """The value of each recording, 0 or more; UsageError where no reference holds a word."""
        return shares("words", references, hypotheses, normalised)
