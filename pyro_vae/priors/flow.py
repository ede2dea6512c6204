"""Flows as priors."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import DenseNN
from torch import nn

from ..core.components import Shape
from ..core.validation import positive_int
from ..distributions.autoregressive import (
    AffineAutoregressive,
    SplineAutoregressive,
    autoregressive_network,
    check_spline,
)
from .base import Prior

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    """p(z) = N(f⁻¹(z); 0, I) |det ∂f⁻¹/∂z|: noise bent by Pyro's transforms, learned.

    Arguments:
        latent_dim: the number of latent variables D.
        transform: ``coupling`` (RealNVP; draws and densities in one pass), ``autoregressive``
            (MAF) or ``spline`` (autoregressive rational-quadratic splines): for these two a
            density takes one pass and a draw D of them.
        flows: the number of layers; the order of the variables is reversed from one to the
            next.
        hidden: the widths of each layer's network; of an autoregressive one at least D each.
        bins: the number of segments of each spline.
        bound: splines act on [−bound, bound] and leave the rest as it is.

    Raises:
        ValueError: for another ``transform``, a number out of range, or ``coupling`` of a
            single variable.

    References:
        Density estimation using Real NVP (Dinh et al., 2017). https://arxiv.org/abs/1605.08803
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017).
        https://arxiv.org/abs/1705.07057
        Neural Spline Flows (Durkan et al., 2019). https://arxiv.org/abs/1906.04032
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        latent_dim: int,
        transform: Literal["coupling", "autoregressive", "spline"] = "coupling",
        flows: int = 4,
        hidden: Shape = (100,),
        bins: int = 8,
        bound: float = 4.0,
    ) -> None:
        super().__init__(latent_dim)
        if transform not in ("coupling", "autoregressive", "spline"):
            raise ValueError(
                f"expected transform to be coupling, autoregressive or spline; got {transform!r}"
            )
        if transform == "coupling" and latent_dim < 2:
            raise ValueError(
                "expected latent_dim ≥ 2 for coupling, which splits the variables; got 1: use "
                "autoregressive or spline"
            )
        if not hidden or any(positive_int("every width in hidden", width) < 1 for width in hidden):
            raise ValueError(f"expected one or more hidden layers; got hidden={hidden!r}")
        self.transform, (self.bins, self.bound) = transform, check_spline(bins, bound)
        self.networks = nn.ModuleList(
            self._network(tuple(hidden), bool(layer % 2))
            for layer in range(positive_int("flows", flows))
        )
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        # made anew at each call, because a transform keeps its last draw and that draw's graph
        layers = [self._layer(network) for network in self.networks]
        if self.transform == "coupling":
            flip = torch.arange(self.latent_dim - 1, -1, -1, device=self.loc.device)
            layers = [part for layer in layers for part in (layer, transforms.Permute(flip))]
        noise = dist.Normal(self.loc, self.scale).to_event(1)
        return dist.TransformedDistribution(noise, layers)

    def _network(self, hidden: Shape, reverse: bool) -> nn.Module:
        if self.transform == "coupling":
            rest = self.latent_dim - self.latent_dim // 2
            network = DenseNN(self.latent_dim // 2, list(hidden), [rest, rest], nn.ELU())
            return _Affine(network)
        if self.transform == "autoregressive":
            return _Affine(autoregressive_network(self.latent_dim, hidden, [1, 1], reverse=reverse))
        parameters = [self.bins, self.bins, self.bins - 1]
        return autoregressive_network(self.latent_dim, hidden, parameters, reverse=reverse)

    def _layer(self, network: nn.Module) -> transforms.Transform:
        """From noise to z. Inverted: training goes from z to noise, by the transform itself."""
        if self.transform == "coupling":
            return transforms.AffineCoupling(self.latent_dim // 2, network).inv
        if self.transform == "autoregressive":
            return AffineAutoregressive(network).inv
        return SplineAutoregressive(network, self.latent_dim, self.bins, self.bound).inv


class _Affine(nn.Module):
    """What Pyro's affine transforms ask for, a shift and a log scale, kept gentle.

    A layer starts near the identity and scales by e² at most: with Pyro's own limit of e⁵,
    and a layer that starts anywhere, learning was seen to break down.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            for parameter in network.layers[-1].parameters():  # type: ignore[index,union-attr]
                parameter.mul_(0.01)

    @property
    def permutation(self) -> torch.Tensor:
        """The order of the variables, of an autoregressive network."""
        return self.network.permutation  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, log_scale = self.network(x)
        return shift, 2 * torch.tanh(log_scale / 2)
