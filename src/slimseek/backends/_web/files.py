"""What packages for the web are made of: our page, npm's modules, and what the page must know of the model."""

from __future__ import annotations

import contextlib
import os
import shutil
from importlib import resources
from pathlib import Path

import msgspec

from slimseek import setup
from slimseek.errors import UsageError
from slimseek.folder import read_json, write_json
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import stored_bytes
from slimseek.preprocess import TextPreprocess
from slimseek.schema import Model, ModelSpec, OutputKind
from slimseek.value import Value

MODULES = "SLIMSEEK_WEB_MODULES"
"""Environment variable that names the folder in which npm installed the modules."""
INDEX = ("index.bin", "index.json")
PAGE = ("index.html", "style.css", "app.mjs", "words.mjs", "search.mjs")
RUNTIME = "ort-wasm-simd-threaded.wasm"
COPIED = {
    "onnxruntime-web": {"dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs", f"dist/{RUNTIME}": RUNTIME},
    "@huggingface/tokenizers": {"dist/tokenizers.min.mjs": "tokenizers.min.mjs", "LICENSE": "tokenizers.LICENSE"},
}
"""Module to those of its files that a package holds, and their names in it."""
SETTINGS = "page.json"
LOADED = ("model.onnx", TOKENIZER, RUNTIME, *INDEX)
MOST_BYTES = 2**30
"""Of weights: WebAssembly addresses four times as much, and holds them twice while it loads them."""


class Settings(Value, frozen=True):
    """What ``page.json`` tells the page.

    Attributes:
        inputs: names of the model's inputs.
        output: what the model gives.
        dim: elements of a vector.
        text: how a text becomes ids; ``None`` for a model that takes arrays.
        documents: how many the package holds; 0 for none.
        bytes: of the files that a visitor loads, by their name.
    """

    inputs: tuple[str, ...]
    output: OutputKind
    dim: int
    text: TextPreprocess | None
    documents: int
    bytes: dict[str, int]


def page_file(name: str) -> Path:
    """A file of ours that lies in slimseek itself."""
    return Path(str(resources.files("slimseek") / "page" / "web" / name))


def modules() -> Path:
    """The folder with ``node_modules``: the one that the environment names, else one among the user's data."""
    named = os.environ.get(MODULES)
    return Path(named) if named else setup.folder("web")


def installed() -> dict[str, str]:
    """Versions of the modules that are there with every file that a package copies."""
    found = {}
    for module, files in COPIED.items():
        folder = modules() / "node_modules" / module
        if all((folder / file).is_file() for file in files):
            with contextlib.suppress(OSError, msgspec.MsgspecError, KeyError):
                found[module] = str(msgspec.json.decode((folder / "package.json").read_bytes())["version"])
    return found


def missing() -> str | None:
    """``None`` where every module is there, else which is not and the command that brings it."""
    found = installed()
    absent = [module for module in COPIED if module not in found]
    if not absent:
        return None
    wanted = msgspec.json.decode(page_file("package.json").read_bytes())["dependencies"]
    pinned = " ".join(f"{module}@{wanted[module]}" for module in COPIED)
    return f"{' and '.join(absent)} not found in {modules()}; run: npm install --prefix {modules()} {pinned}"


def check_fits(model: Model) -> None:
    """Refuse a model of more than 1 GiB.

    Raises:
        UsageError: with its size, and the target that takes it.
    """
    size = sum(stored_bytes(tensor) for tensor in model.tensors.values())
    if size > MOST_BYTES:
        raise UsageError(
            f"web: the weights take {size / 2**30:.1f} GiB; a page can load 1 GiB: compress the model further, or "
            "deploy for onnxruntime"
        )


def _sources() -> dict[str, Path]:
    """The files that every package holds, by their name in it."""
    found = {name: page_file(name) for name in PAGE}
    for module, files in COPIED.items():
        found |= {name: modules() / "node_modules" / module / file for file, name in files.items()}
    return found


def copy(folder: Path) -> None:
    """The page and npm's modules, into an existing folder."""
    for name, source in _sources().items():
        shutil.copyfile(source, folder / name)


def copied_bytes() -> int:
    """Bytes of what :func:`copy` writes; 0 for what is not there."""
    return sum(source.stat().st_size for source in _sources().values() if source.is_file())


def write_settings(folder: Path, spec: ModelSpec) -> None:
    """Write ``page.json``, when all that the page loads is there."""
    settings = Settings(
        inputs=tuple(tensor.name for tensor in spec.inputs),
        output=spec.output,
        dim=spec.dim,
        text=spec.preprocess,
        documents=0,
        bytes=_sizes(folder),
    )
    write_json(folder / SETTINGS, settings)


def with_documents(folder: Path, documents: int) -> None:
    """Tell the page that the package holds so many documents now."""
    settings = read_json(folder / SETTINGS, Settings)
    write_json(folder / SETTINGS, msgspec.structs.replace(settings, documents=documents, bytes=_sizes(folder)))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files that a visitor loads, beside the page."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name in LOADED}
