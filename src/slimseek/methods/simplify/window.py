"""A recogniser's window of fixed length becomes shorter: whoever searches by voice says little at a time."""

from __future__ import annotations

from typing import Literal

from slimseek import choose
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.schema import Model, Samples


class ShorterWindow(Step, frozen=True, kw_only=True):
    """Cut a Whisper's window, which costs the same however little is said in it, and the places that it no more has.

    Recordings that fit are heard nearly as before. Longer ones are cut where they are quiet, window by window, and a
    window that begins in their middle is heard worse; ``distil.transcript`` may follow. Or they are heard as before, in
    the ``whole`` window, and take their time.

    Attributes:
        seconds: of the new window.
        longer: what becomes of recordings that do not fit: they are ``cut``, or heard in the ``whole`` window, whose
            places then stay.
    """

    seconds: int = 10
    longer: Literal["cut", "whole"] = "cut"

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise UsageError(f"simplify.window: seconds is {self.seconds}; 1 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """The configurations say how many places of the encoder stay, or count."""
        if not model.spec.sound or not model.spec.sound.seconds:
            raise UsageError("simplify.window: this model has no window of recordings")
        if self.seconds >= model.spec.sound.seconds:
            raise NoEffect(f"simplify.window: the model's window has {model.spec.sound.seconds:g} seconds")
        if self.longer == "whole" and self.seconds == model.spec.sound.short:
            raise NoEffect(f"simplify.window: the model has a short window of {self.seconds} seconds already")
        try:
            return choose.family(model).windowed(model, self.seconds, whole=self.longer == "whole")
        except UsageError as error:
            raise UsageError(f"simplify.window: {error}") from None

    def outline(self, model: Model, samples: Samples) -> Model:
        """The same: places but leave."""
        return self.apply(model, samples)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """The window before and after."""
        assert before.spec.sound
        assert after.spec.sound
        if self.longer == "whole":
            return (
                f"windows of {self.seconds} seconds for what fits in them, {after.spec.sound.seconds:g} for the rest",
            )
        return (f"windows of {after.spec.sound.seconds:g} seconds, {before.spec.sound.seconds:g} before",)
