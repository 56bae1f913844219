"""Folders: whole or absent, never half; what was written is what is read. The disk that is full really is full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from slimseek.errors import ArtifactError, UsageError
from slimseek.folder import (
    FileEntry,
    check,
    entries,
    read_json,
    read_manifest,
    restore,
    write_atomically,
    write_json,
    writing,
)
from slimseek.value import Value


class Manifest(Value, frozen=True):
    format_version: int
    name: str = ""


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def earlier(out: Path) -> None:
    """A folder as an earlier run left it."""
    with writing(out) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "a.txt").write_text("old")
        write_json(folder / "manifest.json", Manifest(format_version=1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.call(command):
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("exists", [False, True])
def test_a_block_that_ends_well_leaves_its_files_and_nothing_else(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with writing(out) as folder:
        assert folder.parent == tmp_path
        assert names(folder) == []
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not out.exists() or names(out) == [], "the target appears when all is written, not before"
    assert names(tmp_path) == ["out", "out/sub", "out/sub/a.txt"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_folders_above_the_target_are_made(tmp_path: Path) -> None:
    """CASES C2: an output folder that is missing is created."""
    with writing(tmp_path / "a" / "b" / "out") as folder:
        (folder / "x").write_text("x")
    assert names(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/x"]


def test_a_relative_target_stays_where_it_was_asked_when_the_block_changes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with writing(Path("out")):
        monkeypatch.chdir(tmp_path / "there")
    assert names(tmp_path) == ["here", "here/out", "there"]


def half(out: Path, force: bool, error: BaseException) -> None:
    with writing(out, force=force) as folder:
        (folder / "half.txt").write_text("half")
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("a fault"), KeyboardInterrupt(), UsageError("no"), SystemExit(3)], ids=repr
)
@pytest.mark.parametrize("force", [False, True])
def test_a_block_that_raises_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, force: bool) -> None:
    out = tmp_path / "out"
    if force:
        earlier(out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(type(error)) as raised:
        half(out, force, error)
    assert raised.value is error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == (["out", "out/manifest.json", "out/model", "out/model/a.txt"] if force else [])


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("model", "model"),
        ("model/out", "model"),
        (".", "model"),
        ("link", "model"),
        ("link/out", "model"),
        ("f", "f"),
        ("model", "link"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_is_holds_or_lies_in_an_input_is_refused(
    tmp_path: Path, target: str, source: str, force: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text('{"format_version": 1}')
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "f").write_text("an .onnx file is an input too")
    before = names(tmp_path)
    with pytest.raises(UsageError) as error, writing(tmp_path / target, inputs=(tmp_path / source,), force=force):
        pytest.fail("the block must not run")
    assert str(tmp_path / source) in one_line(error)
    assert "choose another --out" in str(error.value)
    assert names(tmp_path) == before


def test_a_target_beside_an_input_of_a_like_name_is_fine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with writing(tmp_path / "model-small", inputs=(tmp_path / "model",)) as folder:
        (folder / "x").write_text("x")
    assert names(tmp_path) == ["model", "model-small", "model-small/x"]


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="is a file") as error, writing(tmp_path / "out", force=force):
            pytest.fail("the block must not run")
        one_line(error)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UsageError, match="cannot write to") as error, writing(tmp_path / "f" / "out"):
        pytest.fail("the block must not run")
    assert str(tmp_path / "f") in one_line(error)


def test_a_folder_that_is_not_empty_is_refused_and_force_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    earlier(out)
    with pytest.raises(UsageError, match=r"not empty.*--force") as error, writing(out):
        pytest.fail("the block must not run")
    assert str(out) in one_line(error)
    assert (out / "model" / "a.txt").read_text() == "old"


def test_force_replaces_the_whole_of_an_earlier_run(tmp_path: Path) -> None:
    """CASES C5: the same command twice works with --force; no file of the old run is left among the new."""
    out = tmp_path / "out"
    earlier(out)
    with writing(out, force=True) as folder:
        (folder / "new.txt").write_text("new")
        assert (out / "model" / "a.txt").read_text() == "old", "the old folder is whole until the new one is"
    assert names(tmp_path) == ["out", "out/new.txt"]


def test_force_does_not_replace_a_folder_of_somebody_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="only folders that slimseek wrote") as error, writing(out, force=True):
        pytest.fail("the block must not run")
    one_line(error)
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("package.json", '{"name": "my-web-shop", "version": "1.0.0", "dependencies": {}}'),
        ("manifest.json", '{"manifest_version": 3, "name": "my browser extension"}'),
        ("index.json", '{"mediaType": "application/vnd.oci.image.index.v1+json", "schemaVersion": 2}'),
        ("modules.json", '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'),
    ],
    ids=["npm", "browser extension", "container image", "the user's own model"],
)
def test_force_does_not_take_a_like_named_file_for_its_own(tmp_path: Path, name: str, content: str) -> None:
    """An npm project, a browser extension, a container image, and the user's own model carry such files too."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    (out / "years.txt").write_text("of work")
    with pytest.raises(UsageError, match="only folders that slimseek wrote"), writing(out, force=True):
        pass
    assert (out / "years.txt").read_text() == "of work"


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path: Path) -> None:
    """The new folder vanishes under the writer's hands, after the old one was to be moved aside."""
    out = tmp_path / "out"
    earlier(out)
    with pytest.raises(UsageError, match="cannot write") as error, writing(out, force=True) as folder:
        folder.rename(tmp_path / "stolen")
    one_line(error)
    assert (out / "model" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out", "out/manifest.json", "out/model", "out/model/a.txt", "stolen"]


def fill(out: Path) -> None:
    with writing(out) as folder:
        (folder / "first.txt").write_text("fits")
        (folder / "weights").symlink_to("/dev/full")
        (folder / "weights").write_bytes(b"x" * 10_000)


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """/dev/full refuses every byte with the error of a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UsageError, match="No space left on device; nothing was written") as error:
        fill(tmp_path / "out")
    assert str(tmp_path / "out") in one_line(error)
    assert names(tmp_path) == []


def test_a_really_small_disk_gives_one_line_and_keeps_the_old_folder(small_disk: Path) -> None:
    out = small_disk / "out"
    earlier(out)
    with pytest.raises(UsageError, match="No space left on device") as error, writing(out, force=True) as folder:
        (folder / "weights").write_bytes(bytes(100_000))
    one_line(error)
    assert names(small_disk) == ["out", "out/manifest.json", "out/model", "out/model/a.txt"]


def test_a_target_that_is_a_mount_gives_one_line_or_is_filled(small_disk: Path) -> None:
    """``docker run -v host:/out`` makes the output folder a mount, which cannot be renamed."""
    try:
        with writing(small_disk) as folder:
            (folder / "x").write_text("x")
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert names(small_disk) == ["x"]
    assert names(small_disk.parent) in (["disk"], ["disk", "disk/x"])


def test_an_error_of_a_file_elsewhere_is_not_taken_for_one_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out"):
        (tmp_path / "no such input").read_bytes()
    assert names(tmp_path) == []


# ---------------------------------------------------------------- two at once, and what killed runs left


def test_a_second_writer_of_one_folder_is_refused_or_waits(tmp_path: Path) -> None:
    """Of another thread, whose lock is another than the first's, as that of another process is."""
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as other:
        with writing(out) as folder:
            (folder / "a").write_text("first")
            write_json(folder / "manifest.json", Manifest(format_version=1))
            with pytest.raises(UsageError, match="another process writes to"):
                other.submit(half, out, False, ValueError()).result(10)
            waits = other.submit(earlier_waiting, out)
            assert not waits.done()
        waits.result(10)
    assert names(tmp_path) == ["out", "out/manifest.json"]


def earlier_waiting(out: Path) -> None:
    with writing(out, wait=True, force=True) as folder:
        write_json(folder / "manifest.json", Manifest(format_version=1))


def test_what_killed_runs_left_goes_and_what_looks_like_it_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (
        ".out.new-a1b2c3d4",
        ".out.old-a1b2c3d4/folder",
        ".out.new-",
        ".out.new-other-a1b2c3d4",
        ".outer.new-a1b2c3d4",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".out.lock").write_text("")
    earlier(out)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", ".out.new-", ".out.new-other-a1b2c3d4", ".outer.new-a1b2c3d4"}


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    earlier(tmp_path / ".out.old-a1b2c3d4" / "folder")
    restore(tmp_path / "out")
    assert names(tmp_path) == ["out", "out/manifest.json", "out/model", "out/model/a.txt"]
    (tmp_path / "out").rename(tmp_path / ".moved")
    (tmp_path / ".out.old-a1b2c3d4").mkdir()
    (tmp_path / ".moved").rename(tmp_path / ".out.old-a1b2c3d4" / "folder")
    with pytest.raises(UsageError, match="is not empty"), writing(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "model" / "a.txt").read_text() == "old"


# ---------------------------------------------------------------- hashes


@pytest.fixture
def hashed(tmp_path: Path) -> tuple[Path, tuple[FileEntry, ...]]:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"0123456789")
    (folder / "sub" / "b.bin").write_bytes(b"")
    (folder / "manifest.json").write_text("{}")
    return folder, entries(folder, leave_out="manifest.json")


