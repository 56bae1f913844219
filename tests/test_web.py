"""Packages for the web: the graph of onnxruntime in WebAssembly, Python's tokens and hits."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from slimseek import choose, cli, deploy, integers, plugins, search
from slimseek.artifact import KeptIndex
from slimseek.backends._web import files as web_files
from slimseek.backends._web.node import HARD_TEXTS, Node
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import examples
from slimseek.inputs.text import TOKENIZER, TextInput, bucket
from slimseek.preprocess import TextPreprocess
from slimseek.schema import Array, Model, QuantizedTensor, Samples
from small import CORPUS, Page, bare, conv_network, packaged, tiny_bert, tiny_collection, tiny_model

WEB = plugins.load("backends", "web")()
REASON = WEB.runs()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120
SAMPLES = Samples(calibration=list(CORPUS.values()), texts=list(CORPUS.values()))
QUERIES = ("a cat on the bridge", "winter", "stone engine near a river", "Apple?")
SHARED = Path(__file__).parents[2] / "shared" / "data"
in_node = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def step(name: str, samples: Samples = SAMPLES, **parameters: object) -> Any:
    return lambda model: plugins.load("methods", name)(**parameters).apply(model, samples)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def small(original: Model) -> Model:
    return step("quantize.activations_int", mode="static")(step("quantize.weights_int")(original))


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """A package with the six documents in it, by the command line."""
    tiny_bert(tmp_path / "m")
    tiny_collection(tmp_path / "data")
    arguments = ["deploy", tmp_path / "m", "--target", "web", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert f"next: python3 -m http.server --directory {tmp_path / 'out'}" in done.output
    return tmp_path / "out"


# ---------------------------------------------------------------- what is here


def test_without_the_modules_the_command_that_brings_them_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLIMSEEK_WEB_MODULES", str(tmp_path / "none"))
    pinned = json.loads(web_files.page_file("package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
    assert WEB.available() == (
        f"onnxruntime-web and @huggingface/tokenizers not found in {tmp_path / 'none'}; run: npm install --prefix "
        f"{tmp_path / 'none'} onnxruntime-web@{pinned['onnxruntime-web']} "
        f"@huggingface/tokenizers@{pinned['@huggingface/tokenizers']}"
    )
    with pytest.raises(UsageError, match=r"target web does not work here: .*npm install"):
        deploy.deploy("nowhere", "web", tmp_path / "out")


def test_a_module_that_lacks_a_file_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMSEEK_WEB_MODULES", str(tmp_path))
    for module, files in web_files.COPIED.items():
        for file in ("package.json", *files):
            path = tmp_path / "node_modules" / module / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"version": "1.2.3"}')
    assert WEB.available() is None
    assert web_files.installed() == dict.fromkeys(web_files.COPIED, "1.2.3")
    (tmp_path / "node_modules" / "onnxruntime-web" / "dist" / web_files.RUNTIME).unlink()
    assert str(WEB.available()).startswith("onnxruntime-web not found in ")


@in_node
def test_without_node_a_package_is_written_and_its_stand_in_is_the_native_runtime(
    small: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert WEB.available() is None
    assert WEB.runs() == "node is not installed; install Node.js 20 or newer"
    (tmp_path / "package").mkdir()
    WEB.export(small, tmp_path / "package")
    with pytest.raises(UsageError, match="node is not installed"):
        WEB.open(tmp_path / "package", 1)
    run = WEB.stand_in(tmp_path / "package", 1)
    encoder = choose.assemble("web", small.spec, small.files, run, shipped={}, runtime="web", threads=1)
    assert cosines(choose.encoder(small, "artifact", 1).documents(QUERIES), encoder.documents(QUERIES)).min() > 0.99


# ---------------------------------------------------------------- the graph

FORMS = {
    "e4m3": [step("quantize.float", format="e4m3")],
    "bf16": [step("quantize.float", format="bf16")],
    "planes of 2": [step("quantize.weights_int", bits=2, granularity="group", group_size=20, symmetric=False)],
    "planes of 5": [step("quantize.weights_int", bits=5)],
    "code book": [step("simplify.share", bits=4)],
    "static": [step("quantize.weights_int"), step("quantize.activations_int", mode="static")],
    "mask, static": [step("prune.weights", ratio=0.9), step("quantize.weights_int"),
                     step("quantize.activations_int", mode="static")],
}  # fmt: skip


@in_node
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_that_of_onnxruntime_and_its_vectors_too(form: str, original: Model, tmp_path: Path) -> None:
    """Forms beyond those of test_backends; the same bytes, so that every size and integer is the same."""
    model = tiny_model(tmp_path / "wide", width=128) if form.startswith("mask") else original
    for apply in FORMS[form]:
        model = apply(model)
    native, web = packaged(model, "onnxruntime", tmp_path / "native"), packaged(model, "web", tmp_path / "web")
    assert (tmp_path / "web" / "model.onnx").read_bytes() == (tmp_path / "native" / "model.onnx").read_bytes()
    assert cosines(native.documents(QUERIES), web.documents(QUERIES)).min() > 1 - 1e-6
    stored = WEB.stored(tmp_path / "web")
    quantized = [name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)]
    for name in quantized:
        if integers.is_integer(model.tensors[name]) and name in stored:
            shift = 128 if stored[name].dtype != model.tensors[name].integers.dtype else 0
            assert np.array_equal(stored[name].astype(int) - shift, model.tensors[name].integers), name
    assert len(stored) >= 12 or form == "bf16"


@in_node
@pytest.mark.parametrize("kind", ["MPNet", "ModernBert"])
def test_other_families_run(kind: str, tmp_path: Path) -> None:
    bare(tmp_path / kind, kind)
    model = choose.model(tmp_path / kind)
    expected = choose.encoder(model, "artifact", 1).documents(QUERIES)
    assert cosines(expected, packaged(model, "web", tmp_path / "web").documents(QUERIES)).min() > 0.99999


@in_node
def test_a_model_of_arrays_runs_though_the_page_has_no_box_for_them(tmp_path: Path) -> None:
    model = choose.model(conv_network(tmp_path)[0])
    items = examples(model.spec)
    samples = Samples(calibration=items, texts=items)
    model = step("quantize.activations_int", samples, mode="static")(step("quantize.weights_int", samples)(model))
    native, web = packaged(model, "onnxruntime", tmp_path / "native"), packaged(model, "web", tmp_path / "web")
    assert cosines(native.documents(items), web.documents(items)).min() > 1 - 1e-6
    assert json.loads((tmp_path / "web" / "page.json").read_text())["text"] is None


@in_node
def test_a_graph_that_the_runtime_does_not_take_gives_one_line(small: Model, tmp_path: Path) -> None:
    WEB.export(small, tmp_path)
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"^onnxruntime-web cannot run .*; deploy for onnxruntime instead$") as caught:
        WEB.open(tmp_path, 1)
    assert "\n" not in str(caught.value)


@in_node
def test_a_wrong_input_gives_one_line_and_the_process_goes_on(small: Model, tmp_path: Path) -> None:
    run = packaged(small, "web", tmp_path).encode
    ids = np.ones((1, 4), np.int64)
    with pytest.raises(UsageError, match="onnxruntime-web cannot run"):
        run({"input_ids": ids})
    assert run({"input_ids": ids, "attention_mask": ids}).shape == (1, 32)


@in_node
def test_the_process_ends_with_its_encoder(small: Model, tmp_path: Path) -> None:
    WEB.export(small, tmp_path)
    node = Node(tmp_path)
    process = node._process
    assert process.poll() is None
    del node
    assert process.wait(timeout=10) is not None


def test_a_model_that_no_page_can_hold_is_refused(original: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match=r"^web: the weights take .* GiB; a page can load 1 GiB"):
        WEB.preflight(original)


# ---------------------------------------------------------------- tokens


def ids_in_node(tokenizer: Tokenizer, model: Model, folder: Path, texts: list[str], longest: int) -> tuple[Any, Any]:
    """Token ids by Python and by the page, in a package whose tokenizer is another."""
    spec = msgspec.structs.replace(model.spec, preprocess=TextPreprocess(max_length=longest))
    (folder / TOKENIZER).write_text(tokenizer.to_str())
    web_files.write_settings(folder, spec)
    return TextInput(spec, (folder / TOKENIZER).read_bytes()).rows(texts), Node(folder).ids(texts)


@pytest.fixture(scope="module")
def package(original: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("package")
    WEB.export(original, place)
    return place


def real_texts() -> list[str]:
    files = [SHARED / name / "corpus.jsonl" for name in ("xquad_en", "xquad_zh")]
    return [json.loads(line)["text"] for file in files if file.is_file() for line in file.open(encoding="utf-8")]


def word_piece(texts: list[str], **settings: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def unigram(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


TOKENIZERS = {
    "BERT": word_piece,
    "BERT, cased": functools.partial(word_piece, lowercase=False),
    "BERT, accents kept": functools.partial(word_piece, strip_accents=False),
    "byte level": byte_level,
    "unigram": unigram,
}


@in_node
@pytest.mark.parametrize("longest", [16, 512])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_in_javascript_are_those_in_python(kind: str, longest: int, original: Model, package: Path) -> None:
    """CASES A2, A3: hard texts and real ones, cut between the special tokens where they are too long."""
    known = [*CORPUS.values(), *real_texts()[::8]]
    texts = [*HARD_TEXTS, *known]
    tokenizer = TOKENIZERS[kind](known)
    expected, found = ids_in_node(tokenizer, original, package, texts, longest)
    assert max(map(len, expected)) == longest
    for text, ours, theirs in zip(texts, expected, found, strict=True):
        assert ours == theirs, text[:80]


@in_node
def test_no_common_character_is_read_otherwise(original: Model, package: Path) -> None:
    """Every character that Unicode 3.2 had: those that differ came later, or moved to another category since."""
    old = unicodedata.ucd_3_2_0
    assigned = [chr(code) for code in range(0x30000) if old.category(chr(code)) not in ("Cn", "Cs", "Co")]
    texts = ["ab" + character + "cd " + character for character in assigned]
    expected, found = ids_in_node(word_piece(["ab cd abcd b c d"]), original, package, texts, 64)
    differing = [c for c, ours, theirs in zip(assigned, expected, found, strict=True) if ours != theirs]
    assert len(assigned) > 80_000
    assert len(differing) <= 5, [hex(ord(character)) for character in differing]


@in_node
def test_an_empty_text_is_one_token_and_a_prefix_counts(original: Model, package: Path) -> None:
    tokenizer = word_piece(list(CORPUS.values()))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert ids_in_node(tokenizer, original, package, [""], 16) == ([[0]], [[0]])
    both = TextInput(original.spec, tokenizer.to_str().encode()).rows(["the cat"], prefix="a dog: ")
    assert Node(package).ids(["the cat"], prefix="a dog: ") == both


@in_node
def test_a_tokenizer_that_javascript_reads_otherwise_is_refused(original: Model, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "merged_with_next")
    tokenizer.train_from_iterator(CORPUS.values(), trainers.BpeTrainer(vocab_size=80, special_tokens=["[UNK]"]))
    model = dataclasses.replace(original, files=dict(original.files) | {TOKENIZER: tokenizer.to_str().encode()})
    with pytest.raises(
        UsageError, match=r"^web: the model's tokenizer gives other tokens in JavaScript than in Python"
    ):
        WEB.export(model, tmp_path)


# ---------------------------------------------------------------- the search


def vectors_of(count: int, dim: int) -> Array:
    vectors = np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@in_node
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_hits_and_scores_are_those_of_the_exact_index(precision: Any, original: Model, tmp_path: Path) -> None:
    """Twice the same vector stands among them: of equal scores the first document is first."""
    native = packaged(original, "onnxruntime", tmp_path / "native")
    WEB.export(original, tmp_path)
    vectors = vectors_of(500, 32)
    vectors[400] = vectors[7] = native.queries(QUERIES[:1])[0]
    WEB.hold(tmp_path, vectors, {f"d{number}": f"text {number}" for number in range(500)}, precision=precision)
    index = plugins.load("indexes", "exact")(precision=precision)
    index.build(vectors)
    node = Node(tmp_path)
    expected = index.query(native.queries(QUERIES), 20)
    for query, ids, scores in zip(QUERIES, expected.ids, expected.scores, strict=True):
        hits = node.search(query, 20)
        assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-5)
        assert [hit["id"] for hit in hits][:10] == [f"d{number}" for number in ids[:10]]
        assert hits[0]["text"] == f"text {ids[0]}"
    assert [hit["id"] for hit in node.search(QUERIES[0], 2)] == ["d7", "d400"]
    assert len(node.search(QUERIES[0], 1000)) == 500


def test_vectors_that_are_not_one_a_document_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are 2 vectors for 1 documents"):
        WEB.hold(tmp_path, vectors_of(2, 4), {"a": "b"})
    with pytest.raises(UsageError, match=r"precision 'f16' is not one that the page searches; it has int8, f32"):
        WEB.hold(tmp_path, vectors_of(1, 4), {"a": "b"}, precision="f16")


@in_node
@pytest.mark.parametrize("longest", [50, 128, 200])
def test_the_width_that_texts_are_padded_to_is_the_same(longest: int) -> None:
    page = web_files.page_file("search.mjs").read_text()
    function = re.search(r"export (function bucket.*?\n})", page, re.DOTALL)
    assert function is not None
    lengths = list(range(1, longest + 1))
    script = f"{function[1]}\nconsole.log(JSON.stringify({lengths}.map((n) => bucket(n, {longest}))))"
    done = subprocess.run(["node", "-e", script], capture_output=True, check=True)
    assert json.loads(done.stdout) == [bucket(length, longest) for length in lengths]


# ---------------------------------------------------------------- deployment


@in_node
def test_a_deployed_package_holds_the_documents_and_is_whole(deployed: Path) -> None:
    package = choose.read_package(deployed)
    listed = {entry.path for entry in package.files}
    assert listed == {path.name for path in deployed.iterdir()} - {"package.json"}
    assert {"index.html", "search.mjs", "model.onnx", TOKENIZER, "index.bin", "index.json", web_files.RUNTIME} <= listed
    assert (deployed / "index.bin").stat().st_size == 4 * 2 * 32 + 6 * 32
    settings = json.loads((deployed / "page.json").read_text())
    assert settings["documents"] == 6
    assert set(settings["bytes"]) == set(web_files.LOADED)
    assert all((deployed / name).stat().st_size == size for name, size in settings["bytes"].items())
    assert {"onnxruntime-web", "@huggingface/tokenizers"} <= set(package.tested_with)
    assert [gate.status for gate in package.gates] == ["passed"] * 3


@in_node
def test_without_data_a_package_holds_no_documents_and_other_targets_hold_none(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m")
    deploy.deploy(tmp_path / "m", "web", tmp_path / "out", texts=QUERIES, threads=1)
    assert not (tmp_path / "out" / "index.bin").exists()
    assert json.loads((tmp_path / "out" / "page.json").read_text())["documents"] == 0
    deploy.deploy(tmp_path / "m", "onnxruntime", tmp_path / "native", texts=QUERIES, corpus=CORPUS, threads=1)
    assert not (tmp_path / "native" / "index.bin").exists()
    assert not WEB.local


@in_node
def test_more_documents_than_a_page_takes_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_bert(tmp_path / "m")
    monkeypatch.setattr(plugins.load("backends", "web"), "most_documents", 5)
    with pytest.raises(UsageError, match="holds 5 documents at most, and the collection has 6; give a smaller one"):
        deploy.deploy(tmp_path / "m", "web", tmp_path / "out", corpus=CORPUS)
    assert not (tmp_path / "out").exists()


@in_node
def test_a_model_that_encodes_queries_alone_takes_no_documents(original: Model) -> None:
    kept = KeptIndex(model="other", fingerprint="0", probe=(0.0,))
    with pytest.raises(UsageError, match="holds documents only of a model that makes vectors of texts"):
        deploy._held(original, "web", CORPUS, kept)


# ---------------------------------------------------------------- the page


def test_the_page_loads_nothing_from_elsewhere_and_writes_texts_as_texts() -> None:
    page = Page(web_files.page_file("index.html").read_text())
    [policy] = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("img-src") == "data:"
    assert rules.pop("script-src") == "'self' 'wasm-unsafe-eval'"
    assert set(rules.values()) == {"'none'", "'self'"}
    assert rules["default-src"] == "'none'"
    assert not any(key.startswith("on") or key == "style" for _, attributes in page.tags for key in attributes)
    for name in web_files.PAGE:
        text = web_files.page_file(name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, name  # noqa: PT018
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
    assert len(web_files.page_file("search.mjs").read_text().splitlines()) <= 200


HARNESS = """<!doctype html><iframe src="index.html?q=QUERY" width="375" height="700"></iframe><script>
const frame = document.querySelector("iframe");
const timer = setInterval(() => {
  const page = frame.contentDocument, bad = page.querySelector("#status.bad");
  const hits = [...page.querySelectorAll(".hit")];
  if (!bad && !hits.length) return;
  clearInterval(timer);
  fetch("found", {method: "POST", body: JSON.stringify({
    bad: bad && bad.textContent, status: page.querySelector("#status").textContent,
    about: page.querySelector("#about").textContent, made: page.querySelectorAll("#hits img, #hits b").length,
    overflow: page.documentElement.scrollWidth - frame.clientWidth,
    ids: hits.map((hit) => hit.querySelector(".id").textContent),
    texts: hits.map((hit) => hit.querySelector(".text").textContent)})});
}, 100);
</script>"""


@contextmanager
def served(place: Path, query: str) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """The folder on a local port, and a page that looks at it in a frame and reports what it shows."""
    found: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/harness":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(HARNESS.replace("QUERY", query).encode())

        def do_POST(self) -> None:
            found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/harness", found
    finally:
        server.shutdown()


@in_node
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_hits_of_the_exact_search(small: Model, tmp_path: Path) -> None:
    """And markup in a document stays a text."""
    corpus = CORPUS | {"<i>": "the cat <img src=x onerror=alert(1)> <b>sleeps</b> &amp; eats"}
    encoder = packaged(small, "web", tmp_path / "web")
    WEB.hold(tmp_path / "web", encoder.documents(list(corpus.values())), corpus)
    native = packaged(small, "onnxruntime", tmp_path / "native")
    hits = search.rank(native.queries(["the cat sleeps"]), native.documents(list(corpus.values())), 7)
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"]  # fmt: skip
    with served(tmp_path / "web", "the+cat+sleeps") as (url, found):
        browser = subprocess.Popen(
            [*command, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            seen = found.get(timeout=SECONDS)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert seen["bad"] is None
    assert seen["ids"] == [list(corpus)[place] for place in hits.ids[0]]
    assert seen["texts"] == [list(corpus.values())[place] for place in hits.ids[0]]
    assert seen["made"] == 0, "no element came out of a document"
    assert seen["overflow"] <= 0
    assert seen["about"].startswith("7 documents, model ")
    assert re.fullmatch(r"7 results in [\d.]+\xa0ms: encode [\d.]+\xa0ms, search [\d.]+\xa0ms", seen["status"])
