"""The way to a Ray cluster: one that runs, or one that is started here; a wrong address is told within seconds."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slimseek import __version__, plugins, timing
from slimseek.errors import SlimseekError, UsageError, first_line

LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"(?P<host>[^:/\s]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
ANSWER_SECONDS = 3.0
STORE_BYTES = 200_000_000
"""Memory for what workers share on a cluster that is started here; Ray keeps the rest on disk."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How a client of gRPC, which Ray speaks, begins: the preface of HTTP/2 and empty settings (RFC 9113, 3.4)."""
SETTINGS_FRAME = 4
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is sent to anyone; processes without an accelerator are left as they are, for which Ray has a warning."""


@dataclass(frozen=True)
class Machine:
    """A node of a cluster.

    Attributes:
        name: Ray's, in hexadecimal.
        address: for messages.
        cores: that Ray may use there, 1 or more.
    """

    name: str
    address: str
    cores: int


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected while the block runs; a connection that the caller has already is used and left.

    Args:
        address: HOST:PORT of a cluster, ``auto`` for the one of this machine (or of ``RAY_ADDRESS``), ``local`` to
            start one here.

    Raises:
        UsageError: it is none of these, or no cluster answers there.
        MissingExtra: Ray is not installed.
    """
    ray = plugins.require("ray")
    if ray.is_initialized():
        yield ray
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    given = _arguments(address)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **given)
    except Exception as error:  # Ray raises bare ones, too, such as for a machine that is too busy to start it in time
        raise UsageError(f"--ray {address}: {first_line(error)}") from error
    try:
        yield ray
    except ray.exceptions.RayTaskError:  # a fault of the code that ran there, which its stack tells
        raise
    except ray.exceptions.RayError as error:
        raise SlimseekError(f"the cluster {address} was lost or failed: {first_line(error)}") from error
    finally:
        ray.shutdown()


def machines(ray: Any) -> list[Machine]:
    """The machines of the connected cluster that can work now, in an order that stays: by name."""
    found = [
        Machine(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((machine for machine in found if machine.cores >= 1), key=lambda machine: machine.name)


def check_version(wanted: str) -> None:
    """Refuse to work for a slimseek of another version, on the machine where that is found out.

    Raises:
        UsageError: this machine has another one.
    """
    if wanted != __version__:
        raise UsageError(
            f"{socket.gethostname()} has slimseek {__version__}, and {wanted} is asked; install that there"
        )


def _arguments(address: str) -> dict[str, Any]:
    """What ``ray.init`` is given."""
    if address == LOCAL:
        return {"address": LOCAL, "num_cpus": timing.default_threads(), "include_dashboard": False,
                "object_store_memory": STORE_BYTES}  # fmt: skip
    if address == AUTO and not os.environ.get("RAY_ADDRESS"):
        return {"address": AUTO}
    found = os.environ["RAY_ADDRESS"] if address == AUTO else address
    match = ADDRESS.fullmatch(found)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UsageError(f"--ray {found}: a cluster's HOST:PORT is allowed (such as 10.0.0.1:6379), auto, or local")
    _check_answers(found, match["host"].strip("[]"), int(match["port"]))
    return {"address": found}


def _check_answers(address: str, host: str, port: int) -> None:
    """Refuse an address where nothing speaks gRPC, for which Ray itself would wait minutes and then end the process."""
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(GREETING)
            answer = connection.recv(9)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UsageError(f"--ray {address}: no Ray cluster answers there ({reason})") from error
    if len(answer) < 4 or answer[3] != SETTINGS_FRAME:
        raise UsageError(
            f"--ray {address}: what answers there is no Ray cluster; give the port of its head, often 6379"
        )
