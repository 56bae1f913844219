"""Every index of the folder under one contract; a brute force in float64 is the reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import psycopg
import pytest

from slimseek import plugins
from slimseek.bases import Index
from slimseek.collection import Blocks, Hits
from slimseek.errors import ArtifactError, UsageError
from slimseek.indexes import _vectors, bytes_of, exact, rescore_bytes_of
from slimseek.schema import Array, Precision

KINDS = plugins.names("indexes")
PRECISIONS = get_args(Precision)
PAIRS = [(kind, each) for kind in KINDS for each in plugins.load("indexes", kind).precisions]
IN_FILES = [kind for kind in KINDS if kind != "pgvector"]
"""The kinds whose vectors lie in their folder."""
DIM = 48
LEAST_RECALL = {"f32": 0.95, "f16": 0.95, "int8": 0.95, "binary": 0.5}
SCORE_ERROR = {"f32": 0.02, "f16": 0.02, "int8": 0.02, "binary": 0.5}


def made(kind: str, precision: str = "f32") -> Index:
    return plugins.load("indexes", kind)(precision=precision)


def built(kind: str, vectors: Array, precision: str = "f32") -> Index:
    index = made(kind, precision)
    index.build(vectors)
    return index


def brute_force(queries: Array, documents: Array, k: int) -> Hits:
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    ids = np.stack([np.lexsort((np.arange(len(documents)), -row))[:k] for row in scores])
    return Hits(ids=ids, scores=np.take_along_axis(scores, ids, 1))


def recall(found: Hits, wanted: Hits) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.ids, wanted.ids, strict=True)]))


def assert_same(found: Hits, wanted: Hits) -> None:
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.fixture(scope="module")
def documents() -> Array:
    """1,500 vectors of length one in loose groups, off the origin, with dimensions of unlike spread."""
    random = np.random.default_rng(0)
    groups = random.standard_normal((40, DIM))
    vectors = groups[random.integers(0, 40, 1500)] + 0.6 * random.standard_normal((1500, DIM))
    vectors = vectors * np.linspace(0.3, 1.5, DIM) + 0.2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def queries(documents: Array) -> Array:
    random = np.random.default_rng(1)
    return (documents[::37] + 0.05 * random.standard_normal((41, DIM))).astype(np.float32)


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
class TestContract:
    def test_finds_what_brute_force_finds(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        found = built(kind, documents, precision).query(queries, 10)
        assert found.ids.dtype == np.int64
        assert found.scores.dtype == np.float32
        wanted = brute_force(queries, documents, 10)
        assert recall(found, wanted) >= LEAST_RECALL[precision]
        scores = np.take_along_axis(queries @ documents.T, found.ids, 1)
        np.testing.assert_allclose(found.scores, scores, atol=SCORE_ERROR[precision])

    def test_best_first_and_ties_by_id(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        three_times = np.concatenate([documents[:20]] * 3)
        found = built(kind, three_times, precision).query(queries, 30)
        for ids, scores in zip(found.ids, found.scores, strict=True):
            assert list(ids) == [ids[order] for order in np.lexsort((ids, -scores))]
            for first, second, third in ids.reshape(-1, 3):
                assert (second, third) == (first + 20, first + 40)

    def test_more_hits_than_documents(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        found = built(kind, documents[:4], precision).query(queries, 7)
        assert found.ids.shape == found.scores.shape == (len(queries), 7)
        assert (np.sort(found.ids[:, :4]) == np.arange(4)).all()
        assert (found.ids[:, 4:] == -1).all()
        assert np.isneginf(found.scores[:, 4:]).all()
        assert np.isfinite(found.scores[:, :4]).all()

    def test_one_vector(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        found = built(kind, documents[:1], precision).query(queries[:1], 1)
        assert found.ids.tolist() == [[0]]
        assert found.scores[0, 0] == pytest.approx(float(queries[0] @ documents[0]), abs=1e-3)

    def test_equal_vectors(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        found = built(kind, np.repeat(documents[:1], 9, axis=0), precision).query(queries[:2], 5)
        assert found.ids.tolist() == [[0, 1, 2, 3, 4]] * 2
        wanted = np.broadcast_to(queries[:2] @ documents[:1].T, (2, 5))
        np.testing.assert_allclose(found.scores, wanted, atol=1e-3)

    @pytest.mark.parametrize("dim", [1, 7, 13])
    def test_dimensions_that_do_not_fill_a_byte(self, kind: str, precision: str, dim: int, tmp_path: Path) -> None:
        """Each document finds itself, and a reloaded index knows the width; of one dimension only the sign is left."""
        vectors = np.random.default_rng(dim).choice([-1.0, 1.0], (40, dim)).astype(np.float32)
        index = built(kind, vectors, precision)
        found = index.query(vectors, 3)
        np.testing.assert_array_equal(vectors[found.ids[:, 0]], vectors)
        index.save(tmp_path)
        loaded = made(kind, precision)
        loaded.load(tmp_path)
        assert_same(loaded.query(vectors, 3), found)
        with pytest.raises(UsageError, match=f"n, {dim}"):
            loaded.query(np.ones((1, dim + 1), np.float32), 3)

    def test_queries_far_outside_what_is_stored_saturate(self, kind: str, precision: str, documents: Array) -> None:
        """Documents of 0 to 1; a query a thousand times as long ranks as it does when short, and nothing overflows."""
        far = 1000 * documents[:5]
        index = built(kind, documents, precision)
        assert (index.query(far, 1).ids[:, 0] == np.arange(5)).mean() >= LEAST_RECALL[precision]
        assert np.isfinite(index.query(far, 3).scores).all()

    def test_batch_does_not_matter(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        index = built(kind, documents, precision)
        together = index.query(queries, 10)
        for row, query in enumerate(queries):
            alone = index.query(query[None], 10)
            np.testing.assert_array_equal(alone.ids[0], together.ids[row])
            np.testing.assert_array_equal(alone.scores[0], together.scores[row])

    def test_built_again_gives_the_same(self, kind: str, precision: str, documents: Array, queries: Array) -> None:
        first, second = (built(kind, documents, precision).query(queries, 10) for _ in range(2))
        assert_same(first, second)

    def test_reload_gives_equal_answers(
        self, kind: str, precision: str, documents: Array, queries: Array, tmp_path: Path
    ) -> None:
        index = built(kind, documents, precision)
        index.save(tmp_path)
        loaded = made(kind, precision)
        loaded.load(tmp_path)
        assert_same(loaded.query(queries, 25), index.query(queries, 25))
        assert loaded.nbytes == index.nbytes

    def test_nbytes_is_what_lies_on_disk(self, kind: str, precision: str, documents: Array, tmp_path: Path) -> None:
        if kind not in IN_FILES:
            pytest.skip("its vectors lie in the database")
        index = built(kind, documents, precision)
        index.save(tmp_path)
        on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert 0 <= on_disk - index.nbytes <= 320  # headers of .npy files and of faiss

    def test_a_cut_file_is_refused(self, kind: str, precision: str, documents: Array, tmp_path: Path) -> None:
        built(kind, documents, precision).save(tmp_path)
        for path in sorted(tmp_path.iterdir()):
            whole = path.read_bytes()
            for length in (0, 40, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:length])
                with pytest.raises(ArtifactError, match=path.name):
                    made(kind, precision).load(tmp_path)
            path.write_bytes(whole)

    def test_another_precision_or_no_file_is_refused(
        self, kind: str, precision: str, documents: Array, tmp_path: Path
    ) -> None:
        other = "f32" if precision != "f32" else "f16"
        with pytest.raises(ArtifactError):
            made(kind, precision).load(tmp_path)
        built(kind, documents[:5], other).save(tmp_path)
        with pytest.raises(ArtifactError):
            made(kind, precision).load(tmp_path)

    def test_wrong_vectors_are_refused(self, kind: str, precision: str, documents: Array) -> None:
        with pytest.raises(UsageError, match="no vectors"):
            built(kind, documents[:0], precision)
        with pytest.raises(UsageError, match="shape"):
            built(kind, documents[0], precision)
        poisoned = documents[:3].copy()
        poisoned[1, 2] = np.nan
        with pytest.raises(UsageError, match="NaN"):
            built(kind, poisoned, precision)
        with pytest.raises(UsageError, match=f"n, {DIM}"):
            built(kind, documents, precision).query(documents[:, :5], 3)


def twice(vectors: Array) -> Array:
    """Vectors, and the same ones again in another order: ranges of the first half are those of the whole."""
    return np.concatenate([vectors, vectors[::-1]])


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
class TestChange:
    """Vectors are added and removed; the reference is an index that was built of what is there then."""

    def test_added_ones_are_found_as_if_built_with_them(
        self, kind: str, precision: Precision, documents: Array, queries: Array, tmp_path: Path
    ) -> None:
        """Also after saving and loading, from which what is mapped must be copied before it can grow."""
        vectors = twice(documents[:50])
        wanted = built(kind, vectors, precision).query(queries, 12)
        index = built(kind, vectors[:50], precision)
        index.save(tmp_path)
        loaded = made(kind, precision)
        loaded.load(tmp_path)
        for each in (index, loaded):
            each.add(vectors[50:70])
            each.add(vectors[70:])
            assert_same(each.query(queries, 12), wanted)
        (tmp_path / "grown").mkdir()
        loaded.save(tmp_path / "grown")
        again = made(kind, precision)
        again.load(tmp_path / "grown")
        assert_same(again.query(queries, 12), wanted)

    def test_removed_ones_leave_no_gap(
        self, kind: str, precision: Precision, documents: Array, queries: Array, tmp_path: Path
    ) -> None:
        vectors = twice(documents[:50])
        gone = np.array([99, 0, 51, 52, 53, 98, 7, 7])
        index = built(kind, vectors, precision)
        index.save(tmp_path)
        loaded = made(kind, precision)
        loaded.load(tmp_path)
        ranges = _vectors.ranges_of(vectors, precision, shared_step=getattr(index, "shared_step", False))
        left = _vectors.restored(_vectors.stored(np.delete(vectors, gone, 0), precision, ranges), ranges)
        scores = np.stack([(left * query.astype(np.float64)).sum(1) for query in queries]).astype(np.float32)
        best = np.stack([np.lexsort((np.arange(len(left)), -row))[:20] for row in scores])
        for each in (index, loaded):
            each.remove(gone)
            found = each.query(queries, len(left))  # all are candidates, of whatever kind
            np.testing.assert_array_equal(found.ids[:, :20], best)
            np.testing.assert_array_equal(found.scores[:, :20], np.take_along_axis(scores, best, 1))
            assert each.query(queries[:1], 1000).ids[0, len(left)] == -1

    def test_a_large_one_still_finds_its_neighbours(
        self, kind: str, precision: Precision, documents: Array, queries: Array
    ) -> None:
        """Half of it added, then a third removed: a graph is as good as one that was built at once."""
        index = built(kind, documents[:750], precision)
        index.add(documents[750:])
        gone = np.arange(1, 1500, 3)
        index.remove(gone)
        wanted = brute_force(queries, np.delete(documents, gone, 0), 10)
        assert recall(index.query(queries, 10), wanted) >= LEAST_RECALL[precision]

    def test_blocks_give_the_files_of_an_array(
        self, kind: str, precision: Precision, documents: Array, queries: Array, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def each() -> Iterator[Array]:
            yield documents[:7]
            yield documents[7:600]
            yield documents[600:]

        monkeypatch.setattr(_vectors, "ROWS_IN_BLOCK", 512)
        (tmp_path / "blocks").mkdir()
        (tmp_path / "array").mkdir()
        blocks = Blocks(count=len(documents), dim=DIM, each=each)
        made(kind, precision).write(tmp_path / "blocks", blocks)
        index = built(kind, documents, precision)
        index.save(tmp_path / "array")
        for path in (tmp_path / "array").iterdir():
            if kind in IN_FILES:
                assert path.read_bytes() == (tmp_path / "blocks" / path.name).read_bytes()
        loaded = made(kind, precision)
        loaded.load(tmp_path / "blocks")
        assert_same(loaded.query(queries, 10), index.query(queries, 10))

    def test_what_cannot_be_added_or_removed_is_refused(
        self, kind: str, precision: Precision, documents: Array
    ) -> None:
        index = built(kind, documents[:5], precision)
        with pytest.raises(UsageError, match=f"n, {DIM}"):
            index.add(documents[:, :5])
        with pytest.raises(UsageError, match="NaN"):
            index.add(np.full((1, DIM), np.nan, np.float32))
        for ids in ([5], [-1, 2]):
            with pytest.raises(UsageError, match="the index has 0 to 4"):
                index.remove(np.array(ids))
        with pytest.raises(UsageError, match="nothing would be left"):
            index.remove(np.arange(5))
        assert index.query(documents[:1], 5).ids[0].tolist().count(-1) == 0


def test_the_share_outside_the_ranges_by_hand() -> None:
    """Range -127 to 127 with step 1, and a constant: 127.6 and 6 lie outside, 127.4 does not; 2 of 6 values."""
    ranges = _vectors.ranges_of(np.array([[-127, 5], [127, 5]], np.float32), "int8")
    assert _vectors.outside(np.array([[127.4, 5], [127.6, 5], [0, 6]], np.float32), ranges) == pytest.approx(2 / 6)
    assert _vectors.outside(np.ones((2, 2), np.float32), None) == 0


@pytest.mark.parametrize("kind", IN_FILES)
def test_smaller_precision_takes_fewer_bytes(kind: str, documents: Array) -> None:
    sizes = {precision: built(kind, documents, precision).nbytes for precision in PRECISIONS}
    vectors = documents.size
    assert sizes["f32"] - sizes["f16"] == 2 * vectors
    assert sizes["f16"] - sizes["int8"] == vectors - 2 * DIM * 4  # the ranges are kept too
    assert sizes["int8"] - sizes["binary"] == vectors - vectors // 8


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_precision(kind: str) -> None:
    with pytest.raises(UsageError, match="'int4'; known: f32, f16, int8, binary"):
        made(kind, "int4")


@pytest.mark.parametrize("kind", KINDS)
def test_f16_refuses_what_it_cannot_hold(kind: str) -> None:
    with pytest.raises(UsageError, match="70000"):
        built(kind, np.array([[1.0, 7e4]], np.float32), "f16")


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_any_length_rank_by_inner_product(kind: str) -> None:
    """A long vector wins although a short one points the same way; by hand: 2*3, 2*1, 2*0.5. Signs have no length."""
    lengths = np.array([[0.5, 0], [3, 0], [1, 0], [0, 9]], np.float32)
    for precision in {"f32", "f16", "int8"} & set(plugins.load("indexes", kind).precisions):
        found = built(kind, lengths, precision).query(np.array([[2, 0]], np.float32), 4)
        assert found.ids.tolist() == [[1, 2, 0, 3]]
        np.testing.assert_allclose(found.scores[0], [6, 2, 1, 0], atol=0.08)


@pytest.mark.parametrize("kind", IN_FILES)
@pytest.mark.parametrize("dim", [64, 384])
def test_int8_at_widths_that_libraries_compute_otherwise(kind: str, dim: int) -> None:
    """Short queries, too: at multiples of 64 faiss takes a query of int8 codes as integers."""
    random = np.random.default_rng(5)
    documents = random.standard_normal((1000, dim)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = (0.001 * (documents[:30] + 0.03 * random.standard_normal((30, dim)))).astype(np.float32)
    found = built(kind, documents, "int8").query(queries, 10)
    assert recall(found, brute_force(queries, documents, 10)) >= 0.9


def test_exact_is_exact(documents: Array, queries: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to float64 to the last bit, also in blocks that cut queries and documents at odd places."""
    wanted = brute_force(queries, documents, 10)
    assert_same(built("exact", documents).query(queries, 10), wanted)
    monkeypatch.setattr(exact, "SCORES_IN_BLOCK", 7 * len(documents))
    monkeypatch.setattr(_vectors, "ROWS_IN_BLOCK", 101)
    assert_same(built("exact", documents).query(queries, 10), wanted)


