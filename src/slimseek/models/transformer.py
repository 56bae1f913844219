"""Text encoders in the layout of sentence-transformers or transformers: a transformer, pooling, Dense, Normalize."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimseek import reading
from slimseek.bases import Family
from slimseek.errors import UsageError, first_line
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import dense
from slimseek.models._eight_bit import eight_bit
from slimseek.models._onnx.graph import FILE, LARGEST_SINGLE_FILE
from slimseek.models._text import factors as two_factors
from slimseek.models._text import files as text_files
from slimseek.models._text import head, narrowing, widths
from slimseek.models._text import skeleton as skeletons
from slimseek.models._text.pooling import pool
from slimseek.models._text.projection import projected
from slimseek.models._text.static_files import is_table
from slimseek.models._text.ties import tie_
from slimseek.models._whisper.files import is_whisper
from slimseek.schema import Array, Batch, Encode, Layer, Model, ModelSpec, Tensor, Widths

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

POOLER = "transformer.pooler."
"""A part of many encoders that the vector does not use: pooling takes the last hidden state."""


class _Pipeline(nn.Module):
    """The whole function: ids and mask to the final vector."""

    def __init__(self, transformer: nn.Module, pooling: str, dense: list[nn.Module], normalise: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.dense = nn.ModuleList(dense)
        self.pooling = pooling
        self.normalise = normalise
        self.additive_mask = False
        self.unused: tuple[str, ...] = ()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Int64 [batch, sequence] twice to float32 [batch, dim]."""
        keep = attention_mask.to(torch.float32)
        # A ready-made additive mask spares the exported graph the long way from a two-dimensional one.
        mask = (1.0 - keep)[:, None, None, :] * -10000.0 if self.additive_mask else attention_mask
        hidden = self.transformer(input_ids=input_ids, attention_mask=mask).last_hidden_state
        vector = pool(hidden, keep, self.pooling)
        for layer in self.dense:
            vector = layer(vector)
        return nn.functional.normalize(vector, dim=-1) if self.normalise else vector


