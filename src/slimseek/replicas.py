"""The service on the machines of a Ray cluster: replicas of one application, by Ray Serve.

Each replica is what ``slimseek serve`` is on one machine, with a queue, limits and counters of its own. Ray's proxies
listen on every machine that has one, spread requests over all of them, and leave out what is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slimseek import __version__, plugins, serve
from slimseek.errors import UsageError, first_line
from slimseek.progress import say
from slimseek.scale.connect import check_version, connected, machines
from slimseek.serving import metrics
from slimseek.serving.door import Rules
from slimseek.serving.swap import Served, warming

NAME = "slimseek"
TRIES = 3
SECONDS_TO_ANSWER = 30.0
NICENESS = ("RAY_worker_niceness", "0")
"""Of processes of a cluster that is started here; Ray's own, 15, lets every other process go first."""
HEALTH_SECONDS = 2.0


class Replica:
    """One of several services of the same; it opens what is served on the machine that it comes to."""

    def __init__(self, version: str, load: Callable[[], Served], rules: Rules) -> None:
        """Open what is served, and run it once, before any request comes.

        Args:
            version: of slimseek, which must be the same everywhere.
            load: opens what is served, now and at a swap.
            rules: who may ask, and how much.
        """
        check_version(version)
        self._service = serve.app(*load(), rules=rules, load=load)
        for search in self._service.state.current.version.searches.values():
            for run in warming(search):
                run()
        self._own = self._service.state.counted
        self._service.state.counted = self._counted

    def __serve_build_asgi_app__(self) -> Any:
        return self._service

    async def swap(self) -> bool:
        """Open what is to be served now; whether it is served."""
        return await asyncio.to_thread(self._service.state.current.swap)

    async def own(self) -> tuple[str, bytes]:
        """The name of this replica, and its metrics."""
        return plugins.require("ray.serve").get_replica_context().replica_id.unique_id, await self._own()

    async def _counted(self) -> bytes:
        """The metrics of all replicas, whichever is asked."""
        handle = plugins.require("ray.serve").get_app_handle(NAME)
        found = await handle.broadcast("own").results_async(timeout_s=SECONDS_TO_ANSWER, return_exceptions=True)
        return metrics.together(dict(one for one in found if isinstance(one, tuple)))


def serve_on(
    load: Callable[[], Served], address: str, rules: Rules, *, host: str, port: int, replicas: int, threads: int,
    ready: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve on a cluster until SIGTERM or Ctrl-C; SIGHUP swaps in every replica.

    Args:
        load: opens what is served, with the files of the machine that it runs on; it travels there.
        address: see :func:`slimseek.scale.connect.connected`.
        rules: who may ask, and how much; each replica counts for itself.
        host: address that the proxies listen on.
        port: port of each proxy; 0 for any that is free here.
        replicas: how many; 0 for one a machine.
        threads: cores of each, which ``load`` gives to its runtimes.
        ready: told the address of the page when all replicas answer.

    Raises:
        UsageError: no cluster answers, it is too small, serves something already, or a replica cannot open what is
            served; the port is taken.
        MissingExtra: Ray Serve is not installed.
    """
    ray_serve: Any = plugins.require("ray.serve")
    os.environ.setdefault(*NICENESS)
    with serve.listen(host, port) as free:  # what is taken is known before a cluster is asked
        port = free.getsockname()[1]
    with connected(address) as ray, _signals() as (stop, swap):
        replicas = replicas or len(machines(ray))
        _check_room(ray, replicas, threads)
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # what goes wrong is told below, in one line
        ray_serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port},
                        logging_config={"log_level": "ERROR", "enable_access_log": False})  # fmt: skip
        _check_unused(ray_serve)
        try:
            handle = _deployed(ray_serve, load, rules, replicas, threads)
            name = f"[{host}]" if ":" in host else host
            ready(f"http://{name}:{port}/")
            while not stop.wait(0.2):
                if swap.is_set():
                    swap.clear()
                    _swap(handle)
        finally:
            ray_serve.shutdown()


def _deployed(ray_serve: Any, load: Callable[[], Served], rules: Rules, replicas: int, threads: int) -> Any:
    """The handle of replicas that all answer."""
    waiting = rules.batches.waiting
    deployment = ray_serve.deployment(
        ray_serve.ingress()(Replica), name=NAME, num_replicas=replicas, ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=2 * waiting, max_queued_requests=waiting * replicas,
        graceful_shutdown_timeout_s=float(serve.SECONDS_TO_STOP), graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_SECONDS, max_constructor_retry_count=TRIES,
    )  # fmt: skip
    try:
        return ray_serve.run(deployment.bind(__version__, load, rules), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise UsageError(f"a replica cannot serve: {_reason(ray_serve) or first_line(error)}") from error


def _reason(ray_serve: Any) -> str:
    """What a replica that cannot be made says last, of the stacks that Ray tells; empty where it tells none."""
    found = ray_serve.status().applications.get(NAME)
    told = "" if found is None else "\n".join(one.message for one in found.deployments.values())
    return next((line.partition("Error: ")[2] for line in reversed(told.splitlines()) if "Error: " in line), "")


def _check_room(ray: Any, replicas: int, threads: int) -> None:
    """UsageError where the cores of the cluster do not suffice, for which Ray would wait."""
    cores = [machine.cores for machine in machines(ray)]
    most = sum(each // threads for each in cores)
    if replicas > most:
        raise UsageError(f"{replicas} replicas of {threads} threads are asked; the cluster's machines have room for "
                         f"{most}, with {', '.join(map(str, cores))} cores")  # fmt: skip


def _check_unused(ray_serve: Any) -> None:
    others = sorted(ray_serve.status().applications)
    if others:
        raise UsageError(f"the cluster serves {', '.join(others)} already; end that first, or give another --ray")


def _swap(handle: Any) -> None:
    """Swap in all replicas; each says why it does not, in Ray's log."""
    done = handle.broadcast("swap").results(return_exceptions=True)
    swapped = sum(one is True for one in done)
    say(f"swapped in {swapped} of {len(done)} replicas" + ("" if swapped == len(done) else "; the others serve on"))


@contextmanager
def _signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set by SIGTERM or Ctrl-C, and by SIGHUP, while the block runs."""
    stop, swap = threading.Event(), threading.Event()
    heeded = {"SIGTERM": stop, "SIGINT": stop, "SIGHUP": swap}
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name, event in heeded.items():
            number = getattr(signal, name, None)
            if number is not None:
                before[number] = signal.signal(number, lambda *_, event=event: event.set())  # type: ignore[misc]
    try:
        yield stop, swap
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