def test_exact_ties_across_the_border(documents: Array, queries: Array) -> None:
    """300 equal documents among others: of those that do not all fit, the lowest ids are given."""
    many = documents[:700].copy()
    equal = np.arange(1, 600, 2)
    many[equal] = queries[0] / np.linalg.norm(queries[0])
    for precision in PRECISIONS:
        assert built("exact", many, precision).query(queries[:1], 50).ids[0].tolist() == equal[:50].tolist()


def test_exact_sees_ties_that_float32_sums_hide() -> None:
    """Documents of the same values in another order score the same; a float32 product says otherwise."""
    random = np.random.default_rng(2)
    values = random.standard_normal(384).astype(np.float32)
    documents = np.stack([random.permutation(values) for _ in range(400)])
    query = np.ones((1, 384), np.float32)
    assert len(np.unique(query @ documents.T)) > 1
    hits = built("exact", documents).query(query, 20)
    assert hits.ids[0].tolist() == list(range(20))
    assert hits.scores[0].tolist() == [np.float32(values.astype(np.float64).sum())] * 20


@pytest.mark.parametrize("kind", KINDS)
def test_ties_across_the_border_of_a_small_index(kind: str, documents: Array, queries: Array) -> None:
    few = documents[:100].copy()
    few[3::3] = queries[0] / np.linalg.norm(queries[0])
    for precision in plugins.load("indexes", kind).precisions:
        assert built(kind, few, precision).query(queries[:1], 10).ids[0].tolist() == list(range(3, 33, 3))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("exact", {}),
        ("usearch", {"expansion_search": 32}),
        ("faiss_flat", {}),
        ("faiss_hnsw", {"expansion_search": 32}),
    ],
)
def test_int8_keeps_the_order_where_dimensions_differ_widely(kind: str, settings: dict[str, int]) -> None:
    """Spreads from 0.02 to 2: what a dimension counts for must follow its spread, in a graph too."""
    random = np.random.default_rng(3)
    spread = np.geomspace(0.02, 2, DIM)
    documents, queries = ((random.standard_normal((n, DIM)) * spread).astype(np.float32) for n in (1000, 50))
    index = plugins.load("indexes", kind)(precision="int8", **settings)
    index.build(documents)
    assert recall(index.query(queries, 10), brute_force(queries, documents, 10)) >= 0.95


