"""simplify.vocabulary: rows and ids stay together, for every algorithm of tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from slimseek import choose, integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.text import TOKENIZER
from slimseek.methods.simplify._tokenizer import Vocabulary, rewrite
from slimseek.methods.simplify.vocabulary import _alike
from slimseek.preprocess import Decoding
from slimseek.schema import Layer, Model, ModelSpec, Samples
from small import tiny_bert

TEXTS = ["the cat sleeps near the river", "a dog runs through the winter forest"]
UNSEEN = ["engine of stone", "bridge 7", "Zebra!", "👌🏻 emoji", "搜索", ""]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def cut(model: Model, **parameters: int | str) -> Model:
    step = plugins.load("methods", "simplify.vocabulary")(**parameters)
    return step.apply(model, Samples(calibration=[], texts=TEXTS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


def tokens(model: Model, text: str) -> list[str]:
    tokenizer = Tokenizer.from_buffer(model.files[TOKENIZER])
    return tokenizer.encode(text).tokens


def test_texts_of_the_collection_keep_their_tokens_and_their_vectors(model: Model) -> None:
    smaller = cut(model)
    assert [tokens(smaller, text) for text in TEXTS] == [tokens(model, text) for text in TEXTS]
    before, after = (choose.encoder(side, "side", 1).documents(TEXTS) for side in (model, smaller))
    assert np.array_equal(before, after)


def test_every_id_of_the_cut_tokenizer_is_a_row_and_the_same_row_as_before(model: Model) -> None:
    """CASES P21."""
    table = model.spec.preprocess.token_table
    assert table is not None
    smaller = cut(cut(model), min_count=2)
    old = Tokenizer.from_buffer(model.files[TOKENIZER]).get_vocab()
    new = Tokenizer.from_buffer(smaller.files[TOKENIZER]).get_vocab()
    assert len(new) == smaller.tensors[table].shape[0] < model.tensors[table].shape[0]
    assert sorted(new.values()) == list(range(len(new)))
    for token, row in new.items():
        assert np.array_equal(smaller.tensors[table][row], model.tensors[table][old[token]])


def test_unseen_words_fall_into_pieces_and_nothing_runs_past_the_table(model: Model) -> None:
    smaller = cut(model)
    rows = smaller.tensors[smaller.spec.preprocess.token_table].shape[0]  # type: ignore[index]
    for text in UNSEEN:
        ids = Tokenizer.from_buffer(smaller.files[TOKENIZER]).encode(text).ids
        assert max(ids) < rows
        if "[UNK]" not in tokens(model, text):
            assert "[UNK]" not in tokens(smaller, text)
    assert np.isfinite(choose.encoder(smaller, "cut", 1).documents(UNSEEN)).all()


def test_configuration_names_the_new_size_and_padding(model: Model) -> None:
    smaller = cut(model)
    config = json.loads(smaller.files["config.json"])
    new = Tokenizer.from_buffer(smaller.files[TOKENIZER]).get_vocab()
    assert config["vocab_size"] == len(new)
    assert config["pad_token_id"] == new["[PAD]"] == smaller.spec.preprocess.pad_id


def test_a_quantized_table_is_cut_with_its_scales(model: Model) -> None:
    quantized = plugins.load("methods", "quantize.weights_int")(bits=4, granularity="group", group_size=16).apply(
        model, Samples(calibration=[], texts=[])
    )
    table = model.spec.preprocess.token_table
    assert table is not None
    after_cut, cut_first = cut(quantized), cut(model)
    kept = integers.dequantize(after_cut.tensors[table])
    old = Tokenizer.from_buffer(model.files[TOKENIZER]).get_vocab()
    new = Tokenizer.from_buffer(cut_first.files[TOKENIZER]).get_vocab()
    rows = [old[token] for token in sorted(new, key=lambda token: new[token])]
    assert np.array_equal(kept, integers.dequantize(quantized.tensors[table])[rows])


def test_a_cut_that_changes_nothing_says_so(model: Model) -> None:
    with pytest.raises(NoEffect):
        cut(model, keep_first=10_000)
    with pytest.raises(UsageError, match="min_count is 0"):
        cut(model, min_count=0)


def trained(kind: str) -> Tokenizer:
    corpus = TEXTS * 5 + ["engine of stone and iron", "the bridge over the river is made of stone"] * 5
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(corpus, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel"])
def test_every_algorithm_keeps_the_tokens_of_the_texts(kind: str) -> None:
    before = trained(kind)
    content = before.to_str().encode()
    vocabulary = Vocabulary.read(content)
    used = {number for text in TEXTS for number in before.encode(text).ids}
    kept = sorted(vocabulary.closed(used | vocabulary.always))
    assert len(kept) < before.get_vocab_size()
    files = rewrite({TOKENIZER: content}, vocabulary, {old: new for new, old in enumerate(kept)})
    after = Tokenizer.from_buffer(files[TOKENIZER])
    for text in TEXTS:
        assert after.encode(text).tokens == before.encode(text).tokens
        assert [kept[number] for number in after.encode(text).ids] == before.encode(text).ids
    assert max(after.get_vocab().values()) == len(kept) - 1


def test_the_older_post_processor_with_pairs_is_rewritten(tmp_path: Path) -> None:
    tokenizer = trained("WordLevel")
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    content = tokenizer.to_str().encode()
    vocabulary = Vocabulary.read(content)
    # Specials stand first; drop the padding token's neighbours by keeping only what is always kept, ids reversed.
    kept = sorted(vocabulary.always, reverse=True)
    files = rewrite({TOKENIZER: content}, vocabulary, {old: new for new, old in enumerate(kept)})
    after = Tokenizer.from_buffer(files[TOKENIZER])
    assert after.encode("nothing").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_a_cut_model_survives_rebuild_as_an_ordinary_one(model: Model, tmp_path: Path) -> None:
    smaller = cut(model)
    (tmp_path / "m").mkdir()
    choose.family(smaller).save(smaller, tmp_path / "m")
    again = choose.choose(tmp_path / "m", 1).documents([*TEXTS, *UNSEEN])
    assert cosines(again, choose.encoder(smaller, "cut", 1).documents([*TEXTS, *UNSEEN])).min() > 0.99999


def word_piece(pieces: list[str]) -> Tokenizer:
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


def shortened(before: Tokenizer, texts: list[str]) -> tuple[Tokenizer, list[int]]:
    """The tokenizer with what these texts use and what every cut keeps, and the ids that it kept."""
    content = before.to_str().encode()
    vocabulary = Vocabulary.read(content)
    used = {number for text in texts for number in before.encode(text).ids}
    kept = sorted(vocabulary.closed(used | vocabulary.always))
    files = rewrite({TOKENIZER: content}, vocabulary, {old: new for new, old in enumerate(kept)})
    return Tokenizer.from_buffer(files[TOKENIZER]), kept


def test_a_piece_that_single_characters_cannot_spell_stays() -> None:
    """There is no ##c: without ##bc the word abc would become unknown; ##ba can be spelled, and goes."""
    before = word_piece(["a", "b", "##a", "##b", "##bc", "##ba", "##ab", "ca", "abab"])
    after, kept = shortened(before, ["a"])
    assert set(after.get_vocab()) == {*SPECIAL, "a", "b", "##a", "##b", "##bc", "ca"}
    for word in ("abc", "abab", "bab", "caba", "ca"):
        assert "[UNK]" not in before.encode(word).tokens
        assert "[UNK]" not in after.encode(word).tokens
    assert after.encode("abc").tokens == ["[CLS]", "a", "##bc", "[SEP]"]
    assert before.encode("xyz").tokens == after.encode("xyz").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert max(number for word in ("abc", "abab", "x", "👌🏻") for number in after.encode(word).ids) < len(kept)


