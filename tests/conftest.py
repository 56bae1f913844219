"""What every test starts with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from postgres import server

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Teachers' vectors are kept in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server with pgvector; a test that asks for it is skipped where there is none, and says why."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(server())
        except RuntimeError as error:
            pytest.skip(str(error))
        yield address


@pytest.fixture(autouse=True)
def _database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run over all indexes have a server for the one that needs it."""
    call = getattr(request.node, "callspec", None)
    if call is not None and "pgvector" in (call.params.get("kind"), call.params.get("name")):
        monkeypatch.setenv("SLIMSEEK_DATABASE", request.getfixturevalue("postgres"))
