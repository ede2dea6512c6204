"""Networks: tensors to tensors. No distribution lives here."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from ._component import Shape, positive

__all__ = ["MLP", "GatedMLP"]


class MLP(nn.Module):
    """A multilayer perceptron, ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``.

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        hidden: the widths of the hidden layers; ``()`` is a linear map.
        activation: makes the module between two layers.

    Raises:
        ValueError: if a width is not a positive integer, or if called on an input whose
            trailing dimensions are not ``in_shape``.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Shape = (200, 200),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        widths = [math.prod(in_shape), *hidden, math.prod(out_shape)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, positive("every width in hidden", width_out))]
            layers += [activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _flat(self.layers, x, self.in_shape, self.out_shape)


class GatedMLP(nn.Module):
    """A multilayer perceptron whose hidden layers are gated: h = A x · sigmoid(G x).

    Arguments:
        in_shape: the shape of one input.
        out_shape: the shape of one output.
        hidden: the widths of the hidden layers.

    Raises:
        ValueError: if a width is not a positive integer, or if called on an input whose
            trailing dimensions are not ``in_shape``.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), section 5.1; Language Modeling with
        Gated Convolutional Networks (Dauphin et al., 2016), equation 1.
        https://arxiv.org/abs/1705.07120 https://arxiv.org/abs/1612.08083
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, hidden: Shape = (300, 300)) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        widths = [math.prod(in_shape), *(positive("every width in hidden", w) for w in hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            # one matrix for both: GLU multiplies its halves
            layers += [nn.Linear(width_in, 2 * width_out), nn.GLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(out_shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _flat(self.layers, x, self.in_shape, self.out_shape)


def _flat(layers: nn.Module, x: torch.Tensor, in_shape: Shape, out_shape: Shape) -> torch.Tensor:
    """Layers of vectors, applied to tensors of any event shape and any batch dimensions."""
    batch = x.shape[: x.ndim - len(in_shape)]
    if x.shape[len(batch) :] != in_shape:
        expected = ", ".join(map(str, ("…", *in_shape)))
        raise ValueError(f"expected an input of shape ({expected}); got {tuple(x.shape)}")
    return layers(x.reshape(*batch, math.prod(in_shape))).reshape(*batch, *out_shape)
