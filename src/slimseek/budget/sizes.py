"""The bytes that a plan ships, before anything is computed: an outline of the model, and what a runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from slimseek import integers, plugins, sparse
from slimseek.budget._lines import NEAREST, Form, form, line
from slimseek.choose import family
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.kept import kept
from slimseek.models._onnx.graph import GRAPH
from slimseek.recipe import build
from slimseek.schema import Model, QuantizedTensor, Recipe, RecipeStep, Samples, Tensor
from slimseek.value import Value

GRAPHS = {"onnxruntime": (1950, 317), "openvino": (2290, 390)}
"""Bytes of a transformer's float graph beside its weights: fixed, and for each linear layer (measured on BERTs). Of
other runtimes nothing was measured: ONNX Runtime's are the guess, which the first package that is written corrects.
"""
POSITION = 16
"""Bytes of a position in such a graph: its number, twice."""
PACKAGE = 1500
"""Bytes of ``package.json`` beside the model's spec."""
SMALLEST = (
    (
        ("1 block", RecipeStep(method="prune.layers", parameters={"keep": 1})),
        ("a tenth of the channels", RecipeStep(method="prune.channels", parameters={"amount": 0.9})),
    ),
    (("vocabulary", RecipeStep(method="simplify.vocabulary", parameters={})),),
    (("2 bits", RecipeStep(method="quantize.weights_int", parameters={"bits": 2, "granularity": "channel"})),),
    (("the rest in 16 bits", RecipeStep(method="quantize.float", parameters={"format": "fp16"})),),
)
"""What makes a package as small as it can be: steps in their order, with those that stand for each other, in words."""
MERGED = 256
"""Bytes of a constant from which on equal ones are stored once."""


class Known(Value, frozen=True):
    """What a written package tells of others of the same structure.

    Attributes:
        target: the runtime.
        structure: see :func:`structure`.
        layers: linear layers.
        bytes: of the graph and the manifest beside what tensors take; may be a little below 0 for small graphs.
    """

    target: str
    structure: str
    layers: int
    bytes: int


def outlined(model: Model, recipe: Recipe, samples: Samples) -> Model:
    """What a recipe would make of a model, in shapes, bits and files alone (see :meth:`slimseek.bases.Step.outline`).

    Raises:
        UsageError: a step refuses the model; NoEffect when it would change nothing and does not find out by itself
            whether it is needed.
    """
    for given in recipe.steps:
        step = build(given)
        try:
            model = step.outline(model, samples)
        except NoEffect:
            if not step.as_needed:
                raise
    return model


def predicted(outline: Model, target: str, known: Sequence[Known] = ()) -> int:
    """Bytes of all files of the package that a target would get.

    Args:
        outline: a model, or what :func:`outlined` gives.
        target: name of a backend.
        known: what packages that were written before have told; the nearest is taken.
    """
    return _told(outline, target) + _graph(outline, target, known)


def learned(model: Model, target: str, size: int) -> Known:
    """What a package of this model tells, which has ``size`` bytes, all files counted."""
    return Known(target=target, structure=structure(model, target), layers=_linear(model),
                 bytes=size - _told(model, target))  # fmt: skip


def structure(model: Model, target: str) -> str:
    """What the nodes of a package's graph hang on, in words: how many tensors of which form there are."""
    counts = Counter(_words(one) for _, one in _forms(model, target))
    return "; ".join([model.spec.family, *(f"{count} {words}" for words, count in sorted(counts.items()))])


def smallest(model: Model, samples: Samples, target: str, known: Sequence[Known] = ()) -> tuple[int, str]:
    """The fewest bytes that a plan of blocks or channels, vocabulary and bits can ship, and that plan in words.

    Of steps that stand for each other the first that the model takes is asked; one that does not make the package
    smaller is left out.
    """
    size, words = predicted(model, target, known), []
    for alternatives in SMALLEST:
        taken = (tried(model, step, samples) for _, step in alternatives)
        name, found = next(
            ((name, one) for (name, _), one in zip(alternatives, taken, strict=True) if one is not None), ("", model)
        )
        left = predicted(found, target, known)
        if left < size:
            model, size = found, left
            words.append(name)
    return size, ", ".join(words) or "as it is"


def tried(model: Model, step: RecipeStep, samples: Samples) -> Model | None:
    """The outline of what one step makes of a model; ``None`` where it refuses, or would change nothing."""
    try:
        return build(step).outline(model, samples)
    except UsageError:
        return None


def _told(model: Model, target: str) -> int:
    """Bytes of what is known without a graph: tensors with the nodes around them, tokenizer, spec."""
    total, merged = 0.0, Counter[int]()
    shared: dict[str, int] = {}
    for name, one in _forms(model, target):
        tensor, found = model.tensors[name], line(one)
        channels = tensor.shape[one.axis] if tensor.shape else 1
        total += found.fixed + found.each * channels - _left_out(tensor, found.each * channels)
        alike = round(found.merged * channels)
        merged[alike] += 1
        shared |= found.shared
    total += sum(size if size >= MERGED else size * count for size, count in merged.items())
    files = sum(map(len, kept(model).values())) + len(msgspec.json.encode(model.spec))
    beside: int = plugins.load("backends", target)().beside()
    return round(total) + sum(shared.values()) + files + beside


def _left_out(tensor: Tensor, dense: float) -> int:
    """Bytes that the zeros of a pruned tensor save."""
    places = integers.sparse_places(tensor)
    if places is None:
        return 0
    bits = tensor.spec.bits if isinstance(tensor, QuantizedTensor) else 8 * tensor.itemsize
    return round(max(0.0, dense - sparse.stored_bytes(places.size, int(places.sum()), bits)))


def _graph(model: Model, target: str, known: Sequence[Known]) -> int:
    """Bytes of the float graph beside its weights, and of the manifest."""
    own, layers = structure(model, target), _linear(model)
    same = [one for one in known if one.target == target and one.structure == own]
    if same:
        return same[-1].bytes
    if GRAPH in model.files:
        return len(model.files[GRAPH]) + PACKAGE
    fixed, each = GRAPHS.get(target, GRAPHS[NEAREST])
    near = [one for one in known if one.target == target]
    if near:
        nearest = min(near, key=lambda one: abs(one.layers - layers))
        return nearest.bytes + each * (layers - nearest.layers)
    tables = [model.tensors[layer.weight].shape[0] for layer in model.layers
              if layer.kind == "embedding" and layer.weight != model.token_table]  # fmt: skip
    return fixed + each * layers + POSITION * max(tables, default=0) + PACKAGE


def _forms(model: Model, target: str) -> list[tuple[str, Form]]:
    """The tensors that a package holds, with their forms."""
    unused = family(model).unused(model)
    return [(name, form(name, model, target)) for name in model.tensors if name not in unused]


def _linear(model: Model) -> int:
    unused = family(model).unused(model)
    return sum(layer.kind == "linear" and layer.weight not in unused for layer in model.layers)


def _words(one: Form) -> str:
    """The form in words, sizes left out."""
    spec = one.spec
    parts = [one.kind or "other", one.dtype if spec is None or spec.float8 else f"{spec.bits} bits"]
    if spec is not None:
        parts += [spec.granularity, "" if spec.symmetric else "asymmetric", "shared" if spec.entries else ""]
    parts += [f"{one.mode} inputs" if one.mode else "", "smoothed" if one.smoothed else ""]
    return " ".join(part for part in parts if part)
