"""Stage 6: from an artifact back to an ordinary model that the usual libraries load without slimseek."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from slimseek import choose, timing
from slimseek import folder as folders
from slimseek.errors import GateFailed
from slimseek.evaluate import cosines
from slimseek.folder import FileEntry
from slimseek.inputs.samples import examples
from slimseek.measurement import GateResult
from slimseek.schema import Model
from slimseek.value import Value

LEAST_COSINE = 0.9999
RECORDINGS = 4
PROVENANCE = "slimseek.json"


class Provenance(Value, frozen=True):
    """``slimseek.json`` in a rebuilt model: where it came from. No library reads it.

    Attributes:
        source: the artifact.
        parity: least cosine of its vectors with the artifact's.
        files: the model's files with their hashes.
    """

    source: str
    parity: float
    files: tuple[FileEntry, ...]
    format_version: int = 1


def rebuild(source: str | Path, out: str | Path, *, threads: int | None = None, force: bool = False) -> GateResult:
    """Write the dense float32 model: ``SentenceTransformer(out)`` and ``AutoModel.from_pretrained(out)`` load it.

    The float model carries the artifact's dequantized weights; tensors that blocks use together become a copy for each,
    which the gate's detail says. Rounding of activations belongs to the integer
    runtimes and is not part of it, so parity is measured against the artifact without that rounding; of a recogniser
    by the scores of the first token, or of each frame.

    Args:
        source: an artifact, or any model that :func:`slimseek.choose.model` opens.
        out: folder to write.
        threads: threads for the parity check.
        force: replace what an earlier run wrote.

    Raises:
        GateFailed: the model read back differs from the artifact; nothing is written.
    """
    model = choose.model(source)
    inputs = (Path(source),) if Path(source).exists() else ()
    with folders.writing(Path(out), inputs=inputs, force=force) as folder:
        choose.family(model).save(model, folder)
        items = examples(model.spec)[: RECORDINGS if model.spec.output == "transcript" else None]
        plain = dataclasses.replace(model, activations={})
        least = _least_cosine(plain, folder, items, threads or timing.default_threads())
        copies = f"; {len(model.tied)} tensors that it stores once are copies here" if model.tied else ""
        parity = GateResult(
            gate="parity",
            status="passed" if least >= LEAST_COSINE else "failed",
            detail=f"{len(items)} items, rebuilt model against the artifact's weights: least cosine {least:.6f}"
            f"{copies}",
            value=least,
            limit=LEAST_COSINE,
        )
        provenance = Provenance(source=str(source), parity=least, files=folders.entries(folder, leave_out=PROVENANCE))
        folders.write_json(folder / PROVENANCE, provenance)
        if parity.status == "failed":
            raise GateFailed(f"the rebuilt model differs from the artifact: {parity.detail}; nothing was written")
    return parity


def _least_cosine(model: Model, folder: Path, items: Sequence[str], threads: int) -> float:
    """Of what a model and the rebuilt one give for the same items."""
    if model.spec.output != "transcript":
        before, after = choose.encoder(model, "artifact", threads), choose.choose(folder, threads)
        return float(cosines(before.documents(items), after.documents(items)).min())
    heard = choose.recognising(model, "artifact", threads), choose.recogniser(folder, threads)
    batches = [heard[0].input([item]) for item in items]
    return min(float(cosines(*(one.scores(batch) for one in heard)).min()) for batch in batches)
