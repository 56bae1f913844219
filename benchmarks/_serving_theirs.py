"""Today's usual service: sentence-transformers in float32, faiss, FastAPI; what benchmarks/serving.py compares with.

    python benchmarks/_serving_theirs.py --model FOLDER --vectors FILE.npy --texts FILE.json --kind flat --port 8001

The route is written as most are: a plain function, which FastAPI runs in its pool of threads. With --loop it runs in
the event loop, one request after the other, which is faster where one core does everything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer


def index_of(vectors: Path, kind: str) -> Any:
    """The index, read from disk where it has been made before."""
    file = vectors.with_name(f"{vectors.stem}.{kind}.faiss")
    if file.is_file():
        return faiss.read_index(str(file))
    rows = np.load(vectors, allow_pickle=False)
    index = faiss.IndexFlatIP(rows.shape[1])
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(rows.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 128, 128
    index.add(rows)
    faiss.write_index(index, str(file))
    return index


def application(model: Path, vectors: Path, texts: Path, kind: str, in_loop: bool, threads: int) -> FastAPI:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    encoder, index = SentenceTransformer(str(model), device="cpu"), index_of(vectors, kind)
    documents = list(json.loads(texts.read_text("utf-8")).items())
    service = FastAPI()

    def found(q: str, k: int) -> list[dict[str, Any]]:
        scores, places = index.search(encoder.encode([q], normalize_embeddings=True), k)
        return [{"id": documents[place][0], "score": float(score), "text": documents[place][1]}
                for place, score in zip(places[0], scores[0], strict=True)]  # fmt: skip

    if in_loop:

        @service.get("/search")
        async def search_in_loop(q: str, k: int = 10) -> dict[str, Any]:
            return {"results": found(q, k)}

    else:

        @service.get("/search")
        def search(q: str, k: int = 10) -> dict[str, Any]:
            return {"results": found(q, k)}

    return service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--kind", choices=("flat", "hnsw"), default="flat")
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    service = application(given.model, given.vectors, given.texts, given.kind, given.loop, given.threads)
    uvicorn.run(service, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
