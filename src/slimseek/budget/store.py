"""The folder of a search: each trial a file of its own, written when it ends, so that a kill loses at most one.

run.json          what is searched: model, collection, runtime, machine; written first
trials/0007.json  one file a trial
cache/            what trials share: vectors of the original, trained students
artifact/         the chosen model; front/NAME.yaml the recipe of each point; search.html the page
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from slimseek import folder as folders
from slimseek.alone import alone
from slimseek.errors import UsageError
from slimseek.trial import Trial
from slimseek.value import Value

RUN, TRIALS, CACHE = "run.json", "trials", "cache"
FORMAT_VERSION = 2
"""Of the settings of a search: 2 since its documents are chosen by words, so that an older one is not gone on with."""


class Terms(Value, frozen=True, kw_only=True):
    """How a search judges.

    Attributes:
        target: the runtime.
        metric: that decides.
        threads: of the runtime.
        seed: of every random choice.
        keep_index: whether queries search the vectors that the original gave, and are judged by what it finds.
        search_with: of a recogniser, the MODEL of the texts that are found by what it hears; ``""`` for the built-in
            one.
    """

    target: str
    metric: str
    threads: int
    seed: int
    keep_index: bool = False
    search_with: str = ""


class Run(Value, frozen=True):
    """What all trials of a folder have in common; another model, collection, runtime or machine needs another folder.

    Attributes:
        made_with: version of slimseek.
        model_sha256: of the original.
        collection_sha256: of texts and judgements.
        metric: that decides.
        target: the runtime.
        keep_index: whether queries search the original's vectors.
        search_with: of a recogniser, the MODEL of the texts that are found by what it hears.
        cpu: the machine's, for latencies of different CPUs cannot stand in one table.
        threads: of the runtime.
        seed: of every random choice.
    """

    format_version: int
    made_with: str
    model_sha256: str
    collection_sha256: str
    metric: str
    target: str
    keep_index: bool
    cpu: str
    threads: int
    seed: int
    search_with: str = ""

    @property
    def terms(self) -> Terms:
        """How the trials are judged."""
        return Terms(target=self.target, metric=self.metric, threads=self.threads, seed=self.seed,
                     keep_index=self.keep_index, search_with=self.search_with)  # fmt: skip


@dataclass(frozen=True)
class Store:
    """An open folder, which no other process writes to."""

    folder: Path

    @property
    def cache(self) -> Path:
        """Where trials keep what they share."""
        return self.folder / CACHE

    def trials(self) -> list[Trial]:
        """All that ended, by number.

        Raises:
            ArtifactError: a file was changed by hand and is no trial any more.
        """
        return [folders.read_json(path, Trial) for path in sorted((self.folder / TRIALS).glob("[0-9]*.json"))]

    def add(self, trial: Trial) -> None:
        """Keep a trial, whole or not at all."""
        content = msgspec.json.format(msgspec.json.encode(trial), indent=1)
        folders.write_atomically(self.folder / TRIALS / f"{trial.number:04d}.json", content)


@contextmanager
def opened(folder: Path, run: Run, *, force: bool = False) -> Iterator[Store]:
    """The folder, made or gone on with, locked while the block runs.

    Args:
        folder: absent, empty, or of a search of the same run.
        run: what is searched.
        force: throw away trials of another run.

    Raises:
        UsageError: another process searches there, or it holds something else.
    """
    known = folder / RUN
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not known.is_file()):
        raise UsageError(f"{folder} holds something else than a search; choose another --out")
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(Path(os.path.abspath(folder))))
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
        _begin(folder, run, force)
        yield Store(folder)


def _begin(folder: Path, run: Run, force: bool) -> None:
    known = folder / RUN
    if known.is_file():
        found = folders.read_manifest(known, Run, FORMAT_VERSION)
        other = folders.other(
            found,
            msgspec.structs.asdict(run),
            lambda name: f"{name} {getattr(found, name)} and not {getattr(run, name)}",
        )
        if not other:
            return
        if not force:
            raise UsageError(f"{folder} holds a search of {other}; choose another --out, or add --force to begin anew")
        for path in (folder / TRIALS).glob("*.json"):
            path.unlink()
    folders.write_atomically(known, msgspec.json.encode(run))
