"""A recogniser that earlier steps made smaller learns to say what its teacher hears: no transcripts are needed."""

from __future__ import annotations

import dataclasses

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.methods.distil._step import DistillationStep
from slimseek.schema import Model, Samples
from slimseek.training.train import fit, trained


class TranscriptDistillation(DistillationStep, frozen=True, kw_only=True):
    """Train all weights of a recogniser with a decoder to say what the teacher says (Kim & Rush, 2016).

    The teacher hears each recording once and writes down what is said in it; the student, which may have another
    vocabulary, fewer blocks, or a shorter window, learns each next token behind those before it. Recordings are the
    train queries that fit into the student's window, those of dev where there are none; nobody needs to know what is
    said in them. The state with the least loss on held-out recordings is kept.

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    learning_rate: float = 3e-5

    @property
    def asks_teacher(self) -> bool:
        """The teacher gives transcripts, and no vectors."""
        return False

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        teacher = self._learns_from(model, samples)
        self._check(model, "the model")
        self._check(teacher, "its teacher")
        transcripts = plugins.require("slimseek.training.transcripts")
        network, settings = choose.family(model).trainable(model), self._training()
        found = transcripts.examples(
            model, self._learned_on(model, samples), transcripts.heard_by(teacher, self.cache), settings
        )  # fmt: skip
        loss = plugins.load("losses", "transcript")()
        self._check_fitted(fit(network, found, loss, settings, label="distillation of transcripts"))
        return dataclasses.replace(model, tensors=trained(model, network))

    def _check(self, model: Model, who: str) -> None:
        if not model.spec.autoregressive:
            raise UsageError(f"distil.transcript: {who} is no recogniser with a decoder")

    def _learned_on(self, model: Model, samples: Samples) -> list[str]:
        """Recordings, which no texts can add to."""
        if self.texts or self.sentences:
            raise UsageError(
                "distil.transcript: a recogniser learns from recordings; texts and sentences are for texts"
            )
        return list(samples.texts)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was trained, by how much data, and on whose transcripts."""
        changed = sum(after.tensors[name] is not tensor for name, tensor in before.tensors.items())
        return (
            f"{changed} of {len(before.tensors)} tensors trained for {self.steps} steps of {self.batch_size} "
            f"recordings on what {self._whose} hears",
        )
