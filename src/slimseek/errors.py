"""Every error that a user can cause or mend, each with the exit code that the command line returns for it."""

import errno
import os
import re

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


FULL = (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
SYSTEM = (*FULL, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENAMETOOLONG,
          errno.ELOOP, errno.EAGAIN, errno.EBUSY)  # fmt: skip
"""What a system says of a disk, of permissions and of its own limits: no fault of a program."""
SHORT_OF_MEMORY = ("not enough memory", "bad allocation", "std::bad_alloc", "Cannot allocate memory",
                   "Failed to allocate memory", "can't start new thread",
                   "failed to map segment from shared object")  # fmt: skip


class SlimseekError(Exception):
    """Base of all errors raised on purpose; its text is one line: what was wrong, the value, what is allowed."""

    exit_code = 1


class UsageError(SlimseekError):
    """A wrong argument, path, file or collection: something the caller can mend."""

    exit_code = 2


class NoEffect(UsageError):
    """A step that would change nothing, so that nothing is claimed for it."""


class ArtifactError(UsageError):
    """A folder written by slimseek that is truncated, changed, of another kind, or from a newer version."""


class GateFailed(SlimseekError):
    """A result that does not keep what was asked; the nearest result is still written."""

    exit_code = 3


class BudgetUnmet(GateFailed):
    """A budget that no trial met; the nearest model is still written."""


class MissingExtra(SlimseekError):
    """A library that is needed here is not installed; the text says which ``pip install`` brings it."""

    exit_code = 4

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; run: pip install 'slimseek[{extra}]'")
        self.library = library
        self.extra = extra


def first_line(error: BaseException) -> str:
    """What an error of a library says first, which is the reason; the rest are stacks. Its kind where there is none."""
    lines = COLOUR.sub("", str(error)).splitlines()
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)


def full_disk(error: BaseException) -> str | None:
    """Why nothing more can be written, where that is what an error says; ``None`` for all others.

    Libraries that are not written in Python have kinds of their own for it, and tell it in the system's words.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in FULL:
        return error.strerror
    if isinstance(error, OSError) and error.errno is None and text.endswith(" written"):
        return f"not all could be written ({text})"  # numpy says no more of a full disk
    return next((os.strerror(code) for code in FULL if os.strerror(code) in text), None)


def of_the_system(error: BaseException) -> str | None:
    """What is wrong with disk, permissions or memory, where that is what an error says; ``None`` for all others."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in SHORT_OF_MEMORY):
        return "there is not enough memory; give it more, or take a smaller model or collection"
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return full_disk(error)
