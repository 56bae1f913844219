"""What slimseek has and what of it works on this machine."""

from __future__ import annotations

import importlib.util

from slimseek import plugins, recipe, timing
from slimseek.bases import Backend
from slimseek.choose import built_in_names
from slimseek.measurement import Environment
from slimseek.models._array import networks
from slimseek.models._text import built_in as encoders
from slimseek.models._whisper import built_in as whispers
from slimseek.value import Value


class Catalogue(Value, frozen=True):
    """Names of everything that can be chosen, with the reason where it does not work here (``None`` where it does)."""

    models: dict[str, str | None]
    families: tuple[str, ...]
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    metrics: tuple[str, ...]
    backends: dict[str, str | None]
    extras: dict[str, str | None]
    environment: Environment


def catalogue() -> Catalogue:
    """Look at this machine."""
    return Catalogue(
        models={name: _model(name) for name in built_in_names()},
        families=plugins.names("models"),
        methods=plugins.names("methods"),
        recipes=recipe.shorthands(),
        metrics=plugins.names("metrics"),
        backends={name: _backend(plugins.load("backends", name)()) for name in plugins.names("backends")},
        extras=_extras(),
        environment=timing.environment(timing.default_threads()),
    )


def _backend(backend: Backend) -> str | None:
    """Why packages cannot be written here, or do not run here where they can; ``None`` where both work."""
    unwritten, unrun = backend.available(), backend.runs()
    if unwritten is not None or unrun is None:
        return unwritten
    return f"writes; does not run here: {unrun}"


def _model(name: str) -> str | None:
    kinds = (encoders, networks, whispers)
    reason: str | None = next(kind.missing(name) for kind in kinds if name in kind.BUILT_IN)
    return reason


def _extras() -> dict[str, str | None]:
    missing: dict[str, str | None] = {extra: None for extra in plugins.EXTRAS.values()}
    for library, extra in plugins.EXTRAS.items():
        if importlib.util.find_spec(library) is None:
            missing[extra] = f"{library} is missing; run: pip install 'slimseek[{extra}]'"
    return missing