def test_entries_are_every_file_with_its_size_and_hash(hashed: tuple[Path, tuple[FileEntry, ...]]) -> None:
    folder, files = hashed
    assert [(entry.path, entry.bytes) for entry in files] == [("a.bin", 10), ("sub/b.bin", 0)]
    assert [entry.sha256 for entry in files] == [sha256(b"0123456789").hexdigest(), sha256(b"").hexdigest()]
    check(folder, files)


def test_a_missing_a_cut_and_a_changed_file_are_named(hashed: tuple[Path, tuple[FileEntry, ...]]) -> None:
    folder, files = hashed
    for content, words in (
        (b"012345678", "9 bytes instead of 10"),
        (b"", "0 bytes"),
        (b"0123456780", "sha256 differs"),
    ):
        (folder / "a.bin").write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"a\.bin.*{words}") as error:
            check(folder, files)
        one_line(error)
    (folder / "a.bin").unlink()
    with pytest.raises(ArtifactError, match=r"a\.bin is missing") as error:
        check(folder, files)
    assert str(folder) in one_line(error)
    (folder / "a.bin").mkdir()
    with pytest.raises(ArtifactError, match=r"a\.bin is missing"):
        check(folder, files)


def test_a_path_that_leaves_the_folder_is_refused_though_the_hash_is_right(
    hashed: tuple[Path, tuple[FileEntry, ...]], tmp_path: Path
) -> None:
    folder, _ = hashed
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (folder / "link").symlink_to(secret)
    (folder / "way").symlink_to(tmp_path)
    (tmp_path / "folder-twin").mkdir()
    (tmp_path / "folder-twin" / "secret.txt").write_text("secret")
    for path in ("../secret.txt", "sub/../../secret.txt", str(secret), "link", "way/secret.txt",
                 "../folder-twin/secret.txt"):  # fmt: skip
        entry = FileEntry(path=path, bytes=6, sha256=sha256(b"secret").hexdigest())
        with pytest.raises(ArtifactError, match="outside the folder") as error:
            check(folder, (entry,))
        assert repr(path) in one_line(error)


