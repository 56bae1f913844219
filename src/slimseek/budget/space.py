"""What a search under a budget may choose for a model.

Left out is what never won where it was measured (docs/quantization.md, docs/distillation.md, the cards of methods):
rounding to nearest, where compensated rounding takes the same bytes; fp8 and bf16, which take those of int8 and fp16;
aware training, which keeps no more than compensated rounding; low rank, which takes a tenth of the bytes and costs
MiniLM 2 % of its quality; heads, code books and single zeros, which save little or no time. Blocks are evenly spread,
since the first and the last ones were worse.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

from slimseek import choose, integers, plugins
from slimseek.budget.sizes import tried
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.unlabelled import SENTENCE
from slimseek.schema import Gates, Model, OutputKind, Precision, QuantizedTensor, RecipeStep, Samples
from slimseek.trial import Budget
from slimseek.value import Value

BITS = (32, 16, 8, 6, 5, 4, 3, 2)
CONVOLUTION_BITS = (32, 16, 8, 6, 4)
"""Below 4, where nothing compensates what rounding does to a convolution, nothing is left."""
GROUPS = (128, 64, 32)
MIXED = (2, 3, 4, 5, 6, 8)
"""What a layer may get where bits are chosen layer by layer."""
EFFORTS = (0, 300, 1000, 3000)
TEXTS, ARRAYS = 64, 16
"""Items in a batch of training."""
SHARE_OF_TIME = 0.25
"""Of the time that is left: what one training may take."""
SECONDS_PER_MAC = 2.2e-11
"""Of training, for one multiply-accumulate of one item: three blocks of MiniLM, 0.7e9 for 128 tokens, take about a
second for a batch of 64 on two cores (the recipe ``distil``), and sentences have a third of these tokens."""
SECONDS_PER_STEP = 0.03
"""Of training, whatever the network: what PyTorch takes to begin with each operation."""
TRAINED_PER_ENCODED = 11
"""Of what is no text: time of training on an item, its teacher's vector with it, for that of encoding it in a runtime.
Convolutions are far from the speed of products: EfficientNet-Lite0 of 70 % of its channels took 1.26 s for a batch of
16, and 7.2 ms to encode a picture."""
TABLE_BATCHES = 300
"""That a table of token vectors is trained on: 1,000 kept no more (docs/methods/distil.static.md)."""
TABLE_LOSS = 0.05
"""Loss from which on a table may be the answer: retrieval loses more by it than averages show."""
TEACHERS_PASS = 1 / 3
"""Of the time of training on an item, what the teacher's vector of it takes."""
KEPT_FIRST = 8000
"""Tokens that a classifier keeps in any case: labelled items are few, and later ones bring other words."""
SAID_FIRST = 30_000
"""Tokens that a recogniser keeps, which says what no collection lists: of Whisper's 51,865 the merges that broad text
made first."""
FEW = 0.1
"""Share of the bytes of linear layers below which convolutions beside them are not worth few bits."""
WINDOWS = (20, 12)
"""Seconds of a Whisper's window for recordings that fit, in the place of 30: most of its time goes by them
(docs/voice_search.md).
"""
RECORDINGS = 8
"""In a batch of training; the decoder reads what was said at once there, and not token by token."""
TRAINED_PER_HEARD = 2
"""Of a recogniser: time of training on a recording for that of hearing it; Whisper tiny takes 4 s for a batch of 8."""


