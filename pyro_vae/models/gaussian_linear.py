"""Linear layers with Gaussian weights, for decoders with a posterior over their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin as Distribution
from torch import Tensor, nn

from ..likelihoods import Likelihood

__all__ = ["GaussianLinear", "replace_linear_layers"]


class GaussianLinear(nn.Module):
    """Linear layer with Gaussian weights, ``(*batch, inputs)`` to ``(*batch, outputs)``.

    The layer uses the mean weights unless :meth:`set_samples` has set sampled weights or noise.

    Arguments:
        linear: layer that provides the means of the weights.
        scale: initial standard deviation of all weights.

    Raises:
        ValueError: if called twice with the same noise, or with noise for another number of
            outputs.
    """

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.param_names = [name for name, _ in linear.named_parameters()]
        for name in self.param_names:
            log_scale = torch.full_like(getattr(self, name), math.log(scale))
            self.register_parameter(f"{name}_log_scale", nn.Parameter(log_scale.detach()))
        self.set_samples()

    def set_samples(
        self, weights: Mapping[str, Tensor] | None = None, noise: Tensor | None = None
    ) -> None:
        """Use these samples from now on, or the means if there are none.

        Arguments:
            weights: ``weight``, ``(*particles, outputs, inputs)``, and ``bias`` if the layer has
                one, shared by all inputs of a particle.
            noise: noise of the outputs, ``(*batch, outputs)``, equivalent to independent weights
                for each input. It is used once.
        """
        self.sampled_weights, self.noise, self.noise_used = weights, noise, False

    def prior(self, name: str) -> Distribution:
        """Return p(weight) or p(bias), N(0, I)."""
        mean = getattr(self, name)
        return dist.Normal(torch.zeros_like(mean), 1.0).to_event(mean.ndim)

    def posterior(self, name: str) -> Distribution:
        """Return q(weight) or q(bias), N(μ, diag σ²)."""
        mean = getattr(self, name)
        return dist.Normal(mean, getattr(self, f"{name}_log_scale").exp()).to_event(mean.ndim)

    def forward(self, a: Tensor) -> Tensor:
        if self.sampled_weights is not None:
            return self._apply_weights(a, **self.sampled_weights)
        mean = nn.functional.linear(a, self.weight, self.bias)
        return mean if self.noise is None else self._apply_noise(a, mean, self.noise)

    def _apply_weights(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # networks may flatten batch dimensions; particles are the leftmost in any case
        shape, particles = a.shape[:-1], weight.shape[:-2].numel()
        weight = weight.reshape(particles, *weight.shape[-2:])
        out = a.reshape(particles, -1, a.shape[-1]) @ weight.mT
        if bias is not None:
            out = out + bias.reshape(particles, 1, -1)
        return out.reshape(*shape, self.out_features)

    def _apply_noise(self, a: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
        # reusing the same weights would require the joint distribution of both outputs
        if self.noise_used or noise.numel() != mean.numel():
            num_outputs = mean.numel() + self.noise_used * noise.numel()
            raise ValueError(
                f"expected a decoder that uses each linear layer once per example; got "
                f"{num_outputs} outputs of one layer instead of {noise.numel()}: use an MLP or a "
                f"GatedMLP"
            )
        self.noise_used = True
        variances = [(2 * getattr(self, f"{name}_log_scale")).exp() for name in self.param_names]
        scale = nn.functional.linear(a.square(), *variances).sqrt()
        return mean + scale * noise.reshape(mean.shape)


def replace_linear_layers(likelihood: Likelihood, scale: float) -> None:
    """Replace the linear layers of a likelihood's networks with :class:`GaussianLinear`, in place.

    Raises:
        ValueError: if there are no linear layers, or if other modules have weights too.
    """
    replaced: dict[nn.Linear, GaussianLinear] = {}
    for parent in list(likelihood.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward:
                if child not in replaced:  # a layer with tied weights may occur twice
                    replaced[child] = GaussianLinear(child, scale)
                    # if the layer is the whole network, it has the check of the output shape
                    replaced[child]._forward_hooks.update(child._forward_hooks)
                setattr(parent, name, replaced[child])
    # the parameters of a likelihood itself, or of one of its parts, have no posterior
    networks: list[Any] = [m for m in likelihood.modules() if not isinstance(m, Likelihood)]
    networks = [m for m in networks if next(m.parameters(recurse=False), None) is not None]
    other = [m for m in networks if not isinstance(m, GaussianLinear)]
    if other or not networks:
        got = f"weights of a {type(other[0]).__name__}" if other else "no linear layer"
        raise ValueError(
            f"expected a decoder with weights in linear layers only; got {got}: use an MLP or a "
            f"GatedMLP, without a norm"
        )
