"""slimseek makes the neural model behind a search smaller and faster, and proves that the search still finds the same
things. The verbs of the command line are the functions here; each is loaded when it is first used."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "choose": "slimseek.choose:choose",
    "model": "slimseek.choose:model",
    "load": "slimseek.data:load",
    "inspect": "slimseek.inspect:inspect",
    "evaluate": "slimseek.pipeline:evaluate",
    "compress": "slimseek.pipeline:compress",
    "demo": "slimseek.pipeline:demo",
    "Options": "slimseek.prove:Options",
    "rebuild": "slimseek.rebuild:rebuild",
    "deploy": "slimseek.deploy:deploy",
    "index": "slimseek.search:index",
    "open_index": "slimseek.search:open",
    "serve": "slimseek.serve:serve",
    "report": "slimseek.report:write",
}

__all__ = ["__version__", *_VERBS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        module, _, attribute = _VERBS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'slimseek' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
