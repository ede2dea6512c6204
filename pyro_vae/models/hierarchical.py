"""Hierarchical variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import torch
from pyro.nn import pyro_method
from pyro.nn.module import PyroModuleList
from torch import nn

from ..core.components import NetworkFactory, Shape, unwrap
from ..core.validation import as_shape
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..networks.base import Network
from ..posteriors import DiagonalNormal
from ..priors import Prior, StandardNormal
from .base import Autoencoder
from .inference import BottomUp, Inference
from .parts import CheckedFactory, make_part

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(Autoencoder):
    """z_L ~ p(z_L), z_i ~ N(μ(z_{i+1}), diag σ(z_{i+1})²), x ~ p(x|z_1), with L layers of latents.

    The sites are "zL" … "z1" and "x". With one layer it is equivalent to :class:`VAE`.

    Arguments:
        event_shape: shape of one example.
        latent_dims: number of latents in each layer, from the layer closest to the data upward.
        prior: ``prior(latent_dims[-1])``, p(z_L) of the top layer. With several layers it must
            not depend on q(z|x).
        likelihood: ``likelihood(latent_dims[0], event_shape, decoder)``, p(x|z_1).
        inference: ``inference(event_shape, latent_dims, encoders)``, q(z_1, …, z_L | x):
            ``BottomUp``, as in the IWAE paper, or ``TopDown``, as in the ladder VAE.
        encoders: ``encoder(in_shape, out_shape)``, one factory for all layers or a list with one
            per layer. The first is between the data and z_1, the i-th between layers i − 1 and i.
        decoders: ``decoder(in_shape, out_shape)``, one factory or a list in the same order: the
            first is the network of p(x|z_1), the second that of p(z_1|z_2).

    Raises:
        ValueError: if a number is not a positive integer, if the parts cannot be combined, if a
            list does not have one network per layer, or if a network between layers of latents
            has an option that depends on the training data.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5; Ladder Variational
        Autoencoders (Sønderby et al., 2016). https://arxiv.org/abs/1509.00519
        https://arxiv.org/abs/1602.02282
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dims: Shape = (100, 50),
        prior: Callable[[int], Prior] = StandardNormal,
        likelihood: Callable[[int, Shape, NetworkFactory], Likelihood] = Bernoulli,
        inference: Callable[[Shape, Shape, Sequence[NetworkFactory]], Inference] = BottomUp,
        encoders: list[Callable[[Shape, Shape], nn.Module]]
        | Callable[[Shape, Shape], nn.Module] = MLP,
        decoders: list[Callable[[Shape, Shape], nn.Module]]
        | Callable[[Shape, Shape], nn.Module] = MLP,
    ) -> None:
        super().__init__(event_shape)
        self.latent_dims = as_shape("latent_dims", latent_dims)
        if not self.latent_dims:
            raise ValueError("expected latent_dims to have a number for each layer; got none")
        inputs = (self.event_shape, *((n,) for n in self.latent_dims[:-1]))
        self.inference = make_part(
            "inference(event_shape, latent_dims, encoders)",
            Inference,
            inference,
            self.event_shape,
            self.latent_dims,
            _factories_per_layer("encoders", encoders, inputs),
        )
        first, *others = _factories_per_layer("decoders", decoders, inputs)
        call = "likelihood(latent_dim, event_shape, decoder)"
        sizes = self.latent_dims[0], self.event_shape
        self.likelihood = make_part(call, Likelihood, likelihood, *sizes, first)
        # p(z_i | z_{i+1}) is a conditional normal, like a posterior given the layer above
        self.conditionals = PyroModuleList(
            [
                DiagonalNormal((dim_above,), dim, factory)
                for dim, dim_above, factory in zip(
                    self.latent_dims, self.latent_dims[1:], others, strict=False
                )
            ]
        )
        self.prior = make_part("prior(latent_dim)", Prior, prior, self.latent_dims[-1])
        self.inference.bind(self.prior, self.likelihood)

    @pyro_method
    def model(self, x: torch.Tensor | None = None, size: int = 1) -> torch.Tensor:
        """Run p(z_L) p(z_{L−1}|z_L) … p(x|z_1) on data ``x``, or sample ``size`` new examples."""
        layers = len(self.latent_dims)
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample(f"z{layers}", self.prior())
            for i in range(layers - 1, 0, -1):
                z = pyro.sample(f"z{i}", self.conditionals[i - 1](z))
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: torch.Tensor, size: int = 1) -> list[torch.Tensor]:
        """Run q(z_1, …, z_L | x) on data ``x`` of shape ``(N, *event_shape)``."""
        with pyro.plate("data", len(x)):
            return self.inference(x, self.conditionals)


def _factories_per_layer(
    name: str, factories: NetworkFactory | list[NetworkFactory], inputs: tuple[Shape, ...]
) -> list[NetworkFactory]:
    """Return one checked factory per layer; ``inputs`` are the event shapes below each layer."""
    if not isinstance(factories, list | tuple):
        factories = [factories]
    if len(factories) == 1 and not isinstance(factories[0], nn.Module):
        factories = [*factories] * len(inputs)
    if len(factories) != len(inputs):
        raise ValueError(
            f"expected {name} to be one factory, or a list with one for each of the {len(inputs)} "
            f"layers; got {len(factories)}"
        )
    singular = name.removesuffix("s")
    first, *others = [
        CheckedFactory(singular, f, shape, reads_data=name == "encoders" and i == 0)
        for i, (f, shape) in enumerate(zip(factories, inputs, strict=True))
    ]
    return [first, *(partial(_make_latent_network, name, factory) for factory in others)]


def _make_latent_network(
    name: str, factory: NetworkFactory, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    """Create a network between two layers of latents, which has no access to training data."""
    network = factory(in_shape, out_shape)
    inner = unwrap(network)
    if isinstance(inner, Network) and inner.uninitialized_option:
        raise ValueError(
            f"expected only the first of the {name} to depend on the training data; got "
            f"{inner.uninitialized_option} in a network between layers of latents: make {name} a "
            f"list"
        )
    return network
