"""A path that one process at a time writes to: the second is told, or waits."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimseek.errors import UsageError

UNKNOWN_HERE = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system says that has no locks, such as some of a network: there each writes as it likes."""
HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})


@contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a path while the block runs: ``.NAME.lock`` beside it, which is gone afterwards.

    The system gives the lock up with the process, however it ends, so that none is left of a run that was killed.

    Args:
        path: file or folder that is to be written; it need not exist, its folder must.
        wait: for another process to end, where it would come to the same; by default it is an error.

    Raises:
        UsageError: another process holds it.
        OSError: the folder cannot be written.
    """
    file = path.with_name(f".{path.name}.lock")
    handle = _acquired(file, path, wait)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # while it is held: whoever opened it meanwhile sees that it is gone, and makes another
        os.close(handle)


def _acquired(file: Path, path: Path, wait: bool) -> int:
    """A handle of the file that stands there, locked."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, wait)
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        except OSError as error:
            if error.errno in UNKNOWN_HERE:
                return handle
            os.close(handle)
            if error.errno in HELD:
                raise UsageError(f"another process writes to {path}; wait for it, or choose another --out") from None
            raise
        os.close(handle)


def _lock(handle: int, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
