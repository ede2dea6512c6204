"""Autoregressive transforms for flow priors and posteriors."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, cast

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.spline import ConditionedSpline
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.func import functional_call

from ..core.components import Shape
from ..core.validation import as_shape, positive_int

__all__ = [
    "AffineAutoregressive",
    "SplineAutoregressive",
    "apply_network",
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
        super().__init__(partial(apply_network, network, context=context), stable=stable)
        self.order = cast(Tensor, network.permutation)
        self._inverse = self._invert

    def _invert(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        index = torch.arange(y.shape[-1], device=y.device)
        # at the limit the density is zero; beyond it the network's outputs would be NaN
        limit = torch.finfo(y.dtype).max ** 0.5
        # update one variable at a time: later ones may still be far off, and a masked 0 · ∞
        # would turn the finished ones into NaN
        for variable in self.order:
            residual = y - self._call(x)
            assert self._cached_log_scale is not None  # set by _call
            # 0 · ∞: the scale underflows, and y is the shift
            step = residual * torch.exp(-self._cached_log_scale)
            step = torch.where(residual == 0, 0.0, step)
            x = torch.where(index == variable, (x + step).clamp(-limit, limit), x)
        return x


class SplineAutoregressive(transforms.SplineAutoregressive):
    """Pyro's rational-quadratic spline transform, with an exact choice of bins and its inverse.

    The inverse is computed in float64: in float32 its square root loses its digits, or its
    argument becomes negative.

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
        outputs = partial(apply_network, network, context=context)
        super().__init__(latent_dim, outputs, bins, bound, order="quadratic")

    def _call(self, x: Tensor) -> Tensor:
        y, self._cache_log_detJ = self.spline.condition(x).spline_op(x, eps=_BIN_MARGIN)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        # a divergent trajectory passes NaN, whose knots would be NaN for all variables
        is_finite = y.isfinite().all(-1, keepdim=True)
        given, y = y, torch.where(is_finite, y, 0.0)
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            knots = self.spline.condition(x)._params()
            double = [None if knot is None else knot.double() for knot in knots]
            spline = ConditionedSpline(double, bound=self.spline.bound, order="quadratic")
            try:
                x, log_det = spline.spline_op(y.double(), inverse=True, eps=_BIN_MARGIN)
            except AssertionError:  # the root of a negative number or of NaN
                raise ValueError(_NO_INVERSE) from None
            if log_det.isnan().any():
                raise ValueError(_NO_INVERSE)
            x, self._cache_log_detJ = x.to(y.dtype), -log_det.to(y.dtype)
        return torch.where(is_finite, x, given)


def check_spline(bins: int, bound: float) -> tuple[int, float]:
    """Return ``bins`` and ``bound``; raise unless they are from 1 to 1000 and positive."""
    if positive_int("bins", bins) > _MAX_BINS:
        raise ValueError(f"expected bins ≤ {_MAX_BINS}; got {bins}")
    if not 0 < bound < math.inf:
        raise ValueError(f"expected bound > 0 and finite; got {bound}")
    return bins, bound


_NO_INVERSE = (
    "expected splines with an inverse; got knots that are NaN or too steep for float64: check the "
    "parameters for NaN, and lower the learning rate"
)
#: Pyro adds 1e-6 to the knots when it chooses the bin of a value. Values just above a knot would
#: then be extrapolated from the bin below, which can have a slope of any sign there.
_BIN_MARGIN = 0.0
#: Pyro's minimum bin width is a thousandth of the total.
_MAX_BINS = 1000


def apply_network(network: nn.Module, x: Tensor, context: Tensor | None = None) -> Any:
    """Return the outputs of a network, computed in the dtype of ``x``.

    Arguments:
        network: the network, with parameters of any dtype.
        x: its inputs, ``(*batch, D)``.
        context: optional additional inputs, ``(*batch, context)``, of the dtype of ``x``.
    """
    options = {}
    if context is not None:
        # Pyro's network expands only the context to match x; a mixture also needs x expanded
        batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        x, options = x.expand(*batch, -1), {"context": context}
    if next(network.parameters()).dtype == x.dtype:
        return network(x, **options)
    tensors = (*network.named_parameters(), *network.named_buffers())
    cast_tensors = {n: t.to(x.dtype) if t.is_floating_point() else t for n, t in tensors}
    return functional_call(network, cast_tensors, (x,), options)
