"""Recordings to text with the two functions of a recogniser: its encoder, and its decoder one token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from tokenizers import Tokenizer

from slimseek.errors import UsageError
from slimseek.inputs import vocabulary as vocabularies
from slimseek.inputs.sound import SoundInput
from slimseek.inputs.text import TOKENIZER
from slimseek.preprocess import Decoding
from slimseek.schema import Array, Batch, Encode, Function, Model, ModelSpec, Transcribe

FEATURES = "input_features"
IDS, LOGITS = "input_ids", "logits"
CROSS, PAST, PRESENT = "cross_", "past_", "present_"
"""The encoder gives ``cross_NAME`` for each of the decoder's keys and values, which its steps read again and again; a
step also reads ``past_NAME``, of the tokens before, and gives ``present_NAME``: the same with its own behind them.
All are [batch, heads, places, width of a head].
"""
LONGEST_LOOP = 16
LOOPED = 20
"""Tokens that a repeated part takes together before it counts as a loop; and it stands four times at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recogniser:
    """A model ready to transcribe: what evaluation measures, voice search uses and deployment compares.

    Attributes:
        name: for reports.
        spec: what it takes and gives.
        input: recordings to arrays, window by window.
        transcribe: arrays of windows to their texts.
        scores: arrays of windows to the scores of what is said first, float32 [n, tokens].
        model: its weights as data where it can be compressed; ``None`` for a deployed package.
        shipped: bytes by kind (``weights``, ``rest``) that must be shipped to run it.
        runtime: what runs it, for reports.
        threads: how many threads it was opened with.
    """

    name: str
    spec: ModelSpec
    input: SoundInput
    transcribe: Transcribe
    scores: Encode
    model: Model | None
    shipped: dict[str, int]
    runtime: str
    threads: int

    def transcripts(self, items: Sequence[str], advance: Callable[[int], None] | None = None) -> list[str]:
        """The text of each recording, those of its windows joined by blanks; ``""`` for silence.

        Args:
            items: paths of recordings.
            advance: told how many recordings are done, as they are.

        Raises:
            UsageError: an item cannot be read.
        """
        found: list[list[str]] = [[] for _ in items]
        done = 0
        for chosen in together(self._windows(items), self.input):
            for (place, _), text in zip(chosen, self.transcribe(self.input.batch([row for _, row in chosen])),
                                        strict=True):  # fmt: skip
                found[place].append(text)
            if advance is not None and chosen[-1][0] > done:
                advance(chosen[-1][0] - done)
                done = chosen[-1][0]
        if advance is not None and done < len(items):
            advance(len(items) - done)
        return [" ".join(filter(None, texts)) for texts in found]

    def begin(self, item: str) -> Array | None:
        """Scores of what is said first in a recording, float32 [tokens]: what a person waits for before anything can
        be shown; ``None`` for silence.
        """
        for _, row in self._windows([item]):
            first: Array = self.scores(self.input.batch([row]))[0]
            return first
        return None

    def _windows(self, items: Sequence[str]) -> Iterator[tuple[int, Array]]:
        """Place of each recording with each of its windows that is not silent."""
        for place, item in enumerate(items):
            for row in self.input.windows(item):
                if np.ptp(row) > 0:
                    yield place, row


def transcriber(functions: Mapping[str, Function], spec: ModelSpec, files: Mapping[str, bytes]) -> Transcribe:
    """A recogniser's functions as one: arrays of windows to their texts.

    Args:
        functions: ``encoder`` and ``decoder``, or ``model`` alone, whose one result is scores for each frame.
        spec: says how scores become tokens.
        files: the tokenizer, or the file of tokens, is among them.

    Raises:
        UsageError: the tokenizer or the file of tokens is missing or broken.
    """
    assert spec.decoding
    if spec.decoding.kind == "ctc":
        return _framewise(functions["model"], files)
    try:
        tokenizer = Tokenizer.from_buffer(files[TOKENIZER])
    except KeyError:
        raise UsageError(f"the model has no {TOKENIZER}") from None
    except Exception as error:  # the library raises bare Exception for any fault of the file
        raise UsageError(f"{TOKENIZER} cannot be read: {error}") from error

    def transcribe(batch: Batch) -> list[str]:
        said = decoded(functions["encoder"], functions["decoder"], _within(spec, batch), batch)
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in said]

    return transcribe


def _within(spec: ModelSpec, batch: Batch) -> Decoding:
    """Of a short window no more tokens are said than it has time for."""
    assert spec.decoding
    if not spec.sound or not spec.sound.short:
        return spec.decoding
    share = batch[FEATURES].shape[-1] * spec.sound.hop / (spec.sound.seconds * spec.sound.rate)
    return msgspec.structs.replace(spec.decoding, most=math.ceil(spec.decoding.most * share))


def _framewise(scores: Function, files: Mapping[str, bytes]) -> Transcribe:
    """The best path of each window."""
    if vocabularies.FILE not in files:
        raise UsageError(f"the model has no {vocabularies.FILE}")
    vocabulary = vocabularies.Vocabulary(files[vocabularies.FILE])
    return lambda batch: vocabulary.heard(next(iter(scores(batch).values())))


