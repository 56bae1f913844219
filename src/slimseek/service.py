"""The service of a model: what it searches is opened or made, served, and opened anew for a swap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from slimseek import choose, documents, plugins, search
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.progress import say

if TYPE_CHECKING:
    from slimseek.serving.swap import Served


def serve_on(
    source: str, collection: str = "", *, original: str = "", index: str = "", original_index: str = "",
    recogniser: str = "", host: str = "127.0.0.1", port: int = 8000, everyone: bool = False, api_key_file: str = "",
    allowed_hosts: Sequence[str] = (), rate: str = "", rows: int = 0, waiting: int = 0, threads: int = 0, ray: str = "",
    replicas: int = 0,
) -> None:  # fmt: skip
    """Open or make the indexes and serve; the original, if given, has an index of its own.

    At SIGHUP all of them are opened again from the same places, and served if they answer.

    Args:
        source: the MODEL that answers.
        collection: what is searched; by default what the model was judged by.
        original: the MODEL that it is compared with, ``""`` for none.
        index: an index that was made before, for ``source``; by default one is made now.
        original_index: the same for ``original``.
        recogniser: the MODEL that makes texts of spoken queries, ``""`` for none.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        everyone: listen to other machines without a key.
        api_key_file: a file with the key that requests must name; ``""`` for none.
        allowed_hosts: names by which requests may call it besides ``host`` and the loopback's; ``*`` for any.
        rate: of each client, such as ``20/s``; ``""`` for any.
        rows: the most texts that are encoded together; 0 for the default.
        waiting: the most requests that may wait; 0 for the default.
        threads: of each runtime; 0 for all cores, or on a cluster for one.
        ray: the Ray cluster that serves (see :mod:`slimseek.replicas`), ``""`` for this process alone. What is opened
            must lie at the same paths on its machines.
        replicas: on the cluster; 0 for one a machine.

    Raises:
        UsageError: anything wrong with the arguments, an index for no original, or a recogniser for a model that takes
            no texts.
    """
    service, limits = plugins.require("slimseek.serve"), plugins.require("slimseek.serving.limits")
    batching = plugins.require("slimseek.serving.batching")
    given = {name: value for name, value in (("rows", rows), ("waiting", waiting)) if value}
    called = plugins.require("slimseek.serving.hosts").hosts(host, allowed_hosts)
    rules = service.Rules(batches=batching.Limits(**given), rate=limits.rate(rate), key=limits.key(api_key_file),
                          hosts=called)  # fmt: skip
    limits.check_host(host, rules.key, everyone)
    if original_index and not original:
        raise UsageError(f"--original-index {original_index} is of no model; add --original")
    if replicas and not ray:
        raise UsageError(f"--replicas {replicas} are of a cluster; add --ray")
    threads = threads or (1 if ray else 0)

    load = partial(_opened, _placed(source, ray), _placed(collection, ray), _placed(original, ray),
                   (_placed(index, ray), _placed(original_index, ray)), _placed(recogniser, ray), threads)  # fmt: skip

    def ready(url: str) -> None:
        say(f"search page: {url}  (Ctrl-C stops)")

    if ray:
        where = {"host": host, "port": port, "replicas": replicas, "threads": threads}
        plugins.require("slimseek.replicas").serve_on(load, ray, rules, ready=ready, **where)
    else:
        service.serve(*load(), host=host, port=port, everyone=everyone, rules=rules, load=load, ready=ready)


def _placed(name: str, ray: str) -> str:
    """A path as it is found from any folder, where a cluster's workers open it in theirs."""
    return os.path.abspath(name) if ray and name and Path(name).exists() else name


def _opened(
    source: str, collection: str, original: str, indexes: tuple[str, str], recogniser: str, threads: int
) -> Served:
    """Everything that is served, from the disk; see :func:`serve_on`."""
    served: type[Served] = plugins.require("slimseek.serving.swap").Served
    encoder = choose.choose(source, threads or None)
    if recogniser and encoder.spec.modality != "text":
        raise UsageError(f"--recogniser makes texts of what is said, and {encoder.name} takes none; leave it out")
    heard = choose.recogniser(recogniser, threads or None) if recogniser else None
    opened = _search(encoder, source, collection, indexes[0])
    other = _search(choose.choose(original, threads or None), source, collection, indexes[1]) if original else None
    return served(opened, other, heard)


def _search(encoder: Encoder, source: str, collection: str, index: str) -> search.Search:
    """An index that was made before, or else one of the collection, or of the one that ``source`` was judged by, that
    lasts as long as it is served.
    """
    if index:
        return search.open(Path(index), encoder)
    corpus, media = documents.searched_by(source, collection, encoder.spec)
    return search.session(encoder, corpus, media=media)
