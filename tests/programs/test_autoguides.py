"""Pyro's autoguides as guides of single examples: exact weights, and densities at any latents."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule
from torch.distributions.transforms import ExpTransform, SigmoidTransform

import pyro_vae as pv
from pyro_vae.programs.arguments import ProgramInputs
from pyro_vae.programs.autoguides import sample_directly
from pyro_vae.programs.particles import guide_log_prob_at

X = torch.tensor([-1.0, 0.0, 0.7, 2.0])
FACTORISED = [AutoNormal, AutoDiagonalNormal]
JOINT = [AutoMultivariateNormal, AutoLowRankMultivariateNormal]


@pytest.fixture(autouse=True)
def _clear_store():
    # guides of one class have the same names in Pyro's store
    pyro.clear_param_store()


def two_sites(x):
    """x = a + b + noise, with a ~ N(0, 1) and b ~ N(0, 1): p(a, b|x) is correlated."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def beta_binomial(x):
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Binomial(10, p), obs=x)


#: log p(x) of two_sites, with variance 1 + 1 + 1.
MARGINAL = dist.Normal(0.0, 3**0.5)
LOG_EVIDENCE = MARGINAL.log_prob(X)


def train(guide, model, x, steps=150):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x)
    return guide


def evaluate_quietly(program, x, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* correlates the examples")
        return pv.evaluate(program, x, **options)


class Case(NamedTuple):
    """A model with one constrained latent z = T(u), and a guide N(u; loc, 0.9)."""

    model: Callable
    site: str
    x: torch.Tensor
    transform: torch.distributions.Transform
    marginal: dist.Distribution
    loc: torch.Tensor

    def make_guide(self, make):
        guide = make(self.model, init_scale=0.9)
        guide(self.x)
        with torch.no_grad():
            next(iter((guide.locs if make is AutoNormal else guide).parameters())).copy_(self.loc)
        return guide

    @property
    def q(self):
        return dist.Normal(self.loc, 0.9)

    @property
    def log_evidence(self):
        return self.marginal.log_prob(self.x)

    def jacobian(self, u):
        return self.transform.log_abs_det_jacobian(u, self.transform(u))


CASES = {
    "gamma": Case(
        gamma_poisson,
        "rate",
        torch.tensor([0.0, 1.0, 4.0]),
        ExpTransform(),
        dist.GammaPoisson(2.0, 2.0),
        torch.tensor([-0.8, 0.1, 1.0]),
    ),
    "beta": Case(
        beta_binomial,
        "p",
        torch.tensor([0.0, 3.0, 9.0]),
        SigmoidTransform(),
        dist.BetaBinomial(2.0, 3.0, 10),
        torch.tensor([-1.5, 0.0, 1.2]),
    ),
}


@pytest.mark.parametrize("make", FACTORISED)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestConstrainedLatents:
    def test_bounds_match_quadrature(self, make, case):
        program = case.model, case.make_guide(make)
        bounds = pv.evaluate(program, case.x, num_samples=20_000)
        np.testing.assert_allclose(bounds.per_datum["log_evidence"], case.log_evidence, atol=0.03)
        u = case.loc + 0.9 * torch.linspace(-7, 7, 2001)[:, None]
        conditioned = poutine.condition(case.model, {case.site: case.transform(u)})
        trace = poutine.trace(conditioned).get_trace(case.x)
        trace.compute_log_prob()
        log_p = sum(trace.nodes[name]["log_prob"] for name in (case.site, "x"))
        log_q = case.q.log_prob(u)
        integrand = log_q.exp() * (log_p + case.jacobian(u) - log_q)
        elbo = torch.trapezoid(integrand, u, dim=0)
        # five standard errors of log weights with a standard deviation of 2 nats
        np.testing.assert_allclose(bounds.per_datum["elbo"], elbo, rtol=0.01, atol=0.07)

    def test_density_at_given_latents(self, make, case):
        guide = case.make_guide(make)
        direct = sample_directly(ProgramInputs(case.model, guide, case.x, (), {})).guide
        u = torch.linspace(-5.0, 5.0, 101).expand(3, -1).T
        log_q = guide_log_prob_at(direct, {case.site: case.transform(u)}, case.x)
        expected = case.q.log_prob(u) - case.jacobian(u)
        torch.testing.assert_close(log_q, expected, atol=1e-3, rtol=1e-3)

    def test_annealing_from_the_guide(self, make, case):
        program = case.model, case.make_guide(make)
        bounds = pv.ais(program, case.x, annealing=pv.Annealing(32, 40, 4))
        truth = float(case.log_evidence.mean())
        assert bounds.per_datum["ais"].mean() == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("make", [*FACTORISED, *JOINT])
def test_trained_guides_are_evaluated_and_annealed(make):
    guide = train(make(two_sites), two_sites, X)
    bounds = evaluate_quietly((two_sites, guide), X, num_samples=5000)
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], LOG_EVIDENCE, atol=0.1)
    assert (bounds.per_datum["elbo"] < LOG_EVIDENCE.numpy() + 0.01).all()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* correlates the examples")
        annealed = pv.ais((two_sites, guide), X, annealing=pv.Annealing(32, 40, 4))
    np.testing.assert_allclose(annealed.per_datum["ais"], LOG_EVIDENCE, atol=0.2)


