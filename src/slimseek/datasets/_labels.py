"""Labelled items as a collection: to name an item's class is to find it among the names of all classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimseek.collection import Collection, Finding, Qrels
from slimseek.datasets._findings import tally
from slimseek.errors import UsageError

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
"""What others call splits, and what they are called here."""
TENTHS_OF_TRAIN = 8


def split_of(item: str) -> str:
    """Train, dev or test, 80 : 10 : 10, by the sha256 of an item: one that occurs twice lies in one split."""
    tenth = int.from_bytes(hashlib.sha256(item.encode()).digest()[:8]) % 10
    return "train" if tenth < TENTHS_OF_TRAIN else "dev" if tenth == TENTHS_OF_TRAIN else "test"


def collection(
    path: str,
    rows: Mapping[str, tuple[str, str, str]],
    findings: Sequence[Finding],
    said: Mapping[str, str] | None = None,
) -> Collection:
    """The collection of some rows.

    Args:
        path: where they were read from.
        rows: id to item (a text, or the path of an array), label and split.
        findings: what the reader counted.
        said: what belongs to an item that is a picture or a recording, by the item.

    Raises:
        UsageError: fewer than two classes.
    """
    classes = sorted({label for _, label, _ in rows.values()})
    if len(classes) < 2:
        raise UsageError(f"{path} has {len(rows)} labelled items of {len(classes)} classes; two classes are needed")
    qrels: dict[str, Qrels] = {split: {} for split in SPLITS}
    for name, (_, label, split) in rows.items():
        qrels[split][name] = {label: 1}
    first = {item: split for item, _, split in reversed(list(rows.values()))}
    across = [name for name, (item, _, split) in rows.items() if first[item] != split]
    labels: dict[str, set[str]] = {}
    for item, label, _ in rows.values():
        labels.setdefault(item, set()).add(label)
    return Collection(
        name=Path(path).resolve().name,
        path=path,
        corpus={label: label for label in classes},
        queries={name: item for name, (item, _, _) in rows.items()},
        qrels={split: judged for split, judged in qrels.items() if judged},
        findings=(
            *findings,
            *tally("items that another split has too", across),
            *tally("items with two labels", [item for item, found in labels.items() if len(found) > 1]),
        ),
        labelled=True,
        said=said or {},
    )
