"""Counts with a gamma prior on their rate: skewed posteriors with log p(x) in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch


def gamma_poisson():
    """Return model, guide, data and log p(x). The guide is log-normal, and poor for most counts."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(0 * x, 0.2))

    x = torch.tensor([0.0, 1.0, 4.0, 12.0])
    return model, guide, x, dist.GammaPoisson(2.0, 2.0).log_prob(x)
