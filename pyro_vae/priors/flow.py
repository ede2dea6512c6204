"""Normalizing-flow priors."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import DenseNN
from torch import nn

from ..core.components import Shape
from ..core.validation import as_shape, positive_int
from ..distributions.autoregressive import (
    AffineAutoregressive,
    SplineAutoregressive,
    apply_network,
    autoregressive_network,
    check_spline,
)
from ..distributions.flow import Flow
from ..distributions.zuko_flows import ZukoNetwork, ZukoTransform
from .base import Prior

__all__ = ["FlowPrior", "ZukoPrior"]


class FlowPrior(Prior):
    """p(z) = N(f⁻¹(z); 0, I) |det ∂f⁻¹/∂z|, a normalising flow with learned transforms.

    Arguments:
        transform: ``coupling`` (RealNVP; samples and densities in one pass), ``autoregressive``
            (MAF) or ``spline`` (autoregressive rational-quadratic splines). The latter two
            compute a density in one pass and a sample in D passes.
        flows: number of layers. The order of the variables is reversed between layers.
        hidden: hidden widths of each layer's network. Autoregressive networks need widths of
            at least D.
        bins: number of segments of each spline.
        bound: splines act on [−bound, bound] and are the identity outside.

    Raises:
        ValueError: for an unknown ``transform``, a number out of range, or ``coupling`` with a
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
                "expected latent_dim ≥ 2 for coupling layers, which split the variables; got 1: "
                "use autoregressive or spline"
            )
        hidden = as_shape("hidden", hidden)
        if not hidden:
            raise ValueError(f"expected one or more hidden layers; got hidden={hidden!r}")
        self.transform, (self.bins, self.bound) = transform, check_spline(bins, bound)
        self.networks = nn.ModuleList(
            self._network(hidden, bool(layer % 2)) for layer in range(positive_int("flows", flows))
        )
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        # scores in float64 would make training slower
        double = None if self.training else self._double
        return Flow(dist.Normal(self.loc, self.scale).to_event(1), self._layers(), double)

    def _double(self) -> dist.TransformedDistribution:
        noise = dist.Normal(self.loc.double(), self.scale.double()).to_event(1)
        return dist.TransformedDistribution(noise, self._layers())

    def _layers(self) -> list[transforms.Transform]:
        """Return the transforms from noise to z."""
        # new transforms at each call: a transform caches its last sample with its autograd graph
        layers = [self._layer(network) for network in self.networks]
        if self.transform == "coupling":
            flip = torch.arange(self.latent_dim - 1, -1, -1, device=self.loc.device)
            layers = [part for layer in layers for part in (layer, transforms.Permute(flip))]
        return layers

    def _network(self, hidden: Shape, reverse: bool) -> nn.Module:
        if self.transform == "coupling":
            num_transformed = self.latent_dim - self.latent_dim // 2
            outputs = [num_transformed, num_transformed]
            network = DenseNN(self.latent_dim // 2, list(hidden), outputs, nn.ELU())
            return _BoundedAffine(network)
        if self.transform == "autoregressive":
            network = autoregressive_network(self.latent_dim, hidden, [1, 1], reverse=reverse)
            return _BoundedAffine(network)
        parameters = [self.bins, self.bins, self.bins - 1]
        return autoregressive_network(self.latent_dim, hidden, parameters, reverse=reverse)

    def _layer(self, network: nn.Module) -> transforms.Transform:
        """Return the transform from noise to z.

        It is the inverse of Pyro's transform, so that training (from z to noise) takes one pass.
        """
        if self.transform == "coupling":
            return transforms.AffineCoupling(
                self.latent_dim // 2, partial(apply_network, network)
            ).inv
        if self.transform == "autoregressive":
            return AffineAutoregressive(network).inv
        return SplineAutoregressive(network, self.latent_dim, self.bins, self.bound).inv


class ZukoPrior(Prior):
    """p(z) = N(f(z); 0, I) |det ∂f/∂z|, with a flow f of the package ``zuko`` by name.

    A density takes one pass. For an autoregressive flow (all but ``NICE``, ``RealNVP`` and ``CNF``)
    a sample takes D passes. ``NAF``, ``SOSPF`` and ``UNAF`` are sampled by bisection in [−10, 10],
    and raise a ``ValueError`` if z is beyond. Splines are the identity outside [−5, 5].

    Arguments:
        flow: name of a class of ``zuko.flows``: ``NSF`` (splines), ``MAF`` (affine), ``NICE``,
            ``RealNVP`` (coupling), ``NAF``, ``UNAF`` (neural), ``BPF``, ``SOSPF`` (polynomials) or
            ``CNF`` (continuous).
        options: further arguments of that class, such as
            ``{"transforms": 2, "hidden_features": (64, 64)}``.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
        ValueError: if there is no such flow, if it does not accept an option, or for ``GF``, whose
            density does not integrate to 1.

    References:
        Zuko (Rozet et al., 2022). https://zuko.readthedocs.io
        Neural Spline Flows (Durkan et al., 2019). https://arxiv.org/abs/1906.04032
        Normalizing Flows for Probabilistic Modeling and Inference (Papamakarios et al., 2021).
        https://arxiv.org/abs/1912.02762
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, latent_dim: int, flow: str = "NSF", options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(latent_dim)
        self.flow = ZukoNetwork(flow, latent_dim, 0, options)
        if self.flow.saturates:
            raise ValueError(
                f"expected a flow whose density integrates to 1; got {self.flow.name}, whose "
                f"layers saturate in zuko, so that the density of several layers integrates to "
                f"less: use NSF or MAF"
            )
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        # the density needs no inverse, which would amplify rounding
        noise = dist.Normal(self.loc, self.scale).to_event(1)
        flow = ZukoTransform(self.flow, None, samples_fast=False)
        return dist.TransformedDistribution(noise, [flow])


class _BoundedAffine(nn.Module):
    """Shift and bounded log scale for Pyro's affine transforms.

    A layer starts near the identity and scales by at most e². With Pyro's limit of e⁵ and the
    default initialisation, training can diverge.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            for parameter in network.layers[-1].parameters():  # type: ignore[index,union-attr]
                parameter.mul_(0.01)

    @property
    def permutation(self) -> torch.Tensor:
        """Order of the variables in an autoregressive network."""
        return self.network.permutation  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, log_scale = self.network(x)
        return shift, 2 * torch.tanh(log_scale / 2)