class Space(Value, frozen=True):
    """What can be chosen for one model.

    Attributes:
        values: by the name of a choice, what it may be, the least change first; a choice of one value is not named.
            ``network``: ``whole``, or a ``table`` of token vectors in its place, taught by it. ``blocks``: how many are
            kept. ``window``: seconds of a window for recordings that fit it. ``width``: share of channels, or of the
            feed-forward part, that is kept. ``teach``: batches of distillation after a cut. ``dim``: elements of a
            vector; ``dim_first``: whether they go before the distillation. ``vocabulary``: ``whole`` or what is
            ``used``. ``bits`` of weights, 32 and 16 for floats; ``table_bits`` of tables apart; ``allocation``:
            ``even``, or ``mixed`` layer by layer in the same bytes; ``group``: weights that share a scale below 8 bits.
            ``activations``: ``float``, ``dynamic`` or ``static``. ``precision`` of the index.
        depth: blocks of a transformer; 0 for other models.
        dim: width of its vectors.
        window: seconds that it hears at once; 0 where they are not fixed.
        output: what it gives.
        text: whether its items are texts.
        table_share: share of its bytes that is the token table, 0 to 1.
        rest_share: share of its bytes that belongs to no layer, 0 to 1.
        few_convolutions: whether they are a small part beside linear layers, and stay at 8 bits.
        trains_by_gradient: whether a gradient can tell which channels count.
        documents: how many vectors the index holds; 0 where it is not known.
        batches: of training of all its blocks, which the time allows.
        gates: what each recipe promises.
        target: the runtime.
    """

    values: dict[str, tuple[Any, ...]]
    depth: int = 0
    dim: int = 0
    window: float = 0.0
    output: OutputKind = "embedding"
    text: bool = True
    table_share: float = 0.0
    rest_share: float = 0.0
    few_convolutions: bool = False
    trains_by_gradient: bool = False
    documents: int = 0
    batches: float = math.inf
    gates: Gates = Gates()
    target: str = "onnxruntime"

    @property
    def neutral(self) -> dict[str, Any]:
        """Every choice as it is where nothing is chosen."""
        return {
            "network": "whole", "blocks": self.depth, "window": self.window, "width": 1.0, "teach": 0,
            "dim": self.dim, "dim_first": False, "vocabulary": "whole", "bits": 32, "table_bits": 8,
            "allocation": "even", "group": 64, "activations": "float", "precision": "f32",
        }  # fmt: skip

    @property
    def count(self) -> int:
        """How many combinations of values there are; several may make the same plan."""
        return math.prod(len(values) for values in self.values.values())

    def effort(self, blocks: int) -> int:
        """The most batches of training that the time allows a student of so many blocks."""
        allowed = self.batches * self.depth / blocks if blocks else self.batches
        return max((steps for steps in self.values.get("teach", (0,)) if steps <= allowed), default=0)


def space(
    model: Model, budget: Budget, samples: Samples | None = None, *, documents: int = 0, seconds: float | None = None,
    pace: float = 0.0,
) -> Space:  # fmt: skip
    """What can be chosen for a model; what its family cannot take is tried out and left out.

    Choices of the index are there where the budget limits it: they cost quality and save nothing else.

    Args:
        model: the original, of floats.
        budget: what is asked.
        samples: by whose texts a vocabulary would be cut; without them it is offered wherever it can be cut.
        documents: how many vectors the index holds; 0 where it is not known.
        seconds: time that is left, which bounds the trainings that are offered; ``None`` for any.
        pace: seconds in which the original encodes an item in the runtime.

    Raises:
        UsageError: the model is quantized already.
    """
    check_float(model)
    samples = samples or Samples(calibration=(), texts=())
    unused = choose.family(model).unused(model)
    sizes = {name: integers.stored_bytes(tensor) for name, tensor in model.tensors.items() if name not in unused}
    total = sum(sizes.values())
    trains, few = _trains(model), _few_convolutions(model)
    depth = _depth(model)
    batches = _batches(model, seconds, pace)
    cuts = _windows(model, samples) if model.spec.output == "transcript" else _cuts(model, samples, depth)
    smallest = cuts["blocks"][-1] / depth if "blocks" in cuts else 1
    found = {
        "network": ("whole", "table") if _tabled(model, samples, budget, batches) else (),
        **cuts,
        "teach": tuple(steps for steps in EFFORTS if steps * smallest <= batches) if trains else (),
        **_of_index(model, samples, budget),
        **_of_weights(model, samples, few),
    }
    if not cuts:
        found["teach"] = ()
    if len(found["teach"]) > 1 and "dim" in found:
        found["dim_first"] = (False, True)
    return Space(
        values={name: values for name, values in found.items() if len(values) > 1},
        depth=depth,
        dim=model.spec.dim,
        window=(model.spec.sound.seconds or 0.0) if model.spec.sound else 0.0,
        output=model.spec.output,
        text=model.spec.preprocess is not None,
        table_share=sizes.get(model.token_table or "", 0) / total,
        rest_share=1 - sum(sizes.get(name, 0) for name in {layer.weight for layer in model.layers}) / total,
        few_convolutions=few,
        trains_by_gradient=trains,
        documents=documents,
        batches=batches,
        gates=budget.gates,
        target=budget.target,
    )


