"""One page of all quantization figures: reads benchmarks/results/*.json, writes docs/quantization.md.

    python benchmarks/tables.py

Whatever of the results is there is taken; which script makes which is said under each table. A column that no row has a
figure for is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SOURCES = {
    "text_search.json": ("MiniLM", "text_search.py"),
    "text_search_mpnet.json": ("all-mpnet-base-v2", "text_search.py --model all-mpnet-base-v2"),
    "array_networks.json": ("", "array_networks.py"),
    "aware_training.json": ("MiniLM, weights alone", "aware_training.py"),
}
TOP = """# Quantization: what each way costs and keeps

Written by `python benchmarks/tables.py` from `benchmarks/results`; change it there. Quality is nDCG@10 on test queries,
as a share of what fp32 keeps of the same queries, with its paired 95 % interval. Latencies are medians in milliseconds
of one call at batch x tokens (for arrays: at the batch), and of one real query with its tokenizer. Invariance is the
least cosine of an item's vector alone and among others. Memory is the peak of a fresh process that answers one query.

**What to choose.** Start with `int8`: it needs no labels and no training, keeps the quality within its interval, and
is the fast one in both runtimes; take the runtime that `deploy --target auto` finds to be faster on your machine. Take
`int4` when bytes count more than milliseconds (its inputs are rounded token by token, which is slower), and
`int4-vocabulary` when the collection is fixed as well. At 3 and 2 bits, `rounding: compensated` wins back most of what
plain rounding loses, without training; `int3` has it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--out", type=Path, default=Path("docs/quantization.md"))
    arguments = parser.parse_args()
    parts = [TOP]
    for file, (model, command) in SOURCES.items():
        if (arguments.results / file).is_file():
            parts.append(section(json.loads((arguments.results / file).read_bytes()), model, command))
    arguments.out.write_text("\n".join(parts))


def section(results: Mapping[str, Any], model: str, command: str) -> str:
    """All tables of one file, and what they were measured on."""
    found = results.get("collections") or results["networks"]
    tables = [f"## {f'{model}, {name}' if model else name}\n\n{table(rows)}\n" for name, rows in found.items()]
    machine = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    on = f"{machine['cpu']}, {machine['threads']} threads, {', '.join(machine['instruction_sets'])}; {versions}"
    return "\n".join([*tables, f"`python benchmarks/{command}` on {on}.\n"])


def table(rows: Mapping[str, Row]) -> str:
    """Markdown of one table, a row for each way."""
    times = dict.fromkeys(key for row in rows.values() for key in row if key.startswith("ms_"))
    columns: dict[str, Callable[[Row], str]] = {
        "MB": lambda row: f"{(row.get('size_bytes') or row['weights_bytes']) / 1e6:.3g}",
        "quality kept (95 %)": kept,
        "n": lambda row: f"{row['n']:,}",
        "invariance": lambda row: f"{row['invariance']:.5f}" if "invariance" in row else "",
        **{f"{key.removeprefix('ms_')}, ms": milliseconds(key) for key in times},
        "query, ms": milliseconds("query_ms_p50"),
        "memory, MB": lambda row: f"{row['peak_memory_bytes'] / 1e6:.0f}" if "peak_memory_bytes" in row else "",
        "to compress, s": lambda row: f"{row['compress_seconds']:.0f}" if "compress_seconds" in row else "",
    }
    cells = {title: [cell(row) for row in rows.values()] for title, cell in columns.items()}
    used = {title: column for title, column in cells.items() if any(column)}
    lines = [f"| | {' | '.join(used)} |", "|---" * (len(used) + 1) + "|"]
    lines += [
        f"| {' | '.join([name, *row])} |" for name, row in zip(rows, zip(*used.values(), strict=True), strict=True)
    ]
    return "\n".join(lines)


def kept(row: Row) -> str:
    low, high = row["kept_interval"]
    return f"{row['kept']:.1%} ({low:.1%} to {high:.1%})"


def milliseconds(key: str) -> Callable[[Row], str]:
    def written(row: Row) -> str:
        return "" if key not in row else f"{row[key]:.3g}" if row[key] < 999.5 else f"{row[key]:,.0f}"

    return written


if __name__ == "__main__":
    main()
