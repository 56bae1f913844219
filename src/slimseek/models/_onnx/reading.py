"""What stands in an ONNX file and beside it: inputs, weights, layers, pooling; whatever is wrong, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek.errors import UsageError, first_line
from slimseek.inputs.text import TOKENIZER
from slimseek.models._onnx.constants import _compute_constants_, _free_loop_constants_, _make_names_unique_
from slimseek.models._onnx.folding import (
    _fold_norms_,
    _make_constants_initializers_,
    _make_single_precision_,
    _skip_identities_,
)
from slimseek.models._onnx.graph import (
    INPUTS,
    NO_VECTOR,
    OUTPUT,
    SAMPLE,
    TOKENS_NAMES,
    VECTOR_NAMES,
    Weights,
    _dense,
    _graphs,
    _is_table,
    _rename_,
    _replace_nodes_,
    _sample,
    _session,
    _uses,
    _Writer,
)
from slimseek.models._text import files as text_files
from slimseek.preprocess import TextPreprocess
from slimseek.schema import Array

RESIZING = ("Resize", "Upsample")


def _files(file: Path) -> tuple[Path, dict[str, bytes]]:
    """The folder of the tokenizer, which is the file's or the one above, and its small files.

    Raises:
        UsageError: there is no tokenizer, or it is broken.
    """
    places = [place for place in (file.parent, file.parent.parent) if (place / TOKENIZER).is_file()]
    if not places:
        raise UsageError(f"{file.parent} has no {TOKENIZER}; put the model's own beside {file.name}")
    home = next((place for place in places if (place / "modules.json").is_file()), places[0])
    files = text_files.small_files(home)
    pooling = text_files.plan(files, home).pooling or "1_Pooling"
    files = text_files.small_files(home, (pooling,))
    lower = bool(text_files.json_of(files, "sentence_bert_config.json").get("do_lower_case"))
    files[TOKENIZER] = text_files.tokenizer_without_padding(files[TOKENIZER], lower)
    return home, files


def _take_inputs_(graph: onnx.GraphProto, file: Path) -> None:
    """Make the inputs int64 [batch, sequence]; a graph that wants int32 gets a Cast.

    Raises:
        UsageError: an input that a text does not give, one that is missing, a fixed axis, another dtype.
    """
    defaults = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in defaults]
    known = {tensor.name: tensor for tensor in INPUTS}
    unknown = [value.name for value in inputs if value.name not in known]
    if unknown:
        raise UsageError(f"{file} wants the inputs {', '.join(unknown)}; a text gives only {', '.join(known)}")
    missing = {tensor.name for tensor in text_files.INPUTS} - {value.name for value in inputs}
    if missing:
        raise UsageError(f"{file} has no input {' and no '.join(sorted(missing))}, so it cannot take a batch of texts")
    del graph.input[:]
    for value in inputs:
        dtype = value.type.tensor_type.elem_type
        _check_axes(value, file)
        if dtype not in (TensorProto.INT64, TensorProto.INT32):
            name = TensorProto.DataType.Name(dtype).lower()
            raise UsageError(f"{file} wants {value.name} as {name}; int64 and int32 are supported")
        if dtype == TensorProto.INT32:
            _rename_(graph, {value.name: f"{value.name}.int32"})
            graph.node.insert(0, helper.make_node("Cast", [value.name], [f"{value.name}.int32"], to=TensorProto.INT32))
        axes = [axis.dim_param for axis in value.type.tensor_type.shape.dim if axis.dim_param]
        shape = axes if len(set(axes)) == 2 else known[value.name].shape
        graph.input.append(helper.make_tensor_value_info(value.name, TensorProto.INT64, shape))


def _check_axes(value: onnx.ValueInfoProto, file: Path) -> None:
    if not value.type.tensor_type.HasField("shape"):
        return
    sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    if len(sizes) != 2:
        raise UsageError(f"{file}: {value.name} has {len(sizes)} axes; a batch of texts has two, batch and sequence")
    frozen = [f"{name} at {size}" for name, size in zip(("batch", "sequence"), sizes, strict=True) if size]
    if frozen:
        raise UsageError(f"{file}: {value.name} is frozen, {' and '.join(frozen)}; export it again with dynamic axes")


def _take_tidied_weights_(model: onnx.ModelProto, file: Path) -> Weights:
    """Every weight as the layers of the graph read it: constants computed, batch norms folded, names unique."""
    _make_names_unique_(model)
    _make_constants_initializers_(model)
    _free_loop_constants_(model)
    weights = _take_weights_(model.graph, file)
    _make_single_precision_(model.graph)
    _skip_identities_(model.graph)
    _compute_constants_(model, weights)
    _fold_norms_(model.graph, weights)
    return weights


def _take_weights_(graph: onnx.GraphProto, file: Path) -> Weights:
    """Float initializers of more than one number, and the eight-bit integers of a quantized graph, leave the graph.

    What says how large a result is stays: rounded to fewer bits, it would give another shape.
    """
    types = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
    nodes = (node for inner in _graphs(graph) for node in inner.node)
    sizes = {name for node in nodes if node.op_type in RESIZING for name in node.input[1:]}
    weights = {}
    kept = []
    for tensor in graph.initializer:
        if tensor.data_type not in types or math.prod(tensor.dims) <= 1 or tensor.name in sizes:
            kept.append(tensor)
            continue
        try:
            array = numpy_helper.to_array(tensor)
            weights[tensor.name] = array.astype(np.float32) if array.dtype == np.float64 else array.copy()
        except ValueError as error:
            raise UsageError(f"{file}: the weight {tensor.name} is not whole: {first_line(error)}") from error
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return weights


def _end_in_vector_(
    model: onnx.ModelProto, weights: Weights, files: Mapping[str, bytes], plan: text_files.Plan, file: Path
) -> None:
    """Make the vector, pooled and normalised as the files say, the graph's only output, called ``vector``."""
    write = _Writer(model)
    names = [value.name for value in model.graph.output]
    _rename_(model.graph, {OUTPUT: write.fresh(OUTPUT)})
    try:
        found = _session(model, _dense(weights), threads=0)(_sample(model.graph, *SAMPLE))
    except Exception as error:  # ONNX Runtime raises its own kinds for a graph that it cannot load or run
        raise UsageError(f"{file} cannot be run on a batch of {list(SAMPLE)} tokens: {first_line(error)}") from error
    values = dict(zip(names, found, strict=True))
    chosen = _chosen(values, file)
    source = model.graph.output[names.index(chosen)].name
    width = values[chosen].shape[-1]
    if values[chosen].ndim == 3:
        source = _pool(write, source, width, _pooling(files, plan, file))
    if plan.normalise:
        norm = write.node("Max", [write.reduce("ReduceL2", source, -1, keepdims=1), write.constant(np.float32(1e-12))])
        write.node("Div", [source, norm], OUTPUT)
    else:
        write.node("Identity", [source], OUTPUT)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ("batch", width)))


