"""From a model to a program of PaddlePaddle with its integers, and what a package must know beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from slimseek.backends._paddlelite import operators, products
from slimseek.backends._paddlelite.format import ON_INTEGERS, Operator, Value, parameters_file, program
from slimseek.backends._paddlelite.graph import observe
from slimseek.backends._paddlelite.package import Fed, Kept
from slimseek.backends._paddlelite.writer import Writer, refused
from slimseek.backends._places import check_places
from slimseek.schema import Model

RULES = operators.RULES | products.RULES


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """A program and its parameters as PaddlePaddle stores them.

    Attributes:
        program: the bytes of the program's file.
        parameters: the bytes of the parameters' file.
        fed: constants that are inputs, since they grow with the text.
        kept: where each tensor of few bits stands.
        integers: whether some operator computes on integers.
    """

    program: bytes
    parameters: bytes
    fed: Mapping[str, Fed]
    kept: Mapping[str, Kept]
    integers: bool


def unknown(graph: onnx.ModelProto) -> list[str]:
    """Operators of a graph that have no form in Paddle Lite here, sorted; those of shapes and constants count too."""
    folded = {"Shape", "Size", "Range", "ConstantOfShape", "GatherElements", "Constant", "Tile"}
    return sorted({node.op_type for node in graph.graph.node} - set(RULES) - folded)


def convert(graph: onnx.ModelProto, model: Model) -> Converted:
    """Write every node of the float graph as operators of Paddle.

    Args:
        graph: as ``Family.to_onnx`` gives it.
        model: the integers.

    Raises:
        UsageError: an operator or a shape has no form there.
    """
    check_places(graph, model)
    seen = observe(graph, model)
    writer = Writer(graph, model, seen)
    done: set[str] = set()
    for node in seen.nodes:
        if node.output[0] in done:
            continue
        if node.op_type not in RULES:
            raise refused(f"the operator {node.op_type}")
        RULES[node.op_type](writer, node)
        done.update(name for operator in writer.operators[-1:] for names in operator.outputs.values() for name in names)
    inputs = [tensor.name for tensor in model.spec.inputs]
    values = {name: Value(dtype=seen.dtypes[name], shape=seen.shape(name)) for name in inputs}
    values |= {name: Value(dtype=one.whole.dtype.name, shape=seen.shape(name)) for name, one in seen.fed.items()}
    values |= writer.values
    read = [name for name in [*inputs, *seen.fed] if _is_read(writer.operators, name)]
    return Converted(
        program=program(writer.operators, values, writer.parameters, read, graph.graph.output[0].name, writer.widened),
        parameters=b"".join(parameters_file(writer.parameters)),
        fed={name: one for name, one in seen.fed.items() if name in read}, kept=writer.kept,
        integers=any(ON_INTEGERS in operator.attributes for operator in writer.operators),
    )  # fmt: skip


def _is_read(operators: list[Operator], name: str) -> bool:
    return any(name in names for operator in operators for names in operator.inputs.values())