def test_int8_codes_by_hand() -> None:
    """Range 0 to 254 has the middle 127 and step 1; a constant dimension is kept exactly; outside is the border."""
    ranges = _vectors.ranges_of(np.array([[0, 5], [254, 5]], np.float32), "int8")
    assert ranges is not None
    np.testing.assert_array_equal(ranges, [[127, 5], [1, 0]])
    codes = _vectors.to_codes(np.array([[0, 5], [254, 5], [128.4, 5], [1e9, 5], [-1e9, 5]], np.float32), ranges)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes[:, 0], [-127, 127, 1, 127, -127])
    np.testing.assert_array_equal(_vectors.restored(codes[:3], ranges), [[0, 5], [254, 5], [128, 5]])


def test_int8_error_is_at_most_half_a_step(documents: Array) -> None:
    for shared_step in (False, True):
        ranges = _vectors.ranges_of(documents, "int8", shared_step=shared_step)
        assert ranges is not None
        error = np.abs(_vectors.restored(_vectors.to_codes(documents, ranges), ranges) - documents)
        assert (error <= ranges[1] * 0.5001).all()


def test_int8_of_a_single_vector_uses_the_stored_ranges(documents: Array) -> None:
    """CASES Q18: ranges come from the documents, so that one query alone is neither zero nor NaN."""
    index = built("usearch", documents, "int8")
    alone = index.query(documents[7:8], 1)
    assert alone.ids.tolist() == [[7]]
    assert alone.scores[0, 0] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", IN_FILES)
