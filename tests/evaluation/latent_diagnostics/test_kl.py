"""KL per dimension, rate and distortion of models with known values."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from components import POSTERIORS, PRIORS, PROGRAMS, small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method
from scipy import integrate, stats
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae.evaluation.latent_diagnostics.kl import divergences

D = torch.float64
#: Maximum deviation in standard errors; the false alarm rate of a comparison is below 1e-6.
MAX_Z = 5


class Factorised(PyroModule):
    """z ~ p, x | z ~ N(z, 0.5²) and q = N(w x, s²) in three independent dimensions."""

    W = torch.tensor([0.8, 0.4, 0.0], dtype=D)
    S = torch.tensor([0.4, 0.7, 1.0], dtype=D)  # the last is the prior: an inactive unit

    def __init__(self, prior=None):
        super().__init__()
        zero = torch.zeros(3, dtype=D)
        self.prior = dist.Normal(zero, 1.0).to_event(1) if prior is None else prior

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decode(z), 0.5).to_event(1), obs=x)

    @staticmethod
    def decode(z):
        return z

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.W * x, self.S).to_event(1))

    def distortion(self, x):
        error = (x - self.W * x).square() + self.S**2
        return (0.5 * math.log(2 * math.pi * 0.25) + error / 0.5).sum(1)


class SingleBatchDim(Factorised):
    """The same program with a layer that takes exactly one batch dimension."""

    @staticmethod
    def decode(z):
        if z.ndim != 2:
            raise RuntimeError("expected 2 dimensions")
        return z


@pytest.fixture
def x():
    return torch.randn(200, 3, dtype=D)


class TestTruth:
    @pytest.mark.parametrize("program", [Factorised(), SingleBatchDim()])
    @pytest.mark.filterwarnings("ignore:the program does not support a particle dimension")
    def test_closed_form_per_dimension(self, program, x):
        result = divergences(program, x, num_samples=50)
        normal = torch.distributions.Normal
        kl = kl_divergence(normal(program.W * x, program.S), normal(torch.zeros(3, dtype=D), 1))
        site = result.sites["z"]
        assert site.closed_form
        assert site.dimensions == pytest.approx(kl.mean(0).numpy(), rel=1e-12)
        assert site.errors == pytest.approx((kl.std(0) / 200**0.5).numpy(), rel=1e-9)
        assert site.dimensions[2] == 0
        assert site.dimensions.sum() == pytest.approx(site.total.value, rel=1e-12)
        assert result.rate == pytest.approx(float(kl.sum(1).mean()), rel=1e-12)
        assert result.estimates["rate"].se_monte_carlo < 1e-12
        difference = result.per_datum["distortion"] - program.distortion(x).numpy()
        error = result.per_datum["distortion_variance"] ** 0.5
        assert (
            np.abs(difference) < MAX_Z * error * 1.6
        ).all()  # errors of 50 samples, 200 comparisons
        assert abs(difference.mean()) < MAX_Z * result.estimates["distortion"].se_monte_carlo
        assert result.estimates["elbo"].value == pytest.approx(-result.rate - result.distortion)

    def test_monte_carlo_without_closed_form(self, x):
        prior = dist.StudentT(3.0, torch.zeros(3, dtype=D), 1.5).to_event(1)
        program = Factorised(prior)
        result = divergences(program, x[:6], num_samples=20_000)
        site = result.sites["z"]
        assert not site.closed_form
        for d, (w, s) in enumerate(zip(program.W.tolist(), program.S.tolist(), strict=True)):
            exact = [
                integrate_kl(stats.norm(w * float(v), s), stats.t(3.0, scale=1.5)) for v in x[:6, d]
            ]
            # the standard deviation of log q − log p is about 1
            assert site.dimensions[d] == pytest.approx(np.mean(exact), abs=MAX_Z / 120_000**0.5)
        assert site.dimensions.sum() == pytest.approx(site.total.value, rel=1e-9)

    def test_exact_posterior(self):
        program = LinearGaussian(3)
        data = program.sample(40)
        result = divergences(program, data, num_samples=400)
        elbo = result.per_datum["elbo"]
        assert elbo == pytest.approx(program.log_evidence(data).numpy(), rel=1e-9)
        posterior = torch.distributions.MultivariateNormal(
            (data - program.b) @ program.W @ program.covariance / program.s**2,
            program.covariance,
        )
        normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=D), torch.eye(3))
        exact = float(kl_divergence(posterior, normal).mean())
        site = result.sites["z"]
        assert site.dimensions is None and site.errors is None
        assert abs(site.total.value - exact) < MAX_Z * site.total.se_monte_carlo
        assert site.total.se_monte_carlo < 0.02

    def test_prior_that_depends_on_a_later_sample(self):
        program, data = Chain(), torch.randn(100, dtype=D)
        result = divergences(program, data, num_samples=2000)
        a, b, v = (float(getattr(program, name).detach()) for name in "abv")
        s1, s2 = (math.exp(float(getattr(program, name).detach())) for name in "st")
        second = (a * data).square() + s1**2  # E z1²
        squared = (1 - v * b) ** 2 * second + v**2 * s2**2  # E (z1 − v z2)²
        first = -math.log(s1) - 0.5 + math.log(0.6) + squared / 0.72
        top = 0.5 * (s2**2 + b**2 * second - 1) - math.log(s2)
        for name, exact in (("z1", first), ("z2", top)):
            total = result.sites[name].total
            assert abs(total.value - float(exact.mean())) < MAX_Z * total.se_monte_carlo
        assert [result.sites[name].closed_form for name in ("z1", "z2")] == [False, True]
        assert result.rate == pytest.approx(sum(s.total.value for s in result.sites.values()))


def integrate_kl(q, p):
    integrand = lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z))  # noqa: E731
    return integrate.quad(integrand, q.mean() - 9 * q.std(), q.mean() + 9 * q.std())[0]


@pytest.mark.parametrize(
    ("prior", "posterior", "per_dimension", "closed_form"),
    [
        ("StandardNormal", "DiagonalNormal", True, True),
        ("VampPrior", "DiagonalNormal", False, False),
        ("StandardNormal", "FullCovarianceNormal", False, False),
        ("StandardNormal", "PlanarFlow", False, False),
        ("UniformSphere", "PowerSpherical", False, True),
        ("FlowPrior, coupling", "SplineFlow", False, False),
    ],
)
def test_which_sites_have_dimensions(prior, posterior, per_dimension, closed_form):
    vae = small_vae(PRIORS[prior], POSTERIORS[posterior])
    x = torch.bernoulli(torch.full((30, 3), 0.5))
    result = divergences(vae, x, num_samples=20)
    site = result.sites["z"]
    assert (site.dimensions is not None, site.closed_form) == (per_dimension, closed_form)
    assert ("does not factorise" in str(result)) is not per_dimension
    json = result.summary()["sites"]["z"]
    assert (json["dimensions"] is not None) is per_dimension
    # a different estimator of the same ELBO
    bounds = pv.evaluate(vae, x, num_samples=4000)
    error = math.hypot(*(r.estimates["elbo"].se_monte_carlo for r in (result, bounds)))
    assert abs(result.estimates["elbo"].value - bounds.elbo) < MAX_Z * error


@pytest.mark.parametrize("name", [n for n in PROGRAMS if "Conditional" not in n])
def test_elbo_of_all_programs(name):
    shape = (1, 8, 8) if "images" in name else (3,)
    program = PROGRAMS[name](shape, **({"num_classes": 3} if "Semi" in name else {}))
    x = torch.bernoulli(torch.full((20, *shape), 0.5))
    result = divergences(program, x, num_samples=50)
    bounds = pv.evaluate(program, x, num_samples=4000)
    error = math.hypot(*(r.estimates["elbo"].se_monte_carlo for r in (result, bounds)))
    assert abs(result.estimates["elbo"].value - bounds.elbo) < MAX_Z * error
    assert not any("noise" in site for site in result.sites)


def test_streaming_matches_a_single_run(x, monkeypatch):
    program = Factorised()
    whole = divergences(program, x, num_samples=40)
    monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.site_terms._MAX_ELEMENTS", 3 * 33)
    parts = divergences(program, x, num_samples=40)
    assert parts.per_datum["rate"] == pytest.approx(whole.per_datum["rate"], rel=1e-12)
    assert parts.sites["z"].dimensions == pytest.approx(whole.sites["z"].dimensions, rel=1e-12)
    spread = whole.per_datum["distortion_variance"] + parts.per_datum["distortion_variance"]
    z_scores = (parts.per_datum["distortion"] - whole.per_datum["distortion"]) / spread**0.5
    # chi-square of 200, slightly wider for errors of 40 samples: false alarm rate < 1e-5
    assert 0.6 < (z_scores**2).mean() < 1.6


def test_results_are_seeded_and_global_generators_unaffected(x):
    state = torch.get_rng_state()
    first, again, other = (divergences(Factorised(), x, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.per_datum["elbo"] == again.per_datum["elbo"]).all()
    assert (first.per_datum["elbo"] != other.per_datum["elbo"]).any()


def test_pair_with_keyword_arguments(x):
    program = Factorised()

    def model(x, shift):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", program.prior)
            pyro.sample("x", dist.Normal(z + shift, 0.5).to_event(1), obs=x)

    def guide(x, shift):
        program.guide(x)

    result = divergences((model, guide), x, shift=torch.zeros_like(x))
    assert result.rate == pytest.approx(divergences(program, x).rate, rel=1e-12)
    assert len(result) == 200


@pytest.mark.parametrize("num_samples", [0, 2.5, True])
def test_invalid_num_samples(x, num_samples):
    with pytest.raises(ValueError, match="expected num_samples to be a positive integer; got"):
        divergences(Factorised(), x, num_samples=num_samples)
