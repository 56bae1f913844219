"""A sample of the damaged inputs of ``tests/fuzz.py``, of each kind, and that the driver sees what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import fuzz
import fuzz_mutations as mutations

INPUTS = 50
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits as Linux has them")


def test_no_damaged_input_crashes_hangs_grows_or_reads_elsewhere() -> None:
    """Another sample each time that ``INPUTS`` or a kind changes; ``make fuzz`` reads 10,000 of each kind."""
    from fuzz_kinds import KINDS

    found = fuzz.fuzz(list(KINDS), INPUTS, seed=1)
    assert {kind: tally.faults for kind, tally in found.items() if tally.faults} == {}
    for kind, tally in found.items():
        assert tally.inputs == INPUTS == tally.read + tally.refused, kind
        assert tally.read < INPUTS or kind == "http", f"{kind}: all damage went unseen"  # an answer of 400 is one
        assert tally.growth < fuzz.GROWTH, kind


def test_the_same_seed_gives_the_same_damage() -> None:
    def made(seed: int) -> list[bytes]:
        generator = random.Random(seed)
        return [mutations.of_json(b'{"a": [1, {"b": "c"}]}', generator, ("../x",)) for _ in range(50)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert len(set(made(1))) > 30


BAD = """
import os, time
from pathlib import Path
from slimseek.errors import UsageError
import fuzz_kinds

def read(file):
    text = file.read_bytes()
    if text == b"seed":
        return
    what = text[:1]
    if what == b"c": os.abort()
    if what == b"h": time.sleep(60)
    if what == b"o": (file.parent.parent / "outside" / "secret").read_bytes()
    if what == b"m": b"x" * 5_000_000_000
    if what == b"e": raise KeyError("a")
    if what == b"r": raise UsageError("no")

def damage(content, random, paths):
    return b"chomer"[fuzz_kinds.turn():][:1] + b"."

turns = iter(range(100))
fuzz_kinds.turn = lambda: next(turns)
fuzz_kinds.KINDS = {"bad": fuzz_kinds.Kind(lambda folder: (folder / "a").write_bytes(b"seed"), {"a": damage}, read,
                                           links=False)}
"""


def test_the_driver_counts_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does all of it, one input after the other; a child that has ended begins anew behind it."""
    bad = BAD.replace("fuzz_kinds.turn():", "damage.at():").replace(
        "turns = iter(range(100))\nfuzz_kinds.turn = lambda: next(turns)",
        f"def at(place=Path({str(tmp_path / 'turn')!r})):\n"
        "    turn = int(place.read_text()) if place.exists() else 0\n"
        "    place.write_text(str(turn + 1))\n"
        "    return turn\n"
        "damage.at = at",
    )
    (tmp_path / "fuzz_bad.py").write_text(bad)
    runner = tmp_path / "fuzz.py"
    imports = "from fuzz_kinds import KINDS"
    runner.write_text(Path(fuzz.__file__).read_text().replace(imports, f"import fuzz_bad; {imports}"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(fuzz.__file__).parent}:{_sources()}")
    monkeypatch.setattr(fuzz, "__file__", str(runner))
    monkeypatch.setattr(fuzz, "SECONDS", 2.0)
    found = fuzz.fuzz(["bad"], 6, seed=0, room=tmp_path)["bad"]
    assert found.inputs == 6
    assert (found.read, found.refused) == (0, 1)
    kinds = sorted(what.split(":")[0].split(" in ")[0] for what in found.faults)
    assert kinds == ["KeyError", "MemoryError", "a file outside of the folder was read", "hangs for 2 s",
                     "process ended with -6"], found.faults  # fmt: skip


def _sources() -> str:
    import slimseek

    return str(Path(slimseek.__file__).parents[1])
