"""The command that takes recordings: what is said in them."""

from __future__ import annotations

from typing import Annotated

import typer

from slimseek.cli.command import Command, Json, Model, Quiet, Threads


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
