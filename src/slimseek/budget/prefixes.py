"""Models after the first steps of recipes: trials that begin alike share them, and what took long outlives a kill."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from slimseek import artifact, compress, recipe
from slimseek import folder as folders
from slimseek.errors import NoEffect
from slimseek.measurement import StepRecord
from slimseek.schema import Model, Recipe, RecipeStep, Samples
from slimseek.value import Value

KEPT_BYTES = 300_000_000
DEAR_SECONDS = 60.0
"""A step that takes so long is kept on disk as a training is: the proof, and the next run, go on with what it gave."""
RECORDS, TEACHERS = "records.json", "teachers"
"""In the folder of a student, and of all teachers' vectors."""
State = tuple[Model, tuple[StepRecord, ...]]


class _Records(Value, frozen=True):
    """What the steps did that led to a kept model."""

    records: tuple[StepRecord, ...]


class Prefixes:
    """Runs recipes on one original, and keeps what their first steps gave.

    In memory the models used last are kept, 300 MB in all; what was trained or took long is kept on disk.
    """

    def __init__(self, original: Model, samples: Samples, folder: Path, seed: int) -> None:
        self.samples = samples
        self.folder = folder
        self._seed = seed
        self.original = original
        self._kept: OrderedDict[str, State] = OrderedDict()

    def run(self, wanted: Recipe) -> State:
        """The model that a recipe makes, and what each step did; steps that find out that they are not needed are left
        out, and one without steps gives the original.

        Raises:
            UsageError: a step refuses.
        """
        state: State = self.original, ()
        for number, step in enumerate(wanted.steps, 1):
            state = self._after(wanted.steps[:number], step, state)
        if wanted.steps and not state[1]:
            raise NoEffect(f"{wanted.name}: no step changes anything")
        return state

    def names(self, wanted: Recipe) -> dict[str, bool]:
        """Names of the folders that keep what the steps of a recipe give, if they do, and whether that is trained."""
        steps = wanted.steps
        return {self._key(steps[:number]): recipe.build(step).trains for number, step in enumerate(steps, 1)}

    def _key(self, steps: Sequence[RecipeStep]) -> str:
        return hashlib.sha256(msgspec.json.encode((steps, self._seed))).hexdigest()

    def _after(self, steps: Sequence[RecipeStep], step: RecipeStep, before: State) -> State:
        key = self._key(steps)
        known = self._kept.get(key) or self._read(key)
        if known is None:
            known = self._taken(step, before, key)
        self._keep(key, known)
        return known

    def _taken(self, step: RecipeStep, before: State, key: str) -> State:
        built = recipe.build(step)
        places = {"cache": str(self.folder / TEACHERS), "checkpoint": str(self.folder / f"{key}.ckpt")}
        own = {name: value for name, value in places.items() if name in built.__struct_fields__}
        try:
            model, record = compress.take(
                before[0], RecipeStep(method=step.method, parameters=step.parameters | own), self.samples
            )
        except NoEffect:
            if not built.as_needed:
                raise
            return before
        record = msgspec.structs.replace(record, parameters=msgspec.to_builtins(built))
        found = model, (*before[1], record)
        if built.trains or record.seconds >= DEAR_SECONDS:
            self._write(key, found)
        return found

    def _keep(self, key: str, state: State) -> None:
        self._kept[key] = state
        self._kept.move_to_end(key)
        while (
            len(self._kept) > 1 and sum(compress.weight_bytes(model) for model, _ in self._kept.values()) > KEPT_BYTES
        ):
            self._kept.popitem(last=False)

    def _read(self, key: str) -> State | None:
        place = self.folder / key
        if not artifact.is_artifact(place):
            return None
        return artifact.read(place)[1], folders.read_json(place / RECORDS, _Records).records

    def _write(self, key: str, state: State) -> None:
        with folders.writing(self.folder / key) as place:
            artifact.write(state[0], place)
            folders.write_json(place / RECORDS, _Records(records=state[1]))
        (self.folder / f"{key}.ckpt").unlink(missing_ok=True)
