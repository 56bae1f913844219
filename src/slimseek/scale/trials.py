"""Trials on the machines of a cluster: one worker a machine, for two would spoil each other's times.

Ray's actors are used as they are, and not Ray Tune: what is tried next is decided by the search, and each trial is kept
in the search's folder, so that another scheduler with a store of its own would have to be kept in step with both.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from slimseek import __version__, plugins
from slimseek import folder as folders
from slimseek.budget.bench import BASELINE, Baseline, Bench, bench
from slimseek.budget.loop import Round
from slimseek.budget.prefixes import TEACHERS, Prefixes
from slimseek.budget.store import Store, Terms
from slimseek.collection import Collection
from slimseek.errors import SlimseekError, UsageError, first_line
from slimseek.progress import say
from slimseek.scale import sharing
from slimseek.scale.connect import Machine, check_version, machines
from slimseek.scale.helping import asked_together
from slimseek.scale.sharing import Files
from slimseek.schema import Array, Model, ModelSpec
from slimseek.training import teacher as teachers
from slimseek.trial import Figures, Plan, Trial
from slimseek.value import Value

TRIES = 3
"""How often a trial is tried whose worker is lost, and a worker is started that is lost before its bench is there."""
LOOK_SECONDS = 5.0
"""Between two looks at which machines are there."""
CLOSE_SECONDS = 10.0


class Settings(Value, frozen=True):
    """What a worker's bench is made with, beside model and collection.

    Attributes:
        version: of slimseek.
        baseline: what the search measured of the original. A worker measures the original beside each trial, and puts
            the trial's time in relation to it: milliseconds are those of the machine that searches.
        terms: how trials are judged.
        torch_threads: of PyTorch.
        folder: name of the worker's own folder, among the temporary files of its machine.
    """

    version: str
    baseline: Baseline
    terms: Terms
    torch_threads: int
    folder: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Done:
    """What a worker gives back.

    Attributes:
        trial: that ended.
        made: what it keeps for later ones, by name.
    """

    trial: Trial
    made: Mapping[str, Files]


class Worker:
    """A process on a machine, with a bench and a cache of its own; Ray makes an actor of it."""

    def __init__(self, original: Model, spec: bytes, collection: Collection, settings: Settings) -> None:
        # msgspec leaves a default out of JSON only where it is the very object that the class has, and an object that
        # came through pickle is not: packages of such a spec would be some bytes larger.
        self._parts = dataclasses.replace(original, spec=msgspec.json.decode(spec, type=ModelSpec)), collection
        self._settings = settings
        self._folder = Path(tempfile.gettempdir()) / settings.folder
        self._bench: Bench | None = None

    def ready(self) -> str:
        """Make the bench; what is wrong with this machine, ``""`` for nothing."""
        settings, store = self._settings, Store(self._folder)
        try:
            check_version(settings.version)
            plugins.require("torch").set_num_threads(settings.torch_threads)
            folders.write_atomically(store.cache / BASELINE, msgspec.json.encode(settings.baseline))
            self._bench = bench(*self._parts, store, settings.terms)
        except SlimseekError as error:
            return str(error)
        return ""

    def attempt(
        self, number: int, plan: Plan, asked: Round, shared: Mapping[str, Any], others: Sequence[Any]
    ) -> Done:  # fmt: skip
        """Try a plan of the round.

        Args:
            number: of the trial.
            plan: what to try.
            asked: the round.
            shared: references of what other machines keep for later trials, by name.
            others: workers, which help with a teacher's vectors where they have nothing else to do.
        """
        assert self._bench is not None
        cache = Store(self._folder).cache
        for name in sorted(shared.keys() - sharing.names(cache)):
            sharing.write(cache, name, plugins.require("ray").get(shared[name]))
        known = sharing.names(cache)
        with teachers.computed_by(partial(asked_together, others)):
            trial = self._bench.attempt(number, plan, asked.promising, asked.budget)
        return Done(trial=trial, made={name: sharing.read(cache, name) for name in sharing.names(cache) - known})

    def free(self) -> None:
        """Answered as soon as nothing else is in hand."""

    def teach(self, teacher: Model, items: Sequence[str]) -> Array:
        """What a teacher gives for items of another worker's training."""
        return teachers.encoder(teacher).documents(items)

    def close(self) -> None:
        """Delete what was kept on this machine."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Cluster:
    """Tries the plans of a round on all machines at once.

    A worker that is lost costs its trial, which is tried again, on another machine where there is one; after three
    times it is kept as ended, with the reason. A machine that comes is used, and one that goes is done without.
    """

    def __init__(
        self, ray: Any, original: Model, collection: Collection, settings: Settings, prefixes: Prefixes, count: int = 0
    ) -> None:  # fmt: skip
        """Workers are started with the first round.

        Args:
            ray: the module, connected.
            original: the model; it and the collection are sent to the machines once.
            collection: whose development queries judge.
            settings: of every bench.
            prefixes: of the search, whose folder keeps what trials share.
            count: how many plans are asked for at once; 0 for as many as there are machines now.

        Raises:
            UsageError: no machine has a core.
        """
        found = machines(ray)
        if not found:
            raise UsageError("no machine of the cluster has a core to work with; start Ray there with --num-cpus 1")
        self._ray = ray
        self._count = count or len(found)
        self._parts = ray.put(original), msgspec.json.encode(original.spec), ray.put(collection)
        self._prefixes = prefixes
        self._shared: dict[str, Any] = {}
        self._settings = settings
        self._workers: dict[Machine, Any] = {}
        self._ready: set[Machine] = set()
        self._pending: dict[Any, tuple[Machine, int | None]] = {}
        self._failures: defaultdict[Machine, int] = defaultdict(int)
        self._reason = "all are gone"

    @property
    def count(self) -> int:
        """How many plans are asked for at once; it stays, whatever machines come and go."""
        return self._count

    def attempt(self, asked: Round) -> Iterator[Trial]:
        """Each trial as it ends, in any order.

        Raises:
            SlimseekError: no machine is left that can work.
        """
        kept = {number: self._prefixes.names(plan.recipe) for number, plan in asked.plans.items()}
        students = {number: {name for name, trained in names.items() if trained} for number, names in kept.items()}
        queue, known = _Queue(asked, students, self._prefixes.folder), self._ray.put(_lean(asked))
        try:
            while queue or self._tried():
                self._look()
                busy = {machine for machine, _ in self._pending.values()}
                for machine in sorted(self._ready - busy, key=lambda machine: machine.name):
                    number = queue.next(machine, self._ready)
                    if number is not None:
                        shared = self._share(kept[number])
                        others = [self._workers[other] for other in self._ready - {machine}]
                        task = self._workers[machine].attempt
                        reference = task.remote(number, asked.plans[number], known, shared, others)
                        self._pending[reference] = machine, number
                yield from self._ended(asked, queue)
        finally:
            for machine in self._tried():
                self._dismiss(machine)

    def close(self) -> None:
        """End every worker, and delete what it kept."""
        last = [self._workers[machine].close.remote() for machine in self._ready]
        if last:
            self._ray.wait(last, num_returns=len(last), timeout=CLOSE_SECONDS)
        for machine in list(self._workers):
            self._dismiss(machine)

    def _ended(self, asked: Round, queue: _Queue) -> Iterator[Trial]:
        """What ended since the last look: a bench was made, a trial measured, or either was lost."""
        errors = self._ray.exceptions
        done = self._ray.wait(list(self._pending), timeout=LOOK_SECONDS)[0] if self._pending else []
        for reference in done:
            machine, number = self._pending.pop(reference)
            try:
                found = self._ray.get(reference)
            except errors.RayTaskError:  # the worker is there, and its code has a fault
                raise
            except errors.RayError as error:
                self._dismiss(machine)
                self._reason = f"{machine.address}: {first_line(error)}"
                say(f"a worker was lost on {self._reason}")
                if number is None:
                    self._failures[machine] += 1
                elif not queue.again(number, machine):
                    yield self._lost(asked, number, first_line(error))
                continue
            if number is not None:
                queue.ended(number)
                for name in found.made.keys() - sharing.names(self._prefixes.folder):
                    sharing.write(self._prefixes.folder, name, found.made[name])
                yield found.trial
            elif found:
                self._dismiss(machine)
                self._failures[machine], self._reason = TRIES, f"{machine.address}: {found}"
                say(f"a machine is left out: {self._reason}")
            else:
                self._ready.add(machine)

    def _share(self, names: Container[str]) -> dict[str, Any]:
        """References of what the search's folder keeps by these names, and of all vectors of teachers."""
        there = sharing.names(self._prefixes.folder)
        wanted = {name for name in there if name in names or name.startswith(TEACHERS)}
        for name in wanted - self._shared.keys():
            self._shared[name] = self._ray.put(sharing.read(self._prefixes.folder, name))
        return {name: self._shared[name] for name in wanted}

    def _look(self) -> None:
        """Start a worker on each machine that has none, and forget those of machines that are gone."""
        there = machines(self._ray)
        busy = {machine for machine, _ in self._pending.values()}
        for machine in self._workers.keys() - there - busy:
            self._dismiss(machine)
        affinity = plugins.require("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        for machine in there:
            if machine in self._workers or self._failures[machine] >= TRIES:
                continue
            settings = self._settings
            settings = msgspec.structs.replace(settings, folder=f"{settings.folder}-{machine.name[:12]}")
            worker = self._ray.remote(Worker).options(
                num_cpus=min(settings.terms.threads, machine.cores),
                scheduling_strategy=affinity(machine.name, soft=False),
            ).remote(*self._parts, settings)  # fmt: skip
            self._workers[machine] = worker
            self._pending[worker.ready.remote()] = machine, None
        if not self._workers:
            raise SlimseekError(f"no machine of the cluster can work any more ({self._reason}); what was tried is kept")

    def _tried(self) -> list[Machine]:
        """Machines that have a trial in hand."""
        return [machine for machine, number in self._pending.values() if number is not None]

    def _dismiss(self, machine: Machine) -> None:
        """End a worker, whatever it does."""
        self._ray.kill(self._workers.pop(machine))
        self._ready.discard(machine)
        self._pending = {ref: entry for ref, entry in self._pending.items() if entry[0] != machine}

    def _lost(self, asked: Round, number: int, reason: str) -> Trial:
        return Trial(number=number, plan=asked.plans[number], reached="size", figures=Figures(),
                     seed=self._settings.terms.seed, ended=f"its worker was lost {TRIES} times: {reason}")  # fmt: skip


class _Queue:
    """The plans of a round that no worker has in hand.

    One that begins with a training that another has in hand waits until that is done, and goes on with what it made.
    """

    def __init__(self, asked: Round, students: Mapping[int, Set[str]], cache: Path) -> None:
        self._goes_on = asked.goes_on
        self._students = students
        self._cache = cache
        self._in_hand: set[int] = set()
        self._numbers = sorted(asked.plans)
        self._lost: dict[int, list[Machine]] = {number: [] for number in self._numbers}
        self._begun = False

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def next(self, machine: Machine, ready: Set[Machine]) -> int | None:
        """What a machine shall try; what was lost there goes to another, if another is ready to work."""
        if self._begun and not self._goes_on():
            self._numbers = [number for number in self._numbers if self._lost[number]]
        taught = {student for number in self._in_hand for student in self._students[number]}
        taught -= sharing.names(self._cache)
        for number in self._numbers:
            elsewhere = machine in self._lost[number] and not ready <= set(self._lost[number])
            if not elsewhere and taught.isdisjoint(self._students[number]):
                self._numbers.remove(number)
                self._in_hand.add(number)
                self._begun = True
                return number
        return None

    def ended(self, number: int) -> None:
        """A trial was measured."""
        self._in_hand.remove(number)

    def again(self, number: int, machine: Machine) -> bool:
        """Put a trial back whose worker was lost, unless that was so three times."""
        self._in_hand.remove(number)
        self._lost[number].append(machine)
        if len(self._lost[number]) >= TRIES:
            return False
        self._numbers.insert(0, number)
        return True


@contextmanager
def cluster(ray: Any, original: Model, collection: Collection, measured: Bench, count: int = 0) -> Iterator[Cluster]:
    """A cluster's workers while the block runs.

    Args:
        ray: the module, connected (:func:`slimseek.scale.connect.connected`).
        original: the model that is searched.
        collection: to judge by.
        measured: the search's own bench, which every worker's is made like.
        count: how many plans are asked for at once; 0 for as many as there are machines.
    """
    settings = Settings(
        version=__version__, baseline=measured.baseline, terms=measured.terms,
        torch_threads=plugins.require("torch").get_num_threads(), folder=f"slimseek-{uuid.uuid4().hex[:12]}",
    )  # fmt: skip
    found = Cluster(ray, original, collection, settings, measured.prefixes, count)
    try:
        yield found
    finally:
        found.close()


def _lean(asked: Round) -> Round:
    """What a worker needs of a round to tell which trials are hopeless."""
    history = [msgspec.structs.replace(trial, per_query=(), records=()) for trial in asked.history]
    return dataclasses.replace(asked, plans={}, history=history, goes_on=bool)
