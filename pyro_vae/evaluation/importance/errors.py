"""Errors of estimates of log p(x) that include the large weights that were not drawn.

If the proposal is too narrow, most samples of K weights lack the largest ones. Then p̂ is too low,
the variance of the weights too small and k̂ too low, all at the same time: the examples with the
largest errors have the best diagnostics. Two remedies are combined here:

- The mean of the weights is split at the threshold u of the Pareto tail. The mean of min(w, u) has
  little variance. The mean excess over u is that of the fitted generalised Pareto distribution,
  σ / (1 − k), which includes weights beyond the largest one.
- The shape k of the tail is uncertain. Its prior is learned from all examples (empirical Bayes):
  an amortised guide errs in similar ways everywhere. For a single example the prior is wide.

The posterior of log p(x) given the weights then has a mean and a variance in closed form, and the
error of any estimate is its mean squared distance from log p(x).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...core import distributed
from .psis import PRIOR_SHAPE, PRIOR_WEIGHTS, ParetoTail, khat_thresholds

__all__ = ["MARK", "estimate_errors", "overlap_factor", "tail_statistics"]

#: Part of the names of columns that only :func:`estimate_errors` uses.
MARK = ":"

#: Shapes of the tail. Importance weights have a mean, so k < 1. Below −0.5 the tail is so light
#: that its mean excess is known.
_SHAPES = torch.linspace(-0.5, 0.98, 75, dtype=torch.float64)
#: Largest shape for which the order of the bias is used.
_MAX_SHAPE = 0.9
#: Mean and standard deviation of the prior of k without other examples.
_PRIOR_MEAN, _PRIOR_SCALE = 0.4, 0.35
#: Number of examples that this prior counts for, when the prior is learned.
_PRIOR_STRENGTH = 2.0
#: Width of the kernel that smooths the learned prior, and the number of EM steps.
_SMOOTHING, _NUM_STEPS = 0.05, 100
#: Columns with the variance of L_k.
BOUND_VARIANCE = re.compile(r"iwae_\d+_variance")
#: Degrees of freedom of the variance of L_k that is predicted from that of log p̂.
_PREDICTED_DEGREES = 30.0


def tail_statistics(
    name: str, tail: ParetoTail, log_mean: Tensor, delta: Tensor, part: Tensor, spread: Tensor
) -> dict[str, Tensor]:
    """Return the columns from which :func:`estimate_errors` computes the error of an estimate.

    Arguments:
        name: the column of the estimate, the logarithm of the mean of the weights.
        tail: the Pareto tail of the weights.
        log_mean: the estimate, ``(n,)``.
        delta: its delta-method variance, ``(n,)``.
        part: the mean of the estimates from tenths of the samples, ``(n,)``.
        spread: the variance between tenths, ``(n,)``, used where the weights have no mean.
    """
    count = tail.num_samples
    log_w, size, log_scale = tail.fitted_tail()
    if not len(log_w):  # fewer than five samples have no tail
        log_w = torch.full_like(log_mean, -math.inf)[None]
    is_tail = torch.arange(len(log_w))[:, None] < size
    # relative to the mean weight
    weights = (log_w - log_mean).exp().nan_to_num(nan=0.0)
    last = size.clamp(max=len(log_w) - 1)[None]
    threshold = torch.where(size > 0, weights.gather(0, last)[0], 0.0)
    above = torch.where(is_tail, weights, 0.0)
    excess = torch.where(is_tail, weights - threshold, 0.0).sum(0) / count
    # the mean of min(w, u)² from that of w² and the weights above u
    square = 1 + delta * (count - 1)
    square = square + (size * threshold.square() - above.square().sum(0)) / count
    body = (square - (1 - excess).square()).clamp(min=0) / max(count - 1, 1)
    values = {
        "size": size.double(),
        "threshold": threshold,
        "scale": torch.where(size > 0, (log_scale - log_mean).exp(), 0.0),
        "excess": excess,
        "body": torch.where(size > 0, body, delta),
        "delta": delta,
        "part": part,
        "count": torch.full_like(delta, count),
        "ratio": torch.full_like(delta, count / max(1, count // 10)),
        "spread": spread,
    }
    return {f"{name}{MARK}{key}": value for key, value in values.items()}


def estimate_errors(
    columns: Mapping[str, Tensor], pool: bool = True, gather: bool = False
) -> dict[str, Tensor]:
    """Return the columns with the errors of all estimates, without those that only serve them.

    For every estimate NAME with :func:`tail_statistics` there are

    - ``NAME_variance``, its mean squared error;
    - ``NAME_bias``, its expected deviation from log p(x), which is noisy for a single example, but
      not its mean over the examples;
    - ``NAME_khat_pooled`` (``khat_pooled`` for ``log_evidence``), the posterior mean of k. It is
      k̂ where no tail with k < 1 could be fitted;
    - ``NAME_num_samples`` (not for ``log_evidence``), the number of samples.

    Where k is above :func:`~.psis.khat_threshold`, a few weights dominate, and the fit says little.
    There the variance is that between tenths of the samples, or of the delta method if larger.
    Importance weights have a mean, so a k̂ ≥ 1 is one of too few samples.

    Arguments:
        columns: the columns, ``(N,)`` each.
        pool: learn the prior of k from all examples.
        gather: learn it from the examples of all processes, which must all call this function.

    References:
        Parameter Estimation for the Generalized Pareto Distribution (Hosking and Wallis, 1987),
        section 2, for the covariance of k̂ and σ̂. https://doi.org/10.1080/00401706.1987.10488243
        Estimating the Mean of Heavy-Tailed Distributions (Johansson, 2003).
        https://doi.org/10.1023/B:EXTR.0000025663.45811.9b
        Nonparametric Maximum Likelihood Estimation of a Mixing Distribution (Laird, 1978).
        https://doi.org/10.1080/01621459.1978.10480103
    """
    result = {name: column for name, column in columns.items() if MARK not in name}
    names = [name.partition(MARK)[0] for name in columns if name.endswith(f"{MARK}size")]
    for name in names:
        statistics = {
            key.partition(MARK)[2]: value
            for key, value in columns.items()
            if key.startswith(f"{name}{MARK}")
        }
        _add_errors(result, name, statistics, pool, gather)
    return result


def _add_errors(
    columns: dict[str, Tensor],
    name: str,
    statistics: Mapping[str, Tensor],
    pool: bool,
    gather: bool,
) -> None:
    prefix = "" if name == "log_evidence" else f"{name}_"
    khat, size, delta = columns[f"{prefix}khat"], statistics["size"], statistics["delta"]
    is_fitted = khat.isfinite() & (size > 0)
    # without the prior with which ArviZ regularises k̂
    shape = khat + (khat - PRIOR_SHAPE) * PRIOR_WEIGHTS / size.clamp(min=1)
    shape = torch.where(is_fitted, shape, 0.0)
    # below the grid the mean excess is that of the weights
    is_light = shape < _SHAPES[0]
    excess = statistics["excess"] * statistics["count"] / size.clamp(min=1)
    scale = torch.where(is_light, (1 - _SHAPES[0]) * excess, statistics["scale"])
    shape = torch.where(is_light, _SHAPES[0], shape)
    prior = _default_prior()
    if pool:
        fits = torch.stack([shape, size])[:, is_fitted]
        prior = _learn_prior(*torch.cat(distributed.all_gather(fits), 1) if gather else fits)
    log_likelihood = _log_likelihood(shape, size.clamp(min=1))
    posterior = (log_likelihood + prior.log()).softmax(1)
    pooled = posterior @ _SHAPES
    mean, variance = _log_mean_given_shape(shape, scale, statistics)
    centre = (posterior * mean).sum(1)
    variance = (posterior * (variance + (mean - centre[:, None]).square())).sum(1)
    bias = _extrapolate_bias(pooled, log_mean=columns[name], statistics=statistics)
    variance = variance + statistics.get("rare", torch.zeros_like(variance))

    has_mean = khat < 1  # false for NaN
    pooled = torch.where(is_fitted & has_mean, pooled, khat)
    is_good = pooled < torch.from_numpy(khat_thresholds(statistics["count"].numpy()))
    spread = torch.fmax(statistics["spread"], torch.zeros_like(delta))

    def select(value: Tensor, fallback: Tensor) -> Tensor:
        return torch.where(is_good, value.clamp(min=0), torch.maximum(fallback, spread))

    if "stratified" in statistics:
        # strata of fixed sizes remove a part of the variance
        ratio = torch.where(delta > 0, statistics["stratified"] / delta, 1.0)
        variance, delta = variance * ratio, statistics["stratified"]
    variance = select(variance, delta)
    centre, bias = (torch.where(m, part, 0.0) for m, part in ((is_good, centre), (has_mean, bias)))
    columns[f"{prefix}khat_pooled"] = pooled
    if prefix:
        columns[f"{prefix}num_samples"] = statistics["count"]
    for estimate in (name, *_SAME_WEIGHTS.get(name, ())):
        if estimate in columns:
            shift = torch.where(has_mean, columns[estimate] - columns[name], 0.0)
            columns[f"{estimate}_variance"] = variance + (shift - centre).square()
            columns[f"{estimate}_bias"] = shift + bias
    if "gap" in statistics:
        gap = _gap_variance(columns["elbo_variance"], statistics, variance)
        columns["gap_variance"] = select(gap, statistics["gap"]) + centre.square()
        columns["gap_bias"] = bias
    if name == "log_evidence":
        _smooth_bound_variances(columns, variance, statistics["count"], pool, gather)


def overlap_factor(count: Tensor, k: int) -> Tensor:
    """Return the factor of the variance of a mean over n groups of k of K samples.

    If k does not divide K, the last group shares samples with the first.
    """
    groups = (count / k).ceil()
    return 1 + 2 * (groups * k - count) / (k * groups)


#: Other estimates of log p(x) from the weights of an estimate.
_SAME_WEIGHTS = {"log_evidence": ("psis", "jackknife")}


def _default_prior() -> Tensor:
    density = (-0.5 * ((_SHAPES - _PRIOR_MEAN) / _PRIOR_SCALE).square()).exp()
    return density / density.sum()


def _log_likelihood(shape: Tensor, size: Tensor) -> Tensor:
    """Return the log-density of k̂ for every k on the grid, ``(N, G)``."""
    scale = (1 + _SHAPES) / size.sqrt()[:, None]
    return -0.5 * ((shape[:, None] - _SHAPES) / scale).square() - scale.log()


def _learn_prior(shape: Tensor, size: Tensor) -> Tensor:
    """Return the prior of k on the grid, ``(G,)``, by smoothed EM from k̂ of all examples."""
    likelihood = _log_likelihood(shape, size).softmax(1)  # EM does not depend on the scale
    kernel = (-0.5 * ((_SHAPES[:, None] - _SHAPES) / _SMOOTHING).square()).exp()
    kernel = kernel / kernel.sum(0)
    default = _default_prior()
    prior = default
    for _ in range(_NUM_STEPS if len(likelihood) else 0):
        posterior = prior * likelihood
        total = (posterior / posterior.sum(1, keepdim=True)).sum(0)
        prior = kernel @ (total + _PRIOR_STRENGTH * default)
        prior = prior / prior.sum()
    return prior


def _log_mean_given_shape(
    shape: Tensor, scale: Tensor, statistics: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of log p(x) − log p̂ for every k on the grid, ``(N, G)`` each.

    k̂ and log σ̂ are correlated: given k, log σ is log σ̂ + (k̂ − k) / (1 + k) with the variance
    (1 + 2k) / M for a tail of M weights.
    """
    size, threshold = statistics["size"][:, None], statistics["threshold"][:, None]
    count = statistics["count"][:, None]
    below = 1 - statistics["excess"][:, None]  # the mean of min(w, u)
    change = ((shape[:, None] - _SHAPES) / (1 + _SHAPES)).exp()
    tail = size / count * scale[:, None] * change / (1 - _SHAPES)
    mean = below + tail
    safe = size.clamp(min=1)
    # the number of weights above u is random, and correlated with the mean of min(w, u)
    variance = statistics["body"][:, None] + tail.square() * (1 - size / count) / safe
    variance = variance + 2 * tail * (threshold - below).clamp(min=0) / count
    variance = variance + tail.square() * (1 + 2 * _SHAPES).clamp(min=0) / safe
    variance = variance / mean.square()
    # the logarithm of an estimate is low by half its relative variance
    return mean.log() + variance / 2, variance


