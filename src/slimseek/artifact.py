"""The artifact: a compressed model on disk. ``manifest.json``, ``weights.safetensors``, the model's small files,
and the report. Integers are packed at their bit width. No pickle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slimseek import folder as folders
from slimseek import integers, sparse
from slimseek.errors import ArtifactError, UsageError
from slimseek.folder import FileEntry
from slimseek.measurement import Comparison, StepRecord
from slimseek.schema import ActivationQuant, Array, Layer, Model, ModelSpec, QuantizedTensor, QuantSpec, Recipe, Tensor
from slimseek.value import Value

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MODEL_FILES = "model"
REPORT = "report.json"
PART = "#"


class PackedTensor(Value, frozen=True):
    """How a quantized tensor lies in ``weights.safetensors``: NAME, NAME#scale and, if asymmetric, NAME#zero_point; or
    NAME and NAME#codebook.
    """

    shape: tuple[int, ...]
    spec: QuantSpec


class SparseTensor(Value, frozen=True):
    """A tensor of many zeros: NAME#mask has a bit for each place, NAME the values where it is set.

    Attributes:
        shape: the tensor's own.
        values: how many it holds.
    """

    shape: tuple[int, ...]
    values: int


class KeptIndex(Value, frozen=True):
    """The original whose index a compressed query encoder searches: it gives no vectors of documents itself.

    Attributes:
        model: the original's name.
        fingerprint: the sha256 of all that it computes with, in hexadecimal.
        probe: its vector of the text by which indexes are told apart.
    """

    model: str
    fingerprint: str
    probe: tuple[float, ...]


class Artifact(Value, frozen=True):
    """The manifest.

    Attributes:
        spec: what the model takes and gives.
        layers: its layers.
        quant: how each quantized tensor is packed.
        activations: rounding of layer inputs.
        smoothing: names of the weights whose smoothing is stored, as NAME#smoothing; unset where there is none.
        sparse: which tensors are stored without their zeros; unset where there is none.
        index_of: the original whose index it searches; unset for one that encodes documents too.
        tied: name that the network has for a tensor to that of the stored one it uses; unset where there is none.
        recipe: what made it.
        records: what each step did.
        collection: path of the collection it was judged by.
        files: every other file of the folder with its hash.
        versions: libraries it was made with.
    """

    format_version: int
    spec: ModelSpec
    layers: tuple[Layer, ...]
    quant: dict[str, PackedTensor]
    activations: dict[str, ActivationQuant]
    recipe: Recipe | None
    records: tuple[StepRecord, ...]
    collection: str
    files: tuple[FileEntry, ...]
    versions: dict[str, str]
    smoothing: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    sparse: dict[str, SparseTensor] | msgspec.UnsetType = msgspec.UNSET
    tied: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    index_of: KeptIndex | msgspec.UnsetType = msgspec.UNSET


def is_artifact(path: Path) -> bool:
    """Whether the folder holds an artifact's manifest."""
    return (path / MANIFEST).is_file()


def write(
    model: Model,
    folder: Path,
    *,
    recipe: Recipe | None = None,
    comparison: Comparison | None = None,
    collection: str = "",
    versions: Mapping[str, str] | None = None,
    index_of: KeptIndex | None = None,
) -> Artifact:
    """Write the artifact into an existing empty folder (see :func:`slimseek.folder.writing`)."""
    stored: dict[str, Array] = {}
    quant: dict[str, PackedTensor] = {}
    thinned: dict[str, SparseTensor] = {}
    for name, tensor in model.tensors.items():
        places = integers.sparse_places(tensor)
        packed = _pack(name, tensor, places)
        if name in model.smoothing:
            packed[f"{name}{PART}smoothing"] = model.smoothing[name]
        taken = [part for part in packed if part in stored or (part != name and part in model.tensors)]
        if taken:
            raise UsageError(f"two tensors would be stored as {taken[0]!r}; rename one of them")
        stored |= packed
        if isinstance(tensor, QuantizedTensor):
            quant[name] = PackedTensor(shape=tensor.shape, spec=tensor.spec)
        if places is not None:
            thinned[name] = SparseTensor(shape=tensor.shape, values=int(np.count_nonzero(places)))
    save_file({name: np.require(array, requirements="C") for name, array in stored.items()}, folder / WEIGHTS)
    for path, content in model.files.items():
        target = folder / MODEL_FILES / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if comparison is not None:
        folders.write_json(folder / REPORT, comparison)
    artifact = Artifact(
        format_version=FORMAT_VERSION,
        spec=model.spec,
        layers=model.layers,
        quant=quant,
        activations=dict(model.activations),
        recipe=recipe,
        records=() if comparison is None else comparison.records,
        collection=collection,
        files=folders.entries(folder, leave_out=MANIFEST),
        versions=dict(versions or {}),
        smoothing=tuple(model.smoothing) or msgspec.UNSET,
        sparse=thinned or msgspec.UNSET,
        tied=dict(model.tied) or msgspec.UNSET,
        index_of=index_of or msgspec.UNSET,
    )
    folders.write_json(folder / MANIFEST, artifact)
    return artifact


