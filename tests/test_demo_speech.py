"""The recordings of the demonstration, from a made folder of stamps."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimseek import data
from slimseek.demo import recordings
from slimseek.errors import UsageError


def stamps(folder: Path, count: int) -> None:
    for number in range(count):
        place = folder / f"animals/stamp{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(f"stamp{number}_desc.ogg").write_bytes(b"OggS")
        place.with_name(f"stamp{number}_desc_fr.ogg").write_bytes(b"OggS")
        place.with_name(f"stamp{number}.txt").write_text(f"A stamp number {number}.\nfr.utf8=Un timbre.\n")


def test_english_captions_become_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps(tmp_path / "stamps", 50)
    monkeypatch.setattr(recordings, "STAMPS", tmp_path / "stamps")
    for _ in range(2):  # what an earlier run left is replaced
        made = recordings.collect(tmp_path / "out")
    found = data.load(str(tmp_path / "out"))
    assert {split: len(judged) for split, judged in found.qrels.items()} == {"dev": made.dev, "test": made.test}
    assert (made.dev, made.test) == (12, 38)
    assert all(text.startswith("A stamp number") for text in found.said.values())


@pytest.mark.parametrize("count", [0, 5])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    stamps(tmp_path / "stamps", count)
    monkeypatch.setattr(recordings, "STAMPS", tmp_path / "stamps")
    with pytest.raises(UsageError, match="run: apt-get install tuxpaint-stamps-default"):
        recordings.collect(tmp_path / "out")
