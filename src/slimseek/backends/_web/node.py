"""A process of node that has a package for the web open: it runs the same files as a browser does."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from slimseek.backends._web.files import page_file
from slimseek.errors import UsageError, first_line
from slimseek.inputs.text import TOKENIZER, TextInput
from slimseek.schema import Array, Batch, Model

NO_NODE = "node is not installed; install Node.js 20 or newer"
HARD_TEXTS = (
    "The quick brown fox doesn't jump over 3.14 lazy dogs (twice): $5, 50 %, e-mail@example.org!",
    "Café crème brûlée, naïve façade, Ångström, Łódź, İstanbul, STRASSE straße ẞ, ﬁ ﬃ Ⅳ ①",
    "e\u0301a\u0300\u0323 \u0041\u030a cre\u0300me",
    "ΟΔΥΣΣΕΥΣ ΟΔΟΣ, Москва, Việt Nam, हिन्दी में खोज, ไทย, العربية, עברית",
    "搜索引擎和模型, 検索エンジン, 한국어 검색, \U00020000\U0002a6b2",
    "👌🏻 👩\u200d👩\u200d👧\u200d👦 🇫🇷 ❤\ufe0f",
    "word" * 60 + " " + "x" * 100 + " " + "x" * 101,
    "[CLS] a [SEP]b [MASK] [UNK] <s> </s> <pad>",
    " \t two  blanks\r\nand\u00a0a\u3000line\u2028 zero\u200bwidth \u0000\ufffd ",
    "",
    "a long text of many words, " * 400,
)
"""Accents, scripts without blanks, emoji, control characters, special tokens, long words, a text to be cut."""


class Node:
    """A process of node with the package open, which ends with this object.

    Raises:
        UsageError: there is no node, or it cannot load the package.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("node")
        if program is None:
            raise UsageError(NO_NODE)
        self._folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        command = [program, str(page_file("node.mjs")), str(folder.resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _end, self._process, self._errors)
        self._ask("open", {})

    def run(self, batch: Batch) -> Array:
        """The model's first output, float32, for arrays by input name."""
        inputs = {
            name: {
                "dtype": array.dtype.name,
                "shape": array.shape,
                "data": base64.b64encode(array.tobytes()).decode(),
            }
            for name, array in batch.items()
        }
        found = self._ask("run", inputs)
        return np.frombuffer(base64.b64decode(found["data"]), np.float32).reshape(found["shape"]).copy()

    def ids(self, texts: Sequence[str], prefix: str = "") -> list[list[int]]:
        """Token ids of texts by the tokenizer that the page uses."""
        found: list[list[int]] = self._ask("ids", {"texts": texts, "prefix": prefix})
        return found

    def search(self, text: str, k: int) -> list[Mapping[str, Any]]:
        """Hits of the package's own collection, best first: each has an id, a text and a score."""
        hits: list[Mapping[str, Any]] = self._ask("search", {"text": text, "k": k})["hits"]
        return hits

    def _ask(self, what: str, given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            with contextlib.suppress(BrokenPipeError):  # why it ended is read below
                self._process.stdin.write(msgspec.json.encode({"ask": what, "given": given}) + b"\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise UsageError(f"node ended while it ran {self._folder}: {self._last_words()}")
        answer = msgspec.json.decode(line)
        if "error" in answer:
            why = first_line(Exception(answer["error"]))
            raise UsageError(f"onnxruntime-web cannot run {self._folder} ({why}); deploy for onnxruntime instead")
        return answer["answer"]

    def _last_words(self) -> str:
        """The first of its lines that names an error, else the last."""
        self._process.wait(timeout=10)
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return next((line for line in lines if "Error" in line), lines[-1] if lines else "no message")


def check_tokenizer(folder: Path, model: Model) -> None:
    """Compare the ids of hard texts in node with those in Python.

    Raises:
        UsageError: they differ; a query would be read otherwise in a browser than when the model was judged.
    """
    node = Node(folder)
    found = node.ids(HARD_TEXTS)
    node.close()
    expected = TextInput(model.spec, model.files[TOKENIZER]).rows(HARD_TEXTS)
    for text, ours, theirs in zip(HARD_TEXTS, expected, found, strict=True):
        if list(ours) != theirs:
            raise UsageError(
                f"web: the model's tokenizer gives other tokens in JavaScript than in Python for {text[:60]!r}; "
                "deploy for onnxruntime instead"
            )


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Let node go; kill it where it does not."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()
