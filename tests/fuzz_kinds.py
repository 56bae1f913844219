"""What is damaged, and what reads it: the smallest valid input of every kind, one folder each."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import sys
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

import fuzz_mutations as mutations
from fuzz_mutations import Random
from slimseek import artifact, choose, data, deploy, parts, plugins, recipe, search, serve
from slimseek import folder as folders
from slimseek.budget import store
from slimseek.inputs.pictures import PictureInput
from slimseek.inputs.sound import SoundInput
from slimseek.inputs.text import TextInput
from slimseek.models._text import files
from slimseek.models._whisper import ctranslate2
from slimseek.models.static import Static
from slimseek.preprocess import PicturePreprocess, SoundPreprocess
from slimseek.scale import bulk
from slimseek.schema import ModelSpec, TensorSpec
from slimseek.training import checkpoint
from small import tiny_bert, tiny_collection, tiny_encoder, tiny_tokenizer, tiny_whisper

GOLDEN = Path(__file__).parent / "golden"
Damage = Callable[[bytes, Random, tuple[str, ...]], bytes]
as_json, as_lines, as_table = mutations.of_json, mutations.of_lines, mutations.of_table


def as_bytes(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """Any file."""
    return mutations.of_bytes(content, random)


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        make: writes valid ones into an empty folder, each a file or a folder of its own.
        damaged: pattern of files to how they are damaged.
        read: opens one of them, which is called ``input``; must end well or by an error of ours.
        sealed: name of the manifest whose size and hash of a damaged file are made right again, so that what lies
            behind the hash is reached too.
        links: whether files are replaced by links, folders and pipes, too.
        follows: whether links that leave the folder are followed, as in the caches of model hubs, which are made of
            them, and in collections; never in what slimseek wrote itself.
    """

    make: Callable[[Path], None]
    damaged: dict[str, Damage]
    read: Callable[[Path], object]
    sealed: str = ""
    links: bool = True
    follows: bool = True


def _golden(folder: Path) -> None:
    for name in ("artifact", "shared", "sparse"):
        shutil.copytree(GOLDEN / name, folder / name)


def _read_artifact(folder: Path) -> None:
    artifact.read(folder)


def _static(folder: Path) -> None:
    """A table of a few tokens as model2vec writes it."""
    save = plugins.require("safetensors.numpy").save_file
    count = plugins.require("tokenizers").Tokenizer.from_buffer(tiny_tokenizer()).get_vocab_size()
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer())
    table = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    save({"embeddings": table}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')


def _static_artifact(folder: Path) -> None:
    _static(folder.parent / "static")
    artifact.write(Static().open(folder.parent / "static"), folder)
    shutil.rmtree(folder.parent / "static")


def _package(folder: Path) -> None:
    _static(folder.parent / "static")
    deploy.export(Static().open(folder.parent / "static"), "onnxruntime", folder)
    shutil.rmtree(folder.parent / "static")


def _encode(folder: Path) -> None:
    encoder = choose.choose(folder, 1)
    encoder.queries(["the cat", "a river and a stone"])


def _index(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for precision in ("f32", "int8", "binary"):
            corpus = {f"d{number}": f"the cat {number} near the river" for number in range(12)}
            search.index(tiny_encoder(), corpus, folder / precision, kind=kind, precision=precision)  # type: ignore[arg-type]

    return make


def _parts(folder: Path) -> None:
    for precision in ("f32", "binary"):
        for number in range(3):
            corpus = {f"d{number}{letter}": f"the cat {letter} near the river" for letter in "abcd"}
            search.index(tiny_encoder(), corpus, folder / precision / parts.name(number), precision=precision)  # type: ignore[arg-type]
        parts.write(folder / precision, {parts.name(number): 4 for number in range(3)})


@cache
def _encoder() -> Any:
    return tiny_encoder()


def _search(folder: Path) -> None:
    search.open(folder, _encoder()).query(["the river", "cat 3"], 5)


def _recipes(folder: Path) -> None:
    for name in ("int8", "int4", "int8-dynamic"):
        if name in recipe.shorthands():
            (folder / f"{name}.yaml").write_text(recipe.text_of(name))


def as_yaml(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """Its structure, its bytes, or what only YAML has: names that stand for each other, tags that name classes."""
    yaml = plugins.require("yaml")
    choice = random.random()
    if choice < 0.3:
        return mutations.of_bytes(content, random)
    if choice < 0.4:
        laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))
        return random.choice((
            laughs.encode(), (laughs + "version: 1\nsteps: [{quantize.weights_int: {bits: *l11}}]\n").encode(),
            b"a: &a [*a]\n", b"version: 1\nsteps: &a [{x: *a}]\n", b"!!python/object/apply:os.system [id]\n",
            b"version: 1\nsteps: [{quantize.weights_int: !!python/name:os.system }]\n", b"- " * 5000 + b"x",
            b"[" * 5000, b"{a: " * 3000, b"version: 1\nsteps: [{? [1, 2] : 3}]\n", b"version: 0x1\nsteps: 2001-01-01\n",
            b"version: 1\nsteps: !!set {a, b}\n", b"version: 1\n" + b"1" * 100_000, b"%YAML 9.9\n---\nx",
            b"version: " + b"9" * 5000 + b"\nsteps: []\n", b"<<: 1\nversion: 1\n", b"version: 1:2:3\nsteps: []\n",
        ))  # fmt: skip
    value = yaml.safe_load(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        value = mutations.of_value(value, random, paths)
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return b""


def _texts(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text('{"_id": "a", "title": "t", "text": "the cat"}\n{"_id": "b", "text": "x"}\n')


def _labelled(folder: Path) -> None:
    rows = [(f"{number}.png", "abc"[number % 3], ("train", "dev", "test")[number % 3], "red") for number in range(9)]
    image = plugins.require("PIL.Image")
    for name, *_ in rows:
        image.new("RGB", (4, 4), "red").save(folder / name)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "text"), *rows])