def _chosen(values: Mapping[str, Array], file: Path) -> str:
    """The output to take: a vector [batch, dim], else vectors of tokens [batch, sequence, width].

    Args:
        values: what the graph gives for a batch of the shape ``SAMPLE``, by name.
        file: for messages.
    """
    floats = {name: value for name, value in values.items() if getattr(value, "dtype", None) == np.float32}
    vectors = [
        name
        for name, value in floats.items()
        if value.ndim == 2 and len(value) == SAMPLE[0] and value.shape != SAMPLE and not NO_VECTOR.search(name)
    ]
    tokens = [name for name, value in floats.items() if value.ndim == 3 and value.shape[:2] == SAMPLE]
    chosen = _only(vectors, VECTOR_NAMES, file) or _only(tokens, TOKENS_NAMES, file)
    if chosen is None:
        given = ", ".join(f"{name} {list(np.shape(value))}" for name, value in values.items())
        raise UsageError(
            f"{file} gives {given} for a batch of {list(SAMPLE)} tokens: neither a vector [batch, dim] nor tokens "
            f"[batch, sequence, width] (a pooler's output and logits are no vectors to search by)"
        )
    return chosen


def _only(names: Sequence[str], preferred: Sequence[str], file: Path) -> str | None:
    """The output to take: one of the preferred names, or the only one there is."""
    chosen = next((name for name in preferred if name in names), None)
    if chosen is None and len(names) > 1:
        raise UsageError(f"{file} has the outputs {', '.join(names)}; call the one to take {preferred[0]}")
    return chosen or next(iter(names), None)


def _pooling(files: Mapping[str, bytes], plan: text_files.Plan, file: Path) -> str:
    """What the files say; never a guess."""
    place = plan.pooling or ("1_Pooling" if "1_Pooling/config.json" in files else "")
    if not place:
        raise UsageError(
            f"{file} gives a vector for each token, and nothing beside it says how they are pooled; put the "
            f"modules.json and 1_Pooling/config.json of sentence-transformers there"
        )
    if plan.dense:
        raise UsageError(
            f"{file} ends before the Dense layer of modules.json ({', '.join(plan.dense)}); export the whole pipeline"
        )
    return text_files.pooling(files, place, file.parent)


