"""Jackknife variational inference: L_K with the largest part of its bias removed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .psis import POWERS, Largest

__all__ = ["KEPT", "jackknife_estimate"]

#: The weights that are looked at one by one, at least: no other is more than a 65th of the sum.
KEPT = 64

#: log(1 − r) = −Σ r^p / p, and its square is Σ of these times r^p.
_SQUARED = (0.0, 1.0, 1.0, 11 / 12)


def jackknife_estimate(largest: Largest, num_samples: int) -> tuple[Tensor, Tensor]:
    """J = K L_K − (K − 1) L̄_{K−1} and its variance by the jackknife, ``(n,)`` each.

    L̄_{K−1} is the mean of L_{K−1} over the K ways to leave one draw out. The bias of L_K is of
    order 1/K; that of J is of order 1/K², and of either sign: no bound, but an estimate. With
    r = w / Σw,

        J = L_K + (K − 1) log(1 − 1/K) − (K − 1)/K Σ log(1 − r),

    of which the largest weights give their terms exactly and the others by sums of their powers:
    none of those is above 1/65 of the sum, and the error that is left below 1e-9 nats.

    Arguments:
        largest: the :data:`KEPT` largest weights or more, and sums of powers of the others.
        num_samples: the number K of draws that came.

    Returns:
        J and its variance. NaN for a single draw, which cannot be left out; J = +inf where all
        weights but one are zero, and a variance of NaN with it; −inf where all are zero.

    References:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        Variational Inference (Nowozin, 2018), equations 12 and 15.
        https://openreview.net/forum?id=HyZoi-WRb
    """
    descending = largest.descending
    if num_samples < 2:
        unknown = torch.full_like(descending[0], math.nan)
        return unknown, unknown
    # what is left without the largest weight is added up, since 1 − r would lose it
    left = torch.logaddexp(descending[1:].logsumexp(0), largest.log_sum_of_others())
    log_sum = torch.logaddexp(descending[0], left)
    logs = torch.log1p(-(descending[1:] - log_sum).exp())
    logs = torch.cat([(left - log_sum)[None], logs])
    powers = [(largest.log_sum_of_others(p) - p * log_sum).exp() for p in range(1, POWERS + 1)]
    total, squares = logs.sum(0), logs.square().sum(0)
    for power, (sums, factor) in enumerate(zip(powers, _SQUARED, strict=True), start=1):
        total, squares = total - sums / power, squares + factor * sums
    count = num_samples
    correction = (count - 1) * (math.log1p(-1 / count) - total / count)
    value = log_sum - math.log(count) + correction
    variance = (squares - total.square() / count).clamp(min=0) * (count - 1) / count
    # without any weight there is nothing to correct
    value = torch.where(log_sum == -math.inf, log_sum, value)
    return value, variance