def _texts_with_labels(folder: Path) -> None:
    for split in ("train", "test"):
        rows = "".join(f"the cat number {number} of {split}\t{'ab'[number % 2]}\n" for number in range(6))
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + rows)


def _said(folder: Path) -> None:
    for number in range(4):
        (folder / f"{number}.wav").write_bytes(_wav())
    rows = "".join(f"{number}.wav,the cat,{'dev' if number % 2 else 'test'}\n" for number in range(4))
    (folder / "data.csv").write_text("audio,text,split\n" + rows)


def _collection(folder: Path) -> None:
    data.load(str(folder))


FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM",
           "jp2": "JPEG2000", "avif": "AVIF"}  # fmt: skip


def _pictures(folder: Path) -> None:
    image, features = plugins.require("PIL.Image"), plugins.require("PIL.features")
    noise = image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8))
    for suffix, name in FORMATS.items():
        known = {"JPEG2000": "jpg_2000", "WEBP": "webp", "AVIF": "avif"}.get(name)
        if known is None or features.check(known):
            noise.save(folder / f"picture.{suffix}", name, **({"compression": "tiff_lzw"} if name == "TIFF" else {}))
    noise.convert("P").save(folder / "palette.png")
    noise.convert("L").save(folder / "grey.png")


@cache
def _picture_input() -> PictureInput:
    pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 8, 8))
    how = PicturePreprocess(height=8, width=8)
    return PictureInput(ModelSpec(family="onnx_array", modality="image", output="embedding", inputs=(pixels,), dim=16,
                                  normalised=True, preprocess=None, picture=how))  # fmt: skip


def _see(file: Path) -> None:
    _picture_input()([str(file)])


def _wav(seconds: float = 0.05, rate: int = 16_000) -> bytes:
    samples = 0.5 * np.sin(np.arange(int(seconds * rate)) / 5)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return content.getvalue()


def _recordings(folder: Path) -> None:
    soundfile = plugins.require("soundfile")
    samples = 0.5 * np.sin(np.arange(800) / 5)
    (folder / "a.wav").write_bytes(_wav())
    for suffix in ("flac", "ogg", "mp3"):
        soundfile.write(folder / f"a.{suffix}", samples, 8000)
    soundfile.write(folder / "float.wav", samples, 8000, "FLOAT")


