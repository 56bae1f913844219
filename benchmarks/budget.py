r"""A search under a budget, beside what a user gets by hand: whose front holds more.

    pip install nncf==3.4.0 model2vec[distill]==0.10.0
    python benchmarks/budget.py --data ../shared/data --collection scifact --time 20m
    python benchmarks/budget.py --data ../shared/data --model efficientnet-lite0 --collection grocery128 --unseen '' \
        --time 20m --out benchmarks/results/budget_pictures.json

The search tries recipes on development queries, with a loose budget, so that its whole front is of use. Every point of
its front and every alternative is then measured on the test queries in one run: bytes shipped, median milliseconds of a
query in turns, nDCG@10 (of photographs MAP@R) paired against fp32 in ONNX Runtime, and the same of --unseen, a
collection that neither saw.
The volume that a set of points dominates is taken below the original's bytes and milliseconds and a loss of 20 %, in
parts of that whole. --short SECONDS also tells what the front was after so much of the search's work, and --beside
FOLDER what the front of a shorter search holds, whose points this search must have tried too. What is finished is kept
in --work.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import array_networks
import msgspec
import numpy as np
import small_encoder
import text_search
from rich.console import Console

from slimseek import choose, compress, data, evaluate, timing, within
from slimseek.budget import bench, front, limits, store
from slimseek.budget.loop import Effort
from slimseek.budget.prefixes import Prefixes
from slimseek.collection import Collection
from slimseek.encoder import Encoder
from slimseek.folder import write_atomically
from slimseek.measurement import Measurement
from slimseek.models._text.built_in import BUILT_IN
from slimseek.models._text.built_in import place as place_of
from slimseek.progress import shown_on
from slimseek.prove import Options
from slimseek.schema import Model
from slimseek.trial import Found, numbered

LIMITS = limits.Limits(loss="20%")
LARGEST_LOSS = 0.2
BASELINE = text_search.BASELINE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--collection", default="scifact")
    parser.add_argument(
        "--unseen", default="xquad_en", help="a collection that the search does not see; none where empty"
    )
    parser.add_argument("--time", default="10m", help="of the search")
    parser.add_argument("--short", type=float, default=0, help="seconds of the search's trials whose front is told too")
    parser.add_argument("--beside", type=Path, help="folder of a shorter search, whose front is told too")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/budget"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/budget.json"))
    parser.add_argument(
        "--without", nargs="+", default=("neural", "torchao"), help="words of alternatives to leave out"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with shown_on(Console(stderr=True)):
        place = arguments.work / arguments.collection
        place.mkdir(parents=True, exist_ok=True)
        path = str(arguments.data / arguments.collection)
        searched = search(arguments.model, path, place, limits.seconds(arguments.time), arguments.threads)
        original = choose.model(arguments.model)
        collection = data.load_for(path, original.spec)
        found = by_hand(original, collection, arguments.without, place, arguments.threads)
        if original.spec.modality == "text":
            folder = str(place_of(arguments.model)) if arguments.model in BUILT_IN else arguments.model
            found["model2vec (theirs)"] = lambda: choose.choose(
                small_encoder.model2vec(folder, place), arguments.threads
            )
        fronts = {"search": searched.front, "its first part": earlier(searched, arguments.short)}
        if arguments.beside:
            fronts["a shorter search"] = alike(searched, read(arguments.beside))
        numbers = {number for one in fronts.values() for number in one}
        ours = points(searched, numbers, original, collection, place, arguments.threads)
        rows = measured(collection, found | ours, place, ours)
        if arguments.unseen:
            other = data.load_for(str(arguments.data / arguments.unseen), original.spec)
            elsewhere(other, found | ours, place / arguments.unseen, rows)
    document = {"environment": msgspec.to_builtins(timing.environment(arguments.threads)), "rows": rows,
                "metric": evaluate.decisive(collection), "unseen": arguments.unseen,
                "search": json.loads((place / "search.json").read_bytes()),
                "share": shares(rows, fronts)}  # fmt: skip
    write_atomically(arguments.out, msgspec.json.format(json.dumps(document).encode(), indent=1))
    print_markdown(document)


def by_hand(
    original: Model, collection: Collection, without: Sequence[str], place: Path, threads: int
) -> dict[str, Callable[[], Encoder]]:
    """What a user gets without a search: packages of floats, and what other libraries make of the model."""
    if original.spec.modality == "text":
        found = text_search.subjects(original, collection, (), without, place, threads)
    else:
        found = {}
        package = text_search.packager(found, collection, place, threads)
        package(BASELINE, lambda: original, "onnxruntime")
        package("fp32 openvino", lambda: original, "openvino")
        items = list(text_search.unseen(collection).calibration)[: array_networks.CALIBRATION]
        made = array_networks.others(original, items, place, threads)
        found |= {name: make for name, make in made.items() if not any(word in name.lower() for word in without)}
    found["fp16 onnxruntime"] = _packaged(original, collection, "fp16", place, threads)
    return found


def search(model: str, path: str, place: Path, seconds: float, threads: int) -> Found:
    """The search, and what it took; one that was made before is read."""
    out, told = place / "search", place / "search.json"
    if not told.is_file():
        start = time.perf_counter()
        within.compress_within(model, path, LIMITS, out, Effort(seconds=seconds), Options(threads=threads))
        spent = {"seconds": time.perf_counter() - start,
                 "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}  # fmt: skip
        write_atomically(told, json.dumps(spent).encode())
    return read(out)


def read(folder: Path) -> Found:
    return msgspec.json.decode((folder / choose.SEARCH).read_bytes(), type=Found)


def earlier(searched: Found, seconds: float) -> tuple[int, ...]:
    """The front of the trials that were made in the first seconds of trials; of all where that is 0."""
    ends = np.cumsum([trial.seconds for trial in searched.trials])
    first = [trial for trial, end in zip(searched.trials, ends, strict=True) if not seconds or end <= seconds]
    return front.front(first)


def alike(searched: Found, other: Found) -> tuple[int, ...]:
    """The trials of a search whose steps are those of the front of another."""
    wanted = {number: numbered(other.trials, number).plan.recipe.steps for number in other.front}
    found = {number: next((trial.number for trial in searched.trials if trial.plan.recipe.steps == steps), None)
             for number, steps in wanted.items()}  # fmt: skip
    lacking = [number for number, one in found.items() if one is None]
    if lacking:
        raise SystemExit(f"--beside: the search did not try its trials {', '.join(map(str, lacking))}; give it more "
                         "--time, or leave --beside out")  # fmt: skip
    return tuple(one for one in found.values() if one is not None)


def points(
    searched: Found, numbers: Iterable[int], original: Model, collection: Collection, place: Path, threads: int
) -> dict[str, Callable[[], Encoder]]:
    """The packages of these trials' recipes, made as the search made them: development queries are not seen, and what
    it trained is there.
    """
    made = Prefixes(original, bench.unseen(original, collection, seed=0), store.Store(place / "search").cache, 0)
    found: dict[str, Callable[[], Encoder]] = {}
    package = text_search.packager(found, collection, place, threads)
    for number in sorted(numbers):
        steps = numbered(searched.trials, number).plan.recipe
        if steps.steps:
            name = f"{number} {steps.name}"
            package(name, lambda steps=steps: made.run(steps)[0], "onnxruntime")  # type: ignore[misc]
    return found


def _packaged(
    original: Model, collection: Collection, shorthand: str, place: Path, threads: int
) -> Callable[[], Encoder]:
    found: dict[str, Callable[[], Encoder]] = {}
    samples = text_search.unseen(collection)
    steps = text_search.recipe.load(shorthand)
    text_search.packager(found, collection, place, threads)(
        shorthand, lambda: compress.run(original, steps, samples).model, "onnxruntime"
    )
    return found[shorthand]


def measured(
    collection: Collection, found: dict[str, Callable[[], Encoder]], place: Path, ours: dict[str, Callable[[], Encoder]]
) -> dict[str, dict[str, object]]:
    """One row a subject."""
    metric = evaluate.decisive(collection)
    text_search.quality(collection, found, place, [metric])
    test = data.search_set(collection, collection.qrels["test"], "test")
    encoders = {name: open_subject() for name, open_subject in found.items()}
    queries = list(test.queries.values())[:100]
    asked = timing.interleaved(
        {name: lambda number, e=e: e.queries([queries[number % len(queries)]]) for name, e in encoders.items()},  # type: ignore[misc]
        rounds=5, calls=20, warm_up=3,
    )  # fmt: skip
    scores = {name: text_search.read(place, name, metric) for name in found}
    unchosen = data.split(collection).test
    reported = [number for number, query in enumerate(test.queries) if query in unchosen]
    base = only(scores[BASELINE]["score"], reported)  # type: ignore[arg-type]
    rows: dict[str, dict[str, object]] = {}
    for name in found:
        change = evaluate.compare(base, only(scores[name]["score"], reported))  # type: ignore[arg-type]
        rows[name] = {"ours": name in ours, "size_bytes": scores[name]["size"], "kept": 1 + change.relative,
                      "kept_interval": [1 + end for end in change.interval], "n": change.n,
                      "query_ms_p50": float(np.median(asked[name])) * 1000}  # fmt: skip
    return rows


def only(score: Measurement, places: Sequence[int]) -> Measurement:
    """A score on a part of its queries: where a collection has no others, a half of the test queries chose."""
    assert score.per_query is not None
    values = tuple(score.per_query[place] for place in places)
    return Measurement(name=score.name, value=float(np.mean(values)), n=len(values), per_query=values)


def elsewhere(
    collection: Collection, found: dict[str, Callable[[], Encoder]], place: Path, rows: dict[str, dict[str, object]]
) -> None:
    """Add what each subject keeps on a collection that no step and no choice saw."""
    place.mkdir(exist_ok=True)
    text_search.quality(collection, found, place)
    scores = {name: text_search.read(place, name) for name in found}
    for name in found:
        change = evaluate.compare(scores[BASELINE]["score"], scores[name]["score"])  # type: ignore[arg-type]
        rows[name] |= {"unseen_kept": 1 + change.relative, "unseen_n": change.n,
                       "unseen_interval": [1 + end for end in change.interval]}  # fmt: skip


def shares(rows: dict[str, dict[str, object]], fronts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The share of the volume below the original that each side's points dominate, 0 to 1."""
    base = rows[BASELINE]

    def share(names: list[str]) -> float:
        chosen = [
            (rows[name]["size_bytes"] / base["size_bytes"], rows[name]["query_ms_p50"] / base["query_ms_p50"],  # type: ignore[operator]
             1 - rows[name]["kept"])  # type: ignore[operator]
            for name in names
        ]  # fmt: skip
        # A gain counts as no loss: it is mostly noise.
        return front.hypervolume([(s, t, max(0.0, loss)) for s, t, loss in chosen], (1, 1, LARGEST_LOSS)) / LARGEST_LOSS

    def ours(numbers: Sequence[int]) -> list[str]:
        return [name for name, row in rows.items() if row["ours"] and int(name.partition(" ")[0]) in numbers]

    theirs = [name for name, row in rows.items() if not row["ours"]]
    return {name: share(ours(numbers)) for name, numbers in fronts.items()} | {
        "by hand": share(theirs), "both": share([*ours(fronts["search"]), *theirs])
    }  # fmt: skip


def print_markdown(document: dict[str, object]) -> None:
    """The table as it stands in docs/budget.md."""
    unseen = document["unseen"]
    columns = ("MB shipped", f"{document['metric']} kept (95 %)", "query p50", *([f"kept on {unseen}"] * bool(unseen)))
    print(f"| | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name, row in sorted(document["rows"].items(), key=lambda pair: -pair[1]["size_bytes"]):  # type: ignore[attr-defined]
        low, high = row["kept_interval"]
        shown = name if row["ours"] else f"*{name}*"
        cells = [shown, f"{row['size_bytes'] / 1e6:.1f}", f"{row['kept']:.1%} ({low:.1%} to {high:.1%})",
                 f"{row['query_ms_p50']:.2f} ms", *([f"{row['unseen_kept']:.1%}"] if unseen else [])]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    spent = document["search"]
    said = ", ".join(f"{name} {value:.1%}" for name, value in document["share"].items())  # type: ignore[attr-defined]
    print(f"\nvolume: {said}; search: {spent['seconds']:.0f} s, {spent['peak_memory_bytes'] / 1e9:.1f} GB")  # type: ignore[index]


if __name__ == "__main__":
    main()
