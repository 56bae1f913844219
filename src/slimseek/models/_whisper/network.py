"""The reference implementation of a Whisper: transformers' network, run in two parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from slimseek.errors import UsageError, first_line
from slimseek.integers import dense
from slimseek.models._eight_bit import eight_bit
from slimseek.models._text.files import check_blocks, json_of
from slimseek.models._whisper.files import CONFIG
from slimseek.recognise import CROSS, FEATURES, IDS, LOGITS, PAST, PRESENT
from slimseek.schema import Batch, Function, Model

Tensors = dict[str, torch.Tensor]
PROJECTION = "proj_out"


def empty(files: Mapping[str, bytes]) -> Any:
    """The network of a configuration, without memory for its weights."""
    try:
        config = transformers.WhisperConfig(**json_of(files, CONFIG))
        config.dtype = torch.float32
        check_blocks(config, CONFIG)
        with torch.device("meta"):
            return transformers.WhisperForConditionalGeneration(config).eval()
    except UsageError:
        raise
    except Exception as error:  # of a configuration that is none: any kind
        raise UsageError(f"transformers cannot build this model: {first_line(error)}") from error


def load(model: Model, rounded: bool = False) -> Any:
    """The network of a model's data, dequantized and without smoothing, weights of its own; the output's table is that
    of the tokens.

    Args:
        model: its data.
        rounded: whether inputs of layers are rounded as the model says.
    """
    network = empty(model.files)
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in dense(model).items()}
    network.load_state_dict(state, assign=True)
    network.proj_out.weight = network.model.decoder.embed_tokens.weight
    if rounded:
        for layer in model.layers:
            if layer.kind == "linear" and layer.weight in model.activations:
                network.get_submodule(layer.name).forward = eight_bit(model, layer, network)
    return network


def said(network: Any, input_features: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Features [batch, mels, frames] and ids [batch, n] to the logits [batch, n, tokens] behind each of the ids."""
    return stepped(network, encoded(network, input_features) | {IDS: input_ids})[LOGITS]


def functions(network: Any, threads: int) -> dict[str, Function]:
    """``encoder`` and ``decoder`` of a network, from arrays to arrays."""

    def encoder(batch: Batch) -> Batch:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return _arrays(encoded(network, torch.from_numpy(batch[FEATURES])))

    def decoder(batch: Batch) -> Batch:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            given = stepped(network, {name: torch.from_numpy(array) for name, array in batch.items()})
            return _arrays(given | {LOGITS: given[LOGITS][:, -1]})

    return {"encoder": encoder, "decoder": decoder}


def encoded(network: Any, features: torch.Tensor) -> Tensors:
    """Float32 [batch, mels, frames] to the keys and values of every decoder layer for it."""
    encoder, decoder = network.model.encoder, network.model.decoder
    hidden = nn.functional.gelu(encoder.conv1(features))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        rows = layer.self_attn_layer_norm(hidden)
        keys, values = _keys(layer.self_attn, rows)
        hidden = hidden + _attended(layer.self_attn, rows, keys, values)
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    hidden = encoder.layer_norm(hidden)
    found: Tensors = {}
    for number, layer in enumerate(decoder.layers):
        found[f"{CROSS}key_{number}"], found[f"{CROSS}value_{number}"] = _keys(layer.encoder_attn, hidden)
    return found


def stepped(network: Any, given: Tensors) -> Tensors:
    """Ids [batch, n], what was said before and the encoder's part, to logits [batch, n, tokens] and what was said now.

    Keys and values of what was said before may be missing, for a transcript from its beginning.
    """
    decoder, ids = network.model.decoder, given[IDS]
    before = given[f"{PAST}key_0"].shape[2] if f"{PAST}key_0" in given else 0
    places = torch.arange(before, before + ids.shape[1], device=ids.device)
    hidden = decoder.embed_tokens(ids) + decoder.embed_positions.weight[places]
    mask = torch.arange(before + ids.shape[1], device=ids.device)[None, :] <= places[:, None]
    found: Tensors = {}
    for number, layer in enumerate(decoder.layers):
        rows = layer.self_attn_layer_norm(hidden)
        keys, values = _keys(layer.self_attn, rows)
        if before:
            keys = torch.cat([given[f"{PAST}key_{number}"], keys], 2)
            values = torch.cat([given[f"{PAST}value_{number}"], values], 2)
        found[f"{PRESENT}key_{number}"], found[f"{PRESENT}value_{number}"] = keys, values
        hidden = hidden + _attended(layer.self_attn, rows, keys, values, mask)
        rows = layer.encoder_attn_layer_norm(hidden)
        cross = given[f"{CROSS}key_{number}"], given[f"{CROSS}value_{number}"]
        hidden = hidden + _attended(layer.encoder_attn, rows, *cross)
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return {LOGITS: network.proj_out(decoder.layer_norm(hidden)), **found}


def _keys(attention: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _heads(attention, attention.k_proj(rows)), _heads(attention, attention.v_proj(rows))


def _heads(attention: Any, rows: torch.Tensor) -> torch.Tensor:
    """[batch, n, width] to [batch, heads, n, width of a head]."""
    return rows.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _attended(
    attention: Any, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    queries = _heads(attention, attention.q_proj(rows))
    found = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return attention.out_proj(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _arrays(found: Tensors) -> Batch:
    return {name: np.ascontiguousarray(value.numpy()) for name, value in found.items()}
