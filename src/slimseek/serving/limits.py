"""Who may ask, and how much: a key, a rate for each client, and the size of a request."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from slimseek.errors import UsageError

MOST_CLIENTS = 10_000
SECONDS = {"s": 1, "m": 60, "h": 3600}
SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many requests a client may send: so many at once, and so many a second in the long run."""

    burst: float
    a_second: float


def rate(text: str) -> Rate | None:
    """``20/s``, ``100/m`` or ``1000/h``: the burst is that number, too; ``None`` for an empty text.

    Raises:
        UsageError: it is written otherwise, or is not above 0.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/([smh])", text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"the rate is {text!r}; it must be a number above 0 a second, minute or hour, such as 20/s")
    number = float(found[1])
    return Rate(burst=max(1.0, number), a_second=number / SECONDS[found[2]])


class Buckets:
    """A bucket of tokens for each client, filled at the rate; of many clients, those seen last are remembered."""

    def __init__(self, allowed: Rate, most_clients: int = MOST_CLIENTS) -> None:
        self._allowed = allowed
        self._most_clients = most_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """Take a token of the client's: 0 where there was one, else the seconds until there is.

        Args:
            client: its address.
            now: seconds on a clock that never goes back.
        """
        left, since = self._buckets.pop(client, (self._allowed.burst, now))
        left = min(self._allowed.burst, left + max(0.0, now - since) * self._allowed.a_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._allowed.a_second
        self._buckets[client] = (left - (wait == 0), now)
        if len(self._buckets) > self._most_clients:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)


class Key:
    """A secret that requests must name, kept as its hash and compared in constant time."""

    def __init__(self, secret: str) -> None:
        self._digest = hashlib.sha256(secret.encode()).digest()

    def fits(self, authorization: str, x_api_key: str) -> bool:
        """Whether one of both headers carries it: ``Authorization: Bearer KEY``, or ``X-API-Key: KEY``."""
        kind, _, bearer = authorization.partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else x_api_key
        return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._digest)


def key(file: str) -> Key | None:
    """The key in a file, without space around it; ``None`` where no file is named.

    Raises:
        UsageError: it cannot be read, is shorter than 16 characters, or holds what no header can carry.
    """
    if not file:
        return None
    try:
        secret = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file}: {getattr(error, 'strerror', None) or error}") from error
    if len(secret) < SHORTEST_KEY or not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise UsageError(f"--api-key-file {file}: a key is a line of {SHORTEST_KEY} or more letters, digits and signs "
                         "without a space, such as openssl rand -hex 32 makes")  # fmt: skip
    return Key(secret)


def check_host(host: str, secret: Key | None, everyone: bool) -> None:
    """Refuse to listen where other machines can ask, unless they need a key or all of them are meant.

    Raises:
        UsageError: the address is not this machine's own alone.
    """
    if secret is None and not everyone and not _only_here(host):
        raise UsageError(f"--host {host} lets other machines ask; give --api-key-file, or --open to answer everyone")


def _only_here(host: str) -> bool:
    """Whether a name or address is the loopback; an empty one is all addresses, and an unknown name leads nowhere."""
    if not host:
        return False
    try:
        places = socket.getaddrinfo(host, None)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(place[4][0]).partition("%")[0]).is_loopback for place in places)
