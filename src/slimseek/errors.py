"""Every error that a user can cause or mend, each with the exit code that the command line returns for it."""

import re

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