class Transformer(Family):
    """Any encoder that ``AutoModel`` loads, with the modules that sentence-transformers puts after it."""

    def recognises(self, path: Path) -> bool:
        """A folder with ``modules.json`` or a ``config.json`` that names a model type, and no table or recogniser."""
        if not path.is_dir() or is_table(path) or is_whisper(path):
            return False
        config = path / "config.json"
        return (path / "modules.json").is_file() or (config.is_file() and b'"model_type"' in config.read_bytes())

    def open(self, path: Path) -> Model:
        """Read configuration, tokenizer and safetensors weights."""
        plan = text_files.plan(text_files.small_files(path), path)
        files = text_files.small_files(path, (plan.transformer, plan.pooling, *plan.dense))
        if plan.transformer:
            raise UsageError(f"{path}: the transformer lies in the subfolder {plan.transformer!r}; only '' is read")
        if "config.json" not in files:
            raise UsageError(f"{path} has no config.json, so it is not a whole model folder")
        files[TOKENIZER] = _tokenizer(path, files)
        network = _build(files, path, weights=_weights(path, plan))
        table, classes = _token_table(network), head.classes(files, plan)
        spec = ModelSpec(
            family="transformer",
            modality="text",
            output="class_logits" if classes else "embedding",
            inputs=text_files.INPUTS,
            dim=_dim(network),
            normalised=network.normalise,
            preprocess=text_files.preprocess(files, _positions(network.transformer.config), table),
            classes=classes or msgspec.UNSET,
        )
        tensors: dict[str, Tensor] = {name: _array(value) for name, value in network.state_dict().items()}
        for name in network.unused:
            tensors.pop(name)
        return Model(spec=spec, files=files, tensors=tensors, layers=_layers(network, set(tensors)))

    def run(self, model: Model, threads: int) -> Encode:
        """PyTorch in float32 on the dequantized weights; inputs of layers are rounded where the model says so."""
        network = _load(model)
        for layer in model.layers:
            if layer.weight in model.activations:
                network.get_submodule(layer.name).forward = eight_bit(model, layer, network)

        def encode(batch: Batch) -> Array:
            torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    result: Array = network(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
            except IndexError as error:
                raise UsageError("the tokenizer gives an id or a place that the model has no row for") from error
            return result

        return encode

    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Show the input of every layer that the vector uses, real tokens only and divided by its smoothing, to
        ``visit(weight name, float32 [tokens, width])``.
        """
        network = _load(model)
        current: dict[str, torch.Tensor] = {}

        def show(weight: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                values, mask = inputs[0], current["attention_mask"]
                rows = (
                    values[mask.bool()] if values.ndim > 2 and values.shape[:2] == mask.shape else values.flatten(0, -2)
                )
                smoothing = model.smoothing.get(weight)
                visit(weight, rows.numpy() if smoothing is None else rows.numpy() / smoothing.reshape(-1))

            return hook

        for layer in model.layers:
            if layer.kind == "linear" and not layer.name.startswith(POOLER):
                network.get_submodule(layer.name).register_forward_pre_hook(show(layer.weight))
        with torch.inference_mode():
            for batch in batches:
                current = {name: torch.from_numpy(array) for name, array in batch.items()}
                network(**current)

    def trainable(self, model: Model) -> nn.Module:
        """A network of its own, weights not frozen."""
        return _load(model)

    def classifier(self, model: Model, classes: Sequence[str], seed: int) -> Model:
        """A Dense module after the pooling, without activation and without Normalize."""
        return head.added(model, classes, seed)

    def to_onnx(self, model: Model) -> Any:
        """The pipeline through PyTorch's exporter, with an additive mask where the network takes one."""
        return copy.deepcopy(_graph(model))

    def parts(self, model: Model) -> tuple[Any, Mapping[str, Array]]:
        """The exported graph. Tensors of equal content, such as the biases of an untrained network, differ a little in
        it: the exporter would make one of them, and leave out those that add nothing.
        """
        return self.to_onnx(widths.told_apart(model)), {}

    def resized(self, model: Model, graph: Any, tensors: Mapping[str, Tensor]) -> Model:
        """The model with the configuration that has these shapes, where there is one; without one the shapes of the
        tensors themselves say how wide each layer is.
        """
        return widths.resized(model, tensors, lambda files: _shapes(_build(files, Path("model"), weights=None)))

    def unused(self, model: Model) -> frozenset[str]:
        """The pooler's."""
        return frozenset(name for name in model.tensors if name.startswith(POOLER))

    def factorable(self, model: Model) -> tuple[Layer, ...]:
        """Linear layers that the vector needs."""
        found = two_factors.whole(model.layers)
        return tuple(layer for layer in found if layer.kind == "linear" and not layer.name.startswith(POOLER))

    def factored(self, model: Model, factors: Mapping[str, tuple[Array, Array]]) -> Model:
        """``NAME`` becomes ``NAME.0``, without a bias, and ``NAME.1``; the names say so, no configuration does."""
        return two_factors.factored(model, factors)

    def projected(self, model: Model, matrix: Array) -> Model:
        """By a Dense module, as sentence-transformers has it, before the normalisation."""
        return projected(model, text_files.plan(model.files, Path("model")), matrix)

    def widths(self, model: Model) -> Widths:
        """As the configuration says."""
        return narrowing.widths(model.files)

    def narrowed_shapes(self, model: Model, hidden: int, inner: int) -> Mapping[str, tuple[int, ...]]:
        """Those of the architecture, without tensors that the model lacks."""
        found = _empty_shapes(narrowing.described(model, hidden, inner))
        return {name: shape for name, shape in found.items() if name in model.tensors}

    def narrowed(self, model: Model, hidden: int, inner: int) -> Model:
        """With a configuration that says so."""
        return narrowing.narrowed(model, hidden, inner, _empty_shapes)

    def save(self, model: Model, folder: Path) -> None:
        """A folder that ``SentenceTransformer`` and ``AutoModel`` load: float32 weights, all small files. Where no
        configuration has the model's shapes, ``model.onnx`` in the place of weights.
        """
        for name, content in model.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if not widths.fit(model.named, _shapes(_build(model.files, Path("model"), weights=None))):
            graph = self.to_onnx(model)
            onnx.save(graph, folder / FILE, save_as_external_data=graph.ByteSize() > LARGEST_SINGLE_FILE)
            return
        plan = text_files.plan(model.files, folder)
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, array in dense(model).items():
            place, _, rest = name.partition(".")
            if place == "dense":
                number, _, rest = rest.partition(".")
                place = plan.dense[int(number)]
            # A copy for each name: safetensors refuses names that share memory.
            groups.setdefault(place, {})[rest] = torch.from_numpy(array).clone()
        for place, weights in groups.items():
            target = folder / ("" if place == "transformer" else place) / "model.safetensors"
            save_torch(weights, target, metadata={"format": "pt"})

    def macs(self, model: Model, length: int) -> int:
        """Counted by PyTorch's operator counter, which counts two operations for each.

        A model that takes fewer than ``length`` tokens is counted at as many as it takes.
        """
        network = _load(model)
        ids = torch.ones((1, min(length, _positions(network.transformer.config))), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(ids, torch.ones_like(ids))
        return int(counter.get_total_flops() // 2)


@lru_cache(maxsize=1)
def _graph(model: Model) -> Any:
    """The exported graph; the last model's is kept, since several backends ask for the same one in a row."""
    network = _load(model)
    ids = torch.randint(1, 5, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    network.additive_mask = _takes_additive_mask(network, ids, mask)
    unused = {name for name in model.tensors if name.startswith(POOLER)} | set(model.tied)
    return skeletons.graph(network, {"input_ids": ids, "attention_mask": mask}, model, dense(model), unused)


def _tokenizer(path: Path, files: dict[str, bytes]) -> bytes:
    lower = bool(text_files.json_of(files, "sentence_bert_config.json").get("do_lower_case"))
    if TOKENIZER in files:
        return text_files.tokenizer_without_padding(files[TOKENIZER], lower)
    try:
        fast = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        return text_files.tokenizer_without_padding(fast.backend_tokenizer.to_str().encode(), lower)
    except Exception as error:  # from_pretrained raises many kinds for a folder without a tokenizer
        raise UsageError(f"{path} has no {TOKENIZER}, and none could be made from its other files") from error


def _weights(path: Path, plan: text_files.Plan) -> dict[str, dict[str, torch.Tensor]]:
    """Safetensors of the transformer (``""``) and of each Dense folder."""
    weights = {}
    for place in ("", *plan.dense):
        shards = sorted((path / place).glob("model*.safetensors"))
        if not shards:
            pickled = next((path / place).glob("pytorch_model*.bin"), None)
            if pickled:
                raise UsageError(f"{pickled} is a pickle, which is never opened; save it again as safetensors")
            raise UsageError(f"{path / place} has no model.safetensors")
        try:
            weights[place] = {
                name: value for shard in shards for name, value in load_file(reading.check_file(shard)).items()
            }
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{shards[0]} cannot be read as safetensors: {error}") from error
    return weights


def _build(files: Any, path: Path, weights: dict[str, dict[str, torch.Tensor]] | None) -> Any:
    """The network of a folder's files, with given weights or, for ``None``, with whatever initialisation leaves."""
    plan = text_files.plan(files, path)
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "config.json").write_bytes(files["config.json"])
        try:
            config = transformers.AutoConfig.from_pretrained(temporary, local_files_only=True)
            transformer = _transformer(config, None if weights is None else weights[""], path)
        except UsageError:
            raise
        except Exception as error:  # of a configuration that is none: any kind
            raise UsageError(f"{path}: transformers cannot build this model: {first_line(error)}") from error
    dense: list[nn.Module] = []
    for place in plan.dense:
        layer = head.dense_layer(text_files.json_of(files, f"{place}/config.json"), f"{path}/{place}")
        if weights is not None:
            layer.load_state_dict(weights[place])
        dense.append(layer)
    network = _Pipeline(transformer, text_files.pooling(files, plan.pooling, path), dense, plan.normalise).eval()
    network.unused = transformer.unused if weights is not None else ()
    return network


def _transformer(config: Any, weights: dict[str, torch.Tensor] | None, path: Path) -> Any:
    """The bare encoder; weights it has but the checkpoint lacks must be of the unused pooler."""
    config.dtype = torch.float32
    text_files.check_blocks(config, path)
    if weights is None:
        return transformers.AutoModel.from_config(config, attn_implementation="eager")
    model_class = transformers.AutoModel._model_mapping[type(config)]
    network, info = model_class.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, attn_implementation="eager"
    )
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise UsageError(f"{path}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}")
    if info.get("mismatched_keys"):
        raise UsageError(f"{path}: {next(iter(info['mismatched_keys']))} has another shape than config.json says")
    network.unused = tuple(f"transformer.{name}" for name in info["missing_keys"])
    return network


def _load(model: Model) -> Any:
    """The network of a model's data, dequantized and without smoothing; tied names are one parameter."""
    network = _build(model.files, Path("model"), weights=None)
    two_factors.factor_(network, model.named)
    widths.widen_(network, {name: tensor.shape for name, tensor in model.named.items()})
    state = {name: torch.from_numpy(array.copy()) for name, array in dense(model).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(POOLER)]
    assert not [*missing, *unexpected], f"tensors do not fit the network: {missing} {unexpected}"
    tie_(network, model.tied)
    return network


def _empty_shapes(files: Mapping[str, bytes]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of the network that files describe, without memory for them."""
    with torch.device("meta"):
        return _shapes(_build(files, Path("model"), weights=None))


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _layers(network: Any, tensors: set[str]) -> tuple[Layer, ...]:
    kinds: dict[type, tuple[Any, int]] = {
        nn.Linear: ("linear", 0),
        nn.Embedding: ("embedding", 0),
        transformers.pytorch_utils.Conv1D: ("linear", 1),
    }
    found = []
    for name, module in network.named_modules():
        if type(module) in kinds and f"{name}.weight" in tensors:
            kind, axis = kinds[type(module)]
            bias = f"{name}.bias" if kind == "linear" and f"{name}.bias" in tensors else msgspec.UNSET
            found.append(Layer(name=name, kind=kind, weight=f"{name}.weight", axis=axis, bias=bias))
    return tuple(found)


def _token_table(network: Any) -> str | None:
    table = network.transformer.get_input_embeddings()
    return next((f"{name}.weight" for name, module in network.named_modules() if module is table), None)


def _dim(network: Any) -> int:
    with torch.inference_mode():
        ids = torch.ones((2, 4), dtype=torch.int64)
        return int(network(ids, torch.ones_like(ids)).shape[1])


def _positions(config: Any) -> int:
    most = getattr(config, "max_position_embeddings", None)
    return text_files.positions(config.model_type, most, config.pad_token_id)


def _takes_additive_mask(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> bool:
    with torch.inference_mode():
        expected = network(ids, mask)
        network.additive_mask = True
        try:
            return bool(torch.allclose(network(ids, mask), expected, atol=1e-5))
        except (ValueError, RuntimeError, IndexError):
            return False


def _array(value: torch.Tensor) -> Array:
    return np.ascontiguousarray(value.detach().numpy())
