"""The README in Chinese says what the English one says: the same headings, code, links, tables and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sections(text: str) -> list[tuple[str, str]]:
    """Marks of each heading, such as ``##``, and what stands below it, without code."""
    parts = re.split(r"^(#+) .*$", FENCE.sub("", text), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def figures(text: str) -> list[str]:
    """Every number that stands for itself; "1/3.9" is the 3.9 of "3.9 times smaller"."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text).replace("1/3.9", "3.9")
    return sorted(re.findall(r"(?<![\w.])[.\d][\d,.]*(?<![,.])", text))


def rows(text: str) -> list[int]:
    """Cells of every row of a table."""
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


def test_both_have_the_same_headings() -> None:
    assert [level for level, _ in sections(ENGLISH)] == [level for level, _ in sections(CHINESE)]
    assert len(sections(ENGLISH)) > 5
    assert re.search("[\u4e00-\u9fff]", "".join(re.findall(r"^#+ (.*)$", FENCE.sub("", CHINESE), re.MULTILINE)[1:]))


def test_the_code_is_the_same() -> None:
    assert FENCE.findall(ENGLISH) == FENCE.findall(CHINESE)
    assert len(FENCE.findall(ENGLISH)) > 10


@pytest.mark.parametrize("number", range(len(sections(ENGLISH))))
def test_a_section_has_the_same_figures_links_and_tables(number: int) -> None:
    (_, english), (_, chinese) = sections(ENGLISH)[number], sections(CHINESE)[number]
    assert figures(english) == figures(chinese)
    assert rows(english) == rows(chinese)
    links = [sorted(re.findall(r"\]\(([^)]*)\)", text)) for text in (english, chinese)]
    assert set(links[0]) ^ set(links[1]) <= {"README.md", "README.zh-CN.md"}
    assert len(links[0]) == len(links[1])
    names = [sorted(re.findall(r"`([^`\n]+)`", text)) for text in (english, chinese)]
    assert set(names[0]) <= set(names[1])
    # Comments in code stay English; the Chinese text says again what they say.
    assert all(name in "".join(FENCE.findall(ENGLISH)) for name in set(names[1]) - set(names[0]))


def test_each_links_to_the_other_and_nowhere_else_than_to_what_is_there() -> None:
    assert "(README.zh-CN.md)" in ENGLISH
    assert "(README.md)" in CHINESE
    for link in re.findall(r"\]\(([^)#]+)\)", ENGLISH + CHINESE):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_chinese_one_has_no_sentence_in_english() -> None:
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", "", FENCE.sub("", CHINESE))
    words = re.findall(r"(?:\b[a-z]{2,}\b[ ,.]+){4,}", plain)
    assert words == []