def scorer(functions: Mapping[str, Function], decoding: Decoding) -> Encode:
    """A recogniser's functions as scores of the first token behind the prompt; with ``ctc`` of all frames in a row."""

    def scores(batch: Batch) -> Array:
        if decoding.kind == "ctc":
            found = next(iter(functions["model"](batch).values()))
            return found.reshape(len(found), -1)
        cross = functions["encoder"](batch)
        prompts = prompted(functions["decoder"], decoding, cross)
        return functions["decoder"](cross | _nothing(cross) | {IDS: prompts})[LOGITS]

    return scores


def decoded(
    encoder: Function, decoder: Function, decoding: Decoding, batch: Batch
) -> list[tuple[list[int], list[int]]]:
    """The prompt of each window and the ids that are said after it, without the end.

    Each id is the likeliest of those that may be said. A window ends at the end's token where that is sure enough,
    after ``most`` tokens, or where it goes round in circles, of which the first round stays.
    """
    cross = encoder(batch)
    prompts = prompted(decoder, decoding, cross)
    said: list[list[int]] = [[] for _ in prompts]
    active = np.arange(len(prompts))
    state, ids = cross | _nothing(cross), prompts
    for step in range(decoding.most):
        given = decoder(state | {IDS: ids})
        chosen = _likeliest(given[LOGITS], decoding, first=step == 0)
        going = []
        for row, token in enumerate(chosen):
            own = said[active[row]]
            if token != decoding.end:
                own.append(int(token))
            loop = looped(own)
            if loop:
                del own[-loop:]
            if token != decoding.end and not loop:
                going.append(row)
        if not going:
            break
        active, ids = active[going], chosen[going][:, None]
        state = {name: array for name, array in state.items() if name.startswith(CROSS)} | _past(given)
        if len(going) < len(chosen):
            state = {name: array[going] for name, array in state.items()}
    return [(prompt.tolist(), own) for prompt, own in zip(prompts, said, strict=True)]


def prompted(decoder: Function, decoding: Decoding, cross: Batch) -> Array:
    """What the transcript of each window begins with, int64 [batch, tokens]: the language's token stands behind the
    first, asked for or the likeliest.

    Raises:
        UsageError: a language that the model does not have.
    """
    count = len(next(iter(cross.values())))
    if decoding.language or not decoding.languages:
        return np.tile(np.array(decoding.prompt_in(decoding.language), np.int64), (count, 1))
    names = {token: name for name, token in decoding.languages.items()}
    known = np.array(sorted(names), np.int64)
    first = np.full((count, 1), decoding.prompt[0], np.int64)
    logits = decoder(cross | _nothing(cross) | {IDS: first})[LOGITS]
    heard = known[logits[:, known].argmax(1)]
    return np.array([decoding.prompt_in(names[int(token)]) for token in heard], np.int64)


def looped(ids: Sequence[int]) -> int:
    """How many ids at the end only repeat what stands before them; 0 where they are no loop."""
    for length in range(1, LONGEST_LOOP + 1):
        rounds = max(4, -(-LOOPED // length))
        tail = ids[-length * rounds :]
        if len(tail) == length * rounds and all(
            tail[place] == tail[place - length] for place in range(length, len(tail))
        ):
            return length * (rounds - 1)
    return 0


def _likeliest(logits: Array, decoding: Decoding, first: bool) -> Array:
    """Ids int64 [batch] of the greatest of float32 [batch, tokens] that may be said."""
    scores = np.array(logits, np.float32)
    silenced = [*decoding.suppressed, *(decoding.suppressed_first if first else ())]
    scores[:, silenced] = -np.inf
    chosen: Array = scores.argmax(1)
    ends = np.flatnonzero(chosen == decoding.end)
    probability = 1 / np.exp(scores[ends] - scores[ends, decoding.end, None]).sum(1)
    unsure = ends[probability < decoding.end_above]
    scores[unsure, decoding.end] = -np.inf
    chosen[unsure] = scores[unsure].argmax(1)
    return chosen


def _nothing(cross: Batch) -> Batch:
    """The keys and values of no tokens."""
    return {PAST + name.removeprefix(CROSS): np.ascontiguousarray(array[:, :, :0]) for name, array in cross.items()}


def _past(given: Batch) -> Batch:
    """What a step gave as what the next one reads."""
    return {PAST + name.removeprefix(PRESENT): array for name, array in given.items() if name.startswith(PRESENT)}


def together(rows: Iterable[tuple[int, Array]], reader: SoundInput) -> Iterator[list[tuple[int, Array]]]:
    """Numbered rows as they come, neighbours of the same shape together, as many as a batch takes."""
    waiting = iter(rows)
    held: list[tuple[int, Array]] = []
    for one in waiting:
        if held and (one[1].shape != held[0][1].shape or len(held) == reader.rows_in_batch(held[0][1].shape)):
            yield held
            held = []
        held.append(one)
    if held:
        yield held
