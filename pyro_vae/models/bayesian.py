"""Variational autoencoder with a posterior over the decoder's weights."""

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

from ..core.components import NetworkFactory, Shape
from ..likelihoods import Bernoulli, Likelihood
from ..networks import MLP
from ..posteriors import DiagonalNormal, Posterior
from ..priors import Prior, StandardNormal
from .base import OneLayerProgram
from .gaussian_linear import GaussianLinear, replace_linear_layers

__all__ = ["BayesianVAE"]

#: Marks a site that represents noise of the weights and is not a latent of the example.
_IS_NOISE: Any = {"is_noise": True}


class BayesianVAE(OneLayerProgram):
    """θ ~ N(0, I), z ~ p(z), x ~ p(x | z, θ), with the guide q(θ) q(z|x): full variational Bayes.

    θ are the weights of the decoder's linear layers, with q(θ) = N(μ, diag σ²). They are shared by
    all examples. In training, a minibatch of M out of N examples scales log p(θ) − log q(θ) by
    M / N, so that the sum over minibatches is a bound on log p(x_1, …, x_N).

    In evaluation and generation, p(x) is the posterior predictive of a new example,
    E_q(θ) E_p(z) p(x | z, θ). Each example and particle has independent weights, which are
    sampled through the outputs of each layer (local reparameterisation): W a + b with Gaussian W
    and b is N(W̄ a + b̄, σ_W² a² + σ_b²). The noise consists of standard normal sites inside the
    plate, with the same density in model and guide. The bounds of :func:`~pyro_vae.evaluate`
    therefore do not include KL(q(θ) ‖ p(θ)) / N, which the training objective includes.

    θ are ``pyro.sample`` sites in model and guide, and not a :class:`~pyro.nn.PyroSample`, which
    samples a weight on attribute access. Here this would be inside the plate, once per example,
    and ``nn.Linear`` does not support weights that differ between particles.

    Arguments:
        event_shape: shape of one example.
        latent_dim: number of latent variables D.
        prior: ``prior(latent_dim)``, p(z).
        likelihood: ``likelihood(latent_dim, event_shape, decoder)``, p(x | z, θ). Its parameters
            outside the decoder (such as a Gaussian's σ) have no posterior.
        posterior: ``posterior(event_shape, latent_dim, encoder)``, q(z|x).
        encoder: ``encoder(in_shape, out_shape)``, the network of q(z|x).
        decoder: ``decoder(in_shape, out_shape)``, the network of p(x | z, θ). All its weights
            belong to linear layers, each used once per example. Its initial weights are μ.
        initial_scale: initial value of every σ.

    Raises:
        ValueError: if a number is out of range, the parts cannot be combined, or the decoder has
            other weights; in training without :func:`~pyro_vae.fit`, if the number of training
            examples was not set with :func:`~pyro_vae.initialize`.

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
        super().__init__(event_shape, latent_dim)
        if not 0 < initial_scale < math.inf:
            raise ValueError(f"expected initial_scale > 0 and finite; got {initial_scale!r}")
        self.posterior = self.make_posterior(posterior, encoder)
        self.likelihood = self.make_likelihood(likelihood, decoder)
        replace_linear_layers(self.likelihood, initial_scale)
        self.prior = self.make_prior(prior, self.posterior, self.likelihood)
        # part of the state, for resumed training; 0 until it is set
        self.register_buffer("num_data", torch.tensor(0))

    def init_from_data(self, x: Tensor) -> None:
        """Set the number of training examples, at every call: training may resume with others."""
        self.set_num_data(len(x))

    def set_num_data(self, num_data: int) -> None:
        """Set the number of training examples, if data were initialised from a subset of them."""
        self.num_data.fill_(num_data)

    @pyro_method
    def model(self, x: Tensor | None = None, size: int = 1) -> Tensor:
        """Run p(θ) p(z) p(x | z, θ) on data ``x``, or sample the posterior predictive."""
        per_datum = x is None or not self.training
        weights = {} if per_datum else self._sample_weights(x, GaussianLinear.prior)
        with pyro.plate("data", size if x is None else len(x)):
            noise = self._sample_noise() if per_datum else {}
            z = pyro.sample("z", self.prior())
            with self._use_samples(weights, noise):
                likelihood = self.likelihood(z)
            return pyro.sample("x", likelihood, obs=x)

    @pyro_method
    def guide(self, x: Tensor, size: int = 1) -> Tensor:
        """Run q(θ) q(z|x) on data ``x`` of shape ``(N, *event_shape)``."""
        if self.training:
            self._sample_weights(x, GaussianLinear.posterior)
        with pyro.plate("data", len(x)):
            if not self.training:
                self._sample_noise()
            return pyro.sample("z", self.posterior(x))

    def _gaussian_layers(self) -> dict[str, GaussianLinear]:
        modules = self.likelihood.named_modules()
        return {name: m for name, m in modules if isinstance(m, GaussianLinear)}

    def _sample_weights(
        self, x: Tensor | None, distribution: Callable[[GaussianLinear, str], Distribution]
    ) -> dict[str, dict[str, Tensor]]:
        """Sample weights shared by all examples, by layer and parameter name."""
        num_data = int(self.num_data)
        if not num_data or x is None:
            raise ValueError(
                "expected num_data, the number of training examples that scales log p(θ); got "
                "none: call pyro_vae.initialize(program, x) with all of them first"
            )
        with poutine.scale(scale=len(x) / num_data):
            return {
                layer_name: {
                    name: pyro.sample(f"{layer_name}.{name}", distribution(layer, name))
                    for name in layer.param_names
                }
                for layer_name, layer in self._gaussian_layers().items()
            }

    def _sample_noise(self) -> dict[str, Tensor]:
        """Sample the noise of each layer's outputs, ``(*particles, N, outputs)``."""
        noise = {}
        for name, layer in self._gaussian_layers().items():
            zeros = layer.weight.new_zeros(layer.out_features)
            normal = dist.Normal(zeros, 1.0).to_event(1)
            noise[name] = pyro.sample(f"{name}.noise", normal, infer=_IS_NOISE)
        return noise

    @contextmanager
    def _use_samples(
        self, weights: Mapping[str, Mapping[str, Tensor]], noise: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """Use these samples in the layers inside this context."""
        layers = self._gaussian_layers()
        try:
            for name, layer in layers.items():
                layer.set_samples(weights.get(name), noise.get(name))
            yield
        finally:
            for layer in layers.values():
                layer.set_samples()