def _pool(write: _Writer, hidden: str, width: int, pooling: str) -> str:
    """The pooled value of ``hidden`` [batch, sequence, width], by operators that mean the same in every opset."""
    if pooling == "cls":
        return write.node("Gather", [hidden, write.constant(np.int64(0))], axis=1)
    keep = write.node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
    if pooling == "lasttoken":
        # From the right, the running count of real tokens is 1 at the last of them, and at padding before that.
        ahead = write.node("CumSum", ["attention_mask", write.constant(np.int64(1))], reverse=1)
        last = write.node("Equal", [ahead, write.constant(np.int64(1))])
        keep = write.node("Mul", [keep, write.node("Cast", [last], to=TensorProto.FLOAT)])
    column = write.node("Reshape", [keep, write.constant(np.array([0, -1, 1], np.int64))])
    if pooling == "max":
        absent = write.node("Sub", [write.constant(np.float32(1)), column])
        lowered = write.node("Add", [hidden, write.node("Mul", [absent, write.constant(np.float32(-1e9))])])
        return write.reduce("ReduceMax", lowered, 1, keepdims=0)
    row = write.node("Reshape", [keep, write.constant(np.array([0, 1, -1], np.int64))])
    total = write.node("MatMul", [row, hidden])
    if pooling == "mean":
        count = write.node("Max", [write.node("MatMul", [row, column]), write.constant(np.float32(1e-9))])
        total = write.node("Div", [total, count])
    return write.node("Reshape", [total, write.constant(np.array([0, width], np.int64))])


def _prune_(graph: onnx.GraphProto, weights: Weights) -> Weights:
    """Leave out what the vector does not need, such as a pooler; returns the weights that it needs."""
    needed = {OUTPUT}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            node.doc_string = ""
            del node.metadata_props[:]
            kept.append(node)
            needed |= _uses(node)
    _replace_nodes_(graph, kept[::-1])
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    # Shapes of values are what fusions for a runtime go by; those of weights would outlive a cut of the weight.
    shapes = [value for value in graph.value_info if value.name in needed - set(weights)]
    del graph.initializer[:]
    del graph.value_info[:]
    graph.initializer.extend(initializers)
    graph.value_info.extend(shapes)
    return {name: array for name, array in weights.items() if name in needed}


def _dim(model: onnx.ModelProto, weights: Weights, longest: int, file: Path) -> int:
    """Width of the vector, of one text as long as the model is said to take."""
    try:
        [vector] = _session(model, _dense(weights), threads=0)(_sample(model.graph, 1, longest))
    except Exception as error:  # ONNX Runtime raises its own kinds
        raise UsageError(
            f"{file} cannot be run on a text of {longest} tokens; put the longest it takes as max_seq_length into "
            f"sentence_bert_config.json beside the tokenizer ({first_line(error)})"
        ) from error
    return int(vector.shape[1])


def _preprocess(graph: onnx.GraphProto, weights: Weights, files: Mapping[str, bytes]) -> TextPreprocess:
    config = text_files.json_of(files, "config.json")
    most = text_files.positions(
        config.get("model_type", ""), config.get("max_position_embeddings"), config.get("pad_token_id")
    )
    return text_files.preprocess(files, most, _token_table(graph, weights, files[TOKENIZER]))


def _token_table(graph: onnx.GraphProto, weights: Weights, tokenizer: bytes) -> str | None:
    """The table that the token ids look up; ``None`` also where other uses of the ids would break if tokens left.

    Comparing ids with a constant is harmless when every id up to it is a special token, which no cut moves.
    """
    special = {token["id"] for token in msgspec.json.decode(tokenizer).get("added_tokens") or []}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ids, tables = {"input_ids"}, set()
    for node in graph.node:
        if not ids & _uses(node) or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in ("Cast", "Identity"):
            ids.add(node.output[0])
        elif _is_table(node, weights) and node.input[1] in ids:
            tables.add(node.input[0])
        elif node.op_type != "Equal" or not all(
            _is_first(constants.get(name), special) for name in node.input if name not in ids
        ):
            return None
    return tables.pop() if len(tables) == 1 else None


def _is_first(numbers: Array | None, special: set[int]) -> bool:
    """Whether this is one known id, and it and all below it are special tokens."""
    if numbers is None or numbers.size != 1:
        return False
    return numbers.item() >= 0 and set(range(int(numbers.item()) + 1)) <= special
