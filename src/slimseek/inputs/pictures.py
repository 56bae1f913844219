"""Pictures as a model takes them, one file an item: whatever way it is stored, the vector is its plain RGB copy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek import plugins
from slimseek.errors import UsageError, first_line
from slimseek.inputs.arrays import BATCH, RANDOM, ROWS_IN_BATCH
from slimseek.inputs.augmentation import view
from slimseek.preprocess import PicturePreprocess
from slimseek.schema import Array, Batch, ModelSpec

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded, all by Pillow itself: others, such as EPS, would start a program."""
MOST_PIXELS = 64_000_000
"""Of a picture, and of what resizing makes of it, before its margins are cut off."""
CELLS = 7


class PictureInput:
    """Reads pictures, one at a time, when their batch is made: a row is the path alone.

    The first frame of an animation counts, turned as its EXIF data says; transparent points are white; colour profiles
    are not applied. A network of one channel is given shades of grey.

    The item ``random:SEED`` is a picture of 7 x 7 random colours: for checks that have no data at hand.
    """

    query_prefix = ""
    document_prefix = ""

    def __init__(self, spec: ModelSpec) -> None:
        """For a model whose one input is a picture; without Pillow it raises MissingExtra."""
        assert spec.picture
        plugins.require("PIL.Image")
        self._how, self._tensor = spec.picture, spec.inputs[0]
        self._shape = tuple(axis for axis in self._tensor.shape if axis != BATCH)

    def rows(self, items: Sequence[str], prefix: str = "") -> list[str]:
        """The paths, their headers checked.

        Raises:
            UsageError: a file that is no picture, or has too many pixels; what is broken further on is found when the
                batch is made.
        """
        for item in items:
            if not item.startswith(RANDOM):
                size(item)
        return list(items)

    def width(self, row: str) -> tuple[tuple[int | str, ...], ...]:
        """All rows can stand in one batch: the shape of a picture as the network takes it."""
        return (self._shape,)

    def rows_in_batch(self, width: object) -> int:
        """How many rows a batch takes."""
        return ROWS_IN_BATCH

    def batch(self, rows: Sequence[str], width: object = None) -> Batch:
        """Pictures side by side: [n, channels, height, width], or the channels last where the network wants it so.

        Raises:
            UsageError: a picture that is cut off or broken.
        """
        pictures = [pixels(self._picture(row), self._how, row, grey=self._grey) for row in rows]
        return {self._tensor.name: np.stack(pictures).astype(self._tensor.dtype, copy=False)}

    def __call__(self, items: Sequence[str]) -> Batch:
        """Items to one batch."""
        return self.batch(self.rows(items))

    def views(self, rows: Sequence[str], generators: Sequence[np.random.Generator], side: int) -> Batch:
        """A random view of each picture, for training: as :func:`slimseek.inputs.augmentation.view` has it.

        Args:
            rows: what :meth:`rows` gives.
            generators: of each row's view.
            side: of the views in pixels.

        Raises:
            UsageError: a picture that is cut off or broken.
        """
        how = msgspec.structs.replace(self._how, fit="squash", height=side, width=side)
        found = [
            pixels(view(self._picture(row), how, generator), how, row, grey=self._grey)
            for row, generator in zip(rows, generators, strict=True)
        ]
        return {self._tensor.name: np.stack(found).astype(self._tensor.dtype, copy=False)}

    @property
    def _grey(self) -> bool:
        return self._shape[2 if self._how.channels_last else 0] == 1

    def _picture(self, item: str) -> Any:
        if not item.startswith(RANDOM):
            return decoded(item)
        generator = np.random.default_rng(int(item.removeprefix(RANDOM)))
        colours = generator.integers(0, 256, (CELLS, CELLS, 3), np.uint8)
        return plugins.require("PIL.Image").fromarray(colours)


