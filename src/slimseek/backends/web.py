"""The web: a static folder whose page searches in the browser, by ONNX Runtime in WebAssembly; no server computes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from slimseek.bases import Backend
from slimseek.inputs.text import TOKENIZER
from slimseek.plugins import load, require
from slimseek.schema import Array, Encode, Model, Precision
from slimseek.timing import versions

if TYPE_CHECKING:
    import onnx


class Web(Backend):
    """The graph of the target onnxruntime, byte for byte, with a page, the runtime's WebAssembly and a tokenizer."""

    local: ClassVar[bool] = False
    most_documents: ClassVar[int] = 20_000

    def available(self) -> str | None:
        """Whether npm has brought the modules that a package copies."""
        return require("slimseek.backends._web.files").missing()  # type: ignore[no-any-return]

    def runs(self) -> str | None:
        """Whether node is there, which runs the package's own files as a browser does."""
        if shutil.which("node") is None:
            return require("slimseek.backends._web.node").NO_NODE  # type: ignore[no-any-return]
        return self.available()

    def versions(self) -> dict[str, str]:
        """The modules that are copied, and the runtime whose graph it is."""
        return require("slimseek.backends._web.files").installed() | versions(("onnxruntime",))

    def preflight(self, model: Model) -> None:
        """Refuse a model whose weights a browser's memory does not hold."""
        require("slimseek.backends._web.files").check_fits(model)

    def lowered(self, graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
        """As for onnxruntime: its build for WebAssembly has the same operators."""
        return _native().lowered(graph, model)

    def export(self, model: Model, folder: Path, ready: None = None) -> None:
        """Write onnxruntime's ``model.onnx``, copy the page and the modules, and compare the two tokenizers.

        Raises:
            UsageError: the tokenizer gives other ids in JavaScript than in Python.
        """
        web = require("slimseek.backends._web.files")
        self.preflight(model)
        _native().export(model, folder)
        web.copy(folder)
        if TOKENIZER in model.files:
            (folder / TOKENIZER).write_bytes(model.files[TOKENIZER])
        web.write_settings(folder, model.spec)
        if model.spec.preprocess is not None and self.runs() is None:
            require("slimseek.backends._web.node").check_tokenizer(folder, model)

    def beside(self) -> int:
        """The runtime's WebAssembly, the tokenizer's module and the page."""
        return require("slimseek.backends._web.files").copied_bytes()  # type: ignore[no-any-return]

    def hold(self, folder: Path, vectors: Array, corpus: Mapping[str, str], *, precision: Precision = "int8") -> None:
        """Write ``index.bin`` and ``index.json``, which the page searches.

        Args:
            folder: a package.
            vectors: float32 [documents, dim].
            corpus: document id to text, in the order of the vectors.
            precision: ``int8``, with a middle and a step for each dimension, or ``f32``.
        """
        require("slimseek.backends._web.index").write(folder, vectors, corpus, precision)

    def open(self, folder: Path, threads: int) -> Encode:
        """Run the package in node, in one thread, as in a page that is not cross-origin isolated.

        Raises:
            UsageError: there is no node, or it cannot load or run the graph.
        """
        return require("slimseek.backends._web.node").Node(folder).run  # type: ignore[no-any-return]

    def stand_in(self, folder: Path, threads: int) -> Encode:
        """The same graph in the native ONNX Runtime."""
        return _native().open(folder, threads)

    def stored(self, folder: Path) -> Mapping[str, Array]:
        """What stands in ``model.onnx``, as for onnxruntime."""
        return _native().stored(folder)


def _native() -> Backend:
    """The target whose graph this is."""
    found: Backend = load("backends", "onnxruntime")()
    return found