@pytest.mark.parametrize("dim", [-1, -2])
def test_marginals_of_a_joint_normal_are_exact(dim):
    """With the exact posterior of each example, all weights are p(x), whatever the correlation."""

    def model(x):
        with pyro.plate("data", len(x), dim=dim):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
            mean = a + b[..., 0, 0] + 2 * b[..., 0, 1]
            x = x.reshape(-1, *(1,) * (-1 - dim))
            pyro.sample("x", dist.Normal(mean, 0.5), obs=x)

    rows = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0])  # of a, b[0, 0], b[0, 1], …
    covariance = torch.linalg.inv(torch.eye(5) + torch.outer(rows, rows) / 0.25)
    factor = torch.linalg.cholesky(covariance)
    guide = AutoMultivariateNormal(model)
    guide(X)
    total = torch.zeros(20, 20)
    # the vector has a of all examples, then b of all examples
    where = [[n, *range(4 + 4 * n, 8 + 4 * n)] for n in range(4)]
    loc = torch.zeros(20)
    for n, index in enumerate(where):
        loc[index] = covariance @ rows * X[n] / 0.25
        # rotated noise that all examples share in part: marginals are those of the factor
        for m in range(4):
            weight = 0.8**0.5 if m == n else (0.2 / 3) ** 0.5
            total[index, 5 * m : 5 * m + 5] = weight * factor
    assert (total @ total.T)[where[0]][:, where[1]].abs().max() > 0.1
    scale_tril = torch.linalg.cholesky(total @ total.T)
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.scale = scale_tril.diagonal().clone()
        guide.scale_tril = scale_tril / scale_tril.diagonal()[:, None]
    # the store has the initial values
    pyro.clear_param_store()
    message = "AutoMultivariateNormal correlates the examples: each is evaluated with its marginal"
    with pytest.warns(UserWarning, match=message) as record:
        log_w = pv.log_weights(model, guide, X, num_samples=10)
    truth = dist.Normal(0.0, math.sqrt(6.25)).log_prob(X)
    torch.testing.assert_close(log_w, truth.expand(10, 4), atol=2e-3, rtol=0)
    # the stated excess is the total correlation
    logdets = (torch.logdet(covariance) * 4, torch.logdet(total @ total.T))
    expected = float(logdets[0] - logdets[1]) / 2
    assert f"exceeds the bound of the joint guide by {expected:.3g} nats" in str(record[0].message)


