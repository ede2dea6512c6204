"""ELBO surgery, against sums and integrals that are done another way."""

from __future__ import annotations

import importlib
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import POSTERIORS, PRIORS, PROGRAMS, small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method
from scipy import stats

from pyro_vae import likelihoods, priors
from pyro_vae.evaluation.latent_diagnostics.elbo_surgery import NoAggregateError, surgery
from pyro_vae.programs.importance_weights import find_layout, log_probs_at

D = torch.float64
MODULE = importlib.import_module("pyro_vae.evaluation.latent_diagnostics.elbo_surgery")


class Line(PyroModule):
    """z ~ N(0, 1), x | z ~ N(z, 1) and q = N(w x, s²) in one dimension."""

    def __init__(self, w, s):
        super().__init__()
        self.w, self.s = w, torch.tensor(s, dtype=D)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.at(x), self.s))

    def at(self, x):
        return self.w * x


class Positional(Line):
    """The same by a layer that takes exactly one batch dimension."""

    def at(self, x):
        if x.ndim != 1:
            raise RuntimeError("expected 1 dimension")
        return self.w * x

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(self.at(z) / self.w, 1.0), obs=x)


X = torch.tensor([-2.1, -1.6, -0.3, 0.2, 0.25, 1.9, 3.0], dtype=D)


def _exact(program, x):
    """KL to the prior, mutual information and marginal KL by quadrature on a fine grid."""
    grid = np.linspace(-9, 9, 40_001)
    q = stats.norm(program.w * x.numpy()[:, None], float(program.s))
    density, log_q = q.pdf(grid), q.logpdf(grid)
    log_mean = np.log(np.maximum(density.mean(0), 1e-300))
    information = np.trapezoid(density * (log_q - log_mean), grid, axis=1)
    marginal = np.trapezoid(density * (log_mean - stats.norm.logpdf(grid)), grid, axis=1)
    return information, marginal


