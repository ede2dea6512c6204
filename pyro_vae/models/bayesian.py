"""The variational autoencoder whose decoder's weights have a posterior too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from ..core.components import NetworkFactory, Shape, checked_factory
from ..core.validation import positive_int
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from . import compatibility
from .base import Autoencoder
from .gaussian_linear import GaussianLinear, make_gaussian

__all__ = ["BayesianVAE"]

#: Marks a site that stands for weights and tells nothing of its datum: no latent to look at.
_IS_NOISE: Any = {"is_noise": True}


class BayesianVAE(Autoencoder):
    """θ ~ N(0, I), z ~ p(z), x ~ p(x | z, θ), with the guide q(θ) q(z|x): full variational Bayes.

    θ are the weights of the decoder's linear layers, q(θ) = N(μ, diag σ²). They are shared by all
    data, and in training a minibatch of M from N data weighs log p(θ) − log q(θ) by M / N, so
    that the bound is that of log p(x_1, …, x_N), a share of which each minibatch has.

    In evaluation, and where new data are made, p(x) is that of one more datum: the posterior
    predictive E_q(θ) E_p(z) p(x | z, θ). Every datum and particle then has weights of its own,
    and each layer's outputs, W a + b of Gaussian W and b, are drawn in their place: they are
    N(W̄ a + b̄, σ_W² a² + σ_b²), independent, made of standard normal sites inside the plate, which
    have the same density in model and guide. Bounds of :func:`~pyro_vae.evaluate` hence lack
    KL(q(θ) ‖ p(θ)) / N, which the objective in training has.

    θ are sites of ``pyro.sample`` in model and guide, and no :class:`~pyro.nn.PyroSample`: that
    draws a weight where it is looked at, here inside the plate, where it would be one for each
    datum, and ``nn.Linear`` cannot take weights that differ between particles.

    Arguments:
        event_shape: the shape of one datum.
        latent_dim: the number of latent variables D.
        prior: ``prior(latent_dim)``, p(z).
        likelihood: ``likelihood(latent_dim, event_shape, decoder)``, p(x | z, θ); what it
            learns besides the decoder (a Gaussian's σ) has no posterior.
        posterior: ``posterior(event_shape, latent_dim, encoder)``, q(z|x).
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z|x).
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | z, θ), whose weights are
            all those of linear layers, each used once for a datum. As it is made it gives μ.
        initial_scale: every σ before training.

    Raises:
        ValueError: if a number is out of range, the parts do not combine, or the decoder has
            other weights; when it is trained without :func:`~pyro_vae.fit`, if
            :func:`~pyro_vae.initialize` did not tell it the number of training data.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix F.
        https://arxiv.org/abs/1312.6114
        Variational Dropout and the Local Reparameterization Trick (Kingma et al., 2015),
        equation 6. https://arxiv.org/abs/1506.02557
    """

    num_data: Tensor

    def __init__(
        self,
        event_shape: Shape,
        latent_dim: int,
        prior: Callable[[int], Prior] = StandardNormal,
        likelihood: Callable[[int, Shape, NetworkFactory], Likelihood] = Bernoulli,
        posterior: Callable[[Shape, int, NetworkFactory], Posterior] = DiagonalNormal,
        encoder: Callable[[Shape, Shape], nn.Module] = MLP,
        decoder: Callable[[Shape, Shape], nn.Module] = MLP,
        initial_scale: float = 0.01,
    ) -> None:
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        if not 0 < initial_scale < math.inf:
            raise ValueError(f"expected initial_scale > 0 and finite; got {initial_scale!r}")
        encoder, decoder = (checked_factory(f, self.event_shape) for f in (encoder, decoder))
        self.posterior = posterior(self.event_shape, latent_dim, encoder)
        self.likelihood = likelihood(latent_dim, self.event_shape, decoder)
        make_gaussian(self.likelihood, initial_scale)
        self.prior = prior(latent_dim)
        compatibility.check(self.prior, self.posterior)
        self.prior.bind(self.posterior)
        self.posterior.bind(self.prior, self.likelihood)
        # saved with the weights, because learning may go on; 0: not told yet
        self.register_buffer("num_data", torch.tensor(0))

    def init_from_data(self, x: Tensor) -> None:
        """Notes the number of training data, of which a minibatch is a share.

        Anew at every call: who goes on with more data has a smaller share in each minibatch.
        """
        self.num_data.fill_(len(x))

    @pyro_method
    def model(self, x: Tensor | None = None, size: int = 1) -> Tensor:
        """p(θ) p(z) p(x | z, θ) for data ``x``, or ``size`` new data of the posterior predictive.

        Returns:
            x, given or sampled, of shape ``(*particles, N, *event_shape)``.
        """
        own = x is None or not self.training
        shared = {} if own else self._weights(x, GaussianLinear.prior)
        with pyro.plate("data", size if x is None else len(x)):
            noise = self._noise() if own else {}
            z = pyro.sample("z", self.prior())
            with self._with(shared, noise):
                likelihood = self.likelihood(z)
            return pyro.sample("x", likelihood, obs=x)

    @pyro_method
    def guide(self, x: Tensor, size: int = 1) -> Tensor:
        """q(θ) q(z|x) for data ``x`` of shape ``(N, *event_shape)``.

        Returns:
            z, of shape ``(*particles, N, latent_dim)``.
        """
        if self.training:
            self._weights(x, GaussianLinear.posterior)
        with pyro.plate("data", len(x)):
            if not self.training:
                self._noise()
            return pyro.sample("z", self.posterior(x))

    def _layers(self) -> dict[str, GaussianLinear]:
        modules = self.likelihood.named_modules()
        return {name: m for name, m in modules if isinstance(m, GaussianLinear)}

    def _weights(
        self, x: Tensor | None, of: Callable[[GaussianLinear, str], Distribution]
    ) -> dict[str, dict[str, Tensor]]:
        """Draws of all weights, shared by all data: by layer, and by name."""
        count = int(self.num_data)
        if not count or x is None:
            raise ValueError(
                "expected to be told the number of training data, of which a minibatch has its "
                "share of log p(θ): call pyro_vae.initialize(program, x) with all of them first"
            )
        with poutine.scale(scale=len(x) / count):
            return {
                name: {part: pyro.sample(f"{name}.{part}", of(layer, part)) for part in layer.parts}
                for name, layer in self._layers().items()
            }

    def _noise(self) -> dict[str, Tensor]:
        """For each layer the noise of its outputs, ``(*particles, N, outputs)``."""
        noise = {}
        for name, layer in self._layers().items():
            zeros = layer.weight.new_zeros(layer.out_features)
            normal = dist.Normal(zeros, 1.0).to_event(1)
            noise[name] = pyro.sample(f"{name}.noise", normal, infer=_IS_NOISE)
        return noise

    @contextmanager
    def _with(
        self, weights: Mapping[str, Mapping[str, Tensor]], noise: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """Makes the layers use these draws."""
        layers = self._layers()
        try:
            for name, layer in layers.items():
                layer.hold(weights.get(name), noise.get(name))
            yield
        finally:
            for layer in layers.values():
                layer.hold()
