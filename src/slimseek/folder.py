"""Folders as a discipline: written under a temporary name and renamed, every file hashed, hashes checked at opening.

An artifact, a deployed package and a saved index are all such folders; they differ in their manifest alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from slimseek import reading
from slimseek.alone import alone
from slimseek.errors import ArtifactError, SlimseekError, UsageError, full_disk
from slimseek.value import Value

M = TypeVar("M", bound=Value)
MANIFESTS = ("manifest.json", "package.json", "targets.json", "index.json", "parts.json", "slimseek.json",
             "training.json")  # fmt: skip
LEFT = r"\.{}\.(new|old)-[a-z0-9_]{{8}}"
"""Names of the folders that a run makes beside the one it writes."""
MOVED = "folder"
"""The old folder in the one that holds it while the new one takes its place."""


class FileEntry(Value, frozen=True):
    """A file of a folder: relative path, size, and sha256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


@contextmanager
def writing(
    out: Path, *, inputs: tuple[Path, ...] = (), force: bool = False, temporary: Path | None = None, wait: bool = False
) -> Iterator[Path]:
    """A fresh folder beside ``out``, moved to ``out`` when the block ends well and deleted when it does not.

    While the block runs no other process may write to ``out``. What runs that were killed left beside it is taken
    away first, and a folder that such a run had moved aside is put back.

    Args:
        out: the folder to make; it must not exist, or be empty, unless ``force``, which replaces a folder that
            slimseek wrote.
        inputs: folders that are being read, none of which may be ``out`` or lie in it.
        force: replace what an earlier run wrote there.
        temporary: the fresh folder, on the same disk, emptied first; by default one of a name that nobody has.
        wait: for a process that writes to ``out``, where what it writes is the same; by default it is an error.

    Raises:
        UsageError: ``out`` is taken, is an input, is being written by another process, or cannot be written (no
            permission, disk full).
    """
    out = Path(os.path.abspath(out))
    _check_target(out, inputs, force)
    with ExitStack() as held:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(out, wait=wait))
            _clear(out)
            _check_target(out, inputs, force)
            if temporary is None:
                temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.new-", dir=out.parent))
            else:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write to {out.parent}: {error.strerror}") from error
        try:
            temporary.chmod(0o755)
            yield temporary
            _replace(temporary, out)
        except SlimseekError:
            raise
        except Exception as error:
            unwritten = _unwritten(error, temporary, out)
            if unwritten is error:
                raise
            raise unwritten from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _unwritten(error: Exception, temporary: Path, out: Path) -> Exception:
    """In words for the user where it is an error of the disk that is written to; else as it is."""
    reason = full_disk(error)
    if isinstance(error, OSError):
        touched = Path(str(error.filename or out))
        if touched.is_relative_to(temporary) or touched.is_relative_to(out):
            reason = reason or error.strerror or str(error)
    return error if reason is None else UsageError(f"cannot write {out}: {reason}; nothing was written")


def restore(out: Path) -> None:
    """Put back a folder that a run had moved aside when it was killed, for what reads it before it writes."""
    out = Path(os.path.abspath(out))
    if not out.exists() and out.parent.is_dir():
        try:
            with alone(out):
                _clear(out)
        except OSError as error:
            raise UsageError(f"cannot write to {out.parent}: {error.strerror}") from error


def _clear(out: Path) -> None:
    """Take away what killed runs left; nobody else writes here meanwhile."""
    left = [path for path in out.parent.iterdir() if re.fullmatch(LEFT.format(re.escape(out.name)), path.name)]
    for path in left:
        if (path / MOVED).is_dir() and not out.exists():
            (path / MOVED).rename(out)
        shutil.rmtree(path, ignore_errors=True)


