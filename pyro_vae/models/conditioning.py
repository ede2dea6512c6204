"""Concatenated network inputs: examples with labels, latents with conditions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.components import NetworkFactory, Shape, init_standardization
from .parts import CheckedFactory

__all__ = ["concat_flattened", "concat_shape", "make_conditional_factory"]


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


def make_conditional_factory(factory: CheckedFactory) -> NetworkFactory:
    """Return a factory of encoders for :func:`concat_flattened` of an example and its condition.

    Image encoders receive the condition as constant channels.
    """
    return partial(_ConditionalEncoder, factory)


class _ConditionalEncoder(nn.Module):
    """An encoder of a vector, the concatenation of an example and its condition."""

    def __init__(self, factory: CheckedFactory, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        event_shape = factory.event_shape
        self.sizes = (math.prod(event_shape), in_shape[0] - math.prod(event_shape))
        *planes, height, width = event_shape if len(event_shape) > 1 else (0, 0)
        self.image_shape = (math.prod(planes) + self.sizes[1], height, width)
        # only the network itself knows whether it takes images, so a factory has to create it first
        is_module = isinstance(factory.source, nn.Module)
        network: Any = factory.source
        if not is_module:
            network = factory(self.image_shape if height else in_shape, out_shape)
        self.takes_images = getattr(network, "images_only", False)
        if is_module or (height and not self.takes_images):
            network = factory(self.image_shape if self.takes_images else in_shape, out_shape)
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