def test_int8_similarity_does_not_overflow(kind: str) -> None:
    """CASES Q20: 512 products of the outermost codes, 127 * 127 each, are far more than 8 or 16 bits hold."""
    vectors = np.ones((3, 512), np.float32) * np.array([[-1], [1], [0.5]], np.float32)
    found = built(kind, vectors, "int8").query(vectors[1:2], 3)
    assert found.ids.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(found.scores[0], [512, 256, -512], rtol=0.01)


def test_signs_by_hand() -> None:
    """Middle (2, 5, 0); distances (2, 0, 4) from it, so the steps are 2, 0, 4; bits fill a byte from the left."""
    vectors = np.array([[0, 5, 4], [4, 5, -4]], np.float32)
    ranges = _vectors.ranges_of(vectors, "binary")
    assert ranges is not None
    np.testing.assert_array_equal(ranges, [[2, 5, 0], [2, 0, 4]])
    signs = _vectors.to_signs(vectors, ranges)
    assert signs.dtype == np.uint8
    assert signs.tolist() == [[0b00100000], [0b10000000]]
    np.testing.assert_array_equal(_vectors.restored(signs, ranges), vectors)
    uneven = _vectors.ranges_of(np.array([[1], [-1], [3], [-3]], np.float32), "binary")
    assert uneven is not None
    assert uneven[1, 0] == (1 + 1 + 9 + 9) / (1 + 1 + 3 + 3)


