"""What all commands have in common: progress on standard error unless quiet, the answer on standard output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
from rich.console import Console


class Command:
    """One command: progress on standard error unless quiet, the answer on standard output."""

    def __init__(self, json: bool, quiet: bool) -> None:
        self.json = json
        self.out = Console(highlight=False)
        self._progress = None if quiet else Console(stderr=True, highlight=False)
        self._stack = ExitStack()

    def __enter__(self) -> Command:
        from slimseek.progress import shown_on

        self._stack.enter_context(shown_on(self._progress))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def answer(self, value: Any, show: Callable[[Console], None]) -> None:
        """Print the value as JSON, or show it."""
        if self.json:
            print(msgspec.json.encode(value).decode())
        else:
            show(self.out)
