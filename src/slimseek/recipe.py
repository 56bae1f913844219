"""Recipes: the steps of a compression in a file that can be read, printed, edited and run again."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from slimseek import plugins, reading
from slimseek.bases import Step
from slimseek.errors import UsageError
from slimseek.schema import Gates, Recipe, RecipeStep

VERSION = 1
LARGEST = 1_000_000
"""Bytes of a recipe."""
UNITS = {"%": 0.01, "": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe as it is written: each step is a mapping of one method to its parameters."""

    version: int
    steps: list[dict[str, dict[str, Any] | None]]
    gates: Gates = Gates()
    targets: list[str] = msgspec.field(default_factory=lambda: ["onnxruntime"])
    seed: int = 0
    student: str | msgspec.UnsetType = msgspec.UNSET


class _Loader(yaml.SafeLoader):
    """YAML without names for parts of it, by which a few lines may stand for billions, and without a key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("names of other parts (&, *) are not read; write the part out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} stands twice")
        return super().construct_mapping(node, deep)


def shorthands() -> tuple[str, ...]:
    """Names of the recipes that come with slimseek, such as ``int8``."""
    folder = resources.files("slimseek") / "recipes"
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def text_of(name: str) -> str:
    """The YAML text of a shorthand, to print and edit."""
    if name not in shorthands():
        raise UsageError(f"unknown recipe {name!r}; known: {', '.join(shorthands())}, or a path to a YAML or JSON file")
    return (resources.files("slimseek") / "recipes" / f"{name}.yaml").read_text("utf-8")


def load(recipe: str | Path | Recipe) -> Recipe:
    """A recipe from a shorthand, a YAML or JSON file, or as it is; every method and parameter is checked.

    Raises:
        UsageError: no such file, not valid, an unknown field, method or parameter.
    """
    if isinstance(recipe, Recipe):
        checked = recipe
    else:
        path = Path(recipe)
        is_file = path.suffix in (".yaml", ".yml", ".json") or path.is_file()
        checked = parse(_read(path) if is_file else text_of(str(recipe)), name=path.stem)
    for step in checked.steps:
        build(step)
    return checked


def parse(text: str, name: str = "recipe") -> Recipe:
    """A recipe from YAML or JSON text.

    Raises:
        UsageError: the text is not a valid recipe.
    """
    try:
        document = _Loader(text).get_single_data()
        msgspec.json.encode(document)  # what cannot be written is refused here: half a character, for one
        file = msgspec.convert(document, _File)
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"recipe {name}: {' '.join(str(error).split())}") from error
    if file.version != VERSION:
        raise UsageError(f"recipe {name}: version {file.version} is not known; this slimseek reads version {VERSION}")
    if not file.steps:
        raise UsageError(f"recipe {name}: it has no steps; known methods: {', '.join(plugins.names('methods'))}")
    steps = []
    for number, step in enumerate(file.steps, 1):
        if len(step) != 1:
            raise UsageError(f"recipe {name}: step {number} must name one method, it names {sorted(step)}")
        [(method, parameters)] = step.items()
        steps.append(RecipeStep(method=method, parameters=parameters or {}))
    if not 0 <= file.gates.max_loss < 1:
        raise UsageError(
            f"recipe {name}: max_loss {file.gates.max_loss} must be from 0 to below 1 (0.01 is one per cent)"
        )
    return Recipe(steps=tuple(steps), gates=file.gates, targets=tuple(file.targets), seed=file.seed, name=name,
                  student=file.student)  # fmt: skip


def dump(recipe: Recipe) -> str:
    """The recipe as YAML text that :func:`parse` reads back."""
    document = {
        "version": VERSION,
        **({"student": recipe.student} if recipe.student else {}),
        "steps": [{step.method: step.parameters} for step in recipe.steps],
        "gates": msgspec.to_builtins(recipe.gates),
        "targets": list(recipe.targets),
        "seed": recipe.seed,
    }
    return yaml.safe_dump(document, sort_keys=False)


def build(step: RecipeStep) -> Step:
    """The method with its parameters.

    Raises:
        UsageError: no such method, or a parameter that it does not take.
    """
    method = plugins.load("methods", step.method)
    fields = {field.encode_name: field for field in msgspec.structs.fields(method)}
    for name, value in step.parameters.items():
        if name not in fields:
            raise UsageError(f"{step.method}: there is no parameter {name!r}; it takes {', '.join(fields)}")
        try:
            msgspec.convert(value, fields[name].type, str_keys=True)
        except msgspec.ValidationError as error:
            wanted = _allowed(fields[name].type)
            raise UsageError(f"{step.method}: {name} is {msgspec.json.encode(value).decode()}; {wanted}") from error
    built: Step = msgspec.convert(step.parameters, method, str_keys=True)
    return built


def _allowed(wanted: Any) -> str:
    """What a parameter takes, in words."""
    if get_origin(wanted) is Literal:
        return f"{', '.join(str(value) for value in get_args(wanted))} are allowed"
    if isinstance(wanted, UnionType):
        return ", or ".join(_allowed(one) for one in get_args(wanted) if one is not type(None))
    if get_origin(wanted) is tuple:
        return f"a list is wanted, of which {_allowed(get_args(wanted)[0])}"
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return f"a mapping of {', '.join(field.encode_name for field in msgspec.structs.fields(wanted))} is wanted"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return f"{words.get(wanted, str(wanted))} is wanted"


def _read(path: Path) -> str:
    try:
        return reading.content(path, LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error


def with_options(
    recipe: Recipe, *, metric: str = "", max_loss: str = "", student: str = "", seed: int = 0
) -> Recipe:  # fmt: skip
    """The recipe with another gate, student or seed; empty strings keep its own.

    Args:
        recipe: a checked recipe.
        metric: such as ``ndcg@10``.
        max_loss: such as ``1%`` or ``0.01``.
        student: a MODEL.
        seed: of every random choice.

    Raises:
        UsageError: ``max_loss`` is not a share from 0 to below 1.
    """
    gates = recipe.gates
    if metric:
        gates = msgspec.structs.replace(gates, metric=metric)
    if max_loss:
        gates = msgspec.structs.replace(gates, max_loss=share(max_loss))
    return msgspec.structs.replace(recipe, gates=gates, seed=seed or recipe.seed, student=student or recipe.student)


def share(text: str) -> float:
    """A share from ``1%`` or ``0.01``.

    Raises:
        UsageError: it is not one, from 0 to below 1.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"{text!r} is not a share; write 1% or 0.01, from 0 to below 1")
    return value


def byte_size(size: str | float, whole: int) -> int:
    """Bytes, from ``10MB`` (10^7) or from a share of ``whole`` bytes: ``12%``, or 0.12 without a unit.

    Raises:
        UsageError: it is neither, or not above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?) *(%|[kmg]?b|)", str(size).strip().lower())
    try:
        value, unit = (float(match[1]), match[2]) if match else (0.0, "")
    except ValueError:
        value, unit = 0.0, ""
    is_share = unit in ("%", "")
    value *= UNITS[unit]
    if not 0 < value < float("inf") or (is_share and value > 1):
        raise UsageError(f"{size!r} is not a size; write 10MB, or a share above 0 and up to 1 such as 12% or 0.12")
    return int(value * whole if is_share else value)
