"""What a teacher gives, computed once and kept on disk: to run it over all items is the dearest part of a training.

A file is a ``.npy`` that ends with its sha256 (see :mod:`slimseek.sealed`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from slimseek import choose, plugins, sealed
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.fingerprint import fingerprint
from slimseek.inputs.arrays import RANDOM
from slimseek.progress import say, track
from slimseek.schema import Array, Model

PART = 1024
"""Items that are computed between two files: what a run that is killed loses at most."""
LABEL = "vectors of the teacher"
FORMAT = b"1 vector"
"""Version of the computation and what is computed: a part of every key."""
Compute = Callable[[Model, Sequence[str]], Array]
_elsewhere: ContextVar[Compute | None] = ContextVar("elsewhere", default=None)


@contextmanager
def computed_by(compute: Compute) -> Iterator[None]:
    """Have teachers asked elsewhere, such as on a cluster, while the block runs.

    Args:
        compute: gives the float32 [n, dim] vectors that a teacher gives for items, in this process's place.
    """
    token = _elsewhere.set(compute)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def vectors(teacher: Model, items: Sequence[str], folder: str = "") -> Array:
    """The vectors that a teacher gives for documents, from the folder where it was asked for the same ones before.

    A run that is killed goes on at its last 1,024 items. The teacher runs as it is used: no dropout, fixed statistics.

    Args:
        teacher: any model; its longest sequence says where texts are cut.
        items: texts, or paths of arrays.
        folder: where vectors are kept; ``""`` for ``slimseek/teachers`` in the user's folder of caches. It may be
            deleted at any time.

    Returns:
        Float32 [n, dim], read-only where it is mapped from its file.

    Raises:
        UsageError: a vector is not finite or is zero, an item cannot be read, the given folder cannot be written.
    """
    if not items:
        return np.zeros((0, teacher.spec.dim), np.float32)
    place, compute = cache_folder(folder), _elsewhere.get()
    if place is None:
        if compute is not None:
            return compute(teacher, items)
        with track(LABEL, len(items)) as advance:
            return encoder(teacher).documents(items, advance)
    whole, shape = place / f"{_key(teacher, items)}.npy", (len(items), teacher.spec.dim)
    found = sealed.read(whole, shape)
    if found is not None:
        say(f"{LABEL}: read from {whole}")
    else:
        say(f"{LABEL} are kept in {place}")
        given = None if compute is None else [compute(teacher, items)]
        found = _computed(encoder(teacher), items, whole) if given is None else _kept(whole, shape, given)
    shutil.rmtree(_parts(whole), ignore_errors=True)
    return found


def _key(teacher: Model, items: Sequence[str]) -> str:
    """What the vectors hang on: the teacher with its longest sequence, and the items; of files their content."""
    digest = hashlib.sha256(FORMAT + fingerprint(teacher).encode())
    for item in items:
        digest.update(content(item, text=teacher.spec.preprocess is not None))
    return digest.hexdigest()


def content(item: str, text: bool) -> bytes:
    """The sha256 of a text, or of what the file of an item holds; of a made one that of its name."""
    held = item.encode("utf-8", "surrogatepass")
    if not text and not item.startswith(RANDOM):
        try:
            held = Path(item).read_bytes()
        except OSError as error:
            raise UsageError(f"{item} cannot be read: {error.strerror}") from error
    return hashlib.sha256(held).digest()


def encoder(teacher: Model) -> Encoder:
    """A teacher as it is asked for vectors."""
    return choose.encoder(teacher, "the teacher", plugins.require("torch").get_num_threads())


def _computed(encoder: Encoder, items: Sequence[str], whole: Path) -> Array:
    """The vectors, part by part where they are not known from a run that was killed, and one file of them."""
    shape, starts = (len(items), encoder.spec.dim), range(0, len(items), PART)
    with track(LABEL, len(items)) as advance:
        for start in starts:
            _part(encoder, items, start, _parts(whole), advance)
    return _kept(whole, shape, (_part(encoder, items, start, _parts(whole)) for start in starts))


def _kept(whole: Path, shape: tuple[int, int], arrays: Iterable[Array]) -> Array:
    """One file of arrays below each other, and what is read of it."""
    sealed.write(whole, shape, arrays)
    found = sealed.read(whole, shape)
    if found is None:
        raise UsageError(f"{whole} cannot be read back as it was written; choose another folder for the cache")
    return found


def _parts(whole: Path) -> Path:
    return whole.with_suffix(".parts")


def cache_folder(folder: str) -> Path | None:
    """The folder, made; ``None`` where the user's own cannot be written, without which a training does as well."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(folder) if folder else Path(home) / "slimseek" / "teachers"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        if folder:
            raise UsageError(f"cannot write to the cache {place}: {error.strerror}") from error
        say(f"vectors of the teacher are not kept: cannot write to {place} ({error.strerror})")
        return None


def _part(
    encoder: Encoder, items: Sequence[str], start: int, parts: Path, advance: Callable[[int], None] | None = None
) -> Array:
    """The vectors of 1,024 items, from their file or computed and written."""
    some = items[start : start + PART]
    path, shape = parts / f"{start:09d}.npy", (len(some), encoder.spec.dim)
    known = sealed.read(path, shape)
    if known is None:
        known = encoder.documents(some, advance)
        sealed.write(path, shape, [known])
    elif advance is not None:
        advance(len(some))
    return known
