"""Speech recognisers in the layout of transformers: Whisper's encoder and decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from slimseek import reading
from slimseek.bases import Family
from slimseek.errors import UsageError
from slimseek.hollow import is_hollow
from slimseek.inputs.text import TOKENIZER
from slimseek.integers import dense, take_rows
from slimseek.models._text import files as text_files
from slimseek.models._whisper import graph as graphs
from slimseek.models._whisper import network as networks
from slimseek.models._whisper.files import (
    CONFIG,
    FRAMES_OF_A_PLACE,
    PLACES,
    Shape,
    is_computed,
    is_whisper,
    shape,
    spec,
    with_short_window,
    with_window,
)
from slimseek.recognise import FEATURES, IDS, decoded
from slimseek.schema import Array, Batch, Encode, Function, Layer, Model, QuantizedTensor, Tensor

WEIGHTS = "model*.safetensors"
SAVED = "model.safetensors"
NO_VECTOR = "a recogniser gives transcripts, not vectors"
TIED = {"proj_out.weight": graphs.TABLE}
KINDS: dict[type, tuple[Any, int]] = {
    nn.Linear: ("linear", 0),
    nn.Conv1d: ("convolution", 0),
    nn.Embedding: ("embedding", 0),
}


class Whisper(Family):
    """An encoder of 30 seconds of speech, and a decoder that says a token after the other (Radford et al., 2022)."""

    def recognises(self, path: Path) -> bool:
        """A folder whose ``config.json`` says so."""
        return is_whisper(path)

    def open(self, path: Path) -> Model:
        """Read configurations, tokenizer and safetensors weights, which become float32."""
        files = {name: content for name, content in text_files.small_files(path).items() if name != "slimseek.json"}
        if TOKENIZER not in files:
            raise UsageError(f"{path} has no {TOKENIZER}")
        widths = shape(files, path)
        network = networks.empty(files)
        tensors = _tensors(path, network)
        layers = _layers(network, leave_out=PLACES if is_computed(tensors[PLACES]) else "")
        return Model(spec=spec(files, widths), files=files, tensors=tensors, layers=layers, tied=TIED)

    def run(self, model: Model, threads: int) -> Encode:
        """Refused: there is no vector."""
        raise UsageError(f"{NO_VECTOR}; slimseek.choose.recogniser opens it")

    def computed(self, model: Model, threads: int) -> Mapping[str, Function]:
        """PyTorch in float32 on the dequantized weights; inputs of layers are rounded where the model says so."""
        return networks.functions(networks.load(model, rounded=True), threads)

    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Show the input of every linear layer: of the encoder on the windows, of the decoder on the transcripts that
        the model itself gives of them, what follows their ends left out.
        """
        network, current = networks.load(model), {"keep": torch.zeros(0, 0, dtype=torch.bool)}
        threads = torch.get_num_threads()
        functions = networks.functions(network, threads)
        assert model.spec.decoding
        for batch in batches:
            said = decoded(functions["encoder"], functions["decoder"], model.spec.decoding, batch)
            ids, current["keep"] = _padded([prompt + own for prompt, own in said], model.spec.decoding.end)
            hooks = [
                network.get_submodule(layer.name).register_forward_pre_hook(_shown(model, layer, current, visit))
                for layer in model.layers
                if layer.kind == "linear"
            ]
            with torch.inference_mode():
                networks.stepped(network, networks.encoded(network, torch.from_numpy(batch[FEATURES])) | {IDS: ids})
            for hook in hooks:
                hook.remove()

    def trainable(self, model: Model) -> nn.Module:
        """Transformers' network, which gives the logits [batch, n, tokens] behind each of the ids of the decoder."""
        network = networks.load(model)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        if is_computed(model.tensors[PLACES]):  # else a package would have to store what training has moved
            network.model.encoder.embed_positions.requires_grad_(False)
        network.forward = partial(networks.said, network)
        return network  # type: ignore[no-any-return]

    def windowed(self, model: Model, seconds: int, whole: bool) -> Model:
        """The first places of the encoder stay, or all."""
        assert model.spec.sound
        files = (
            with_short_window(model.files, seconds) if whole else with_window(model.files, model.spec.sound, seconds)
        )
        now = spec(files, shape(files))
        rows = np.arange(shape(files).max_source_positions)
        assert model.spec.decoding
        assert now.decoding
        decoding = msgspec.structs.replace(model.spec.decoding, most=min(model.spec.decoding.most, now.decoding.most))
        changed = msgspec.structs.replace(model.spec, inputs=now.inputs, sound=now.sound, decoding=decoding)
        tensors = dict(model.tensors) | {PLACES: take_rows(model.tensors[PLACES], rows)}
        return dataclasses.replace(model, spec=changed, files=files, tensors=tensors)

    def to_onnx(self, model: Model) -> Any:
        """Refused: there are two graphs."""
        raise UsageError(f"{NO_VECTOR}: it is two graphs, an encoder and a decoder")

    def functions(self, model: Model) -> Mapping[str, Any]:
        """Both graphs, for a window of fixed length or, where there is a short one too, of any; any batch, and any
        number of tokens before and now.
        """
        assert model.spec.sound
        tensors, widths = dense(model), shape(model.files)
        computed, places = is_computed(model.tensors[PLACES]), "places" if model.spec.sound.short else None
        return {
            "encoder": graphs.encoder(tensors, widths, computed, places),
            "decoder": graphs.decoder(tensors, widths, places),
        }

    def unused(self, model: Model) -> frozenset[str]:
        """The encoder's table of places, where a graph computes it; so it will be in a plan, whose table holds nothing,
        unless it is a layer's.
        """
        table = model.tensors[PLACES]
        planned = not isinstance(table, QuantizedTensor) and is_hollow(table)
        computed = all(layer.weight != PLACES for layer in model.layers) if planned else is_computed(table)
        return frozenset([PLACES] if computed else [])

    def save(self, model: Model, folder: Path) -> None:
        """A folder that ``WhisperForConditionalGeneration`` and ``WhisperProcessor`` load: float32, the table once."""
        for name, content in model.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        tensors = {name: array for name, array in dense(model).items() if name not in model.tied}
        whole = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(whole, folder / SAVED, metadata={"format": "pt"})

    def macs(self, model: Model, length: int) -> int:
        """For one window and a transcript of ``length`` tokens."""
        widths = shape(model.files)
        return sum(self.layer_macs(model, length).values()) + _attention_macs(widths, length)

    def layer_macs(self, model: Model, length: int) -> dict[str, int]:
        """The encoder's layers meet every place of the window, the second convolution's too and the first one's all
        frames; the decoder's meet every token, the last one its table.
        """
        places = shape(model.files).max_source_positions
        found = {layer.weight: 0 for layer in model.layers}
        for layer in model.layers:
            if layer.kind == "embedding":
                continue
            cross = ".encoder_attn.k_proj" in layer.name or ".encoder_attn.v_proj" in layer.name
            met = places if ".encoder." in layer.name or cross else length
            met *= FRAMES_OF_A_PLACE if layer.name.endswith("conv1") else 1
            found[layer.weight] += met * int(np.prod(model.tensors[layer.weight].shape))
        return found


