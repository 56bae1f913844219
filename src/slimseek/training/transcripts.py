"""What a recogniser with a decoder is trained on: recordings, and what is said in them or what a teacher hears there.

What a teacher heard is kept on disk, a file for each teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from slimseek import choose, plugins
from slimseek.fingerprint import fingerprint
from slimseek.folder import write_atomically
from slimseek.inputs.sound import SoundInput
from slimseek.inputs.text import TOKENIZER
from slimseek.progress import say, track
from slimseek.recognise import IDS, decoded, together
from slimseek.schema import Array, Function, Model
from slimseek.training import targets
from slimseek.training.examples import Example, Examples, Lazy
from slimseek.training.teacher import cache_folder, content
from slimseek.training.train import Training
from slimseek.value import Value

LABEL = "transcripts of the teacher"
PART = 64
"""Recordings that a teacher hears between two writes of its file: what a run that is killed loses at most."""
TOKENS = "tokens"
UNSAID = -1
"""In the place of a token that is not asked for: in the prompt, and behind the end."""


class Heard(Value, frozen=True):
    """What is said in a recording.

    Attributes:
        text: as it is written.
        language: of which the recogniser has several; ``""`` where it has one.
    """

    text: str
    language: str = ""


def examples(
    model: Model, items: Sequence[str], heard: Callable[[Sequence[str]], Sequence[Heard]], settings: Training
) -> Examples:
    """Batches of recordings with the transcripts that the network reads, and of which it should say each next token.

    Recordings longer than the model's window are left out, since their transcript has more than it can hear. A quarter
    of the rest, at most 128, is held out.

    Args:
        model: reads the recordings.
        items: their paths.
        heard: recordings to what is said in each.
        settings: how many are needed, and the seed.

    Raises:
        UsageError: fewer than four recordings are short enough, or one cannot be read.
    """
    read = SoundInput(model.spec)
    fitting = [item for item in dict.fromkeys(items) if read.fits(item)]
    if len(fitting) < len(set(items)):
        say(f"{len(set(items)) - len(fitting)} of {len(set(items))} recordings are longer than the model's window of "
            f"{_window(model):g} seconds, and left out")  # fmt: skip
    found = targets.examples(model, fitting, lambda chosen: _rows(model, heard(chosen)), settings)
    return Examples(train=_read_back(found.train), held_out=_read_back(found.held_out))


def heard_by(teacher: Model, cache: str = "") -> Callable[[Sequence[str]], list[Heard]]:
    """What a recogniser hears in recordings, each no longer than its window.

    It is kept under the recordings' content in the folder ``cache``, ``""`` for that of the teachers' vectors, so that
    a run that is killed loses 64 recordings at most, and a later one needs not hear them again.

    Args:
        teacher: runs as it is used.
        cache: see :func:`slimseek.training.teacher.vectors`.
    """

    def heard(items: Sequence[str]) -> list[Heard]:
        folder = cache_folder(cache)
        file = folder / f"{fingerprint(teacher)}.json" if folder else None
        keys = [content(item, text=False).hex() for item in items]
        known = _read(file)
        new = [(key, item) for key, item in zip(keys, items, strict=True) if key not in known]
        functions = choose.family(teacher).computed(teacher, plugins.require("torch").get_num_threads()) if new else {}
        if file and new:
            say(f"{LABEL} are kept in {folder}")
        with track(LABEL, len(new)) as advance:
            for start in range(0, len(new), PART):
                some = new[start : start + PART]
                found = _listened(teacher, functions, [item for _, item in some])
                known |= zip((key for key, _ in some), found, strict=True)
                if file:
                    write_atomically(file, msgspec.json.encode(known))
                advance(len(some))
        return [known[key] for key in keys]

    return heard


def _listened(teacher: Model, functions: Mapping[str, Function], items: Sequence[str]) -> list[Heard]:
    """What the teacher hears now, computed by its functions."""
    assert teacher.spec.decoding
    read, decoding = SoundInput(teacher.spec), teacher.spec.decoding
    names = {token: language for language, token in decoding.languages.items()}
    tokenizer, found = _tokenizer(teacher), []
    for chosen in together(enumerate(read.rows(items)), read):
        batch = read.batch([row for _, row in chosen])
        for prompt, own in decoded(functions["encoder"], functions["decoder"], decoding, batch):
            text = tokenizer.decode(own, skip_special_tokens=True).strip()
            found.append(Heard(text=text, language=names[prompt[1]] if names else ""))
    return found


def _rows(model: Model, heard: Sequence[Heard]) -> dict[str, Array]:
    """``input_ids`` int64 [n, longest], which the decoder reads, and ``tokens``, what it should say behind each; -1 for
    what is its prompt's, or follows the end.
    """
    decoding, tokenizer = model.spec.decoding, _tokenizer(model)
    assert decoding
    rows = []
    for one in heard:
        said = tokenizer.encode(f" {one.text}", add_special_tokens=False).ids[: decoding.most] if one.text else []
        rows.append((decoding.prompt_in(one.language), [*said, decoding.end]))
    longest = max(len(prompt) + len(said) for prompt, said in rows) - 1
    ids = np.full((len(rows), longest), decoding.end, np.int64)
    tokens = np.full((len(rows), longest), UNSAID, np.int64)
    for row, (prompt, said) in enumerate(rows):
        ids[row, : len(prompt) + len(said) - 1] = [*prompt, *said[:-1]]
        tokens[row, len(prompt) - 1 : len(prompt) + len(said) - 1] = said
    return {IDS: ids, TOKENS: tokens}


def _read_back(found: Sequence[Example]) -> Lazy:
    """The batches, in which the network is given what it reads, no wider than the longest of them."""

    def make(number: int) -> Example:
        inputs, target = found[number]
        assert isinstance(target, Mapping)
        width = int(np.flatnonzero((target[TOKENS] != UNSAID).any(0))[-1]) + 1
        return inputs | {IDS: target[IDS][:, :width]}, {TOKENS: target[TOKENS][:, :width]}

    return Lazy(len(found), make)


def _window(model: Model) -> float:
    assert model.spec.sound
    return model.spec.sound.seconds


def _tokenizer(model: Model) -> Tokenizer:
    return Tokenizer.from_buffer(model.files[TOKENIZER])


def _read(file: Path | None) -> dict[str, Heard]:
    """What is known; nothing where the file is missing or broken."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Heard]) if file else {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
