"""What the two kinds by faiss share: rows at a precision, files, and the view of what faiss keeps."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from slimseek.errors import ArtifactError
from slimseek.indexes import _vectors
from slimseek.indexes._growing import Growing
from slimseek.schema import Array

FILE = "index.faiss"
CODES: dict[str, Any] = {"f16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit_direct_signed}
"""How faiss keeps rows that are not float32; the last keeps a code and does no rounding of its own."""
SIGN = np.uint8(0x80)
"""A signed code stands in a byte with 128 added, which is the same as its first bit turned over."""


class Faiss(Growing):
    """Rows in an index of faiss: floats and codes by inner product, signs by Hamming distance."""

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` and, for int8 and binary, ``ranges.npy``."""
        write = faiss.write_index_binary if self.precision == "binary" else faiss.write_index
        try:
            write(self._index, str(folder / FILE))
        except RuntimeError as error:  # faiss says so of a full disk
            raise OSError(None, str(error), str(folder / FILE)) from error
        if self._ranges is not None:
            np.save(folder / _vectors.RANGES, self._ranges, allow_pickle=False)

    def load(self, folder: Path) -> None:
        """Map the index from disk; a file that is cut or of another precision or kind raises ArtifactError."""
        self._viewed: Path | None = folder / FILE
        self._index = self._read(folder / FILE, faiss.IO_FLAG_MMAP_IFC)
        self._ranges = _vectors.load_ranges(folder, self.precision)
        self._dim = int(self._index.d if self._ranges is None else self._ranges.shape[1])

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, of the graph where there is one, and of the ranges."""
        return self._codes().nbytes + self._graph_bytes() + (0 if self._ranges is None else int(self._ranges.nbytes))

    @abstractmethod
    def _empty(self, width: int) -> Any:
        """An empty index of faiss for rows [n, width]."""

    def _graph_bytes(self) -> int:
        return 0

    def _make(self, width: int) -> None:
        self._viewed = None
        self._index = self._empty(width)

    def _read(self, path: Path, flags: int = 0) -> Any:
        read = faiss.read_index_binary if self.precision == "binary" else faiss.read_index
        try:
            index = read(str(path), flags)
        except (RuntimeError, MemoryError) as error:
            said = str(error).strip().splitlines()
            raise ArtifactError(f"{path} cannot be read: {said[-1] if said else type(error).__name__}") from error
        if not self._is_ours(index):
            raise ArtifactError(f"{path} is not an index of this kind with {self.precision} vectors; index again")
        return index

    def _is_ours(self, index: Any) -> bool:
        """Whether it is of this kind and precision."""
        wanted = self._empty(1)
        if type(index) is not type(wanted):
            return False
        return self.precision not in CODES or self._store(index).sq.qtype == self._store(wanted).sq.qtype

    def _append(self, rows: Array, threads: int) -> None:
        if self._viewed is not None:  # what is mapped from disk cannot grow
            self._index, self._viewed = self._read(self._viewed), None
        faiss.omp_set_num_threads(threads)
        self._index.add(rows if self.precision == "binary" else rows.astype(np.float32))

    def _found(self, query: Array, count: int) -> Array:
        asked = query[None]
        if self.precision == "binary":
            assert self._ranges is not None
            asked = _vectors.to_signs(asked, self._ranges)
        elif self._ranges is not None:
            asked = asked * self._ranges[1]
            # At some widths faiss takes a query of such codes as integers: its own scale would leave nothing of it.
            asked = np.rint(asked / (np.abs(asked).max() or 1) * _vectors.TOP_CODE).astype(np.float32)
        found: Array = self._index.search(asked, count)[1][0].astype(np.int64)
        return found

    def _kept(self, ids: Array) -> Array:
        rows = self._codes()[ids]
        if self.precision == "int8":
            return (rows ^ SIGN).view(np.int8)
        return rows if self.precision == "binary" else rows.view(_vectors.DTYPES[self.precision])

    def _codes(self) -> Array:
        """Uint8 [n, bytes of a row], a view of what faiss keeps."""
        store = self._store(self._index)
        codes = store.xb if self.precision == "binary" else store.codes
        view: Array = faiss.rev_swig_ptr(codes.data(), codes.size()).reshape(len(self), -1)
        return view

    @staticmethod
    def _store(index: Any) -> Any:
        """Where an index keeps its rows: itself, or what lies under its graph."""
        if not hasattr(index, "hnsw"):
            return index
        cast = faiss.downcast_IndexBinary if isinstance(index, faiss.IndexBinary) else faiss.downcast_index
        return cast(index.storage)
