"""A budget as a person writes it: checked before any work, in absolute figures once the original is measured."""

from __future__ import annotations

import re

from slimseek import recipe
from slimseek.errors import UsageError
from slimseek.trial import Budget, Figures
from slimseek.value import Value

MILLISECONDS = {"ms": 1.0, "s": 1000.0}
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Limits(Value, frozen=True):
    """What is asked; an empty string asks nothing.

    Attributes:
        size: of the package: ``10MB``, or a percentage of the original's such as ``12%``.
        latency: of a query, 95 of 100: ``5ms``, or a percentage of the original's.
        memory: of a process that encodes: ``200MB``, or a percentage.
        index: of the vectors of all documents: ``20MB``, or a percentage of those of the original in float32.
        total: of package and index together.
        loss: largest relative loss of quality: ``1%``.
    """

    size: str = ""
    latency: str = ""
    memory: str = ""
    index: str = ""
    total: str = ""
    loss: str = ""

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in self.__struct_fields__):
            raise UsageError("a budget needs a limit; add --max-size, --max-latency, --max-memory, --max-index, "
                             "--max-total or --max-loss")  # fmt: skip
        for name in ("size", "memory", "index", "total"):
            if getattr(self, name):
                _named(f"--max-{name}", getattr(self, name), recipe.byte_size, 1_000_000)
        if self.latency:
            milliseconds(self.latency, 1.0)
        if self.loss:
            recipe.share(self.loss)

    def absolute(self, original: Figures, *, metric: str, target: str, keep_index: bool = False) -> Budget:
        """The budget in bytes and milliseconds.

        Args:
            original: what the original costs in the same runtime.
            metric: whose loss is limited.
            target: the runtime.
            keep_index: whether the vectors of documents stay the original's.
        """
        assert original.size is not None
        assert original.index_size is not None
        whole = original.size + original.index_size

        def most(text: str, of: int | None) -> int | None:
            return recipe.byte_size(text, of or 0) if text else None

        return Budget(
            size=most(self.size, original.size),
            latency_p95=milliseconds(self.latency, original.latency_p95 or 0.0) if self.latency else None,
            memory=most(self.memory, original.memory),
            index_size=most(self.index, original.index_size),
            total=most(self.total, whole),
            max_loss=recipe.share(self.loss) if self.loss else None,
            metric=metric,
            target=target,
            keep_index=keep_index,
        )


def milliseconds(text: str, whole: float) -> float:
    """Milliseconds, from ``5ms``, ``0.5s``, or a percentage of ``whole``.

    Raises:
        UsageError: it is neither, or not above 0.
    """
    value, unit = _number(text, (*MILLISECONDS, "%"))
    if not value:
        raise UsageError(f"{text!r} is not a latency; write 5ms, or a share of the original's such as 50%")
    return value / 100 * whole if unit == "%" else value * MILLISECONDS[unit]


def seconds(text: str) -> float:
    """Seconds, from ``90s``, ``20m`` or ``1h``.

    Raises:
        UsageError: it is not a time above 0.
    """
    value, unit = _number(text, tuple(SECONDS))
    if not value:
        raise UsageError(f"{text!r} is not a time; write 90s, 20m or 1h")
    return value * SECONDS[unit]


def _number(text: str, units: tuple[str, ...]) -> tuple[float, str]:
    """A number above 0 and its unit; 0 where the text is not one."""
    match = re.fullmatch(rf"(\d+\.?\d*|\.\d+) *({'|'.join(map(re.escape, units))})", text.strip().lower())
    return (float(match[1]), match[2]) if match else (0.0, "")


def _named(option: str, text: str, read, whole: int) -> None:  # type: ignore[no-untyped-def]
    try:
        read(text, whole)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None
