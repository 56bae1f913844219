"""The file format of PaddlePaddle's inference models, written without PaddlePaddle.

A program is a protobuf message (framework.proto of PaddlePaddle: ProgramDesc, BlockDesc, VarDesc, OpDesc), its
parameters are one file of tensors in the order of their names. Only what Paddle Lite's optimizer reads is written.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from slimseek.schema import Array

Attribute = bool | int | float | str | Sequence[int] | Sequence[float]
TYPES = {"bool": 0, "int16": 1, "int32": 2, "int64": 3, "float32": 5, "uint8": 20, "int8": 21}
"""VarType.Type by the name of the numpy dtype."""
TENSOR, FEED, FETCH = 7, 9, 10
INT, FLOAT, STRING, INTS, FLOATS, BOOLEAN, LONG = 0, 1, 2, 3, 4, 6, 9
LONGS = ("padding_idx",)
"""Attributes that are declared to have 64 bits."""
PREFIX = "x."
"""Before every name: the optimizer calls its nodes fc1, conv2d2 and so on, and stops at a value of such a name."""
ON_INTEGERS = "enable_int8"
"""The attribute of operators that compute on integers."""
SCALES = "_quant_scale"
"""What the name of the attribute ends in that holds a parameter's scales."""
VERSION = 2_004_000
"""Of the programs: PaddlePaddle 2.4, whose operators Paddle Lite 2.13 reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One OpDesc: its type, the names of its values by parameter, its attributes."""

    kind: str
    inputs: Mapping[str, Sequence[str]]
    outputs: Mapping[str, Sequence[str]]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """One VarDesc: numpy name of its dtype, and its shape, -1 for what may change."""

    dtype: str
    shape: Sequence[int]


def program(operators: Sequence[Operator], values: Mapping[str, Value], parameters: Mapping[str, Array],
            inputs: Sequence[str], output: str, widened: Collection[str] = ()) -> bytes:  # fmt: skip
    """The ProgramDesc of one block that is fed ``inputs`` and fetched ``output``.

    Parameters named in ``widened`` are declared float32, whatever the file holds: the library makes them so when it
    loads the model.
    """
    ends = [_operator("feed", {"X": ["feed"]}, {"Out": [PREFIX + name]}, {"col": number})
            for number, name in enumerate(inputs)]  # fmt: skip
    fetch = _operator("fetch", {"X": [PREFIX + output]}, {"Out": ["fetch"]}, {"col": 0})
    variables = [_message(1, "feed") + _message(2, _number(1, FEED)) + _number(3, 1),
                 _message(1, "fetch") + _message(2, _number(1, FETCH)) + _number(3, 1)]  # fmt: skip
    variables += [_variable(name, value, False) for name, value in values.items()]
    variables += [
        _variable(name, Value(dtype="float32" if name in widened else array.dtype.name, shape=array.shape), True)
        for name, array in parameters.items()
    ]
    block = _number(1, 0) + _number(2, 0)
    block += b"".join(_message(3, variable) for variable in variables)
    block += b"".join(_message(4, one) for one in [*ends, *map(_prefixed, operators), fetch])
    return _message(1, block) + _message(4, _number(1, VERSION))


def parameters_file(parameters: Mapping[str, Array]) -> Iterator[bytes]:
    """The parts of the file of all parameters."""
    for _, array in sorted(parameters.items()):  # the reader sorts the names too
        described = _tensor(Value(dtype=array.dtype.name, shape=array.shape))
        yield struct.pack("<IQIi", 0, 0, 0, len(described)) + described
        yield np.ascontiguousarray(array).tobytes()


def _variable(name: str, value: Value, stored: bool) -> bytes:
    kind = _number(1, TENSOR) + _message(3, _message(1, _tensor(value)))
    return _message(1, PREFIX + name) + _message(2, kind) + _number(3, int(stored))


def _tensor(value: Value) -> bytes:
    return _number(1, TYPES[value.dtype]) + b"".join(_number(2, int(size)) for size in value.shape)


def _prefixed(operator: Operator) -> bytes:
    inputs, outputs = (
        {parameter: [PREFIX + name for name in names] for parameter, names in ends.items()}
        for ends in (operator.inputs, operator.outputs)
    )
    attributes = {
        PREFIX + name if name.endswith(SCALES) else name: value for name, value in operator.attributes.items()
    }
    return _operator(operator.kind, inputs, outputs, attributes)


def _operator(
    kind: str,
    inputs: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Sequence[str]],
    attributes: Mapping[str, Attribute],
) -> bytes:
    ends = b"".join(
        _message(place, _message(1, parameter) + b"".join(_message(2, name) for name in names))
        for place, by_parameter in ((1, inputs), (2, outputs))
        for parameter, names in by_parameter.items()
    )
    return (
        ends + _message(3, kind) + b"".join(_message(4, _attribute(name, value)) for name, value in attributes.items())
    )


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, bool):
        kind, content = BOOLEAN, _number(10, int(value))
    elif isinstance(value, int):
        kind, content = (LONG, _number(13, value)) if name in LONGS else (INT, _number(3, value))
    elif isinstance(value, float):
        kind, content = FLOAT, _float(4, value)
    elif isinstance(value, str):
        kind, content = STRING, _message(5, value)
    elif all(isinstance(number, int) for number in value):
        kind, content = INTS, b"".join(_number(6, int(number)) for number in value)
    else:
        kind, content = FLOATS, b"".join(_float(7, float(number)) for number in value)
    return _message(1, name) + _number(2, kind) + content


def _message(place: int, content: bytes | str) -> bytes:
    held = content.encode() if isinstance(content, str) else content
    return _varint(place << 3 | 2) + _varint(len(held)) + held


def _number(place: int, number: int) -> bytes:
    return _varint(place << 3) + _varint(number % 2**64)


def _float(place: int, number: float) -> bytes:
    return _varint(place << 3 | 5) + struct.pack("<f", number)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
