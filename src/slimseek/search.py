"""Stage 8, the search itself: documents to an index on disk, and texts to the documents nearest to them."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, get_args

import msgspec
import numpy as np

from slimseek import documents, index_folder, parts, plugins, reading
from slimseek import folder as folders
from slimseek.bases import Index
from slimseek.collection import Hits
from slimseek.documents import Documents, Joined, Media
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, UsageError
from slimseek.index_folder import FINER_FILES, FORMAT_VERSION, INDEX_FILES, OVERSAMPLE, PROBE, Manifest, seal
from slimseek.indexes import _vectors
from slimseek.kept import check_probe, probe_of
from slimseek.parts import Merged
from slimseek.progress import track
from slimseek.schema import Array, Precision
from slimseek.value import Value

MOST_HITS = 1000
DOCUMENTS_IN_CHUNK = 256
Rescore = Literal["auto", "none", "f32", "f16", "int8"]


class Result(Value, frozen=True):
    """A document that was found: ``rank`` counts from 1, ``score`` is the inner product with the query.

    Attributes:
        file: of a picture, recording or array: its path in the collection; unset for a text.
        position: of such a document in the index.
    """

    id: str
    score: float
    text: str
    rank: int
    file: str | msgspec.UnsetType = msgspec.UNSET
    position: int | msgspec.UnsetType = msgspec.UNSET


class Answer(Value, frozen=True):
    """Results of each query, best first, and how many milliseconds encoding and searching took, for all together."""

    results: tuple[tuple[Result, ...], ...]
    encode_milliseconds: float
    search_milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What runs and how large it is: bytes of the model that is shipped, and of its index.

    Attributes:
        index_bytes: what is in memory while the index is searched, and on disk too.
        rescore: precision of the finer vectors that rank the candidates; ``None`` where there are none.
        rescore_bytes: bytes of the finer vectors, on disk only.
    """

    model: str
    runtime: str
    threads: int
    dim: int
    documents: int
    kind: str
    precision: Precision
    model_bytes: int
    index_bytes: int
    rescore: Precision | None
    rescore_bytes: int


def index(
    encoder: Encoder, corpus: Mapping[str, str], out: Path, *, kind: str = "exact", precision: Precision = "f32",
    rescore: Rescore = "auto", oversample: int = OVERSAMPLE, force: bool = False,
    encode: Callable[[Sequence[str]], Array] | None = None, media: Media | None = None,
) -> Manifest:  # fmt: skip
    """Encode every document and write a folder that :func:`open` searches.

    Args:
        encoder: what makes the vectors; queries must be encoded by the same.
        corpus: document id to text, or to the path of what the encoder takes.
        out: the folder to make.
        kind: a plug-in of ``indexes/``.
        precision: how the index keeps vectors.
        rescore: precision of finer vectors that are kept on disk, beside the index, and rank the candidates that it
            finds; ``auto`` is int8 for a binary index and none for the others.
        oversample: candidates for each hit that is asked for, 1 or more, where there are finer vectors.
        force: replace a folder that slimseek wrote.
        encode: gives the float32 [n, dim] vectors of all documents in this process's place, such as a cluster of
            machines that opened the same encoder.
        media: the pictures or recordings that documents are; ``None`` for texts.

    Raises:
        UsageError: no documents, an unknown kind or precision, vectors for rescoring that are no finer than those of
            the index, or ``out`` cannot be written.
        MissingExtra: the kind needs a library that is not installed.
    """
    store, finer = chosen(encoder, kind, precision, rescore, oversample)
    if not corpus:
        raise UsageError("the collection has no documents to index")
    with folders.writing(out, force=force) as folder:
        texts = list(corpus.values())
        vectors = document_vectors(encoder, texts) if encode is None else encode(texts)
        store.build(vectors, threads=encoder.threads)
        _write_vectors(folder, store, None if finer is None else _vectors.rows_of(vectors, finer))
        documents.write(folder, corpus, media)
        np.save(folder / PROBE, encoder.documents([probe_of(encoder.spec)])[0], allow_pickle=False)
        manifest = Manifest(
            format_version=FORMAT_VERSION, kind=kind, precision=precision, dim=encoder.spec.dim, count=len(corpus),
            model=encoder.name, fingerprint=fingerprint(encoder), bytes=0, rescore=finer, oversample=oversample,
            files=(), media=msgspec.UNSET if media is None else str(media.folder),
        )  # fmt: skip
        return seal(folder, manifest)


