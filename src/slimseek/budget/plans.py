"""From choices to a plan: a recipe of sound steps in a sound order, and its name in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from slimseek import indexes
from slimseek.budget.space import ARRAYS, MIXED, RECORDINGS, TABLE_BATCHES, TEXTS, Space, fewest_tokens, spread
from slimseek.errors import UsageError
from slimseek.recipe import build
from slimseek.schema import Recipe, RecipeStep
from slimseek.trial import Plan

OF_NETWORKS = ("blocks", "window", "width", "teach", "dim_first", "table_bits", "allocation", "activations")
"""Choices that mean nothing for a table of token vectors."""
CUTS = ("blocks", "window", "width")
"""Choices that take something away which training may win back."""


def completed(space: Space, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Every choice by name, those without an effect beside the others as they are where nothing is chosen.

    Choices that make the same recipe are the same after this: what has no effect beside the others is set back, and a
    training that would take too long is a shorter one.

    Raises:
        UsageError: a choice or value that the space does not have.
    """
    for name, value in choices.items():
        allowed = space.values.get(name, (space.neutral[name],) if name in space.neutral else ())
        if value not in allowed:
            raise UsageError(f"budget: {name} is {value!r}; {', '.join(map(str, allowed)) or 'nothing'} is allowed")
    if choices.get("network") == "table":
        choices = {name: value for name, value in choices.items() if name not in OF_NETWORKS}
    found = space.neutral | dict(choices)
    if found["bits"] > 8:
        found |= {"allocation": "even", "activations": "float", "table_bits": 8}
    elif found["allocation"] == "mixed" and not MIXED[0] < found["bits"] < MIXED[-1]:
        found["allocation"] = "even"
    if found["bits"] <= 8 and ("table_bits" not in choices or found["allocation"] == "mixed"):
        found["table_bits"] = found["bits"]
    if found["bits"] > 8 or min(found["bits"], found["table_bits"]) == 8:
        found["group"] = space.neutral["group"]
    whole = all(found[name] == space.neutral[name] for name in CUTS)
    found["teach"] = 0 if whole else min(found["teach"], space.effort(found["blocks"]))
    if not found["teach"] or found["dim"] == space.dim:
        found["dim_first"] = False
    return found


def plan(space: Space, choices: Mapping[str, Any]) -> Plan:
    """The steps that choices mean, in a sound order, and their name in words.

    What is taken out of the floats goes first, then the training that wins it back, then the vocabulary, which the
    training does not see, and last the rounding, which nothing may follow. A table of token vectors is made of the
    tokens that stay.

    Raises:
        UsageError: a choice or value that the space does not have.
    """
    chosen = completed(space, choices)
    steps = (*_cutting(space, chosen), *_rounding(space, chosen))
    for step in steps:
        build(step)
    said = {name: value for name, value in chosen.items() if value != _unsaid(space, chosen, name)}
    name = in_words(space, chosen)
    recipe = Recipe(steps=steps, gates=space.gates, targets=(space.target,), name=name)
    return Plan(recipe=recipe, precision=chosen["precision"], choices=said, name=name)


def key(plan: Plan) -> bytes:
    """The same for plans that do the same."""
    return msgspec.json.encode((plan.recipe.steps, plan.precision))


def is_table(plan: Plan) -> bool:
    """Whether the plan puts a table of token vectors in the network's place."""
    return plan.choices.get("network") == "table"


def index_size(space: Space, choices: Mapping[str, Any]) -> int:
    """Bytes in memory of the vectors of all documents; 0 where their number is not known."""
    chosen = completed(space, choices)
    return indexes.bytes_of(space.documents, chosen["dim"], chosen["precision"]) if space.documents else 0


def rescore_size(space: Space, choices: Mapping[str, Any]) -> int:
    """Bytes on disk of the finer vectors that rank what those find; 0 where there are none."""
    chosen = completed(space, choices)
    return indexes.rescore_bytes_of(space.documents, chosen["dim"], chosen["precision"]) if space.documents else 0


def in_words(space: Space, chosen: Mapping[str, Any]) -> str:
    """The name of a plan: what differs from the original, such as ``4 blocks, table 3 bits, rest 4 bits``."""
    bits, table = chosen["bits"], chosen["table_bits"]
    apart = bits <= 8 and table != bits
    weights = f"table {table} bits, rest {bits} bits" if apart else {32: "", 16: "fp16"}.get(bits, f"{bits} bits")
    parts = (
        ("table of token vectors", chosen["network"] == "table"),
        (f"{chosen['blocks']} blocks", chosen["blocks"] != space.depth),
        (f"windows of {chosen['window']:g} s", chosen["window"] != space.window),
        (f"width {chosen['width']:.0%}", chosen["width"] != 1),
        (f"taught {chosen['teach']:,} batches", chosen["teach"]),
        (f"mixed {weights}" if chosen["allocation"] == "mixed" else weights, weights),
        (f"groups of {chosen['group']}", chosen["group"] != space.neutral["group"]),
        (chosen["activations"], chosen["activations"] != "float"),
        ("vocabulary", chosen["vocabulary"] != "whole"),
        (f"{chosen['dim']} dims{' before teaching' if chosen['dim_first'] else ''}", chosen["dim"] != space.dim),
        (f"{chosen['precision']} index", chosen["precision"] != "f32"),
    )
    return ", ".join(words for words, differs in parts if differs) or "original"