def check_float(model: Model) -> None:
    """Refuse what is quantized, here or by others.

    Raises:
        UsageError: it is.
    """
    stored = any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values())
    if stored or choose.family(model).quantized_by(model):
        raise UsageError("budget: the model is quantized already; give the float model that it was made from")


def spread(whole: int, count: int) -> tuple[int, ...]:
    """Numbers of so many blocks, the nearest to evenly spaced ones; the first and the last are among them.

    Of six: 0 1 2 4 5, and 0 2 3 5, which are those of docs/distillation.md.
    """
    steps = count - 1
    return tuple(-(-(2 * place * (whole - 1) - steps) // (2 * steps)) for place in range(count))


def _cuts(model: Model, samples: Samples, depth: int) -> dict[str, tuple[Any, ...]]:
    """Fewer blocks, and narrower layers."""
    found: dict[str, tuple[Any, ...]] = {}
    counts = range(depth, 1, -1) if depth <= 8 else [round(depth * share / 6) for share in (6, 5, 4, 3, 2)]
    kept = tuple(count for count in counts if count >= depth / 3)
    if depth > 2 and _works("prune.layers", model, samples, keep=spread(depth, kept[-1])):
        found["blocks"] = kept
    # A transformer's feed-forward part alone is narrowed; the width between its blocks stays.
    shares = (1.0, 0.75, 0.5) if depth else (1.0, 0.85, 0.7, 0.5)
    try:
        layers = plugins.load("methods", "prune.channels")(importance="l2").layers(model, samples)
    except (UsageError, NoEffect):
        return found
    found["width"] = tuple(
        share for share in shares if share == 1 or any(layer.removable(1 - share) for layer in layers)
    )
    return found


def _windows(model: Model, samples: Samples) -> dict[str, tuple[Any, ...]]:
    """A recogniser hears short recordings in a short window. Blocks and channels stay: what a Whisper tiny loses
    without some of them takes more speech to learn again than a collection has (docs/voice_search.md).
    """
    if not _works("simplify.window", model, samples, seconds=WINDOWS[-1], longer="whole"):
        return {}
    assert model.spec.sound
    whole = model.spec.sound.seconds or 0.0
    return {"window": (whole, *(seconds for seconds in WINDOWS if seconds < whole))}


def _batches(model: Model, seconds: float | None, pace: float) -> float:
    """Batches of training of the whole network that the time allows, roughly."""
    if seconds is None:
        return math.inf
    if model.spec.output == "transcript":
        step = RECORDINGS * pace * TRAINED_PER_HEARD
    elif model.spec.preprocess is None:
        step = ARRAYS * pace * TRAINED_PER_ENCODED
    else:
        step = TEXTS * choose.family(model).macs(model, choose.REFERENCE_LENGTH) * SECONDS_PER_MAC
    return SHARE_OF_TIME * seconds / (step + SECONDS_PER_STEP)


def _tabled(model: Model, samples: Samples, budget: Budget, batches: float) -> bool:
    """Whether a table of token vectors is worth a try in the network's place."""
    lossless = budget.max_loss is not None and budget.max_loss < TABLE_LOSS
    if model.spec.output != "embedding" or budget.keep_index or lossless:
        return False
    # It is the teacher that takes the time, and it is asked once for each text and sentence; no more are counted than
    # so many batches hold.
    most = TABLE_BATCHES * TEXTS
    parts = (part for text in samples.texts for part in (text, *SENTENCE.split(text)))
    asked = sum(1 for _ in itertools.islice(parts, most)) or most
    if batches * TEXTS < asked * TEACHERS_PASS:
        return False
    return tried(model, RecipeStep(method="distil.static", parameters={}), samples) is not None


def _of_index(model: Model, samples: Samples, budget: Budget) -> dict[str, tuple[Any, ...]]:
    """Shorter vectors, and fewer bits for each of their elements."""
    if budget.index_size is None and budget.total is None:
        return {}
    found: dict[str, tuple[Any, ...]] = {"precision": get_args(Precision)}
    whole = model.spec.dim
    shorter = sorted({whole * share // 4 // 8 * 8 for share in (3, 2, 1)} - {0, whole}, reverse=True)
    # Vectors that the original gave cannot be searched with shorter ones.
    if (
        shorter
        and not budget.keep_index
        and _works("simplify.output_dim", model, samples, dim=shorter[0], method="cut")
    ):
        found["dim"] = (whole, *shorter)
    return found


def _of_weights(model: Model, samples: Samples, few_convolutions: bool) -> dict[str, tuple[Any, ...]]:
    """Bits by the kinds of layers, and how inputs are rounded; tokens that may leave."""
    kinds = {layer.kind for layer in model.layers} - ({"convolution"} if few_convolutions else set())
    found: dict[str, tuple[Any, ...]] = {}
    if _works("simplify.vocabulary", model, samples, **fewest_tokens(model.spec.output)):
        found["vocabulary"] = ("whole", "used")
    if not kinds:
        return found
    bits = CONVOLUTION_BITS if "convolution" in kinds else BITS
    found |= {"bits": bits, "group": GROUPS}
    if "embedding" in kinds and len(kinds) > 1:
        found["table_bits"] = tuple(one for one in bits if one <= 8)
    if len({layer.weight for layer in model.layers}) > 2:
        found["allocation"] = ("even", "mixed")
    if "convolution" in kinds:
        found["activations"] = ("float", "static")  # a scale for each row is for linear layers
    elif "linear" in kinds:
        found["activations"] = ("float", "dynamic", "static")
    return found


def _few_convolutions(model: Model) -> bool:
    """Whether convolutions are a small part beside linear layers, as the two in front of a Whisper."""
    sizes = {"linear": 0, "convolution": 0}
    for kind, weight in {(layer.kind, layer.weight) for layer in model.layers if layer.kind in sizes}:
        sizes[kind] += integers.stored_bytes(model.tensors[weight])
    return 0 < sizes["convolution"] < FEW * sizes["linear"]


def fewest_tokens(output: OutputKind) -> dict[str, int]:
    """Parameters of the vocabulary's cut: which tokens stay, whoever uses them."""
    first = {"class_logits": KEPT_FIRST, "transcript": SAID_FIRST}.get(output)
    return {"min_count": 1} | ({"keep_first": first} if first else {})


def _depth(model: Model) -> int:
    if model.spec.family != "transformer":
        return 0
    depth: int = plugins.require("slimseek.methods._blocks").depth(model)
    return depth


def _trains(model: Model) -> bool:
    try:
        choose.family(model).trainable(model)
    except UsageError:
        return False
    return True


def _works(step: str, model: Model, samples: Samples, **parameters: Any) -> bool:
    try:
        plugins.load("methods", step)(**parameters).apply(model, samples)
    except (UsageError, NoEffect):
        return False
    return True
