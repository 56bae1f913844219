"""A process that has imported everything and forks for each command: command lines with limits, killed, or as nobody.

Starting Python with its libraries takes seconds; a fork takes none, so that a command can be killed at many moments.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp",
          "tempfile.mkstemp", "shutil.copyfile", "os.link", "os.utime")  # fmt: skip
NOBODY = 65534


class Forks:
    """The process, with variables of its own; ``with Forks() as forks: forks.run(...)``."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env=os.environ | self._variables)  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def run(self, *arguments: str, seconds: float = 120, **how: Any) -> tuple[int, str, int]:
        """Exit code (below 0 for a signal), what was written to standard error, and how many writes there were.

        Args:
            arguments: of ``slimseek``, or ``python:FUNCTION`` of this module with its arguments.
            seconds: after which it is killed and the code is -9.
            how: ``file_bytes`` and ``memory`` are limits (bytes; memory beyond what is taken already), ``kill_at`` the
                write before which the process kills itself, ``nobody`` whether it has no rights, ``folder`` that it
                runs in.
        """
        assert self._process.stdin
        assert self._process.stdout
        order = {"arguments": arguments, "seconds": seconds, **how}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        code, said, writes = json.loads(self._process.stdout.readline())
        return code, said, writes


def index(out: str) -> None:
    """The six documents."""
    from slimseek import search
    from small import CORPUS, tiny_encoder

    search.index(tiny_encoder(), CORPUS, Path(out), precision="binary", force=True)


def bulk(out: str, file: str) -> None:
    """Every line of a file, 16 a shard."""
    from slimseek.scale import _documents
    from slimseek.scale import bulk as bulk_index
    from small import tiny_encoder

    _documents.DOCUMENTS_IN_SHARD = 16
    bulk_index.index("made", Path(file), Path(out), precision="int8", force=True, threads=1,
                     opened_by=lambda source, threads: tiny_encoder())  # fmt: skip


def update(out: str) -> None:
    """Two documents less and one more."""
    from slimseek import updates
    from small import tiny_encoder

    updates.update(Path(out), tiny_encoder(), add={"new": "the winter cat"}, delete=["d1", "d2"])


def serve(index: str, told: str) -> None:
    """The six documents over HTTP, three requests an hour; the file is told the address and the process."""
    from slimseek import search, serve
    from slimseek.serving.door import Rules
    from slimseek.serving.limits import rate
    from small import tiny_encoder

    def ready(url: str) -> None:
        Path(told + ".new").write_text(f"{url} {os.getpid()}")
        os.rename(told + ".new", told)

    serve.serve(search.open(Path(index), tiny_encoder()), port=0, rules=Rules(rate=rate("3/h")), ready=ready)


def started(source: str, out: str) -> None:
    """How long a fresh process takes to start with a model, and what the clock on the wall says for a second."""
    from slimseek import timing

    seconds, walls = timing.fresh_start(source, 1).seconds, []
    for _ in range(100):
        walls.append(time.time())
        time.sleep(0.01)
    Path(out).write_text(json.dumps([seconds, walls]))


def pictures(out: str) -> None:
    """What the demonstration writes first."""
    from slimseek.demo import pictures as made

    made.collect(Path(out))


# ---------------------------------------------------------------- in the process


def _serve() -> None:
    if "faketime" in os.environ.get("LD_PRELOAD", ""):
        time.sleep = lambda seconds: select.select([], [], [], seconds)  # libfaketime takes no sleep of CPython's
    from slimseek import cli, pipeline, prove, serve, updates  # noqa: F401
    from slimseek.backends import onnxruntime  # noqa: F401
    from slimseek.models import static, transformer, whisper  # noqa: F401

    for line in sys.stdin.buffer:
        order = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _run(order, write)
        os.close(write)
        code, said = _ended(child, order["seconds"], read)
        text, _, writes = said.rpartition("\0")
        print(json.dumps([code, text, int(writes or 0)]), flush=True)


def _ended(child: int, seconds: float, read: int) -> tuple[int, str]:
    os.set_blocking(read, False)
    until, said = time.monotonic() + seconds, b""
    while True:
        with suppress(BlockingIOError):
            said += os.read(read, 1 << 20)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    with suppress(BlockingIOError):
        while part := os.read(read, 1 << 20):
            said += part
    os.close(read)
    text, mark, writes = said.decode("utf-8", "replace").rpartition("\0")
    return os.waitstatus_to_exitcode(status), f"{text}\0{writes}" if mark else f"{writes}\0"


def _run(order: dict[str, Any], write: int) -> None:
    """In the fork: limits, then the command; never returns."""
    os.dup2(write, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if order.get("folder"):
        os.chdir(order["folder"])
    if order.get("nobody"):
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if order.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))
    if order.get("memory"):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + order["memory"],) * 2)
    writes = _counted(order.get("kill_at"))
    first, *rest = order["arguments"]
    code = 1
    try:
        if first.startswith("python:"):
            globals()[first.removeprefix("python:")](*rest)
            code = 0
        else:
            from slimseek import cli

            sys.argv = ["slimseek", *order["arguments"]]
            cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os.write(2, b"\0%d" % writes[0])
    os._exit(code)


def _counted(kill_at: int | None) -> list[int]:
    """How many events have been seen that write to a disk; at the one that is named the process is killed."""
    seen = [0]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and (event != "open" or (isinstance(arguments[2], int) and arguments[2] & 3)):
            seen[0] += 1
            if seen[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return seen


if __name__ == "__main__":
    _serve()
