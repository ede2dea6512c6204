"""Giving one network several tensors: data beside their labels, latents beside a condition."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.components import NetworkFactory, Shape
from ..posteriors import Posterior
from ..priors import Prior
from .base import measure_inputs

__all__ = ["beside", "check_conditioned", "joined", "joint_shape"]


def joint_shape(*shapes: Shape) -> Shape:
    """The shape of what :func:`joined` makes of one of each: ``(total size,)``."""
    return (sum(map(math.prod, shapes)),)


def joined(*parts: tuple[Tensor, Shape]) -> Tensor:
    """Tensors side by side, as one vector for each datum.

    Arguments:
        *parts: tensors ``(*batch, *shape)``, each with its ``shape``. Batch dimensions
            broadcast: one datum may go with many latents, or with every class in turn.

    Returns:
        A tensor ``(*batch, total size)``.
    """
    flat = [t.reshape(*t.shape[: t.ndim - len(shape)], math.prod(shape)) for t, shape in parts]
    batch = torch.broadcast_shapes(*(t.shape[:-1] for t in flat))
    return torch.cat([t.expand(*batch, -1) for t in flat], -1)


def beside(factory: NetworkFactory, event_shape: Shape) -> NetworkFactory:
    """The same factory, for encoders of a datum beside its condition.

    Arguments:
        factory: makes an encoder. One of images gets the condition as constant channels.
        event_shape: the shape of one datum.

    Returns:
        A factory of networks whose inputs are what :func:`joined` makes of data and conditions.
    """
    return partial(_Beside, factory, tuple(event_shape))


def check_conditioned(prior: Prior, posterior: Posterior) -> None:
    """Refuses a prior and a posterior that can do only with q(z|x) or p(x|z).

    Raises:
        ValueError: in one sentence, with what was expected, what came and what to do.
    """
    if not posterior.self_contained:
        raise ValueError(
            f"expected a posterior that needs nothing but its inputs; got "
            f"{type(posterior).__name__}, which is refined with p(x|z), and that needs a "
            f"condition here: choose another"
        )
    if prior.uses_posterior:
        raise ValueError(
            f"expected a prior of its own; got {type(prior).__name__}, which is written with "
            f"q(z|x), and that needs a condition here: choose another"
        )


class _Beside(nn.Module):
    """An encoder of one vector, a datum and then its condition."""

    def __init__(
        self, factory: NetworkFactory, event_shape: Shape, in_shape: Shape, out_shape: Shape
    ) -> None:
        super().__init__()
        self.event_shape = event_shape
        self.sizes = (math.prod(event_shape), in_shape[0] - math.prod(event_shape))
        *planes, height, width = event_shape if len(event_shape) > 1 else (0, 0)
        self.image = (math.prod(planes) + self.sizes[1], height, width)
        # whether a network is one of images it says itself, once it is made
        network = factory(self.image if height else in_shape, out_shape)
        self.of_images = getattr(network, "images_only", False)
        if height and not self.of_images:
            network = factory(in_shape, out_shape)
        self.network: Any = network

    def measure(self, x: Tensor) -> None:
        """Hands the training data, without conditions, on to a network that standardises."""
        measure_inputs(self.network, x)

    def forward(self, both: Tensor) -> Tensor:
        x, c = both.split(self.sizes, -1)
        if getattr(self.network, "standardize", False):
            # undoes for c beforehand what the network, once it has measured, does to all inputs
            scale = self.network.input_scale
            c = self.network.input_mean + torch.where(scale > 0, scale, 1.0) * c
        if not self.of_images:
            return self.network(torch.cat([x, c], -1))
        batch, (_, height, width) = x.shape[:-1], self.image
        channels = c[..., None, None].expand(*batch, self.sizes[1], height, width)
        return self.network(torch.cat([x.reshape(*batch, -1, height, width), channels], -3))
