"""Pixelwise baseline for imputation: independent pixels with the moments of the training data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from ..data.kinds import Kind, kind_of

__all__ = ["score_pixelwise"]


def score_pixelwise(train: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """Compute log p(x_mis) under independent pixels, the baseline of mean imputation.

    Binary pixels have a Bernoulli distribution with the smoothed frequency (n₁ + ½)/(n + 1), real
    ones a normal distribution with the mean and standard deviation (at least 1e-3) of the
    training data. Compare the result only with likelihoods of the same kind, probability or
    density.

    Arguments:
        train: the training examples, ``(n, *event)``.
        x: the examples to score, ``(N, *event)``.
        observed: boolean mask of the pixels that are not scored, ``(N, *event)`` or ``event``.

    Returns:
        The log likelihoods, ``(N,)``, nats.

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
