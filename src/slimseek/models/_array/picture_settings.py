"""``preprocessor_config.json``: how a picture becomes pixels, in the words of transformers' image processors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import onnx

from slimseek.errors import UsageError
from slimseek.inputs.arrays import BATCH
from slimseek.preprocess import PicturePreprocess
from slimseek.schema import TensorSpec

RESAMPLES: dict[int, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "input_data_format",
         "return_tensors", "device")  # fmt: skip
"""What changes no pixel."""
SETTINGS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
            "do_normalize", "image_mean", "image_std", "data_format", "do_flip_channel_order")  # fmt: skip
CHANNELS = (1, 3)


def picture(settings: Mapping[str, Any], where: str) -> PicturePreprocess:
    """What settings say; ``data_format`` and ``do_flip_channel_order`` are last and first by default, as there.

    Args:
        settings: of an image processor.
        where: they stand, for messages.

    Raises:
        UsageError: one is missing, unknown, or contradicts another.
    """
    told = {name: value for name, value in settings.items() if value not in (None, False)}  # others change nothing
    unknown = [name for name in told if name not in (*NAMES, *SETTINGS) and not name.startswith("_")]
    if unknown:
        raise UsageError(
            f"{where}: {unknown[0]} is {told[unknown[0]]!r}, which is not known; {', '.join(SETTINGS)} are"
        )
    if not settings.get("do_resize", True):
        raise UsageError(f"{where}: do_resize is false; pictures come in any size, and the network takes one")
    resample = settings.get("resample", 3)
    if resample not in RESAMPLES:
        known = ", ".join(f"{number} ({name})" for number, name in RESAMPLES.items())
        raise UsageError(f"{where}: resample is {resample!r}; {known} are allowed")
    formats = settings.get("data_format") or "channels_first"
    if formats not in ("channels_first", "channels_last"):
        raise UsageError(f"{where}: data_format is {formats!r}; channels_first and channels_last are allowed")
    rescale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not _is_number(rescale) or rescale <= 0:
        raise UsageError(f"{where}: rescale_factor is {rescale!r}; a number above 0 is allowed")
    mean, std = _normalisation(settings, where)
    return PicturePreprocess(
        **_sides(settings, where), resample=RESAMPLES[resample], rescale=float(rescale), mean=mean, std=std,
        channels_last=formats == "channels_last", bgr=bool(settings.get("do_flip_channel_order")),
    )  # fmt: skip


def settings_of(how: PicturePreprocess, *, grey: bool = False) -> bytes:
    """The content of the file from which :func:`picture` reads the same."""
    target = {"height": how.height, "width": how.width}
    shorter = round(min(how.height, how.width) / how.crop_share)
    channels = 1 if grey else 3
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor" if how.fit == "squash" else "CLIPImageProcessor",
        "do_resize": True,
        "size": target if how.fit == "squash" else {"shortest_edge": shorter},
        "resample": next(number for number, name in RESAMPLES.items() if name == how.resample),
        "do_rescale": True,
        "rescale_factor": how.rescale,
        "do_normalize": True,
        "image_mean": how.mean[:channels],
        "image_std": how.std[:channels],
    }
    if how.fit == "crop":
        settings |= {"do_center_crop": True, "crop_size": target}
    if how.channels_last:
        settings["data_format"] = "channels_last"
    if how.bgr:
        settings["do_flip_channel_order"] = True
    return msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"


def pictured(
    graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...], how: PicturePreprocess, where: str
) -> tuple[TensorSpec, ...]:  # fmt: skip
    """The one input with its height, width and channels, which the graph is given too where it has them free.

    Args:
        graph: whose input takes that size from now on.
        inputs: of the graph.
        how: what pictures are made to.
        where: it stands, for messages.

    Raises:
        UsageError: the graph takes no pictures, or others.
    """
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[0] != BATCH:
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
        raise UsageError(f"{where} is of pictures, and the network takes {shapes}; one input of four axes, the batch "
                         "first, is wanted")  # fmt: skip
    shape = list(inputs[0].shape)
    place = 3 if how.channels_last else 1
    channels = shape[place] if isinstance(shape[place], int) else 3
    wanted: list[int | str] = [BATCH, how.height, how.width]
    wanted.insert(place, channels)
    fits = all(isinstance(have, str) or have == want for have, want in zip(shape, wanted, strict=True))
    if channels not in CHANNELS or not fits:
        raise UsageError(f"{where} gives {wanted[1:]}, and the network takes {shape[1:]} of 1 or 3 channels; its size, "
                         "crop_size or data_format (channels_first, channels_last) must agree")  # fmt: skip
    if channels == 1 and (len(set(how.mean)) > 1 or len(set(how.std)) > 1 or how.bgr):
        raise UsageError(f"{where}: image_mean, image_std and the order are of three channels, and the network takes "
                         "one")  # fmt: skip
    if inputs[0].dtype != "float32" and (how.rescale, set(how.mean), set(how.std)) != (1.0, {0.0}, {1.0}):
        raise UsageError(f"{where}: the network takes {inputs[0].dtype}, pixels from 0 to 255 as they are; do_rescale "
                         "and do_normalize must be false")  # fmt: skip
    for axis, length in list(zip(graph.input[0].type.tensor_type.shape.dim, wanted, strict=True))[1:]:
        axis.dim_value = int(length)
    return (msgspec.structs.replace(inputs[0], shape=tuple(wanted)),)


def _sides(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Height, width and what of the picture fills them."""
    if "size" not in settings:
        raise UsageError(f"{where} has no size; height and width, or shortest_edge with a crop_size, are wanted")
    size, crops = settings["size"], settings.get("do_center_crop", False)
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else size if crops else None
    if shorter is None:
        if crops:
            raise UsageError(f"{where}: size is {size!r} with do_center_crop; a shortest_edge is wanted")
        height, width = _square(size, "size", where)
        return {"height": height, "width": width}
    if not crops:
        raise UsageError(f"{where}: size is {size!r} without do_center_crop, which gives pictures of many sizes; "
                         "height and width are wanted, or a crop_size")  # fmt: skip
    if isinstance(size, Mapping) and set(size) != {"shortest_edge"}:
        raise UsageError(f"{where}: size is {dict(size)!r}; shortest_edge alone is allowed")
    height, width = _square(settings.get("crop_size"), "crop_size", where)
    if not _is_side(shorter) or shorter < max(height, width):
        raise UsageError(f"{where}: shortest_edge is {shorter!r}, and crop_size {height} x {width}; it must be as long "
                         "at least")  # fmt: skip
    return {"height": height, "width": width, "fit": "crop", "crop_share": min(height, width) / shorter}


def _square(size: Any, name: str, where: str) -> tuple[Any, Any]:
    """Height and width of what is a number, or names both."""
    sides = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    if (isinstance(size, Mapping) and set(size) != {"height", "width"}) or not all(_is_side(side) for side in sides):
        raise UsageError(f"{where}: {name} is {size!r}; a number of pixels from 1 to 4096, or height and width, are "
                         "allowed")  # fmt: skip
    return sides[0], sides[1]


def _normalisation(settings: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Mean and deviation of three channels."""
    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found = []
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        some: list[Any] = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
        if len(some) not in CHANNELS or not all(_is_number(value) for value in some) or (
            name == "image_std" and min(some) <= 0
        ):  # fmt: skip
            raise UsageError(f"{where}: {name} is {values!r}; one number or three are allowed (above 0 for image_std), "
                             "or do_normalize false")  # fmt: skip
        found.append(tuple(float(value) for value in (some * 3)[:3]))
    return found[0], found[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096
