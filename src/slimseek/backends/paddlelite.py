"""Paddle Lite: a .nb file for every batch and length, written by a second interpreter, for x86, which it runs, and for
arm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slimseek import setup
from slimseek.backends._paddlelite.format import PREFIX
from slimseek.backends._paddlelite.nb import read
from slimseek.backends._paddlelite.package import Fed, Settings, part, tensor
from slimseek.backends._paddlelite.process import SECONDS_TO_BUILD, SECONDS_TO_RUN, Worker
from slimseek.bases import Backend
from slimseek.errors import UsageError
from slimseek.folder import read_json, write_json
from slimseek.plugins import load, require
from slimseek.progress import say
from slimseek.schema import Array, Batch, Encode, Model

if TYPE_CHECKING:
    import onnx

NAME = "paddlelite"
FILE, FOR_ARM = "model.nb", "model.arm.nb"
FED = "model.fed.npz"
SETTINGS = "paddlelite.json"


class PaddleLite(Backend):
    """``model.nb`` for x86, ``model.arm.nb`` for phones and boards, which nothing here runs, what grows with a text in
    ``model.fed.npz``, and names in ``paddlelite.json``.
    """

    elsewhere: ClassVar[frozenset[str]] = frozenset((FOR_ARM,))

    def available(self) -> str | None:
        """Whether there is a second interpreter with the library."""
        return setup.missing(NAME)

    def versions(self) -> dict[str, str]:
        """The library, and the interpreter that has it."""
        return setup.versions(NAME)

    def preflight(self, model: Model) -> onnx.ModelProto:
        """Refuse operators that have no form here."""
        graph: onnx.ModelProto = load("models", model.spec.family)().to_onnx(model)
        unknown = require("slimseek.backends._paddlelite.convert").unknown(graph)
        if unknown:
            raise UsageError(f"paddlelite: no form for {', '.join(unknown)} here; deploy for onnxruntime instead")
        return graph

    def export(self, model: Model, folder: Path, ready: onnx.ModelProto | None = None) -> None:
        """Convert the float graph with the model's integers, let the library optimize it, write what goes with it."""
        graph = load("models", model.spec.family)().to_onnx(model) if ready is None else ready
        converted = require("slimseek.backends._paddlelite.convert").convert(graph, model)
        with tempfile.TemporaryDirectory() as temporary:
            files = {"model": Path(temporary) / "model", "parameters": Path(temporary) / "parameters"}
            files["model"].write_bytes(converted.program)
            files["parameters"].write_bytes(converted.parameters)
            order = {"do": "build", "integers": converted.integers} | {name: str(file) for name, file in files.items()}
            _built(order | {"for": "X86", "out": str((folder / FILE).resolve())})
            try:
                _built(order | {"for": "ARM", "out": str((folder / FOR_ARM).resolve())})
                no_arm = ""
            except UsageError as error:  # fewer operators have kernels there
                no_arm = str(error)
                say(f"no file for arm: {no_arm}")
        if converted.fed:
            np.savez_compressed(folder / FED, **{name: fed.whole for name, fed in converted.fed.items()})
        longest = model.spec.preprocess.max_length if model.spec.preprocess else 0
        fed_axes = {name: fed.axes for name, fed in converted.fed.items()}
        settings = Settings(dim=model.spec.dim, longest=longest, fed=fed_axes, tensors=dict(converted.kept),
                            not_executed=() if no_arm else (FOR_ARM,), no_arm=no_arm)  # fmt: skip
        write_json(folder / SETTINGS, settings)

    def open(self, folder: Path, threads: int) -> Encode:
        """Start the second interpreter and load the file there."""
        settings = read_json(folder / SETTINGS, Settings)
        fed = _fed(folder, settings)
        worker = Worker(setup.python(NAME), threads=threads)
        order = {"do": "open", "model": str((folder / FILE).resolve()), "threads": threads}
        worker.ask(order, seconds=SECONDS_TO_RUN)

        def encode(batch: Batch) -> Array:
            count = len(next(iter(batch.values())))
            if not count:
                return np.zeros((0, settings.dim), np.float32)
            length = next(iter(batch.values())).shape[1] if settings.longest else 0
            if length > settings.longest:
                raise UsageError(f"a row has {length} tokens; the package takes at most {settings.longest}")
            if not worker.alive:  # it ended while it ran something else
                worker.ask(order, seconds=SECONDS_TO_RUN)
            inputs = batch | {name: part(one, count, length) for name, one in fed.items()}
            named = {PREFIX + name: array for name, array in inputs.items()}
            return worker.ask({"do": "run"}, named, seconds=SECONDS_TO_RUN)[1]["vector"]

        return encode

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """The integers in ``model.nb``, or their values where a tensor has a grid of its own there."""
        parameters, scales = read(folder / FILE)
        kept = read_json(folder / SETTINGS, Settings).tensors
        return {name: tensor(one, parameters, scales) for name, one in kept.items()}


def _built(order: Mapping[str, object]) -> None:
    """A file, written by a process of its own: one that the library ends takes no other with it."""
    worker = Worker(setup.python(NAME))
    try:
        worker.ask(order, seconds=SECONDS_TO_BUILD)
    finally:
        worker.close()


def _fed(folder: Path, settings: Settings) -> dict[str, Fed]:
    if not settings.fed:
        return {}
    with np.load(folder / FED, allow_pickle=False) as arrays:
        return {name: Fed(whole=arrays[name], axes=axes) for name, axes in settings.fed.items()}
