"""Commands that show a search at work: the service, and the demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimseek.command import Command, Json, MaybeData, Model, Quiet, Threads

Recogniser = Annotated[
    str, typer.Option("--recogniser", metavar="MODEL", help="What makes texts of spoken queries, for a text search.")
]


def serve(
    model: Model, data: MaybeData = "",
    original: Annotated[str, typer.Option("--original", metavar="MODEL", help="Serve this beside it.")] = "",
    index: Annotated[str, typer.Option("--index", help="An index made before; by default one is made now.")] = "",
    recogniser: Recogniser = "",
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Threads = 0, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Serve the search over HTTP, with a page at /."""
    from slimseek.pipeline import serve_on

    with Command(json=False, quiet=quiet):
        serve_on(model, data, original=original, index=index, recogniser=recogniser, host=host, port=port,
                 threads=threads)  # fmt: skip


def demo(
    subject: Annotated[str, typer.Argument(metavar="[text|image|speech]", help="What is searched.")] = "text",
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("demo"), threads: Threads = 0,
    json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Run the whole flow on a built-in model and what packages carry, in minutes: news, pictures, or speech."""
    from slimseek import show
    from slimseek.demo import demo as run_demo

    with Command(json, quiet) as run:
        found = run_demo(out, subject, threads=threads)  # type: ignore[arg-type]
        run.answer(found, lambda console: show.comparison(found, console, out / "artifact", served=out / "served"))
