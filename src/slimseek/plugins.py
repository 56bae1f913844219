"""Plug-ins: one file a plug-in, one class a file; the file's name is the plug-in's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from slimseek.errors import MissingExtra, UsageError

EXTRAS = {
    "torch": "text",
    "transformers": "text",
    "onnx": "text",
    "onnxscript": "text",
    "onnxslim": "text",
    "openvino": "openvino",
    "ai_edge_litert": "litert",
    "flatbuffers": "litert",
    "executorch": "executorch",
    "torchao": "executorch",
    "tensorrt_rtx": "tensorrt",
    "jiwer": "speech",
    "usearch": "index",
    "faiss": "faiss",
    "psycopg": "pgvector",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "threadpoolctl": "serve",
    "altair": "report",
    "vl_convert": "report",
    "jinja2": "report",
    "optuna": "budget",
    "ray": "ray",
    "pyarrow": "ray",
    "grpc": "ray",
    "aiohttp": "ray",
    "PIL": "image",
    "timm": "timm",
    "torchvision": "timm",
}


@cache
def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of a folder of the package, such as ``"metrics"`` or ``"methods"``, sorted.

    Methods stand one folder deeper and are named ``family.method``, for example ``quantize.weights_int``.
    """
    package = importlib.import_module(f"slimseek.{folder}")
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        if module.ispkg:
            found += [f"{module.name}.{name}" for name in names(f"{folder}.{module.name}")]
        else:
            found.append(module.name)
    return tuple(sorted(found))


@cache
def load(folder: str, name: str) -> type[Any]:
    """The one public class that the plug-in's file defines.

    Raises:
        UsageError: there is no such plug-in; the text lists those there are.
        MissingExtra: the plug-in needs a library that is not installed.
    """
    if name not in names(folder):
        raise UsageError(f"unknown {_singular(folder)} {name!r}; known: {', '.join(names(folder))}")
    module = require(f"slimseek.{folder}.{name}")
    classes = [
        member
        for key, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__ and not key.startswith("_")
    ]
    assert len(classes) == 1, f"{module.__name__} must define exactly one public class, found {classes}"
    return classes[0]


def require(module: str) -> Any:
    """Import a module by name; a library of an extra that is absent raises :class:`MissingExtra`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or module).partition(".")[0]
        if library in EXTRAS:
            raise MissingExtra(library, EXTRAS[library]) from None
        raise


def _singular(folder: str) -> str:
    return {"indexes": "index", "methods": "method"}.get(folder, folder.removesuffix("s"))
