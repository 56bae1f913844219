"""Vectors of many documents from the machines of a cluster, through Ray Data.

The documents are cut into the same chunks as on one machine, and each chunk is encoded in one call: a vector does not
hang on which machine made it, and is the same bit for bit where processors and threads are the same.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimseek import __version__, choose, plugins
from slimseek.encoder import Encoder
from slimseek.errors import SlimseekError, UsageError
from slimseek.progress import track
from slimseek.scale.connect import check_version, connected, machines
from slimseek.schema import Array, Model
from slimseek.search import DOCUMENTS_IN_CHUNK
from slimseek.training import teacher as teachers

BLOCKS_EACH = 4
"""Blocks of chunks for each worker: few enough to cost little, enough that a fast one takes more than a slow one."""


Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shipped:
    """A MODEL as it travels: the machines of a cluster need not have its files.

    Attributes:
        name: for reports.
        dim: width of its vectors.
        model: what can be compressed; ``None`` for a deployed package.
        files: of a deployed package, path to content.
        version: of slimseek, which must be the same everywhere.
    """

    name: str
    dim: int
    model: Model | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    version: str = __version__


def encode(
    source: str | Path | Model, texts: Sequence[str], address: str, *, threads: int = 0,
    chunk: int = DOCUMENTS_IN_CHUNK, label: str = "",
) -> Array:  # fmt: skip
    """Vectors of documents from every machine of a cluster, in the order of the texts.

    A worker that is lost costs the chunks that it had in hand, which Ray gives to another.

    Args:
        source: the MODEL of the command line, or an opened one; it is sent to the machines.
        texts: documents; paths of arrays must lead to the same files on every machine.
        address: see :func:`slimseek.scale.connect.connected`.
        threads: of each worker's runtime; 0 for one, and so as many workers as the cluster has cores.
        chunk: documents encoded in one call; 256 as where an index is made on one machine.
        label: for the line of progress.

    Returns:
        Float32 [n, dim], what :meth:`slimseek.encoder.Encoder.documents` gives for the same chunks.

    Raises:
        UsageError: no cluster answers, the MODEL cannot be opened, or gives vectors that are not finite.
    """
    shipped = _shipped(source)
    vectors = np.empty((len(texts), shipped.dim), np.float32)
    if not texts:
        return vectors
    with connected(address) as ray, track(label or f"encode documents, {shipped.name}", len(texts)) as advance:
        for row in _encoded(ray, shipped, texts, threads or 1, chunk):
            if row["error"]:
                raise UsageError(row["error"])
            vectors[row["start"] : row["start"] + len(row["vectors"])] = row["vectors"]
            advance(len(row["vectors"]))
    return vectors


@contextmanager
def teaching(address: str, *, threads: int = 0) -> Iterator[None]:
    """Have a cluster compute what teachers give, while the block runs.

    They are kept where a distillation on one machine keeps and looks for them, bit for bit the same where processors
    and threads are of one kind.

    Args:
        address: see :func:`slimseek.scale.connect.connected`.
        threads: see :func:`encode`.
    """

    def compute(teacher: Model, items: Sequence[str]) -> Array:
        return encode(teacher, items, address, threads=threads, chunk=teachers.PART, label=teachers.LABEL)

    with connected(address), teachers.computed_by(compute):
        yield


class _Chunks:
    """Encodes chunks on one machine; the MODEL is opened once."""

    def __init__(self, reference: Any, threads: int) -> None:
        shipped: Shipped = plugins.require("ray").get(reference)  # Ray Data hands references on as they are
        self._wrong = ""
        try:
            self._encoder = _unpacked(shipped, threads)
        except SlimseekError as error:
            self._wrong = str(error)
        self._dim = shipped.dim

    def __call__(self, row: Row) -> Row:
        none = np.zeros((0, self._dim), np.float32)
        if self._wrong:
            return {"start": row["start"], "error": self._wrong, "vectors": none}
        try:
            return {"start": row["start"], "error": "", "vectors": self._encoder.documents(list(row["texts"]))}
        except SlimseekError as error:
            return {"start": row["start"], "error": str(error), "vectors": none}


def _encoded(ray: Any, shipped: Shipped, texts: Sequence[str], threads: int, chunk: int) -> Iterable[Row]:
    """Chunks as they end, in any order."""
    data = plugins.require("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    rows = [{"start": start, "texts": list(texts[start : start + chunk])} for start in range(0, len(texts), chunk)]
    workers = sum(machine.cores // threads for machine in machines(ray))
    if not workers:
        raise UsageError(f"--threads is {threads}; no machine of the cluster has so many cores")
    workers = min(workers, len(rows))
    chunks = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS_EACH * workers))
    found: Iterable[Row] = chunks.map(
        _Chunks, fn_constructor_args=(ray.put(shipped), threads), concurrency=workers, num_cpus=threads
    ).iter_rows()
    return found


def _shipped(source: str | Path | Model) -> Shipped:
    if isinstance(source, Model):
        return Shipped(name="the model", dim=source.spec.dim, model=source)
    path, name = Path(source), choose.name_of(source)
    if not (path / choose.PACKAGE).is_file():
        model = choose.model(source)
        return Shipped(name=name, dim=model.spec.dim, model=model)
    files = {entry.path: (path / entry.path).read_bytes() for entry in choose.read_package(path).files}
    files[choose.PACKAGE] = (path / choose.PACKAGE).read_bytes()
    return Shipped(name=name, dim=choose.read_package(path).spec.dim, files=files)


def _unpacked(shipped: Shipped, threads: int) -> Encoder:
    """The encoder, on the machine that it came to."""
    check_version(shipped.version)
    if shipped.model is not None:
        return choose.encoder(shipped.model, shipped.name, threads)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in shipped.files.items():
            place = Path(folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return choose.choose(folder, threads)
