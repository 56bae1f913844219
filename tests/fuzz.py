"""Damaged inputs, thousands of each kind: none may crash, hang, grow without bound, or read outside of its folder.

``python tests/fuzz.py --inputs 10000`` runs them all; ``--kind NAME`` one kind, ``--only NUMBER`` one input of it,
which is then left in a folder that is named. A child process reads them, with a limit on its memory; its parent ends
it when one input takes longer than ten seconds, and begins another behind the input that ended one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 2_000_000_000
"""Bytes of address space that an input may take beyond what the process has before the first."""
GROWTH = 300_000_000
"""Bytes that a process may keep over all inputs of a kind."""
SECRET = b'{"secret": 1}\n'


@dataclass
class Tally:
    """What became of the inputs of one kind: how many were read, were refused; what was wrong, with their numbers."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)
    slowest: float = 0.0
    growth: int = 0

    def fault(self, what: str, number: int) -> None:
        """Note one."""
        self.faults.setdefault(what, []).append(number)


def fuzz(kinds: list[str], inputs: int, seed: int, first: int = 0, room: Path | None = None) -> dict[str, Tally]:
    """Read so many damaged inputs of each kind; every fault is in the tallies."""
    found = {kind: Tally() for kind in kinds}
    with tempfile.TemporaryDirectory(dir=room or ("/dev/shm" if Path("/dev/shm").is_dir() else None)) as place:
        todo = [(kind, first) for kind in kinds]
        while todo:
            todo = _child(todo, first + inputs, seed, Path(place), found)
    return found


def _child(todo: list[tuple[str, int]], end: int, seed: int, place: Path, found: dict[str, Tally]) -> list[Any]:
    """Run a child over what is to be done; what is left when it ends before its time."""
    command = [sys.executable, __file__, "--child", json.dumps([todo, end, seed, str(place)])]
    with (place / "errors").open("wb") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=place)
    assert child.stdout
    os.set_blocking(child.stdout.fileno(), False)
    kind, number, since, rest = "", -1, time.monotonic(), b""
    left = dict(todo)
    while True:
        chunk = child.stdout.read()
        if chunk:
            since = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                kind, number = _noted(json.loads(line), found)
                left[kind] = number + 1
        elif chunk == b"":
            break
        else:
            if time.monotonic() - since > (SECONDS if kind else 120):
                child.kill()
                break
            time.sleep(0.02)
    hung = child.poll() is None or time.monotonic() - since > SECONDS
    code = child.wait()
    if code == 0:
        return []
    if not kind:
        raise RuntimeError((place / "errors").read_text("utf-8", "replace")[-3000:])
    if left[kind] >= end:  # it ended between kinds
        left.pop(kind, None)
        begun = [name for name, _ in todo]
        return [(name, left[name]) for name in begun[begun.index(kind) + 1 :]]
    said = (place / "errors").read_text("utf-8", "replace").strip().splitlines()[-1:] or [""]
    found[kind].inputs += 1
    found[kind].fault(
        f"hangs for {SECONDS:.0f} s" if hung else f"process ended with {code}: {said[0][:120]}", number + 1
    )
    begun = [name for name, _ in todo]
    return [(kind, number + 2)] * (number + 2 < end) + [(name, at) for name, at in todo[begun.index(kind) + 1 :]]


def _noted(line: dict[str, Any], found: dict[str, Tally]) -> tuple[str, int]:
    tally = found[line["kind"]]
    if line["number"] >= 0 and "what" in line:
        tally.inputs += 1
        tally.read += line["what"] == "read"
        tally.refused += line["what"] == "refused"
        if line["what"] not in ("read", "refused"):
            tally.fault(line["what"], line["number"])
        tally.slowest = max(tally.slowest, line["seconds"])
        tally.growth = max(tally.growth, line["growth"])
    return line["kind"], line["number"]


# ---------------------------------------------------------------- in the child


def child(todo: list[tuple[str, int]], end: int, seed: int, place: Path) -> None:
    """Read damaged inputs one after the other, a line of JSON for each."""
    from fuzz_kinds import KINDS

    outside, opened = _outside(place), _watched(place)
    for name, first in todo:
        kind = KINDS[name]
        base, folder = place / "base", place / "input"
        for old in (base, folder):
            shutil.rmtree(old, ignore_errors=True)
        base.mkdir()
        kind.make(base)
        folder.mkdir()
        for source in sorted(base.iterdir()):  # valid inputs are read without an error
            _copy(source, folder / source.name)
            kind.read(folder / source.name)
            _remove(folder / source.name)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
        resident = _resident()
        _say(kind=name, number=first - 1)
        for number in range(first, end):
            begin = time.perf_counter()
            what = one(name, number, seed, base, folder, outside, opened)
            seconds, growth = time.perf_counter() - begin, _resident() - resident
            _say(kind=name, number=number, what=what, seconds=seconds, growth=growth)