def size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture in pixels, as its header has them; nothing is decoded.

    Raises:
        UsageError: the file is no picture, or has more than 64 million pixels.
    """
    with _opened(path) as picture:
        found: tuple[int, int] = picture.size
        return found


def decoded(path: str | Path) -> Any:
    """A picture as a Pillow image of mode RGB.

    Raises:
        UsageError: the file is no picture, has more than 64 million pixels, is cut off or broken, or holds numbers that
            are no shades of a screen.
    """
    with _opened(path) as picture:
        return _loaded(picture, path)


def reduced(path: str | Path, side: int) -> Any:
    """The same at most ``side`` pixels wide and high, its proportions kept; a JPEG is not decoded any larger than that
    takes. The same errors.
    """
    with _opened(path) as picture:
        picture.draft("RGB", (side, side))
        found = _loaded(picture, path)
        found.thumbnail((side, side))
        return found


def pixels(picture: Any, how: PicturePreprocess, name: str | Path, *, grey: bool = False) -> Array:
    """What the network is given of a picture: float32 [3, height, width], or [height, width, 3].

    Args:
        picture: a Pillow image of mode RGB.
        how: size, filter and numbers; its mean and deviation are those of red, green and blue in this order.
        name: of the picture, for the message.
        grey: one channel in the place of three, by the weights of ITU-R 601.

    Raises:
        UsageError: a picture so narrow that its longer side cannot be resized.
    """
    fitted = _fitted(picture, how, name)
    values = np.asarray(fitted.convert("L") if grey else fitted, np.float32).reshape(how.height, how.width, -1)
    channels = values.shape[2]
    mean, std = np.array(how.mean[:channels], np.float32), np.array(how.std[:channels], np.float32)
    values = (values * np.float32(how.rescale) - mean) / std
    if how.bgr:
        values = values[..., ::-1]
    return np.ascontiguousarray(values if how.channels_last else values.transpose(2, 0, 1))


def _opened(path: str | Path) -> Any:
    """The file as Pillow opens it, its header read and its size checked."""
    image = plugins.require("PIL.Image")
    image.init()
    known = [name for name in FORMATS if name in image.OPEN]
    try:
        if not Path(path).stat().st_size:
            raise UsageError(f"{path} is empty; a picture is wanted")
        picture = image.open(path, formats=known)
    except image.DecompressionBombError as error:
        raise UsageError(f"{path} has more than {MOST_PIXELS:,} pixels; it is not decoded") from error
    except image.UnidentifiedImageError as error:
        raise UsageError(f"{path} is no picture, or none of {', '.join(known)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"the picture {path} cannot be read: {reason}") from error
    except UsageError:
        raise
    except Exception as error:  # a header that provokes an error of its decoder's own kind
        raise UsageError(f"{path} is cut off or broken: {first_line(error)}") from error
    width, height = picture.size
    if width * height > MOST_PIXELS:
        picture.close()
        raise UsageError(f"{path} has {width} x {height} pixels; at most {MOST_PIXELS:,} are decoded")
    return picture


def _loaded(picture: Any, path: str | Path) -> Any:
    """An opened picture as :func:`decoded` gives it."""
    try:
        picture.load()
        return _plain(picture, path)
    except UsageError:
        raise
    except Exception as error:  # decoders raise many kinds, for whatever a broken file provokes
        raise UsageError(f"{path} is cut off or broken: {first_line(error)}") from error


def _plain(picture: Any, path: str | Path) -> Any:
    """The first frame in RGB, upright, on white."""
    image, kind = plugins.require("PIL.Image"), picture.format
    upright = plugins.require("PIL.ImageOps").exif_transpose(picture)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and kind in ("PNG", "PPM")):
        return image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F", "LAB"):
        raise UsageError(f"{path} holds pixels of the kind {upright.mode}; save it as RGB or grey of 8 or 16 bits")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    covered = upright.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", covered.size, "white"), covered).convert("RGB")


def _fitted(picture: Any, how: PicturePreprocess, name: str | Path) -> Any:
    """The picture at the network's size: squashed, or its middle."""
    filters = plugins.require("PIL.Image").Resampling
    resample = filters[how.resample.upper()]
    if how.fit == "squash":
        return picture.resize((how.width, how.height), resample)
    width, height = picture.size
    shorter = round(min(how.height, how.width) / how.crop_share)
    longer = int(shorter * max(width, height) / min(width, height))
    if shorter * longer > MOST_PIXELS:
        raise UsageError(f"{name} has {width} x {height} pixels: resized to a shorter side of {shorter} these would be "
                         f"more than {MOST_PIXELS:,}; cut it")  # fmt: skip
    resized = picture.resize((shorter, longer) if width <= height else (longer, shorter), resample)
    left, top = (resized.width - how.width) // 2, (resized.height - how.height) // 2
    return resized.crop((left, top, left + how.width, top + how.height))
