"""Stage 7: a package for a runtime, reopened in a fresh process and compared with the artifact."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek import choose, plugins, timing
from slimseek import folder as folders
from slimseek.bases import Backend
from slimseek.choose import PACKAGE, PACKAGE_VERSION, Package
from slimseek.encoder import Encoder
from slimseek.errors import GateFailed, SlimseekError, UsageError
from slimseek.evaluate import cosines, invariance, neighbours_shared
from slimseek.inputs.samples import examples
from slimseek.inputs.text import TOKENIZER
from slimseek.progress import say, track
from slimseek.schema import Array, Batch, GateResult, KeptIndex, Model

SHAPES = ((1, 3), (3, 17), (8, 128))
LEAST_PARITY = 0.999
LEAST_PARITY_ROUNDED = 0.99
AUTO = "auto"


def targets() -> dict[str, str | None]:
    """Every backend with ``None`` if it works on this machine, else the reason and the remedy."""
    return {name: plugins.load("backends", name)().available() for name in plugins.names("backends")}


def check_target(target: str) -> None:
    """Refuse a target that is unknown or does not work here.

    Raises:
        UsageError: with the reason and what brings it.
    """
    works = targets()
    if target not in works:
        raise UsageError(f"unknown target {target!r}; known: {', '.join(works)}")
    if works[target] is not None:
        raise UsageError(f"target {target} does not work here: {works[target]}")


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
        target: a backend, or ``auto``: all that work here are written and timed, the fastest that passes stays.
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
    model = choose.model(source)
    inputs = (Path(source),) if Path(source).exists() else ()
    collection, index_of = choose.collection_of(source), choose.index_of(source)
    count = threads or timing.default_threads()
    held = _held(model, target, corpus, index_of)
    with folders.writing(Path(out), inputs=inputs, force=force) as folder:
        if target != AUTO:
            package = write(model, target, folder, texts=texts, threads=count, collection=collection, index_of=index_of)
            failed = next((gate for gate in package.gates if gate.status == "failed"), None)
            if failed is not None:
                raise GateFailed(
                    f"the package for {target} fails its gate {failed.gate}: {failed.detail}; nothing was written"
                )
            return _with_documents(package, folder, held, count) if held else package
        names = [name for name, reason in targets().items() if reason is None and _is_local(name)]
        return _fastest(model, names, folder, texts, count, collection, index_of)


def write(
    model: Model, target: str, folder: Path, *, texts: Sequence[str] = (), threads: int, collection: str = "",
    index_of: KeptIndex | None = None,
) -> Package:  # fmt: skip
    """Export into an existing empty folder, reopen in a fresh process, compare, write the manifest."""
    package = export(model, target, folder, collection=collection, index_of=index_of)
    reference = choose.encoder(model, "artifact", threads)
    items = texts or examples(model.spec)
    parity, gates = _verify(reference, folder, items, threads, rounded=bool(model.activations))
    package = msgspec.structs.replace(package, parity=parity, gates=gates)
    folders.write_json(folder / PACKAGE, package)
    return package


def export(
    model: Model, target: str, folder: Path, *, collection: str = "", index_of: KeptIndex | None = None
) -> Package:
    """A package in an existing empty folder, which nothing has checked yet."""
    backend: Backend = plugins.load("backends", target)()
    say(f"export for {target}")
    backend.export(model, folder)
    if TOKENIZER in model.files:
        (folder / TOKENIZER).write_bytes(model.files[TOKENIZER])
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


def _is_local(target: str) -> bool:
    return bool(plugins.load("backends", target).local)


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


def _with_documents(package: Package, folder: Path, corpus: Mapping[str, str], threads: int) -> Package:
    """The package with documents in it, whose vectors it has made itself."""
    backend: Backend = plugins.load("backends", package.target)()
    with track("encode documents", len(corpus)) as advance:
        vectors = choose.choose(folder, threads).documents(list(corpus.values()), advance)
    backend.hold(folder, vectors, corpus)
    package = msgspec.structs.replace(package, files=folders.entries(folder, leave_out=PACKAGE))
    folders.write_json(folder / PACKAGE, package)
    return package


def encode_in_fresh_process(source: Path, texts: Sequence[str], threads: int) -> Array:
    """Vectors float32 [n, dim] of texts, computed by a new process that opens the package.

    Raises:
        SlimseekError: it failed; its last line is shown.
    """
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "vectors.npy"
        command = [sys.executable, "-m", "slimseek.probe", str(source), str(threads), str(result)]
        done = subprocess.run(
            command, input=msgspec.json.encode(list(texts)), capture_output=True, timeout=900, check=False
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise SlimseekError(f"{source} failed in a fresh process: {lines[-1]}")
        vectors: Array = np.load(result, allow_pickle=False)
        return vectors


def _verify(
    reference: Encoder, folder: Path, texts: Sequence[str], threads: int, rounded: bool
) -> tuple[dict[str, float], tuple[GateResult, ...]]:
    """Parity on real texts and at three shapes, and invariance, of the package as a fresh process sees it."""
    expected = reference.documents(texts)
    found = encode_in_fresh_process(folder, texts, threads)
    cosine = cosines(expected, found)
    parity = {
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "top10_overlap": neighbours_shared(expected, found),
        "texts": float(len(texts)),
    }  # fmt: skip
    least = LEAST_PARITY_ROUNDED if rounded else LEAST_PARITY
    package = choose.choose(folder, threads)
    gates = (
        GateResult(
            gate="parity",
            status="passed" if parity["cosine_mean"] >= least else "failed",
            detail=f"{len(texts)} items against the artifact: cosine {parity['cosine_mean']:.5f} on average, "
            f"{parity['cosine_min']:.5f} at least, top-10 overlap {parity['top10_overlap']:.3f}",
            value=parity["cosine_mean"],
            limit=least,
        ),
        _shapes(reference, package, least, texts),
        invariance(package, texts[:64]),
    )
    return parity, gates


def _shapes(reference: Encoder, package: Encoder, least: float, items: Sequence[str]) -> GateResult:
    """Whether one graph takes every batch size and length."""
    batches = _text_batches(reference) if reference.spec.preprocess else _array_batches(reference, items)
    worst = min(float(cosines(reference.encode(batch), package.encode(batch)).mean()) for batch in batches.values())
    # Random tokens are harder on rounded activations than text is; here the question is the shape.
    limit = least - 0.04 if least == LEAST_PARITY_ROUNDED else least
    return GateResult(
        gate="shapes",
        status="passed" if worst >= limit else "failed",
        detail=f"batches {', '.join(batches)}: least mean cosine {worst:.5f}",
        value=worst,
        limit=limit,
    )


def _text_batches(reference: Encoder) -> dict[str, Batch]:
    """Random tokens of a real text, by batch x tokens."""
    generator = np.random.default_rng(0)
    assert reference.spec.preprocess is not None
    [ids] = reference.input.rows(examples(reference.spec)[-1:])
    found = {}
    for count, length in SHAPES:
        width = min(length, reference.spec.preprocess.max_length)
        rows: list[Any] = [generator.choice(np.array(ids), width).tolist() for _ in range(count)]
        found[f"{count}x{width}"] = reference.input.batch(rows, width)
    return found


def _array_batches(reference: Encoder, items: Sequence[str]) -> dict[str, Batch]:
    """Arrays by batch size: the items of the first one's shape, again and again, since noise lies outside of the
    ranges that real items were rounded by.
    """
    rows: list[Any] = reference.input.rows(items[: 4 * SHAPES[-1][0]])
    alike = [row for row in rows if reference.input.width(row) == reference.input.width(rows[0])]
    return {
        str(count): reference.input.batch(list(itertools.islice(itertools.cycle(alike), count))) for count, _ in SHAPES
    }


def _fastest(
    model: Model, names: Sequence[str], folder: Path, texts: Sequence[str], threads: int, collection: str,
    index_of: KeptIndex | None,
) -> Package:  # fmt: skip
    """Write every target, time those that pass in turns, move the fastest into ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".auto.") as temporary:
        packages = {}
        for name in names:
            place = Path(temporary) / name
            place.mkdir()
            try:
                package = write(
                    model, name, place, texts=texts, threads=threads, collection=collection, index_of=index_of
                )
            except SlimseekError as error:  # an operator that this runtime does not have
                say(f"{name} is left out: {error}")
                continue
            failed = next((gate for gate in package.gates if gate.status == "failed"), None)
            if failed is None:
                packages[name] = package
            else:
                say(f"{name} is left out, its gate {failed.gate} failed: {failed.detail}")
        if not packages:
            raise GateFailed(f"none of {', '.join(names)} passes its gates; nothing was written")
        items = texts or examples(model.spec)
        seconds = _time({name: choose.choose(Path(temporary) / name, threads) for name in packages}, items)
        best = min(seconds, key=lambda name: seconds[name][0] * seconds[name][1])
        for name, (single, batch) in seconds.items():
            say(
                f"{name}: {single * 1000:.2f} ms a query, {1 / batch:.0f} items a second"
                + (", the fastest" if name == best else "")
            )
        for path in (Path(temporary) / best).iterdir():
            path.rename(folder / path.name)
    return packages[best]


def _time(encoders: dict[str, Encoder], texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Median seconds of a short single text and of a text in batches, for each encoder; both count alike."""
    short = sorted(texts, key=len)[: max(2, len(texts) // 2)]

    def query(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.queries([short[number % len(short)]])

    def documents(encoder: Encoder) -> Callable[[int], object]:
        return lambda number: encoder.documents(texts)

    single = timing.interleaved({name: query(encoder) for name, encoder in encoders.items()}, rounds=5, calls=20)
    batch = timing.interleaved(
        {name: documents(encoder) for name, encoder in encoders.items()}, rounds=3, calls=1, warm_up=1
    )
    return {name: (float(np.median(single[name])), float(np.median(batch[name])) / len(texts)) for name in encoders}
