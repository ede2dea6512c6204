"""KL of every dimension, rate and distortion, against models of which they are known."""

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
#: Standard errors away from the truth; a false alarm below 1e-6 for each comparison.
FAR = 5


class Factorised(PyroModule):
    """z ~ p, x | z ~ N(z, 0.5²) and q = N(w x, s²), each of three dimensions by itself."""

    W = torch.tensor([0.8, 0.4, 0.0], dtype=D)
    S = torch.tensor([0.4, 0.7, 1.0], dtype=D)  # the last is the prior: a dead unit

    def __init__(self, prior=None):
        super().__init__()
        zero = torch.zeros(3, dtype=D)
        self.prior = dist.Normal(zero, 1.0).to_event(1) if prior is None else prior

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decoded(z), 0.5).to_event(1), obs=x)

    @staticmethod
    def decoded(z):
        return z

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.W * x, self.S).to_event(1))

    def distortion(self, x):
        error = (x - self.W * x).square() + self.S**2
        return (0.5 * math.log(2 * math.pi * 0.25) + error / 0.5).sum(1)


class Positional(Factorised):
    """The same by a layer that takes exactly one batch dimension."""

    @staticmethod
    def decoded(z):
        if z.ndim != 2:
            raise RuntimeError("expected 2 dimensions")
        return z


@pytest.fixture
def x():
    return torch.randn(200, 3, dtype=D)


class TestTruth:
    @pytest.mark.parametrize("program", [Factorised(), Positional()])
    @pytest.mark.filterwarnings("ignore:the program does not allow a particle dimension")
    def test_a_closed_form_for_each_dimension(self, program, x):
        found = divergences(program, x, num_samples=50)
        normal = torch.distributions.Normal
        each = kl_divergence(normal(program.W * x, program.S), normal(torch.zeros(3, dtype=D), 1))
        site = found.sites["z"]
        assert site.closed_form
        assert site.dimensions == pytest.approx(each.mean(0).numpy(), rel=1e-12)
        assert site.errors == pytest.approx((each.std(0) / 200**0.5).numpy(), rel=1e-9)
        assert site.dimensions[2] == 0
        assert site.dimensions.sum() == pytest.approx(site.total.value, rel=1e-12)
        assert found.rate == pytest.approx(float(each.sum(1).mean()), rel=1e-12)
        assert found.estimates["rate"].se_monte_carlo < 1e-12
        difference = found.per_datum["distortion"] - program.distortion(x).numpy()
        error = found.per_datum["distortion_variance"] ** 0.5
        assert (np.abs(difference) < FAR * error * 1.6).all()  # errors of 50 draws, 200 times
        assert abs(difference.mean()) < FAR * found.estimates["distortion"].se_monte_carlo
        assert found.estimates["elbo"].value == pytest.approx(-found.rate - found.distortion)

    def test_draws_where_there_is_no_closed_form(self, x):
        prior = dist.StudentT(3.0, torch.zeros(3, dtype=D), 1.5).to_event(1)
        program = Factorised(prior)
        found = divergences(program, x[:6], num_samples=20_000)
        site = found.sites["z"]
        assert not site.closed_form
        for d, (w, s) in enumerate(zip(program.W.tolist(), program.S.tolist(), strict=True)):
            exact = [_kl(stats.norm(w * float(v), s), stats.t(3.0, scale=1.5)) for v in x[:6, d]]
            # the deviation of log q − log p is about 1
            assert site.dimensions[d] == pytest.approx(np.mean(exact), abs=FAR / 120_000**0.5)
        assert site.dimensions.sum() == pytest.approx(site.total.value, rel=1e-9)

    def test_the_exact_posterior(self):
        program = LinearGaussian(3)
        data = program.sample(40)
        found = divergences(program, data, num_samples=400)
        elbo = found.per_datum["elbo"]
        assert elbo == pytest.approx(program.log_evidence(data).numpy(), rel=1e-9)
        posterior = torch.distributions.MultivariateNormal(
            (data - program.b) @ program.W @ program.covariance / program.s**2,
            program.covariance,
        )
        normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=D), torch.eye(3))
        exact = float(kl_divergence(posterior, normal).mean())
        site = found.sites["z"]
        assert site.dimensions is None and site.errors is None
        assert abs(site.total.value - exact) < FAR * site.total.se_monte_carlo
        assert site.total.se_monte_carlo < 0.02

    def test_a_prior_that_depends_on_a_later_draw(self):
        program, data = Chain(), torch.randn(100, dtype=D)
        found = divergences(program, data, num_samples=2000)
        a, b, v = (float(getattr(program, name).detach()) for name in "abv")
        s1, s2 = (math.exp(float(getattr(program, name).detach())) for name in "st")
        second = (a * data).square() + s1**2  # E z1²
        apart = (1 - v * b) ** 2 * second + v**2 * s2**2  # E (z1 − v z2)²
        first = -math.log(s1) - 0.5 + math.log(0.6) + apart / 0.72
        top = 0.5 * (s2**2 + b**2 * second - 1) - math.log(s2)
        for name, exact in (("z1", first), ("z2", top)):
            total = found.sites[name].total
            assert abs(total.value - float(exact.mean())) < FAR * total.se_monte_carlo
        assert [found.sites[name].closed_form for name in ("z1", "z2")] == [False, True]
        assert found.rate == pytest.approx(sum(s.total.value for s in found.sites.values()))


