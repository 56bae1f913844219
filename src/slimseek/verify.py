"""Whether a package gives the vectors of its artifact: in a fresh process, at three shapes, whatever the batch."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek import choose
from slimseek.encoder import Encoder
from slimseek.errors import SlimseekError
from slimseek.evaluate import cosines, invariance, neighbours_shared
from slimseek.inputs.samples import examples
from slimseek.schema import Array, Batch, GateResult

SHAPES = ((1, 3), (3, 17), (8, 128))
LEAST_PARITY = 0.999
LEAST_PARITY_ROUNDED = 0.99


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


def encode_in_fresh_process(source: Path, texts: Sequence[str], threads: int, *, stand_in: bool = False) -> Array:
    """Vectors float32 [n, dim] of texts, computed by a new process that opens the package, or its stand-in.

    Raises:
        SlimseekError: it failed; its last line is shown.
    """
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "vectors.npy"
        command = [sys.executable, "-m", "slimseek.probe", str(source), str(threads), str(result)]
        command += ["stand-in"] if stand_in else []
        done = subprocess.run(
            command, input=msgspec.json.encode(list(texts)), capture_output=True, timeout=900, check=False
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise SlimseekError(f"{source} failed in a fresh process: {lines[-1]}")
        vectors: Array = np.load(result, allow_pickle=False)
        return vectors


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