def chosen(
    encoder: Encoder, kind: str, precision: Precision, rescore: Rescore, oversample: int
) -> tuple[Index, Precision | None]:
    """An empty index of that kind, and the precision to rescore with, before any work; see :func:`index`.

    Raises:
        UsageError: an unknown or senseless setting, or an encoder that gives no vectors of documents.
    """
    store: Index = plugins.load("indexes", kind)(precision=precision)
    finer = _finer(precision, rescore)
    if oversample < 1:
        raise UsageError(f"oversample is {oversample}; it must be 1 or more")
    if encoder.spec.output == "class_logits":
        raise UsageError(f"{encoder.name} is a classifier: it names classes, and gives no vectors to search by")
    if encoder.index_of is not None:
        raise UsageError(f"{encoder.name} encodes queries alone, for an index of {encoder.index_of.model}; make it "
                         f"with {encoder.index_of.model}, and give it with --index to serve")  # fmt: skip
    return store, finer


def session(encoder: Encoder, corpus: Mapping[str, str], path: str = "", media: Media | None = None) -> Search:
    """Open the index at ``path``, or make an exact one of the corpus that lasts as long as what is returned."""
    if path:
        return open(Path(path), encoder)
    folder = tempfile.TemporaryDirectory(prefix="slimseek.", ignore_cleanup_errors=True)
    index(encoder, corpus, Path(folder.name) / "index", media=media)
    opened = open(Path(folder.name) / "index", encoder)
    weakref.finalize(opened, folder.cleanup)
    return opened


def open(path: Path, encoder: Encoder) -> Search:
    """Open an index for the encoder that made it, or for one that was compressed to search it.

    Vectors and texts stay on disk until they are read. The parts of an index in parts are searched at once, in as many
    threads as the encoder has.

    Raises:
        ArtifactError: it is not an index, cut, changed, or from a newer version; or its parts are not of one kind.
        UsageError: another encoder made it, or one with other weights; or an encoder that searches an original's index
            is given another's.
    """
    path = Path(path)
    return _parted(path, encoder) if parts.are_in(path) else _whole(path, encoder)


def _parted(path: Path, encoder: Encoder) -> Search:
    """The parts of a folder as one."""
    opened = [_whole(path / part.name, encoder) for part in parts.read(path)]
    return Search(
        encoder=encoder, manifest=parts.joined(path, [one.manifest for one in opened]), finer=None,
        index=Merged([one.hits for one in opened], [len(one.documents) for one in opened], encoder.threads),
        documents=Joined([one.documents for one in opened]),
    )  # fmt: skip


