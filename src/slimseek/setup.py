"""Interpreters of their own for runtimes and converters that do not install beside slimseek.

Each target has a virtual environment in the user's data folder, made by :func:`install`. An environment variable can
name another interpreter that has the packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from slimseek.errors import UsageError
from slimseek.value import Value

LOOK = "import json,sys;from importlib import metadata;print(json.dumps([metadata.version(n) for n in sys.argv[1:]]))"
SECONDS_TO_LOOK, SECONDS_TO_INSTALL = 60, 1800


class Target(Value, frozen=True):
    """What an environment holds.

    Attributes:
        pythons: versions of CPython that the packages have wheels for, the best first.
        packages: name to the requirement that pip installs.
        variable: the environment variable that names an interpreter to take instead.
    """

    pythons: tuple[str, ...]
    packages: dict[str, str]
    variable: str

    @property
    def range(self) -> str:
        """The versions in words."""
        ordered = sorted(self.pythons, key=lambda version: int(version.partition(".")[2]))
        return f"CPython {ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else f"CPython {ordered[0]}"


TARGETS = {
    "paddlelite": Target(
        pythons=("3.10", "3.9", "3.8"),
        packages={"paddlelite": "paddlelite==2.13rc0", "numpy": "numpy>=1.24,<2"},
        variable="SLIMSEEK_PADDLELITE_PYTHON",
    ),
    "paddle": Target(
        pythons=("3.11",),
        packages={
            "paddle2onnx": "paddle2onnx==2.1.0",
            "paddlepaddle": "paddlepaddle==3.3.1",
            "packaging": "packaging==26.4",
        },
        variable="SLIMSEEK_PADDLE_PYTHON",
    ),
}


def folder(target: str) -> Path:
    """Where what a target needs beside slimseek is or would be: below ``$XDG_DATA_HOME``, by default ~/.local/share."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "slimseek" / target


def python(target: str) -> Path:
    """The interpreter of a target, whether it is there or not."""
    given = os.environ.get(_known(target).variable)
    return Path(given) if given else _inside(folder(target))


def missing(target: str) -> str | None:
    """``None`` where the target's packages are there, else the reason and the remedy."""
    found = _versions(target, python(target))
    if len(found) == len(_known(target).packages):
        return None
    return f"no {_known(target).range} with {next(iter(_known(target).packages))}; run: slimseek setup {target}"


def versions(target: str) -> dict[str, str]:
    """Versions of the target's first package; empty where it is not there."""
    first = next(iter(_known(target).packages))
    return {name: version for name, version in _versions(target, python(target)).items() if name == first}


def install(target: str, chosen: str = "") -> Path:
    """Make the target's environment anew and install its packages.

    Args:
        target: one of ``TARGETS``.
        chosen: path of the CPython to make it with; found by name and by pyenv where it is empty.

    Returns:
        The environment's interpreter.

    Raises:
        UsageError: an unknown target, no CPython that the packages have wheels for, or pip failed.
    """
    wanted, place = _known(target), folder(target)
    base = next((one for one in ([chosen] if chosen else _candidates(wanted)) if _version(one) in wanted.pythons), None)
    if base is None:
        tried = f"{chosen} is {_version(chosen) or 'none'}" if chosen else "none is on the PATH or in pyenv"
        raise UsageError(f"{target} needs {wanted.range}, {tried}; install one and name it with --python")
    if place.exists():
        if not (place / "pyvenv.cfg").is_file():
            raise UsageError(f"{place} is there and is no virtual environment; move it away")
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([base, "-m", "venv", str(place)])
    pip = [str(_inside(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *wanted.packages.values()])
    _versions.cache_clear()
    return _inside(place)


def paddle_to_onnx(program: str | Path, out: str | Path) -> None:
    """Convert an inference model of PaddlePaddle into an ``.onnx`` file, in the interpreter of the target ``paddle``.

    Args:
        program: ``NAME.pdmodel``; the parameters lie beside it in ``NAME.pdiparams``.
        out: file to write.

    Raises:
        UsageError: a file or the interpreter is missing, or the converter does not know an operator.
    """
    source, parameters = Path(program), Path(program).with_suffix(".pdiparams")
    for file in (source, parameters):
        if not file.is_file():
            raise UsageError(f"there is no {file}; a model of PaddlePaddle is NAME.pdmodel and NAME.pdiparams")
    reason = missing("paddle")
    if reason is not None:
        raise UsageError(reason)
    # Its tools for folding constants install themselves from an index of their own; slimseek folds them anyway.
    named = {"model_dir": source.parent, "model_filename": source.name, "params_filename": parameters.name,
             "save_file": out, "opset_version": 17, "optimize_tool": None}  # fmt: skip
    options = [text for name, value in named.items() for text in (f"--{name}", str(value))]
    _run([str(python("paddle").with_name("paddle2onnx")), *options])
    if not Path(out).is_file():
        raise UsageError(f"paddle2onnx wrote nothing for {source}")


def _known(target: str) -> Target:
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}; slimseek setup knows: {', '.join(TARGETS)}")
    return TARGETS[target]


def _inside(place: Path) -> Path:
    return place / "Scripts" / "python.exe" if sys.platform == "win32" else place / "bin" / "python"


def _candidates(target: Target) -> Iterator[str]:
    """Interpreters that may fit: those on the PATH by name, then pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in target.pythons:
        found = shutil.which(f"python{version}")
        if found:
            yield found
        yield from (str(path / "bin" / "python") for path in sorted(root.glob(f"{version}.*"), reverse=True))


def _version(interpreter: str) -> str:
    """Such as ``3.10`` for a CPython; empty for anything else."""
    code = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [interpreter, "-c", code], capture_output=True, text=True, timeout=SECONDS_TO_LOOK, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    name, _, version = done.stdout.strip().partition(" ")
    return version if done.returncode == 0 and name == "cpython" else ""


@cache
def _versions(target: str, interpreter: Path) -> dict[str, str]:
    """Versions of the target's packages in an interpreter; empty where one of them is missing."""
    names = list(_known(target).packages)
    if not interpreter.is_file():
        return {}
    try:
        done = subprocess.run([str(interpreter), "-c", LOOK, *names], capture_output=True, text=True,
                              timeout=SECONDS_TO_LOOK, check=False)  # fmt: skip
        return dict(zip(names, json.loads(done.stdout), strict=True)) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise UsageError(f"{' '.join(command[1:4])} failed: {lines[-1]}")
