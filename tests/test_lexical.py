"""Documents that look like queries by their words, against BM25 worked out by the formula."""

from __future__ import annotations

import math

from slimseek.lexical import nearest
from small import many_texts

K1, B = 1.5, 0.75


def bm25(query: str, documents: list[list[str]]) -> list[float]:
    """Lucene's form, which bm25s has by default."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        total = 0.0
        for word in query.split():
            holding = sum(word in other for other in documents)
            inverse = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            total += inverse * count / (count + K1 * (1 - B + B * len(words) / mean))
        scores.append(total)
    return scores


def test_the_nearest_are_those_of_bm25() -> None:
    texts = many_texts(60, seed=3)
    query = " ".join(texts[7].split()[:4])
    scores = bm25(query, [text.split() for text in texts])
    found = nearest([query], texts, 5)
    assert [round(scores[place], 4) for place in found] == [round(one, 4) for one in sorted(scores, reverse=True)[:5]]


def test_each_query_has_its_first_before_any_has_its_second() -> None:
    documents = ["red apple", "red apple pie and much more", "blue whale", "blue whale song of the deep sea", "grass"]
    assert nearest(["red apple", "blue whale"], documents, 4) == [0, 2, 1, 3]
    assert nearest(["red apple", "blue whale"], documents, 3) == [0, 2, 1]
    assert nearest(["red apple", "blue whale"], documents, 9) == [0, 2, 1, 3], "grass shares no word"


def test_case_accents_and_scripts() -> None:
    assert nearest(["CAFÉ"], ["a tea house", "the cafe"], 1) == [1]
    assert nearest(["猫在哪里"], ["狗坐在垫子上", "一只猫", "nothing"], 1) == [1]


def test_without_words_nothing_is_near() -> None:
    assert nearest([], ["a"], 3) == []
    assert nearest(["a"], [], 3) == []
    assert nearest(["", " "], ["a b"], 3) == []
    assert nearest(["a"], ["", ""], 3) == []
    assert nearest(["zebra"], ["a b", ""], 3) == []
    assert nearest(["a"], ["a b"], 0) == []