def test_a_link_inside_the_folder_and_a_linked_folder_are_fine(
    hashed: tuple[Path, tuple[FileEntry, ...]], tmp_path: Path
) -> None:
    folder, _ = hashed
    (folder / "again").symlink_to("a.bin")
    check(folder, entries(folder, leave_out="manifest.json"))
    (tmp_path / "link").symlink_to(folder)
    check(tmp_path / "link", entries(folder, leave_out="manifest.json"))


# ---------------------------------------------------------------- manifests and single files


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", Manifest(format_version=1, name="é"))
    assert read_manifest(tmp_path / "m.json", Manifest, 1) == Manifest(format_version=1, name="é")
    assert read_json(tmp_path / "m.json", Manifest) == Manifest(format_version=1, name="é")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"format_version": 1', "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "not valid JSON"),
        (b"\xff\xfe\x00\x01", "not valid"),
        (b"[1, 2]", "not valid"),
        (b"{}", "format version None"),
        (b'{"format_version": "1"}', "format version '1'"),
        (b'{"format_version": 2}', "format version 2; this slimseek reads up to 1: upgrade it"),
        (b'{"format_version": 1, "colour": "red"}', "colour"),
        (b'{"format_version": 1, "name": 5}', "name"),
    ],
)
def test_a_broken_manifest_gives_one_line_with_its_path(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as error:
        read_manifest(path, Manifest, 1)
    assert str(path) in one_line(error)
    assert words in str(error.value)


def test_an_absent_manifest_or_a_folder_in_its_place_gives_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        for read in (lambda path: read_manifest(path, Manifest, 1), lambda path: read_json(path, Manifest)):
            with pytest.raises(ArtifactError) as error:
                read(path)
            assert str(path) in one_line(error)


def test_written_json_is_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"a": [1, 2.5, None, "é"]})
    assert msgspec.json.decode((tmp_path / "m.json").read_bytes()) == {"a": [1, 2.5, None, "é"]}
    assert b"\n" in (tmp_path / "m.json").read_bytes(), "indented, to be read by people"


def test_one_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_atomically(path, b"first")
    with path.open("rb") as reader:
        write_atomically(path, b"second")
        assert reader.read() == b"first", "a reader that has the old file open goes on with it"
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["new", "new/report.html"]
    (tmp_path / "taken").mkdir()
    for target in (tmp_path / "taken", path / "below a file"):
        with pytest.raises(UsageError, match="cannot write") as error:
            write_atomically(target, b"x")
        assert str(target) in one_line(error)
    assert names(tmp_path) == ["new", "new/report.html", "taken"]


def test_one_file_on_a_full_disk_keeps_the_old_one(small_disk: Path) -> None:
    path = small_disk / "report.html"
    write_atomically(path, b"old")
    with pytest.raises(UsageError, match=os.strerror(errno.ENOSPC)) as error:
        write_atomically(path, bytes(100_000))
    one_line(error)
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["report.html"]
