"""How much of a loss a part of a collection shows: others at random, by their words, or by the model's own vectors.

    slimseek compress minilm --data ../shared/data/scifact --recipe int8 --out build/int8
    slimseek compress minilm --data ../shared/data/scifact --max-loss 20% --time 20m --out build/small
    python benchmarks/distractors.py build/int8 build/small/artifact --data ../shared/data/scifact

Two MODELs encode the whole collection once. What the second keeps of the first's nDCG@10 is then told for development
queries that search all documents, and parts of them: the judged ones, and others that are chosen in each of three ways.
Prints the table of docs/budget.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from slimseek import choose, data, evaluate
from slimseek.collection import SearchSet
from slimseek.schema import Array

METRIC = "ndcg@10"
SIZES = (600, 1000, 1200, 1500, 2000)
DEPTH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, help="MODELs: what is compared with, and what loses")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--queries", type=int, nargs="+", default=[500, 400, 300])
    given = parser.parse_args()
    collection = data.load(str(given.data))
    encoders = [choose.choose(name) for name in given.models]
    documents = [encoder.documents(list(collection.corpus.values())) for encoder in encoders]
    for count in given.queries:
        every = data.search_set(collection, data.split(collection).dev, "dev", max_queries=count)
        queries = [encoder.queries(list(every.queries.values())) for encoder in encoders]
        print(f"\n{len(every.queries)} queries, all {len(every.corpus):,} documents: "
              f"{kept(every, every, documents, queries):.1%}\n")  # fmt: skip
        print("| documents | at random | by words | by the first model's own vectors |\n|---|---|---|---|")
        for size in SIZES:
            by_words = data.search_set(collection, every.qrels, "dev", max_documents=size)
            sets = (at_random(every, size), by_words, nearest(every, size, queries[0] @ documents[0].T))
            print(f"| {size:,} | {' | '.join(f'{kept(one, every, documents, queries):.1%}' for one in sets)} |")


def kept(searched: SearchSet, every: SearchSet, documents: Sequence[Array], queries: Sequence[Array]) -> float:
    """The second model's metric in parts of the first's, by vectors of all documents and of the queries."""
    place = {name: number for number, name in enumerate(every.corpus)}
    rows = [place[name] for name in searched.corpus]
    before, after = (
        evaluate.ranked(own[rows], asked, searched, [METRIC]).get(METRIC)
        for own, asked in zip(documents, queries, strict=True)
    )
    return 1 + evaluate.compare(before, after).relative


def at_random(every: SearchSet, size: int) -> SearchSet:
    names = list(every.corpus)
    random.Random(0).shuffle(names)
    return with_others(every, names, size)


def nearest(every: SearchSet, size: int, scores: Array) -> SearchSet:
    """Each query's first document, then each query's second, by scores [queries, documents]."""
    names = list(every.corpus)
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].T
    return with_others(every, (names[number] for column in columns for number in column), size)


def with_others(every: SearchSet, names: Iterable[str], size: int) -> SearchSet:
    """The judged documents, and the first of the others, so many in all."""
    judged = [document for row in every.qrels.values() for document in row]
    kept = set(list(dict.fromkeys((*judged, *names)))[: max(size, len(set(judged)))])
    return dataclasses.replace(every, corpus={name: text for name, text in every.corpus.items() if name in kept})


if __name__ == "__main__":
    main()