def byte_level(corpus: list[str]) -> Tokenizer:
    """As RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return tokenizer


def word_end(corpus: list[str]) -> Tokenizer:
    """As CLIP's: the last character of a word has a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, word_end])
def test_pairs_that_are_merged_keep_their_texts_and_spell_all_others(make: Callable[[list[str]], Tokenizer]) -> None:
    """Token for token on what was counted; on other texts the same words, and unknown only what was."""
    others = ["engine of stone", "winter winter bridges", "rivers of iron", "the catfish", "e r a"]
    before = make([*TEXTS, *others] * 5)
    after, kept = shortened(before, TEXTS)
    assert len(kept) < before.get_vocab_size()
    for text in TEXTS:
        assert after.encode(text).tokens == before.encode(text).tokens
        assert [kept[number] for number in after.encode(text).ids] == before.encode(text).ids
    shorter = 0
    for text in others:
        told, found = before.encode(text).tokens, after.encode(text).tokens
        assert "".join(found) == "".join(told)
        assert "[UNK]" not in found
        shorter += len(found) > len(told)
    assert shorter, "some words are spelled in more pieces now"


def test_texts_that_use_only_what_stays_keep_their_tokens_though_they_were_never_counted(model: Model) -> None:
    """Held-out texts: token for token where all their tokens stay, and else never a word lost."""
    smaller = cut(model)
    left = set(Tokenizer.from_buffer(smaller.files[TOKENIZER]).get_vocab())
    held_out = ["the river runs through the forest", "a cat near a dog", "winter sleeps", *UNSEEN]
    same = 0
    for text in held_out:
        told, found = tokens(model, text), tokens(smaller, text)
        if set(told) <= left:
            assert found == told
            same += 1
        assert "".join(found).replace("##", "") == "".join(told).replace("##", "")
    assert same >= 3


