"""Indexing of files larger than memory: the same bytes as in one go, whatever killed it, whoever encodes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slimseek import choose, data, plugins, search
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.progress import shown_on
from slimseek.scale import _documents, bulk
from small import many_texts, tiny_collection, tiny_encoder

IN_A_PROCESS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from slimseek import choose
from slimseek.scale import _documents, bulk
from small import tiny_encoder
choose.choose = lambda source, threads=None: tiny_encoder(dim={dim})
_documents.DOCUMENTS_IN_SHARD = {shard}
bulk.index("tiny", Path({file!r}), Path({out!r}), **{settings!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def written(path: Path, count: int, start: int = 0) -> Path:
    """A file of so many documents whose texts differ."""
    with path.open("w") as file:
        for number, text in enumerate(many_texts(count), start):
            file.write(json.dumps({"_id": f"d{number}", "title": f"no {number}", "text": text}) + "\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def process(file: Path, out: Path, shard: int = 64, dim: int = 32, **settings: Any) -> subprocess.Popen[str]:
    code = IN_A_PROCESS.format(
        tests=str(Path(__file__).parent), file=str(file), out=str(out), shard=shard, dim=dim, settings=settings
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def made_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MODEL of a test is the small encoder; shards are small."""
    monkeypatch.setattr(choose, "choose", lambda source, threads=None: tiny_encoder())
    monkeypatch.setattr(_documents, "DOCUMENTS_IN_SHARD", 64)


def corpus_of(file: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["_id"]: f"{line['title']} {line['text']}" for line in lines}


