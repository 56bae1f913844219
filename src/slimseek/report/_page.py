"""Templates of the folder, which share one style sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from slimseek import plugins


def source(name: str) -> str:
    """The text of a file of the folder, as it is."""
    return (resources.files("slimseek") / "report" / name).read_text("utf-8")


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> Any:
    """A template by its file's name, with what it may call on values.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    jinja2 = plugins.require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slimseek", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(filters)
    return environment.get_template(name)