def recogniser(*further: str) -> Model:
    """A recogniser's table of BPE tokens, row n being n everywhere, with its special tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1)
    tokenizer.train_from_iterator([f" {text}" for text in [*TEXTS, "engine of stone", *further]], trainer)
    tokenizer.add_special_tokens(["<end>", "<start>", "<|en|>", "<|fr|>", "<transcribe>", "<translate>", "<silent>"])
    ids = tokenizer.get_vocab()
    decoding = Decoding(
        kind="autoregressive", end=ids["<end>"], prompt=(ids["<start>"], ids["<transcribe>"], ids["<silent>"]),
        languages={"en": ids["<|en|>"], "fr": ids["<|fr|>"]},
        suppressed=(ids["Ġcat"], ids["<translate>"]), suppressed_first=(ids["Ġ"], ids["<end>"]),
    )  # fmt: skip
    generation = {"lang_to_id": {"<|en|>": ids["<|en|>"]}, "task_to_id": {"translate": ids["<translate>"]},
                  "suppress_tokens": [ids["Ġcat"]], "eos_token_id": ids["<end>"],
                  "prev_sot_token_id": ids["<translate>"]}  # fmt: skip
    rows = np.arange(len(ids), dtype=np.float32)[:, None].repeat(4, axis=1)
    return Model(
        spec=ModelSpec(family="whisper", modality="speech", output="transcript", inputs=(), dim=len(ids),
                       normalised=False, preprocess=None, decoding=decoding),
        files={TOKENIZER: tokenizer.to_str().encode(), "generation_config.json": json.dumps(generation).encode()},
        tensors={"places": rows[:9], "table": rows}, tied={"output": "table"},
        layers=(Layer(name="places", kind="embedding", weight="places"),
                Layer(name="table", kind="embedding", weight="table")),
    )  # fmt: skip


def test_a_recogniser_keeps_what_broad_texts_say_and_what_a_transcript_begins_and_ends_with(tmp_path: Path) -> None:
    (tmp_path / "broad.txt").write_text("\n".join(TEXTS))
    model = recogniser()
    smaller = cut(model, texts=str(tmp_path / "broad.txt"))
    old, new = (Tokenizer.from_buffer(side.files[TOKENIZER]) for side in (model, smaller))
    table = smaller.tensors["table"][:, 0].astype(int)
    assert len(table) == smaller.spec.dim == new.get_vocab_size() < len(model.tensors["table"])
    assert all(table[number] == old.token_to_id(token) for token, number in new.get_vocab().items())
    said = old.encode(" the dog sleeps").ids
    assert new.decode([int(np.flatnonzero(table == token)[0]) for token in said]) == old.decode(said)
    before, after = model.spec.decoding, smaller.spec.decoding
    assert before
    assert after
    assert [table[token] for token in (after.end, *after.prompt)] == [before.end, *before.prompt]
    assert {name: table[token] for name, token in after.languages.items()} == before.languages
    assert new.token_to_id("<translate>") is new.token_to_id("Ġcat") is new.token_to_id("Ġengine") is None
    assert after.suppressed == ()
    assert [table[token] for token in after.suppressed_first] == list(before.suppressed_first)
    generation = json.loads(smaller.files["generation_config.json"])
    assert generation == {"lang_to_id": {"<|en|>": after.languages["en"]}, "task_to_id": {}, "suppress_tokens": [],
                          "eos_token_id": after.end}  # fmt: skip


def test_small_and_capital_letters_of_what_is_said_count_alike(tmp_path: Path) -> None:
    """A recogniser's pauses decide on capitals, and no broad text tells where they are."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe", "ĠT", "ĠTh", "ĠThe", "Ġx", "Ã©", "ã©"]
    ids = {piece: number for number, piece in enumerate(pieces)}
    counts = {ids["Ġthe"]: 3, ids["ĠThe"]: 1, ids["Ġx"]: 1, ids["Ã©"]: 5}
    alike = _alike(counts, ids)
    assert alike[ids["Ġthe"]] == alike[ids["ĠThe"]] == 4
    assert (alike[ids["Ġx"]], alike[ids["Ġth"]], alike[ids["ĠTh"]]) == (1, 0, 0)
    assert (alike[ids["Ã©"]], alike[ids["ã©"]]) == (5, 0), "these are bytes, and no letters"
    (tmp_path / "broad.txt").write_text("\n".join(TEXTS))
    model = recogniser("Sleeps", "Stone")
    kept = Tokenizer.from_buffer(cut(model, texts=str(tmp_path / "broad.txt")).files[TOKENIZER]).get_vocab()
    assert {"Ġsleeps", "ĠSleeps"} <= set(kept)
    assert "ĠStone" in Tokenizer.from_buffer(model.files[TOKENIZER]).get_vocab()
    assert "ĠStone" not in kept


def test_a_recogniser_needs_broad_texts() -> None:
    with pytest.raises(UsageError, match="texts must name broad text"):
        cut(recogniser())


def test_further_texts_are_counted_beside_the_collection(model: Model, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("engine")
    assert tokens(cut(model, texts=str(tmp_path / "more.txt")), "engine") == tokens(model, "engine")
