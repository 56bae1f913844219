"""Nearest-neighbour indexes, one a file; what vectors will take is known before any is made."""

from slimseek.indexes._vectors import bytes_of, rescore_bytes_of

__all__ = ["bytes_of", "rescore_bytes_of"]
