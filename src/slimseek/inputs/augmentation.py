"""Pictures as a training sees them: another part, another side, other light each time, and the same whenever asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from slimseek import plugins
from slimseek.preprocess import PicturePreprocess

LEAST_AREA = 0.35
"""Of a picture that a crop shows."""
RATIO = 4 / 3
"""How far the shape of a crop goes from that of what the network takes."""
LIGHT = 0.3
"""How far brightness, contrast and saturation go up or down."""
KINDS = ("Brightness", "Contrast", "Color")


def view(picture: Any, how: PicturePreprocess, generator: np.random.Generator) -> Any:
    """A random view of a picture: a crop of random place, area and shape, resized (Szegedy et al., 2015); mirrored one
    time of two; brightness, contrast and saturation each multiplied by 0.7 to 1.3.

    Args:
        picture: a Pillow image of mode RGB.
        how: the size and the filter of the view. Where serving cuts margins off, views go to the edge all the same.
        generator: of all that is random: one of the same seed gives the same view.
    """
    image, enhance = plugins.require("PIL.Image"), plugins.require("PIL.ImageEnhance")
    crop = _crop(picture.size, how, generator)
    found = picture.resize((how.width, how.height), image.Resampling[how.resample.upper()], box=crop)
    if generator.random() < 0.5:
        found = found.transpose(image.Transpose.FLIP_LEFT_RIGHT)
    for kind in KINDS:
        found = getattr(enhance, kind)(found).enhance(generator.uniform(1 - LIGHT, 1 + LIGHT))
    return found


def _crop(
    size: tuple[int, int], how: PicturePreprocess, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels of a picture of this width and height."""
    width, height = size
    area = generator.uniform(LEAST_AREA, 1) * width * height
    shape = how.width / how.height * math.exp(generator.uniform(-math.log(RATIO), math.log(RATIO)))
    wide, high = min(width, math.sqrt(area * shape)), min(height, math.sqrt(area / shape))
    left, top = generator.uniform(0, width - wide), generator.uniform(0, height - high)
    return left, top, left + wide, top + high
