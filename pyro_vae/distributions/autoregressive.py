"""Autoregressive transforms, shared by the priors and the posteriors that are made of them."""

from __future__ import annotations

import math
import warnings
from typing import cast

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.spline import ConditionedSpline
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from ..core.components import Shape
from ..core.validation import positive_int

__all__ = [
    "AffineAutoregressive",
    "SplineAutoregressive",
    "autoregressive_network",
    "check_spline",
]


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
        positive_int("every width in hidden", width)
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
    """Pyro's transform, with an inverse for any type of numbers (Pyro's starts from float32).

    Arguments:
        network: from :func:`autoregressive_network`, of parameters ``[1, 1]``; its
            ``permutation`` is the order of the variables.
        context: its further inputs ``(*batch, context)``, if it has any.
        stable: σ x + (1 − σ) m with σ in (0, 1), in place of exp(s) x + m.
    """

    def __init__(
        self,
        network: nn.Module,
        context: Tensor | None = None,
        *,
        stable: bool = False,
    ) -> None:
        # a function hides the network: its parameters are those of whoever made it
        super().__init__(lambda x: _said(network, x, context), stable=stable)
        self.order = cast(Tensor, network.permutation)
        self._inverse = self._invert

    def _invert(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        index = torch.arange(y.shape[-1], device=y.device)
        # one variable after the other: those that are not right yet may be far off, and a
        # masked 0 · ∞ would spoil those that are
        for variable in self.order:
            miss = y - self._call(x)
            assert self._cached_log_scale is not None  # the call has just set it
            step = miss * torch.exp(-self._cached_log_scale)
            x = torch.where(index == variable, x + step, x)
        return x


class SplineAutoregressive(transforms.SplineAutoregressive):
    """Pyro's transform of rational-quadratic splines, inverted in float64.

    In float32 the root that inverts a spline loses its digits, or is that of a negative number.

    Arguments:
        network: from :func:`autoregressive_network`, of parameters ``[bins, bins, bins − 1]``.
        latent_dim: the number of variables D.
        bins: the number of segments of each spline.
        bound: where the splines end.
        context: the network's further inputs ``(*batch, context)``, if it has any.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        bins: int,
        bound: float,
        context: Tensor | None = None,
    ) -> None:
        super().__init__(
            latent_dim, lambda x: _said(network, x, context), bins, bound, order="quadratic"
        )

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            knots = self.spline.condition(x)._params()
            double = [None if knot is None else knot.double() for knot in knots]
            spline = ConditionedSpline(double, bound=self.spline.bound, order="quadratic")
            x = spline._inverse(y.double()).to(y.dtype)
            self._cache_log_detJ = cast(Tensor, spline._cache_log_detJ).to(y.dtype)
        return x


def check_spline(bins: int, bound: float) -> tuple[int, float]:
    """``bins`` and ``bound`` if there are such splines.

    Raises:
        ValueError: if there are not.
    """
    if positive_int("bins", bins) > _MOST_BINS:
        raise ValueError(f"expected bins ≤ {_MOST_BINS}; got {bins}")
    if not 0 < bound < math.inf:
        raise ValueError(f"expected bound > 0 and finite; got {bound}")
    return bins, bound


#: Pyro gives every bin a thousandth of the width at least.
_MOST_BINS = 1000


def _said(network: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    if context is None:
        return network(x)
    # Pyro's network stretches the context over x only; a mixture needs the other way too
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return network(x.expand(*batch, -1), context=context)
