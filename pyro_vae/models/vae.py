"""Variational autoencoder (VAE)."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.nn import pyro_method
from torch import nn

from ..core.components import NetworkFactory, Shape
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from .base import OneLayerProgram

__all__ = ["VAE"]


class VAE(OneLayerProgram):
    """z ~ p(z), x ~ p(x|z) as a Pyro model, with the encoder q(z|x) as its guide.

    Each part is given as a factory: a class, a ``functools.partial`` of a class, or any
    callable with the same arguments. The networks may also be modules: an encoder that maps
    ``(B, *event_shape)`` to the posterior's parameters, B vectors of any shape, and a decoder
    that maps ``(B, latent_dim)`` to the likelihood's.

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

    Example:
        >>> from functools import partial
        >>> prior = partial(pv.priors.MixtureOfNormals, components=10)
        >>> vae = pv.VAE((1, 8, 8), latent_dim=4, prior=prior)
        >>> vae.model(size=3).shape  # three new examples
        torch.Size([3, 1, 8, 8])
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
        super().__init__(event_shape, latent_dim)
        self.posterior = self.make_posterior(posterior, encoder)
        self.likelihood = self.make_likelihood(likelihood, decoder)
        self.prior = self.make_prior(prior, self.posterior, self.likelihood)

    @pyro_method
    def model(self, x: torch.Tensor | None = None, size: int = 1) -> torch.Tensor:
        """Run p(z) p(x|z) on data ``x``, ``(N, *event_shape)``, or sample ``size`` new examples."""
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    @pyro_method
    def guide(self, x: torch.Tensor, size: int = 1) -> torch.Tensor:
        """Run q(z|x) on data ``x`` of shape ``(N, *event_shape)``."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))
