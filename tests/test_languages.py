"""The pages in Chinese: every phrase has its words and no words are left over; nothing on a page stays English."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import jinja2

import slimseek

SOURCE = Path(slimseek.__file__).parent
REPORT = SOURCE / "report"


def strings(node: ast.AST) -> Iterator[str]:
    """The texts that an argument can be: a constant, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)


def said_in_code() -> set[str]:
    found: set[str] = set()
    for path in REPORT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("say", "later", "phrase"):
                found.update(strings(node.args[0]))
    return found


def said_in_templates() -> set[str]:
    environment = jinja2.Environment()
    environment.filters.update(dict.fromkeys(("told", "phrase"), str))
    found: set[str] = set()
    for path in REPORT.glob("*.html.j2"):
        tree = environment._parse(path.read_text("utf-8"), path.name, None)
        calls = [c.args[0] for c in tree.find_all(jinja2.nodes.Call) if getattr(c.node, "name", "") == "say"]
        filtered = [f.node for f in tree.find_all(jinja2.nodes.Filter) if f.name == "phrase"]
        for argument in [*calls, *filtered]:
            constants = (
                [argument] if isinstance(argument, jinja2.nodes.Const) else argument.find_all(jinja2.nodes.Const)
            )
            if isinstance(argument, jinja2.nodes.CondExpr):
                constants = [argument.expr1, argument.expr2]
            if isinstance(argument, jinja2.nodes.Getitem):
                constants = [pair.value for pair in argument.node.items]
            found.update(str(constant.value) for constant in constants if isinstance(constant, jinja2.nodes.Const))
    return found
