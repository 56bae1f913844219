"""Tables of token vectors in the layout of sentence-transformers' ``StaticEmbedding`` or of model2vec: no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn

from slimseek import reading
from slimseek.bases import Family
from slimseek.errors import UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import dense
from slimseek.models._onnx.graph import IR_VERSION, OPSET, OUTPUT
from slimseek.models._text import files as text_files
from slimseek.models._text.static_files import MODULE, TABLE, is_table, read_table, static_model
from slimseek.schema import Array, Batch, Encode, Model

WEIGHTS = "model.safetensors"


class Static(Family):
    """A text's vector is the mean of its tokens' rows, brought to length one; weights of tokens are in the rows."""

    def recognises(self, path: Path) -> bool:
        """A folder whose ``modules.json`` asks for a StaticEmbedding, or whose ``config.json`` is model2vec's."""
        return is_table(path)

    def open(self, path: Path) -> Model:
        """Read the tokenizer and the table; no special tokens are put around a text."""
        modules = _modules(path)
        place = path / next((module["path"] for module in modules if _kind(module) == MODULE), "")
        if not (place / TOKENIZER).is_file():
            raise UsageError(f"{place} has no {TOKENIZER}, so it is not a whole model folder")
        files = {name: (path / name).read_bytes() for name in (text_files.PROMPTS,) if (path / name).is_file()}
        normalise = not modules or any(_kind(module) == "Normalize" for module in modules) or _by_cosine(files)
        return static_model(read_table(place / WEIGHTS), (place / TOKENIZER).read_bytes(), files, normalise)

    def run(self, model: Model, threads: int) -> Encode:
        """NumPy in float32 on the dequantized table."""
        if not {"input_ids", "attention_mask"} <= {tensor.name for tensor in model.spec.inputs}:
            raise UsageError("a table of tokens takes input_ids and attention_mask, and its spec names others")
        table, normalise = dense(model)[TABLE].astype(np.float32), model.spec.normalised

        def encode(batch: Batch) -> Array:
            mask = batch["attention_mask"].astype(np.float32)
            if batch["input_ids"].max(initial=0) >= len(table):
                raise UsageError(f"the tokenizer gives the id {batch['input_ids'].max()}, and the table has "
                                 f"{len(table)} rows")  # fmt: skip
            sums: Array = np.einsum("nsd,ns->nd", table[batch["input_ids"]], mask)
            means = sums / np.maximum(mask.sum(1, keepdims=True), 1e-9)
            if normalise:
                means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
            return means

        return encode

    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Nothing: there is no layer that computes on another's output."""

    def trainable(self, model: Model) -> nn.Module:
        """The table as the one parameter."""
        return _Table(dense(model)[TABLE], model.spec.normalised).eval()

    def to_onnx(self, model: Model) -> Any:
        """Gather, masked mean, and the division by the length where vectors are normalised."""
        nodes = [
            helper.make_node("Gather", [TABLE, "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "one"], ["row_mask"]),
            helper.make_node("MatMul", ["row_mask", "rows"], ["sums"]),
            helper.make_node("Squeeze", ["sums", "one"], ["sum"]),
            helper.make_node("ReduceSum", ["mask", "one"], ["tokens"], keepdims=1),
            helper.make_node("Max", ["tokens", "least"], ["count"]),
            helper.make_node("Div", ["sum", "count"], ["mean" if model.spec.normalised else OUTPUT]),
        ]
        if model.spec.normalised:
            nodes += [
                helper.make_node("ReduceL2", ["mean", "one"], ["length"], keepdims=1),
                helper.make_node("Max", ["length", "least"], ["divisor"]),
                helper.make_node("Div", ["mean", "divisor"], [OUTPUT]),
            ]
        constants = {"one": np.array([1], np.int64), "least": np.array(1e-12, np.float32), TABLE: dense(model)[TABLE]}
        graph = helper.make_graph(
            nodes, "static",
            [helper.make_tensor_value_info(one.name, TensorProto.INT64, one.shape) for one in text_files.INPUTS],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ("batch", model.spec.dim))],
            [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
        )  # fmt: skip
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(built)
        return built

    def save(self, model: Model, folder: Path) -> None:
        """A folder that ``SentenceTransformer`` loads: float32."""
        for name, content in model.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        save_file({TABLE: np.ascontiguousarray(dense(model)[TABLE], np.float32)}, folder / WEIGHTS, {"format": "pt"})

    def macs(self, model: Model, length: int) -> int:
        """One for each element of each token's row, which is added to the others where the mask says so."""
        return length * model.spec.dim


class _Table(nn.Module):
    def __init__(self, table: Array, normalise: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(table.astype(np.float32)), freeze=False)
        self.normalise = normalise

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Int64 [batch, sequence] twice to float32 [batch, dim]."""
        mask = attention_mask.to(torch.float32)
        means = (mask[:, None, :] @ self.embedding(input_ids)).squeeze(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
        return nn.functional.normalize(means, dim=-1) if self.normalise else means


def _modules(path: Path) -> list[dict[str, Any]]:
    """The folder's modules, ``[]`` where model2vec alone wrote it."""
    if not (path / "modules.json").is_file():
        return []
    try:
        modules = reading.decoded((path / "modules.json").read_bytes(), list[dict[str, Any]])
        unknown = [_kind(module) for module in modules if _kind(module) not in (MODULE, "Normalize")]
    except (msgspec.MsgspecError, KeyError) as error:
        raise UsageError(f"{path}: modules.json is not valid ({error})") from error
    if unknown:
        raise UsageError(f"{path}: modules.json asks for {', '.join(unknown)} beside {MODULE}; Normalize works")
    return modules


def _kind(module: Mapping[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _by_cosine(files: Mapping[str, bytes]) -> bool:
    """Whether vectors are compared by the cosine, as sentence-transformers does where nothing else is said."""
    chosen = text_files.json_of(files, text_files.PROMPTS).get("similarity_fn_name")
    return chosen in (None, "cosine")
