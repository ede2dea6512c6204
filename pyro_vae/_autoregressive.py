"""Autoregressive transforms, shared by the priors and the posteriors that are made of them."""

from __future__ import annotations

import warnings

import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from ._component import Shape, positive

__all__ = ["AffineAutoregressive", "autoregressive_network"]


def autoregressive_network(
    latent_dim: int,
    hidden: Shape,
    parameters: list[int],
    context: int = 0,
    *,
    reverse: bool = False,
) -> nn.Module:
    """Pyro's masked network: what it says of a variable depends on those before it alone.

    Arguments:
        latent_dim: the number of variables D.
        hidden: the widths of the hidden layers.
        parameters: how many numbers of each kind it says of a variable.
        context: how many further inputs everything may depend on.
        reverse: count the variables from the last to the first.

    Raises:
        ValueError: if there is no hidden layer, or one is narrower than D, so that not every
            variable could be heard.
    """
    for width in hidden:
        positive("every width in hidden", width)
    if not hidden or min(hidden) < latent_dim:
        raise ValueError(
            f"expected one or more hidden layers of an autoregressive network, each at least as "
            f"wide as the {latent_dim} latents; got hidden={tuple(hidden)}: widen them"
        )
    order = torch.arange(latent_dim)
    options = {
        "param_dims": parameters,
        "permutation": order.flip(0) if reverse else order,
        "nonlinearity": nn.ELU(),
    }
    with warnings.catch_warnings():
        # of a single variable, which is a sensible limit
        warnings.filterwarnings("ignore", message=".*input_dim = 1")
        if context:
            return ConditionalAutoRegressiveNN(latent_dim, context, list(hidden), **options)
        return AutoRegressiveNN(latent_dim, list(hidden), **options)


class AffineAutoregressive(transforms.AffineAutoregressive):
    """Pyro's transform, whose inverse starts from zeros of float32 whatever the data's type.

    Arguments:
        network: from :func:`autoregressive_network`, of parameters ``[1, 1]``.
        context: its further inputs ``(*batch, context)``, if it has any.
        stable: σ x + (1 − σ) m with σ in (0, 1), in place of exp(s) x + m.
    """

    def __init__(
        self, network: nn.Module, context: Tensor | None = None, *, stable: bool = False
    ) -> None:
        # a function hides the network: its parameters are those of whoever made it
        super().__init__(lambda x: _said(network, x, context), stable=stable)
        self._inverse = self._invert

    def _invert(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        # each pass puts one more variable right, in the network's order
        for _ in range(y.shape[-1]):
            miss = y - self._call(x)
            assert self._cached_log_scale is not None  # the call has just set it
            x = x + miss * torch.exp(-self._cached_log_scale)
        return x


def _said(network: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    if context is None:
        return network(x)
    # Pyro's network stretches the context over x only; a mixture needs the other way too
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return network(x.expand(*batch, -1), context=context)
