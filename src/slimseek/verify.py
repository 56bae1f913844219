"""Whether a package gives the vectors of its artifact: in a fresh process, at three shapes, whatever the batch."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek import choose
from slimseek.encoder import Encoder
from slimseek.errors import SlimseekError
from slimseek.evaluate import cosines, invariance, neighbours_shared
from slimseek.inputs.samples import examples
from slimseek.measurement import GateResult
from slimseek.recognise import Recogniser, together
from slimseek.schema import Array, Batch

SHAPES = ((1, 3), (3, 17), (8, 128))
LEAST_PARITY = 0.999
LEAST_PARITY_ROUNDED = 0.99
TRANSCRIBED, ALONE = 16, 4
"""Recordings that are transcribed, by the artifact and by the package, and those that are transcribed alone, too."""


def verify(
    reference: Encoder, folder: Path, items: Sequence[str], *, rounded: bool, not_run: str | None = None
) -> tuple[dict[str, float], tuple[GateResult, ...]]:
    """Parity on real items and at three shapes, and invariance, of the package as a fresh process sees it.

    Args:
        reference: the artifact; its threads are the package's, too.
        folder: of the package.
        items: real ones.
        rounded: whether inputs of layers are rounded, so that less parity is asked.
        not_run: why the package does not run here: what computes the same is opened in its place, and the gates say
            so; ``None`` where it runs.
    """
    expected = reference.documents(items)
    found = encode_in_fresh_process(folder, items, reference.threads, stand_in=not_run is not None)
    cosine = cosines(expected, found)
    parity = {
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "top10_overlap": neighbours_shared(expected, found),
        "texts": float(len(items)),
    }  # fmt: skip
    least = LEAST_PARITY_ROUNDED if rounded else LEAST_PARITY
    package = (choose.choose if not_run is None else choose.stand_in)(folder, reference.threads)
    gates = (
        GateResult(
            gate="parity",
            status="passed" if parity["cosine_mean"] >= least else "failed",
            detail=f"{len(items)} items against the artifact: cosine {parity['cosine_mean']:.5f} on average, "
            f"{parity['cosine_min']:.5f} at least, top-10 overlap {parity['top10_overlap']:.3f}",
            value=parity["cosine_mean"],
            limit=least,
        ),
        _shapes(reference, package, least, items),
        invariance(package, items[:64]),
    )
    return parity, gates if not_run is None else tuple(_in_a_stand_in(gate, not_run) for gate in gates)


def verify_transcripts(
    reference: Recogniser, folder: Path, items: Sequence[str], rounded: bool
) -> tuple[dict[str, float], tuple[GateResult, ...]]:
    """Parity of a recogniser's package: transcripts of real recordings in a fresh process, and the scores of the first
    token, by their cosine; and whether a transcript depends on those beside it.

    Args:
        reference: the artifact; its threads are the package's, too.
        folder: of the package.
        items: recordings, of which the first are taken.
        rounded: whether inputs of layers are rounded, so that less parity is asked.
    """
    items = items[:TRANSCRIBED]
    expected, found = reference.transcripts(items), _in_fresh_process(folder, items, reference.threads, json=True)
    equal = float(np.mean([one == other for one, other in zip(expected, found, strict=True)]))
    package = choose.recogniser(folder, reference.threads)
    first = ((place, row) for place, item in enumerate(items) for row in islice(reference.input.windows(item), 1))
    batches = [reference.input.batch([row for _, row in some]) for some in together(first, reference.input)]
    cosine = cosines(*(np.concatenate(list(map(one.scores, batches))) for one in (reference, package)))
    parity = {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()), "equal_transcripts": equal,
              "recordings": float(len(items))}  # fmt: skip
    least = LEAST_PARITY_ROUNDED if rounded else LEAST_PARITY
    detail = (f"{len(items)} recordings against the artifact: cosine of scores {parity['cosine_mean']:.5f} on average, "
              f"{parity['cosine_min']:.5f} at least; {equal:.0%} of the transcripts are equal")  # fmt: skip
    passed = parity["cosine_mean"] >= least
    alone = [package.transcripts([item])[0] for item in items[:ALONE]]
    same = float(np.mean([one == other for one, other in zip(alone, found, strict=False)]))
    gates = (
        GateResult(gate="parity", status="passed" if passed else "failed", detail=detail,
                   value=parity["cosine_mean"], limit=least),
        GateResult(gate="invariance", status="passed" if same == 1 else "failed", value=same, limit=1.0,
                   detail=f"{len(alone)} recordings alone and beside others: {same:.0%} of the transcripts are equal"),
    )  # fmt: skip
    return parity, gates


def encode_in_fresh_process(source: Path, texts: Sequence[str], threads: int, *, stand_in: bool = False) -> Array:
    """Vectors float32 [n, dim] of texts, computed by a new process that opens the package, or its stand-in.

    Raises:
        SlimseekError: it failed; its last line is shown.
    """
    vectors: Array = _in_fresh_process(source, texts, threads, stand_in=stand_in)
    return vectors


def _in_fresh_process(
    source: Path, texts: Sequence[str], threads: int, *, stand_in: bool = False, json: bool = False
) -> Any:  # fmt: skip
    """What a new process computes: vectors, or transcripts where they are asked for as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / ("transcripts.json" if json else "vectors.npy")
        command = [sys.executable, "-m", "slimseek.probe", str(source), str(threads), str(result)]
        command += ["stand-in"] if stand_in else []
        done = subprocess.run(
            command, input=msgspec.json.encode(list(texts)), capture_output=True, timeout=900, check=False
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise SlimseekError(f"{source} failed in a fresh process: {lines[-1]}")
        if json:
            return msgspec.json.decode(result.read_bytes(), type=list[str])
        return np.load(result, allow_pickle=False)


def _in_a_stand_in(gate: GateResult, reason: str) -> GateResult:
    return msgspec.structs.replace(gate, detail=f"{gate.detail}; in a stand-in, not run here: {reason}")


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