def test_scores_of_signs_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal vectors that share half of what they are: a regression of estimated on true inner products has slope 1."""
    monkeypatch.setattr(_vectors, "ROWS_IN_BLOCK", 1003)
    random = np.random.default_rng(4)
    documents = (random.standard_normal((5000, 64)) * np.linspace(0.5, 2, 64) + 0.7).astype(np.float32)
    queries = (0.5 * documents + 0.5 * random.standard_normal((5000, 64))).astype(np.float32)
    rows = _vectors.rows_of(documents, "binary")
    assert rows.nbytes == 5000 * 8 + 2 * 64 * 4
    estimated = (rows.take(np.arange(5000)) * queries).sum(1)
    true = (documents.astype(np.float64) * queries).sum(1)
    assert estimated.mean() / true.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 13, 48])
def test_hamming_counts_bits(width: int) -> None:
    random = np.random.default_rng(width)
    signs = random.integers(0, 256, (50, width), np.uint8)
    counted = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(row, signs[3], strict=True)) for row in signs]
    found = _vectors.hamming(signs, signs[3])
    assert found.dtype == np.int32
    assert found.tolist() == counted


def test_exact_binary_is_hamming_then_scores(documents: Array, queries: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bits one at a time: the 40 nearest and all as near as the last, ranked by what their signs stand for."""
    monkeypatch.setattr(_vectors, "ROWS_IN_BLOCK", 101)
    found = built("exact", documents, "binary").query(queries, 10)
    middle = documents.astype(np.float64).mean(0).astype(np.float32)
    distance = np.abs(documents.astype(np.float64) - middle)
    step = ((distance**2).sum(0) / distance.sum(0)).astype(np.float32)
    signs = documents > middle
    values = np.where(signs, 1.0, -1.0) * step + middle
    for row, query in enumerate(queries):
        far = (signs != (query > middle)).sum(1)
        near = np.flatnonzero(far <= np.sort(far)[39])
        scores = (values[near] * query.astype(np.float64)).sum(1).astype(np.float32)
        best = np.lexsort((near, -scores))[:10]
        assert found.ids[row].tolist() == near[best].tolist()
        np.testing.assert_allclose(found.scores[row], scores[best], rtol=1e-6)


