"""How far a unit lies from the others of its group."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from slimseek.importance._evidence import NONE, Evidence, Importance
from slimseek.schema import Array


class GeometricMedian(Importance):
    """Sum of the distances of a unit's weights to those of every unit in its group: what lies nearest to the geometric
    median can be stood in for by the rest (He et al., Filter Pruning via Geometric Median, 2019). Needs no data.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]."""
        scores = np.zeros(evidence.count)
        for group in evidence.groups:
            rows = np.concatenate([part for place, line in evidence.places.items()
                                   for part in self._rows(evidence, place, line, group)], 1)  # fmt: skip
            scores[group] = cdist(rows, rows).sum(1)
        return scores

    def _rows(self, evidence: Evidence, place: tuple[str, int], line: Array, group: Array) -> list[Array]:
        """The weights of each unit of the group at one place, [units, numbers]; none where they do not lie there."""
        tensor = evidence.tensors[place[0]]
        inside = np.flatnonzero(np.isin(line, group[group != NONE]))
        if not inside.size:
            return []
        order = inside[np.argsort(np.searchsorted(group, line[inside]), kind="stable")]
        return [np.moveaxis(tensor, place[1], 0)[order].reshape(len(group), -1)]
