"""A clock that jumps changes nothing: the rate of a client, what is measured, what a killed run goes on with.

libfaketime (Debian's package faketime) moves the clock on the wall of a process while it runs; the monotonic clock,
which nobody can set, stays the machine's. ``SLIMSEEK_KILLS=1`` does so to a fresh process and to a search under a
budget, too, which take a minute.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asking import Client, two_searches
from forked import Forks
from slimseek import data
from slimseek.serving.door import Rules
from slimseek.serving.limits import rate
from slimseek.trial import Found
from small import tiny_bert, tiny_collection

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
JUMPS = ("-1h", "+400d", "+0", "-9000d")
OF_THE_WALL = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.strftime", "time.ctime", "os.utime",
               "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.path.getmtime",
               "os.path.getctime"}  # fmt: skip
OF_FILES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "st_atime_ns"}
with_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (apt-get install faketime)")

where_asked_for = pytest.mark.skipif("SLIMSEEK_KILLS" not in os.environ, reason="slow; SLIMSEEK_KILLS=1 runs it")


# ---------------------------------------------------------------- the sources


def read_off_the_wall(code: str) -> list[str]:
    """What a source takes of the clock on the wall, or of the times of files."""
    tree, found = ast.parse(code), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found += [name for one in OF_THE_WALL if name == one or name.endswith(f".{one}")]
            found += [name] if node.attr in OF_FILES else []
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{one.name}" for one in node.names if f"{node.module}.{one.name}" in OF_THE_WALL]
    return found


def test_nothing_is_computed_from_the_clock_on_the_wall() -> None:
    assert {source.name: found for source in SOURCES if (found := read_off_the_wall(source.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "code",
    ["import time\ntime.time()", "from time import time", "path.stat().st_mtime", "datetime.datetime.now()",
     "later = time.time", "os.path.getmtime(path)"],
)  # fmt: skip
def test_what_would_be_found(code: str) -> None:
    assert len(read_off_the_wall(code)) == 1


# ---------------------------------------------------------------- in this process


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock on the wall gives a time an hour before, or a year after, or the right one."""
    right, offsets = time.time, cycle((-3600.0, 3.2e7, 0.0, -1e9))
    monkeypatch.setattr(time, "time", lambda: right() + next(offsets))


@pytest.mark.usefixtures("jumping")
def test_a_rate_is_kept_and_times_are_counted(tmp_path: Path) -> None:
    client = Client(*two_searches(tmp_path), rules=Rules(rate=rate("5/h")))
    answers = [client("/search?q=stone") for _ in range(8)]
    assert [one.status_code for one in answers] == [200] * 5 + [429] * 3
    assert all(700 <= int(one.headers["retry-after"]) <= 720 for one in answers[5:])
    counted = client.metrics()
    assert counted["slimseek_seconds_count", "total"] == 5
    for phase in ("wait", "encode", "search", "total"):
        assert 0 <= counted["slimseek_seconds_sum", phase] < 60
    assert all(0 <= value < 60_000 for one in answers[:5] for value in one.json()["milliseconds"].values())


# ---------------------------------------------------------------- with the clock really moved


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What libfaketime reads at each look: how far the clock is off."""
    file = tmp_path_factory.mktemp("clock") / "clock"
    file.write_text("+0")
    return file


@pytest.fixture(scope="module")
def forks(clock: Path) -> Iterator[Forks]:
    settings = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "NO_FAKE_STAT": "1",
                "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    with Forks(LD_PRELOAD=str(LIBRARY), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tiny_bert(home / "model", layers=1, width=16, heads=2)
    tiny_collection(home / "collection")
    return home


@contextmanager
def jumps(clock: Path) -> Iterator[None]:
    """The clock jumps to and fro while the block runs."""
    ended = threading.Event()

    def turn() -> None:
        for jump in cycle(JUMPS):
            set_to(clock, jump)
            if ended.wait(0.02):
                break
        set_to(clock, "+0")

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def set_to(clock: Path, jump: str) -> None:
    """Renamed, so that no look finds an empty file."""
    clock.with_suffix(".new").write_text(jump)
    clock.with_suffix(".new").rename(clock)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def date_all(folder: Path, year: int) -> None:
    """Files and folders as of that year."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (seconds := (year - 1970) * 3.15576e7, seconds))


@with_faketime
@where_asked_for
def test_a_start_is_timed_while_the_clock_jumps(home: Path, clock: Path, forks: Forks) -> None:
    """And the clock of that process was really off."""
    with jumps(clock):
        code, said, _ = forks.run("python:started", str(home / "model"), str(home / "told"))
    assert code == 0, said
    seconds, walls = json.loads((home / "told").read_text())
    assert 0 < seconds < 120
    assert max(walls) - min(walls) > 390 * 86400