def test_a_middle_taken_away_is_worth_having(documents: Array, queries: Array) -> None:
    """Vectors of length one off the origin, as encoders give them: plain signs find clearly less."""
    shifted, moved = ((x + 0.2) / np.linalg.norm(x + 0.2, axis=1, keepdims=True) for x in (documents, queries))
    wanted = brute_force(moved, shifted, 10)
    found = recall(built("exact", shifted, "binary").query(moved, 10), wanted)
    plain = np.array([((shifted > 0) != (query > 0)).sum(1).argsort(kind="stable")[:10] for query in moved])
    assert found > recall(Hits(ids=plain, scores=np.zeros(plain.shape, np.float32)), wanted) + 0.1


def test_ranges_that_do_not_fit_are_refused(documents: Array, tmp_path: Path) -> None:
    for precision in ("int8", "binary"):
        built("exact", documents, precision).save(tmp_path)
        np.save(tmp_path / "ranges.npy", np.zeros((2, DIM + 9), np.float32))
        with pytest.raises(ArtifactError, match=r"vectors\.npy is \d+ wide where"):
            made("exact", precision).load(tmp_path)


def test_usearch_refuses_senseless_settings() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        plugins.load("indexes", "usearch")(connectivity=0)


def test_usearch_builds_with_threads(documents: Array, queries: Array) -> None:
    index = made("usearch")
    index.build(documents, threads=2)
    assert recall(index.query(queries, 10), brute_force(queries, documents, 10)) >= 0.95


