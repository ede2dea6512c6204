"""Concatenated network inputs: examples with labels, latents with conditions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.components import NetworkFactory, Shape
from ..posteriors import Posterior
from ..priors import Prior
from .base import init_standardization

__all__ = [
    "check_conditional_parts",
    "concat_flattened",
    "concat_shape",
    "make_conditional_factory",
]


def concat_shape(*shapes: Shape) -> Shape:
    """Return the event shape of :func:`concat_flattened`, ``(total size,)``."""
    return (sum(map(math.prod, shapes)),)


def concat_flattened(*parts: tuple[Tensor, Shape]) -> Tensor:
    """Flatten the event dimensions of tensors and concatenate them.

    Arguments:
        *parts: pairs of a tensor ``(*batch, *shape)`` and its event shape ``shape``. Batch
            dimensions broadcast, for example one example against many latents or all classes.

    Returns:
        A tensor ``(*batch, total size)``.
    """
    flat = [t.reshape(*t.shape[: t.ndim - len(shape)], math.prod(shape)) for t, shape in parts]
    batch = torch.broadcast_shapes(*(t.shape[:-1] for t in flat))
    return torch.cat([t.expand(*batch, -1) for t in flat], -1)


def make_conditional_factory(factory: NetworkFactory, event_shape: Shape) -> NetworkFactory:
    """Return a factory of encoders of an example and its condition.

    Arguments:
        factory: factory of encoders. Image encoders receive the condition as constant
            channels.
        event_shape: shape of one example.

    Returns:
        A factory of networks for inputs from :func:`concat_flattened`, an example followed by
        its condition.
    """
    return partial(_ConditionalEncoder, factory, tuple(event_shape))


def check_conditional_parts(prior: Prior, posterior: Posterior) -> None:
    """Raise if the posterior needs p(x|z), or the prior q(z|x), without a condition.

    Raises:
        ValueError: if one of them cannot be used in a conditional program.
    """
    if not posterior.self_contained:
        raise ValueError(
            f"expected a posterior that depends on its inputs alone; got "
            f"{type(posterior).__name__}, which needs p(x|z) without a condition: choose another"
        )
    if prior.uses_posterior:
        raise ValueError(
            f"expected a prior that does not depend on the posterior; got "
            f"{type(prior).__name__}, which needs q(z|x) without a condition: choose another"
        )


class _ConditionalEncoder(nn.Module):
    """An encoder of a vector, the concatenation of an example and its condition."""

    def __init__(
        self, factory: NetworkFactory, event_shape: Shape, in_shape: Shape, out_shape: Shape
    ) -> None:
        super().__init__()
        self.event_shape = event_shape
        self.sizes = (math.prod(event_shape), in_shape[0] - math.prod(event_shape))
        *planes, height, width = event_shape if len(event_shape) > 1 else (0, 0)
        self.image_shape = (math.prod(planes) + self.sizes[1], height, width)
        # only the network itself knows whether it takes images, so it has to be created first
        network = factory(self.image_shape if height else in_shape, out_shape)
        self.takes_images = getattr(network, "images_only", False)
        if height and not self.takes_images:
            network = factory(in_shape, out_shape)
        self.network: Any = network

    def fit_standardization(self, x: Tensor) -> None:
        """Compute the network's input statistics from examples without their conditions."""
        init_standardization(self.network, x)

    def forward(self, inputs: Tensor) -> Tensor:
        x, c = inputs.split(self.sizes, -1)
        if getattr(self.network, "standardize", False):
            # the network standardises all its inputs; invert that for c in advance
            scale = self.network.input_scale
            c = self.network.input_mean + torch.where(scale > 0, scale, 1.0) * c
        if not self.takes_images:
            return self.network(torch.cat([x, c], -1))
        batch, (_, height, width) = x.shape[:-1], self.image_shape
        channels = c[..., None, None].expand(*batch, self.sizes[1], height, width)
        return self.network(torch.cat([x.reshape(*batch, -1, height, width), channels], -3))
