"""Who says what to try next: rules first, pairs of a model and an index where both share a budget, then the sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slimseek.budget import joint, sizes
from slimseek.budget.bench import Bench
from slimseek.budget.plans import is_table, key, plan
from slimseek.budget.proposals import Sampler, first_guesses
from slimseek.budget.space import Space, space
from slimseek.errors import UsageError
from slimseek.memory import give_back
from slimseek.schema import Model
from slimseek.trial import Budget, Plan, Trial


class Proposer:
    """Proposes plans for one model and budget; what it proposes hangs on the trials and the seed alone.

    Args:
        original: the model.
        bench: what trials are measured with.
        budget: what is asked.
        seconds: how long the search may take, which bounds the trainings that are tried.
        seed: of the sampler.
    """

    def __init__(self, original: Model, bench: Bench, budget: Budget, seconds: float, seed: int) -> None:
        self._original, self._bench, self._budget, self._seed = original, bench, budget, seed
        self._half = seconds / 2
        samples = bench.prefixes.samples
        self._space: Space = space(original, budget, samples, documents=bench.documents, seconds=seconds,
                                   pace=bench.baseline.seconds_per_item)  # fmt: skip
        self._sizes: dict[bytes, int | None] = {}
        give_back()  # the model was tried out

    def smallest(self) -> tuple[int, str]:
        """The fewest bytes that a package of this model can have, and the plan in words."""
        bench = self._bench
        return sizes.smallest(self._original, bench.prefixes.samples, self._budget.target, bench.known)

    def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
        """At most so many plans that none of the trials tried."""
        tried = {key(trial.plan) for trial in trials}
        found: dict[bytes, Plan] = {}
        guesses = first_guesses(self._space, self._budget, self._size_of)
        if sum(trial.seconds for trial in trials) > self._half:
            guesses = sorted(guesses, key=lambda one: not is_table(one))  # before the time is out
        for one in (*self._pairs(trials), *guesses):
            if key(one) not in tried and len(found) < count:
                found.setdefault(key(one), one)
        sampler = Sampler(self._space, self._budget, self._seed, self._size_of, trials)
        for one in found.values():
            sampler.wait(one)
        while len(found) < count:
            asked = sampler.ask()
            if asked is None:
                break
            found[key(asked)] = asked
        return list(found.values())

    def _pairs(self, trials: Sequence[Trial]) -> Iterator[Plan]:
        """Where package and index share a limit: what each precision costs the original, then the pairs of a measured
        model with a precision that may win.
        """
        if self._budget.total is None or "precision" not in self._space.values:
            return
        precisions = self._space.values["precision"]
        yield from (plan(self._space, {"precision": precision}) for precision in precisions if precision != "f32")
        costs = [
            joint.IndexOption(precision=trial.plan.precision, loss=-trial.change.relative)
            for trial in trials
            if not trial.plan.recipe.steps and trial.change is not None
        ]
        choices = {trial.number: trial.plan.choices for trial in trials}
        models = joint.model_options(trials, self._bench.documents)
        limit = self._budget.max_loss
        for pair in joint.worth_measuring(models, costs, self._bench.documents, self._budget.total, max_loss=limit):
            if pair.precision != "f32":
                yield plan(self._space, choices[pair.trial] | {"precision": pair.precision})

    def _size_of(self, wanted: Plan) -> int | None:
        """Predicted bytes of a plan's package; ``None`` where a step refuses the model."""
        name = key(wanted)
        if name not in self._sizes:
            try:
                outline = sizes.outlined(self._original, wanted.recipe, self._bench.prefixes.samples)
                self._sizes[name] = sizes.predicted(outline, self._budget.target, self._bench.known)
            except UsageError:
                self._sizes[name] = None
        return self._sizes[name]
