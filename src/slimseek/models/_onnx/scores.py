"""The end of a network that gives scores of tokens for each frame, and the names of the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from slimseek.errors import UsageError
from slimseek.inputs.arrays import BATCH
from slimseek.inputs.vocabulary import FILE, Vocabulary
from slimseek.models._onnx.graph import OUTPUT, _rename_, _Writer
from slimseek.preprocess import Decoding
from slimseek.schema import ModelSpec


def beside(file: Path) -> dict[str, bytes]:
    """The file of tokens beside an ``.onnx`` file, by its name; nothing without one."""
    place = file.parent / FILE
    return {FILE: place.read_bytes()} if place.is_file() else {}


def end_in_scores_(
    model: onnx.ModelProto, spec: ModelSpec, values: Sequence[np.ndarray], file: Path, tokens: Mapping[str, bytes]
) -> ModelSpec:  # fmt: skip
    """Make one output [batch, frames, tokens] of float32 the graph's only one, called ``vector``; the spec with it.

    Args:
        model: the graph.
        spec: of its inputs.
        values: its outputs for some items.
        file: it was read from, for messages.
        tokens: as :func:`beside` gives them.

    Raises:
        UsageError: no output has as many scores as there are tokens.
    """
    vocabulary = Vocabulary(tokens[FILE], str(file.parent / FILE))
    given = dict(zip([value.name for value in model.graph.output], values, strict=True))
    fitting = [name for name, value in given.items()
               if value.dtype == np.float32 and value.ndim == 3 and value.shape[2] == len(vocabulary)]  # fmt: skip
    if not fitting:
        shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in given.items())
        raise UsageError(f"{file} gives {shapes}; one output [batch, frames, {len(vocabulary)}], a score for each "
                         f"token of {FILE}, is wanted")  # fmt: skip
    write = _Writer(model)
    renamed = write.fresh(OUTPUT)
    _rename_(model.graph, {OUTPUT: renamed})
    write.node("Identity", [renamed if fitting[0] == OUTPUT else fitting[0]], OUTPUT)
    del model.graph.output[:]
    shape = (BATCH, "frames", len(vocabulary))
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape))
    return msgspec.structs.replace(
        spec, output="transcript", dim=len(vocabulary), decoding=Decoding(kind="ctc", end=vocabulary.blank)
    )
