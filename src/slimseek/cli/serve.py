"""Commands that show a search at work: the service, and the demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimseek.cli.command import Command, Json, Lang, MaybeData, Model, Quiet, Ray, Threads

Recogniser = Annotated[
    str, typer.Option("--recogniser", metavar="MODEL", help="What makes texts of spoken queries, for a text search.")
]


def serve(
    model: Model, data: MaybeData = "",
    original: Annotated[str, typer.Option("--original", metavar="MODEL", help="Serve this beside it.")] = "",
    index: Annotated[str, typer.Option("--index", help="An index made before; by default one is made now.")] = "",
    original_index: Annotated[str, typer.Option("--original-index", help="The same for the original.")] = "",
    recogniser: Recogniser = "",
    host: Annotated[str, typer.Option("--host", help="Others than this machine need a key, or --open.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    api_key_file: Annotated[str, typer.Option("--api-key-file", metavar="FILE", help="Ask only with this key.")] = "",
    everyone: Annotated[bool, typer.Option("--open", help="Answer other machines without a key.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Also called so; may be repeated.")
    ] = None,
    rate: Annotated[str, typer.Option("--rate", metavar="N/s", help="Of each client; N/m and N/h, too.")] = "",
    rows: Annotated[int, typer.Option("--batch", min=1, help="The most texts that are encoded together.")] = 32,
    waiting: Annotated[int, typer.Option("--waiting", min=1, help="The most requests that may wait.")] = 128,
    ray: Ray = "",
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="On the cluster; 0 for one a machine.")] = 0,
    threads: Threads = 0, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Serve the search over HTTP, with a page at /; SIGHUP opens what is served anew, without a request lost."""
    from slimseek.service import serve_on

    with Command(json=False, quiet=quiet):
        serve_on(model, data, original=original, index=index, original_index=original_index, recogniser=recogniser,
                 host=host, port=port, everyone=everyone, api_key_file=api_key_file, allowed_hosts=allow_host or (),
                 rate=rate, rows=rows, waiting=waiting, threads=threads, ray=ray, replicas=replicas)  # fmt: skip


def demo(
    subject: Annotated[str, typer.Argument(metavar="[text|image|speech]", help="What is searched.")] = "text",
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("demo"), threads: Threads = 0,
    lang: Lang = "en", json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Run the whole flow on a built-in model and what packages carry, in minutes: news, pictures, or speech."""
    from slimseek.cli import show
    from slimseek.demo import demo as run_demo

    with Command(json, quiet) as run:
        found = run_demo(out, subject, threads=threads, lang=lang)  # type: ignore[arg-type]
        run.answer(found, lambda console: show.comparison(found, console, out / "artifact", served=out / "served"))
