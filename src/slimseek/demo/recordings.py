"""Recordings that a package carries, written as a collection: to try a voice search without any download."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from slimseek import folder as folders
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.value import Value

STAMPS = Path("/usr/share/tuxpaint/stamps")
PACKAGE = "tuxpaint-stamps-default"
SPOKEN = "_desc.ogg"
DEV, FEWEST = 12, 24
"""Recordings to choose by, and to report on at least; all others are reported on, since each of so few counts much."""
MANIFEST = "slimseek.json"
"""By which a later run knows the folder as one that may be replaced."""


class Recorded(Value, frozen=True):
    """What was written: captions that are read aloud, of which so many choose and so many report."""

    format_version: int
    source: str
    dev: int
    test: int


def collect(out: Path) -> Recorded:
    """Write a folder of recordings with ``data.csv`` (audio, text, split): Tux Paint's English captions, read aloud.

    Args:
        out: the folder; one that an earlier call wrote is replaced.

    Raises:
        UsageError: the Debian package is not installed, or the folder holds something else.
    """
    spoken = _captions()
    chosen = sorted(spoken, key=lambda file: hashed(file.name))
    if len(chosen) < DEV + FEWEST:
        raise UsageError(f"the demonstration of a voice search needs recordings; run: apt-get install {PACKAGE}")
    made = Recorded(format_version=1, source=PACKAGE, dev=DEV, test=len(chosen) - DEV)
    with folders.writing(out, force=(out / MANIFEST).is_file()) as folder:
        (folder / "audio").mkdir()
        with (folder / "data.csv").open("w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(("audio", "text", "split"))
            for place, file in enumerate(chosen):
                name = f"audio/{place:02}-{file.name}"
                shutil.copyfile(file, folder / name)
                rows.writerow((name, spoken[file], "dev" if place < DEV else "test"))
        folders.write_json(folder / MANIFEST, made)
    return made


def _captions() -> dict[Path, str]:
    """Recordings with the first line of the text beside them, which is the English one."""
    found: dict[Path, str] = {}
    for file in sorted(STAMPS.rglob(f"*{SPOKEN}")) if STAMPS.is_dir() else ():
        text = file.with_name(file.name.removesuffix(SPOKEN) + ".txt")
        lines = text.read_text("utf-8", "replace").splitlines() if text.is_file() else []
        if lines and lines[0].strip():
            found[file] = lines[0].strip()
    return found
