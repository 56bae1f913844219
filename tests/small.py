"""Small real things for tests: an encoder of a few kilobytes that needs no runtime."""

from __future__ import annotations

import dataclasses
import json
import string
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from slimseek import choose, plugins
from slimseek.encoder import Encoder
from slimseek.inputs.text import TextInput
from slimseek.preprocess import TextPreprocess
from slimseek.schema import Array, Batch, Model, ModelSpec, TensorSpec

BACKENDS = [name for name in ("onnxruntime", "openvino") if plugins.load("backends", name)().available() is None]
"""Runtimes that take graphs in ONNX: what a method makes of a model runs in these; test_backends tries all others."""

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

DEPTH = 6
SMALL = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "Bert": ({}, "encoder.layer"),
    "Roberta": ({}, "encoder.layer"),
    "XLMRoberta": ({}, "encoder.layer"),
    "Electra": ({"embedding_size": 8}, "encoder.layer"),
    "MPNet": ({}, "encoder.layer"),
    "DistilBert": ({"dim": 16, "n_heads": 2, "hidden_dim": 24, "n_layers": DEPTH}, "transformer.layer"),
    "ModernBert": ({"global_attn_every_n_layers": 4, "local_attention": 4}, "layers"),
}
"""Architecture to settings of its own, and the module that lists its blocks."""


def many_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of two to eight of the ten words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


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


def tiny_collection(folder: Path) -> None:
    """The six documents as a BEIR folder: queries that repeat a document's words, judged in train, dev and test."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in CORPUS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    queries = {
        f"{split}-{name}": " ".join(text.split()[start : start + 4])
        for start, split in enumerate(("train", "dev", "test"))
        for name, text in CORPUS.items()
    }
    lines = [json.dumps({"_id": name, "text": text}) for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    for split in ("train", "dev", "test"):
        judged = "".join(f"{split}-{name}\t{name}\t1\n" for name in CORPUS)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


def tiny_bert(folder: Path, seed: int = 0, *, layers: int = 2, width: int = 32, heads: int = 4) -> None:
    """A whole sentence-transformers folder: a random BERT, mean pooling, normalisation."""
    torch, transformers = plugins.require("torch"), plugins.require("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_buffer(tiny_tokenizer())
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.BertModel(config)
        for parameter in network.parameters():
            # Wide enough that attention is not uniform; biases and norms are random too, so that none can be lost.
            parameter.data += torch.randn_like(parameter) * 0.15
    network.save_pretrained(folder)
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.save_pretrained(folder)
    modules = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    for name, content in {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "2_Normalize").mkdir(exist_ok=True)


def bare(folder: Path, kind: str, **settings: Any) -> Any:
    """A folder of transformers alone, six random blocks deep; the network that was saved."""
    torch, transformers = plugins.require("torch"), plugins.require("transformers")
    config = getattr(transformers, f"{kind}Config")(**(SMALL | KINDS.get(kind, ({}, ""))[0] | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}Model")(config).eval()
        for parameter in network.parameters():
            parameter.data += torch.randn_like(parameter) * 0.2
    network.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer())
    return network


def conv_network(folder: Path) -> tuple[Path, Any]:
    """A convolution of 3 x 3, one of a point, one in groups, a Gemm, and random pictures' worth of ReLU between."""
    torch = plugins.require("torch")
    nn = torch.nn
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(32, 48, 1), nn.ReLU(),
        nn.Conv2d(48, 48, 3, groups=48), nn.Flatten(), nn.Linear(48 * 16, 24), nn.ReLU(), nn.Linear(24, 20),
    ).eval()  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "network.onnx"
    torch.onnx.export(network, (torch.zeros(2, 3, 12, 12),), path, dynamo=False, input_names=["pixels"],
                      output_names=["embedding"], dynamic_axes={"pixels": {0: "N"}}, opset_version=17)  # fmt: skip
    return path, network


def tiny_model(folder: Path, **shape: int) -> Model:
    """The tiny BERT, written to the folder and opened."""
    tiny_bert(folder, **shape)
    return choose.model(folder)


