"""Variational autoencoder (VAE)."""

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
from .base import Autoencoder
from .compatibility import check_compatible

__all__ = ["VAE"]


class VAE(Autoencoder):
    """z ~ p(z), x ~ p(x|z) as a Pyro model, with the encoder q(z|x) as its guide.

    Each part is given as a factory: a class, a ``functools.partial`` of a class, or any
    callable with the same arguments.

    Arguments:
        event_shape: shape of one example.
        latent_dim: number of latent variables D.
        prior: ``prior(latent_dim)``, p(z).
        likelihood: ``likelihood(latent_dim, event_shape, decoder)``, p(x|z).
        posterior: ``posterior(event_shape, latent_dim, encoder)``, q(z|x).
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z|x).
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x|z).

    Raises:
        ValueError: if ``latent_dim`` or an entry of ``event_shape`` is not a positive integer,
            if the parts cannot be combined, or, at run time, if a network's outputs do not have
            the requested shape.

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
        check_compatible(self.prior, self.posterior)
        self.prior.bind(self.posterior)
        self.posterior.bind(self.prior, self.likelihood)

    @pyro_method
    def model(self, x: torch.Tensor | None = None, size: int = 1) -> torch.Tensor:
        """Run p(z) p(x|z) on data ``x``, ``(N, *event_shape)``, or sample ``size`` new examples.

        Returns:
            x, observed or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: torch.Tensor, size: int = 1) -> torch.Tensor:
        """Run q(z|x) on data ``x`` of shape ``(N, *event_shape)``.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``.
        """
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))
