"""The other side of the worker: a process that may abort or hang without harm to this one."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array

SCRIPT = Path(__file__).with_name("worker.py")
SECONDS_TO_BUILD, SECONDS_TO_RUN = 600.0, 300.0
Answer = tuple[dict[str, Any], dict[str, Array]]


class Worker:
    """One process of the second interpreter. Its end is an error of one line; the next order starts another."""

    def __init__(self, python: Path, script: Path = SCRIPT, threads: int = 1) -> None:
        # Isolated: what lies beside the script must not be imported in the place of a library's own modules.
        self._command = [str(python), "-I", str(script)]
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[bytes] | None = None
        self._talk: IO[bytes] | None = None
        self.started = 0
        self._answers: queue.Queue[Answer | None] = queue.Queue()

    def ask(self, order: Mapping[str, Any], arrays: Mapping[str, Array] | None = None, *, seconds: float) -> Answer:
        """Give an order and wait for its answer.

        Args:
            order: as the worker's own text says.
            arrays: that go with it, in C order.
            seconds: until the process is ended.

        Raises:
            UsageError: the order failed, the process ended, or time is up; the text is one line.
        """
        process = self._running()
        held = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        described = [[name, array.dtype.name, list(array.shape)] for name, array in held.items()]
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({**order, "arrays": described}).encode() + b"\n")
            for array in held.values():
                process.stdin.write(array.tobytes())
            process.stdin.flush()
            answer = self._answers.get(timeout=seconds)
        except (OSError, queue.Empty) as error:
            late = isinstance(error, queue.Empty)
            why = f"no answer in {seconds:g} s" if late else self._last_words()
            self.close()
            raise UsageError(f"Paddle Lite: {order['do']} failed: {why}") from error
        if answer is None:
            why = self._last_words()
            self.close()
            raise UsageError(f"Paddle Lite ended while it did {order['do']}: {why}")
        if "error" in answer[0]:
            raise UsageError(f"Paddle Lite: {order['do']} failed: {' '.join(str(answer[0]['error']).split())}")
        return answer

    @property
    def alive(self) -> bool:
        """Whether a process is there that has what earlier orders opened."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end(self._process)
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self.alive:
            assert self._process is not None
            return self._process
        self.close()
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._talk,
                                       env=self._environment)  # fmt: skip
        except OSError as error:
            raise UsageError(f"{self._command[0]} does not start: {error.strerror}") from error
        self._process, self._answers, self.started = process, queue.Queue(), self.started + 1
        threading.Thread(target=_listen, args=(process.stdout, self._answers), daemon=True).start()
        weakref.finalize(self, _end, process)
        return process

    def _last_words(self) -> str:
        """The last line that the process wrote, which is where the library says why it aborts."""
        assert self._talk is not None
        self._talk.seek(0)
        lines = [line for line in self._talk.read().decode(errors="replace").splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith("[F ")] or lines[-1:]
        return reasons[0].partition("] ")[2] or reasons[0] if reasons else "no message"


def _listen(stream: IO[bytes], answers: queue.Queue[Answer | None]) -> None:
    """Put each answer into the queue, and ``None`` at the end of the stream."""
    try:
        for line in stream:
            message, arrays = json.loads(line), {}
            for name, dtype, shape in message.pop("arrays"):
                held = stream.read(int(np.prod(shape)) * np.dtype(dtype).itemsize)
                arrays[name] = np.frombuffer(held, dtype).reshape(shape)
            answers.put((message, arrays))
    except (ValueError, KeyError, OSError):
        pass
    answers.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue
