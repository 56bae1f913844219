"""The page of a search: whole without scripts, safe, and with a script that the policy names and no other."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import product

import msgspec
import numpy as np
import pytest

from slimseek import recipe as recipes
from slimseek.budget import front as fronts
from slimseek.report import _trials
from slimseek.report import search as pages
from slimseek.schema import Change, Environment, Recipe, RecipeStep, StepRecord
from slimseek.trial import Budget, Figures, Found, Plan, Trial
from small import Page

MACHINE = Environment(
    cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", cores=2, threads=2, instruction_sets=("avx2", "avx512_vnni"),
    memory_bytes=16_760_000_000, system="Linux 6.1.0 x86_64", python="3.11.7", versions={"slimseek": "0.1.0"},
)  # fmt: skip
WEIGHTS, BLOCK, TABLE, LATENCY = 90_260_000, 7_080_000, 46_880_000, 12.4
LOSSES = {8: 0.001, 4: 0.006, 3: 0.021, 2: 0.19}


def changed(relative: float, n: int = 300, half: float = 0.009) -> Change:
    return Change(metric="ndcg@10", before=0.645, after=0.645 * (1 + relative), relative=relative,
                  interval=(relative - half, relative + half), lower_bound=relative - half * 0.84, n=n)  # fmt: skip


def step_of(method: str, before: int, after: int, relative: float | None, macs: tuple[int, int]) -> StepRecord:
    return StepRecord(
        step=method, parameters={}, changed=("a",), parameters_before=22_565_376, parameters_after=22_565_376,
        bytes_before=before, bytes_after=after, macs_before=macs[0], macs_after=macs[1], seconds=2.0,
        compression_ratio=after / before, quality=None if relative is None else changed(relative),
    )  # fmt: skip


def built(number: int, blocks: int, bits: int, vocabulary: bool, dims: int, luck: float) -> Trial:
    """A trial of a made-up but plausible search: bytes by arithmetic, losses that add up, and a little luck."""
    steps: list[RecipeStep] = []
    records: list[StepRecord] = []
    bytes_now, macs, loss = WEIGHTS, 1_420_000_000, 0.0

    def add(method: str, parameters: dict[str, object], left: int, macs_left: int, lost: float) -> None:
        nonlocal bytes_now, macs, loss
        steps.append(RecipeStep(method=method, parameters=parameters))
        records.append(step_of(method, bytes_now, left, -(loss + lost), (macs, macs_left)))
        bytes_now, macs, loss = left, macs_left, loss + lost

    if blocks < 6:
        gone = (6 - blocks) / 6
        add("prune.layers", {"keep": blocks}, WEIGHTS - (6 - blocks) * BLOCK, int(macs * (1 - gone)), 0.012 * gone**1.5)
    if vocabulary:
        add("simplify.vocabulary", {"min_count": 1}, bytes_now - TABLE // 2, macs, 0.0004)
    if dims < 384:
        add("simplify.output_dim", {"dim": dims}, bytes_now + 40_000, macs, 0.004 * (384 / dims - 1))
    add("quantize.weights_int", {"bits": bits, "group_size": 64}, int(bytes_now * (bits + 0.6) / 32), macs, LOSSES[bits])
    latency = LATENCY * (0.15 + 0.85 * blocks / 6) * (0.42 + bits / 100)
    words = [f"{blocks} blocks", f"{bits} bits", *(["vocabulary"] if vocabulary else []),
             *([f"{dims} dims"] if dims < 384 else [])]  # fmt: skip
    return Trial(
        number=number, plan=Plan(
            recipe=Recipe(steps=tuple(steps)), precision="int8" if dims < 384 else "f32", name=", ".join(words),
            choices={"blocks": blocks, "bits": bits, "vocabulary": vocabulary, "dims": dims},
        ),
        reached="whole", change=changed(-loss + luck), seconds=40.0, records=tuple(records),
        figures=Figures(size=bytes_now + 610_000, latency_p50=latency * 0.9, latency_p95=latency, memory=60_000_000,
                        index_size=5183 * dims * (1 if dims < 384 else 4)),
    )  # fmt: skip


def found(budget: Budget | None = None) -> Found:
    """A search with 41 trials: the original, 36 whole ones, two of a part, two that their size ended."""
    budget = budget or Budget(size=12_000_000, max_loss=0.02)
    random = np.random.default_rng(1)
    plans = list(product((6, 4, 3), (8, 4, 3), (False, True), (384, 192)))
    first = Trial(number=0, plan=Plan(recipe=Recipe(steps=()), name="original"), reached="whole",
                  figures=Figures(size=90_870_000, latency_p50=11.9, latency_p95=LATENCY, memory=190_000_000,
                                  index_size=5183 * 384 * 4))  # fmt: skip
    trials = [first]
    for number, (blocks, bits, vocabulary, dims) in enumerate(plans, 1):
        trials.append(built(number, blocks, bits, vocabulary, dims, float(random.normal(0, 0.002))))
    for number in (37, 38):
        half = built(number, 6 if number == 37 else 4, 2, True, 384, -0.01)
        trials.append(msgspec.structs.replace(half, reached="part", change=changed(-0.2, 60, 0.05),
                                              ended="loss 20 % on the first 60 queries", records=()))  # fmt: skip
    for number in (39, 40):
        never = built(number, 6, 8, False, 384, 0.0)
        trials.append(msgspec.structs.replace(never, reached="size", change=None, records=(), figures=Figures(
            size=24_000_000 + number), ended="predicted 24.0 MB of at most 12.0 MB"))  # fmt: skip
    number, met = fronts.choose(trials, budget)
    return Found(
        source="minilm", collection="scifact", budget=budget, trials=tuple(trials), front=fronts.front(trials),
        chosen=number, met=met, unmet=fronts.unmet(trials[number], budget), environment=MACHINE, seconds=1520.0,
        command="slimseek compress minilm --data collections/scifact --max-size 12MB --max-loss 2% --out small",
        notes=("Two trials were ended by their predicted size.",),
    )  # fmt: skip


if __name__ == "__main__":
    import sys
    from pathlib import Path
    pages.write(found(), Path(sys.argv[1]) / "met.html")
    pages.write(found(Budget(size=4_000_000, latency_p95=2.0, max_loss=0.01)), Path(sys.argv[1]) / "unmet.html")
