"""Commands of an index: make it, change it, ask it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slimseek.cli.command import Command, Force, Json, Model, Out, Quiet, Ray, Threads
from slimseek.errors import UsageError

Database = Annotated[
    str, typer.Option("--database", metavar="URL", help="Of pgvector: postgresql://HOST/NAME, without a password.")
]


def index(
    model: Model, out: Out,
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="Collection, or one .jsonl file.")] = "",
    add: Annotated[str, typer.Option("--add", metavar="DATA", help="Documents for the index in --out.")] = "",
    delete: Annotated[list[str] | None, typer.Option("--delete", metavar="ID", help="From it; @FILE: ids.")] = None,
    join: Annotated[list[str] | None, typer.Option("--join", metavar="INDEX", help="Make it of others.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="exact, usearch, faiss_flat, faiss_hnsw, pgvector.")] = "exact",
    precision: Annotated[str, typer.Option("--precision", help="f32, f16, int8 or binary.")] = "f32",
    rescore: Annotated[str, typer.Option("--rescore", help="Vectors on disk: auto, none, f32, f16 or int8.")] = "auto",
    oversample: Annotated[int, typer.Option("--oversample", min=1, help="Candidates to rescore, for each hit.")] = 4,
    processes: Annotated[int, typer.Option("--processes", min=1, help="That encode a .jsonl file.")] = 1,
    documents_per_part: Annotated[
        int, typer.Option("--documents-per-part", min=0, help="Of a .jsonl file: an index in parts of so many.")] = 0,
    database: Database = "", ray: Ray = "", threads: Threads = 0, force: Force = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Encode documents and write an index, or change one; of a .jsonl file of any size, and a killed run goes on."""
    from slimseek.cli import show
    from slimseek.pipeline import index_on, join_on, update_on

    _reach(database)
    changes = bool(add or delete)
    if bool(data) + changes + bool(join) != 1:
        raise UsageError("give --data to make an index, or --add and --delete to change the one in --out, or --join to "
                         "make one of others")  # fmt: skip
    with Command(json, quiet) as run:
        if changes:
            stats = update_on(model, out, add=add, delete=delete or (), threads=threads)
        elif join:
            stats = join_on(model, join, out, threads=threads, force=force)
        else:
            stats = index_on(model, data, out, kind=kind, precision=precision, rescore=rescore, oversample=oversample,  # type: ignore[arg-type]
                             processes=processes, ray=ray, documents_per_part=documents_per_part, threads=threads,
                             force=force)  # fmt: skip
        run.answer(stats, lambda console: show.index(stats, console, out))


def query(
    index: Annotated[Path, typer.Argument(metavar="INDEX")],
    text: Annotated[str, typer.Argument(metavar="QUERY", help="Text, or the path of a recording or a picture.")],
    model: Annotated[str, typer.Option("--model", help="The MODEL that made the index.")],
    recogniser: Annotated[str, typer.Option("--recogniser", metavar="MODEL", help="QUERY is a recording.")] = "",
    k: Annotated[int, typer.Option("--k")] = 10, database: Database = "", threads: Threads = 0, json: Json = False,
) -> None:  # fmt: skip
    """Search an index by a text, or by what is said in a recording."""
    from slimseek import search
    from slimseek.choose import choose
    from slimseek.choose import recogniser as open_recogniser
    from slimseek.cli import show

    _reach(database)
    with Command(json, quiet=True) as run:
        if recogniser:
            [text] = open_recogniser(recogniser, threads or None).transcripts([text])
            if not text:
                raise UsageError("nothing was understood in the recording")
            typer.echo(f"heard: {text}", err=True)
        results = search.open(index, choose(model, threads or None)).query([text], k)[0]
        run.answer(results, lambda console: show.results(results, console))


def _reach(database: str) -> None:
    """An index of pgvector looks for its server there; so do the processes that this one starts."""
    if database:
        os.environ["SLIMSEEK_DATABASE"] = database
