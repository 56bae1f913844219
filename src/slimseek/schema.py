"""The types that stages hand to each other.

Value types are frozen msgspec structs: they are checked when read and go to JSON and back. Types that carry arrays
are frozen dataclasses. Nothing here computes anything; numpy is the only array library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    pass

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
GateStatus = Literal["passed", "failed", "undecided"]
LayerKind = Literal["linear", "embedding", "convolution", "recurrent"]
OUTPUT_RANGE = "#output"
Precision = Literal["f32", "f16", "int8", "binary"]


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plain frozen value; a field that the type does not know is refused when it is read from a file."""


# ---------------------------------------------------------------- models


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


class TextPreprocess(Value, frozen=True):
    """How a text becomes token ids: kept with the model, so that training and serving do the same.

    Attributes:
        max_length: longest sequence in tokens, special tokens included; longer texts are cut.
        pad_id: id that fills a row up to the batch's length.
        query_prefix: text put before every query (``"query: "`` for E5), often empty.
        document_prefix: text put before every document, often empty.
        token_table: name of the tensor that holds one row a token; ``None`` when it is not known.
    """

    max_length: int
    pad_id: int = 0
    query_prefix: str = ""
    document_prefix: str = ""
    token_table: str | None = None


class FeaturePreprocess(Value, frozen=True, omit_defaults=True):
    """How a row of features becomes the narrower one that the network takes: some columns, or a projection.

    Attributes:
        width: of the items as they are stored.
        columns: those that are kept, ascending; empty for a projection z = (x - mean) P.
        mean: float32 [width], little-endian bytes.
        components: P, float32 [width, components], little-endian bytes.
    """

    width: int
    columns: tuple[int, ...] = ()
    mean: bytes = b""
    components: bytes = b""


class PicturePreprocess(Value, frozen=True, omit_defaults=True):
    """How a picture becomes pixels: kept with the model, so that training and serving do the same.

    value = (pixel * rescale - mean) / std, pixels from 0 to 255 in RGB.

    Attributes:
        height: of what the network takes, in pixels; ``width`` likewise.
        fit: ``squash`` resizes both sides to it; ``crop`` resizes the picture so that the middle ``crop_share`` of its
            shorter side fills it, and cuts the rest off.
        resample: the filter of the resizing.
        rescale: factor of the pixels.
        mean: of each channel, after the factor.
        std: of each channel, after the factor.
        channels_last: whether the network takes [n, height, width, 3] instead of [n, 3, height, width].
        bgr: whether blue stands first.
    """

    height: int
    width: int
    fit: Literal["squash", "crop"] = "squash"
    crop_share: float = 1.0
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels_last: bool = False
    bgr: bool = False


class SoundPreprocess(Value, frozen=True, omit_defaults=True):
    """How a recording becomes what the network takes: kept with the model, so that training and serving do the same.

    Attributes:
        rate: samples a second that the network was trained on; other recordings are resampled.
        features: ``whisper`` (log-mel spectrum of windows of ``seconds``, as its authors define it), ``log_mel``,
            ``mfcc``, or the ``waveform`` itself.
        seconds: length that a recording is filled up or cut to; 0 for its own.
        window: samples of a frame, and ``hop`` from one to the next.
        hop: see ``window``.
        mels: bands of the mel scale.
        low: lowest frequency of the bands in Hz, and ``high`` the highest; 0 for half of the rate.
        high: see ``low``.
        coefficients: of the cepstrum that are kept, where the features are ``mfcc``.
        channels_last: whether the network takes [n, frames, bands] (and [..., 1] where its input has four axes)
            instead of [n, bands, frames].
    """

    rate: int
    features: Literal["whisper", "log_mel", "mfcc", "waveform"]
    seconds: float = 0.0
    window: int = 400
    hop: int = 160
    mels: int = 80
    low: float = 0.0
    high: float = 0.0
    coefficients: int = 0
    channels_last: bool = False


