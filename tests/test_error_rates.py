"""Error rates of transcripts: worked by hand, against dynamic programming, and the changes and gates made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimseek import bootstrap, evaluate, plugins
from slimseek.errors import UsageError
from slimseek.measurement import Change, Measurement
from slimseek.metrics._said import normalised
from slimseek.report import _format

WORDS = st.lists(st.sampled_from(["a", "bee", "sea", "dee"]), max_size=6).map(" ".join)


def rate(name: str, said: dict[str, str], heard: dict[str, str]) -> dict[str, float]:
    values: dict[str, float] = plugins.load("metrics", name)().per_query(said, heard)
    return values


def distance(first: list[str], second: list[str]) -> int:
    """Levenshtein's, by its table."""
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, 1):
        above, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (one != other))
    return row[-1]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("Don\u2019t stop -- it's 3.5 km", "don't stop it's 3.5 km"),
        ("\u2018Quoted\u2019 words' end", "quoted words end"),
        ("ice-cream at 10:30, or 1,000?", "ice cream at 10:30 or 1,000"),
        ("\uff26\uff35\uff2c\uff2c width; snake_case", "full width snake case"),
        ("Stra\u00dfe cafe\u0301", "strasse caf\u00e9"),
        ("...", ""),
    ],
)
def test_case_punctuation_and_blanks_do_not_count(text: str, same: str) -> None:
    assert normalised(text) == same
    assert normalised(same) == same


def test_the_rate_of_the_set_is_all_errors_by_all_words() -> None:
    """2 errors of 4 words and 1 of 1: 3 of 5, not the mean of a half and one."""
    said = {"long": "the cat sat down", "short": "yes"}
    heard = {"long": "a cat sat town", "short": "no"}
    values = rate("word_error_rate", said, heard)
    assert values == {"long": pytest.approx(2 * 2 / 5), "short": pytest.approx(1 * 2 / 5)}
    assert np.mean(list(values.values())) == pytest.approx(3 / 5)


def test_insertions_can_bring_it_above_one() -> None:
    assert rate("word_error_rate", {"a": "one"}, {"a": "one two three"}) == {"a": 2.0}


def test_where_nothing_is_said_every_word_heard_is_an_error() -> None:
    """Two invented words and three lost ones, of three words in all; two recordings."""
    said, heard = {"silence": "...", "speech": "one two three"}, {"silence": "you bye", "speech": ""}
    assert rate("word_error_rate", said, heard) == {"silence": pytest.approx(4 / 3), "speech": pytest.approx(2.0)}


@pytest.mark.parametrize("name", ["word_error_rate", "character_error_rate"])
def test_a_set_without_a_word_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"none of 2 transcripts holds a word"):
        rate(name, {"a": "", "b": "?!"}, {"a": "x", "b": "y"})


def test_characters_are_counted_without_blanks() -> None:
    """One of five characters is wrong, and a blank more is no error."""
    assert rate(
        "character_error_rate", {"a": "\u641c\u7d22\u5f15\u64ce\u5417"}, {"a": "\u641c\u7d22 \u5f15\u64ce\u554a"}
    ) == {"a": pytest.approx(1 / 5)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_it_is_the_distance_of_levenshtein(pairs: list[tuple[str, str]]) -> None:
    said = {f"{number}": one for number, (one, _) in enumerate(pairs)} | {"last": "a"}
    heard = {f"{number}": other for number, (_, other) in enumerate(pairs)} | {"last": "a"}
    for name, parts in (
        ("word_error_rate", str.split),
        ("character_error_rate", lambda text: list(text.replace(" ", ""))),
    ):
        total = sum(distance(parts(said[key]), parts(heard[key])) for key in said)
        length = sum(len(parts(text)) for text in said.values())
        assert np.mean(list(rate(name, said, heard).values())) == pytest.approx(total / length)


# ---------------------------------------------------------------- changes and gates


def measurement(values: list[float]) -> Measurement:
    return evaluate.measured("word_error_rate", values, higher_is_better=False)


def change(before: list[float], after: list[float], max_loss: float | None = None) -> Change:
    return evaluate.compare(measurement(before), measurement(after), max_loss)


def test_a_change_is_in_points_and_negative_for_a_loss() -> None:
    found = change([0.0, 0.1, 0.1, 0.2], [0.1, 0.1, 0.1, 0.2])
    assert found.points is True
    assert found.relative == pytest.approx(-0.025)
    assert found.lower_bound < found.interval[0] < found.relative < found.interval[1] < 0
    assert change([0.1, 0.2], [0.0, 0.1]).relative == pytest.approx(0.1)


def test_the_interval_holds_the_true_change_about_as_often_as_it_says() -> None:
    """200 sets of 100 recordings, of which 30 % lose a point of 0.1: the true loss is 0.03."""
    random = np.random.default_rng(0)
    inside, above = 0, 0
    for _ in range(200):
        before = random.exponential(0.1, 100)
        low, lower, high = bootstrap.point_bounds(before, before + 0.1 * (random.random(100) < 0.3))
        inside += low <= -0.03 <= high
        above += lower <= -0.03
    assert 0.90 <= inside / 200 <= 0.99
    assert above / 200 >= 0.94


def test_a_gate_of_an_error_rate_is_in_points() -> None:
    random = np.random.default_rng(0)
    before = random.exponential(0.05, 400)
    same, worse = before + random.normal(0, 0.001, 400), before + 0.02
    passed = evaluate.quality_gate(change(list(before), list(same)), 0.01)
    assert (passed.status, passed.limit) == ("passed", -0.01)
    failed = evaluate.quality_gate(change(list(before), list(worse)), 0.01)
    assert failed.status == "failed"
    assert "word_error_rate at most 1.0 points higher: +2.00 points" in failed.detail


def test_few_recordings_decide_nothing() -> None:
    found = change([0.1] * 20, [0.1] * 20, max_loss=0.01)
    gate = evaluate.quality_gate(found, 0.01)
    assert gate.status == "undecided"
    assert found.n_needed is not None
    assert found.n_needed > 290
    assert f"about {found.n_needed:,} queries" in gate.detail


def test_it_is_shown_as_more_errors_not_as_a_share_kept() -> None:
    found = change([0.05] * 40, [0.06] * 40)
    assert _format.moved(found) == _format.kept(found) == "+1.0 points"
    assert _format.moved_interval(found) == "+1.0 to +1.0 points"
    plain = Change(metric="ndcg@10", before=1, after=0.99, relative=-0.01, interval=(-0.02, 0.0), lower_bound=0, n=9)
    assert (_format.moved(plain), _format.moved_interval(plain)) == ("−1.0 %", "−2.0 to 0.0 %")


def test_rankings_have_no_error_rate_and_error_rates_no_cutoff() -> None:
    with pytest.raises(UsageError, match="only a recogniser of speech gives"):
        evaluate.metric("word_error_rate")
