"""Holds the figures that are printed to those that were measured, and measures again.

    python benchmarks/check_results.py            # README and docs against benchmarks/results, in a second
    python benchmarks/check_results.py --run      # and the benchmarks that train nothing, into build/results
    python benchmarks/check_results.py --run --all    # and those that train, for hours

A measured figure may differ from the one in ``benchmarks/results`` by the tolerance of its kind: another CPU rounds
otherwise, and a clock is never the same. What differs more is listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of a document with places for figures, and where each of them lies.

    Attributes:
        document: its path.
        text: what is printed, with a format for each figure.
        file: of the results.
        figures: for each place the keys that lead to it, and what the figure is multiplied by.
    """

    document: str
    text: str
    file: str
    figures: tuple[tuple[tuple[str, ...], float], ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A benchmark: its arguments, and whether it trains."""

    file: str
    command: tuple[str, ...]
    trains: bool


STUDENT, ON_SCIFACT = "minilm-four 4 bits, static openvino", "minilm-four 4 bits onnxruntime"
SPOTTER, RECOGNISER = "keyword spotter", "recogniser of digits"
ENGLISH, BASE = "whisper-tiny.en en", "ours onnxruntime"
CLAIMS = (
    Claim(
        document="docs/voice.md", file="keywords.json",
        text="accuracy {:.3f} in float32 and {:.3f} at 8 bits on a speaker whom it never heard (n = {:.0f}; .910 on "
             "the one it was chosen by), {:.1f} → {:.1f} kB: of so few weights ({:,.0f})",
        figures=(((SPOTTER, "float32"), 1), ((SPOTTER, "int8"), 1), ((SPOTTER, "n"), 1),
                 ((SPOTTER, "bytes", "float32"), 1e-3), ((SPOTTER, "bytes", "int8"), 1e-3),
                 ((SPOTTER, "parameters"), 1)),
    ),
    Claim(
        document="docs/voice.md", file="keywords.json",
        text="word error rate {:.3f} in float32 and {:.3f} at 8 bits ({:+.1f} points, n = {:.0f}), {:.0f} → {:.0f} kB, "
             "{:.1f} %",
        figures=(((RECOGNISER, "float32"), 1), ((RECOGNISER, "int8"), 1), ((RECOGNISER, "points"), 1),
                 ((RECOGNISER, "n"), 1), ((RECOGNISER, "bytes", "float32"), 1e-3),
                 ((RECOGNISER, "bytes", "int8"), 1e-3), ((RECOGNISER, "share"), 100)),
    ),
    *(Claim(
        document="docs/voice_search.md", file="voice_search.json",
        text=f"| the recipe, {runtime} | {{:.1f}} MB | {{:.1f}} % | {{:+.2f}} ({{:+.2f}} to {{:+.2f}}) | {{:.3f}} |",
        figures=(((ENGLISH, subject, "size_bytes"), 1e-6), ((ENGLISH, subject, "word_error_rate", "after"), 100),
                 ((ENGLISH, subject, "word_error_rate", "change"), -100),
                 ((ENGLISH, subject, "word_error_rate", "interval", "1"), -100),
                 ((ENGLISH, subject, "word_error_rate", "interval", "0"), -100),
                 ((ENGLISH, subject, "hit@1", "after"), 1)),
    ) for runtime, subject in (("ONNX Runtime", "ours onnxruntime"), ("OpenVINO", "ours openvino"))),
    *(Claim(
        document="docs/voice_search.md", file="voice_search_base.json",
        text=f"| word error rate, {name} | {{:.0f}} ({{:,.0f}}) | {{:.1f}} % | {{:.1f}} % | {{:+.2f}} points",
        figures=(((f"whisper-base {language}", BASE, "n"), 1), ((f"whisper-base {language}", BASE, "words"), 1),
                 ((f"whisper-base {language}", BASE, "word_error_rate", "before"), 100),
                 ((f"whisper-base {language}", BASE, "word_error_rate", "after"), 100),
                 ((f"whisper-base {language}", BASE, "word_error_rate", "change"), -100)),
    ) for name, language in (("Spanish", "es"), ("French", "fr"))),
    Claim(
        document="docs/budget.md", file="budget.json",
        text="the search's front holds {:.1f} %, what is made by hand {:.1f} %, and both together {:.1f} %; after the "
             "first four minutes of trials the front held {:.1f} %",
        figures=tuple((("share", side), 100) for side in ("search", "by hand", "both", "its first part")),
    ),
    Claim(
        document="docs/budget.md", file="budget_hour.json",
        text="Of the space its front holds {:.1f} %, what is made by hand {:.1f} %, and both together {:.1f} %; the "
             "front of the ten minutes holds {:.1f} %",
        figures=tuple((("share", side), 100) for side in ("search", "by hand", "both", "a shorter search")),
    ),
    Claim(
        document="docs/budget.md", file="gate.json",
        text="accepts wrongly in at most {:.1f} % of 1,000 runs, but for one of {:.1f} % (ranks move, n = 1,000, 2 %; "
             "95 % interval {:.1f} to {:.1f}). The percentile bootstrap is above 5 % in 44 of them, in one with "
             "{:.1f} %",
        figures=((("rows", "24", "wrong", "gate", "0"), 100),
                 *((("rows", "46", "wrong", "gate", place), 100) for place in ("0", "1", "2")),
                 (("rows", "0", "wrong", "percentile", "0"), 100)),
    ),
    Claim(
        document="docs/budget.md", file="budgets.json",
        text="Given a minute each, {:.0f} of {:.0f} were met", figures=((("met",), 1), (("of",), 1)),
    ),
    Claim(
        document="docs/budget.md", file="budget_mpnet.json",
        text="Of the space the search's front holds {:.1f} %, what is made by hand {:.1f} %, and both together "
             "{:.1f} %. What is made",
        figures=tuple((("share", side), 100) for side in ("search", "by hand", "both")),
    ),
    Claim(
        document="docs/budget.md", file="budget_pictures.json",
        text="The search's front holds {:.1f} %, what is made by hand {:.1f} %, and both together {:.1f} %: 8 bits",
        figures=tuple((("share", side), 100) for side in ("search", "by hand", "both")),
    ),
    Claim(
        document="README.md", file="small_encoder.json",
        text="becomes a student of {:.1f} MB that keeps {:.1f} % of its nDCG@10 on xquad_en ({:.1f} to {:.1f}, "
             "n = {:,.0f})",
        figures=((("collections", "xquad_en", STUDENT, "size_bytes"), 1e-6),
                 *((("collections", "xquad_en", STUDENT, *keys), 100)
                   for keys in (("kept",), ("kept_interval", "0"), ("kept_interval", "1"))),
                 (("collections", "xquad_en", STUDENT, "n"), 1)),
    ),
    Claim(
        document="README.md", file="small_encoder.json",
        text="on scifact {:.1f} MB keep {:.1f} % ({:.1f} to {:.1f}, n = {:,.0f})",
        figures=((("collections", "scifact", ON_SCIFACT, "size_bytes"), 1e-6),
                 *((("collections", "scifact", ON_SCIFACT, *keys), 100)
                   for keys in (("kept",), ("kept_interval", "0"), ("kept_interval", "1"))),
                 (("collections", "scifact", ON_SCIFACT, "n"), 1)),
    ),
    Claim(
        document="README.md", file="serving.json",
        text="answers {:.0f} requests a second within 50 ms on one core, where sentence-transformers with faiss behind "
             "FastAPI answers {:.0f}, with {:.0f} MB of memory instead of {:.0f} MB ({:,.0f} passages)",
        figures=((("rate", "ours", "queries_a_second"), 1), (("rate", "theirs hnsw", "queries_a_second"), 1),
                 (("memory", "ours", "rss"), 1e-6), (("memory", "theirs hnsw", "rss"), 1e-6), (("passages",), 1)),
    ),
    Claim(
        document="docs/serving.md", file="serving.json",
        text="{:,.0f} requests to a package that is a table of token vectors (`--package static`), a tenth of them of 1"
             " to 500 words: {:.0f} failed, and resident memory went from {:.1f} MB after the first tenth to {:.1f} MB",
        figures=((("soak", "ours, static", "requests"), 1), (("soak", "ours, static", "failed"), 1),
                 (("soak", "ours, static", "resident", "1"), 1e-6),
                 (("soak", "ours, static", "resident", "19"), 1e-6)),
    ),
    Claim(
        document="README.md", file="image_search.json",
        text="EfficientNet-Lite2 ({:.1f} MB) becomes a student that finds the same product first for {:.1f} % as many "
             "photographs ({:.1f} to {:.1f}, n = {:,.0f})",
        figures=((("quality", "Lite2 fp32", "bytes"), 1e-6),
                 *((("quality", "student", "test", "hit@1", *keys), 100)
                   for keys in (("kept",), ("kept_interval", "0"), ("kept_interval", "1"))),
                 (("quality", "student", "test", "hit@1", "n"), 1)),
    ),
    Claim(
        document="README.md", file="classifiers.json",
        text="goes from {:.1f} to {:.1f} MB at the same accuracy (.926, {:+.1f} to {:+.1f} points, n = {:,.0f})",
        figures=((("collections", "banking77", "fp32 onnxruntime", "size_bytes"), 1e-6),
                 *((("collections", "banking77", "classifier-small onnxruntime", *keys), scale) for keys, scale in (
                     (("size_bytes",), 1e-6), (("points_interval", "0"), 1), (("points_interval", "1"), 1),
                     (("n",), 1)))),
    ),
)  # fmt: skip
"""Sentences; the tables of the README are compared row by row."""

RUNS = (
    Run(file="text_search.json", trains=False, command=(
        "text_search.py", "--quality", "--recipes", "int8", "int4", "--collections", "xquad_en", "scifact")),
    Run(file="array_networks.json", trains=False, command=("array_networks.py",)),
    Run(file="keywords.json", trains=True, command=("keywords.py",)),
    Run(file="classifiers.json", trains=True, command=("classifiers.py",)),
    Run(file="aware_training.json", trains=True, command=("aware_training.py",)),
    Run(file="pruning.json", trains=True, command=("pruning.py",)),
    Run(file="image_search.json", trains=True, command=("image_search.py",)),
)  # fmt: skip
TOLERANCES = (
    (re.compile(r"(^|\.)(\w*bytes\w*|size_\w+|parameters|macs|n|share)($|\.)"), 0.0, 0.02),
    (re.compile(r"(^|\.)(ms_\w+|query_ms\w*|\w*seconds|texts_per_second)($|\.)"), 0.0, 0.5),
    (re.compile(r"(^|\.)invariance($|\.)"), 1e-3, 0.0),
    (re.compile(r"interval|points|lost|won|mcnemar"), math.inf, 0.0),
    (re.compile(r""), 0.02, 0.0),
)
"""Names of figures, and by how much they may differ: absolutely, and relative to the one that is there. Ends of
intervals and counts of queries follow from the rest and are not held."""


# ---------------------------------------------------------------- what is printed


def tables() -> dict[str, str]:
    """The lines of the README's two tables, as they follow from the results: collection and name to line."""
    found = json.loads((RESULTS / "text_search.json").read_bytes())["collections"]
    return {
        f"{collection}: {name}": line(name, row, rows["fp32 onnxruntime"])
        for collection, rows in found.items() for name, row in rows.items()
    }  # fmt: skip


def line(name: str, row: Row, base: Row) -> str:
    """A row of the README; speeds are multiples of fp32 in ONNX Runtime."""
    low, high = row["kept_interval"]
    speeds = [f"{base[key] / row[key]:.2f}" if key in row else "" for key in ("ms_1x12", "ms_1x128", "ms_32x128")]
    cells = [
        name, f"{row['size_bytes'] / 1e6:.1f}", f"{row['kept']:.1%} ({low:.1%} to {high:.1%})",
        f"{row['invariance']:.5f}", f"{row['query_ms_p50']:.2f} ms" if "query_ms_p50" in row else "", *speeds,
        f"{row['peak_memory_bytes'] / 1e6:.0f} MB" if "peak_memory_bytes" in row else "",
        f"{row['compress_seconds']:.0f} s" if "compress_seconds" in row else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def sentence(claim: Claim) -> str:
    """What the document must say, by the results; accuracies and rates without the 0 before the point."""
    found = json.loads((RESULTS / claim.file).read_bytes())
    said = claim.text.format(*(float(at(found, keys)) * scale for keys, scale in claim.figures))
    return re.sub(r"(?<=[ (])0(?=\.\d{3}\b)", "", said)


def at(found: Any, keys: tuple[str, ...]) -> Any:
    """What lies in a result under these keys, of which those of a list are numbers."""
    for key in keys:
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


def printed() -> list[str]:
    """What README and docs print otherwise than it was measured."""
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = [line for line in readme.splitlines() if re.match(r"\| .*\| \d[\d.]* \| [\d.]+% \(", line)]
    known = set(tables().values())
    wrong = [f"README.md: no result gives this line: {line}" for line in lines if line not in known]
    for claim in CLAIMS:
        document = " ".join((ROOT / claim.document).read_text("utf-8").split())
        if sentence(claim) not in document:
            wrong.append(f"{claim.document}: it does not say: {sentence(claim)}")
    return wrong if lines else [*wrong, "README.md: its tables are not found"]


# ---------------------------------------------------------------- what is measured again


def leaves(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result under its dotted name; what describes the machine is left out."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key not in ("environment", "settings", "training", "note", "torch_pruning"):
                yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(found, list):
        for place, value in enumerate(found):
            yield from leaves(value, f"{name}.{place}")
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield name, float(found)


def differences(before: Any, after: Any) -> tuple[int, list[str]]:
    """How many figures both have, and those that differ by more than is allowed."""
    old, new = dict(leaves(before)), dict(leaves(after))
    wrong = []
    for name in old.keys() & new.keys():
        absolute, relative = next((a, r) for form, a, r in TOLERANCES if form.search(name))
        if not abs(new[name] - old[name]) <= max(absolute, relative * abs(old[name])):
            wrong.append(f"{name}: {old[name]:.6g} was measured, now {new[name]:.6g}")
    return len(old.keys() & new.keys()), sorted(wrong)


def again(run: Run, out: Path) -> list[str]:
    """Run a benchmark into the folder and compare; also a benchmark that fails is a difference."""
    start, file = time.monotonic(), out / run.file
    command = [sys.executable, str(ROOT / "benchmarks" / run.command[0]), *run.command[1:], "--out", str(file)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code or not file.is_file():
        return [f"{run.command[0]} ended with {code}"]
    count, wrong = differences(json.loads((RESULTS / run.file).read_bytes()), json.loads(file.read_bytes()))
    minutes = (time.monotonic() - start) / 60
    print(f"{run.file}: {count} figures in {minutes:.0f} minutes, {len(wrong)} outside of their tolerance")
    return [f"{run.file}: {one}" for one in wrong] if count else [f"{run.file}: nothing in it can be compared"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure again what trains nothing")
    parser.add_argument("--all", action="store_true", help="with --run: everything")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "results")
    arguments = parser.parse_args()
    wrong = printed()
    print(f"printed: {len(wrong)} differences")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        if arguments.run and (arguments.all or not run.trains):
            wrong += again(run, arguments.out.resolve())
    if wrong:
        print(*wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
