"""Arithmetic on constants, done once when a graph is read: exporters leave weights reordered, joined, scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from slimseek.models._onnx.graph import (
    Weights,
    _graphs,
    _is_quantized,
    _rename_,
    _replace_nodes_,
    _settings,
    _Writer,
)
from slimseek.schema import Array

LAYOUT = ("Concat", "Flatten", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
ARITHMETIC = ("Add", "Cast", "Div", "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub")
REDUCTIONS = ("ReduceL2", "ReduceSum", "ReduceSumSquare")
COMPUTED = frozenset((*LAYOUT, *ARITHMETIC, *REDUCTIONS))
SMALL = 64
"""Bytes: results up to this may be made although what they are made of stays."""
FLOATS = (np.float32, np.float16)


@dataclass(frozen=True, eq=False)
class Work:
    """A node that can be computed now, and its results by name."""

    node: onnx.NodeProto
    results: dict[str, Array]


@dataclass(eq=False)
class Group:
    """Works that share large values, so that they are worth doing only together; names of those values."""

    works: list[Work]
    names: set[str]


def _make_names_unique_(model: onnx.ModelProto) -> None:
    """Two branches may call different values alike; here every value of the model gets a name of its own."""
    write = _Writer(model)
    seen: set[str] = set()
    for graph in _graphs(model.graph):
        made = [name for node in graph.node for name in node.output if name]
        made += [value.name for value in (*graph.input, *graph.initializer)]
        renamed = {name: write.fresh(name) for name in dict.fromkeys(made) if name in seen}
        seen |= set(made) - set(renamed)
        if renamed and graph is not model.graph:
            _rename_(graph, renamed)


def _free_loop_constants_(model: onnx.ModelProto) -> None:
    """What a Loop hands on unchanged from round to round, its body reads from outside instead.

    So a weight that an exporter passes through the loop is a weight again.
    """
    for graph in list(_graphs(model.graph)):
        for node in [node for node in graph.node if node.op_type == "Loop"]:
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            same = {one.output[0]: one.input[0] for one in body.node if one.op_type == "Identity"}
            ends = {value.name for value in graph.output}
            for place in reversed(range(len(node.input) - 2)):
                name, result, after = body.input[2 + place].name, body.output[1 + place].name, node.output[place]
                others = [value.name for number, value in enumerate(body.output) if number != 1 + place]
                if same.get(result, result) != name or name in others or after in ends:
                    continue
                outside = node.input[2 + place]
                del node.input[2 + place], node.output[place], body.input[2 + place], body.output[1 + place]
                _rename_(body, {name: outside})
                if after:
                    _rename_(graph, {after: outside})


def _compute_constants_(model: onnx.ModelProto, weights: Weights) -> None:
    """Replace nodes over constants by their results, unless that takes more bytes than what they are made of.

    A result that is all that is left of one weight keeps that weight's name. A weight that other nodes use as it is
    stays, and so do the nodes that reshape it for others (a token table that is also an output layer). Graphs that
    are quantized already stay as they are.
    """
    if _is_quantized(model.graph):
        return
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | weights
    works = list(_possible(model, known))
    values = known | {name: array for work in works for name, array in work.results.items()}
    while True:
        used = _used(model, works)
        groups = _groups(works, values)
        wasteful = [group for group in groups if _growth(group, known, values, used) > SMALL]
        if not wasteful:
            break
        works = _without(works, {_key(work) for group in wasteful for work in group.works}, known)
    done = {_key(work) for work in works}
    for graph in _graphs(model.graph):
        _replace_nodes_(graph, [node for node in graph.node if tuple(node.output) not in done])
    derived = _derived(works, weights)
    renamed: dict[str, str] = {}
    alone = {name: name for work in works for name in work.results if name in used}
    for names in (alone, *(_names(group, weights, values, used) for group in groups)):
        renamed |= {name: new.replace("#", "_") for name, new in names.items()}
    kept = {name for name in known if name in used}
    for name, new in renamed.items():
        if new in kept:
            continue
        kept.add(new)
        if name in derived and values[name].dtype in FLOATS and values[name].size > 1:
            weights[new] = np.ascontiguousarray(values[name])
        else:
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values[name]), new))
    _rename_(model.graph, {name: new for name, new in renamed.items() if name != new})


def _key(work: Work) -> tuple[str, ...]:
    return tuple(work.node.output)


def _possible(model: onnx.ModelProto, known: Mapping[str, Array]) -> Iterator[Work]:
    """Nodes whose inputs are constants or results of such nodes, in order of computation."""
    values = dict(known)
    for graph in _graphs(model.graph):
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            if node.op_type not in COMPUTED or node.domain or outputs & set(node.output):
                continue
            names = [name for name in node.input if name]
            if not names or any(name not in values for name in names):
                continue
            results = _computed(model, node, values)
            if results is not None:
                values |= results
                yield Work(node, results)


def _computed(model: onnx.ModelProto, node: onnx.NodeProto, values: Mapping[str, Array]) -> dict[str, Array] | None:
    """Results of one node by name, computed by ONNX Runtime; ``None`` where it cannot."""
    given = {name: values[name] for name in node.input if name}
    if node.op_type == "Identity" or (node.op_type == "Cast" and _is_float_cast(node, given[node.input[0]])):
        return {node.output[0]: given[node.input[0]]}
    halves = [array.dtype == np.float16 for array in given.values() if array.dtype in FLOATS and array.size > 1]
    given = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in given.items()}
    names = [name for name in node.output if name]
    try:
        graph = helper.make_graph(
            [node], "constants",
            [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
             for name, array in given.items()],
            [onnx.ValueInfoProto(name=name) for name in names],
        )  # fmt: skip
        one = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = dict(zip(names, session.run(None, given), strict=True))
    except Exception:  # what ONNX Runtime cannot compute alone stays in the graph
        return None
    narrow = bool(halves) and all(halves)
    return {name: array.astype(np.float16) if narrow and array.dtype == np.float32 else array
            for name, array in found.items()}  # fmt: skip


def _is_float_cast(node: onnx.NodeProto, array: Array) -> bool:
    return _settings(node)["to"] == TensorProto.FLOAT and array.dtype in FLOATS


def _used(model: onnx.ModelProto, works: Sequence[Work]) -> set[str]:
    """Names that nodes other than these, or outputs of graphs, read."""
    done = {_key(work) for work in works}
    graphs = list(_graphs(model.graph))
    read = {name for graph in graphs for node in graph.node if tuple(node.output) not in done for name in node.input}
    return read | {value.name for graph in graphs for value in graph.output}


def _groups(works: Sequence[Work], values: Mapping[str, Array]) -> list[Group]:
    """Works joined by the large values that they read and give; those with none are left out."""
    found: dict[str, Group] = {}
    for work in works:
        names = {name for name in (*work.node.input, *work.results) if name and values[name].nbytes > SMALL}
        met = {id(found[name]): found[name] for name in names if name in found}.values()
        joined = Group(works=[one for group in met for one in group.works] + [work],
                       names=names.union(*(group.names for group in met)))  # fmt: skip
        found |= dict.fromkeys(joined.names, joined)
    return list({id(group): group for group in found.values()}.values())


def _growth(group: Group, known: Mapping[str, Array], values: Mapping[str, Array], used: set[str]) -> int:
    """Bytes of the results that must be stored less those of the constants that nothing reads any more."""
    stored = {_digest(values[name]): values[name].nbytes for name in group.names - set(known) if name in used}
    there = {_digest(known[name]) for name in group.names & set(known) if name in used}
    gone = sum(known[name].nbytes for name in group.names & set(known) if name not in used)
    return sum(size for digest, size in stored.items() if digest not in there) - gone


def _names(group: Group, weights: Weights, values: Mapping[str, Array], used: set[str]) -> dict[str, str]:
    """A name for each result that is stored: equal ones share it, and it is that of an equal constant that stays, or
    of the only weight that is gone where one result is left of it.
    """
    results = [name for work in group.works for name in work.results if name in used and name in group.names]
    sources = group.names - {name for work in group.works for name in work.results}
    by_digest = {_digest(values[name]): name for name in sorted(sources & used)}
    gone = sorted(name for name in sources - used if name in weights)
    if len(gone) == 1 and len({_digest(values[name]) for name in results}) == 1:
        by_digest.setdefault(_digest(values[results[0]]), gone[0])
    return {name: by_digest.setdefault(_digest(values[name]), name) for name in results}


def _derived(works: Sequence[Work], weights: Weights) -> set[str]:
    """Results that a weight has gone into."""
    found = set(weights)
    for work in works:
        if found & set(work.node.input):
            found |= set(work.results)
    return found


def _without(works: Sequence[Work], left_out: set[tuple[str, ...]], known: Mapping[str, Array]) -> list[Work]:
    """The works that can still be done."""
    names = {*known, ""}
    kept = []
    for work in works:
        if _key(work) not in left_out and names.issuperset(work.node.input):
            names |= set(work.results)
            kept.append(work)
    return kept


def _digest(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    content = np.ascontiguousarray(array)
    return content.dtype.str, content.shape, hashlib.blake2b(content.tobytes(), digest_size=16).digest()
