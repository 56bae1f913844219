"""Every document scored for every query, by faiss."""

from __future__ import annotations

from typing import Any

import faiss

from slimseek.indexes._faiss import CODES, Faiss


class FaissFlat(Faiss):
    """Exact but for rounding: faiss finds at least 128 candidates, whose scores in float64 rank them as in ``exact``.

    Equal documents at the border of the candidates may be told apart by their place alone.
    """

    def _empty(self, width: int) -> Any:
        if self.precision == "binary":
            return faiss.IndexBinaryFlat(8 * width)
        if self.precision == "f32":
            return faiss.IndexFlatIP(width)
        return faiss.IndexScalarQuantizer(width, CODES[self.precision], faiss.METRIC_INNER_PRODUCT)