@with_faketime
def test_the_service_keeps_its_rate_and_its_times(clock: Path, forks: Forks, tmp_path: Path) -> None:
    told, ended = tmp_path / "told", []
    assert forks.run("python:index", str(tmp_path / "index"))[0] == 0
    thread = threading.Thread(
        target=lambda: ended.append(forks.run("python:serve", str(tmp_path / "index"), str(told), seconds=60))
    )
    thread.start()
    until = time.monotonic() + 30
    while not told.exists() and time.monotonic() < until:
        time.sleep(0.02)
    url, process = told.read_text().split()
    seen = []
    for jump in ("+0", "-1h", "+400d", "-9000d", "+0"):
        set_to(clock, jump)
        off = {"+400d": 400, "-9000d": -9000}.get(jump)
        while off is not None and days_off(url) != off:
            assert time.monotonic() < until + 30, "the process does not see the jump"
        status, headers, body = asked(f"{url}search?q=stone")
        seen.append(status)
        if status == 200:
            assert all(0 <= value < 60_000 for value in json.loads(body)["milliseconds"].values())
        else:
            assert 1 <= int(headers["retry-after"]) <= 1200
    assert seen == [200] * 3 + [429] * 2
    set_to(clock, "-1h")
    text = asked(f"{url}metrics")[2].decode()
    sums = [float(line.split()[1]) for line in text.splitlines() if line.startswith("slimseek_seconds_sum")]
    assert len(sums) == 4
    assert all(0 <= value < 60 for value in sums)
    os.kill(int(process), signal.SIGTERM)
    thread.join(60)
    assert ended[0][0] == 0, ended[0][1]
    set_to(clock, "+0")


def days_off(url: str) -> int:
    """By how many days the service's own date differs, which it looks up once a second."""
    date = parsedate_to_datetime(asked(f"{url}health")[1]["date"]).timestamp()
    time.sleep(0.05)
    return round((date - time.time()) / 86400)


def asked(url: str) -> tuple[int, Any, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@with_faketime
def test_an_index_goes_on_whatever_its_files_are_dated(clock: Path, forks: Forks, tmp_path: Path) -> None:
    """Killed after some shards, whose files are then of a year to come, or of 1971; the clock jumps meanwhile."""
    lines = [json.dumps({"_id": f"d{number}", "text": f"the cat {number}"}) for number in range(60)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    code, said, total = forks.run("python:bulk", "whole", "many.jsonl", folder=str(tmp_path))
    assert code == 0, said
    left = 0
    for number, year in ((3 * total // 4, 2099), (total - 4, 1971)):
        set_to(clock, "+400d" if year == 1971 else "-1h")
        out = f"of {year}"
        code, _, _ = forks.run("python:bulk", out, "many.jsonl", folder=str(tmp_path), kill_at=number)
        assert code == -9
        work = tmp_path / f".{out}.work"
        left += len([path for path in work.glob("*.npy") if path.name[0].isdigit()])
        date_all(tmp_path, year)
        with jumps(clock):
            code, said, _ = forks.run("python:bulk", out, "many.jsonl", folder=str(tmp_path))
        assert code == 0, said
        assert contents(tmp_path / out) == contents(tmp_path / "whole")
        assert not work.exists()
    assert left, "no run was killed with a shard done"


@with_faketime
@where_asked_for
def test_a_search_keeps_its_time_and_goes_on_with_its_trials(home: Path, clock: Path, forks: Forks) -> None:
    """A jump of 400 days ends no search of ten minutes; its trials, dated 2099, are taken over."""
    arguments = ("compress", "model", "--data", "collection", "--max-loss", "90%", "--time", "10m", "--quiet",
                 "--threads", "1", "--target", "onnxruntime", "--out", "found")  # fmt: skip
    shutil.rmtree(home / "found", ignore_errors=True)
    with jumps(clock):
        code, said, _ = forks.run(*arguments, "--trials", "2", folder=str(home))
    assert code == 0, said
    first = msgspec.json.decode((home / "found" / "search.json").read_bytes(), type=Found)
    assert len(first.trials) >= 3
    assert all(0 <= trial.seconds < 600 for trial in first.trials)
    date_all(home / "found", 2099)
    set_to(clock, "-1h")
    code, said, _ = forks.run(*arguments, "--trials", "3", folder=str(home))
    set_to(clock, "+0")
    assert code == 0, said
    second = msgspec.json.decode((home / "found" / "search.json").read_bytes(), type=Found)
    assert second.trials[: len(first.trials)] == first.trials
    assert len(second.trials) == len(first.trials) + 1


def test_a_collection_of_a_year_to_come_is_read(tmp_path: Path) -> None:
    tiny_collection(tmp_path / "now")
    tiny_collection(tmp_path / "later")
    date_all(tmp_path / "later", 2099)
    assert data.load(str(tmp_path / "later")).corpus == data.load(str(tmp_path / "now")).corpus
