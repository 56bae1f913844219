"""The types of what is compressed and by what: tensors, models, samples, recipes.

Value types are frozen msgspec structs: they are checked when read and go to JSON and back. Types that carry arrays
are frozen dataclasses. Nothing here computes anything; numpy is the only array library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from slimseek.preprocess import Decoding, FeaturePreprocess, PicturePreprocess, SoundPreprocess, TextPreprocess
from slimseek.value import Value

Array = np.ndarray
Batch = dict[str, Array]
Encode = Callable[[Batch], Array]
"""What can be measured: named input arrays to float32 vectors of shape [n, dim]."""
Function = Callable[[Batch], Batch]
"""A graph of several results, such as a decoder's step: named input arrays to named output arrays."""
Transcribe = Callable[[Batch], list[str]]
"""A recogniser: named input arrays to the text of each item."""

Modality = Literal["text", "image", "speech", "array"]
OutputKind = Literal["embedding", "class_logits", "transcript"]
Granularity = Literal["tensor", "channel", "group"]
Float8 = Literal["e4m3", "e5m2"]
LayerKind = Literal["linear", "embedding", "convolution", "recurrent"]
OUTPUT_RANGE = "#output"
Precision = Literal["f32", "f16", "int8", "binary"]


class TensorSpec(Value, frozen=True, omit_defaults=True):
    """An input of a model: its name, dtype, and shape, where a string is a symbolic axis such as ``"batch"``.

    Attributes:
        length: of the symbolic axes but the batch in random items, for checks that have no data at hand.
        number: the greatest integer in random items, the only one in an input that all items of a batch share.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    length: int = 512
    number: int = 0


class ModelSpec(Value, frozen=True):
    """What a model takes and gives, whatever runs it.

    Attributes:
        family: the plug-in of ``models/`` that understands its files.
        dim: width of the vectors it gives.
        normalised: whether its vectors have length one.
        preprocess: how a text becomes ids; ``None`` for a model whose items are no texts.
        classes: names of the classes whose logits it gives, in order; unset for a model that gives embeddings.
        features: how rows of features are reduced when they are read; unset for a model that takes items as they are.
        picture: how a picture becomes pixels; unset for a model whose items are no pictures.
        sound: how a recording becomes what the network takes; unset for a model whose items are no recordings.
        decoding: how scores become text; set where the output is ``transcript``.
    """

    family: str
    modality: Modality
    output: OutputKind
    inputs: tuple[TensorSpec, ...]
    dim: int
    normalised: bool
    preprocess: TextPreprocess | None
    classes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    features: FeaturePreprocess | msgspec.UnsetType = msgspec.UNSET
    picture: PicturePreprocess | msgspec.UnsetType = msgspec.UNSET
    sound: SoundPreprocess | msgspec.UnsetType = msgspec.UNSET
    decoding: Decoding | msgspec.UnsetType = msgspec.UNSET

    @property
    def autoregressive(self) -> bool:
        """Whether it is a recogniser whose decoder reads what it has said, so that it is two functions."""
        return self.decoding is not msgspec.UNSET and self.decoding.kind == "autoregressive"

    @property
    def token_table(self) -> str | None:
        """Name of the tensor that holds one row a token; ``None`` where there is none or it is not known."""
        return self.preprocess.token_table if self.preprocess is not None else None


class Layer(Value, frozen=True):
    """A part of a model that a method may change: which tensor is its weight, and which axis its outputs.

    Attributes:
        name: the layer's name in the model.
        kind: ``linear``, ``embedding``, ``convolution`` or ``recurrent``.
        weight: name of its weight tensor.
        axis: the weight's axis of output channels (0 for ``nn.Linear``, 1 for an ONNX MatMul, 0 for a table's rows).
        bias: name of the tensor [outputs] that is added to what this weight gives, and to nothing else; unset where
            there is none, or its name is not known. Only linear layers name theirs.
    """

    name: str
    kind: LayerKind
    weight: str
    axis: int = 0
    bias: str | msgspec.UnsetType = msgspec.UNSET


class Widths(Value, frozen=True):
    """The shape of a transformer.

    Attributes:
        layers: its blocks.
        hidden: channels that run from block to block.
        heads: of each block's attention; together they are as wide as the channels.
        inner: units of each block's feed-forward part.
    """

    layers: int
    hidden: int
    heads: int
    inner: int


class QuantSpec(Value, frozen=True):
    """How a tensor's integers, or its eight-bit floats, are to be read.

    Attributes:
        bits: width of an integer, 2 to 8; of a number in a code book, 1 to 8.
        granularity: one scale for the tensor, for each channel, or for each group of values in a channel.
        group_size: values that share a scale; ``None`` unless the granularity is ``group``.
        symmetric: whether zero is stored as 0 (signed integers) or as ``zero_point`` (unsigned integers).
        axis: the axis of channels.
        float8: format of eight-bit floats (symmetric, no groups); unset for integers, whose manifests do not name it.
        entries: values in a code book, 1 to 2^bits (no groups, no scales): the tensor's, or one book for each channel;
            unset where there is none.
    """

    bits: int
    granularity: Granularity
    group_size: int | None = None
    symmetric: bool = True
    axis: int = 0
    float8: Float8 | msgspec.UnsetType = msgspec.UNSET
    entries: int | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor:
    """The integers of a tensor with their scales: value = (integer - zero_point) * scale; or, where weights share their
    values, with a code book: value = codebook[channel, integer].

    Attributes:
        spec: how to read them.
        integers: int8 (symmetric) or uint8, or eight-bit floats (float8_e4m3fn, float8_e5m2) in their place; in the
            tensor's own shape.
        scale: float32 or float16, [channels, groups] ([1, 1] for granularity ``tensor``).
        zero_point: uint8 of the scale's shape, or ``None`` when symmetric.
        codebook: float32 or float16, [channels, entries] ([1, entries] for granularity ``tensor``), in which uint8
            integers are places; ``None`` for all other tensors. Beside it the scale is 1, [1, 1], and not stored.
    """

    spec: QuantSpec
    integers: Array
    scale: Array
    zero_point: Array | None = None
    codebook: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's own shape."""
        return self.integers.shape


