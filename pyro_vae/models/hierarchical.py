"""The variational autoencoder with several layers of latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import torch
from pyro.nn import pyro_method
from pyro.nn.module import PyroModuleList
from torch import nn

from ..core.components import NetworkFactory, Shape, checked_factory
from ..core.validation import positive_int
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..networks.base import Network, several
from ..posteriors import DiagonalNormal
from ..priors import Prior, StandardNormal
from .base import Autoencoder
from .inference import BottomUp, Inference

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(Autoencoder):
    """z_L ~ p(z_L), z_i ~ N(μ(z_{i+1}), diag σ(z_{i+1})²), x ~ p(x|z_1), for any number of layers.

    The sites are "zL" … "z1" and "x". With one layer it is a :class:`VAE`.

    Arguments:
        event_shape: the shape of one datum.
        latent_dims: the number of latents in each layer, from the one nearest the data upward.
        prior: ``prior(latent_dims[-1])``, p(z_L) of the top. One that is written with q(z|x)
            has none to be written with where there are several layers.
        likelihood: ``likelihood(latent_dims[0], event_shape, decoder)``, p(x|z_1).
        inference: ``inference(event_shape, latent_dims, encoders)``, q(z_1, …, z_L | x):
            ``BottomUp``, as in the IWAE paper, or ``TopDown``, the ladder.
        encoders: ``encoder(in_shape, out_shape)``, one for all layers or a list with one for
            each: the i-th is between layer i − 1 and layer i, and the first between data and
            z_1.
        decoders: ``decoder(in_shape, out_shape)``, likewise and in the same order: the first
            is the network of p(x|z_1), the second that of p(z_1|z_2).

    Raises:
        ValueError: if a number is not a positive integer, if the parts do not combine, if a
            list has not one network for each layer, or if one between layers of latents is
            to start from the data.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), section 5; Ladder Variational
        Autoencoders (Sønderby et al., 2016). https://arxiv.org/abs/1509.00519
        https://arxiv.org/abs/1602.02282
    """

    # lists come first, because jsonargparse writes the first type that a value fits, and takes a
    # list for a callable
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
        dims = several("latent_dims", "numbers, one for each layer", latent_dims)
        self.latent_dims = tuple(positive_int("every number in latent_dims", n) for n in dims)
        if not self.latent_dims:
            raise ValueError("expected latent_dims to have a number for each layer; got none")
        below = (self.event_shape, *((n,) for n in self.latent_dims[:-1]))
        self.inference = inference(
            self.event_shape, self.latent_dims, _each("encoders", encoders, below)
        )
        first, *others = _each("decoders", decoders, below)
        self.likelihood = likelihood(self.latent_dims[0], self.event_shape, first)
        # p(z_i | z_{i+1}): a normal given what is above, as an encoder's is given the data
        self.conditionals = PyroModuleList(
            [
                DiagonalNormal((above,), here, make)
                for here, above, make in zip(
                    self.latent_dims, self.latent_dims[1:], others, strict=False
                )
            ]
        )
        self.prior = prior(self.latent_dims[-1])
        self.inference.bind(self.prior, self.likelihood)

    @pyro_method
    def model(self, x: torch.Tensor | None = None, size: int = 1) -> torch.Tensor:
        """p(z_L) p(z_{L−1}|z_L) … p(x|z_1) for data ``x``, or for ``size`` new data.

        Returns:
            x, given or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        layers = len(self.latent_dims)
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample(f"z{layers}", self.prior())
            for i in range(layers - 1, 0, -1):
                z = pyro.sample(f"z{i}", self.conditionals[i - 1](z))
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: torch.Tensor, size: int = 1) -> list[torch.Tensor]:
        """q(z_1, …, z_L | x) for data ``x`` of shape ``(N, *event_shape)``.

        Returns:
            z_1, …, z_L, each of shape ``(*particles, N, latent_dims[i])``.
        """
        with pyro.plate("data", len(x)):
            return self.inference(x, self.conditionals)


def _each(
    name: str, factories: NetworkFactory | list[NetworkFactory], below: tuple[Shape, ...]
) -> list[NetworkFactory]:
    """A checked factory for each layer, of those given; ``below`` is what lies under each."""
    if not isinstance(factories, list | tuple):
        factories = [factories]
    if len(factories) == 1:
        factories = [*factories] * len(below)
    if len(factories) != len(below):
        raise ValueError(
            f"expected {name} to be one factory, or a list with one for each of the {len(below)} "
            f"layers; got {len(factories)}"
        )
    made = [checked_factory(f, shape) for f, shape in zip(factories, below, strict=True)]
    return [made[0], *(partial(_make_between, name, factory) for factory in made[1:])]


def _make_between(
    name: str, factory: NetworkFactory, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    """A network between two layers of latents, which no training data can be shown to."""
    network = factory(in_shape, out_shape)
    if isinstance(network, Network) and network.waits:
        raise ValueError(
            f"expected only the first of the {name} to look at the training data; got "
            f"{network.waits} for one between layers of latents: make {name} a list"
        )
    return network