class TestTruth:
    @pytest.mark.parametrize("make", [Line, Positional])
    @pytest.mark.filterwarnings("ignore:the program does not allow a particle dimension")
    def test_of_a_few_data_by_quadrature(self, make):
        program = make(0.7, 0.4)
        found = surgery(program, X, num_draws=7 * 4000)
        information, marginal = _exact(program, X)
        kl = 0.5 * (0.4**2 + (0.7 * X).square().numpy() - 1) - math.log(0.4)
        assert information + marginal == pytest.approx(kl, rel=1e-6)
        data = found.per_datum
        assert data["divergence"] == pytest.approx(kl, rel=1e-12)
        total = data["mutual_information"] + data["marginal"]
        assert total == pytest.approx(kl, rel=1e-12)
        for name, exact in (("mutual_information", information), ("marginal", marginal)):
            error = data[f"{name}_variance"] ** 0.5
            assert (np.abs(data[name] - exact) < 5 * error).all()  # false alarm below 1e-5
            assert (error < 0.02).all()
        assert found.warning is None

    def test_standard_errors_cover(self):
        program = Line(0.7, 0.4)
        x = torch.randn(40, dtype=D)
        information, marginal = _exact(program, x)
        away = {"mutual_information": [], "marginal": [], "divergence": []}
        truth = {
            "mutual_information": information.mean(),
            "marginal": marginal.mean(),
            "divergence": (information + marginal).mean(),
        }
        for seed in range(60):
            rows = surgery(program, x, num_draws=50, seed=seed).estimates  # 25 of 40 data
            for name, row in rows.items():
                away[name].append((row.value - truth[name]) / row.se_monte_carlo)
        for z in away.values():
            # chi-square of 60, somewhat wider for estimated errors: false alarm below 1e-3
            assert 0.5 < np.mean(np.square(z)) < 1.8
            assert abs(np.mean(z)) < 4.5 / 60**0.5

    def test_the_population_of_a_linear_gaussian_model(self):
        program = LinearGaussian(3)
        found = surgery(program, program.sample(4000), num_draws=8000)
        eye = torch.eye(3, dtype=D)
        exact = 0.5 * float(torch.logdet(eye + program.W.T @ program.W / program.s**2))
        rows = found.estimates
        # q is the posterior, so that of infinitely many data q(z) is the prior and I all there
        # is; of 4000 what I lacks is what the marginal has
        assert abs(rows["divergence"].value - exact) < 5 * rows["divergence"].se_data
        information, marginal = rows["mutual_information"], rows["marginal"]
        assert 0 < marginal.value < 0.05
        assert information.value < exact + 5 * information.se_data

    def test_fewer_data_tell_of_less_information(self):
        program = LinearGaussian(3)
        data = program.sample(3000)
        few, many = (surgery(program, data[:n], num_draws=6000).estimates for n in (30, 3000))
        for name, sign in (("mutual_information", -1), ("marginal", 1)):
            error = math.hypot(few[name].se_data, many[name].se_data)
            assert sign * (few[name].value - many[name].value) > 3 * error

    def test_a_prior_that_is_the_aggregate_posterior(self):
        prior = partial(priors.VampPrior, components=20, interval=None)
        vae = small_vae(prior, likelihood=likelihoods.Gaussian).double()
        x = torch.randn(20, 3, dtype=D)
        with torch.no_grad():
            for parameter in vae.posterior.parameters():
                torch.nn.init.normal_(parameter)
            vae.prior.pseudo_inputs.copy_(x)
        found = surgery(vae, x, num_draws=400)
        assert found.per_datum["marginal"] == pytest.approx(np.zeros(20), abs=1e-9)
        assert found.mutual_information > 0.1

    def test_data_that_latents_tell_apart_are_capped(self):
        found = surgery(Line(1.0, 1e-3), X, num_draws=70)
        assert found.mutual_information == pytest.approx(math.log(7), rel=1e-9)
        assert found.limit == pytest.approx(math.log(7))
        assert found.warning == (
            "the mutual information is capped by log N = 1.9 nats, the most that 7 data can "
            "show, and is within 10% of it: give more data"
        )
        assert found.warning in str(found)
        assert found.summary()["warning"] == found.warning

    def test_a_guide_that_looks_at_nothing_knows_nothing(self):
        found = surgery(Line(0.0, 0.5), X, num_draws=70)
        assert found.per_datum["mutual_information"] == pytest.approx(np.zeros(7), abs=1e-12)
        assert found.marginal == pytest.approx(0.5 * (0.25 - 1) - math.log(0.5))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_against_one_sum_at_once(name, monkeypatch):
    shape = (1, 8, 8) if "images" in name else (3,)
    more = {"SemiSupervisedVAE": {"num_classes": 3}}.get(name, {})
    more = {"condition": 3} if "Conditional" in name else more
    program = PROGRAMS[name](shape, **more).double()
    x = torch.bernoulli(torch.full((13, *shape), 0.5, dtype=D))
    args = (torch.arange(13) % 3,) if "Conditional" in name else ()
    monkeypatch.setattr(MODULE, "_DRAWS", 9)
    monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.site_terms._MOST_NUMBERS", 64 * 40)
    seen = {}
    look = MODULE._check_prior

    def keep(given, latents, *rest):
        seen.update(latents)
        look(given, latents, *rest)

    monkeypatch.setattr(MODULE, "_check_prior", keep)
    found = surgery(program, x, *args, num_draws=13 * 5)
    program.eval()
    layout = find_layout(program.model, program.guide, x, *args)
    everywhere = {n: z[:, None].expand(len(z), 13, *z.shape[1:]) for n, z in seen.items()}
    with torch.no_grad():
        q = log_probs_at(program.guide, everywhere, x, *args, layout=layout)
    log_q = torch.stack(list(q.values())).sum(0)
    own = log_q[torch.arange(65), torch.arange(65) // 5]
    exact = own - (log_q.logsumexp(1) - math.log(13))
    information = exact.unflatten(0, (13, 5)).mean(1).numpy()
    assert found.per_datum["mutual_information"] == pytest.approx(information, abs=1e-8)
    total = found.per_datum["mutual_information"] + found.per_datum["marginal"]
    assert found.per_datum["divergence"] == pytest.approx(total, rel=1e-9)
    assert (information <= math.log(13) + 1e-9).all()


class Conditioned(PyroModule):
    """p(z | c), which the datum decides."""

    @pyro_method
    def model(self, x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + c, 0.5))


class Auxiliary(Line):
    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 0.3), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(self.w * a, self.s))


class TestRefusals:
    def test_a_prior_of_each_datum(self):
        x = torch.randn(30)
        with pytest.raises(NoAggregateError, match=r"expected one prior p\(z\) for all data"):
            surgery(Conditioned(), x, torch.linspace(-1, 1, 30))
        # one that is the same for all data is one
        assert surgery(Conditioned(), x, torch.zeros(30)).marginal > 0

    def test_more_draws_than_the_model_has(self):
        with pytest.raises(NoAggregateError, match="latents and no more; got 'a' besides"):
            surgery(Auxiliary(0.7, 0.4), X)

    def test_a_flow_without_an_inverse(self):
        vae = small_vae(PRIORS["StandardNormal"], POSTERIORS["PlanarFlow"])
        x = torch.bernoulli(torch.full((9, 3), 0.5))
        with pytest.raises(NoAggregateError, match="a flow without an inverse scores"):
            surgery(vae, x, num_draws=20)

    @pytest.mark.parametrize(("size", "num_draws"), [(1, 9), (7, 1)])
    def test_too_few(self, size, num_draws):
        with pytest.raises(ValueError, match="expected 2 or more draws of 2 or more data"):
            surgery(Line(0.7, 0.4), X[:size], num_draws=num_draws)


def test_seeded_and_global_generators_left_alone():
    state = torch.get_rng_state()
    first, again, other = (surgery(Line(0.7, 0.4), X, num_draws=9, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.per_datum["marginal"] == again.per_datum["marginal"]).all()
    assert first.marginal != other.marginal
    assert first.num_samples == 2 and len(first) == 4 and first.num_data == 7
