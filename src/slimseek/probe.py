"""What runs in a fresh process: open a model and either say when it was ready and how much memory it took, or encode
the texts that come on standard input into a .npy file.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import msgspec

TEXT = "how do I reset my password"
BATCH = 64
TOKENS = 128
RECORDINGS = 8


def encode(source: str, threads: int, out: str, stand_in: bool) -> None:
    """Vectors of a JSON list of texts on standard input, written to ``out`` with numpy's ``save``; with ``stand_in``
    by what computes the same as a package that does not run here. Transcripts where ``out`` ends in ``.json``.
    """
    import numpy as np

    from slimseek import choose

    texts = msgspec.json.decode(sys.stdin.buffer.read(), type=list[str])
    if out.endswith(".json"):
        Path(out).write_bytes(msgspec.json.encode(choose.recogniser(source, threads).transcripts(texts)))
        return
    encoder = (choose.stand_in if stand_in else choose.choose)(source, threads)
    np.save(out, encoder.documents(texts), allow_pickle=False)


def start(source: str, threads: int) -> None:
    """Print one JSON line: the time of the first vector, and the peak of resident memory after a batch. The time is of
    the system's monotonic clock, which all processes share and nobody sets.

    The batch is 64 texts of 128 tokens (or the longest the model takes), 64 arrays, or eight recordings to be heard.
    """
    from slimseek.choose import choose, recogniser, spec_of
    from slimseek.inputs.samples import examples

    if spec_of(source).output == "transcript":
        hears = recogniser(source, threads)
        recordings = examples(hears.spec)[:RECORDINGS]
        hears.transcripts(recordings[:1])
        ready = time.monotonic()
        hears.transcripts(recordings)
        _tell(ready)
        return
    encoder = choose(source, threads)
    item = TEXT if encoder.spec.preprocess is not None else examples(encoder.spec)[0]
    encoder.queries([item])
    ready = time.monotonic()
    encoder.documents([" ".join([TEXT] * (TOKENS // 8)) if item == TEXT else item] * BATCH)
    _tell(ready)


def _tell(ready: float) -> None:
    print(msgspec.json.encode({"ready": ready, "peak_memory_bytes": peak_memory()}).decode())


def peak_memory() -> int:
    """Peak resident bytes of this process.

    On Linux it comes from the kernel's own mark, since ``getrusage`` counts what the parent held before the start.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        encode(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:] == ["stand-in"])
    else:
        start(sys.argv[1], int(sys.argv[2]))
