"""Rows of features, reduced as a model asks for it: the same for training, evaluation and serving."""

from __future__ import annotations

import numpy as np

from slimseek.preprocess import FeaturePreprocess
from slimseek.schema import Array

STORED = "<f4"


def projection(features: FeaturePreprocess) -> tuple[Array, Array]:
    """Mean [width] and components [width, kept] of a projection, float32."""
    mean, components = np.frombuffer(features.mean, STORED), np.frombuffer(features.components, STORED)
    return mean, components.reshape(features.width, -1)


def reduced(rows: Array, features: FeaturePreprocess) -> Array:
    """Rows [..., width] to [..., kept] of the same dtype: the kept columns, or (x - mean) P."""
    if features.columns:
        kept: Array = rows[..., list(features.columns)]
        return kept
    mean, components = projection(features)
    projected: Array = ((rows - mean) @ components).astype(rows.dtype)
    return projected