def _extrapolate_bias(shape: Tensor, log_mean: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the expected deviation of log p̂ from log p(x), from its rise with the samples.

    The bias of K samples is of order K^−a with a = 1, or a = 1/k − 1 for k > 1/2, where the
    variance of the weights is infinite. The rise from a tenth of the samples to all of them then
    gives what is missing. It is noisy for a single example.
    """
    shape = shape.clamp(0.5, _MAX_SHAPE)
    factor = statistics["ratio"] ** (1 / shape - 1) - 1
    rise = torch.where(factor > 0, (log_mean - statistics["part"]) / factor, 0.0)
    return -rise.nan_to_num(nan=0.0)  # −∞ − −∞


def _gap_variance(single: Tensor, statistics: Mapping[str, Tensor], variance: Tensor) -> Tensor:
    """Return the variance of log p̂ − ELBO, from the correlation of the two in the samples."""
    delta = statistics["delta"]
    scale = (delta * single).sqrt()
    correlation = torch.where(scale > 0, (delta + single - statistics["gap"]) / (2 * scale), 1.0)
    return variance + single - 2 * correlation.clamp(-1, 1) * (variance * single).sqrt()


def _smooth_bound_variances(
    columns: dict[str, Tensor], variance: Tensor, count: Tensor, pool: bool, gather: bool
) -> None:
    """Combine the variances of L_k between few groups with those predicted from log p̂.

    The variance of L_k from n groups is about that of log p̂ times K / (k n). A common factor
    is learned from all examples, so their total stays that between groups.
    """
    parts: dict[str, tuple[Tensor, ...]] = {}
    sums: dict[str, Tensor] = {}
    for name in [name for name in columns if BOUND_VARIANCE.fullmatch(name)]:
        k = int(name.split("_")[1])
        groups = (count / k).ceil()
        degrees = groups - 1
        # L_K is log p̂, but as a bound on log p(x) it is not biased
        observed = torch.where(degrees > 0, columns[name], variance)
        predicted = variance * count / (k * groups) * overlap_factor(count, k)
        few = (groups < count) & (degrees < _PREDICTED_DEGREES) & (degrees > 0)
        few &= observed.isfinite() & predicted.isfinite()
        parts[name] = (few, degrees, observed, predicted)
        sums[name] = torch.stack([p[few].sum() for p in (degrees, observed, predicted)])
    shards = distributed.all_gather(sums) if pool and gather else [sums]
    for name, (few, degrees, observed, predicted) in parts.items():
        factor = torch.ones(())
        if pool:
            known = [shard[name] for shard in shards if name in shard]
            total, spread, expected = torch.stack(known).sum(0)
            ratio = spread / expected.clamp(min=1e-300)
            factor = (total * ratio + _PREDICTED_DEGREES) / (total + _PREDICTED_DEGREES)
        combined = degrees * observed + _PREDICTED_DEGREES * factor * predicted
        combined = combined / (degrees + _PREDICTED_DEGREES)
        columns[name] = torch.where(few, combined, observed)
