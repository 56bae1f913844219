"""Networks of PyTorch to ``model.onnx`` and ``preprocessor_config.json``; the only place that runs a user's code."""

from __future__ import annotations

import importlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from slimseek import plugins
from slimseek.errors import UsageError, first_line
from slimseek.inputs.suffixes import PREPROCESSOR
from slimseek.models._array import picture_settings
from slimseek.models._export import IR_VERSION, OPSET
from slimseek.models._onnx.graph import FILE
from slimseek.preprocess import PicturePreprocess

INPUT, OUTPUT = "pixels", "features"
ROWS = 3
LARGEST_DIFFERENCE = 1e-3
"""Of an element, as a share of the largest where that is above 1."""
ATTRIBUTE = "preprocessor"
RESAMPLES = {name: number for number, name in picture_settings.RESAMPLES.items()}


class Features(nn.Module):
    """The mean of the last features of an EfficientNet, [n, 1280], in place of its classes."""

    def __init__(self, network: nn.Module) -> None:
        """``network`` has a method ``extract_features``."""
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures [n, 3, height, width] to vectors."""
        vectors: torch.Tensor = self.network.extract_features(pixels).mean((2, 3))  # type: ignore[operator]
        return vectors


def efficientnet(name: str, weights: Path) -> nn.Module:
    """The network of a package with its weights, which are read as tensors alone."""
    network = plugins.require("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return Features(network)


def from_timm(source: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """``timm:NAME`` with its pretrained weights up to the pooled features, and its preprocessing.

    Raises:
        UsageError: timm does not know it, its weights cannot be had, or its pictures are cut in another way than here.
    """
    timm, name = plugins.require("timm"), source.partition(":")[2]
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # no such name, no weights, no hub: each library raises kinds of its own
        raise UsageError(f"{source} cannot be had with its weights: {first_line(error)}; weights at hand are loaded by "
                         "a function of yours, named package.module:function") from error  # fmt: skip
    config = plugins.require("timm.data").resolve_model_data_config(network)
    return network, timm_settings(config, source)


def timm_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A data configuration of timm's in the words of ``preprocessor_config.json``.

    Raises:
        UsageError: pictures that are not square, or cut in another way than from the middle.
    """
    _, height, width = config["input_size"]
    share, mode = config.get("crop_pct") or 1.0, config.get("crop_mode", "center")
    if height != width or (mode != "center" and share != 1.0) or config["interpolation"] not in RESAMPLES:
        raise UsageError(
            f"{source} takes pictures of {height} x {width}, crop_mode {mode!r}, interpolation "
            f"{config['interpolation']!r}; squares, center and {', '.join(RESAMPLES)} are known"
        )
    shorter = math.floor(height / share)
    sides = {"size": {"shortest_edge": shorter}, "do_center_crop": True, "crop_size": height}
    return {**({"size": height} if mode == "squash" else sides), "resample": RESAMPLES[config["interpolation"]],
            "image_mean": list(config["mean"]), "image_std": list(config["std"])}  # fmt: skip


def function(source: str) -> Callable[[], Any]:
    """The function that ``package.module:function`` names.

    Raises:
        UsageError: there is no such module or function, or importing it fails.
    """
    name, _, wanted = source.partition(":")
    with _current_folder_importable():
        try:
            found = getattr(importlib.import_module(name), wanted, None)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{source}: there is no module {error.name}, neither installed nor in {Path.cwd()}"
            ) from error
        except Exception as error:  # the user's own code
            raise UsageError(f"{source} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    if not callable(found):
        raise UsageError(f"{source}: {name} has no function {wanted}")
    return found


def made_by(make: Callable[[], Any], source: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """What a user's function gives: a network with the attribute ``preprocessor``, or the network and these settings.

    Raises:
        UsageError: it fails, or gives something else.
    """
    with _current_folder_importable():
        try:
            made = make()
        except Exception as error:  # the user's own code
            raise UsageError(f"{source} failed: {type(error).__name__}: {first_line(error)}") from error
    network, settings = made if isinstance(made, tuple) and len(made) == 2 else (made, getattr(made, ATTRIBUTE, None))
    if not isinstance(network, nn.Module):
        raise UsageError(f"{source} gives {type(network).__name__}; an nn.Module, or a pair of it and its settings, is "
                         "wanted")  # fmt: skip
    if not isinstance(settings, Mapping):
        raise UsageError(f"{source} does not say how pictures become its input: give the network an attribute "
                         f"{ATTRIBUTE}, a dict as in {PREPROCESSOR} (size, image_mean, image_std)")  # fmt: skip
    return network, settings


def write(network: nn.Module, settings: Mapping[str, Any], folder: Path, source: str) -> None:
    """Export in evaluation mode, which is undone afterwards, with a free batch; compared with PyTorch on a few items.

    Args:
        network: gives vectors [n, dim] of pictures [n, channels, height, width], or the channels last.
        settings: of its pictures.
        folder: for both files.
        source: for messages.

    Raises:
        UsageError: the settings are wrong, PyTorch cannot trace it, or the graph gives something else.
    """
    how = picture_settings.picture(settings, f"{source}, {ATTRIBUTE}")
    mean = settings.get("image_mean")
    grey = isinstance(mean, list | tuple) and len(mean) == 1
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        model = _exported(network, _examples(network, how, grey), source)
    finally:
        for module, mode in modes.items():
            module.training = mode
    onnx.save(model, folder / FILE)
    (folder / PREPROCESSOR).write_bytes(picture_settings.settings_of(how, grey=grey))


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Modules of the current folder can be imported, after all others."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _examples(network: nn.Module, how: PicturePreprocess, grey: bool) -> torch.Tensor:
    """Random pictures, [3, ...], in the network's dtype and where it lies."""
    channels = 1 if grey else 3
    shape = (how.height, how.width, channels) if how.channels_last else (channels, how.height, how.width)
    first = next(network.parameters(), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    return torch.randn((ROWS, *shape), generator=generator).to(first.device, first.dtype)


def _exported(network: nn.Module, pixels: torch.Tensor, source: str) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            expected = network(pixels)
            program = torch.onnx.export(
                network, args=(pixels,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},), external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:  # of the user's network, or of what the exporter cannot trace
            raise UsageError(f"{source} cannot be exported to ONNX: {first_line(error)}") from error
    if not isinstance(expected, torch.Tensor) or expected.ndim != 2:
        shape = list(expected.shape) if isinstance(expected, torch.Tensor) else type(expected).__name__
        raise UsageError(f"{source} gives {shape} for {ROWS} pictures; one vector of each, [{ROWS}, n], is wanted")
    assert program is not None
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {INPUT: pixels.cpu().numpy()})[0]
    wanted = expected.cpu().numpy()
    largest = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else math.inf
    if not largest <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(wanted).max())):
        raise UsageError(f"{source} gives other vectors in ONNX than in PyTorch (largest difference {largest:.3g})")
    return model
