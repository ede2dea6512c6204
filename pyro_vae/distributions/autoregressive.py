"""Autoregressive transforms for flow priors and posteriors."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import cast

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.spline import ConditionedSpline
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from ..core.components import Shape
from ..core.validation import as_shape, positive_int

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
    """Make Pyro's masked network: the outputs for a variable depend only on earlier variables.

    Arguments:
        latent_dim, hidden: the number of variables D, and the widths of the hidden layers.
        parameters: the number of outputs per variable, for each kind of parameter.
        context: the number of additional inputs that all outputs may depend on.
        reverse: order the variables from the last to the first.

    Raises:
        ValueError: if there is no hidden layer, or if one is narrower than D, which would mask
            some variables completely.
    """
    hidden = as_shape("hidden", hidden)
    if not hidden or min(hidden) < latent_dim:
        raise ValueError(
            f"expected one or more hidden layers of an autoregressive network, each at least as "
            f"wide as the {latent_dim} latents; got hidden={hidden}: use wider layers"
        )
    order = torch.arange(latent_dim)
    options = {
        "param_dims": parameters,
        "permutation": order.flip(0) if reverse else order,
        "nonlinearity": nn.ELU(),
    }
    with warnings.catch_warnings():
        # a single variable is a valid special case
        warnings.filterwarnings("ignore", message=".*input_dim = 1")
        if context:
            return ConditionalAutoRegressiveNN(latent_dim, context, list(hidden), **options)
        return AutoRegressiveNN(latent_dim, list(hidden), **options)


class AffineAutoregressive(transforms.AffineAutoregressive):
    """Pyro's affine transform with an inverse for any dtype (Pyro's starts from float32).

    Arguments:
        network: from :func:`autoregressive_network`, with parameters ``[1, 1]``; its
            ``permutation`` is the order of the variables.
        context: optional additional inputs of the network, ``(*batch, context)``.
        stable: use σ x + (1 − σ) m with σ in (0, 1) instead of exp(s) x + m.
    """

    def __init__(
        self, network: nn.Module, context: Tensor | None = None, *, stable: bool = False
    ) -> None:
        # a function, so that the network is not registered here: its owner has the parameters
        super().__init__(partial(_apply_network, network, context=context), stable=stable)
        self.order = cast(Tensor, network.permutation)
        self._inverse = self._invert

    def _invert(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        index = torch.arange(y.shape[-1], device=y.device)
        # update one variable at a time: later ones may still be far off, and a masked 0 · ∞
        # would turn the finished ones into NaN
        for variable in self.order:
            residual = y - self._call(x)
            assert self._cached_log_scale is not None  # set by _call
            step = residual * torch.exp(-self._cached_log_scale)
            x = torch.where(index == variable, x + step, x)
        return x


class SplineAutoregressive(transforms.SplineAutoregressive):
    """Pyro's rational-quadratic spline transform, inverted in float64.

    In float32 the square root in the inverse loses its digits, or its argument becomes negative.

    Arguments:
        network: from :func:`autoregressive_network`, with parameters ``[bins, bins, bins − 1]``.
        latent_dim: the number of variables D.
        bins: the number of segments of each spline.
        bound: the splines act on [−bound, bound]; the transform is the identity outside.
        context: optional additional inputs of the network, ``(*batch, context)``.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        bins: int,
        bound: float,
        context: Tensor | None = None,
    ) -> None:
        outputs = partial(_apply_network, network, context=context)
        super().__init__(latent_dim, outputs, bins, bound, order="quadratic")

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
    """Return ``bins`` and ``bound``; raise unless they are from 1 to 1000 and positive."""
    if positive_int("bins", bins) > _MAX_BINS:
        raise ValueError(f"expected bins ≤ {_MAX_BINS}; got {bins}")
    if not 0 < bound < math.inf:
        raise ValueError(f"expected bound > 0 and finite; got {bound}")
    return bins, bound


#: Pyro's minimum bin width is a thousandth of the total.
_MAX_BINS = 1000


def _apply_network(network: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    if context is None:
        return network(x)
    # Pyro's network expands only the context to match x; a mixture also needs x expanded
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return network(x.expand(*batch, -1), context=context)