def with_outliers(model: Model, *blocks: int) -> Model:
    """The tiny BERT with one channel of some blocks' attention forty times as large as the others, as real encoders
    have them.

    A row of the value projection is forty times as large, and the column that reads it as much smaller: the vectors
    stay the same.
    """
    tensors = dict(model.tensors)
    for block in blocks:
        attention = f"transformer.encoder.layer.{block}.attention"
        for name, places, factor in [
            (f"{attention}.self.value.weight", np.s_[5], 40),
            (f"{attention}.self.value.bias", np.s_[5], 40),
            (f"{attention}.output.dense.weight", np.s_[:, 5], 1 / 40),
        ]:
            changed = np.array(tensors[name])
            changed[places] *= factor
            tensors[name] = changed
    return dataclasses.replace(model, tensors=tensors)


def packaged(model: Model, backend: str, folder: Path) -> Encoder:
    """The model's package, written to the folder and opened, or what stands in for it; no gate looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    runtime = plugins.load("backends", backend)()
    runtime.export(model, folder)
    run = (runtime.open if runtime.runs() is None else runtime.stand_in)(folder, 1)
    return choose.assemble(backend, model.spec, model.files, run, shipped={}, runtime=backend, threads=1)


def optimised(folder: Path) -> Any:
    """The graph that ONNX Runtime makes of a package when it loads it, and so runs with every query."""
    onnx, onnxruntime = plugins.require("onnx"), plugins.require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def kernels(folder: Path, backend: str) -> Counter[str]:
    """What runs with every query: operators by kind; of OpenVINO with their precision, constants left out.

    A table of 16 bits is read as such where it is dense, and widened where it is not.
    """
    if backend in ("onnxruntime", "web"):
        return Counter(node.op_type for node in optimised(folder).node)
    openvino = plugins.require("openvino")
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    return Counter(kind if kind == "Gather" else f"{kind} {precision}" for kind, precision in kinds if kind != "Const")


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what tests look at."""

    void: ClassVar[frozenset[str]] = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> str:
        """All that stands in tags of this name."""
        return "".join(data for at, data in self.texts if at == tag)

    @property
    def words(self) -> str:
        """All that is written."""
        return "".join(data for _, data in self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of each tag of this name."""
        return [attributes for name, attributes in self.tags if name == tag]


WHISPER = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
           "max_target_positions": 64, "num_mel_bins": 80}  # fmt: skip
SAID = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|translate|>", "<|transcribe|>",
        "<|startofprev|>", "<|notimestamps|>")  # fmt: skip


def tiny_whisper(folder: Path, *, several: bool = False, seconds: int = 1) -> Any:
    """An untrained Whisper, saved as transformers saves it; its network.

    Args:
        folder: to write.
        several: whether it knows two languages.
        seconds: that it hears at once.
    """
    transformers, torch = plugins.require("transformers"), plugins.require("torch")
    folder.mkdir(parents=True, exist_ok=True)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SAID))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {text: tokenizer.token_to_id(text) for text in SAID}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        **WHISPER, max_source_positions=50 * seconds, vocab_size=len(pieces) + len(SAID), eos_token_id=end,
        bos_token_id=end, pad_token_id=end, decoder_start_token_id=start, init_std=0.4, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    network = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():  # what is heard and where it stands counts for more than the token before
        network.model.decoder.embed_positions.weight.mul_(5)
        for layer in network.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(8)
    settings = {"decoder_start_token_id": start, "eos_token_id": end, "bos_token_id": end, "pad_token_id": end,
                "no_timestamps_token_id": ids["<|notimestamps|>"], "is_multilingual": several, "max_length": 60,
                "suppress_tokens": [5, 7, start], "begin_suppress_tokens": [9, end]}  # fmt: skip
    if several:
        settings |= {"lang_to_id": {text: ids[text] for text in ("<|en|>", "<|es|>")}, "task": "transcribe",
                     "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}}  # fmt: skip
    network.generation_config = transformers.GenerationConfig(**settings)
    network.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(folder)
    return network