def _whole(path: Path, encoder: Encoder) -> Search:
    """An index that is not in parts."""
    manifest = index_folder.read(path)
    if encoder.spec.dim != manifest.dim:
        raise UsageError(
            f"{path} holds vectors of {manifest.dim} dimensions by {manifest.model}, and {encoder.name} gives "
            f"{encoder.spec.dim}; open it with {manifest.model}, or index again"
        )
    if encoder.index_of is None and fingerprint(encoder) != manifest.fingerprint:
        raise UsageError(
            f"{path} was made by {manifest.model}, whose settings differ from those of {encoder.name}; open it with "
            "the model that made it, or index again"
        )
    folders.check(path, manifest.files)
    store: Index = plugins.load("indexes", manifest.kind)(precision=manifest.precision)
    store.load(path / INDEX_FILES)
    finer = None if manifest.rescore is None else _vectors.load_rows(path / FINER_FILES, manifest.rescore)
    if finer is not None and len(finer.kept) != manifest.count:
        raise ArtifactError(f"{path}: {FINER_FILES} holds {len(finer.kept)} vectors of {manifest.count}; index again")
    shown = documents.read(path, manifest.count, manifest.media or "")
    try:
        probe = reading.array(path / PROBE)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: {PROBE} cannot be read: {error}") from error
    if probe.shape != (manifest.dim,) or probe.dtype != np.float32:
        raise ArtifactError(f"{path}: {PROBE} holds {probe.dtype} {list(probe.shape)}, no vector; index again")
    check_probe(path, encoder, probe)
    return Search(encoder=encoder, manifest=manifest, index=store, finer=finer, documents=shown)


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """An opened index with its encoder.

    Attributes:
        encoder: makes vectors of queries.
        manifest: what is known of the index.
        index: the vectors, or those of all parts.
        finer: vectors on disk that rank what the index finds; ``None`` where it ranks by its own.
        documents: what stands at each position of the index.
    """

    encoder: Encoder
    manifest: Manifest
    index: Index | Merged
    finer: _vectors.Rows | None
    documents: Documents | Joined

    def query(self, texts: Sequence[str], k: int = 10) -> list[list[Result]]:
        """The ``k`` best documents for each text, best first; fewer where the index holds fewer.

        Raises:
            UsageError: an empty text, or k outside 1 to 1,000.
        """
        return [list(results) for results in self.answer(texts, k).results]

    def answer(self, texts: Sequence[str], k: int = 10) -> Answer:
        """The same with the time it took."""
        begin = perf_counter()
        vectors = self.embed(texts)
        encoded = perf_counter()
        results = self.nearest(vectors, k)
        end = perf_counter()
        return Answer(
            results=results, encode_milliseconds=1000 * (encoded - begin), search_milliseconds=1000 * (end - encoded)
        )

    def nearest(self, vectors: Array, k: int) -> tuple[tuple[Result, ...], ...]:
        """The ``k`` best documents for each of float32 [n, dim] vectors; k outside 1 to 1,000 raises UsageError."""
        if not 1 <= k <= MOST_HITS:
            raise UsageError(f"k is {k}; it must be from 1 to {MOST_HITS}")
        hits = self.hits(vectors, k)
        return tuple(self._results(ids, scores) for ids, scores in zip(hits.ids, hits.scores, strict=True))

    def embed(self, texts: Sequence[str], role: Literal["query", "document"] = "query") -> Array:
        """Vectors float32 [n, dim]; an empty text raises UsageError."""
        for position, text in enumerate(texts):
            if not text.strip():
                raise UsageError(f"text {position + 1} of {len(texts)} is empty; give it at least one word")
        return self.encoder.queries(texts) if role == "query" else self.encoder.documents(texts)

    def stats(self) -> Stats:
        """What runs and how large it is."""
        return Stats(
            model=self.encoder.name,
            runtime=self.encoder.runtime,
            threads=self.encoder.threads,
            dim=self.manifest.dim,
            documents=self.manifest.count,
            kind=self.manifest.kind,
            precision=self.manifest.precision,
            model_bytes=sum(self.encoder.shipped.values()),
            index_bytes=self.manifest.bytes,
            rescore=self.manifest.rescore,
            rescore_bytes=self.manifest.rescore_bytes,
        )

    def hits(self, vectors: Array, k: int) -> Hits:
        """Positions and scores of the ``k`` best for float32 [q, dim] queries, or of all documents where they are
        fewer; by the finer vectors of more candidates where there are some.
        """
        k = min(k, self.manifest.count)
        if self.finer is None or isinstance(self.index, Merged):
            return self.index.query(vectors, k)
        return _vectors.rescored(self.index, self.finer, vectors, k, self.manifest.oversample)

    def _results(self, ids: Array, scores: Array) -> tuple[Result, ...]:
        """Hits of one query; those that fill up (id -1) stand last and are left out."""
        return tuple(
            self._result(position, score, rank)
            for rank, (position, score) in enumerate(zip(ids[ids >= 0].tolist(), scores.tolist(), strict=False), 1)
        )

    def _result(self, position: int, score: float, rank: int) -> Result:
        found = self.documents[position]
        place = msgspec.UNSET if found.file is msgspec.UNSET else position
        return Result(id=found.id, score=score, text=found.text, rank=rank, file=found.file, position=place)


def rank(query_vectors: Array, document_vectors: Array, k: int) -> Hits:
    """The ``k`` best of float32 [n, dim] documents for each of float32 [q, dim] queries, exactly."""
    exact: Index = plugins.load("indexes", "exact")()
    exact.build(document_vectors)
    return exact.query(query_vectors, k)


def fingerprint(encoder: Encoder) -> str:
    """Sha256 of the encoder's name and spec in hexadecimal: who made an index."""
    return hashlib.sha256(msgspec.json.encode((encoder.name, encoder.spec))).hexdigest()


def _finer(precision: Precision, rescore: Rescore) -> Precision | None:
    """The precision to rescore with, or ``None``; UsageError where it is unknown or no finer than the index's own."""
    if rescore not in get_args(Rescore):
        raise UsageError(f"unknown rescore {rescore!r}; known: {', '.join(get_args(Rescore))}")
    if rescore == "auto":
        return _vectors.RESCORED_WITH.get(precision)
    if rescore == "none":
        return None
    finest_first = get_args(Precision)
    if finest_first.index(rescore) >= finest_first.index(precision):
        raise UsageError(f"rescore {rescore} is no finer than the index's {precision}; choose a finer one or none")
    return rescore


def document_vectors(encoder: Encoder, texts: Sequence[str]) -> Array:
    """Float32 [n, dim], with a line of progress."""
    vectors = np.empty((len(texts), encoder.spec.dim), np.float32)
    with track(f"encode documents, {encoder.name}", len(texts)) as advance:
        for start in range(0, len(texts), DOCUMENTS_IN_CHUNK):
            chunk = slice(start, start + DOCUMENTS_IN_CHUNK)
            vectors[chunk] = encoder.documents(texts[chunk], advance)
    return vectors


def _write_vectors(folder: Path, store: Index, finer: _vectors.Rows | None) -> None:
    """The index, and the finer vectors where there are some, each in a folder of its own."""
    (folder / INDEX_FILES).mkdir()
    store.save(folder / INDEX_FILES)
    if finer is not None:
        (folder / FINER_FILES).mkdir()
        finer.save(folder / FINER_FILES)
