"""Arrays as a model takes them, one file an item: for networks whose preprocessing is done elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from slimseek.errors import UsageError, first_line
from slimseek.inputs.features import reduced
from slimseek.inputs.suffixes import PICTURES, PREPROCESSOR
from slimseek.schema import Array, Batch, ModelSpec, TensorSpec

ROWS_IN_BATCH = 32
BATCH = "batch"
RANDOM = "random:"


class ArrayInput:
    """Reads ``.npy`` (the one input of an item, without the batch axis) or ``.npz`` (every input by its name).

    The item ``random:SEED`` is noise, normal or of integers from 0: for checks that have no data at hand.
    """

    query_prefix = ""
    document_prefix = ""

    def __init__(self, spec: ModelSpec) -> None:
        """For inputs with a ``batch`` axis, and for others that all items of a batch share."""
        self._inputs = spec.inputs
        self._features = spec.features
        if spec.features:
            whole = [spec.features.width if isinstance(axis, int) else axis for axis in spec.inputs[0].shape]
            self._inputs = (msgspec.structs.replace(spec.inputs[0], shape=tuple(whole)),)

    def rows(self, items: Sequence[str], prefix: str = "") -> list[Batch]:
        """The arrays of each item, checked against the model's shapes and brought to its dtypes; rows of features are
        reduced as the model asks for it.

        Raises:
            UsageError: a file that cannot be read, or does not hold what the model takes.
        """
        found = [self._random(item) if item.startswith(RANDOM) else self._file(item) for item in items]
        if self._features:
            return [{name: reduced(array, self._features) for name, array in row.items()} for row in found]
        return found

    def width(self, row: Batch) -> tuple[tuple[int, ...], ...]:
        """Rows of the same shapes can stand in one batch."""
        return tuple(row[tensor.name].shape for tensor in self._inputs)

    def rows_in_batch(self, width: tuple[tuple[int, ...], ...]) -> int:
        """How many rows a batch takes."""
        return ROWS_IN_BATCH

    def batch(self, rows: Sequence[Batch], width: object = None) -> Batch:
        """Rows side by side along the batch axis."""
        return {tensor.name: _joined([row[tensor.name] for row in rows], tensor) for tensor in self._inputs}

    def __call__(self, items: Sequence[str]) -> Batch:
        """Items to one batch of arrays."""
        return self.batch(self.rows(items))

    def _random(self, item: str) -> Batch:
        generator, shared = np.random.default_rng(int(item.removeprefix(RANDOM))), np.random.default_rng(0)
        return {tensor.name: _noise(tensor, generator if BATCH in tensor.shape else shared) for tensor in self._inputs}

    def _file(self, item: str) -> Batch:
        try:
            content = np.load(item, allow_pickle=False)
            if isinstance(content, np.ndarray):
                content = {self._inputs[0].name: content}
            arrays = {name: content[name] for name in content}
        except Exception as error:  # of a zip or a header that is none: many kinds
            if Path(item).suffix.lower() in PICTURES:
                raise UsageError(
                    f"{item} is a picture, and this network takes arrays; write {PREPROCESSOR} (size, resample, "
                    "rescale_factor, image_mean, image_std) beside its .onnx file"
                ) from error
            raise UsageError(f"{item} cannot be read as an array (.npy or .npz): {first_line(error)}") from error
        missing = [tensor.name for tensor in self._inputs if tensor.name not in arrays]
        if missing:
            raise UsageError(f"{item} has no array {' and no '.join(missing)}; it has {', '.join(arrays)}")
        return {tensor.name: _fitting(arrays[tensor.name], tensor, item) for tensor in self._inputs}


def _noise(tensor: TensorSpec, generator: np.random.Generator) -> Array:
    """Normal, or integers: any up to the spec's number, just that one where all items share the input."""
    shape = [tensor.length if isinstance(axis, str) else axis for axis in _item_shape(tensor)]
    if np.issubdtype(np.dtype(tensor.dtype), np.floating):
        return generator.normal(size=shape).astype(tensor.dtype)
    least = 0 if BATCH in tensor.shape else tensor.number
    return generator.integers(least, tensor.number + 1, shape).astype(tensor.dtype)


def _item_shape(tensor: TensorSpec) -> tuple[int | str, ...]:
    return tuple(axis for axis in tensor.shape if axis != BATCH)


def _joined(arrays: Sequence[Array], tensor: TensorSpec) -> Array:
    if BATCH in tensor.shape:
        return np.stack(arrays, tensor.shape.index(BATCH))
    if any(not np.array_equal(array, arrays[0]) for array in arrays):
        raise UsageError(f"the items of a batch differ in {tensor.name}, which the model takes once for all of them")
    return arrays[0]


def _fitting(array: Array, tensor: TensorSpec, item: str) -> Array:
    """The array in the model's dtype; numbers are converted only where that keeps their meaning."""
    shape, wanted = _item_shape(tensor), np.dtype(tensor.dtype)
    same = len(array.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not same:
        raise UsageError(
            f"{item} holds {list(array.shape)} for {tensor.name}; the model takes {list(shape)}, without a batch axis"
        )
    floating = np.issubdtype(array.dtype, np.floating)
    if not np.issubdtype(array.dtype, np.number) or (floating and not np.issubdtype(wanted, np.floating)):
        raise UsageError(f"{item} holds {array.dtype} for {tensor.name}; the model takes {wanted}")
    if floating and not np.isfinite(array).all():
        raise UsageError(f"{item} holds NaN or infinite values")
    return array.astype(wanted)
