"""Encoder and decoder as in the tutorials of Pyro and PyTorch, of any depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from job import Problem
from torch import Tensor, nn

__all__ = ["Decoder", "Encoder"]


class Encoder(nn.Module):
    """Map x ``(N, 784)`` to μ and log σ, each ``(N, latent_dim)``, with one output layer each."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.hidden = _make_hidden(problem.encoder[:-1])
        self.loc, self.log_scale = (_make_linear(*head) for head in problem.heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.loc(h), self.log_scale(h)


class Decoder(nn.Module):
    """Map z ``(…, N, latent_dim)`` to logits ``(…, N, 784)``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.hidden = _make_hidden(problem.decoder[:-1])
        self.logits = _make_linear(*problem.decoder[-1])

    def forward(self, z: Tensor) -> Tensor:
        return self.logits(self.hidden(z))


def _make_hidden(layers: Sequence[tuple[np.ndarray, np.ndarray]]) -> nn.Sequential:
    return nn.Sequential(*(m for layer in layers for m in (_make_linear(*layer), nn.Tanh())))


def _make_linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
    return linear
