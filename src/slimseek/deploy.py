"""Stage 7: a package for a runtime, reopened in a fresh process and compared with the artifact."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from slimseek import bench, choose, plugins, timing
from slimseek import folder as folders
from slimseek.artifact import KeptIndex
from slimseek.bases import Backend
from slimseek.choose import PACKAGE, PACKAGE_VERSION, Package
from slimseek.errors import GateFailed, SlimseekError, UsageError, first_line
from slimseek.inputs.kept import kept
from slimseek.inputs.samples import examples
from slimseek.memory import give_back
from slimseek.progress import say, track
from slimseek.schema import Model
from slimseek.value import Value
from slimseek.verify import verify, verify_transcripts

AUTO, ALL = "auto", "all"
TARGETS, TARGETS_VERSION = "targets.json", 1
"""What a folder of packages for all targets holds beside them."""


class Targets(Value, frozen=True):
    """The manifest of a folder with a package for each target.

    Attributes:
        written: the targets, each of which has a folder of its name.
        left_out: the others, with the reason and, where something brings them, the remedy.
    """

    format_version: int
    written: tuple[str, ...]
    left_out: dict[str, str]


class Deployed(Value, frozen=True):
    """What became of every target.

    Attributes:
        packages: those that passed their gates, by target.
        left_out: the other targets, with the reason.
    """

    packages: dict[str, Package]
    left_out: dict[str, str]


def targets() -> dict[str, str | None]:
    """Every backend with ``None`` if packages for it can be written on this machine, else the reason and the remedy."""
    return {name: plugins.load("backends", name)().available() for name in plugins.names("backends")}


def check_target(target: str, model: Model | None = None, *, runs: bool = False) -> Any:
    """Refuse a target before any long work.

    Args:
        target: name of a backend.
        model: what the package is to be of, whose operators and shapes are looked at.
        runs: whether packages must run here, too.

    Returns:
        What the backend has built of the model on the way, for :func:`write` of the same; ``None`` if nothing.

    Raises:
        UsageError: it is unknown, does not work here (with the reason and what brings it), or does not take the model.
    """
    works = targets()
    if target not in works:
        raise UsageError(f"unknown target {target!r}; known: {', '.join(works)}")
    if works[target] is not None:
        raise UsageError(f"target {target} does not work here: {works[target]}")
    backend: Backend = plugins.load("backends", target)()
    reason = backend.runs() if runs else None
    if reason is not None:
        raise UsageError(
            f"packages for {target} do not run here, so nothing can be measured in them: {reason}; take another "
            f"--target, and deploy the artifact for {target} then"
        )
    if model is not None:
        if model.spec.output == "transcript" and not backend.transcribes:
            able = [name for name in works if plugins.load("backends", name).transcribes]
            raise UsageError(f"target {target} takes no recognisers; {' and '.join(able)} do")
        return backend.preflight(model)
    return None


def searches(target: str) -> bool:
    """Whether packages for this target can hold documents and search them by themselves."""
    return target in plugins.names("backends") and plugins.load("backends", target).most_documents > 0


def deploy(
    source: str | Path,
    target: str,
    out: str | Path,
    *,
    texts: Sequence[str] = (),
    corpus: Mapping[str, str] | None = None,
    threads: int | None = None,
    force: bool = False,
) -> Package:
    """Write a package of a model or artifact.

    Args:
        source: an artifact or any model that can be compressed.
        target: a backend, or ``auto``: all that run here are written and timed, the fastest that passes stays.
        out: folder to write.
        texts: real items (texts, or paths of arrays) for parity and timing; none for built-in examples.
        corpus: document id to text, which a package that searches by itself holds; others leave it.
        threads: threads for checks and timing.
        force: replace what an earlier run wrote.

    Raises:
        UsageError: an unknown target, or one that does not work here; a corpus that the package cannot hold.
        GateFailed: no target passes its gates; nothing is written.
    """
    if target != AUTO:
        check_target(target)
    model, passing = _writer(source, texts, threads)
    if target == AUTO and model.spec.output == "transcript":
        raise UsageError("target auto times vectors, and this is a recogniser; name onnxruntime or openvino")
    held = _held(model, target, corpus, choose.index_of(source))
    with folders.writing(Path(out), inputs=_inputs(source), force=force) as folder:
        if target == AUTO:
            return _fastest(model, folder, passing, texts, threads)
        package = passing(target, folder)
        return _with_documents(package, folder, held, threads) if held else package


def deploy_all(
    source: str | Path, out: str | Path, *, texts: Sequence[str] = (), threads: int | None = None, force: bool = False
) -> Deployed:
    """Write a package for every target that this machine can write, each into a folder of its name.

    One that fails, in its gates or otherwise, is left out and does not stop the others. Arguments are those of
    :func:`deploy`.

    Raises:
        UsageError: there is no such model, or the folder is taken.
    """
    _, passing = _writer(source, texts, threads)
    packages, left_out = {}, {}
    with folders.writing(Path(out), inputs=_inputs(source), force=force) as folder:
        for name, reason in targets().items():
            found = reason if reason is not None else _tried(passing, name, folder / name)
            if isinstance(found, Package):
                packages[name] = found
            else:
                left_out[name] = found
        folders.write_json(
            folder / TARGETS, Targets(format_version=TARGETS_VERSION, written=tuple(packages), left_out=left_out)
        )
    return Deployed(packages=packages, left_out=left_out)


def write(
    model: Model, target: str, folder: Path, *, texts: Sequence[str] = (), threads: int, collection: str = "",
    index_of: KeptIndex | None = None, ready: Any = None,
) -> Package:  # fmt: skip
    """Export into an existing empty folder, reopen in a fresh process, compare, write the manifest.

    Where packages do not run here, what computes the same is compared in their place; the gates and the manifest say
    so. ``ready`` is what :func:`check_target` gave for this model, where that was asked.
    """
    package = export(model, target, folder, collection=collection, index_of=index_of, ready=ready)
    reason = plugins.load("backends", target)().runs()
    items, rounded = texts or examples(model.spec), bool(model.activations)
    if model.spec.output == "transcript":
        parity, gates = verify_transcripts(choose.recognising(model, "artifact", threads), folder, items, rounded)
    else:
        artifact = choose.encoder(model, "artifact", threads)
        parity, gates = verify(artifact, folder, items, rounded=rounded, not_run=reason)
    package = msgspec.structs.replace(package, parity=parity, gates=gates, not_run=reason or msgspec.UNSET)
    folders.write_json(folder / PACKAGE, package)
    give_back()
    return package


def export(
    model: Model, target: str, folder: Path, *, collection: str = "", index_of: KeptIndex | None = None,
    ready: Any = None,
) -> Package:  # fmt: skip
    """A package in an existing empty folder, which nothing has checked yet; ``ready`` as in :func:`write`."""
    backend: Backend = plugins.load("backends", target)()
    say(f"export for {target}")
    backend.export(model, folder, ready)
    for name, content in kept(model).items():
        (folder / name).write_bytes(content)
    package = Package(
        format_version=PACKAGE_VERSION,
        target=target,
        spec=model.spec,
        parameters=model.parameters,
        macs=choose.family(model).macs(model, choose.REFERENCE_LENGTH),
        parity={},
        gates=(),
        tested_with=backend.versions() | timing.versions(("slimseek", "tokenizers")),
        collection=collection,
        files=folders.entries(folder, leave_out=PACKAGE),
        index_of=index_of or msgspec.UNSET,
    )
    folders.write_json(folder / PACKAGE, package)
    return package


def _held(
    model: Model, target: str, corpus: Mapping[str, str] | None, index_of: KeptIndex | None
) -> Mapping[str, str] | None:
    """The documents that go into the package; ``None`` where its target does not search.

    Raises:
        UsageError: more documents than it takes, or a model that makes no vectors of documents.
    """
    if not corpus or not searches(target):
        return None
    most = plugins.load("backends", target).most_documents
    if len(corpus) > most:
        raise UsageError(
            f"a package for {target} holds {most:,} documents at most, and the collection has {len(corpus):,}; give a "
            "smaller one with --data, or serve this one by slimseek serve"
        )
    if model.spec.preprocess is None or model.spec.output != "embedding" or index_of is not None:
        raise UsageError(
            f"a package for {target} holds documents only of a model that makes vectors of texts, queries and "
            "documents alike; leave out --data"
        )
    return corpus


def _with_documents(package: Package, folder: Path, corpus: Mapping[str, str], threads: int | None) -> Package:
    """The package with documents in it, whose vectors it has made itself."""
    backend: Backend = plugins.load("backends", package.target)()
    with track("encode documents", len(corpus)) as advance:
        encoder = (choose.choose if backend.runs() is None else choose.stand_in)(folder, threads)
        vectors = encoder.documents(list(corpus.values()), advance)
    backend.hold(folder, vectors, corpus)
    package = msgspec.structs.replace(package, files=folders.entries(folder, leave_out=PACKAGE))
    folders.write_json(folder / PACKAGE, package)
    return package


Writer = Callable[[str, Path], Package]
"""(target, existing empty folder) -> what was written there; GateFailed where it fails a gate."""


def _writer(source: str | Path, texts: Sequence[str], threads: int | None) -> tuple[Model, Writer]:
    """The model, and what writes a package of it that passes its gates."""
    model = choose.model(source)
    count = threads or timing.default_threads()
    collection, index_of = choose.collection_of(source), choose.index_of(source)

    def passing(target: str, folder: Path) -> Package:
        ready = check_target(target, model)
        package = write(model, target, folder, texts=texts, threads=count, collection=collection, index_of=index_of,
                        ready=ready)  # fmt: skip
        failed = next((gate for gate in package.gates if gate.status == "failed"), None)
        if failed is not None:
            raise GateFailed(
                f"the package for {target} fails its gate {failed.gate}: {failed.detail}; nothing was written"
            )
        return package

    return model, passing


def _tried(passing: Writer, target: str, folder: Path) -> Package | str:
    """The package, in a new folder; or why there is none, and no folder."""
    folder.mkdir()
    try:
        return passing(target, folder)
    except SlimseekError as error:  # an operator that this runtime does not have, a gate
        reason = str(error)
    except OSError:  # of the disk, which the others would meet again
        raise
    except Exception as error:  # a fault of a library
        reason = f"a fault, {type(error).__name__}: {first_line(error)}"
    shutil.rmtree(folder)
    say(f"{target} is left out: {reason}")
    return reason


def _fastest(model: Model, folder: Path, passing: Writer, texts: Sequence[str], threads: int | None) -> Package:
    """Write every target that runs here, time those that pass in turns, move the fastest into ``folder``."""
    names = [name for name, reason in targets().items()
             if reason is None and plugins.load("backends", name).local
             and plugins.load("backends", name)().runs() is None]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder, prefix=".auto.") as temporary:
        tried = {name: _tried(passing, name, Path(temporary) / name) for name in names}
        packages = {name: found for name, found in tried.items() if isinstance(found, Package)}
        if not packages:
            raise GateFailed(f"none of {', '.join(names)} passes its gates; nothing was written")
        opened = {name: choose.choose(Path(temporary) / name, threads) for name in packages}
        asked = bench.asked(model.spec, texts)
        near = bench.in_reach(opened, *asked)
        for name in [name for name in opened if name not in near]:
            say(f"{name} is left out: more than {bench.FAR_BEHIND:.0f} times as slow as another")
        found = bench.side_by_side({name: (encoder, "") for name, encoder in near.items()}, *asked)
        for line in bench.lines(found):
            say(line)
        for path in (Path(temporary) / found.fastest).iterdir():
            path.rename(folder / path.name)
    return packages[found.fastest]


def _inputs(source: str | Path) -> tuple[Path, ...]:
    return (Path(source),) if Path(source).exists() else ()