# ---------------------------------------------------------------- bytes known before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("count", "dim"), [(1, 1), (3, 8), (7, 13), (200, DIM), (11, 384)])
def test_bytes_are_known_before_an_exact_index_is_built(precision: Precision, count: int, dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    assert bytes_of(count, dim, precision) == built("exact", vectors, precision).nbytes


def test_bytes_by_hand() -> None:
    """A million vectors of 384: 1,536, 768, 384 and 48 bytes each; two float32 for each dimension are shared."""
    sizes = {precision: bytes_of(10**6, 384, precision) for precision in PRECISIONS}
    assert sizes == {
        "f32": 1536 * 10**6, "f16": 768 * 10**6, "int8": 384 * 10**6 + 3072, "binary": 48 * 10**6 + 3072,
    }  # fmt: skip


def test_only_binary_is_rescored_by_default_and_by_int8() -> None:
    sizes = {precision: rescore_bytes_of(100, 16, precision) for precision in PRECISIONS}
    assert sizes == {"f32": 0, "f16": 0, "int8": 0, "binary": bytes_of(100, 16, "int8")}


def test_bytes_of_an_unknown_precision_are_refused() -> None:
    for count in (bytes_of, rescore_bytes_of):
        with pytest.raises(UsageError, match="unknown vector precision 'int4'"):
            count(10, 10, "int4")  # type: ignore[arg-type]


# ---------------------------------------------------------------- PostgreSQL


@pytest.mark.parametrize("kind", ["pgvector"])
class TestDatabase:
    """What the others do not have: a server, a graph from some size on, a table that may be gone."""

    @pytest.mark.parametrize("precision", ["f32", "f16", "binary"])
    def test_a_graph_finds_what_brute_force_finds(
        self, kind: str, precision: str, documents: Array, queries: Array, tmp_path: Path, postgres: str
    ) -> None:
        index = plugins.load("indexes", kind)(precision=precision, graph_from=1000)
        index.build(documents)
        index.save(tmp_path)
        table = json.loads((tmp_path / "table.json").read_bytes())["table"]
        with psycopg.connect(postgres) as connection:
            [kinds] = connection.execute("SELECT array_agg(indexdef) FROM pg_indexes WHERE tablename = %s", [table])
        assert any("USING hnsw" in definition for definition in kinds[0])
        found = index.query(queries, 10)
        assert recall(found, brute_force(queries, documents, 10)) >= LEAST_RECALL[precision]
        assert (index.query(queries[:1], 1500).ids >= 0).all(), "more than a graph looks at: all rows are scored"

    def test_nothing_is_left_of_what_was_not_saved_or_is_forgotten(
        self, kind: str, documents: Array, tmp_path: Path, postgres: str
    ) -> None:
        def tables() -> set[str]:
            with psycopg.connect(postgres) as connection:
                return {row[0] for row in connection.execute("SELECT tablename FROM pg_tables")}

        before = tables()
        index = built(kind, documents)
        index.build(documents[:5])
        assert tables() == before
        index.save(tmp_path)
        assert len(tables() - before) == 1
        index.add(documents[5:9])
        (tmp_path / "grown").mkdir()
        index.save(tmp_path / "grown")
        assert len(tables() - before) == 2
        for folder in (tmp_path, tmp_path / "grown"):
            loaded = made(kind)
            loaded.load(folder)
            loaded.forget()
        assert tables() == before

    def test_a_table_that_is_gone_or_changed_is_refused(
        self, kind: str, documents: Array, tmp_path: Path, postgres: str
    ) -> None:
        built(kind, documents[:20]).save(tmp_path)
        table = json.loads((tmp_path / "table.json").read_bytes())["table"]
        with psycopg.connect(postgres) as connection:
            connection.execute(f"UPDATE {table} SET vector = (SELECT vector FROM {table} WHERE id = 3) WHERE id = 7")
        with pytest.raises(ArtifactError, match="was changed after it was written"):
            made(kind).load(tmp_path)
        with psycopg.connect(postgres) as connection:
            connection.execute(f"DROP TABLE {table}")
        with pytest.raises(ArtifactError, match="which the database does not have"):
            made(kind).load(tmp_path)

    def test_many_threads_ask_at_once(self, kind: str, documents: Array, queries: Array) -> None:
        index = built(kind, documents[:300])
        wanted = index.query(queries, 5)
        with ThreadPoolExecutor(8) as pool:
            for row, found in enumerate(pool.map(lambda query: index.query(query[None], 5), queries)):
                np.testing.assert_array_equal(found.ids[0], wanted.ids[row])

    def test_a_lost_connection_is_made_anew(
        self, kind: str, documents: Array, queries: Array, tmp_path: Path, postgres: str
    ) -> None:
        index = built(kind, documents[:30])
        wanted = index.query(queries, 5)
        index.save(tmp_path)
        with psycopg.connect(postgres) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            )
        with pytest.raises(UsageError, match="refuses"):
            index.query(queries, 5)
        assert_same(index.query(queries, 5), wanted)

    def test_what_it_cannot_do_is_said(self, kind: str, documents: Array, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match="pgvector keeps no int8 vectors; it keeps f32, f16, binary"):
            made(kind, "int8")
        monkeypatch.setenv("SLIMSEEK_DATABASE", "postgresql://someone:a-secret@127.0.0.1:1/none?connect_timeout=2")
        with pytest.raises(UsageError, match="SLIMSEEK_DATABASE") as refused:
            built(kind, documents)
        assert "a-secret" not in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_no_address_lies_on_disk(self, kind: str, documents: Array, tmp_path: Path) -> None:
        built(kind, documents[:3]).save(tmp_path)
        assert set(json.loads((tmp_path / "table.json").read_bytes())) == {"table", "count", "precision", "digest"}
