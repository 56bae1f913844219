"""Commands that take recordings: what is said in them, and what is found by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimseek.command import Command, Json, Model, Quiet, Threads
from slimseek.errors import UsageError


def transcribe(
    model: Model, files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recordings.")],
    threads: Threads = 0, json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Print what is said in recordings (wav, flac, ogg, mp3; any rate, any length)."""
    from slimseek.choose import recogniser as open_recogniser
    from slimseek.progress import track

    with Command(json, quiet) as run:
        opened = open_recogniser(model, threads or None)
        with track(f"transcribe {len(files):,} recordings, {opened.name}", len(files)) as advance:
            said = opened.transcripts(files, advance)
        found = [{"file": file, "text": text} for file, text in zip(files, said, strict=True)]
        alone = len(files) == 1
        run.answer(found, lambda console: console.print(
            "\n".join(one["text"] if alone else f"{one['file']}: {one['text']}" for one in found),
            markup=False, soft_wrap=True,
        ))  # fmt: skip


def query(
    index: Annotated[Path, typer.Argument(metavar="INDEX")],
    text: Annotated[str, typer.Argument(metavar="QUERY", help="Text, or the path of a recording or a picture.")],
    model: Annotated[str, typer.Option("--model", help="The MODEL that made the index.")],
    recogniser: Annotated[str, typer.Option("--recogniser", metavar="MODEL", help="QUERY is a recording.")] = "",
    k: Annotated[int, typer.Option("--k")] = 10, threads: Threads = 0, json: Json = False,
) -> None:  # fmt: skip
    """Search an index by a text, or by what is said in a recording."""
    from slimseek import search, show
    from slimseek.choose import choose
    from slimseek.choose import recogniser as open_recogniser

    with Command(json, quiet=True) as run:
        if recogniser:
            [text] = open_recogniser(recogniser, threads or None).transcripts([text])
            if not text:
                raise UsageError("nothing was understood in the recording")
            typer.echo(f"heard: {text}", err=True)
        results = search.open(index, choose(model, threads or None)).query([text], k)[0]
        run.answer(results, lambda console: show.results(results, console))