@pytest.mark.usefixtures("made_model")
class TestSame:
    """The reference is an index of all vectors at once."""

    @pytest.mark.parametrize("kind", [kind for kind in plugins.names("indexes") if kind != "pgvector"])
    @pytest.mark.parametrize("precision", ["f32", "int8", "binary"])
    def test_as_the_bytes_of_an_index_made_at_once(self, kind: str, precision: Any, tmp_path: Path) -> None:
        """256 documents are encoded at a time in both; a shard of 256 ends where such a chunk does."""
        _documents.DOCUMENTS_IN_SHARD = 256
        file = written(tmp_path / "corpus.jsonl", 700)
        bulk.index("tiny", file, tmp_path / "bulk", kind=kind, precision=precision)
        search.index(tiny_encoder(), corpus_of(file), tmp_path / "once", kind=kind, precision=precision)
        assert contents(tmp_path / "bulk") == contents(tmp_path / "once")
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_in_a_database(self, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMSEEK_DATABASE", postgres)
        file = written(tmp_path / "corpus.jsonl", 200)
        bulk.index("tiny", file, tmp_path / "bulk", kind="pgvector")
        search.index(tiny_encoder(), corpus_of(file), tmp_path / "once")
        found, wanted = (search.open(tmp_path / name, tiny_encoder()) for name in ("bulk", "once"))
        assert found.query(["a cat", "winter river"], 10) == wanted.query(["a cat", "winter river"], 10)

    @pytest.mark.parametrize("count", [1, 63, 64, 65, 128])
    def test_any_number_of_documents(self, count: int, tmp_path: Path) -> None:
        file = written(tmp_path / "corpus.jsonl", count)
        assert bulk.index("tiny", file, tmp_path / "bulk").count == count
        [found] = search.open(tmp_path / "bulk", tiny_encoder()).query(["stone"], k=1000)
        assert {result.id: result.text for result in found} == corpus_of(file)

    def test_lines_that_cannot_be_taken(self, tmp_path: Path) -> None:
        file = tmp_path / "corpus.jsonl"
        good = '{"_id": "a", "text": "stone"}\n'
        twice = good + '{"_id": "b", "text": "c"}\n\n' + good
        for content, wrong in (
            ("", "is empty"),
            (good + "{", "line 2: not valid JSON"),
            ("\n" + '{"text": "b"}', "line 2: there is no _id"),
            (good + '{"_id": "b"}', "line 2: there is no text"),
            (twice, "line 4: the _id 'a' occurs a second time"),
        ):
            file.write_text(content)
            with pytest.raises(UsageError, match=wrong):
                bulk.index("tiny", file, tmp_path / "out")
            assert not (tmp_path / "out").exists()
        with pytest.raises(UsageError, match="No such file"):
            bulk.index("tiny", tmp_path / "absent.jsonl", tmp_path / "out")
        with pytest.raises(UsageError, match="--processes is 0"):
            bulk.index("tiny", file, tmp_path / "out", processes=0)

    def test_among_many_ids_the_one_that_occurs_twice_is_found(self, tmp_path: Path) -> None:
        file = written(tmp_path / "corpus.jsonl", 2000)
        with file.open("a") as more:
            more.write('{"_id": "new", "text": "x"}\n{"_id": "d1234", "text": "x"}\n{"_id": "d7", "text": "x"}\n')
        with pytest.raises(UsageError, match="line 2002: the _id 'd1234'"):
            bulk.index("tiny", file, tmp_path / "out")

    def test_a_taken_folder_is_refused_before_any_work(self, tmp_path: Path) -> None:
        file = written(tmp_path / "corpus.jsonl", 100)
        bulk.index("tiny", file, tmp_path / "out")
        with pytest.raises(UsageError, match="not empty"):
            bulk.index("tiny", file, tmp_path / "out")
        assert not (tmp_path / ".out.work").exists()
        bulk.index("tiny", written(tmp_path / "corpus.jsonl", 70), tmp_path / "out", force=True)
        assert search.open(tmp_path / "out", tiny_encoder()).stats().documents == 70


@pytest.mark.usefixtures("made_model")
class TestResume:
    def broken_off(self, file: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        """A run that fails after some shards, as one that is killed leaves it."""
        done, encoded = [0], bulk._encoded

        def failing(*arguments: Any) -> int:
            if done[0] == after:
                raise RuntimeError("the power failed")
            done[0] += 1
            return encoded(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(bulk, "_encoded", failing)
            with pytest.raises(RuntimeError):
                bulk.index("tiny", file, out)

    def counted(self, file: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
        """How many shards a run encodes."""
        done, encoded = [0], bulk._encoded

        def counting(*arguments: Any) -> int:
            done[0] += 1
            return encoded(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(bulk, "_encoded", counting)
            bulk.index("tiny", file, out)
        return done[0]

    def test_only_what_is_missing_is_encoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of ten shards four are there; one of them is cut and one has a bit turned over, so that eight are encoded."""
        file = written(tmp_path / "corpus.jsonl", 640)
        bulk.index("tiny", file, tmp_path / "whole")
        self.broken_off(file, tmp_path / "out", monkeypatch, after=4)
        shards = sorted((tmp_path / ".out.work").glob("*.npy"))
        shards = [path for path in shards if path.name[0].isdigit()]
        assert len(shards) == 4
        shards[1].write_bytes(shards[1].read_bytes()[:-1])
        changed = bytearray(shards[2].read_bytes())
        changed[500] ^= 1
        shards[2].write_bytes(bytes(changed))
        shown = io.StringIO()
        with shown_on(Console(file=shown, width=200)):
            assert self.counted(file, tmp_path / "out", monkeypatch) == 8
        assert "128 of 640 documents were encoded before" in shown.getvalue()
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert not (tmp_path / ".out.work").exists()

    def test_texts_that_changed_are_encoded_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = written(tmp_path / "corpus.jsonl", 256)
        self.broken_off(file, tmp_path / "out", monkeypatch, after=3)
        lines = file.read_text().splitlines()
        lines[70] = '{"_id": "d70", "text": "another engine", "title": "no 70"}'
        file.write_text("\n".join(lines))
        assert self.counted(file, tmp_path / "out", monkeypatch) == 2
        [[result]] = search.open(tmp_path / "out", tiny_encoder()).query(["no 70 another engine"], k=1)
        assert result.id == "d70"

    def test_another_model_takes_nothing_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = written(tmp_path / "corpus.jsonl", 256)
        self.broken_off(file, tmp_path / "out", monkeypatch, after=3)
        monkeypatch.setattr(choose, "choose", lambda source, threads=None: tiny_encoder(noise=0.5))
        assert self.counted(file, tmp_path / "out", monkeypatch) == 4


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Real processes, killed twice by signal 9 as soon as more shards are there than before."""
    file = written(tmp_path / "corpus.jsonl", 3000)
    whole = process(file, tmp_path / "whole", precision="binary")
    assert whole.wait(120) == 0, whole.communicate()
    work, killed = tmp_path / ".out.work", 0
    for wanted in (1, 20):
        running = process(file, tmp_path / "out", precision="binary")
        while running.poll() is None and len(list(work.glob("0*.npy"))) < wanted:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        killed += running.wait() == -signal.SIGKILL
        assert not (tmp_path / "out").exists() or running.returncode == 0
    assert killed >= 1
    last = process(file, tmp_path / "out", precision="binary", force=True)
    assert last.wait(120) == 0, last.communicate()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "out", "whole"]


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """Ten times as many documents, 27,000 more: their vectors alone are 28 MB."""
    peaks = []
    for count in (3000, 30_000):
        file = written(tmp_path / f"{count}.jsonl", count)
        running = process(file, tmp_path / f"index {count}", shard=1024, dim=256, precision="binary")
        said, wrong = running.communicate(timeout=300)
        assert running.returncode == 0, wrong
        peaks.append(int(said) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 8e6, peaks


def opened(source: str, threads: int) -> Encoder:
    """What opens the MODEL in each process; its name tells that it was this."""
    return tiny_encoder(name=f"{source} {threads}")


def test_several_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    """Two other processes, which open the model by themselves."""
    file = written(tmp_path / "corpus.jsonl", 5000)
    for processes in (1, 2):
        manifest = bulk.index("made", file, tmp_path / str(processes), processes=processes, threads=3, opened_by=opened)
        assert (manifest.model, manifest.count) == ("made 3", 5000)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def broken(source: str, threads: int) -> Encoder:
    """A model that only the first process can open."""
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return tiny_encoder()


def test_a_process_that_dies_is_one_clear_line(tmp_path: Path) -> None:
    file = written(tmp_path / "corpus.jsonl", 3000)
    with pytest.raises(UsageError, match=r"was ended from outside.*run the same command again with fewer --processes"):
        bulk.index("made", file, tmp_path / "out", processes=2, threads=1, opened_by=broken)
    assert not (tmp_path / "out").exists()


def test_a_collection_has_the_same_texts(tmp_path: Path) -> None:
    """Its corpus.jsonl read line by line, against the reader of the folder."""
    tiny_collection(tmp_path / "news")
    assert bulk.texts(tmp_path / "news" / "corpus.jsonl") == data.load(str(tmp_path / "news")).corpus
