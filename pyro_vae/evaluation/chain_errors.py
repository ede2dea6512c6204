"""Errors and diagnostics of estimates of log p(x) from a few independent chains per example.

A few chains determine the variance of an estimate poorly: with 4 chains, ± 1.96 standard errors
cover log p(x) in 80 % of the cases. Intervals therefore pool the variances over the examples, and
use Student's t distribution.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .importance.psis import ParetoTail

__all__ = [
    "MAX_CHAIN_KHAT",
    "add_chain_errors",
    "are_chains_good",
    "moderate_variances",
    "student_interval",
]

#: k̂ of the weights of all chains above which their standard errors are too small.
MAX_CHAIN_KHAT = 0.6
#: The minimum number of weights, over all examples, for that k̂.
_MIN_WEIGHTS = 100
#: The k̂ that is assumed if there are too few weights.
_DEFAULT_KHAT = 0.5
#: The minimum effective number of chains.
_MIN_EFFECTIVE_CHAINS = 2.0
#: The minimum number of examples whose variances are pooled.
_MIN_POOLED = 5
#: Lower limit of a variance relative to the median, so that a zero has a finite logarithm.
_MIN_RELATIVE = 1e-5
#: Limit of log ratios of weights, in nats, if all other chains have zero weight.
_MAX_LOG_RATIO = 300.0


def add_chain_errors(columns: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return columns with the error and k̂ of the logarithm of the mean weight of a few chains.

    The weights of the chains of an example, relative to the mean of its other chains, have the
    same distribution for similar examples. k̂ is the index of the upper tail of all of them. If it
    is high, few chains have most of the expected weight: most examples have no such chain, so that
    their estimate and its error are both too small.

    The mean of log p̂ is below log p(x) by half its variance if the variance is small. The factor
    1 + k̂ for heavier tails was found by simulation. The bias is positive for −log p̂ of reversed
    chains, whose column is ``upper``.

    Arguments:
        columns: ``NAME_log_weights``, ``(N, C)``, and the variance ``NAME_variance``, ``(N,)``.
        name: the name of the estimate.

    Returns:
        The columns without the weights, with ``NAME_bias``, the expected value of the estimate
        minus log p(x); ``NAME_variance``, the mean squared error, which includes the bias;
        ``NAME_dof``, the degrees of freedom of the variance; and ``NAME_khat``, one number for all
        examples, NaN if there are fewer than 100 weights.
    """
    result = dict(columns)
    log_w, variance = result.pop(f"{name}_log_weights"), result[f"{name}_variance"]
    size, count = log_w.shape
    khat = _pooled_khat(torch.from_numpy(log_w).double().T)
    bias = variance / 2 * (1 + (_DEFAULT_KHAT if np.isnan(khat) else min(max(khat, 0.0), 1.0)))
    values = {
        "variance": variance + bias**2,
        "bias": bias if name == "upper" else -bias,
        "dof": np.full(size, count - 1.0),
        "khat": np.full(size, khat),
    }
    return result | {f"{name}_{key}": value for key, value in values.items()}


def _pooled_khat(log_w: Tensor) -> float:
    """Return k̂ of the weights relative to the mean of the other chains, from ``(C, N)``."""
    if len(log_w) < 2 or log_w.numel() < _MIN_WEIGHTS:
        return np.nan
    others = ~torch.eye(len(log_w), dtype=torch.bool)
    ratios = torch.stack(
        [row - log_w[keep].logsumexp(0) for row, keep in zip(log_w, others, strict=True)]
    )
    # −∞ − −∞: no chain of the example has a weight
    ratios = ratios.nan_to_num(nan=-torch.inf).clamp(max=_MAX_LOG_RATIO).reshape(-1, 1)
    tail = ParetoTail(len(ratios), 1)
    tail.update(ratios)
    return float(tail.khat)


def moderate_variances(variances: np.ndarray, dof: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances that are shrunk towards their mean, and their degrees of freedom.

    Empirical Bayes: the true variances of the examples have a scaled inverse χ² distribution, whose
    degrees of freedom d₀ follow from the spread of the observed ones. An example with d degrees of
    freedom gets the average of its variance and the common one with weights d and d₀, and d + d₀
    degrees of freedom. Unlike in the reference, the common one is the arithmetic mean, so the mean
    over the examples does not change: a skewed distribution of weights often gives a variance that
    is far too small. Unchanged for fewer than 5 examples.

    Arguments:
        variances, dof: ``(N,)``. NaN marks an unknown variance.

    References:
        Linear Models and Empirical Bayes Methods for Assessing Differential Expression in
        Microarray Experiments (Smyth, 2004), sections 4 and 6. https://doi.org/10.2202/1544-6115.1027
    """
    from scipy import optimize, special  # slow to import and used only here

    known = np.isfinite(variances) & np.isfinite(dof)
    values, degrees = variances[known], dof[known]
    if len(values) < _MIN_POOLED or not np.median(values) > 0:
        return variances, dof
    logs = np.log(np.maximum(values, _MIN_RELATIVE * np.median(values)))
    logs -= special.digamma(degrees / 2) - np.log(degrees / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, degrees / 2).mean()
    # trigamma(d₀/2) is the variance of the logarithms of the true variances
    low, high = 1e-3, 1e4
    if excess <= special.polygamma(1, high):
        half = high
    elif excess >= special.polygamma(1, low):
        half = low
    else:
        half = optimize.brentq(lambda h: special.polygamma(1, h) - excess, low, high)
    prior = 2 * half
    moderated, total = variances.copy(), dof.copy()
    moderated[known] = (prior * values.mean() + degrees * values) / (prior + degrees)
    total[known] = prior + degrees
    return moderated, total


def student_interval(
    value: np.ndarray,
    variance: np.ndarray,
    dof: np.ndarray,
    bias: np.ndarray | float = 0.0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Return an interval for log p(x) of each example from moderated variances.

    A bias of known sign extends the interval to the other side.

    Arguments:
        value, variance, dof: the estimates, their mean squared errors and degrees of freedom,
            ``(N,)``.
        bias: the expected value of the estimate minus log p(x).
        level: the probability that the interval contains log p(x).
    """
    from scipy import stats  # slow to import and used only here

    moderated, total = moderate_variances(variance - np.square(bias), dof)
    half = stats.t.ppf((1 + level) / 2, total) * np.sqrt(moderated)
    return value - half - np.maximum(bias, 0.0), value + half + np.maximum(np.negative(bias), 0.0)


def are_chains_good(
    data: Mapping[str, np.ndarray], name: str = "ais", max_error: float = np.inf
) -> np.ndarray:
    """Return whether the estimate and its error are reliable for each example, ``(N,)``.

    Required are: at least two effective chains (1.5 of 2); k̂ of the weights of all chains below
    0.6, unless there are too few of them for k̂; and an error of at most ``max_error``.

    Arguments:
        data: the columns of :class:`Bounds`; examples without the estimate are not good.
        name: the name of the estimate.
        max_error: in nats.
    """
    bias, dof = data[f"{name}_bias"], data[f"{name}_dof"]
    moderated, _ = moderate_variances(data[f"{name}_variance"] - bias**2, dof)
    is_effective = data[f"{name}_ess"] >= np.minimum(_MIN_EFFECTIVE_CHAINS, dof / 2 + 1)
    is_heavy = data[f"{name}_khat"] >= MAX_CHAIN_KHAT  # false if unknown
    return is_effective & ~is_heavy & (moderated + bias**2 <= max_error**2)