def test_the_laplace_approximation_is_a_product_over_examples():
    guide = train(AutoLaplaceApproximation(two_sites), two_sites, X)
    with pytest.raises(ValueError, match=r"a point mass: after training, pass guide\.laplace_ap"):
        pv.evaluate((two_sites, guide), X, num_samples=10)
    # the posterior is normal, so that all weights are p(x)
    log_w = pv.log_weights(two_sites, guide.laplace_approximation(X), X, num_samples=10)
    torch.testing.assert_close(log_w, LOG_EVIDENCE.expand(10, 4), atol=0.02, rtol=0)


def test_parts_of_a_list_run_on_subsets():
    x = 3**0.5 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    guide = AutoGuideList(two_sites)
    guide.append(AutoNormal(poutine.block(two_sites, expose=["a"]), init_scale=1.0))
    guide.append(AutoDiagonalNormal(poutine.block(two_sites, expose=["b"]), init_scale=1.0))
    guide(x)
    with torch.no_grad():
        guide[0].locs.a.copy_(x / 3)
        guide[1].loc.copy_(x / 3)
    log_w = pv.log_weights(two_sites, guide, x, num_samples=1000, chunk_size=20_000)
    truth = MARGINAL.log_prob(x)
    error = log_w.logsumexp(0) - math.log(1000) - truth
    assert float(error.mean()) == pytest.approx(0, abs=0.02)
    assert float(error.abs().max()) < 0.3


def test_inner_plates_and_an_autoguide_inside_a_program():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.auto = AutoDiagonalNormal(self.model, init_scale=0.5**0.5)

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(self, x):
            return self.auto(x)

    x = torch.arange(12.0).reshape(4, 3) / 6 - 1
    program = Program()
    program.guide(x)
    with torch.no_grad():
        program.auto.loc.copy_((x.T / 2).reshape(-1))
    log_w = pv.log_weights(program.model, program.guide, x, num_samples=5)
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    torch.testing.assert_close(log_w, truth.expand(5, 4), atol=1e-4, rtol=0)
    assert "forward" not in program.auto.__dict__
    joint = AutoMultivariateNormal(program.model)
    with pytest.raises(ValueError, match="inside the plate over the data alone; got site 'z'"):
        pv.evaluate((program.model, joint), x, num_samples=5)


def test_particles_that_run_as_further_examples():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            h = torch.nn.functional.pad(z[:, None], (1, 1), mode="reflect")  # (N, C, L) only
            pyro.sample("x", dist.Normal(h[:, 0, 1], 1.0), obs=x)

    for make in (AutoDiagonalNormal, AutoMultivariateNormal):
        pyro.clear_param_store()
        guide = make(model, init_scale=1.0)
        guide(X)
        with pytest.warns(UserWarning, match="each particle runs as an additional example"):
            log_w = pv.log_weights(model, guide, X, num_samples=40_000)
        truth = dist.Normal(0.0, 2**0.5).log_prob(X)
        torch.testing.assert_close(log_w.logsumexp(0) - math.log(40_000), truth, atol=0.05, rtol=0)


@pytest.mark.parametrize("make", [lambda m: AutoIAFNormal(m, [20]), AutoStructured])
def test_guides_without_a_density_of_each_example_are_refused(make):
    guide = make(two_sites)
    for evaluate in (pv.evaluate, pv.ais, pv.queries.encode):
        with pytest.raises(ValueError, match=r"^expected a guide with a density q\(z_n\) of each"):
            evaluate((two_sites, guide), X)


def test_a_flow_of_a_single_example():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    x = torch.tensor([0.7])
    guide = train(AutoIAFNormal(model, [8], num_transforms=2), model, x)
    truth = float(dist.Normal(0.0, 1.5).log_prob(x))
    bounds = pv.evaluate((model, guide), x, num_samples=4000)
    assert float(bounds.per_datum["log_evidence"][0]) == pytest.approx(truth, abs=0.1)
    annealed = pv.ais((model, guide), x, annealing=pv.Annealing(64, 30, 4))
    assert float(annealed.per_datum["ais"][0]) == pytest.approx(truth, abs=0.15)


