"""A collection as a model can search it: labelled pictures by likeness, captioned ones by their captions."""

from __future__ import annotations

import dataclasses

from slimseek.collection import Collection, Finding, Qrels
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.schema import ModelSpec

MOST_DEV_QUERIES = 500


def suited(collection: Collection, spec: ModelSpec) -> Collection:
    """The collection in the form that a model is judged by.

    Labelled items are a search for a model that gives vectors of pictures, recordings or arrays (see :func:`similar`);
    files are their captions or transcripts for one that reads texts (see :func:`captions`). Others stay as they are:
    classifiers name classes, and a text encoder finds the class of a text among the names of all.

    Raises:
        UsageError: the model reads texts, and nothing is said of the files.
    """
    if spec.modality == "text":
        return captions(collection) if collection.said else collection
    return similar(collection) if collection.labelled and spec.output == "embedding" else collection


def similar(collection: Collection) -> Collection:
    """Labelled items as a search for items alike: those of the same label are relevant.

    The documents are the train split, the catalogue, and the others search them; where there is no dev split, up to 500
    of the train items do so too, chosen by a hash of their ids. Without a train split all items search each other. An
    item is never a result of its own, by its id.

    Args:
        collection: a labelled one. Rows of judgements may be one and the same object for all queries of a label.
    """
    label = collection.label
    catalogue = collection.qrels.get("train") or label
    members: dict[str, dict[str, int]] = {}
    for name in catalogue:
        members.setdefault(label[name], {})[name] = 1
    qrels: dict[str, Qrels] = {}
    lonely: list[str] = []
    for split, judged in collection.qrels.items():
        rows = {name: _others(members.get(label[name], {}), name) for name in _asked(collection, split, judged)}
        qrels[split] = {name: row for name, row in rows.items() if row}
        lonely += [name for name, row in rows.items() if not row]
    findings = collection.findings
    if lonely:
        what = "items that ask for nothing, left out: no document has their label"
        findings = (*findings, Finding(what=what, count=len(lonely), examples=tuple(lonely[:3])))
    asked = {name for judged in qrels.values() for name in judged}
    return dataclasses.replace(
        collection, corpus={name: collection.queries[name] for name in label if name in catalogue},
        queries={name: item for name, item in collection.queries.items() if name in asked},
        qrels={split: judged for split, judged in qrels.items() if judged}, findings=findings, labelled=False,
        by_label=True,
    )  # fmt: skip


def captions(collection: Collection) -> Collection:
    """The collection with what is said of each file in its place.

    Raises:
        UsageError: nothing is said of any.
    """
    if not any(collection.said.values()):
        raise UsageError(f"{collection.name} holds files without a caption or transcript, and the model reads texts")
    return dataclasses.replace(
        collection, corpus={name: collection.said.get(item, item) for name, item in collection.corpus.items()},
        queries={name: collection.said.get(item, item) for name, item in collection.queries.items()}, said={},
    )  # fmt: skip


def _asked(collection: Collection, split: str, judged: Qrels) -> list[str]:
    """The items of a split that search: of the catalogue some, and only where there are no others to choose by."""
    if split != "train":
        return list(judged)
    if "dev" in collection.qrels:
        return []
    return sorted(judged, key=hashed)[:MOST_DEV_QUERIES]


def _others(row: dict[str, int], name: str) -> dict[str, int]:
    """A row without the item itself; the same object where it is not in it."""
    return {other: value for other, value in row.items() if other != name} if name in row else row