def _attention_macs(widths: Shape, length: int) -> int:
    """Scores and their sums: of every place with every place, of every token with those before it and every place."""
    places = widths.max_source_positions
    encoder = widths.encoder_layers * 2 * places * places * widths.d_model
    return encoder + widths.decoder_layers * 2 * (length * (length + 1) // 2 + length * places) * widths.d_model


def _tensors(path: Path, network: Any) -> dict[str, Tensor]:
    """Every tensor of the network, float32; the output's table may be stored too where it is that of the tokens."""
    files = sorted(path.glob(WEIGHTS))
    if not files:
        raise UsageError(f"{path} has no {SAVED}")
    try:
        found = {name: array for file in files for name, array in load_file(reading.check_file(file)).items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{files[0]} cannot be read as safetensors: {error}") from error
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in TIED}
    for name, size in wanted.items():
        if name not in found:
            raise UsageError(f"{path}: the weights lack {name}")
        if found[name].shape != size:
            raise UsageError(f"{path}: {name} is {list(found[name].shape)}, and {CONFIG} says {list(size)}")
    unknown = set(found) - set(wanted) - set(TIED)
    if unknown:
        raise UsageError(f"{path}: {CONFIG} has no place for {min(unknown)}")
    for name, own in TIED.items():
        if name in found and not np.array_equal(found[name], found[own]):
            raise UsageError(f"{path}: {name} is not {own}, as it is in every Whisper")
    return {name: found[name].astype(np.float32) for name in wanted}


def _layers(network: Any, leave_out: str) -> tuple[Layer, ...]:
    """Linear layers, convolutions and tables but that of the places, where it is computed; the output's product names
    the table of the tokens.
    """
    found = []
    for name, module in network.named_modules():
        kind = next((kind for base, kind in KINDS.items() if isinstance(module, base)), None)
        if kind is not None:
            bias = f"{name}.bias" if kind[0] == "linear" and module.bias is not None else msgspec.UNSET
            weight = TIED.get(f"{name}.weight", f"{name}.weight")
            if weight == leave_out:
                continue
            found.append(Layer(name=name, kind=kind[0], weight=weight, axis=kind[1], bias=bias))
    return tuple(found)


def _padded(rows: list[list[int]], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [batch, n] and which of them were said."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[place < len(row) for place in range(width)] for row in rows])


def _shown(
    model: Model, layer: Layer, current: Mapping[str, torch.Tensor], visit: Callable[[str, Array], None]
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook that shows a layer's input, of tokens only those that were said."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values, keep = inputs[0], current["keep"]
        rows = (values[keep] if values.shape[:2] == keep.shape else values.flatten(0, -2)).numpy()
        smoothing = model.smoothing.get(layer.weight)
        visit(layer.weight, rows if smoothing is None else rows / smoothing.reshape(-1))

    return hook
