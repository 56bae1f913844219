"""Any network that is an ``.onnx`` file and takes arrays: image and sound networks, whatever framework made them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek import reading
from slimseek.errors import UsageError, first_line
from slimseek.inputs.arrays import BATCH, ArrayInput
from slimseek.inputs.samples import examples
from slimseek.inputs.suffixes import PREPROCESSOR
from slimseek.models._array import picture_settings, sound_settings
from slimseek.models._onnx import head, scores
from slimseek.models._onnx.classic import _make_classic_standard_
from slimseek.models._onnx.family import OnnxFamily
from slimseek.models._onnx.file import _candidates, _file, _read
from slimseek.models._onnx.graph import (
    GRAPH,
    OUTPUT,
    SUFFIX,
    _dense,
    _graph,
    _is_convolution,
    _is_table,
    _layers,
    _linear_axis,
    _quantizing_operators,
    _rename_,
    _session,
    _uses,
    _Writer,
)
from slimseek.models._onnx.reading import _prune_, _take_tidied_weights_
from slimseek.models._text import files as text_files
from slimseek.schema import Model, ModelSpec, TensorSpec

PREFERRED = ("embedding", "features", "vector", "logits")
TEXT_INPUTS = {tensor.name for tensor in text_files.INPUTS}
ROWS_TRIED = 3
LENGTHS = (512, 256, 128, 64, 32, 16, 1024, 8, 4, 2, 1)
MOST_TRIED = 16
INTEGERS = (TensorProto.INT32, TensorProto.INT64)


class OnnxArray(OnnxFamily):
    """Items are arrays as the network takes them. The vector is its output called ``embedding``, ``features``,
    ``vector`` or ``logits``, else the only one of shape [batch, n]; it is brought to length one, since search compares
    by inner product (the largest logit stays the largest). With the names of classes beside it (``classes.json``, a
    list), it gives their logits as they are.

    An axis that all inputs have first and that is not fixed, or is called batch, is the batch. Batch norms are folded
    into the layers before them.

    With ``preprocessor_config.json`` beside it, as transformers' image processors have it, the items are pictures;
    with a ``sampling_rate`` in it, as feature extractors have it, they are recordings. With ``vocab.json``, too, an
    output [batch, frames, tokens] is a transcript (CTC).
    """

    def recognises(self, path: Path) -> bool:
        """An ``.onnx`` file, or a folder with one, that does not take token ids."""
        if path.is_dir():
            return not any(path.glob("*.safetensors")) and any(self.recognises(file) for file in _candidates(path)[:1])
        if not path.is_file() or path.suffix.lower() != SUFFIX:
            return False
        try:
            graph = onnx.load(path, load_external_data=False).graph
        except Exception:  # no ONNX file, or a broken one: the family of texts says so
            return False
        names = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
        return bool(graph.node) and not names & TEXT_INPUTS

    def open(self, path: Path) -> Model:
        """Read the graph and its data files, run it once to know what it gives."""
        file = _file(path)
        model = _read(file)
        _make_classic_standard_(model)
        inputs = _inputs_(model.graph, file)
        _keep_tensors_(model.graph, file)
        weights = _take_tidied_weights_(model, file)
        spec = ModelSpec(
            family="onnx_array", modality="array", output="embedding", inputs=inputs, dim=0, normalised=False,
            preprocess=None,
        )  # fmt: skip
        classes, spec = head.classes(file), _preprocessed_(model.graph, spec, file.parent / PREPROCESSOR)
        spoken = scores.beside(file) if spec.sound else {}
        if spoken:
            spec = scores.end_in_scores_(model, *_tried(model, _dense(weights), spec, file), file, spoken)
        else:
            spec = _end_in_vector_(model, _dense(weights), spec, file, classes)
        weights = _prune_(model.graph, weights)
        spec = msgspec.structs.replace(spec, inputs=_keep_used_(model.graph, spec.inputs))
        files = {GRAPH: model.SerializeToString(deterministic=True)} | head.file_of(classes) | spoken
        return Model(spec=spec, files=files, tensors=dict(weights), layers=_layers(model.graph, weights))

    def classifier(self, model: Model, classes: Sequence[str], seed: int) -> Model:
        """A linear layer on the vector as it was before it was brought to length one."""
        return head.added(model, classes, seed)

    def macs(self, model: Model, length: int) -> int:
        """Of one random item; ``length`` is for texts. Branches of an If and bodies of a Loop are left out."""
        return sum(self.layer_macs(model, length).values())

    def layer_macs(self, model: Model, length: int) -> dict[str, int]:
        """Each convolution and linear layer as often as the network computes it."""
        graph, weights = _graph(model), _dense(model.tensors)
        nodes = [node for node in graph.graph.node
                 if _is_convolution(node, weights) or _linear_axis(node, weights) is not None]  # fmt: skip
        if not nodes:
            return {layer.weight: 0 for layer in model.layers}
        del graph.graph.output[:]
        graph.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
        values = _session(graph, weights, threads=0)(ArrayInput(model.spec)(examples(model.spec)[:1]))
        found = {layer.weight: 0 for layer in model.layers}
        for node, value in zip(nodes, values, strict=True):
            weight = weights[node.input[1]]
            found[node.input[1]] += value.size // weight.shape[_linear_axis(node, weights) or 0] * weight.size
        return found


def _preprocessed_(graph: onnx.GraphProto, spec: ModelSpec, place: Path) -> ModelSpec:
    """The spec of a network whose items are recordings, where its settings have a sampling rate, or else pictures; as
    it is without settings.
    """
    if not place.is_file():
        return spec
    try:
        settings = reading.decoded(place.read_bytes(), dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{place} is not a JSON object of settings: {error}") from error
    if "sampling_rate" in settings:
        sound = sound_settings.sound(settings, spec.inputs, str(place))
        return msgspec.structs.replace(spec, modality="speech", sound=sound)
    how = picture_settings.picture(settings, str(place))
    inputs = picture_settings.pictured(graph, spec.inputs, how, str(place))
    return msgspec.structs.replace(spec, modality="image", picture=how, inputs=inputs)


def _inputs_(graph: onnx.GraphProto, file: Path) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes; the batch axis by its name, else the first free one. Defaults are no inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(given)
    found = tuple(_input(value, file) for value in given)
    if not any(BATCH in tensor.shape for tensor in found):
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in found)
        raise UsageError(f"{file} takes {shapes}: no axis is free for a batch; export it again with a dynamic one")
    return found


def _input(value: onnx.ValueInfoProto, file: Path) -> TensorSpec:
    kind = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        what = "strings" if kind == TensorProto.STRING else value.type.WhichOneof("value") or "nothing that is known"
        raise UsageError(f"{file} takes {value.name} as {what}; export the part behind it, which takes numbers")
    shape: list[int | str] = [
        axis.dim_value or axis.dim_param or f"axis{number}"
        for number, axis in enumerate(value.type.tensor_type.shape.dim)
    ]
    free = [number for number, axis in enumerate(shape) if isinstance(axis, str)]
    named = [number for number in free if str(shape[number]).lower() in (BATCH, "n", "batch_size")]
    for number in (named or free)[:1]:
        shape[number] = BATCH
    dtype = helper.tensor_dtype_to_np_dtype(kind).name
    single = dtype in ("float16", "float64")
    return TensorSpec(name=value.name, dtype="float32" if single else dtype, shape=tuple(shape))


def _keep_tensors_(graph: onnx.GraphProto, file: Path) -> None:
    """Leave out outputs that are sequences or maps."""
    kept = [value for value in graph.output if not value.type.WhichOneof("value") or value.type.HasField("tensor_type")]
    if not kept:
        given = ", ".join(f"{value.name} as {value.type.WhichOneof('value')}" for value in graph.output)
        raise UsageError(f"{file} gives only {given}; export it again with a tensor as an output")
    del graph.output[:]
    graph.output.extend(kept)


def _tried(
    model: onnx.ModelProto, weights: dict[str, np.ndarray], spec: ModelSpec, file: Path
) -> tuple[ModelSpec, list[np.ndarray]]:
    """What the network gives for random items, and the spec with the lengths and numbers that it could be run on."""
    faults: list[Exception] = []
    try:
        compute = _session(model, weights, threads=0)
        for inputs in _random_inputs(model.graph, weights, spec.inputs):
            tried = msgspec.structs.replace(spec, inputs=inputs)
            try:
                return tried, compute(ArrayInput(tried)(examples(tried)[:ROWS_TRIED]))
            except Exception as error:  # a length or a number that this network does not take
                faults.append(error)
    except Exception as error:  # ONNX Runtime raises its own kinds for a graph that it cannot load or run
        faults.append(error)
    raise UsageError(f"{file} cannot be run on {ROWS_TRIED} random items: {first_line(faults[0])}") from faults[0]


def _random_inputs(
    graph: onnx.GraphProto, weights: dict[str, np.ndarray], inputs: tuple[TensorSpec, ...]
) -> Iterator[tuple[TensorSpec, ...]]:
    """Lengths of free axes, and integers: places in tables for items of a batch; for what they share, such as a
    sampling rate, zero and the numbers that the graph compares it with.
    """
    rows = sorted(len(weights[node.input[0]]) - 1 for node in graph.node if _is_table(node, weights))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
                 if tensor.data_type in INTEGERS and math.prod(tensor.dims) == 1}  # fmt: skip
    beside: dict[str, list[int]] = {tensor.name: [] for tensor in inputs}
    for node in graph.node:
        for name in beside.keys() & set(node.input):
            beside[name] += [constants[other].item() for other in node.input if other in constants]
    free = any(isinstance(axis, str) and axis != BATCH for tensor in inputs for axis in tensor.shape)
    choices = [
        [0] if np.dtype(tensor.dtype).kind not in "iu" else [*rows[:1], 0] if BATCH in tensor.shape
        else [0, *beside[tensor.name]]
        for tensor in inputs
    ]  # fmt: skip
    for length in LENGTHS if free else LENGTHS[:1]:
        for numbers in itertools.islice(itertools.product(*choices), MOST_TRIED):
            yield tuple(
                msgspec.structs.replace(tensor, length=length, number=number)
                for tensor, number in zip(inputs, numbers, strict=True)
            )


def _end_in_vector_(
    model: onnx.ModelProto, weights: dict[str, np.ndarray], spec: ModelSpec, file: Path, classes: tuple[str, ...]
) -> ModelSpec:
    """Make one output [batch, n] of float32 the graph's only one, called ``vector``; the spec with its width."""
    spec, values = _tried(model, weights, spec, file)
    given = dict(zip([value.name for value in model.graph.output], values, strict=True))
    floats = {name: value for name, value in given.items() if getattr(value, "dtype", None) == np.float32}
    fitting = [name for name, value in floats.items() if value.ndim == 2 and len(value) == ROWS_TRIED]
    chosen = next((name for name in PREFERRED if name in fitting), fitting[0] if len(fitting) == 1 else None)
    if chosen is None:
        shapes = ", ".join(f"{name} {_dtype(value)}{list(np.shape(value))}" for name, value in given.items())
        marks = ", ".join(_quantizing_operators(model.graph))
        if marks and not floats:
            raise UsageError(
                f"{file} is quantized already ({marks}) and gives integers, {shapes}; convert the float model that it "
                f"was made from"
            )
        raise UsageError(
            f"{file} gives {shapes} for {ROWS_TRIED} items; one float32 output [batch, n] is wanted, or one of "
            f"several called {', '.join(PREFERRED)}"
        )
    write = _Writer(model)
    source = _rename_output_(model, chosen, write)
    width = given[chosen].shape[1]
    if classes and len(classes) != width:
        raise UsageError(f"{file} gives {width} numbers, and {head.FILE} beside it names {len(classes)} classes")
    if width > 1 and not classes:
        norm = write.reduce("ReduceL2", source, 1, keepdims=1)
        write.node("Div", [source, write.node("Max", [norm, write.constant(np.float32(1e-12))])], OUTPUT)
    else:
        write.node("Identity", [source], OUTPUT)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (BATCH, width)))
    if classes:
        return msgspec.structs.replace(spec, dim=width, output="class_logits", classes=classes)
    return msgspec.structs.replace(spec, dim=width, normalised=width > 1)


def _dtype(value: np.ndarray) -> str:
    """The dtype with a space where it is not the usual one."""
    name = getattr(getattr(value, "dtype", None), "name", "")
    return "" if name in ("", "float32") else f"{name} "


def _rename_output_(model: onnx.ModelProto, chosen: str, write: _Writer) -> str:
    """The chosen value's name, after one that is called ``vector`` has made room."""
    renamed = write.fresh(OUTPUT)
    _rename_(model.graph, {OUTPUT: renamed})
    return renamed if chosen == OUTPUT else chosen


def _keep_used_(graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Leave out inputs that the vector does not depend on."""
    used = {name for node in graph.node for name in _uses(node)}
    kept = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(kept)
    return tuple(tensor for tensor in inputs if tensor.name in used)