def read(path: Path) -> tuple[Artifact, Model]:
    """Open an artifact, hashes checked.

    Raises:
        ArtifactError: it is not an artifact, truncated, changed, or from a newer version.
    """
    artifact = folders.read_manifest(path / MANIFEST, Artifact, FORMAT_VERSION)
    folders.check(path, artifact.files)
    if WEIGHTS not in {entry.path for entry in artifact.files}:
        raise ArtifactError(f"{path / MANIFEST} does not list {WEIGHTS}")
    try:
        stored = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path / WEIGHTS} cannot be read: {error}") from error
    parts = {f"{name}{PART}{'codebook' if packed.spec.entries else 'scale'}" for name, packed in artifact.quant.items()}
    parts |= {f"{name}{PART}zero_point" for name, packed in artifact.quant.items() if not packed.spec.symmetric}
    smoothed, thinned = artifact.smoothing or (), artifact.sparse or {}
    parts |= {f"{name}{PART}smoothing" for name in smoothed} | {f"{name}{PART}mask" for name in thinned}
    tensors = {
        name: _unpack(name, stored, artifact.quant.get(name), thinned.get(name), path)
        for name in (*artifact.quant, *thinned, *stored)
        if name not in parts
    }
    for layer in artifact.layers:
        if layer.weight not in tensors:
            raise ArtifactError(f"{path}: the layer {layer.name} has no weight {layer.weight}")
    tied = artifact.tied or {}
    for name, own in tied.items():
        if own not in tensors or name in tensors:
            why = f"{own} is not stored" if own not in tensors else "it is stored itself"
            raise ArtifactError(f"{path}: the tensor {name} cannot be tied to {own}: {why}")
    prefix = f"{MODEL_FILES}/"
    files = {
        entry.path.removeprefix(prefix): (path / entry.path).read_bytes()
        for entry in artifact.files
        if entry.path.startswith(prefix)
    }
    model = Model(
        spec=artifact.spec,
        files=files,
        tensors=tensors,
        layers=artifact.layers,
        activations=artifact.activations,
        smoothing={name: _smoothing(name, stored, tensors, path) for name in smoothed},
        tied=tied,
    )
    return artifact, model


def _pack(name: str, tensor: Tensor, places: Array | None) -> dict[str, Array]:
    """The arrays that the tensor is stored as; ``places``, bool [n], are those that hold a value."""
    values = tensor.integers if isinstance(tensor, QuantizedTensor) else tensor
    stored = {}
    if places is not None:
        values = values.reshape(-1)[places]
        stored[f"{name}{PART}mask"] = sparse.mask(places)
    if not isinstance(tensor, QuantizedTensor):
        return {name: values} | stored
    bits = tensor.spec.bits
    if tensor.codebook is not None:
        return stored | {name: integers.pack(values, bits), f"{name}{PART}codebook": tensor.codebook}
    stored |= {name: integers.pack(values, bits), f"{name}{PART}scale": tensor.scale}
    if tensor.zero_point is not None:
        stored[f"{name}{PART}zero_point"] = integers.pack(tensor.zero_point, bits)
    return stored