class Decoding(Value, frozen=True, omit_defaults=True):
    """How the scores of a recogniser become text, the likeliest token each time.

    Attributes:
        kind: ``autoregressive`` (a decoder that reads what it has said) or ``ctc`` (a token for each frame; repeated
            ones are one, and blanks are left out).
        end: id of the token that ends a transcript; of ``ctc`` the blank.
        prompt: ids that every transcript begins with; the language's token stands after the first where there are
            ``languages``.
        languages: token of each language that can be asked for; empty for a model of one language.
        language: whose token is used; ``""`` for the likeliest one in each recording.
        suppressed: ids that are never said.
        suppressed_first: ids that are not said first.
        most: tokens of a window at most.
    """

    kind: Literal["autoregressive", "ctc"]
    end: int
    prompt: tuple[int, ...] = ()
    languages: dict[str, int] = {}
    language: str = ""
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    most: int = 224


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
    def parameters(self) -> int:
        """Number of weights, integer buffers left out."""
        return sum(
            int(np.prod(tensor.shape))
            for tensor in self.tensors.values()
            if isinstance(tensor, QuantizedTensor) or is_float(tensor)
        )


# ---------------------------------------------------------------- data


class Finding(Value, frozen=True):
    """Something counted in a collection: ``what`` in words, how many, a few examples."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


Qrels = dict[str, dict[str, int]]
"""Query id to document id to relevance; 0 is judged and not relevant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """A collection to search: items by id, and the judgements of each split.

    Attributes:
        name: for reports.
        path: where it was read from.
        corpus: document id to text (title and text joined by a blank), or to the path of a picture, recording or array.
        queries: query id to the same.
        qrels: split (``train``, ``dev``, ``test``) to judgements.
        findings: what the reader counted and any fault it met.
        labelled: whether the task is to name the class of an item: the queries are the items, the corpus holds the
            names of the classes, and the one relevant of them is the item's.
        said: text that belongs to an item which is a file, by the item: the caption of a picture, the transcript of a
            recording; ``""`` where there is none.
        by_label: whether relevant documents are those of a query's label: then one that is a query too is never its own
            result, by its id.
    """

    name: str
    path: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, Qrels]
    findings: tuple[Finding, ...] = ()
    labelled: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    by_label: bool = False

    @property
    def label(self) -> dict[str, str]:
        """The class of each item of a labelled collection, by its id."""
        return {name: next(iter(row)) for judged in self.qrels.values() for name, row in judged.items()}

    @property
    def items(self) -> dict[str, str]:
        """What there is to read, by id: the documents, or the items that have a class."""
        return self.queries if self.labelled else self.corpus


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchSet:
    """What one evaluation searches: the queries of one split that have a judgement, and the documents.

    Attributes:
        name: collection and split.
        queries: query id to text.
        corpus: document id to text.
        qrels: judgements of exactly these queries.
        labelled: whether the corpus holds the names of classes (see :class:`Collection`).
        said: text that belongs to an item which is a file, by the item (see :class:`Collection`).
        by_label: whether relevant documents are those of a query's label (see :class:`Collection`).
    """

    name: str
    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: Qrels
    labelled: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    by_label: bool = False

    @property
    def items(self) -> dict[str, str]:
        """What there is to read, by id: the documents, or the items that have a class."""
        return self.queries if self.labelled else self.corpus


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Vectors that come block by block, as often as they are asked for: never are all of them in memory.

    Attributes:
        count: how many vectors there are, at least 1.
        dim: their width.
        each: gives the blocks in order, finite float32 [m, dim].
    """

    count: int
    dim: int
    each: Callable[[], Iterable[Array]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """Search results: best first, ties by id; -1 fills up where there are fewer documents than ``k``.

    Attributes:
        ids: int64 [queries, k], positions in the index.
        scores: float32 [queries, k].
    """

    ids: Array
    scores: Array


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


# ---------------------------------------------------------------- measurements


class Measurement(Value, frozen=True):
    """One measured figure.

    Attributes:
        name: such as ``ndcg@10``, ``size``, ``latency_p50``.
        value: in ``unit``.
        unit: ``""`` for a score, ``B``, ``ms``, ``items/s``, ``MAC``.
        n: how many queries or repetitions it is taken from.
        interval: 95 % interval (low, high), where one was computed.
        per_query: the value of each query, in the order of the set, where there is one.
    """

    name: str
    value: float
    unit: str = ""
    higher_is_better: bool = True
    n: int = 0
    interval: tuple[float, float] | None = None
    per_query: tuple[float, ...] | None = None


class Environment(Value, frozen=True):
    """The machine of a measurement."""

    cpu: str
    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


class Report(Value, frozen=True):
    """Figures of one subject, with the machine they were taken on."""

    subject: str
    environment: Environment
    measurements: tuple[Measurement, ...]

    def get(self, name: str) -> Measurement | None:
        """The measurement of that name, or ``None``."""
        return next((m for m in self.measurements if m.name == name), None)


class Change(Value, frozen=True):
    """A paired comparison of one metric: relative change = (after - before) / before, on the same queries.

    Attributes:
        before: the baseline's mean.
        after: the subject's mean.
        relative: relative change of the mean, negative for a loss.
        interval: two-sided 95 % paired bootstrap interval of the relative change.
        lower_bound: one-sided 95 % lower bound of the relative change; it allows for losses that n queries need not
            show, so that for few it lies below the interval.
        n: number of queries.
        n_needed: queries it would take to show a loss below the asked one; ``None`` where this n is enough, or no
            number would do.
        points: whether the change is of an error rate, where it is no share but a difference, before - after, negative
            for a loss as well: -0.01 is one more error in a hundred words. Unset for all others.
    """

    metric: str
    before: float
    after: float
    relative: float
    interval: tuple[float, float]
    lower_bound: float
    n: int
    n_needed: int | None = None
    points: bool | msgspec.UnsetType = msgspec.UNSET


class GateResult(Value, frozen=True):
    """One gate; ``undecided`` means that the loss measured is inside, but n is too small to prove it."""

    gate: str
    status: GateStatus
    detail: str
    value: float | None = None
    limit: float | None = None


class StepRecord(Value, frozen=True):
    """What one step did, and what it cost.

    Attributes:
        step: the method's name.
        parameters: the method's settings, enough to run it again.
        changed: names of the tensors, layers or files that it changed.
        parameters_before: number of weights before, and ``_after`` after.
        bytes_before: bytes of the weights before, and ``_after`` after, as they are stored.
        macs_before: multiply-accumulates for one text of 128 tokens, and ``_after`` after.
        seconds: wall time of the step alone.
        compression_ratio: bytes after / bytes before.
        error_mean: mean absolute difference of the changed weights, quantized - original; ``None`` if not comparable.
        error_max: largest absolute difference.
        sqnr_db: signal to quantization noise of the changed weights in decibels.
        quality: change of the metric on the development queries against the original, if it was measured.
        gates: gates checked after this step.
        notes: what the step has to say, such as the share of tokens kept.
    """

    step: str
    parameters: dict[str, Any]
    changed: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    macs_before: int
    macs_after: int
    seconds: float
    compression_ratio: float
    error_mean: float | None = None
    error_max: float | None = None
    sqnr_db: float | None = None
    quality: Change | None = None
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- recipes and artifacts


class Gates(Value, frozen=True):
    """What a recipe promises: the largest relative loss of a metric, for example 0.01 for one per cent."""

    metric: str = "ndcg@10"
    max_loss: float = 0.01


class RecipeStep(Value, frozen=True):
    """A method by its name in ``methods/`` with its parameters."""

    method: str
    parameters: dict[str, Any] = {}


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


class FileEntry(Value, frozen=True):
    """A file of a folder: relative path, size, and sha256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


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


