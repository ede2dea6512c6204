"""The variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.nn import pyro_method
from torch import nn

from ..core.components import NetworkFactory, Shape, checked_factory
from ..core.validation import positive_int
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from . import compatibility
from .base import Autoencoder

__all__ = ["VAE"]


class VAE(Autoencoder):
    """z ~ p(z), x ~ p(x|z) as a Pyro model, with the encoder q(z|x) as its guide.

    Every part is given by a factory: a class, a ``functools.partial`` of one, or any
    callable with the same arguments.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        prior: ``prior(latent_dim)``, p(z).
        likelihood: ``likelihood(latent_dim, event_shape, decoder)``, p(x|z).
        posterior: ``posterior(event_shape, latent_dim, encoder)``, q(z|x).
        encoder: ``encoder(in_shape, out_shape)``, the network of q.
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x|z).

    Raises:
        ValueError: if ``latent_dim`` or an entry of ``event_shape`` is not a positive integer,
            if the parts do not combine, or, when it runs, if a network's outputs are not of the
            shape that was asked for.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013).
        https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        prior: Callable[[int], Prior] = StandardNormal,
        likelihood: Callable[[int, Shape, NetworkFactory], Likelihood] = Bernoulli,
        posterior: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
        encoder: Callable[[Shape, Shape], nn.Module] = MLP,
        decoder: Callable[[Shape, Shape], nn.Module] = MLP,
    ) -> None:
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        encoder, decoder = (checked_factory(f, self.event_shape) for f in (encoder, decoder))
        self.posterior = posterior(self.event_shape, latent_dim, encoder)
        self.likelihood = likelihood(latent_dim, self.event_shape, decoder)
        self.prior = prior(latent_dim)
        compatibility.check(self.prior, self.posterior)
        self.prior.bind(self.posterior)
        self.posterior.bind(self.prior, self.likelihood)

    @pyro_method
    def model(self, x: torch.Tensor | None = None, size: int = 1) -> torch.Tensor:
        """p(z) p(x|z) for data ``x`` of shape ``(N, *event_shape)``, or for ``size`` new data.

        Returns:
            x, given or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: torch.Tensor, size: int = 1) -> torch.Tensor:
        """q(z|x) for data ``x`` of shape ``(N, *event_shape)``.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``.
        """
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))
