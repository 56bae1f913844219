"""A collection in a package for the web: vectors in one file of bytes, ids and texts in one of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slimseek.backends._web.files import INDEX, with_documents
from slimseek.errors import UsageError
from slimseek.folder import write_json
from slimseek.indexes._vectors import rows_of
from slimseek.schema import Array, Precision
from slimseek.value import Value

VECTORS, TEXTS = INDEX
PRECISIONS = ("int8", "f32")


class Held(Value, frozen=True):
    """What ``index.json`` holds.

    Attributes:
        precision: how ``index.bin`` keeps vectors: ``f32``, values [documents, dim]; ``int8``, float32 [2, dim], the
            middle and the step of each dimension, then codes [documents, dim]; little-endian.
        ids: in the order of the vectors.
        texts: likewise.
    """

    precision: Precision
    dim: int
    ids: tuple[str, ...]
    texts: tuple[str, ...]


def write(folder: Path, vectors: Array, corpus: Mapping[str, str], precision: Precision) -> None:
    """Put a collection into a package; see :class:`Held`.

    Raises:
        UsageError: another precision, or vectors that are not one a document.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one that the page searches; it has {', '.join(PRECISIONS)}")
    if len(vectors) != len(corpus):
        raise UsageError(f"there are {len(vectors)} vectors for {len(corpus)} documents; each needs one")
    rows = rows_of(vectors, precision)
    with (folder / VECTORS).open("wb") as file:
        if rows.ranges is not None:
            file.write(rows.ranges.astype("<f4").tobytes())
        file.write(np.ascontiguousarray(rows.kept).tobytes())
    held = Held(precision=precision, dim=rows.dim, ids=tuple(corpus), texts=tuple(corpus.values()))
    write_json(folder / TEXTS, held)
    with_documents(folder, len(corpus))
