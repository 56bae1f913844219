"""Templates of the folder, which share one style sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from slimseek import plugins
from slimseek.report._words import phrase, recorded


def source(name: str) -> str:
    """The text of a file of the folder, as it is."""
    return (resources.files("slimseek") / "report" / name).read_text("utf-8")


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> Any:
    """A template by its file's name, with what it may call on values.

    Beside the filters it has ``say``, which fills a phrase of the page's language with values, escaped, and ``told``,
    which gives what a run wrote in that language, or marks it as English.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    jinja2 = plugins.require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slimseek", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    markup = jinja2.filters.Markup

    def say(text: str, **values: Any) -> Any:
        return markup(phrase(text)).format(**values)

    def told(text: str) -> Any:
        said = recorded(text)
        return markup('<span lang="en">{}</span>').format(text) if said is None else said

    environment.globals["say"] = say
    environment.filters.update({"told": told, "phrase": phrase, **filters})
    return environment.get_template(name)
