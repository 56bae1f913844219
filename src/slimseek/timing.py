"""Clocks that can be trusted: interleaved blocks, warm-up, percentiles, and a fresh process for start and memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata

import msgspec
import numpy as np
import psutil

from slimseek.errors import SlimseekError
from slimseek.measurement import Environment
from slimseek.value import Value

INSTRUCTION_SETS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "neon", "asimd",
    "asimddp", "i8mm",
)  # fmt: skip
NO_FASTER = 1.05
"""A speed-up below this is called none: clocks are not steadier than that."""
LIBRARIES = ("slimseek", "numpy", "torch", "transformers", "tokenizers", "onnx", "onnxruntime", "openvino")


class Start(Value, frozen=True):
    """A model opened in a fresh process: seconds from process start to the first vector, peak resident bytes."""

    seconds: float
    peak_memory_bytes: int


def default_threads() -> int:
    """Cores that this process may use (a container's limit or ``taskset`` counts, not the host's size)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def products_are_exact(instruction_sets: Sequence[str]) -> bool:
    """Whether sums of unsigned by signed eight-bit products are expected to be exact: not on x86 without VNNI."""
    arm = {"neon", "asimd"} & set(instruction_sets)
    return bool(arm or {"avx512_vnni", "avx_vnni", "amx_int8"} & set(instruction_sets))


def _cpu() -> tuple[str, tuple[str, ...]]:
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    flags = set(info.get("flags", ()))
    return info.get("brand_raw", platform.processor()), tuple(name for name in INSTRUCTION_SETS if name in flags)


def environment(threads: int) -> Environment:
    """This machine, for a report."""
    name, instruction_sets = _cpu()
    return Environment(
        cpu=name,
        cores=default_threads(),
        threads=threads,
        instruction_sets=instruction_sets,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(LIBRARIES),
    )


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of those libraries that are installed."""
    found = {}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def interleaved(
    subjects: Mapping[str, Callable[[int], object]], *, rounds: int, calls: int, warm_up: int = 2
) -> dict[str, np.ndarray]:
    """Time subjects in turns: each round runs a block of ``calls`` calls of every subject.

    Blocks, and not single calls, take turns: the thread pools of two runtimes disturb each other for some
    milliseconds after a call, which the pause and the warm-up calls of each block leave out of the figures. Drift of
    the machine falls on all subjects alike.

    Args:
        subjects: name to a function of the call's number, counted from 0 for every subject alike.
        rounds: how many times each subject has its turn.
        calls: timed calls of a block.
        warm_up: calls before each block that are not timed.

    Returns:
        Name to float64 [rounds * calls] seconds, in the order of the calls.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds):
        for name, subject in subjects.items():
            time.sleep(0.02)
            for number in range(warm_up):
                subject(turn * calls + number)
            for number in range(turn * calls, (turn + 1) * calls):
                start = time.perf_counter()
                subject(number)
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def fresh_start(source: str, threads: int) -> Start:
    """Open a model in a new process and encode one query there.

    Args:
        source: a MODEL as the command line takes it.
        threads: threads of the runtime.

    Raises:
        SlimseekError: the process failed; its last line is shown.
    """
    command = [sys.executable, "-m", "slimseek.probe", source, str(threads)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SlimseekError(f"{source} failed in a fresh process: {lines[-1]}")
    answer = msgspec.json.decode(done.stdout.strip().splitlines()[-1])
    return Start(seconds=answer["ready"] - start, peak_memory_bytes=answer["peak_memory_bytes"])
