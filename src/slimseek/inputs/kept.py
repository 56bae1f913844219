"""Small files of a model that its packages hold too."""

from __future__ import annotations

import json
from functools import lru_cache

from slimseek.inputs.text import TOKENIZER
from slimseek.inputs.vocabulary import FILE as TOKENS
from slimseek.schema import Model

KEPT = frozenset({TOKENIZER, TOKENS})


def kept(model: Model) -> dict[str, bytes]:
    """The files as a package holds them, by name: a recogniser's tokenizer without what it would encode by.

    A recogniser turns tokens into text and never text into tokens; the merges of a byte-level BPE, two fifths of its
    file, serve only the latter, and any tokenizers library decodes without them.
    """
    files = {name: model.files[name] for name in KEPT & model.files.keys()}
    if model.spec.output == "transcript" and TOKENIZER in files:
        files[TOKENIZER] = _decoding(files[TOKENIZER])
    return files


@lru_cache(maxsize=4)
def _decoding(tokenizer: bytes) -> bytes:
    """A ``tokenizer.json`` that decodes as before; one of another kind than BPE as it is. The last few are kept, since
    each prediction of a size asks.
    """
    found = json.loads(tokenizer)
    if found["model"].get("type") != "BPE":
        return tokenizer
    found["model"]["merges"] = []
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