@cache
def _sound_input() -> SoundInput:
    tensor = TensorSpec(name="audio", dtype="float32", shape=("batch", 8000))
    how = SoundPreprocess(rate=8000, features="waveform", seconds=1.0, window=400, hop=160, mels=8)
    return SoundInput(ModelSpec(family="onnx_array", modality="speech", output="embedding", inputs=(tensor,), dim=16,
                                normalised=True, preprocess=None, sound=how))  # fmt: skip


def _hear(file: Path) -> None:
    for number, _ in enumerate(_sound_input().windows(str(file))):
        if number > 1000:  # a header may promise hours; what is read stays a block at a time
            return


def _tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer())
    tokenizers = plugins.require("tokenizers")
    pieces = {letter: number for number, letter in enumerate("abcdefgh")} | {"ab": 8, "[PAD]": 9}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [("a", "b")]))
    (folder / "bpe.json").write_text(bpe.to_str())


def _tokenise(file: Path) -> None:
    content = files.tokenizer_without_padding(file.read_bytes())
    TextInput(_encoder().spec, content)(["the cat near the river", "aé ab"])


def _bert(folder: Path) -> None:
    tiny_bert(folder, layers=1, width=8, heads=2)


def _convolution(folder: Path) -> None:
    onnx = plugins.require("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    random = np.random.default_rng(0)
    weights = {"k": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
               "w": random.standard_normal((4, 6)).astype(np.float32)}  # fmt: skip
    nodes = [helper.make_node("Conv", ["pixels", "k"], ["c"], pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["c"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["g"]),
             helper.make_node("Flatten", ["g"], ["f"]),
             helper.make_node("MatMul", ["f", "w"], ["embedding"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", 1, ("N", 3, 8, 8))],
        [helper.make_tensor_value_info("embedding", 1, ("N", 6))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_resize": True, "size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }))  # fmt: skip


def _external(folder: Path) -> None:
    onnx = plugins.require("onnx")
    _convolution(folder)
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=True,
              location="weights.bin", size_threshold=0)  # fmt: skip


def as_external(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """Where the weights of a graph are said to lie: another place, length or offset, in the graph or in a node."""
    onnx = plugins.require("onnx")
    if random.random() < 0.3:
        return mutations.of_bytes(content, random)
    model = onnx.load_from_string(content)
    tensor = random.choice(list(model.graph.initializer))
    if random.random() < 0.3:
        [node] = [onnx.helper.make_node("Constant", [], ["unused"], value=tensor)]
        model.graph.node.insert(0, node)
        tensor = model.graph.node[0].attribute[0].t
    for entry in tensor.external_data:
        if entry.key == "location" and random.random() < 0.7:
            entry.value = random.choice((*paths, "", ".", "model.onnx", "sub/../weights.bin")).replace("\ud800", "")
        elif entry.key != "location" and random.random() < 0.5:
            entry.value = random.choice(("-1", "999999999999", "0", "x", "", "1e3", str(2**63), str(2**64)))
    if random.random() < 0.2:
        extra = tensor.external_data.add()
        extra.key, extra.value = "location", random.choice(paths)
    if random.random() < 0.2:
        tensor.dims[:] = [random.choice((-1, 0, 2**31, 2**40)) for _ in tensor.dims]
    return bytes(model.SerializeToString())


def _open_network(folder: Path) -> None:
    model = choose.model(folder)
    choose.encoder(model, "network", 1).documents(["random:0"])


def _whisper_binary(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_whisper import written

    arrays = {"encoder/weight": np.ones((3, 4)), "decoder/embeddings/weight": np.ones((5, 2)),
              "decoder/num_heads": np.array(2, np.int16)}  # fmt: skip
    (folder / "model.bin").write_bytes(written(arrays))


def _read_binary(file: Path) -> None:
    ctranslate2.variables(file.read_bytes(), file.name, "WhisperSpec")


def _checkpoint(folder: Path) -> None:
    torch = plugins.require("torch")
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    best = checkpoint.State(step=3, loss=0.5, waited=0, weights=checkpoint.copy(network))
    checkpoint.save(folder / "checkpoint.safetensors", network, optimizer, 0.7, best, {"seed": 1})


def _go_on(file: Path) -> None:
    torch = plugins.require("torch")
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoint.resume_(file, network, optimizer, 0.7, {"seed": 1})


def _found(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_search_page import found

    made = found()
    made = msgspec.structs.replace(made, trials=made.trials[:6], front=(0, 1), chosen=1)
    folders.write_json(folder / choose.SEARCH, made)
    shutil.copytree(GOLDEN / "artifact", folder / "artifact")
    (folder / store.TRIALS).mkdir()
    folders.write_json(folder / store.TRIALS / "0001.json", made.trials[1])


def _read_found(folder: Path) -> None:
    from slimseek.report import search as page

    store.Store(folder).trials()
    choose.report_of(folder)
    found = choose.search_of(folder)
    if found is not None:
        page.verdict(found)


# ---------------------------------------------------------------- HTTP


@dataclass(frozen=True)
class Request:
    """One request as it is damaged."""

    method: str
    path: str
    query: str
    kind: str
    body: bytes


def _requests(folder: Path) -> None:
    base = [
        Request("GET", "/search", "q=the+river&k=3&model=compressed", "", b""),
        Request("GET", "/embed", "texts=the+cat&texts=a+dog&role=document", "", b""),
        Request("POST", "/embed", "", "application/json", b'{"texts": ["the cat"], "model": "compressed"}'),
        Request("POST", "/search/picture", "k=3", "image/png", b"\x89PNG\r\n\x1a\n"),
        Request("POST", "/search/voice", "k=3", "audio/wav", _wav()),
        Request("GET", "/item/0", "model=compressed", "", b""),
        Request("GET", "/health", "", "", b""),
        Request("GET", "/", "", "", b""),
    ]
    for number, one in enumerate(base):
        head = json.dumps([one.method, one.path, one.query, one.kind])
        (folder / f"{number}.http").write_bytes(head.encode() + b"\n" + one.body)


def as_request(content: bytes, random: Random, paths: tuple[str, ...]) -> bytes:
    """Method, path, query, content type or body."""
    head, _, body = content.partition(b"\n")
    asked = json.loads(head)
    for _ in range(random.choice((1, 1, 2))):
        choice = random.randrange(5)
        if choice == 4 or (choice == 3 and body):
            body = mutations.line(body, random, paths) if asked[3].endswith("json") else (
                mutations.of_bytes(body, random))  # fmt: skip
        elif choice == 0:
            asked[0] = random.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "X"))
        elif choice == 1 and random.random() < 0.5:
            asked[1] = random.choice(("/item/", "/", "//", "/item/", asked[1] + "/", "/search/")) + random.choice(
                (*(str(number) for number in mutations.NUMBERS), *paths, *mutations.TEXTS, ""))  # fmt: skip
        elif choice == 1:
            asked[2] += "&" + random.choice(("k=", "q=", "model=", "role=", "texts=", "x=")) + random.choice(
                (*(str(number) for number in mutations.NUMBERS), *mutations.TEXTS, "original"))  # fmt: skip
        elif choice == 2:
            asked[2] = mutations.of_bytes(asked[2].encode("utf-8", "surrogatepass"), random).decode("latin-1")
        else:
            asked[3] = random.choice(("", "application/json", "image/png", "audio/wav", "text/html", "image/",
                                      "multipart/form-data; boundary=x",
                                      "application/json; charset=utf-16"))  # fmt: skip
    return json.dumps(asked).encode() + b"\n" + body


@cache
def _service() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="slimseek."))
    search.index(_encoder(), {"d1": "the cat", "d2": "a river"}, folder / "index")
    return serve.app(search.open(folder / "index", _encoder()))


def _ask(file: Path) -> None:
    """The request's answer: never a fault of the service, and every refusal one line of JSON."""
    head, _, body = file.read_bytes().partition(b"\n")
    status, content = asyncio.run(_answered(*json.loads(head), body))
    assert status < 500 or status == 503, f"status {status}"
    assert status < 400 or set(json.loads(content or b'{"error": 0}')) == {"error"}, content


async def _answered(method: str, path: str, query: str, kind: str, body: bytes) -> tuple[int, bytes]:
    from urllib.parse import quote

    transport = httpx.ASGITransport(app=_service())
    async with httpx.AsyncClient(transport=transport, base_url="http://fuzz") as client:
        safe = quote(path.encode("utf-8", "surrogatepass"), safe="/:%.")[:20_000]
        url = f"http://fuzz/{safe.lstrip('/')}?{quote(query.encode('utf-8', 'surrogatepass'), safe='&=+%')[:30_000]}"
        response = await client.request(method, url, content=body, headers={"content-type": kind} if kind else {})
        return response.status_code, response.content if method != "HEAD" else b""


def _one(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Of what makes a folder: makes it in a folder of its own."""

    def made(folder: Path) -> None:
        (folder / "made").mkdir()
        make(folder / "made")

    return made


WEIGHTS = "*/*.safetensors"
KINDS: dict[str, Kind] = {
    "manifest": Kind(_golden, {"*/manifest.json": as_json}, _read_artifact, follows=False),
    "tensors": Kind(_golden, {WEIGHTS: as_bytes}, _read_artifact, sealed="manifest.json", follows=False),
    "artifact": Kind(_one(_static_artifact), {"*/manifest.json": as_json, "*/model/*.json": as_json, WEIGHTS: as_bytes},
                     _encode, sealed="manifest.json", follows=False),
    "package": Kind(_one(_package), {"*/package.json": as_json, "*/tokenizer.json": as_json}, _encode,
                    sealed="package.json", follows=False),
    "index": Kind(_index("exact"), {"*/index.json": as_json, "*/*.npy": as_bytes, "*/*/*.npy": as_bytes,
                                    "*/documents.jsonl": as_lines}, _search, sealed="index.json", follows=False),
    "index in parts": Kind(_parts, {"*/parts.json": as_json, "*/*/index.json": as_json}, _search, sealed="parts.json",
                           follows=False),
    "recipe": Kind(_recipes, {"*.yaml": as_yaml}, recipe.load),
    "texts": Kind(_texts, {"corpus.jsonl": as_lines}, bulk.texts),
    "collection": Kind(_one(tiny_collection), {"*/*.jsonl": as_lines, "*/qrels/*.tsv": as_table}, _collection),
    "labels": Kind(_one(_labelled), {"*/labels.csv": as_table}, _collection),
    "labelled texts": Kind(_one(_texts_with_labels), {"*/*.tsv": as_table}, _collection),
    "recordings table": Kind(_one(_said), {"*/data.csv": as_table}, _collection),
    "http": Kind(_requests, {"*.http": as_request}, _ask, links=False),
    "picture": Kind(_pictures, {"*": as_bytes}, _see),
    "recording": Kind(_recordings, {"*": as_bytes}, _hear),
    "tokenizer": Kind(_tokenizer, {"*.json": as_json}, _tokenise, links=False),
    "static": Kind(_one(_static), {"*/*.json": as_json, WEIGHTS: as_bytes}, _encode),
    "transformer": Kind(_one(_bert), {"*/*.json": as_json, "*/1_Pooling/*.json": as_json, WEIGHTS: as_bytes}, _encode),
    "onnx": Kind(_one(_convolution), {"*/model.onnx": as_bytes}, _open_network),
    "external data": Kind(_one(_external), {"*/model.onnx": as_external, "*/weights.bin": as_bytes}, _open_network),
    "preprocessor": Kind(_one(_convolution), {"*/preprocessor_config.json": as_json}, _open_network),
    "whisper": Kind(_one(tiny_whisper), {"*/*.json": as_json, WEIGHTS: as_bytes}, choose.model),
    "ctranslate2": Kind(_whisper_binary, {"model.bin": as_bytes}, _read_binary, links=False),
    "checkpoint": Kind(_checkpoint, {"*.safetensors": as_bytes}, _go_on),
    "search": Kind(_one(_found), {"*/search.json": as_json, "*/trials/*.json": as_json,
                                  "*/artifact/report.json": as_json}, _read_found, follows=False),
    "usearch": Kind(_index("usearch"), {"*/index/*": as_bytes}, _search, follows=False),
    "faiss": Kind(_index("faiss_flat"), {"*/index/*": as_bytes}, _search, follows=False),
}  # fmt: skip
