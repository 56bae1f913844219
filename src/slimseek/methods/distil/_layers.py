"""Which layer learns from which, and whether two models read a text as the same tokens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.inputs.text import TOKENIZER
from slimseek.schema import Array, Model, QuantizedTensor

BLOCK = re.compile(r"^transformer\.(?:[A-Za-z_]+\.)*?(\d+)\.(.+)$")
LONGEST_SHOWN = 60


def layer_map(model: Model, teacher: Model, depths: tuple[int, int], asked: Mapping[int, int] | None) -> dict[int, int]:
    """The teacher's block for each of the student's that learns from one; both are numbered from 0.

    Args:
        model: the student.
        teacher: its teacher.
        depths: how many blocks the student and the teacher have.
        asked: the map itself; ``None`` for the blocks that the student kept when it was made from the teacher, and
            where it has no weights of the teacher's, blocks evenly spread with the last from the last.

    Raises:
        UsageError: the map is empty or names a block that is not there.
    """
    student, taught = depths
    if asked is None:
        even = {place: max(0, round((place + 1) * taught / student) - 1) for place in range(student)}
        return _kept(model, teacher, student) or even
    wrong = [f"{own}: {other}" for own, other in asked.items() if not (0 <= own < student and 0 <= other < taught)]
    if wrong or not asked:
        raise UsageError(
            f"distil.hidden: layers has {', '.join(wrong) or 'no entry'}; blocks 0 to {student - 1} of the student and "
            f"0 to {taught - 1} of the teacher are there"
        )
    return dict(sorted(asked.items()))


def shared_tokens(model: Model, teacher: Model, items: Sequence[str], max_tokens: int) -> tuple[Model, Array]:
    """The student, reading no more tokens than the teacher does, and the teacher's id for each of its ids, int64.

    Raises:
        UsageError: an item is other tokens to the teacher; the text names the first.
    """
    longest = min(max_tokens, *(_longest(one) for one in (model, teacher)))
    cut, other = (_cut(one, longest) for one in (model, teacher))
    own, others = (Tokenizer.from_buffer(one.files[TOKENIZER]) for one in (model, teacher))
    rows = (_pieces(one, items, read) for one, read in ((cut, own), (other, others)))
    for item, found, wanted in zip(items, *rows, strict=True):
        if found != wanted:
            raise UsageError(
                f"distil.hidden: {item[:LONGEST_SHOWN]!r} is {len(found)} tokens to the student and {len(wanted)} "
                f"others to its teacher, so that their states cannot be compared; distil.embedding takes any teacher"
            )
    assert teacher.spec.preprocess is not None
    vocabulary, known = own.get_vocab(with_added_tokens=True), others.get_vocab(with_added_tokens=True)
    ids = np.full(max(vocabulary.values()) + 1, teacher.spec.preprocess.pad_id, np.int64)
    for token, number in vocabulary.items():
        ids[number] = known.get(token, ids[number])
    return cut, ids


def _kept(model: Model, teacher: Model, depth: int) -> dict[int, int] | None:
    """The teacher's block of which each block of the student still has a tensor, bit for bit."""
    blocks: dict[str, dict[int, Array]] = {}
    for name, tensor in teacher.tensors.items():
        match = BLOCK.match(name)
        if match and not isinstance(tensor, QuantizedTensor):
            blocks.setdefault(match[2], {})[int(match[1])] = tensor
    found: dict[int, int] = {}
    for name, tensor in model.tensors.items():
        match = BLOCK.match(name)
        if not match or isinstance(tensor, QuantizedTensor) or int(match[1]) in found or not _varies(tensor):
            continue
        same = [place for place, other in blocks.get(match[2], {}).items() if np.array_equal(tensor, other)]
        if len(same) == 1:
            found[int(match[1])] = same[0]
    return dict(sorted(found.items())) if set(found) == set(range(depth)) else None


def _varies(tensor: Array) -> bool:
    """Whether a tensor can tell blocks apart: not all zeros or ones."""
    return tensor.size > 1 and bool((tensor != tensor.reshape(-1)[0]).any())


def _longest(model: Model) -> int:
    assert model.spec.preprocess is not None
    return model.spec.preprocess.max_length


def _cut(model: Model, longest: int) -> Model:
    assert model.spec.preprocess is not None
    preprocess = msgspec.structs.replace(model.spec.preprocess, max_length=longest)
    return dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, preprocess=preprocess))


def _pieces(model: Model, items: Sequence[str], tokenizer: Tokenizer) -> list[list[str]]:
    read: Any = reader(model.spec, model.files)
    return [[str(tokenizer.id_to_token(number)) for number in row] for row in read.rows(items, read.document_prefix)]
