"""How the vectors of a model change with its weights, without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from slimseek.choose import family
from slimseek.importance._evidence import Evidence
from slimseek.inputs.batches import batches, spread
from slimseek.schema import Array

ITEMS = 64


def gradients(evidence: Evidence) -> Iterator[Mapping[str, Array]]:
    """Gradients of the vectors' product with random signs r, one mapping of tensors for each batch of items.

    The gradient g of r v by a weight tells how the vectors v move along one random direction; E[(g w)^2] over r is the
    squared length of the movement when the weight is set to zero, to first order.

    Raises:
        UsageError: the model's family cannot be trained.
    """
    network = family(evidence.model).trainable(evidence.model)
    generator = torch.Generator().manual_seed(evidence.seed)
    names = {name for name, _ in evidence.places}
    named = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if name in names}
    wanted = list({id(tensor): tensor for tensor in named.values()}.values())
    for tensor in wanted:
        tensor.requires_grad_(True)
    for batch in batches(evidence.model, spread(evidence.items, ITEMS)):
        vectors = network(**{name: torch.from_numpy(array) for name, array in batch.items()})
        signs = torch.randint(0, 2, vectors.shape, generator=generator).to(vectors.dtype) * 2 - 1
        found = torch.autograd.grad((vectors * signs).sum(), wanted, allow_unused=True)
        by_tensor = {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True)}
        yield {name: by_tensor[id(tensor)].numpy() for name, tensor in named.items()
               if by_tensor[id(tensor)] is not None}  # fmt: skip
