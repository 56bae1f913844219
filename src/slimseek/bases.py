"""The bases of the plug-ins: what a family, a method, a runtime, a metric, a reader and an index can be asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np

from slimseek.collection import Blocks, Collection, Hits, Qrels
from slimseek.errors import UsageError
from slimseek.schema import Array, Batch, Encode, Function, Layer, Model, Precision, Samples, Tensor, Widths
from slimseek.value import Value

if TYPE_CHECKING:
    import onnx
    from torch import nn


class Family(ABC):
    """A kind of model: reads its files, runs it for reference, and writes it back as an ordinary model."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether this path looks like a model of this family."""

    @abstractmethod
    def open(self, path: Path) -> Model:
        """Read the model; a half or broken folder raises UsageError naming what is missing."""

    @abstractmethod
    def run(self, model: Model, threads: int) -> Encode:
        """The reference implementation: float arithmetic on the dequantized weights, activations rounded as they
        will be.
        """

    @abstractmethod
    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Run batches and show each linear layer's input to ``visit(weight name, float32 [tokens, width])``, padding
        left out and divided by the layer's smoothing, as the stored weight meets it; a convolution's input
        [n, channels, ...] too, and its result as ``NAME#output``.
        """

    def trainable(self, model: Model) -> nn.Module:
        """The network in PyTorch, its weights under their tensors' names; UsageError where there is none."""
        raise UsageError(f"models of the family {model.spec.family} cannot be trained")

    def classifier(self, model: Model, classes: Sequence[str], seed: int) -> Model:
        """The model with a new linear layer on its vector that gives the logits of these classes, random by the seed;
        UsageError where the family has no such form.
        """
        raise UsageError(f"models of the family {model.spec.family} cannot be made classifiers")

    @abstractmethod
    def to_onnx(self, model: Model) -> onnx.ModelProto:
        """The whole function as a float32 graph with dynamic batch and length. Every weight is an initializer that
        carries its tensor's name; its smoothing is undone.
        """

    def functions(self, model: Model) -> Mapping[str, onnx.ModelProto]:
        """Graphs as :meth:`to_onnx` has them: ``model``, or of a recogniser ``encoder`` and ``decoder``."""
        return {"model": self.to_onnx(model)}

    def computed(self, model: Model, threads: int) -> Mapping[str, Function]:
        """The reference implementation of a recogniser's :meth:`functions`; UsageError where the family has none."""
        raise UsageError(f"models of the family {model.spec.family} give no transcripts")

    def parts(self, model: Model) -> tuple[onnx.ModelProto, Mapping[str, Array]]:
        """The whole function as :meth:`to_onnx` gives it, and those of its weights that are no initializers in it."""
        return self.to_onnx(model), {}

    def resized(self, model: Model, graph: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> Model:
        """The model with tensors of other shapes, its configuration written so; ``graph`` computes it, with weights
        where :meth:`parts` has them. UsageError where the family cannot.
        """
        raise UsageError(f"the shapes of a model of the family {model.spec.family} cannot be changed")

    def factorable(self, model: Model) -> tuple[Layer, ...]:
        """Layers for :meth:`factored`: a matrix [outputs, inputs] that meets its whole input, and is no factor yet."""
        return ()

    def factored(self, model: Model, factors: Mapping[str, tuple[Array, Array]]) -> Model:
        """The model in which layers have become two, the second of which keeps the bias.

        Args:
            model: float, neither smoothed nor rounded.
            factors: by the name of the weight, float32 B [outputs, rank] and A [rank, inputs], which compute
                B (A x) in its place; the inputs of a convolution are its channels times its window.

        Raises:
            UsageError: the family cannot.
        """
        raise UsageError(f"layers of a model of the family {model.spec.family} cannot be factored")

    def projected(self, model: Model, matrix: Array) -> Model:
        """The model whose vectors are multiplied by ``matrix``, float32 [dim after, dim before], before they are
        brought to length one where they are; UsageError where the family cannot.
        """
        raise UsageError(f"vectors of a model of the family {model.spec.family} cannot be projected")

    def windowed(self, model: Model, seconds: int, whole: bool) -> Model:
        """The model that hears fewer seconds at once, longer ones in parts or ``whole``; UsageError where it cannot."""
        raise UsageError(f"the window of a model of the family {model.spec.family} cannot be made shorter")

    def widths(self, model: Model) -> Widths:
        """The shape that :meth:`narrowed` can change; UsageError where there is none."""
        raise UsageError(f"a model of the family {model.spec.family} has no widths that could be chosen")

    def narrowed_shapes(self, model: Model, hidden: int, inner: int) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor that :meth:`narrowed` would give."""
        raise UsageError(f"a model of the family {model.spec.family} has no widths that could be chosen")

    def narrowed(self, model: Model, hidden: int, inner: int) -> Model:
        """The model with fewer channels, heads and inner units: those that weigh most, with the weights they have.

        Args:
            model: float, neither smoothed nor rounded.
            hidden: channels, a multiple of the width of a head.
            inner: units of each feed-forward part.

        Raises:
            UsageError: the family cannot.
        """
        raise UsageError(f"a model of the family {model.spec.family} has no widths that could be chosen")

    def feature_layers(self, model: Model) -> tuple[Layer, ...]:
        """The linear layers that read the rows of features, which nothing else reads; empty where that is not so."""
        return ()

    def with_features(
        self, model: Model, kept: int, tensors: Mapping[str, Tensor], added: Mapping[str, Array]
    ) -> Model:
        """The model that takes rows of ``kept`` features.

        Args:
            model: one with :meth:`feature_layers`.
            kept: features that are left.
            tensors: all tensors, those of the first layers for so many inputs.
            added: by the weight of a first layer, float32 [outputs] that is added to its result.
        """
        raise UsageError(f"features of a model of the family {model.spec.family} cannot be reduced")

    @abstractmethod
    def save(self, model: Model, folder: Path) -> None:
        """Write the dense model as the usual libraries load it."""

    def unused(self, model: Model) -> frozenset[str]:
        """Names of the tensors that the vector does not need, which no package holds."""
        return frozenset()

    def quantized_by(self, model: Model) -> tuple[str, ...]:
        """What shows that others quantized the model before it came here; empty where nothing does."""
        return ()

    def readers(self, model: Model) -> Mapping[str, str]:
        """Kind of the operator that reads each tensor, for messages; empty where the family does not know."""
        return {}

    @abstractmethod
    def macs(self, model: Model, length: int) -> int:
        """Multiply-accumulates for one item; a text has ``length`` tokens."""

    def layer_macs(self, model: Model, length: int) -> dict[str, int]:
        """The same of each layer, by the name of its weight, as often as a layer has it; tables but look up."""
        found = {layer.weight: 0 for layer in model.layers}
        for layer in model.layers:
            if layer.kind != "embedding":
                found[layer.weight] += length * int(np.prod(model.tensors[layer.weight].shape))
        return found


class Step(Value, frozen=True):
    """Base of every method: its fields are its parameters, checked in ``__post_init__``.

    Attributes:
        trains: whether it wins back what earlier steps lost, so that their loss of quality is judged after it.
        bounds: whether its size hangs on values, so that :meth:`outline` gives the fewest bytes, not the very ones.
    """

    trains: ClassVar[bool] = False
    bounds: ClassVar[bool] = False

    @property
    def as_needed(self) -> bool:
        """Whether it finds out by itself if a model needs it; a recipe goes on without it where it has no effect."""
        return False

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher's vectors are computed for it before it trains, which a cluster can do."""
        return False

    @abstractmethod
    def apply(self, model: Model, samples: Samples) -> Model:
        """The changed model, always a new one. Raises NoEffect when nothing would change."""

    def outline(self, model: Model, samples: Samples) -> Model:
        """What :meth:`apply` would give, in names, shapes, dtypes, bits and files alone: tensors that it would change
        hold nothing worth reading (see :mod:`slimseek.hollow`), and those of the model given may be such too.

        The model itself where no size changes. What shapes do not tell is taken as the largest that it can be; the
        class then says so by ``bounds``. Raises what ``apply`` would, as far as shapes tell it.
        """
        return model

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What a reader of the report should know of this step."""
        return ()


class Backend(ABC):
    """A runtime: writes a package from a model and opens it again.

    Attributes:
        local: whether its packages are meant to run on a machine like this one, so that ``auto`` considers it.
        transcribes: whether it takes recognisers, as :meth:`function` opens them.
        most_documents: how many documents a package can :meth:`hold` and search by itself; 0 for one that encodes
            alone.
        elsewhere: files of a package for other machines than this one; they count as nothing that is shipped here.
    """

    local: ClassVar[bool] = True
    transcribes: ClassVar[bool] = False
    most_documents: ClassVar[int] = 0
    elsewhere: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def available(self) -> str | None:
        """``None`` when packages can be written here, else the reason and what would bring it."""

    def runs(self) -> str | None:
        """``None`` when packages run here, else the reason: one that needs a device is written and checked without."""
        return self.available()

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Libraries and versions that this package was written and tested with."""

    def preflight(self, model: Model) -> Any:
        """Refuse, before any long work, a model whose operators, shapes or integers this runtime does not take.

        Returns:
            What was built on the way, for :meth:`export` of the same model to go on from; ``None`` if nothing was.

        Raises:
            UsageError: names what is not taken, and the target that takes it.
        """
        return None

    def lowered(self, graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
        """The float graph with the model's integers in it, as this runtime takes them: most of what ``export`` does.

        Raises:
            UsageError: the runtime takes no graphs in ONNX.
        """
        raise UsageError(f"{type(self).__name__} takes no graphs in ONNX")

    @abstractmethod
    def export(self, model: Model, folder: Path, ready: Any = None) -> None:
        """Write the runtime's files into an existing folder.

        Args:
            model: whose integers are written.
            folder: an existing, empty one.
            ready: what :meth:`preflight` of this model gave, and is used up; ``None`` builds it here.
        """

    def beside(self) -> int:
        """Bytes of the files of every package that do not hang on the model, such as a runtime that goes with it."""
        return 0

    def hold(self, folder: Path, vectors: Array, corpus: Mapping[str, str]) -> None:
        """Put float32 [documents, dim] vectors and the texts by their ids, in the same order, into a package."""
        raise UsageError(f"packages of {type(self).__name__} hold no documents")

    @abstractmethod
    def open(self, folder: Path, threads: int) -> Encode:
        """Load what ``export`` wrote."""

    def function(self, folder: Path, name: str, threads: int) -> Function:
        """One of the graphs of a recogniser, which ``export`` wrote; UsageError where the runtime has no such packages.

        Args:
            folder: the package.
            name: ``encoder`` or ``decoder``.
            threads: of the runtime.
        """
        raise UsageError(f"packages of {type(self).__name__} hold no recognisers")

    def stand_in(self, folder: Path, threads: int) -> Encode:
        """What computes the same as the package where :meth:`runs` says that it cannot run, for the check of parity."""
        return self.open(folder, threads)

    @abstractmethod
    def stored(self, folder: Path) -> Mapping[str, Array]:
        """The integers of linear layers, convolutions and tables as they stand in the package, unpacked, int8 or
        uint8 in the artifact's orientation, by their tensor's name; where the runtime has a form of its own (another
        grid, fewer or more bits), its dequantized values, float32.

        Signed integers of eight bits may stand unsigned, 128 added, where the runtime multiplies these exactly.
        """


class Metric(ABC):
    """A measure of a ranking."""

    label: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    default_cutoff: ClassVar[int | None] = 10

    def depth(self, qrels: Qrels, cutoff: int | None) -> int | None:
        """How many ranks it looks at; ``None`` for as many as there are."""
        return cutoff

    @abstractmethod
    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query; ``ranking`` lists document ids, best first."""


class ErrorRate(ABC):
    """A measure of transcripts, such as word error rate: less is better, and 0 is best."""

    label: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    @abstractmethod
    def per_query(self, references: Mapping[str, str], hypotheses: Mapping[str, str]) -> dict[str, float]:
        """The value of each recording, by its id, from what was said and what was heard; their mean is the rate."""


class Dataset(ABC):
    """A reader of one layout of collection."""

    @abstractmethod
    def recognises(self, path: str) -> bool:
        """Whether this name or path is of this layout."""

    @abstractmethod
    def read(self, path: str) -> Collection:
        """Read it; a broken collection raises UsageError naming the file and the line."""


class Index(ABC):
    """Nearest neighbours of vectors by inner product; every kind is made by ``Kind(precision=...)``.

    Attributes:
        precision: how the vectors of documents are kept; those of queries stay float32.
        precisions: what ``precision`` may be.
    """

    precision: Precision
    precisions: ClassVar[tuple[Precision, ...]] = get_args(Precision)

    @abstractmethod
    def build(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] vectors; ids are their positions. ``threads`` is for kinds that build in parallel."""

    @abstractmethod
    def write(self, folder: Path, blocks: Blocks, threads: int = 1) -> None:
        """What :meth:`build` and :meth:`save` would write into an existing folder, from vectors block by block."""

    @abstractmethod
    def add(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] more; their ids go on from the last. Ranges stay as they are: values outside them
        saturate.
        """

    @abstractmethod
    def remove(self, ids: Array) -> None:
        """Give up the vectors of int64 [n] ids; those that stood after them move up.

        Raises:
            UsageError: an id that is not there, or nothing would be left.
        """

    def forget(self) -> None:
        """Delete what is kept elsewhere than in the folder; most kinds keep nothing there."""
        return None

    @abstractmethod
    def query(self, vectors: Array, k: int) -> Hits:
        """The ``k`` best for each of float32 [q, dim] vectors."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing folder."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote with the same precision; a file that is cut or of another kind raises
        ArtifactError.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the index takes on disk, and in memory while it is searched."""
