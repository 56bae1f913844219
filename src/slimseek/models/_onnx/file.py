"""An ONNX file itself: which one is meant, whether it is whole, and whether ONNX Runtime knows what it asks for."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from slimseek.errors import UsageError, first_line
from slimseek.models._onnx.graph import FILE, IR_VERSION, LFS, OPSET, SUFFIX, _graphs, _opset, _tensors

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training")
RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


def _candidates(folder: Path) -> list[Path]:
    """The graphs of a folder and of its subfolder ``onnx``; only ``model.onnx`` where one is called so."""
    found = [path for place in (folder, folder / "onnx") for path in sorted(place.glob(f"*{SUFFIX}"))]
    return [path for path in found if path.name == FILE][:1] or found


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = _candidates(path)
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise UsageError(f"{path} needs one {SUFFIX} file or one called {FILE}; it has {names}; name the file you mean")
    return found[0]


def _read(file: Path) -> onnx.ModelProto:
    """The file with its external data, which must lie in its folder.

    Raises:
        UsageError: it is empty, a git-lfs pointer, cut off, no ONNX, or its data is not there.
    """
    if not file.is_file():
        raise UsageError(f"{file} is no file")
    with file.open("rb") as stream:
        start = stream.read(len(LFS))
    if not start:
        raise UsageError(f"{file} is empty")
    if start == LFS:
        raise UsageError(f"{file} is a git-lfs pointer, not the model itself; run: git lfs pull")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and whatever else a random file provokes
        raise UsageError(f"{file} is cut off or no ONNX file: {first_line(error)}") from error
    if not model.graph.node or not model.opset_import:
        raise UsageError(f"{file} is no ONNX file: it holds no graph")
    _check_data_files(model, file)
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # the library raises ValueError, OSError and its checker's own ValidationError
        raise UsageError(f"{file}: a data file beside it cannot be read: {first_line(error)}") from error
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _name_opsets_once_(model)
    _check_operators(model, file)
    model.ir_version = max(4, min(model.ir_version, IR_VERSION))
    del model.metadata_props[:]
    return model


def _name_opsets_once_(model: onnx.ModelProto) -> None:
    """One opset a domain, which converters leave out or name twice (skl2onnx for a linear model alone)."""
    opsets = {"": 0}
    for entry in model.opset_import:
        domain = entry.domain if entry.domain != "ai.onnx" else ""
        opsets[domain] = max(entry.version, opsets.get(domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version or OPSET) for domain, version in opsets.items())


def _check_data_files(model: onnx.ModelProto, file: Path) -> None:
    """Refuse weights that lie in files outside of the folder, or in files that are not there."""
    for tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UsageError(f"{file} asks for data outside of its folder: {place!r}; this is never read")
        if not (file.parent / place).is_file():
            raise UsageError(
                f"{file} keeps its weights in {place!r}, a data file beside it that is not there; copy both"
            )


def _check_operators(model: onnx.ModelProto, file: Path) -> None:
    """Refuse an opset from the future, and operators of nobody's that ONNX Runtime knows."""
    opset, newest = _opset(model), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise UsageError(f"{file} has opset {opset}; up to {newest} is known here; export it again with opset {OPSET}")
    nodes = [node for inner in _graphs(model.graph) for node in inner.node if node.domain not in RUNTIME_DOMAINS]
    strange = sorted({f"{node.domain}.{node.op_type}".strip(".") for node in nodes
                      if node.domain not in STANDARD_DOMAINS or not _is_standard(node)})  # fmt: skip
    if strange:
        raise UsageError(
            f"{file} has the custom operators {', '.join(strange)}, which ONNX Runtime does not know; export it again "
            f"with standard ones, or only the part before or behind them"
        )


def _is_standard(node: onnx.NodeProto) -> bool:
    try:
        return bool(onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain))
    except (TypeError, ValueError):  # a name that is no text
        return False