def _smoothing(name: str, stored: Mapping[str, Array], tensors: Mapping[str, Tensor], path: Path) -> Array:
    """The factors of a weight, [1, inputs] or [inputs, 1]."""
    factors, tensor = stored.get(f"{name}{PART}smoothing"), tensors.get(name)
    shapes = ((1, tensor.shape[1]), (tensor.shape[0], 1)) if tensor is not None and len(tensor.shape) == 2 else ()
    if factors is None or factors.dtype != np.float32 or factors.shape not in shapes:
        raise ArtifactError(f"{path}: the smoothing of {name} is not whole or does not fit it")
    return factors


def _unpack(
    name: str, stored: Mapping[str, Array], packed: PackedTensor | None, thinned: SparseTensor | None, path: Path
) -> Tensor:
    try:
        places = None
        if thinned is not None:
            _check_sparse(thinned, packed)
            places = sparse.places(stored[f"{name}{PART}mask"], math.prod(thinned.shape), thinned.values)
        if packed is not None:
            read = _unpack_shared if packed.spec.entries else _unpack_integers
            return read(name, stored, packed, places)
        if thinned is None or places is None:
            return stored[name]
        if stored[name].shape != (thinned.values,):
            raise UsageError(f"its values are {list(stored[name].shape)}, for {thinned.values} places")
        return _spread(stored[name], places, np.zeros(thinned.shape, stored[name].dtype))
    except (KeyError, UsageError) as error:
        raise ArtifactError(f"{path}: the tensor {name} is not whole ({error})") from error


def _unpack_integers(
    name: str, stored: Mapping[str, Array], packed: PackedTensor, places: Array | None
) -> QuantizedTensor:
    """The integers of a tensor, or those of its places, spread among those that stand for 0.0."""
    spec = packed.spec
    scale, zero_point = stored[f"{name}{PART}scale"], None
    if scale.shape != integers.scale_shape(packed.shape, spec):
        raise UsageError(f"its scales are {list(scale.shape)}, which does not fit {list(packed.shape)} and {spec}")
    if not spec.symmetric:
        zero_point = integers.unpack(stored[f"{name}{PART}zero_point"], spec.bits, scale.shape, signed=False)
    shape = packed.shape if places is None else (int(places.sum()),)
    values = integers.unpack(stored[name], spec.bits, shape, signed=spec.symmetric)
    if places is not None:
        empty = integers.integers_of_zero(packed.shape, spec, zero_point)
        values = _spread(values, places, empty.view(values.dtype))
    if spec.float8:
        values = values.view(integers.FLOAT8[spec.float8])
    return QuantizedTensor(spec=spec, integers=values, scale=scale, zero_point=zero_point)


def _unpack_shared(
    name: str, stored: Mapping[str, Array], packed: PackedTensor, places: Array | None
) -> QuantizedTensor:
    """The places in a code book; those that are not stored are its first."""
    spec, codebook = packed.spec, stored[f"{name}{PART}codebook"]
    shape = integers.codebook_shape(packed.shape, spec)
    if codebook.dtype not in (np.float32, np.float16) or codebook.shape != shape:
        raise UsageError(f"its code book is {codebook.dtype} {list(codebook.shape)}, not one of floats {list(shape)}")
    held = packed.shape if places is None else (int(places.sum()),)
    values = integers.unpack(stored[name], spec.bits, held, signed=False)
    if values.max(initial=0) >= shape[1]:
        raise UsageError(f"it names entry {values.max()} of a code book of {shape[1]}")
    if places is not None:
        values = _spread(values, places, np.zeros(packed.shape, np.uint8))
    return QuantizedTensor(spec=spec, integers=values, scale=np.ones((1, 1), np.float32), codebook=codebook)


def _spread(values: Array, places: Array, empty: Array) -> Array:
    """The values [k] in their places, bool [n], of an array of n others."""
    whole = empty.reshape(-1)
    whole[places] = values
    return whole.reshape(empty.shape)


def _check_sparse(thinned: SparseTensor, packed: PackedTensor | None) -> None:
    if packed is not None and packed.shape != thinned.shape:
        raise UsageError(f"it is {list(packed.shape)} among the packed and {list(thinned.shape)} among the sparse")
    if min(thinned.shape, default=0) < 0:
        raise UsageError(f"no tensor has the shape {list(thinned.shape)}")