class Comparison(Value, frozen=True):
    """Original and compressed side by side: the content of a run's report.

    Attributes:
        collection: name of the collection and split.
        original: figures of the original.
        compressed: figures of the result.
        alternatives: figures of what a user could do instead.
        changes: paired differences of the metrics.
        gates: the gates of the whole run.
        records: what each step did.
        bytes_before: bytes of weights by part of the model, before.
        bytes_after: the same after.
        examples: queries that changed most.
        command: the command that made it.
        notes: what a reader must know.
        alone: of a recogniser, what the compression of each part alone does to its word error rate on development
            recordings; unset where nothing was attributed.
    """

    collection: str
    original: Report
    compressed: Report
    alternatives: tuple[Report, ...] = ()
    changes: tuple[Change, ...] = ()
    gates: tuple[GateResult, ...] = ()
    records: tuple[StepRecord, ...] = ()
    bytes_before: dict[str, int] = {}
    bytes_after: dict[str, int] = {}
    examples: tuple[QueryExample, ...] = ()
    command: str = ""
    notes: tuple[str, ...] = ()
    alone: dict[str, Change] | msgspec.UnsetType = msgspec.UNSET


class QueryExample(Value, frozen=True):
    """A query with the titles that each model puts first, and whether each is relevant."""

    query: str
    before: tuple[tuple[str, bool], ...]
    after: tuple[tuple[str, bool], ...]
    score_before: float
    score_after: float
