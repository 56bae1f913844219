"""A PyTorch network as an ExecuTorch program whose products and convolutions are XNNPACK's, and what the file holds."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from executorch.backends.xnnpack.operators import node_visitor
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, tag_as_implicit_q_dq
from executorch.backends.xnnpack.utils.utils import get_input_node
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from slimseek.errors import UsageError, first_line

LINEAR = "aten.linear.default"
COPY = "dim_order_ops._to_dim_order_copy.default"


class _Linear(LinearConfig):
    """Linear layers of float inputs and small weights too, whose kernels XNNPACK has: the partitioner of ExecuTorch
    leaves them to slow portable ones.
    """

    def get_deps(self, node: Any, ep: Any) -> tuple[bool, list[Any]]:
        """The nodes that become one product."""
        weight, values = get_input_node(node, 1), get_input_node(node, 0)
        if is_dequant(weight) and not is_dequant(values):
            tag_as_implicit_q_dq(weight)
            return True, [weight, *weight.all_input_nodes]
        if _is_widened(weight):
            return True, [weight, *weight.all_input_nodes]
        found: tuple[bool, list[Any]] = super().get_deps(node, ep)
        return found


def _is_widened(weight: Any) -> bool:
    """Whether a node widens a weight that is stored in 16 bits."""
    if weight.op != "call_function" or weight.target.__name__ != COPY:
        return False
    [source] = weight.all_input_nodes
    return source.op == "placeholder" and source.meta["val"].dtype == torch.float16


@contextlib.contextmanager
def _half_weights() -> Iterator[None]:
    """XNNPACK multiplies by weights of 16 bits as they are; the node that would widen them before writes nothing."""
    visitors = node_visitor._node_visitor_dict
    linear, copy = visitors[LINEAR], visitors.get(COPY)

    class Halves(linear):  # type: ignore[misc,valid-type]
        def define_node(self, node: Any, graph: Any, ids: dict[Any, int], handle: int) -> None:
            weight = get_input_node(node, 1)
            if _is_widened(weight):
                self.define_tensor(weight.args[0], graph, ids)
                ids[weight] = ids[weight.args[0]]
            super().define_node(node, graph, ids, handle)

    class Nothing(node_visitor.NodeVisitor):  # type: ignore[misc]
        def define_node(self, node: Any, graph: Any, ids: dict[Any, int], handle: int) -> None:
            return None

    visitors[LINEAR], visitors[COPY] = Halves, Nothing
    try:
        yield
    finally:
        visitors[LINEAR] = linear
        if copy is None:
            del visitors[COPY]
        else:
            visitors[COPY] = copy


def program(network: nn.Module, example: Sequence[Tensor], longest: int | None) -> bytes:
    """The file of a network, which takes one row.

    Args:
        network: in evaluation mode.
        example: its inputs, in order; of texts [1, tokens].
        longest: tokens of the longest row, for inputs of free length; ``None`` where shapes are fixed.

    Raises:
        UsageError: PyTorch or ExecuTorch cannot write it.
    """
    shapes = None
    if longest is not None:
        tokens = torch.export.Dim("tokens", min=2, max=longest)
        shapes = {"inputs": tuple({1: tokens} for _ in example)}
    configs = [_Linear if config is LinearConfig else config for config in ALL_PARTITIONER_CONFIGS]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _half_weights():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network, tuple(example), dynamic_shapes=shapes, strict=False)
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner(configs=configs)])
            written: bytes = edge.to_executorch().buffer
    except UsageError:
        raise
    except Exception as error:  # the exporters raise many kinds, for whatever they cannot take
        raise UsageError(
            f"ExecuTorch cannot take this model ({first_line(error)}); deploy for onnxruntime instead"
        ) from error
    finally:
        logging.disable(level)
    return written


def digest(content: bytes) -> str:
    """The key by which XNNPACK's constants are found in a file."""
    return hashlib.sha256(content).hexdigest()


def blobs(content: bytes, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Constants in the bytes of a ``.pte`` file by their digest: XNNPACK's, and those of portable operators.

    Args:
        content: the file.
        sizes: digest to length of those that are asked for.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(content)
    held = [bytes(buffer.storage) for buffer in file.program.constant_buffer]
    held += [bytes(one) for one in (file.named_data.buffers if file.named_data else ())]
    found = {}
    for size in set(sizes.values()):
        for one in held:
            if len(one) >= size:
                found[digest(one[:size])] = one[:size]
    return {key: found[key] for key in sizes if key in found}
