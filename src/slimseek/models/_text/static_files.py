"""What a table of token vectors is as a model, and how sentence-transformers and model2vec store one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.models._text import files as text_files
from slimseek.schema import Array, Layer, Model, ModelSpec

TABLE = "embedding.weight"
MODULE = "StaticEmbedding"
MODEL2VEC = "model2vec"
LONGEST = 32768
"""Tokens: what uses these models elsewhere cuts no text, and memory for one must have a bound."""


def is_table(path: Path) -> bool:
    """Whether a folder's ``modules.json`` asks for a StaticEmbedding, or its ``config.json`` is model2vec's."""
    marks = {path / "modules.json": f'{MODULE}"', path / "config.json": f'"{MODEL2VEC}"'}
    return any(file.is_file() and mark.encode() in file.read_bytes() for file, mark in marks.items())


def static_model(table: Array, tokenizer: bytes, files: Mapping[str, bytes], normalise: bool = True) -> Model:
    """A model of a table.

    Args:
        table: float32 or float16 [vocabulary, dim], weights of tokens in it.
        tokenizer: tokenizer.json; what it puts around a text is taken out, and padding and truncation with it.
        files: small files to keep beside it, such as prompts.
        normalise: bring vectors to length one.

    Raises:
        UsageError: the tokenizer cannot be read, or has an id that the table has no row for.
    """
    document = msgspec.json.decode(text_files.tokenizer_without_padding(tokenizer))
    kinds = (MODULE, *(["Normalize"] if normalise else []))
    listed = [
        {"idx": number, "name": str(number), "path": "" if number == 0 else f"{number}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    kept = dict(files) | {
        TOKENIZER: msgspec.json.encode(document | {"post_processor": None}),
        "modules.json": msgspec.json.format(msgspec.json.encode(listed), indent=2),
    }
    most = text_files.largest_id(kept[TOKENIZER])
    if most >= len(table):
        raise UsageError(f"the tokenizer has the id {most}, and the table {len(table)} rows")
    spec = ModelSpec(
        family="static",
        modality="text",
        output="embedding",
        inputs=text_files.INPUTS,
        dim=table.shape[1],
        normalised=normalise,
        preprocess=text_files.preprocess(kept, LONGEST, TABLE),
    )
    return Model(spec=spec, files=kept, tensors={TABLE: table},
                 layers=(Layer(name="embedding", kind="embedding", weight=TABLE),))  # fmt: skip


def read_table(file: Path) -> Array:
    """Float [vocabulary, dim], one row for each id: model2vec may store rows that several ids share, and the weights of
    ids beside them.

    Raises:
        UsageError: the file cannot be read, or holds no table.
    """
    try:
        stored = load_file(reading.check_file(file))
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read as safetensors: {error}") from error
    table = stored.get(TABLE, stored.get("embeddings"))
    if table is None or table.ndim != 2:
        raise UsageError(f"{file} has no table {TABLE} or embeddings; it has {', '.join(sorted(stored)) or 'nothing'}")
    if TABLE in stored:
        return table
    if "mapping" in stored:
        table = table[stored["mapping"]]
    return table if "weights" not in stored else table.astype(np.float32) * stored["weights"][:, None]
