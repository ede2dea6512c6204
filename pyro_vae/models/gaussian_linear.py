"""Linear layers of Gaussian weights, for decoders whose weights have a posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn

from ..likelihoods import Likelihood

__all__ = ["GaussianLinear", "make_gaussian"]


class GaussianLinear(nn.Module):
    """A linear layer of Gaussian weights, ``(*batch, inputs)`` to ``(*batch, outputs)``.

    It uses its weights' means, unless it holds draws.

    Arguments:
        linear: the layer whose weights are the means.
        scale: the standard deviation of every weight at first.

    Raises:
        ValueError: if it is called twice with one noise, or with another number of inputs.

    References:
        Variational Dropout and the Local Reparameterization Trick (Kingma et al., 2015),
        equation 6. https://arxiv.org/abs/1506.02557
    """

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = [name for name, _ in linear.named_parameters()]
        for part in self.parts:
            log_scale = torch.full_like(getattr(self, part), math.log(scale))
            self.register_parameter(f"{part}_log_scale", nn.Parameter(log_scale.detach()))
        self.hold()

    def hold(self, drawn: Mapping[str, Tensor] | None = None, noise: Tensor | None = None) -> None:
        """Notes draws to use from now on, or without any goes back to the means.

        Arguments:
            drawn: ``weight``, ``(*particles, outputs, inputs)``, and ``bias``, if there is one.
            noise: of the outputs, ``(*batch, outputs)``, each input having weights of its own;
                it serves once.
        """
        self.drawn, self.noise, self.served = drawn, noise, False

    def prior(self, part: str) -> Distribution:
        """p of the weight or the bias: N(0, I)."""
        mean = getattr(self, part)
        return dist.Normal(torch.zeros_like(mean), 1.0).to_event(mean.ndim)

    def posterior(self, part: str) -> Distribution:
        """q of the weight or the bias: N(μ, diag σ²)."""
        mean = getattr(self, part)
        return dist.Normal(mean, getattr(self, f"{part}_log_scale").exp()).to_event(mean.ndim)

    def forward(self, a: Tensor) -> Tensor:
        if self.drawn is not None:
            return self._of_shared_weights(a, **self.drawn)
        mean = nn.functional.linear(a, self.weight, self.bias)
        return mean if self.noise is None else self._noisy(a, mean, self.noise)

    def _of_shared_weights(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # a network may have made one batch dimension of several; the particles' is the leftmost
        shape, particles = a.shape[:-1], weight.shape[:-2].numel()
        weight = weight.reshape(particles, *weight.shape[-2:])
        out = a.reshape(particles, -1, a.shape[-1]) @ weight.mT
        if bias is not None:
            out = out + bias.reshape(particles, 1, -1)
        return out.reshape(*shape, self.out_features)

    def _noisy(self, a: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
        # the same weights a second time would need the joint law of both outputs
        if self.served or noise.numel() != mean.numel():
            outputs = mean.numel() + self.served * noise.numel()
            raise ValueError(
                f"expected a decoder that uses each linear layer once for a datum; got "
                f"{outputs} outputs of one for {noise.numel()}: use an MLP or a GatedMLP"
            )
        self.served = True
        variances = [(2 * getattr(self, f"{part}_log_scale")).exp() for part in self.parts]
        scale = nn.functional.linear(a.square(), *variances).sqrt()
        return mean + scale * noise.reshape(mean.shape)


def make_gaussian(likelihood: Likelihood, scale: float) -> None:
    """Replaces the linear layers of a likelihood's networks, in place.

    Arguments:
        likelihood: p(x | z, θ), θ the weights of its networks.
        scale: the standard deviation of every weight at first.

    Raises:
        ValueError: if there are none, or if other modules of the networks have weights too.
    """
    made: dict[nn.Linear, GaussianLinear] = {}
    for parent in list(likelihood.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
                if child not in made:  # it may stand in two places, of the same weights
                    made[child] = GaussianLinear(child, scale)
                    # a network that is one layer keeps the check of its outputs' shape
                    made[child]._forward_hooks.update(child._forward_hooks)
                setattr(parent, name, made[child])
    networks: list[Any] = [m for m in likelihood.modules() if m is not likelihood]
    other = [m for m in networks if not isinstance(m, GaussianLinear) and _has_weights(m)]
    if other or not any(isinstance(m, GaussianLinear) for m in networks):
        got = f"a {type(other[0]).__name__} with weights of its own" if other else "none"
        raise ValueError(
            f"expected a decoder whose weights are all those of linear layers; got {got}: use an "
            f"MLP or a GatedMLP, without a norm"
        )


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
