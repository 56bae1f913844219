"""Models that are made once of what packages carry, and kept in the user's data folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from slimseek import folder as folders
from slimseek import setup
from slimseek.errors import ArtifactError
from slimseek.folder import FileEntry
from slimseek.value import Value

MANIFEST = "slimseek.json"
FORMAT_VERSION = 1


class Made(Value, frozen=True):
    """The manifest of such a folder: what it was made of, and its files with their hashes."""

    source: str
    files: tuple[FileEntry, ...]
    format_version: int = FORMAT_VERSION


def kept(name: str, made_of: str, make: Callable[[], Callable[[Path], None]]) -> Path:
    """The folder of a model in the user's data folder; made anew where it is of something else, or not whole.

    Args:
        name: of the model.
        made_of: what tells it from others of that name, such as a hash.
        make: prepares it and gives what writes its files into an existing empty folder.
    """
    out = setup.folder("models") / re.sub(r"[^\w.-]", "-", name)
    if (out / MANIFEST).is_file():
        try:
            made = folders.read_manifest(out / MANIFEST, Made, FORMAT_VERSION)
            if made.source == made_of:
                folders.check(out, made.files)
                return out
        except ArtifactError:
            pass  # made anew: nothing of the user's is in it
    write = make()
    with folders.writing(out, force=True, wait=True) as folder:
        write(folder)
        entries = folders.entries(folder, leave_out=MANIFEST)
        folders.write_json(folder / MANIFEST, Made(source=made_of, files=entries))
    return out