class ActivationQuant(Value, frozen=True):
    """How the input of a layer is rounded to eight bits before it meets the layer's integers.

    Attributes:
        mode: ``static``: one range, fixed by calibration; ``dynamic``: each row (token) has its own, so that a
            row never depends on another.
        scale: step of the static range, 0 when dynamic.
        zero_point: unsigned integer, 0 to 255, that stands for 0.0; 128 when dynamic (symmetric).
    """

    mode: Literal["static", "dynamic"]
    scale: float = 0.0
    zero_point: int = 128


Tensor = Array | QuantizedTensor


def is_float(array: Array) -> bool:
    """Whether an array holds floats of any width; numpy itself does not count bfloat16 among them."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A compressible model as plain data: what the artifact stores, what methods change, what families run.

    Attributes:
        spec: what goes in and comes out.
        files: the small files of its folder (configuration, tokenizer), path to content.
        tensors: every weight and buffer by name: float32, float16, bfloat16, an integer buffer, or
            quantized.
        layers: the layers that methods may change.
        activations: weight name to the rounding of that layer's input; ``NAME#output`` to that of a convolution's
            result, after its activation.
        smoothing: weight name to float32 factors s, [1, inputs] or, where outputs lie on axis 1, [inputs, 1]. The
            stored tensor is the network's weight times s, and a layer that rounds its input divides it by s before:
            y = (x / s) (s W)^T. Whatever else reads the tensor divides that.
        tied: name that the network has for a tensor to the name of the one in ``tensors`` that stands in its place:
            parts that use the same tensor, which is trained, changed and stored once. Layers name the latter.
        said: what a step that made it found out on the way, for its own notes and nobody else; it is not stored.
    """

    spec: ModelSpec
    files: Mapping[str, bytes]
    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    activations: Mapping[str, ActivationQuant] = field(default_factory=dict)
    smoothing: Mapping[str, Array] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, Tensor]:
        """Every tensor by each of the names that the network has for it."""
        return {**self.tensors, **{name: self.tensors[own] for name, own in self.tied.items()}}

    @property
    def token_table(self) -> str | None:
        """Name of the tensor with one row a token, of a recogniser the one that its output is tied to; ``None`` where
        there is none or it is not known.
        """
        if not self.spec.decoding:
            return self.spec.token_table
        tables = {layer.weight for layer in self.layers if layer.kind == "embedding"}
        return next((name for name in self.tied.values() if name in tables), None)

    @property
    def parameters(self) -> int:
        """Number of weights, integer buffers left out."""
        return sum(
            int(np.prod(tensor.shape))
            for tensor in self.tensors.values()
            if isinstance(tensor, QuantizedTensor) or is_float(tensor)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What a step may look at: never a test query.

    Attributes:
        calibration: a random part of the texts, for activation ranges.
        texts: all documents and the train and dev queries.
        original: the model as it was before the first step, for steps that learn from it; ``compress.run`` fills it in
            where it is ``None``.
        queries: the train and dev queries among the texts.
        labels: the class of each text, from 0, in the order of ``texts``; -1 where it is not known, empty for none.
        classes: names of the classes that the labels number; empty where they are the numbers of the model's outputs.
    """

    calibration: Sequence[str]
    texts: Sequence[str]
    original: Model | None = None
    queries: Sequence[str] = ()
    labels: Sequence[int] = ()
    classes: Sequence[str] = ()


# ---------------------------------------------------------------- recipes


class Gates(Value, frozen=True):
    """What a recipe promises: the largest relative loss of a metric, for example 0.01 for one per cent."""

    metric: str = "ndcg@10"
    max_loss: float = 0.01


class RecipeStep(Value, frozen=True):
    """A method by its name in ``methods/`` with its parameters."""

    method: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class Recipe(Value, frozen=True):
    """Steps in order, the gates that hold after each, the runtimes it is meant for.

    Attributes:
        student: the MODEL that the steps begin with; unset for the original. The original stays what they are judged
            by, and what steps of distillation learn from.
    """

    steps: tuple[RecipeStep, ...]
    gates: Gates = Gates()
    targets: tuple[str, ...] = ("onnxruntime",)
    seed: int = 0
    name: str = "recipe"
    student: str | msgspec.UnsetType = msgspec.UNSET