def _unsaid(space: Space, chosen: Mapping[str, Any], name: str) -> Any:
    """What a choice is where a plan's choices do not name it."""
    return chosen["bits"] if name == "table_bits" and chosen["bits"] <= 8 else space.neutral[name]


# ---------------------------------------------------------------- the steps


def _cutting(space: Space, chosen: Mapping[str, Any]) -> list[RecipeStep]:
    cut = chosen["vocabulary"] != "whole"
    vocabulary = [_step("simplify.vocabulary", **fewest_tokens(space.output))] if cut else []
    if chosen["network"] == "table":
        table = _step("distil.static", dim=chosen["dim"], steps=TABLE_BATCHES, batch_size=TEXTS, sentences=True)
        return [*vocabulary, table]
    steps = []
    if chosen["blocks"] != space.depth:
        steps.append(_step("prune.layers", keep=list(spread(space.depth, chosen["blocks"]))))
    if chosen["window"] != space.window:
        steps.append(_step("simplify.window", seconds=chosen["window"], longer="whole"))
    if chosen["width"] != 1:
        measure = "activation" if space.depth else "taylor" if space.trains_by_gradient else "l2"
        steps.append(_step("prune.channels", amount=1 - chosen["width"], importance=measure))
    shorter = [_step("simplify.output_dim", dim=chosen["dim"])] if chosen["dim"] != space.dim else []
    if chosen["dim_first"]:
        steps += shorter
    if chosen["teach"]:
        steps.append(_teaching(space, chosen))
    if not chosen["dim_first"]:
        steps += shorter
    return [*steps, *vocabulary]


def _teaching(space: Space, chosen: Mapping[str, Any]) -> RecipeStep:
    """With the settings that were measured: docs/distillation.md, docs/pruning.md, docs/training.md."""
    steps = chosen["teach"]
    if space.output == "transcript":
        return _step("distil.transcript", steps=steps, batch_size=RECORDINGS, learning_rate=5e-5)
    if space.output != "embedding":
        return _step("distil.soft_label", temperature=4, steps=steps, batch_size=32, learning_rate=2e-4)
    if not space.text:
        return _step("distil.embedding", steps=steps, batch_size=ARRAYS, learning_rate=1e-3)
    projection = {"projection": "pca"} if chosen["dim_first"] else {}
    return _step(
        "distil.embedding", steps=steps, batch_size=TEXTS, learning_rate=5e-4, sentences=True, **projection
    )  # fmt: skip


def _rounding(space: Space, chosen: Mapping[str, Any]) -> list[RecipeStep]:
    bits, table = chosen["bits"], chosen["table_bits"]
    if bits > 8:
        return [_step("quantize.float", format="fp16")] if bits == 16 else []
    static = chosen["activations"] == "static"
    steps = [_step("quantize.smooth")] if static else []
    if chosen["allocation"] == "mixed":
        # As many bytes as so many bits everywhere: a scale of 16 bits and a zero point for each group.
        share = space.rest_share + (1 - space.rest_share) * (bits + (16 + bits) / chosen["group"]) / 32
        steps.append(_step("quantize.mixed", size=round(share, 4), bits=list(MIXED), group_size=chosen["group"]))
    elif table == bits and not (space.few_convolutions and bits < 8):
        steps.append(_integers(bits, chosen["group"]))
    else:
        # Tables first: inputs of linear layers are then those that the rounded tables give.
        apart, rest = (["convolution"], []) if space.few_convolutions else ([], ["convolution"])
        steps.append(_integers(table, chosen["group"], layers=["embedding"]))
        steps += [_integers(8, chosen["group"], layers=apart)] if apart else []
        steps.append(_integers(bits, chosen["group"], layers=["linear", *rest, "recurrent"]))
    if static:
        steps.append(_step("quantize.activations_int", mode="static", estimator="percentile"))
    elif chosen["activations"] == "dynamic":
        steps.append(_step("quantize.activations_int", mode="dynamic"))
    return steps


def _integers(bits: int, group: int, **layers: Sequence[str]) -> RecipeStep:
    """A scale for each channel at 8 bits; below, groups with zero points, compensated."""
    if bits == 8:
        return _step("quantize.weights_int", bits=8, granularity="channel", **layers)
    return _step(
        "quantize.weights_int", bits=bits, granularity="group", group_size=group, symmetric=False,
        rounding="compensated", correct_bias=True, **layers,
    )  # fmt: skip


def _step(name: str, **parameters: Any) -> RecipeStep:
    return RecipeStep(method=name, parameters=parameters)
