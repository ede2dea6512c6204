"""How β rises from 0 to 1 in annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .path import Pilot

__all__ = ["SCHEDULES", "at_equal_loss", "betas_of"]

#: How steep the sigmoidal schedule is.
_STEEPNESS = 4.0
#: The least cost of a piece of the adaptive schedule, of the mean one.
_LEAST = 0.05


def betas_of(schedule: str, num_temperatures: int, pilot: Pilot | None = None) -> tuple[float, ...]:
    """β_0 = 0 … β_T = 1.

    Arguments:
        schedule: one of :data:`SCHEDULES`; the adaptive one is sigmoidal without a pilot.
        num_temperatures: T.
        pilot: what an earlier run has seen.
    """
    if schedule == "adaptive" and pilot is not None:
        return at_equal_loss(pilot, num_temperatures)
    betas = _BETAS[schedule](np.linspace(0, 1, num_temperatures + 1))
    return (0.0, *betas[1:-1].tolist(), 1.0)


def _linear(t: np.ndarray) -> np.ndarray:
    return t


def _sigmoidal(t: np.ndarray) -> np.ndarray:
    """σ(δ (2t − 1)), stretched to [0, 1].

    References:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        appendix A. https://arxiv.org/abs/1611.04273
    """
    s = 1 / (1 + np.exp(-_STEEPNESS * (2 * t - 1)))
    return (s - s[0]) / (s[-1] - s[0])


def at_equal_loss(pilot: Pilot, num_temperatures: int) -> tuple[float, ...]:
    """β whose steps lose the same effective sample size each.

    A step dβ turns equal weights into ones of relative variance dβ² Var(log f_1 − log f_0),
    and that is what it loses: β moves at a speed inverse to the standard deviation.

    References:
        Toward Automatic Model Comparison: An Adaptive Sequential Monte Carlo Approach (Zhou
        et al., 2016), section 3.3 (there by bisection as the chains go, here from a pilot).
        https://arxiv.org/abs/1303.3123
    """
    beta, cost = pilot.betas.numpy(), pilot.spread.double().numpy()
    cost = np.maximum(cost, _LEAST * cost.mean() + np.finfo(float).tiny)
    pieces = np.diff(beta) * (cost[1:] + cost[:-1]) / 2
    length = np.concatenate([[0.0], np.cumsum(pieces)])
    betas = np.interp(np.linspace(0, length[-1], num_temperatures + 1), length, beta)
    return (0.0, *betas[1:-1].tolist(), float(beta[-1]))


_BETAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoidal": _sigmoidal,
    "linear": _linear,
    "adaptive": _sigmoidal,
}

#: The names of the schedules.
SCHEDULES = tuple(_BETAS)
