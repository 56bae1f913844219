"""Pictures as a training sees them: another part, another side, other light each time, and the same whenever asked."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from slimseek import plugins
from slimseek.inputs.pictures import decoded, pixels
from slimseek.schema import Array, PicturePreprocess

LEAST_AREA = 0.35
"""Of a picture that a crop shows; a half more of one side than of the other at most, by ``RATIO``."""
RATIO = 4 / 3
LIGHT = 0.3
"""How far brightness, contrast and saturation go up or down."""
KINDS = ("Brightness", "Contrast", "Color")


def varied(path: str, how: PicturePreprocess, generator: np.random.Generator, *, grey: bool = False) -> Array:
    """A random view of a picture as the network takes it, float32, in the shape and the numbers of ``how``.

    A crop of random place, area and shape, resized; mirrored one time of two; brightness, contrast and saturation each
    multiplied by 0.7 to 1.3 (Szegedy et al., 2015; Howard, 2013).

    Args:
        path: of the picture.
        how: what serving does with a picture. Where that cuts margins off, crops here go to the edge all the same.
        generator: of all that is random: one of the same seed gives the same view.
        grey: one channel in the place of three.

    Raises:
        UsageError: a picture that cannot be read.
    """
    image, enhance = plugins.require("PIL.Image"), plugins.require("PIL.ImageEnhance")
    picture = decoded(path)
    filter_ = image.Resampling[how.resample.upper()]
    picture = picture.resize((how.width, how.height), filter_, box=_crop(picture, how, generator))
    if generator.random() < 0.5:
        picture = picture.transpose(image.Transpose.FLIP_LEFT_RIGHT)
    for kind in KINDS:
        picture = getattr(enhance, kind)(picture).enhance(generator.uniform(1 - LIGHT, 1 + LIGHT))
    return pixels(picture, msgspec.structs.replace(how, fit="squash"), path, grey=grey)


def _crop(picture: Any, how: PicturePreprocess, generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom in pixels. The shape is that of what the network takes, or up to a third off it."""
    width, height = picture.size
    area = generator.uniform(LEAST_AREA, 1) * width * height
    shape = how.width / how.height * math.exp(generator.uniform(-math.log(RATIO), math.log(RATIO)))
    wide, high = min(width, math.sqrt(area * shape)), min(height, math.sqrt(area / shape))
    left, top = generator.uniform(0, width - wide), generator.uniform(0, height - high)
    return left, top, left + wide, top + high
