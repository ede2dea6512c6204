"""Latent angles, in a model with a closed-form posterior.

z ~ VonMises(0, a) and x | z ~ VonMises(z, b): the posterior is VonMises(μ, c), where c e^{iμ} is
a + b e^{ix}, and p(x) = I₀(c) / (2π I₀(a) I₀(b)).
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special

import pyro_vae as pv
from pyro_vae import evaluation, queries
from pyro_vae.evaluation.annealing import Annealing
from pyro_vae.programs.hmc import sample_posterior
from pyro_vae.programs.unconstrained import is_circular

PRIOR, NOISE = 0.5, 2.0
X = torch.tensor([-3.1, 0.0, 1.0, 3.1], dtype=torch.float64)
RESULTANT = PRIOR + NOISE * np.exp(1j * X.numpy())
LOG_EVIDENCE = (
    np.log(special.i0(np.abs(RESULTANT)))
    - math.log(special.i0(PRIOR))
    - math.log(special.i0(NOISE))
    - math.log(2 * math.pi)
)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.VonMises(x.new_tensor(0.0), PRIOR))
        pyro.sample("x", dist.VonMises(z, NOISE), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.VonMises(x, 1.0))


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def test_draws_of_hmc_are_angles_of_the_posterior():
    # many short chains: the time is that of the transitions, whatever the number of chains
    options = {"num_samples": 20, "thin": 2}
    draws = sample_posterior(model, guide, X, num_chains=500, seed=0, options=options).draws["z"]
    assert -math.pi <= float(draws.min()) and float(draws.max()) < math.pi
    # chains near ±π cross the end of the interval
    assert (draws[..., 0] < -2).any() and (draws[..., 0] > 2).any()
    length = np.abs(RESULTANT)
    expected = RESULTANT / length * special.i1(length) / special.i0(length)
    mean = torch.exp(1j * draws).mean((0, 1)).numpy()
    np.testing.assert_allclose(mean, expected, atol=0.04)


@pytest.mark.parametrize("initial", ["guide", "prior"])
def test_annealing(initial):
    bounds = pv.ais((model, guide), X, annealing=Annealing(50, 100, 5, initial=initial))
    # 4 comparisons at 5 standard errors
    error = 5 * bounds.per_datum["ais_variance"] ** 0.5 + 0.005
    assert (np.abs(bounds.per_datum["ais"] - LOG_EVIDENCE) < error).all()


def test_imputation():
    for method in ("importance", "hmc"):
        imputed = queries.impute((model, guide), X, num_samples=4000, method=method, draws=20)
        np.testing.assert_allclose(imputed.log_evidence.numpy(), LOG_EVIDENCE, atol=0.05)
        assert float(imputed.latents["z"].abs().max()) <= math.pi + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pv.evaluate((model, normal_guide), X, num_samples=50),
            "'z' to be an angle in both programs or in neither; got Normal in the guide and VonM",
        ),
        (
            lambda: pv.ais((_normal_model, guide), X),
            "'z' to be an angle in both programs or in neither; got VonMises in the guide and Nor",
        ),
        (
            lambda: pv.gaps((model, guide), X),
            "latents on the real line for a variational family; got angles at site 'z': use",
        ),
        (
            lambda: evaluation.reciprocal((model, guide), X),
            "latents on the real line for reciprocal importance sampling; got angles at site 'z'",
        ),
    ],
)
def test_densities_that_have_no_integral_on_the_real_line_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.VonMises(z, NOISE), obs=x)


def test_distributions_of_angles():
    one = torch.ones(2)
    angle = dist.VonMises(one, 1.0)
    mixture = dist.MixtureSameFamily(dist.Categorical(one), angle)
    sine = dist.SineBivariateVonMises(0.0, 0.0, one[0], one[0], correlation=one[0] / 2)
    skewed = dist.SineSkewed(angle.to_event(1), one / 4)
    for fn in (angle, angle.to_event(1), angle.mask(one > 0), mixture, sine, skewed):
        assert is_circular(fn), fn
    shifted = dist.TransformedDistribution(angle, dist.transforms.AffineTransform(0.0, 2.0))
    for fn in (dist.Normal(one, 1.0), dist.Uniform(-one, one), dist.Bernoulli(one / 2), shifted):
        assert not is_circular(fn), fn