def one(name: str, number: int, seed: int, base: Path, folder: Path, outside: Path, opened: list[str]) -> str:
    """Damage, read, restore; what came of it."""
    from fuzz_kinds import KINDS
    from slimseek.errors import SlimseekError

    entry, by_link = damage(name, number, seed, base, folder, outside)
    secret = outside / "secret"
    os.utime(secret, (1, 2))
    opened.clear()
    try:
        KINDS[name].read(entry)
        what = "read"
    except SlimseekError as error:
        text = str(error)
        what = "refused" if text.strip() else "an empty message"
    except (Exception, RecursionError) as error:
        what = _told(error)
    if not (by_link and KINDS[name].follows) and (opened or secret.stat().st_atime_ns != 1_000_000_000):
        what = f"a file outside of the folder was read{'' if opened else ' by a library'}"
    _remove(entry)
    return what


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def damage(name: str, number: int, seed: int, base: Path, folder: Path, outside: Path) -> tuple[Path, bool]:
    """Copy one of the inputs into the folder and do it the damage of that number; its path, and whether a file of it
    was replaced by a link or by none.
    """
    import fuzz_mutations as mutations
    from fuzz_kinds import KINDS

    kind, generator = KINDS[name], random.Random(f"{name} {seed} {number}")
    pairs = [(file, how) for pattern, how in kind.damaged.items() for file in sorted(base.glob(pattern))
             if file.is_file()]  # fmt: skip
    source, how = generator.choice(pairs)
    top, *below = source.relative_to(base).parts
    entry = folder / top
    _copy(base / top, entry)
    file = entry.joinpath(*below)
    if kind.links and generator.random() < 0.04:
        mutations.special(file, generator, outside)
        return entry, True
    content = how(file.read_bytes(), generator, mutations.outside_paths(outside))
    file.write_bytes(content)
    if kind.sealed and generator.random() < 0.8:
        _seal(file, entry, kind.sealed)
    return entry, False


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def _seal(file: Path, entry: Path, manifest: str) -> None:
    """Make the size and hash of a damaged file right in the manifest that lists it."""
    import hashlib

    holder = next((path for path in (file.parent, *file.parents) if (path / manifest).is_file()), None)
    if holder is None or file.name == manifest or not holder.is_relative_to(entry):
        return
    listed, path = json.loads((holder / manifest).read_bytes()), file.relative_to(holder).as_posix()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for noted in listed.get("files", ()):
        if noted["path"] == path:
            noted |= {"bytes": file.stat().st_size, "sha256": digest}
    for noted in listed.get("parts", ()):
        if f"{noted['name']}/index.json" == path:
            noted["sha256"] = digest
    (holder / manifest).write_text(json.dumps(listed))


def _told(error: BaseException) -> str:
    """Kind and place of an error that is none of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "slimseek" in Path(frame.filename).parts] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} in {place}: {' '.join(str(error).split())[:100]}"


def _outside(place: Path) -> Path:
    """A folder beside the one that is read, with a file that nothing may read."""
    outside = place / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(SECRET)
    return outside


def _watched(place: Path) -> list[str]:
    """Files beside the folder that Python opens from now on."""
    opened: list[str] = []
    forbidden = str(place / "outside")

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0])) if b"\0" not in os.fsencode(arguments[0]) else ""
            if path.startswith((forbidden, "/proc/self/environ", "/dev/zero")):
                opened.append(path)

    sys.addaudithook(look)
    return opened


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _say(**line: Any) -> None:
    os.write(_answers[-1], json.dumps(line).encode() + b"\n")


_answers = [1]
"""Where lines go: what libraries print goes to the errors."""


def main() -> int:
    """Run, and print a line for each kind and for each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--only", type=int)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        todo, end, seed, place = json.loads(given.child)
        _answers.append(os.dup(1))
        os.dup2(2, 1)
        child([tuple(pair) for pair in todo], end, seed, Path(place))
        return 0
    from fuzz_kinds import KINDS

    if given.only is not None:
        return _alone(given.kind[0], given.only, given.seed)
    total: Counter[str] = Counter()
    for name in given.kind or KINDS:
        tally = fuzz([name], given.inputs, given.seed, given.first)[name]
        total["inputs"] += tally.inputs
        print(f"{name:18} {tally.inputs:6} inputs, {tally.read:6} read, {tally.refused:6} refused, slowest "
              f"{tally.slowest:5.2f} s, {tally.growth / 1e6:5.0f} MB more at most", flush=True)  # fmt: skip
        for what, numbers in sorted(tally.faults.items(), key=lambda fault: -len(fault[1])):
            total["faults"] += len(numbers)
            print(f"    {len(numbers):5} x {what} (such as {numbers[0]})", flush=True)
    print(f"{total['inputs']} inputs, {total['faults']} faults")
    return 1 if total["faults"] else 0


def _alone(name: str, number: int, seed: int) -> int:
    """One input, read with a traceback; its folder is kept."""
    from fuzz_kinds import KINDS

    place = Path(tempfile.mkdtemp(prefix="fuzz."))
    outside = _outside(place)
    (place / "base").mkdir()
    KINDS[name].make(place / "base")
    (place / "input").mkdir()
    entry, _ = damage(name, number, seed, place / "base", place / "input", outside)
    print(entry)
    KINDS[name].read(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
