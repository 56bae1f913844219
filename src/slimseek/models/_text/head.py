"""Dense modules after the pooling, and the one that makes a text encoder a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from slimseek.errors import UsageError
from slimseek.models._text import files as text_files
from slimseek.schema import Layer, Model, Tensor

ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}
MODULES = "modules.json"
CONFIG = "config.json"
SIMILARITY = "config_sentence_transformers.json"
SPREAD = 0.02
"""Standard deviation of a new head's weights, as BERT's own are initialised."""


class Dense(nn.Module):
    """A Dense module of sentence-transformers."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        """Float32 [batch, inputs] to [batch, outputs]."""
        return self.activation(self.linear(vector))


def dense_layer(config: dict[str, Any], path: str) -> Dense:
    """The layer that the configuration of a Dense module describes; UsageError where it is not whole."""
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS or not {"in_features", "out_features"} <= set(config):
        raise UsageError(
            f"{path}: config.json needs in_features, out_features and an activation of {list(ACTIVATIONS)}"
        )
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    return Dense(linear, ACTIVATIONS[name]())


def classes(files: Mapping[str, bytes], plan: text_files.Plan) -> tuple[str, ...]:
    """Names of the classes, where the last module is a Dense without activation that gives a logit for each of the
    labels of config.json; else none.
    """
    labels = text_files.json_of(files, CONFIG).get("id2label")
    if plan.normalise or not plan.dense or not isinstance(labels, dict):
        return ()
    last = text_files.json_of(files, f"{plan.dense[-1]}/{CONFIG}")
    plain = str(last.get("activation_function", "")).endswith("Identity")
    if not plain or last.get("out_features") != len(labels) or set(labels) != set(map(str, range(len(labels)))):
        return ()
    return tuple(str(labels[str(number)]) for number in range(len(labels)))


def added(model: Model, names: Sequence[str], seed: int) -> Model:
    """The model with a head for these classes.

    The head stands on the pooled vector, or on the last Dense module's where there is one. It is written as
    sentence-transformers has it: a Dense module without activation, no Normalize after it, similarity ``dot``.
    """
    plan = text_files.plan(model.files, Path("model"))
    place = f"{2 + len(plan.dense)}_Dense"
    name = f"dense.{len(plan.dense)}.linear"
    weight = np.random.default_rng(seed).normal(0, SPREAD, (len(names), model.spec.dim)).astype(np.float32)
    tensors: dict[str, Tensor] = {**model.tensors, f"{name}.weight": weight,
                                  f"{name}.bias": np.zeros(len(names), np.float32)}  # fmt: skip
    spec = msgspec.structs.replace(
        model.spec, output="class_logits", dim=len(names), normalised=False, classes=tuple(names)
    )
    layer = Layer(name=name, kind="linear", weight=f"{name}.weight", axis=0, bias=f"{name}.bias")
    files = _files(model, plan, place, names)
    return dataclasses.replace(model, spec=spec, files=files, tensors=tensors, layers=(*model.layers, layer))


def _files(model: Model, plan: text_files.Plan, place: str, names: Sequence[str]) -> dict[str, bytes]:
    """The small files that describe it."""
    files = dict(model.files)
    pooling = plan.pooling or "1_Pooling"
    if f"{pooling}/{CONFIG}" not in files:  # a bare transformers folder, or the mean that no file names
        files[f"{pooling}/{CONFIG}"] = _json({"word_embedding_dimension": model.spec.dim,
                                              "pooling_mode_mean_tokens": True})  # fmt: skip
    modules = [("Transformer", ""), ("Pooling", pooling), *(("Dense", dense) for dense in (*plan.dense, place))]
    files[MODULES] = _json([
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ])  # fmt: skip
    files[f"{place}/{CONFIG}"] = _json({
        "in_features": model.spec.dim, "out_features": len(names), "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    })  # fmt: skip
    labels = {str(number): name for number, name in enumerate(names)}
    numbers = {name: number for number, name in enumerate(names)}
    files[CONFIG] = _json(text_files.json_of(files, CONFIG) | {"id2label": labels, "label2id": numbers})
    files[SIMILARITY] = _json(text_files.json_of(files, SIMILARITY) | {"similarity_fn_name": "dot"})
    return files


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
