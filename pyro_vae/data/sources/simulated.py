"""Simulated data sets, of which the true log p(x) is known."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .base import RawData, SourceOptions

__all__ = ["cells", "cells_log_prob"]

#: Numbers of cells, genes and cell types.
_CELLS, _GENES, _TYPES = 4000, 200, 6
#: Mean and standard deviation of the logarithm of the library size.
_LIBRARY = math.log(100), 0.4
#: Nodes of the quadrature over the library size, and the range in standard deviations.
_NODES, _RANGE = 121, 5.0


def cells(options: SourceOptions) -> RawData:
    """4000 simulated cells of six types, counts of 200 genes, 78 % of them zero.

    A cell has the type c with probability π_c and the library size ℓ, log ℓ ~ N(log 100, 0.4²). The
    count of gene g is negative binomial with mean ℓ ρ_cg, Σ_g ρ_cg = 1, and variance
    μ + μ² / θ_g. The seed is fixed. The labels are the types, and
    :func:`~pyro_vae.data.sources.cells_log_prob` returns the true log p(x).
    """
    rng, (probs, profiles, dispersion) = np.random.default_rng(1), _parameters()
    types = rng.choice(_TYPES, _CELLS, p=probs)
    library = np.exp(rng.normal(*_LIBRARY, (_CELLS, 1)))
    rates = library * profiles[types] * rng.gamma(dispersion, size=(_CELLS, _GENES)) / dispersion
    counts = rng.poisson(rates).astype(np.int16)
    return RawData(torch.from_numpy(counts), torch.from_numpy(types), peak=None)


def cells_log_prob(x: Tensor) -> Tensor:
    """Return the true log p(x) of cells, integrated over type and library size.

    Arguments:
        x: counts, ``(N, 200)``.

    Returns:
        ``(N,)``, nats, in float64: the sum over types, and a trapezoidal rule over log ℓ.
    """
    probs, profiles, dispersion = (torch.from_numpy(part) for part in _parameters())
    x = x.double().cpu()
    grid = torch.linspace(-_RANGE, _RANGE, _NODES, dtype=torch.float64)
    log_weights = torch.distributions.Normal(0.0, 1.0).log_prob(grid) + (grid[1] - grid[0]).log()
    constant = torch.lgamma(x + dispersion) - torch.lgamma(dispersion) - torch.lgamma(x + 1)
    terms = []
    for node, log_weight in zip(grid, log_weights, strict=True):
        rates = (_LIBRARY[0] + _LIBRARY[1] * node).exp() * profiles
        # log of θ^θ μ^x / (θ + μ)^(θ + x), a matrix product over genes for all types
        log_total = (dispersion + rates).log()
        score = (dispersion * (dispersion.log() - log_total)).sum(-1)
        terms.append(log_weight + score + x @ (rates.log() - log_total).T)
    log_p = torch.stack(terms).logsumexp(0) + probs.log()
    return log_p.logsumexp(-1) + constant.sum(-1)


def _parameters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return π ``(types,)``, ρ ``(types, genes)`` and θ ``(genes,)``."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1.8, _GENES)
    # a fifth of the genes differs between types
    is_marker = rng.random((_TYPES, _GENES)) < 0.2
    log_rates = shared + np.where(is_marker, rng.normal(0, 1.5, (_TYPES, _GENES)), 0)
    rates = np.exp(log_rates)
    dispersion = rng.gamma(4.0, 0.5, _GENES)
    return rng.dirichlet(np.full(_TYPES, 5.0)), rates / rates.sum(-1, keepdims=True), dispersion
