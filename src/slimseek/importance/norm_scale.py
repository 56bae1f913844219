"""The scale that a norm gives to a channel."""

from __future__ import annotations

import numpy as np

from slimseek.choose import family
from slimseek.errors import UsageError
from slimseek.importance._evidence import Evidence, Importance
from slimseek.schema import Array

NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization")


class NormScale(Importance):
    """|scale| of the batch norm (or other norm) that a channel goes through (Liu et al., Network Slimming, 2017). Good
    where training pushed the scales towards zero. A norm that was folded into a convolution has no scale any more: it
    is a factor of the weights, where ``l2`` sees it.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]; a unit that goes through no norm is as important as the mean."""
        graph, _ = family(evidence.model).parts(evidence.model)
        norms = {node.input[1] for node in graph.graph.node if node.op_type in NORMS}
        scales = {name: np.abs(evidence.tensors[name]) for name in norms & evidence.tensors.keys()}
        seen = [place for place in evidence.places if place[0] in scales]
        if not seen:
            raise UsageError(
                "importance norm_scale: no unit goes through a norm that has a scale of its own; a batch norm that was "
                "folded into a convolution is seen by l2"
            )
        read = evidence.by_unit({place[0]: np.ones(evidence.tensors[place[0]].shape) for place in seen}, seen) > 0
        scores = evidence.by_unit(scales, seen)
        return np.where(read, scores, scores[read].mean())
