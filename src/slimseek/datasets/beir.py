"""The BEIR layout: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimseek import reading
from slimseek.bases import Dataset
from slimseek.collection import Collection, Finding, Qrels
from slimseek.datasets import _lines as lines
from slimseek.datasets import _pictures as pictures
from slimseek.datasets._findings import repeated, tally
from slimseek.errors import UsageError

SPLITS = ("train", "dev", "test")
FILES = ("array", "image", "audio")
TREC_COLUMNS = 4
TOLERATED = 0.01


class Beir(Dataset):
    """A folder of JSON lines and judgements; title and text of a document are joined by a blank.

    A line has ``text``, or the path of a file in the folder: ``array``, a ``.npy`` or ``.npz`` file for networks that
    take arrays, ``image``, a picture, whose caption is then its ``text``, or ``audio``, a recording, whose ``text`` is
    what is said in it. Pictures that cannot be read are left out.
    """

    def recognises(self, path: str) -> bool:
        """A folder with a corpus, queries or judgements."""
        folder = Path(path)
        return folder.is_dir() and any((folder / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels"))

    def read(self, path: str) -> Collection:
        """Read the three parts and count what is odd in them."""
        folder = Path(path)
        said: dict[str, str] = {}
        findings: list[Finding] = []
        corpus = _items(folder / "corpus.jsonl", said, findings)
        queries = _items(folder / "queries.jsonl", said, findings)
        qrels: dict[str, Qrels] = {}
        for split in SPLITS:
            file = folder / "qrels" / f"{split}.tsv"
            if file.is_file():
                qrels[split] = _judgements(file, corpus, queries, findings)
        if not qrels:
            raise UsageError(f"{folder} has no judgements; it needs qrels/test.tsv (and train.tsv, dev.tsv)")
        judged = {query for split in qrels.values() for query in split}
        findings += [
            *tally("documents without text", [name for name, text in corpus.items() if not text]),
            *tally("queries without text", [name for name, text in queries.items() if not text]),
            *tally("documents whose text occurs before", repeated(corpus)),
            *tally("queries without a judgement", [name for name in queries if name not in judged]),
        ]
        return Collection(
            name=folder.resolve().name, path=path, corpus=corpus, queries=queries, qrels=qrels,
            findings=tuple(findings), said=said,
        )  # fmt: skip


def _items(file: Path, said: dict[str, str], findings: list[Finding]) -> dict[str, str]:
    """Id to text or path, in the order of the file."""
    items: dict[str, str] = {}
    shown: dict[str, str] = {}
    for number, line in lines.numbered(file):
        record = lines.decoded(line, file, number)
        name, text = _record(record, file, number)
        if name in items:
            raise UsageError(f"{file}, line {number}: the _id {name!r} occurs a second time")
        items[name] = text
        if isinstance(record.get("image"), str):
            shown[name], said[text] = text, lines.text_of(record)
        elif "audio" in record and lines.text_of(record):
            said[text] = lines.text_of(record)
    broken = pictures.broken(shown)
    findings += tally(f"{file.name}: pictures that cannot be read, left out", list(broken.values()))
    items = {name: item for name, item in items.items() if name not in broken}
    if not items:
        raise UsageError(f"{file} is empty")
    return items


def _record(record: Any, file: Path, number: int) -> tuple[str, str]:
    kind = next((kind for kind in FILES if isinstance(record.get(kind), str)), None)
    if kind is not None:
        return str(record["_id"]), _file(file.parent / record[kind], file, number)
    if not isinstance(record.get("text"), str) or not isinstance(record.get("title") or "", str):
        raise UsageError(f"{file}, line {number}: there is no text (a string) and no {', '.join(FILES)} (a path)")
    return str(record["_id"]), lines.text_of(record)


def _file(path: Path, file: Path, number: int) -> str:
    """The path of an item's file, which must lie in the collection."""
    if not reading.is_inside(path, file.parent):
        raise UsageError(f"{file}, line {number}: {path} lies outside of the collection")
    if not reading.is_file(path):
        raise UsageError(f"{file}, line {number}: there is no file {path}")
    return str(path)


def _judgements(file: Path, corpus: dict[str, str], queries: dict[str, str], findings: list[Finding]) -> Qrels:
    """Query to document to relevance. No score means relevant; of lines given twice the last counts."""
    qrels: Qrels = {}
    unknown: list[str] = []
    lost: set[str] = set()
    twice: list[str] = []
    count = 0
    for number, line in lines.numbered(file):
        query, document, score = _columns(line.decode("utf-8", "replace"), file, number)
        if number == 1 and query in ("query-id", "query_id", "qid"):
            continue
        count += 1
        missing = query if query not in queries else document if document not in corpus else None
        if missing is not None:
            unknown.append(missing)
            lost.add(query)
            continue
        if document in qrels.setdefault(query, {}):
            twice.append(f"{query} {document}")
        qrels[query][document] = _score(score, file, number)
    lost -= qrels.keys()
    if len(unknown) > count * TOLERATED or lost:
        raise UsageError(
            f"{file}: {len(unknown)} of {count} lines name an unknown query or document, such as {unknown[0]!r}"
            + (f"; nothing is left of query {min(lost)!r}" if lost else "")
        )
    name = file.stem
    negative = [f"{query} {document}" for query, row in qrels.items() for document, value in row.items() if value < 0]
    useless = [query for query, row in qrels.items() if max(row.values()) <= 0]
    findings += [
        *tally(f"{name} judgements of an unknown query or document, left out", unknown),
        *tally(f"{name} judgements given twice, the last counts", twice),
        *tally(f"{name} judgements below zero, read as not relevant", negative),
        *tally(f"{name} queries without a relevant document, left out", useless),
    ]
    return qrels


def _columns(line: str, file: Path, number: int) -> tuple[str, str, str]:
    """Query, document and score of a line: two or three columns, or TREC's four; quotes mean nothing."""
    columns = line.rstrip("\r\n").split("\t")
    if len(columns) == 1:
        columns = line.split()
    if len(columns) == TREC_COLUMNS:
        columns = [columns[0], *columns[2:]]
    if len(columns) == 2:
        columns = [*columns, "1"]
    if len(columns) != 3:
        raise UsageError(f"{file}, line {number}: {len(columns)} columns; query-id, corpus-id and score are expected")
    return columns[0].strip(), columns[1].strip(), columns[2].strip()


def _score(text: str, file: Path, number: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{file}, line {number}: the score {text!r} is not a whole number") from None
