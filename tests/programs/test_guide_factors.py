"""Observed sites of the guide (``pyro.factor``) are not part of q(z|x) in any evaluation."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro.nn import pyro_method

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.programs.particles import guide_log_prob_at


class Auxiliary(LinearGaussian):
    """A shifted posterior beside an auxiliary loss of the guide, written in one of three ways."""

    def __init__(self, kind):
        super().__init__(2, shift=0.3)
        self.kind = kind

    @pyro_method
    def guide(self, x):
        if self.kind == "regulariser":
            pyro.factor("loss", 3.0 * x.square().sum(), has_rsample=True)
        with pyro.plate("data", len(x)):
            if self.kind == "factor":
                pyro.factor("loss", 5.0 + x.sum(-1), has_rsample=False)
            elif self.kind == "observed":
                fn = dist.Normal(x.sum(-1), 0.1)
                pyro.sample("loss", fn, obs=torch.zeros(len(x)), infer={"is_auxiliary": True})
            mean = (x - self.b) @ self.W @ self.covariance / self.s**2 + self.shift
            scale_tril = self.factor.expand(len(x), -1, -1)
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale_tril))


KINDS = ["factor", "observed", "regulariser"]

ANNEALING = pv.Annealing(num_temperatures=4, num_chains=2)
EVALUATIONS = {
    "log_weights": lambda p, x: pv.log_weights(p.model, p.guide, x, num_samples=7).numpy(),
    "evaluate": lambda p, x: pv.evaluate(p, x, num_samples=50).per_datum["elbo"],
    "ais": lambda p, x: str(pv.ais(p, x, annealing=ANNEALING)),
    "latents": lambda p, x: str(pv.latents(p, x, num_samples=50, num_draws=100)),
    "gaps": lambda p, x: str(pv.gaps(p, x, annealing=None, num_samples=50, num_steps=5)),
    "anomaly_scores": lambda p, x: queries.anomaly_scores(p, x, num_samples=20),
    "score_missing": lambda p, x: queries.score_missing(
        p, x, observed=(torch.arange(6) < 4).expand(4, 6), num_samples=50, refit_steps=5
    ).value.numpy(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_ignore_the_loss(name, kind):
    x = Auxiliary(None).sample(4)
    results = []
    for program in (Auxiliary(None), Auxiliary(kind)):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        results.append(EVALUATIONS[name](program, x))
    np.testing.assert_equal(results[1], results[0])


@pytest.mark.parametrize("kind", ["factor", "observed"])
def test_density_of_the_guide_at_given_latents(kind):
    x, z = Auxiliary(None).sample(4), torch.randn(5, 4, 2, dtype=torch.float64)
    plain, other = (guide_log_prob_at(Auxiliary(k).guide, {"z": z}, x) for k in (None, kind))
    torch.testing.assert_close(other, plain, rtol=0, atol=0)
