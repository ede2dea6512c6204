"""Schedules of β from 0 to 1 for annealed importance sampling."""

from __future__ import annotations

import numpy as np

from .path import PilotResult

__all__ = ["SCHEDULES", "make_adaptive_betas", "make_betas"]

#: The names of the schedules.
SCHEDULES = ("sigmoidal", "linear", "adaptive")
#: Steepness of the sigmoidal schedule.
_STEEPNESS = 4.0
#: Minimum cost of an interval of the adaptive schedule, relative to the mean.
_MIN_RELATIVE_COST = 0.05


def make_betas(
    schedule: str, num_temperatures: int, pilot: PilotResult | None = None
) -> tuple[float, ...]:
    """Return β_0 = 0, …, β_T = 1 for T temperatures.

    The schedule is one of :data:`SCHEDULES`; without a pilot, ``adaptive`` is the sigmoidal one.
    """
    if schedule == "adaptive" and pilot is not None:
        return make_adaptive_betas(pilot, num_temperatures)
    linear = np.linspace(0, 1, num_temperatures + 1)
    betas = linear if schedule == "linear" else _sigmoidal(linear)
    return (0.0, *betas[1:-1].tolist(), 1.0)


def _sigmoidal(t: np.ndarray) -> np.ndarray:
    """Return σ(δ (2t − 1)), rescaled to [0, 1].

    References:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        appendix A. https://arxiv.org/abs/1611.04273
    """
    s = 1 / (1 + np.exp(-_STEEPNESS * (2 * t - 1)))
    return (s - s[0]) / (s[-1] - s[0])


def make_adaptive_betas(pilot: PilotResult, num_temperatures: int) -> tuple[float, ...]:
    """Return β whose steps each lose the same effective sample size.

    After a step dβ, equal weights have the relative variance dβ² Var(log f_1 − log f_0), which is
    the loss. Steps are therefore inversely proportional to the standard deviation. The
    reference uses bisection during the run instead of a pilot.

    References:
        Toward Automatic Model Comparison: An Adaptive Sequential Monte Carlo Approach (Zhou
        et al., 2016), section 3.3. https://arxiv.org/abs/1303.3123
    """
    beta, cost = pilot.betas.numpy(), pilot.spread.double().numpy()
    cost = np.maximum(cost, _MIN_RELATIVE_COST * cost.mean() + np.finfo(float).tiny)
    costs = np.diff(beta) * (cost[1:] + cost[:-1]) / 2
    length = np.concatenate([[0.0], np.cumsum(costs)])
    betas = np.interp(np.linspace(0, length[-1], num_temperatures + 1), length, beta)
    return (0.0, *betas[1:-1].tolist(), float(beta[-1]))