def _check_target(out: Path, inputs: tuple[Path, ...], force: bool) -> None:
    for given in inputs:
        if reading.is_inside(given, out) or reading.is_inside(out, given):
            raise UsageError(f"the output folder {out} is, holds or lies in the input {given}; choose another --out")
    if out.is_file():
        raise UsageError(f"the output folder {out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise UsageError(
                f"the output folder {out} is not empty; choose another --out, or add --force to replace it"
            )
        if not any(_is_ours(out / name) for name in MANIFESTS):
            raise UsageError(f"--force replaces only folders that slimseek wrote, and {out} is not one")


def _is_ours(path: Path) -> bool:
    """Whether a manifest is slimseek's: others carry files of these names, too."""
    try:
        manifest = reading.decoded(reading.content(path))
    except (OSError, UsageError, msgspec.MsgspecError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest


def _replace(temporary: Path, out: Path) -> None:
    """Rename over ``out``; an old folder is moved aside first, so that a reader sees the old or the new one."""
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(old / MOVED)
        try:
            temporary.rename(out)
        except OSError:
            (old / MOVED).rename(out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A folder whose files are those of another, without a copy where the disk can name a file twice."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except (OSError, shutil.Error):  # another disk, or one that has no such links
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def entries(folder: Path, *, leave_out: str) -> tuple[FileEntry, ...]:
    """Size and sha256 of every file of the folder, but for the manifest itself."""
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != leave_out
    )


def check(folder: Path, files: tuple[FileEntry, ...]) -> None:
    """Compare every listed file with its size and hash.

    Raises:
        ArtifactError: a file is missing, cut, changed, or its path leaves the folder.
    """
    for entry in files:
        path = folder / entry.path
        if not reading.is_inside(path, folder):
            raise ArtifactError(f"{folder}: the file list names {entry.path!r}, which lies outside the folder")
        if not reading.is_file(path):
            raise ArtifactError(f"{folder}: {entry.path} is missing; copy the whole folder again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise ArtifactError(
                f"{folder}: {entry.path} has {size} bytes instead of {entry.bytes}; it was cut or changed"
            )
        if sha256(path) != entry.sha256:
            raise ArtifactError(f"{folder}: {entry.path} was changed after it was written (sha256 differs)")


def read_manifest(path: Path, kind: type[M], newest: int) -> M:
    """Read a manifest of a known type and version.

    Raises:
        ArtifactError: it is absent, not valid, or of a newer format.
    """
    content = _own(path)
    try:
        version = reading.decoded(content, dict).get("format_version")
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error})") from error
    if type(version) is not int or not 0 < version <= newest:
        raise ArtifactError(f"{path} has format version {version!r}; this slimseek reads up to {newest}: upgrade it")
    try:
        found: M = reading.decoded(content, kind)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} is not valid: {error}") from error
    return found


def _own(path: Path) -> bytes:
    """The content of a file that slimseek wrote, which is never a link to elsewhere."""
    if not reading.is_inside(path, path.parent):
        raise ArtifactError(f"{path} is a link that leaves its folder; copy the whole folder again")
    try:
        return reading.content(path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    except UsageError as error:
        raise ArtifactError(str(error)) from error


def other(found: Value, wanted: Mapping[str, Any], setting: Callable[[str], str]) -> str:
    """What a file of an earlier run is of, in words, where that is not what is wanted; ``""`` where it is.

    Args:
        found: what the file says.
        wanted: the same fields as this run has them, in the order in which they are told.
        setting: words for a field that is neither model, collection nor version.
    """
    words = {"model_sha256": "another model", "collection_sha256": "another collection",
             "made_with": f"slimseek {getattr(found, 'made_with', '')}"}  # fmt: skip
    name = next((name for name, value in wanted.items() if getattr(found, name) != value), "")
    return name and (words.get(name) or f"other settings ({setting(name)})")


def read_json(path: Path, kind: type[M]) -> M:
    """Read a JSON file of a known type; ArtifactError if it cannot be read."""
    content = _own(path)
    try:
        found: M = reading.decoded(content, kind)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path} is not valid: {error}") from error
    return found


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file under a temporary name and rename it.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
