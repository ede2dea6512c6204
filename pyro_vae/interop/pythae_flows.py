"""The normalising flows of pythae's posteriors, as transforms with exact log-determinants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["InverseAutoregressiveFlow", "PlanarFlow", "RadialFlow", "check_invertible"]


class _Flow(Transform):
    """Base class of transforms that call a flow of pythae on one batch dimension.

    Arguments:
        layer: the flow.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: Any, cache_size: int = 1) -> None:
        # the cache lets a flow without an inverse score its own samples
        super().__init__(cache_size)
        self.layer = layer

    def with_cache(self, cache_size: int = 1) -> _Flow:
        return self if cache_size == self._cache_size else type(self)(self.layer, cache_size)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.layer is self.layer

    def _call(self, x: Tensor) -> Tensor:
        return self._run(x.reshape(-1, x.shape[-1]))[0].reshape(x.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._run(x.reshape(-1, x.shape[-1]))[1].reshape(x.shape[:-1])

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values, ``(B, D)``, and log |det|, ``(B,)``."""
        raise NotImplementedError


class PlanarFlow(_Flow):
    """f(z) = z + u tanh(w·z + b), without an inverse in closed form.

    pythae adds 1e-4 to the determinant; this is the exact one. pythae does not constrain f to be
    invertible, see :func:`check_invertible`.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), appendix A.1, for
        the condition w·u ≥ −1. https://arxiv.org/abs/1505.05770
    """

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, u = self.layer.w, self.layer.u
        activation = torch.tanh(x @ w.T + self.layer.b)
        slope = 1 - activation.square()
        return x + u * activation, torch.log1p(slope * (w * u).sum()).squeeze(1)


class RadialFlow(_Flow):
    """f(z) = z + β (z − z₀) / (α + |z − z₀|) with β > −α, without an inverse in closed form."""

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.layer(x)
        # of one example it has no batch dimension
        return output.out, output.log_abs_det_jac.reshape(len(x))


class InverseAutoregressiveFlow(_Flow):
    """All layers of an inverse autoregressive flow. Its inverse takes D passes per layer."""

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.layer.inverse(x)
        return output.out, output.log_abs_det_jac

    def _inverse(self, y: Tensor) -> Tensor:
        return self.layer(y.reshape(-1, y.shape[-1])).out.reshape(y.shape)


def check_invertible(layers: Iterable[Any]) -> None:
    """Raise a ``ValueError`` if a planar flow is not invertible."""
    for layer in layers:
        if layer.model_name != "PlanarFlow":
            continue
        product = float((layer.w.detach() * layer.u.detach()).sum())
        if product <= -1:
            raise ValueError(
                f"expected planar flows that are invertible (w·u > −1), or q(z|x) does not have "
                f"the density that the loss assumes; got w·u = {product:.3g}, which pythae does "
                f"not prevent, so that its loss is no bound: use radial flows, or VAE_IAF"
            )
