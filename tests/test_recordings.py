"""Collections of recordings: the layouts that are read, what is refused, and splits that share no speaker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimseek import data
from slimseek.collection import Collection
from slimseek.errors import UsageError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "fsdd"


def recordings(folder: Path, *names: str) -> None:
    """Files by these names; a reader of collections opens none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"RIFF")


def speakers(collection: Collection, of: dict[str, str]) -> dict[str, set[str]]:
    return {split: {of[query] for query in judged} for split, judged in collection.qrels.items()}


def what(collection: Collection) -> str:
    return "; ".join(f"{found.what}: {found.count}" for found in collection.findings)


# ---------------------------------------------------------------- utterances


@pytest.mark.parametrize(
    ("name", "header", "line"),
    [("data.csv", "file,transcript", 'clip{0}.wav,"said, {0}"'),
     ("metadata.csv", "audio,text", 'clip{0}.wav,"said, {0}"'),
     ("data.tsv", "path\tsentence\tup_votes", "clip{0}.wav\tsaid, {0}\t2")],
)  # fmt: skip
def test_a_table_of_recordings(tmp_path: Path, name: str, header: str, line: str) -> None:
    recordings(tmp_path, *(f"clip{number}.wav" for number in range(40)))
    (tmp_path / name).write_text("\n".join([header, *(line.format(number) for number in range(40))]), encoding="utf-8")
    found = data.load(str(tmp_path))
    stem = Path(name).stem
    query = f"{stem}-7"
    assert found.queries[query] == str(tmp_path / "clip5.wav")
    assert found.said[found.queries[query]] == "said, 5"
    [judged] = [judged[query] for judged in found.qrels.values() if query in judged]
    assert {found.corpus[document]: value for document, value in judged.items()} == {"said, 5": 1}
    assert set(found.qrels) == {"train", "dev", "test"}
    assert not found.labelled


def test_common_voice(tmp_path: Path) -> None:
    for split, clip in (("train", "one"), ("dev", "two"), ("test", "three")):
        recordings(tmp_path, f"clips/{clip}.mp3")
        (tmp_path / f"{split}.tsv").write_text(
            f"client_id\tpath\tsentence\n{split}er\t{clip}.mp3\tWhat \u201c{clip}\u201d says.\n"
        )
    found = data.load(str(tmp_path))
    assert {split: len(judged) for split, judged in found.qrels.items()} == {"train": 1, "dev": 1, "test": 1}
    assert found.said[str(tmp_path / "clips" / "three.mp3")] == "What \u201cthree\u201d says."
    assert found.findings == ()


def test_librispeech(tmp_path: Path) -> None:
    for split, speaker in (("train-clean-100", 19), ("dev-clean", 84), ("test-clean", 61)):
        names = [f"{speaker}-7-{number:04d}" for number in range(2)]
        folder = f"{split}/{speaker}/7"
        recordings(tmp_path, *(f"{folder}/{name}.flac" for name in names))
        (tmp_path / folder / f"{speaker}-7.trans.txt").write_text("".join(f"{name} SAID BY {name}\n" for name in names))
    found = data.load(str(tmp_path))
    assert {split: sorted(judged) for split, judged in found.qrels.items()} == {
        "train": ["19-7-0000", "19-7-0001"], "dev": ["84-7-0000", "84-7-0001"], "test": ["61-7-0000", "61-7-0001"],
    }  # fmt: skip
    assert found.corpus["61-7-0000"] == "SAID BY 61-7-0000"


def test_two_who_say_the_same_find_one_document(tmp_path: Path) -> None:
    recordings(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "data.csv").write_text("file,text\na.wav,yes\nb.wav,yes\nc.wav,\n")
    found = data.load(str(tmp_path))
    assert found.corpus == {"data-2": "yes"}
    assert set(found.queries) == {"data-2", "data-3"}
    assert "recordings without a transcript, left out: 1" in what(found)


