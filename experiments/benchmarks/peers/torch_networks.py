"""Encoder and decoder as in the tutorials of Pyro and PyTorch, of any depth."""

from __future__ import annotations

import numpy as np
import torch
from job import Job, Layers
from torch import Tensor, nn

__all__ = ["Networks"]


class Networks(nn.Module):
    """The problem's encoder and decoder on the device.

    ``encoder`` maps x ``(N, 784)`` to μ and log σ, each ``(N, latent_dim)``, with an output layer
    for each; ``decoder`` maps z ``(…, N, latent_dim)`` to logits ``(…, N, 784)``. With two layers
    of latents, ``upper_encoder`` and ``upper_decoder`` map each layer to μ and log σ of the other.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(job.data.encoder), make_mlp(job.data.decoder)
        if job.data.upper is not None:
            self.upper_encoder = Encoder(job.data.upper_encoder)
            self.upper_decoder = Encoder(job.data.upper_decoder)
        self.to(job.device)


class Encoder(nn.Module):
    def __init__(self, layers: Layers) -> None:
        super().__init__()
        *hidden, (weight, bias) = layers
        self.hidden = nn.Sequential(make_mlp(hidden), nn.Tanh())
        self.loc, self.log_scale = (
            make_mlp([pair]) for pair in zip(np.split(weight, 2), np.split(bias, 2), strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.loc(h), self.log_scale(h)


def make_mlp(layers: Layers) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    modules = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        modules += [nn.Tanh(), linear]
    return nn.Sequential(*modules[1:])