@pytest.mark.parametrize("make", FACTORISED)
def test_parameters_of_other_examples_are_refused(make):
    guide = make(two_sites)
    guide(X)
    message = rf"expected the 4 examples of which {make.__name__} has parameters; got 3: evaluate"
    with pytest.raises(ValueError, match=message):
        pv.evaluate((two_sites, guide), X[:3], num_samples=10)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_plates_of_another_name(make):
    def model(x):
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-2, 2, 300)
    log_w = pv.log_weights(
        model, make(model, init_scale=1.0), x, num_samples=2000, chunk_size=50_000
    )
    truth = dist.Normal(0.0, 2**0.5).log_prob(x)
    error = log_w.logsumexp(0) - math.log(2000) - truth
    assert float(error.mean()) == pytest.approx(0, abs=0.03)


def test_an_untrained_guide_is_initialised_on_all_examples():
    x = torch.linspace(-2, 2, 301)  # more than are audited
    bounds = pv.evaluate((two_sites, AutoNormal(two_sites, init_scale=1.0)), x, num_samples=2000)
    truth = MARGINAL.log_prob(x)
    assert bounds.per_datum["log_evidence"].mean() == pytest.approx(float(truth.mean()), abs=0.05)


@pytest.mark.parametrize("make", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_fit_trains_on_minibatches(make):
    x = torch.linspace(-2, 2, 40)
    guide = make(two_sites)
    for lr in (0.05, 0.005):
        adam = partial(torch.optim.Adam, lr=lr)
        pv.fit((two_sites, guide), x, epochs=50, batch_size=20, optimizer=adam)
    elbo = evaluate_quietly((two_sites, guide), x, num_samples=2000).elbo
    # the best factorised normal loses ½ log(4/3), and a normal of both sites nothing
    loss = 0.5 * math.log(4 / 3) if make is AutoDiagonalNormal else 0.0
    assert float(MARGINAL.log_prob(x).mean()) - elbo == pytest.approx(loss, abs=0.05)


@pytest.mark.parametrize(
    "make", [AutoMultivariateNormal, AutoStructured, lambda m: AutoIAFNormal(m, [8])]
)
def test_fit_trains_joint_guides_of_shared_latents(make):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    guide = make(model)
    adam = partial(torch.optim.Adam, lr=0.05)
    pv.fit((model, guide), X + 3, epochs=80, batch_size=4, optimizer=adam)
    # E[w₁ + w₂ | x] = 2 Σx / (2 N + 1)
    draws = torch.stack([guide(X)["w"].sum().detach() for _ in range(300)])
    assert float(draws.mean()) == pytest.approx(2 * float((X + 3).sum()) / 9, abs=0.4)


def test_fit_refuses_guides_without_a_density_of_each_example():
    with pytest.raises(ValueError, match=r"^expected a guide with a density q\(z_n\) of each"):
        pv.fit((two_sites, AutoStructured(two_sites)), X, epochs=1, batch_size=2)


def test_gaps_start_from_the_guide():
    # the best factorised normal: the precision of p(a, b|x) is [2, 1; 1, 2]
    guide = AutoNormal(two_sites, init_scale=0.5**0.5)
    guide(X)
    with torch.no_grad():
        guide.locs.a.copy_(X / 3)
        guide.locs.b.copy_(X / 3)
    annealing = pv.Annealing(4, 20, 2)
    gaps = pv.gaps((two_sites, guide), X, num_steps=30, num_samples=500, annealing=annealing)
    truth = float(LOG_EVIDENCE.mean())
    assert gaps.bounds.estimates["log_evidence"].value == pytest.approx(truth, abs=0.02)
    elbo = gaps.bounds.estimates["elbo"].value
    assert truth - elbo == pytest.approx(0.5 * math.log(4 / 3), abs=0.08)