def _kl(q, p):
    integrand = lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z))  # noqa: E731
    return integrate.quad(integrand, q.mean() - 9 * q.std(), q.mean() + 9 * q.std())[0]


@pytest.mark.parametrize(
    ("prior", "posterior", "parted", "closed"),
    [
        ("StandardNormal", "DiagonalNormal", True, True),
        ("VampPrior", "DiagonalNormal", False, False),
        ("StandardNormal", "FullCovarianceNormal", False, False),
        ("StandardNormal", "PlanarFlow", False, False),
        ("UniformSphere", "PowerSpherical", False, True),
        ("FlowPrior, coupling", "SplineFlow", False, False),
    ],
)
def test_which_sites_have_dimensions(prior, posterior, parted, closed):
    vae = small_vae(PRIORS[prior], POSTERIORS[posterior])
    x = torch.bernoulli(torch.full((30, 3), 0.5))
    found = divergences(vae, x, num_samples=20)
    site = found.sites["z"]
    assert (site.dimensions is not None, site.closed_form) == (parted, closed)
    assert ("only the whole is known" in str(found)) is not parted
    json = found.summary()["sites"]["z"]
    assert (json["dimensions"] is not None) is parted
    # the ELBO is another estimator's
    bounds = pv.evaluate(vae, x, num_samples=4000)
    error = math.hypot(*(r.estimates["elbo"].se_monte_carlo for r in (found, bounds)))
    assert abs(found.estimates["elbo"].value - bounds.elbo) < FAR * error


@pytest.mark.parametrize("name", [n for n in PROGRAMS if "Conditional" not in n])
def test_every_program(name):
    shape = (1, 8, 8) if "images" in name else (3,)
    program = PROGRAMS[name](shape, **({"num_classes": 3} if "Semi" in name else {}))
    x = torch.bernoulli(torch.full((20, *shape), 0.5))
    found = divergences(program, x, num_samples=50)
    bounds = pv.evaluate(program, x, num_samples=4000)
    error = math.hypot(*(r.estimates["elbo"].se_monte_carlo for r in (found, bounds)))
    assert abs(found.estimates["elbo"].value - bounds.elbo) < FAR * error
    assert not any("noise" in site for site in found.sites)


def test_streamed_as_at_once(x, monkeypatch):
    program = Factorised()
    whole = divergences(program, x, num_samples=40)
    monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.site_terms._MOST_NUMBERS", 3 * 33)
    parts = divergences(program, x, num_samples=40)
    assert parts.per_datum["rate"] == pytest.approx(whole.per_datum["rate"], rel=1e-12)
    assert parts.sites["z"].dimensions == pytest.approx(whole.sites["z"].dimensions, rel=1e-12)
    spread = whole.per_datum["distortion_variance"] + parts.per_datum["distortion_variance"]
    away = (parts.per_datum["distortion"] - whole.per_datum["distortion"]) / spread**0.5
    # chi-square of 200, a little wider for errors of 40 draws: false alarm below 1e-5
    assert 0.6 < (away**2).mean() < 1.6


def test_seeded_and_global_generators_left_alone(x):
    state = torch.get_rng_state()
    first, again, other = (divergences(Factorised(), x, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.per_datum["elbo"] == again.per_datum["elbo"]).all()
    assert (first.per_datum["elbo"] != other.per_datum["elbo"]).any()


def test_a_pair_with_arguments_by_name(x):
    program = Factorised()

    def model(x, shift):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", program.prior)
            pyro.sample("x", dist.Normal(z + shift, 0.5).to_event(1), obs=x)

    def guide(x, shift):
        program.guide(x)

    found = divergences((model, guide), x, shift=torch.zeros_like(x))
    assert found.rate == pytest.approx(divergences(program, x).rate, rel=1e-12)
    assert len(found) == 200


@pytest.mark.parametrize("num_samples", [0, 2.5, True])
def test_refusals(x, num_samples):
    with pytest.raises(ValueError, match="expected num_samples to be a positive integer; got"):
        divergences(Factorised(), x, num_samples=num_samples)
