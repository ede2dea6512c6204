"""Networks: tensors to tensors. No distribution lives here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ._component import Shape, positive

__all__ = ["MLP"]


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
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width_in, positive("every width in hidden", width_out))]
            layers += [activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[: x.ndim - len(self.in_shape)]
        if x.shape[len(batch) :] != self.in_shape:
            expected = ", ".join(map(str, ("…", *self.in_shape)))
            raise ValueError(f"expected an input of shape ({expected}); got {tuple(x.shape)}")
        return self.layers(x.reshape(*batch, -1)).reshape(*batch, *self.out_shape)
