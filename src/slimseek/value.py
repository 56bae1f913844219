"""The base of all plain values: frozen, checked when they are read, to JSON and back."""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plain frozen value; a field that the type does not know is refused when it is read from a file."""
