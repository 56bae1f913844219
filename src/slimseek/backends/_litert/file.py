"""The flatbuffer of a LiteRT model: written tensor by tensor and operator by operator, and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.errors import ArtifactError, UsageError
from slimseek.plugins import require
from slimseek.schema import Array

SCHEMA = "ai_edge_litert.schema_py_generated"
LARGEST = 2**31 - 1
IDENTIFIER = b"TFL3"
ALIGNMENT = 16
FEW_BITS = {"int2": 2, "int4": 4}
"""Types narrower than a byte, several to one, the lowest bits first."""

Shape = tuple[int, ...]
"""Of a tensor; -1 is the free axis."""


class Grid(msgspec.Struct, frozen=True):
    """How a tensor's integers are to be read: value = (integer - zero point) * scale.

    Attributes:
        scale: one, or one for each channel.
        zero_point: as many.
        axis: the axis of channels.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


class Writer:
    """One graph under construction; a constant or an operator is made once a meaning.

    Attributes:
        free: the size that free axes are written with; they can be resized when the graph is loaded.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._schema = require(SCHEMA)
        self._buffer_class, self._grid_class = _packers(self._schema)
        self._buffers: list[Any] = [self._buffer(None)]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}
        self._made: dict[tuple[Any, ...], int] = {}
        self.kinds: list[str] = []
        self.shapes: list[Shape] = []
        self.grids: list[Grid | None] = []

    def tensor(self, shape: Shape, kind: str = "float32", *, name: str = "", grid: Grid | None = None,
               content: bytes | None = None) -> int:  # fmt: skip
        """A new tensor; ``content`` makes it a constant."""
        tensor = self._schema.TensorT()
        tensor.name = name.encode() if name else None
        tensor.shape = np.array([self.free if axis < 0 else axis for axis in shape], np.int32)
        if -1 in shape:
            tensor.shapeSignature = np.array(shape, np.int32)
        tensor.hasRank = True
        tensor.type = _type(self._schema, kind)
        tensor.quantization = None if grid is None else self._quantization(grid)
        tensor.buffer = 0
        if content is not None:
            tensor.buffer = len(self._buffers)
            self._buffers.append(self._buffer(content))
        self._tensors.append(tensor)
        self.kinds.append(kind)
        self.shapes.append(shape)
        self.grids.append(grid)
        return len(self._tensors) - 1

    def constant(self, array: Array, *, kind: str = "", name: str = "", grid: Grid | None = None) -> int:
        """A constant with these values, the same for all who ask for them.

        Args:
            array: of a type that LiteRT has, or int8 that is packed to ``kind``.
            kind: ``int2`` or ``int4``; the array's own type where it is not given.
            name: for :func:`read_tensors`.
            grid: of integers.
        """
        kind = kind or array.dtype.name
        content = pack_few(array, FEW_BITS[kind]) if kind in FEW_BITS else np.ascontiguousarray(array).tobytes()
        key = ("constant", kind, array.shape, content, grid, name)
        if key not in self._made:
            self._made[key] = self.tensor(array.shape, kind, name=name, grid=grid, content=content)
        return self._made[key]

    def operator(self, kind: str, inputs: Sequence[int], shape: Shape, result: str = "float32", *,
                 grid: Grid | None = None, settings: tuple[str, Mapping[str, Any]] | None = None) -> int:  # fmt: skip
        """Append an operator of one result and return the latter."""
        key = (kind, tuple(inputs), shape, result, grid, str(settings))
        if key not in self._made:
            self._made[key] = self.tensor(shape, result, grid=grid)
            self.append(kind, inputs, [self._made[key]], settings)
        return self._made[key]

    def append(self, kind: str, inputs: Sequence[int], outputs: Sequence[int],
               settings: tuple[str, Mapping[str, Any]] | None = None) -> None:  # fmt: skip
        """An operator with results that exist; ``settings`` are the name and the fields of its options."""
        code = getattr(self._schema.BuiltinOperator, kind)
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array(outputs, np.int32)
        if settings is not None:
            options = getattr(self._schema, f"{settings[0]}T")()
            for name, value in settings[1].items():
                setattr(options, name, value)
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, settings[0])
            operator.builtinOptions = options
        self._operators.append(operator)

    def finish(self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, bytes]) -> bytes:
        """The file, with one signature ``encode``.

        Raises:
            UsageError: it would be larger than 2 GB.
        """
        schema = self._schema
        if sum(len(buffer.data or b"") for buffer in self._buffers) > LARGEST:
            raise UsageError("LiteRT files hold at most 2 GB; compress further, or deploy for onnxruntime instead")
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = b"encode", self._tensors, self._operators
        graph.inputs = np.array(list(inputs.values()), np.int32)
        graph.outputs = np.array(list(outputs.values()), np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"encode", 0
        signature.inputs = [self._named(name, index) for name, index in inputs.items()]
        signature.outputs = [self._named(name, index) for name, index in outputs.items()]
        model = schema.ModelT()
        model.version, model.description = 3, b"slimseek"
        model.subgraphs, model.signatureDefs = [graph], [signature]
        model.operatorCodes = [self._code(code) for code in self._codes]
        model.metadata = [self._metadata(name, content) for name, content in metadata.items()]
        model.buffers = self._buffers
        builder = require("flatbuffers").Builder(1 << 20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _buffer(self, content: bytes | None) -> Any:
        buffer = self._buffer_class()
        buffer.data = content
        return buffer

    def _quantization(self, grid: Grid) -> Any:
        found = self._grid_class()
        found.scale = np.array(grid.scale, np.float32)
        found.zeroPoint = np.array(grid.zero_point, np.int64)
        found.quantizedDimension = grid.axis
        return found

    def _named(self, name: str, index: int) -> Any:
        entry = self._schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        return entry

    def _code(self, code: int) -> Any:
        entry = self._schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
        return entry

    def _metadata(self, name: str, content: bytes) -> Any:
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name.encode(), len(self._buffers)
        self._buffers.append(self._buffer(content))
        return entry


def _packers(schema: Any) -> tuple[type[Any], type[Any]]:
    """Buffers that pack themselves on a boundary of sixteen bytes, as kernels want their weights; and grids that share
    their numbers, since a zero point for each channel is eight bytes of zeros.
    """
    shared: dict[tuple[Any, ...], Any] = {}

    class Buffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:
            vector = None
            if self.data is not None:
                builder.StartVector(1, len(self.data), ALIGNMENT)
                builder.head -= len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if vector is not None:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    class Parameters(schema.QuantizationParametersT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:
            vectors = []
            for numbers in (self.scale, self.zeroPoint):
                key = (numbers.dtype.name, numbers.tobytes())
                if key not in shared:
                    shared[key] = builder.CreateNumpyVector(numbers)
                vectors.append(shared[key])
            schema.QuantizationParametersStart(builder)
            schema.QuantizationParametersAddScale(builder, vectors[0])
            schema.QuantizationParametersAddZeroPoint(builder, vectors[1])
            schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
            return schema.QuantizationParametersEnd(builder)

    return Buffer, Parameters


def pack_few(array: Array, bits: int) -> bytes:
    """Signed integers of two or four bits, flattened, the first in the lowest bits."""
    flat = np.ascontiguousarray(array, np.int8).reshape(-1).view(np.uint8) & (2**bits - 1)
    each = 8 // bits
    rows = np.pad(flat, (0, -flat.size % each)).reshape(-1, each) << (np.arange(each, dtype=np.uint8) * bits)
    return np.bitwise_or.reduce(rows, axis=1).tobytes()


def unpack_few(content: Array, bits: int, count: int) -> Array:
    """The inverse of :func:`pack_few`: int8 [count]."""
    each = 8 // bits
    parts = (content[:, None] >> (np.arange(each, dtype=np.uint8) * bits)) & (2**bits - 1)
    signed = parts.reshape(-1)[:count].astype(np.int8)
    return np.where(signed >= 2 ** (bits - 1), signed - 2**bits, signed).astype(np.int8)


def read_tensors(path: Path) -> tuple[dict[str, tuple[Array, Grid | None]], dict[str, bytes]]:
    """The constants of a file by their tensors' names, each with its grid where it has one, and the metadata.

    Raises:
        ArtifactError: it is not a LiteRT file.
    """
    content = path.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise ArtifactError(f"{path} is not a LiteRT file")
    schema = require(SCHEMA)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    kinds = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    tensors = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.name is None:
            continue
        shape, kind = tuple(tensor.shape if tensor.shape is not None else ()), kinds[tensor.type]
        raw = np.asarray(data, np.uint8)
        few = FEW_BITS.get(kind)
        values = raw.view(_dtype(kind)) if few is None else unpack_few(raw, few, int(np.prod(shape)))
        tensors[tensor.name.decode()] = values.reshape(shape), _grid(tensor.quantization)
    metadata = {entry.name.decode(): bytes(np.asarray(model.buffers[entry.buffer].data, np.uint8))
                for entry in model.metadata or ()}  # fmt: skip
    return tensors, metadata


def _grid(quantization: Any) -> Grid | None:
    if quantization is None or quantization.scale is None:
        return None
    return Grid(
        tuple(map(float, quantization.scale)), tuple(map(int, quantization.zeroPoint)), quantization.quantizedDimension
    )


def _type(schema: Any, kind: str) -> int:
    """The number of a type in the file's schema, which spells them as numpy does, in capitals."""
    found: int = getattr(schema.TensorType, kind.upper())
    return found


def _dtype(kind: str) -> Any:
    return np.dtype(require("ml_dtypes").bfloat16) if kind == "bfloat16" else np.dtype(kind)
