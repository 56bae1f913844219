"""What commands have in common: options of one name and meaning, progress on standard error, the answer on output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Built-in name, model folder, .onnx file, artifact or package.")
]
Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="What slimseek compress wrote, or any MODEL.")]
Data = Annotated[str, typer.Option("--data", metavar="DATA", help="Folder in the BEIR layout, or the built-in 'news'.")]
DeployData = Annotated[
    str, typer.Option("--data", metavar="DATA", help="Collection for parity; a package for the web holds it.")
]
MaybeData = Annotated[
    str, typer.Option("--data", metavar="DATA", help="Collection; by default the one it was judged by.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier run wrote to --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads of the runtime; 0 for all cores.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
SearchWith = Annotated[
    str, typer.Option("--search-with", metavar="MODEL", help="Of texts, for spoken queries; by default minilm.")
]
Lang = Annotated[str, typer.Option("--lang", metavar="en|zh", help="Language of the HTML page.")]
Ray = Annotated[str, typer.Option("--ray", metavar="ADDRESS", help="Ray cluster: HOST:PORT, auto, or local.")]
Target = Annotated[str, typer.Option("--target", help="Runtime (see slimseek models), auto: the fastest here, or all.")]


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
