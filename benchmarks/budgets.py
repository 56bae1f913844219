r"""Of budgets that can be reached, how many a search meets in the time given.

    slimseek compress minilm --data ../shared/data/xquad_en --max-loss 20% --time 30m --out build/long
    python benchmarks/budgets.py --reference build/long --data ../shared/data/xquad_en --time 3m

A budget is drawn around a point of a long search's front, so that something is known to keep it: 10 % more bytes, 20 %
more milliseconds and half a point more loss than that point has, and of the three limits one, two or all. Each budget
gets a search of its own in a new folder, by the command that a user types, and is met where that exits with 0: the loss
is proven on the development queries and no gate fails on the test queries. What is finished is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from slimseek import choose, timing
from slimseek.folder import write_atomically
from slimseek.progress import say, shown_on
from slimseek.trial import Found, Trial, numbered

MORE_BYTES, MORE_TIME, MORE_LOSS = 1.1, 1.2, 0.005
LIMITS = ("--max-size", "--max-latency", "--max-loss")
SUBSETS = ((0,), (0, 2), (1, 2), (0, 1, 2))
"""Of the limits; a latency alone, and a loss alone, are met by much."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, required=True, help="the collection of the long search")
    parser.add_argument("--reference", type=Path, required=True, help="folder of the long search")
    parser.add_argument("--time", default="3m", help="of each search")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/budgets"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/budgets.json"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = msgspec.json.decode((given.reference / choose.SEARCH).read_bytes(), type=Found)
    rows = []
    with shown_on(Console(stderr=True)):
        for number, limits in enumerate(budgets(found, given.count, given.seed)):
            rows.append(tried(given, number, limits))
            say(f"{number + 1} of {given.count}: {' '.join(limits)}: {rows[-1]['said']}")
    met = sum(row["code"] == 0 for row in rows)
    environment = msgspec.to_builtins(timing.environment(timing.default_threads()))
    document = {"environment": environment, "model": given.model, "collection": given.data.name, "time": given.time,
                "met": met, "of": len(rows), "rows": rows}  # fmt: skip
    write_atomically(given.out, msgspec.json.format(json.dumps(document).encode(), indent=1))
    print(f"{met} of {len(rows)} budgets met in {given.time} each")


def budgets(found: Found, count: int, seed: int) -> list[list[str]]:
    """Options of so many budgets, each around a point of the front that is smaller than the original."""
    generator = np.random.default_rng(seed)
    points = [numbered(found.trials, number) for number in found.front]
    points = [point for point in points if point.plan.recipe.steps]
    return [
        _options(points[int(generator.integers(len(points)))], SUBSETS[int(generator.integers(len(SUBSETS)))])
        for _ in range(count)
    ]


def _options(point: Trial, chosen: tuple[int, ...]) -> list[str]:
    assert point.figures.size is not None
    assert point.figures.latency_p95 is not None
    assert point.change is not None
    loss = max(0.0, -point.change.lower_bound) + MORE_LOSS
    values = (f"{point.figures.size * MORE_BYTES / 1e6:.1f}MB", f"{point.figures.latency_p95 * MORE_TIME:.2f}ms",
              f"{loss:.1%}")  # fmt: skip
    return [word for place in chosen for word in (LIMITS[place], values[place])]


def tried(given: argparse.Namespace, number: int, limits: list[str]) -> dict[str, object]:
    """What the command says of one budget; one that was tried before is read."""
    told = given.work / f"{number:02d}.json"
    if not told.is_file():
        asked = ("--data", str(given.data), *limits, "--time", given.time, "--out", str(given.work / f"{number:02d}"))
        command = [sys.executable, "-c", "from slimseek.cli import main; main()", "compress", given.model, *asked]
        ended = subprocess.run([*command, "--force"], capture_output=True, text=True, check=False)
        said = next((line for line in ended.stdout.splitlines() if ", asked for " in line), ended.stderr[-300:])
        row = {"limits": limits, "code": ended.returncode, "said": said}
        write_atomically(told, json.dumps(row).encode())
    return dict(json.loads(told.read_bytes()))


if __name__ == "__main__":
    main()
