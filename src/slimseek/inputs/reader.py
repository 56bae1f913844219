"""The reader of a model's items: texts, or files that hold arrays, pictures or recordings."""

from __future__ import annotations

from collections.abc import Mapping

from slimseek.errors import UsageError
from slimseek.inputs.arrays import ArrayInput
from slimseek.inputs.pictures import PictureInput
from slimseek.inputs.sound import SoundInput
from slimseek.inputs.text import TOKENIZER, TextInput
from slimseek.schema import ModelSpec

Input = TextInput | ArrayInput | PictureInput | SoundInput


def reader(spec: ModelSpec, files: Mapping[str, bytes]) -> Input:
    """What turns items into the arrays that a model takes.

    Args:
        spec: its modality and inputs.
        files: the model's small files; a text model's tokenizer is among them.

    Raises:
        UsageError: the tokenizer is missing or broken.
        MissingExtra: the library that decodes pictures or recordings is missing.
    """
    if spec.picture:
        return PictureInput(spec)
    if spec.sound:
        return SoundInput(spec)
    if spec.preprocess is None:
        return ArrayInput(spec)
    if TOKENIZER not in files:
        raise UsageError(f"the model has no {TOKENIZER}")
    return TextInput(spec, files[TOKENIZER])
