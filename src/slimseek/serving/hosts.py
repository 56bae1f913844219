"""By which names the service may be called, and whose pages may ask it.

A page of another site can make its own name lead to 127.0.0.1 (DNS rebinding), and is then of the same origin as this
service for a browser. The name stays its own: the ``Host`` header gives it away.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from slimseek.errors import UsageError

ANY = "*"
EVERYWHERE = frozenset({"", "0.0.0.0", "::"})
READS = frozenset({"GET", "HEAD"})
"""Methods that give a page of another site nothing it can read, since no answer allows that."""
_HEADER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+)(?::\d{0,5})?")
_NAME = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_-]*[0-9A-Za-z_])?(?:\.[0-9A-Za-z_-]+)*")
_LONGEST_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Names and addresses by which requests may call the service, besides those of the loopback.

    Attributes:
        listened: what the service listens on, in lower case. Where that is all of the machine every address is taken,
            since no page can make an address lead elsewhere.
        allowed: names by which others call it, such as a proxy, in lower case; ``*`` for any.
    """

    listened: str = "127.0.0.1"
    allowed: frozenset[str] = field(default_factory=frozenset)

    def refusal(self, host: str | None) -> str | None:
        """Why a request with this ``Host`` header is not answered, in one line; ``None`` where it is.

        The port is not looked at: tunnels and containers give it another number. A request without the header comes
        from no browser.
        """
        if host is None or ANY in self.allowed:
            return None
        found = _HEADER.fullmatch(host)
        name = _plain(found[1]) if found else ""
        everywhere = self.listened in EVERYWHERE and _address(name) is not None
        if name and (name in self.allowed or name == self.listened or _of_loopback(name) or everywhere):
            return None
        shown = _shown(name or host)
        return f"this service is not called {shown}; if it is to be, start it with --allow-host {shown}"

    def own(self, origin: str, host: str | None) -> bool:
        """Whether pages of this ``Origin`` are the service's own: behind its scheme it is the ``Host`` header, or a
        name that was allowed.
        """
        try:
            parts = urlsplit(origin)
            name = _plain(parts.hostname or "")
        except ValueError:
            return False
        return bool(name) and (parts.netloc.lower() == (host or "").lower() or name in self.allowed)


def hosts(listened: str, allowed: Sequence[str] = ()) -> Hosts:
    """Those of a service that listens on an address or name, and is called by others too.

    Args:
        listened: as in ``--host``.
        allowed: names without a port, such as ``search.example.org``; ``*`` for any.

    Raises:
        UsageError: one of them is no name.
    """
    for name in allowed:
        if name != ANY and not _NAME.fullmatch(_plain(name)) and _address(_plain(name)) is None:
            raise UsageError(
                f"--allow-host {_shown(name)}: give a name alone, such as search.example.org, or {ANY} for any"
            )
    return Hosts(listened=_plain(listened), allowed=frozenset(map(_plain, allowed)))


def _plain(name: str) -> str:
    """Lower case, without the brackets of an address or the dot that ends a full name."""
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _of_loopback(name: str) -> bool:
    """Names that every browser sends to this machine, and its addresses."""
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _shown(name: str) -> str:
    """A name as it came, if it is short and printable."""
    return name if name.isascii() and name.isprintable() and 0 < len(name) <= _LONGEST_SHOWN else "so"
