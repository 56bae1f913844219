"""The page of the pruning benchmark: reads benchmarks/results/pruning.json, writes docs/pruning.md.

python benchmarks/pruning_page.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORIGINAL = "original"
BATCHES = (1, 32)
TITLES = {
    "resnet8": "ResNet-8 (32 px, 64 features)",
    "efficientnet_lite0": "EfficientNet-Lite0 (128 px, 1,280 features)",
    "resnet50_thin": "ResNet-50, thin (128 px, 1,024 features)",
    "inception_v3": "Inception v3 (128 px, 2,048 features)",
}
COLUMNS = (
    "", "parameters", "MACs", "bytes", "nDCG@10 kept before training", "nDCG@10 kept after (95 %)", "recall@1 after",
    "map after", "nDCG@10 after, against Torch-Pruning's of the same kind (95 %)", "speed-up, 1 item", "32 items",
)  # fmt: skip
TOP = """# Pruning: half of the multiplications of image networks

Written by `python benchmarks/pruning_page.py` from `benchmarks/results/pruning.json`; change it there.

Product pictures (grocery128) find pictures of the same product by the network's own vectors. Ours (`prune.channels`)
have at most half of the multiply-accumulates left, as near as the widths allow; each of Torch-Pruning's has as many as
ours of the same kind, in smaller multiples where its pruning ratio cannot give that within 2 %. Both prune the same
ONNX network, batch norms folded. Then all are trained alike, by `distil.embedding` on the original's vectors, without a
label. Quality is a share of the original's on the same test queries, with its paired 95 % interval over queries;
trainings of several seeds are averaged query by query. Parameters, MACs and bytes are shares of the original's;
speed-ups are of medians, in ONNX Runtime.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/pruning.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/pruning.md"))
    arguments = parser.parse_args()
    networks = json.loads(arguments.results.read_bytes())["networks"]
    arguments.out.write_text("\n".join([TOP, *(section(name, found) for name, found in networks.items())]))


def section(name: str, found: Mapping[str, Any]) -> str:
    """A network's table, with what it starts from and what it was measured on."""
    base, training, machine = found["rows"][ORIGINAL], found["training"], found["environment"]
    scores = ", ".join(f"{metric} {value['value']:.3f}" for metric, value in base["before"].items())
    parameters, macs, size = (base[part] / 1e6 for part in ("parameters", "macs", "size_bytes"))
    times = " and ".join(f"{base[f'ms_{count}']:.2f} ms for {count}" for count in BATCHES)
    lines = [line(subject, row, base) for subject, row in found["rows"].items() if subject != ORIGINAL]
    seeds = len(training["seeds"])
    start = (f"The original: {parameters:.2f} M parameters, {macs:.1f} M MACs, {size:.2f} MB; {scores} on "
             f"{base['before']['ndcg@10']['n']:,} queries; {times}.")  # fmt: skip
    made = (f"{training['steps']:,} batches of {training['batch_size']}, learning rate {training['learning_rate']:g}, "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}. {machine['cpu']}, {machine['threads']} threads, "
            f"{', '.join(machine['instruction_sets'])}; torch-pruning {found['torch_pruning']}, onnxruntime "
            f"{machine['versions']['onnxruntime']}.")  # fmt: skip
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([f"## {TITLES.get(name, name)}\n", f"{start}\n", *head, *lines, f"\n{made}\n"])


def line(name: str, row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    shares = [f"{row[part] / base[part]:.1%}" for part in ("parameters", "macs", "size_bytes")]
    after = row["after"]
    against = interval(row["against"]["after"]["ndcg@10"]) if "against" in row else ""
    speeds = [f"{base[f'ms_{count}'] / row[f'ms_{count}']:.2f}" for count in BATCHES]
    multiple = row["pruned"].get("round_to")
    title = f"{name} (widths in multiples of {multiple})" if multiple else name
    cells = [title, *shares, f"{row['before']['ndcg@10']['kept']:.1%}", interval(after["ndcg@10"]),
             f"{after['recall@1']['value']:.3f}", f"{after['map']['value']:.3f}", against, *speeds]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def interval(change: Mapping[str, Any]) -> str:
    low, high = change["kept_interval"]
    return f"{change['kept']:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
