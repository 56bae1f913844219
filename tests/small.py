"""Small real things for tests: an encoder of a few kilobytes that needs no runtime."""

from __future__ import annotations

import string

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from slimseek.encoder import Encoder
from slimseek.inputs.text import TextInput
from slimseek.schema import Array, Batch, ModelSpec, TensorSpec, TextPreprocess

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("apple", "bridge", "cat", "dog", "engine", "forest", "river", "stone", "the", "winter")

CORPUS = {
    "d1": "The cat sleeps near the river.",
    "d2": "A dog runs through the winter forest.",
    "d3": "An engine of stone and iron.",
    "d4": "The bridge over the river is made of stone.",
    "d5": "Apple trees in winter.",
    "d6": "A cat and a dog share an apple.",
}


def tiny_tokenizer() -> bytes:
    """A WordPiece ``tokenizer.json``: ten words, and letters into which every other word falls."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return tokenizer.to_str().encode()


def tiny_encoder(*, name: str = "tiny", dim: int = 32, noise: float = 0.0, query_prefix: str = "") -> Encoder:
    """A bag of words: each token id has a random row of a table, a text is the mean of its rows at length one.

    Args:
        name: the encoder's name.
        dim: width of the vectors.
        noise: standard deviation of what is added to the table, whose own is 1: a compressed twin of the same name.
        query_prefix: put before queries.
    """
    random = np.random.default_rng(0)
    table = random.standard_normal((512, dim))
    table += noise * random.standard_normal(table.shape)

    def encode(batch: Batch) -> Array:
        mask = batch["attention_mask"][..., None].astype(np.float64)
        means = (table[batch["input_ids"]] * mask).sum(1) / mask.sum(1)
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    inputs = tuple(
        TensorSpec(name=tensor, dtype="int64", shape=("batch", "sequence"))
        for tensor in ("input_ids", "attention_mask")
    )
    spec = ModelSpec(
        family="transformer",
        modality="text",
        output="embedding",
        inputs=inputs,
        dim=dim,
        normalised=True,
        preprocess=TextPreprocess(max_length=64, query_prefix=query_prefix),
    )
    return Encoder(
        name=name,
        spec=spec,
        input=TextInput(spec, tiny_tokenizer()),
        encode=encode,
        model=None,
        shipped={"weights": table.size * 4, "rest": 2000},
        runtime="numpy",
        threads=1,
    )