def test_a_recording_in_two_splits_is_left_to_the_test(tmp_path: Path) -> None:
    recordings(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "data.csv").write_text(
        "file,text,split\na.wav,one,train\nb.wav,two,dev\nc.wav,three,test\na.wav,one,test\n"
    )
    found = data.load(str(tmp_path))
    assert {split: list(judged) for split, judged in found.qrels.items()} == {
        "dev": ["data-3"], "test": ["data-4", "data-5"]
    }  # fmt: skip
    assert "recordings that another split has too, left out: 1" in what(found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\na.wav,one\nmissing.wav,two\n", r"data.csv, line 3: there is no file 'missing.wav'"),
        ("file,text\na.wav,one\n../outside.wav,two\n", r"data.csv, line 3: there is no file '../outside.wav'"),
        ("file,text\na.wav,one\na.wav\n", r"data.csv, line 3: 1 columns; file, text are expected"),
        ("file,text\na.wav,\n", r"has 0 recordings with a transcript; two are needed"),
    ],
)
def test_a_broken_table_is_refused_by_its_line(tmp_path: Path, table: str, message: str) -> None:
    folder = tmp_path / "speech"
    recordings(folder, "a.wav", "../outside.wav")
    (folder / "data.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        data.load(str(folder))


# ---------------------------------------------------------------- speakers


def test_splits_that_share_a_speaker_do_not_count(tmp_path: Path) -> None:
    """Case A7: each of twenty speakers stands in train and in test of the table."""
    rows, of = [], {}
    for speaker in range(20):
        for number in range(3):
            name = f"wav/{speaker}_{number}.wav"
            recordings(tmp_path, name)
            rows.append(f"{speaker}_{number}.wav,{number},s{speaker},{'test' if number else 'train'}")
            of[f"{speaker}_{number}.wav"] = f"s{speaker}"
    (tmp_path / "labels.csv").write_text("\n".join(["file,digit,speaker,split", *rows]))
    found = data.load(str(tmp_path))
    parts = speakers(found, of)
    assert {split: len(some) for split, some in parts.items()} == {"train": 16, "dev": 2, "test": 2}
    assert not parts["train"] & parts["test"]
    assert not parts["dev"] & (parts["train"] | parts["test"])
    assert "speakers that several splits of the data share, for whom its splits do not count: 20" in what(found)
    assert found.labelled
    assert found.corpus == {"0": "0", "1": "1", "2": "2"}
    assert found.said[str(tmp_path / "wav" / "3_1.wav")] == "1"


def test_splits_of_different_speakers_hold(tmp_path: Path) -> None:
    rows = []
    for number, split in enumerate(("train", "train", "val", "test")):
        recordings(tmp_path, f"{number}.wav")
        rows.append(f"{number}.wav,{number % 2},s{number},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,speaker,split", *rows]))
    found = data.load(str(tmp_path))
    assert {split: list(judged) for split, judged in found.qrels.items()} == {
        "train": ["0.wav", "1.wav"], "dev": ["2.wav"], "test": ["3.wav"]
    }  # fmt: skip
    assert found.findings == ()


def test_a_column_without_a_name_is_none_of_those_that_are_optional(tmp_path: Path) -> None:
    """Tables that pandas writes begin with the number of the row."""
    for number in range(4):
        recordings(tmp_path, f"{number}.wav")
    rows = [f"{number},{number}.wav,{number % 2}" for number in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join([",file,label", *rows]))
    found = data.load(str(tmp_path))
    assert set(found.qrels) <= {"train", "dev", "test"}
    assert sorted(query for judged in found.qrels.values() for query in judged) == [f"{each}.wav" for each in range(4)]


def test_two_speakers_are_too_few_to_split_by(tmp_path: Path) -> None:
    rows = []
    for number in range(100):
        recordings(tmp_path, f"{number}.wav")
        rows.append(f"{number}.wav,{number % 2},s{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,speaker", *rows]))
    parts = {split: len(judged) for split, judged in data.load(str(tmp_path)).qrels.items()}
    assert sum(parts.values()) == 100
    assert 70 <= parts["train"] <= 90


@pytest.mark.skipif(not REAL.is_dir(), reason="fsdd is not here")
def test_spoken_digits_are_split_by_speaker() -> None:
    found = data.load(str(REAL))
    parts = speakers(found, {query: query.split("_")[1] for query in found.queries})
    assert {split: len(some) for split, some in parts.items()} == {"train": 4, "dev": 1, "test": 1}
    assert len(set.union(*parts.values())) == 6
    assert {split: len(judged) for split, judged in found.qrels.items()} == {"train": 2000, "dev": 500, "test": 500}


# ---------------------------------------------------------------- BEIR


def test_a_query_may_be_a_recording(tmp_path: Path) -> None:
    recordings(tmp_path, "audio/q.ogg")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{n}", "text": f"text {n}"}) + "\n" for n in (1, 2))
    )
    (tmp_path / "queries.jsonl").write_text(
        json.dumps({"_id": "q1", "audio": "audio/q.ogg", "text": "what is said"}) + "\n"
        + json.dumps({"_id": "q2", "text": "typed"}) + "\n"
    )  # fmt: skip
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    found = data.load(str(tmp_path))
    path = str(tmp_path / "audio" / "q.ogg")
    assert found.queries == {"q1": path, "q2": "typed"}
    assert found.said == {path: "what is said"}
    assert data.search_set(found, found.qrels["test"], "test").said == found.said
    (tmp_path / "audio" / "q.ogg").unlink()
    with pytest.raises(UsageError, match=r"queries.jsonl, line 1: there is no file"):
        data.load(str(tmp_path))
