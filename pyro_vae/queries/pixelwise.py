"""Imputation for the poor: every pixel by itself, with the moments it has in the training data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from ..data.kinds import Kind, kind_of

__all__ = ["score_pixelwise"]


def score_pixelwise(train: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """log p(x_mis) under independent pixels: what mean imputation knows.

    A Bernoulli with the pixel's frequency (n₁ + ½)/(n + 1) of 0/1, a normal with its mean and
    standard deviation, at least 1e-3, of real numbers. Only a likelihood of the same kind, a
    probability or a density, compares with it.

    Arguments:
        train: the data to learn from, ``(n, *event)``.
        x: the data to score, ``(N, *event)``.
        observed: which of their pixels are left out, booleans ``(N, *event)`` or ``event``.

    Returns:
        The log-likelihoods, ``(N,)``, nats.

    Raises:
        ValueError: if the data are integers with more than two levels.
    """
    kind = kind_of(train)
    if kind in (Kind.LEVELS, Kind.COUNTS):
        raise ValueError(f"expected 0/1 or real numbers; got {kind.describe(train)}")
    pixels = (
        Bernoulli((train.sum(0) + 0.5) / (len(train) + 1))
        if kind is Kind.BINARY
        else Normal(train.mean(0), train.std(0, correction=0).clamp(min=1e-3))
    )
    score = torch.where(observed.expand(x.shape), 0.0, pixels.log_prob(x))
    return score.flatten(1).sum(1) if score.ndim > 1 else score
