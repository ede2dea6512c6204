"""Jackknife variational inference: L_K without the leading term of its bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .psis import LargestWeights

__all__ = ["MIN_EXACT_WEIGHTS", "jackknife_estimate"]

#: The minimum number of largest weights treated exactly: any other is at most 1/65 of the sum.
MIN_EXACT_WEIGHTS = 64

#: Coefficients of r^p in the power series of log(1 − r)², where log(1 − r) = −Σ r^p / p.
_SQUARED_COEFFICIENTS = (0.0, 1.0, 1.0, 11 / 12)


def jackknife_estimate(largest: LargestWeights, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return J = K L_K − (K − 1) L̄_{K−1} and its jackknife variance, ``(n,)`` each.

    L̄_{K−1} is the mean of L_{K−1} over the K ways to leave one sample out. The bias of L_K is of
    order 1/K; that of J is of order 1/K² and of either sign, so J is an estimate and not a bound.
    With r = w / Σw,

        J = L_K + (K − 1) log(1 − 1/K) − (K − 1)/K Σ log(1 − r).

    The terms of the largest weights are exact. Those of the others come from sums of powers of
    the weights: each r is at most 1/65, so the truncation error is below 1e-9 nats.

    Arguments:
        largest: the :data:`MIN_EXACT_WEIGHTS` largest weights or more, and sums of powers of the
            others.
        num_samples: the number K of samples.

    Returns:
        J and its variance. NaN for a single sample, which cannot be left out. If all weights but
        one are zero, J is +inf and its variance NaN; if all are zero, J is −inf.

    References:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        Variational Inference (Nowozin, 2018), equations 12 and 15.
        https://openreview.net/forum?id=HyZoi-WRb
    """
    descending = largest.descending
    if num_samples < 2:
        unknown = torch.full_like(descending[0], math.nan)
        return unknown, unknown
    # summing the weights below the largest avoids the cancellation in 1 − r
    others = largest.log_sums_of_others
    log_rest = torch.logaddexp(descending[1:].logsumexp(0), others[0])
    log_sum = torch.logaddexp(descending[0], log_rest)
    logs = torch.log1p(-(descending[1:] - log_sum).exp())
    logs = torch.cat([(log_rest - log_sum)[None], logs])
    total, squares = logs.sum(0), logs.square().sum(0)
    for i, factor in enumerate(_SQUARED_COEFFICIENTS):
        power = i + 1
        sums = (others[i] - power * log_sum).exp()
        total, squares = total - sums / power, squares + factor * sums
    count = num_samples
    correction = (count - 1) * (math.log1p(-1 / count) - total / count)
    value = log_sum - math.log(count) + correction
    variance = (squares - total.square() / count).clamp(min=0) * (count - 1) / count
    # if all weights are zero there is no correction
    value = torch.where(log_sum == -math.inf, log_sum, value)
    return value, variance
