"""The page of cases held to the tests: each test that it names exists, each case has one, none is forgotten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from slimseek.measurement import Environment, Measurement, Report
from slimseek.prove import smaller_gate

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cases.md").read_text("utf-8")
TESTS = {path.name: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "tests").glob("test_*.py"))}
IDENTITY = re.compile(r"(?:CASES? |, |and |^)([PQDEVASXC]\d{1,2})\b")


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every test of a file or of a class in it, by the name that pytest gives it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}::{child.name}")
        elif isinstance(child, ast.FunctionDef) and child.name.startswith("test_"):
            yield f"{prefix}::{child.name}", child


KNOWN = dict(item for file, tree in TESTS.items() for item in functions(tree, file))


def rows() -> list[tuple[str, list[str], str]]:
    """Id, tests and the clause of each case on the page."""
    lines = [line.strip("|").split(" | ") for line in PAGE.splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    assert all(len(cells) == 4 for cells in lines), "a row has four cells"
    return [(cells[0].strip(), re.findall(r"`([^`]+)`", cells[2]), cells[3].strip()) for cells in lines]


def named(test: str, function: ast.FunctionDef) -> set[str]:
    """The cases that a test says it is for: in its docstring behind the word CASES, or in its name."""
    said = ast.get_docstring(function) or ""
    start = re.search(r"\bCASES? [A-Z]\d|^[A-Z]\d{1,2}\b", said)
    ids = set(IDENTITY.findall(said[start.start() : start.end() + 40].partition(":")[0])) if start else set()
    return ids | {letter.upper() for letter in re.findall(r"::test_([pqdevasxc]\d{1,2})_", test)}


# ---------------------------------------------------------------- the page


def test_each_case_has_a_test_that_exists() -> None:
    assert len(rows()) > 100
    for identity, tests, how in rows():
        assert tests, f"{identity} has no test"
        assert how, f"{identity} does not say how it is met"
        assert [test for test in tests if test not in KNOWN] == [], f"{identity} names tests that are not there"


def test_ids_are_unique_and_those_of_the_list() -> None:
    """The numbers that a letter leaves out are those of the published list, which was thinned out before."""
    ids = [identity for identity, _, _ in rows()]
    assert len(ids) == len(set(ids))
    count = {letter: sum(identity[0] == letter for identity in ids) for letter in "PQDEVASXCK"}
    assert count == {"P": 17, "Q": 21, "D": 6, "E": 8, "V": 8, "A": 5, "S": 6, "X": 2, "C": 3, "K": 33}


def test_a_test_that_names_a_case_stands_beside_it() -> None:
    listed = {identity: tests for identity, tests, _ in rows()}
    found = {(identity, test) for test, function in KNOWN.items() for identity in named(test, function)}
    assert len({identity for identity, _ in found}) > 60, "the docstrings are read"
    assert [(identity, test) for identity, test in sorted(found) if test not in listed.get(identity, [])] == []


# ---------------------------------------------------------------- cases without another place


@pytest.mark.parametrize(("before", "after", "status"), [(10, 9, "passed"), (10, 10, "failed"), (10, 11, "failed")])
def test_a_package_that_is_not_smaller_fails_its_gate(before: int, after: int, status: str) -> None:
    machine = Environment(
        cpu="c", cores=1, threads=1, instruction_sets=(), memory_bytes=1, system="s", python="3", versions={}
    )
    reports = [
        Report(
            subject=str(megabytes),
            environment=machine,
            measurements=(Measurement(name="size", value=megabytes * 1e6, unit="B", higher_is_better=False, n=1),),
        )
        for megabytes in (before, after)
    ]
    gate = smaller_gate(*reports)
    assert gate.status == status
    assert gate.detail == f"{before}.0 MB shipped before, {after}.0 MB after, ratio {after / before:.3f}"
