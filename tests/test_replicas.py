"""The service on a Ray cluster of this machine: the same answers, and a replica that is killed costs no later one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from asking import SERVE, Started, two_packages
from slimseek import choose, search

pytest.importorskip("ray", reason="Ray is not installed: pip install 'slimseek[ray]'")
pytest.importorskip("ray.serve", exc_type=ImportError, reason="Ray Serve is not installed: pip install 'slimseek[ray]'")

SECRET = "a-key-of-some-length"
SECONDS = 180
ADDRESS = "local"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and their indexes, ``a`` and ``b``, a link ``now`` to the first, and a key."""
    folder = tmp_path_factory.mktemp("replicas")
    two_packages(folder)
    (folder / "now").symlink_to("a")
    (folder / "key").write_text(SECRET)
    return folder


class Cluster(Started):
    """``slimseek serve --ray`` as a user starts it."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, "--ray", ADDRESS, seconds=SECONDS)

    def replicas(self) -> list[psutil.Process]:
        """The processes that answer."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::ServeReplica" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Cluster]:
    cluster = Cluster(*arguments)
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    try:
        yield cluster
    finally:
        cluster.process.kill()
        cluster.process.wait()
        for process in children:
            with contextlib.suppress(psutil.Error):
                process.kill()


def counted(client: httpx.Client) -> dict[str, dict[str, float]]:
    """Name of a sample to replica to the sum of its values."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            replica = sample.labels["replica"]
            values[replica] = values.get(replica, 0.0) + sample.value
    return found


def test_two_replicas_answer_as_one_process_and_one_may_die(packages: Path) -> None:
    wanted = {}
    for name in "ab":
        opened = search.open(packages / name / "index", choose.choose(packages / name / "model", 1))
        wanted[name] = [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in opened.query(["the cat"], 3)[0]]
    given = [str(packages / "now/model"), "--index", str(packages / "now/index"), "--replicas", "2", "--threads", "1"]
    with running(*given, "--api-key-file", str(packages / "key")) as cluster:
        headers = {"X-API-Key": SECRET}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=SECONDS) as client:

            def found() -> list[tuple[str, float]]:
                response = client.get("/search", params={"q": "the cat", "k": 3}).raise_for_status()
                return [(hit["id"], hit["score"]) for hit in response.json()["results"]]

            for _ in range(40):
                assert found() == wanted["a"]
            assert httpx.get(cluster.url + "search?q=cat").status_code == 401
            assert client.get("/").headers["content-security-policy"].startswith("default-src 'none'")
            assert client.post("/embed", json={"texts": ["x" * 10_001]}).status_code == 422
            assert client.post("/search/picture", content=b"x" * 20_000_001).status_code == 413
            samples = counted(client)
            assert len(samples["slimseek_resident_bytes"]) == 2, "both are counted, whichever is asked"
            assert sum(samples["slimseek_seconds_count"].values()) >= 3 * 40
            assert all(value > 0 for value in samples["slimseek_batch_rows_count"].values()), "both have answered"

            before = cluster.replicas()
            assert len(before) == 2
            before[0].kill()
            before[0].wait(SECONDS)
            for _ in range(100):
                assert found() == wanted["a"]
            cluster.until(lambda: len(counted(client)["slimseek_version"]) == 2)
            assert before[0].pid not in {process.pid for process in cluster.replicas()}

            (packages / "next").symlink_to("b")
            (packages / "next").rename(packages / "now")
            cluster.process.send_signal(signal.SIGHUP)
            assert cluster.line("swapped in ") == "swapped in 2 of 2 replicas\n"
            for _ in range(20):
                assert found() == wanted["b"]
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(SECONDS) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(cluster.url + "health")
    assert not any("Traceback" in line for line in cluster.lines), "".join(cluster.lines)


def test_what_cannot_be_served_is_one_line(packages: Path) -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-c", SERVE, "serve", *arguments, "--quiet"], stderr=subprocess.PIPE,
                              text=True, timeout=SECONDS, check=False)  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    model, index = str(packages / "a/model"), str(packages / "b/index")
    said = refused(model, "--index", index, "--ray", "local", "--replicas", "500")
    assert "500 replicas of 1 threads are asked; the cluster's machines have room for" in said
    said = refused(model, "--index", index, "--ray", "local", "--replicas", "1", "--port", "0")
    assert "a replica cannot serve: " in said
    assert "was made by" in said or "holds other vectors" in said
