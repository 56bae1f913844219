"""Memory that was freed and that the allocator keeps."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Give what was freed back to the system, where the C library is glibc; elsewhere nothing happens.

    Exporting a graph frees hundreds of megabytes in pieces between others that stay, and glibc keeps them for later:
    a search over MiniLM, which needs 1.2 GB between its trials, was seen to hold 2.2.
    """
    gc.collect()
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
