"""ELBO surgery against quadrature and exact sums."""

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
from pyro_vae.programs.importance_weights import find_layout
from pyro_vae.programs.particles import log_probs_at

D = torch.float64
MODULE = importlib.import_module("pyro_vae.evaluation.latent_diagnostics.elbo_surgery")


class OneDimensional(PyroModule):
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
            pyro.sample("z", dist.Normal(self.loc(x), self.s))

    def loc(self, x):
        return self.w * x


class SingleBatchDim(OneDimensional):
    """The same program with a layer that takes exactly one batch dimension."""

    def loc(self, x):
        if x.ndim != 1:
            raise RuntimeError("expected 1 dimension")
        return self.w * x

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal(self.loc(z) / self.w, 1.0), obs=x)


X = torch.tensor([-2.1, -1.6, -0.3, 0.2, 0.25, 1.9, 3.0], dtype=D)


def integrate(program, x):
    """Compute mutual information and marginal KL by quadrature on a fine grid."""
    grid = np.linspace(-9, 9, 40_001)
    q = stats.norm(program.w * x.numpy()[:, None], float(program.s))
    density, log_q = q.pdf(grid), q.logpdf(grid)
    log_mean = np.log(np.maximum(density.mean(0), 1e-300))
    information = np.trapezoid(density * (log_q - log_mean), grid, axis=1)
    marginal = np.trapezoid(density * (log_mean - stats.norm.logpdf(grid)), grid, axis=1)
    return information, marginal


class TestTruth:
    @pytest.mark.parametrize("make", [OneDimensional, SingleBatchDim])
    @pytest.mark.filterwarnings("ignore:the program does not support a particle dimension")
    def test_terms_match_quadrature(self, make):
        program = make(0.7, 0.4)
        result = surgery(program, X, num_draws=7 * 4000)
        information, marginal = integrate(program, X)
        kl = 0.5 * (0.4**2 + (0.7 * X).square().numpy() - 1) - math.log(0.4)
        assert information + marginal == pytest.approx(kl, rel=1e-6)
        data = result.per_datum
        assert data["divergence"] == pytest.approx(kl, rel=1e-12)
        total = data["mutual_information"] + data["marginal"]
        assert total == pytest.approx(kl, rel=1e-12)
        for name, exact in (("mutual_information", information), ("marginal", marginal)):
            error = data[f"{name}_variance"] ** 0.5
            assert (np.abs(data[name] - exact) < 5 * error).all()  # false alarm rate < 1e-5
            assert (error < 0.02).all()
        assert result.warning is None

    def test_standard_errors_cover_truth(self):
        program = OneDimensional(0.7, 0.4)
        x = torch.randn(40, dtype=D)
        information, marginal = integrate(program, x)
        errors = {"mutual_information": [], "marginal": [], "divergence": []}
        stated = {name: [] for name in errors}
        truth = {
            "mutual_information": information.mean(),
            "marginal": marginal.mean(),
            "divergence": (information + marginal).mean(),
        }
        for seed in range(60):
            rows = surgery(program, x, num_draws=50, seed=seed).estimates  # 25 of 40 examples
            for name, row in rows.items():
                errors[name].append(row.value - truth[name])
                stated[name].append(row.se_monte_carlo)
        for name, values in errors.items():
            # not the mean of (error / se)²: if the left-out examples are outliers, both the mean
            # and its standard error are small. Chi-square of 60, false-alarm rate 3e-4
            variance = np.mean(np.square(stated[name]))
            assert 0.45 < np.mean(np.square(values)) / variance < 1.8
            assert abs(np.mean(values)) < 4.5 * (variance / 60) ** 0.5

    def test_linear_gaussian_approaches_population_values(self):
        program = LinearGaussian(3)
        result = surgery(program, program.sample(4000), num_draws=8000)
        eye = torch.eye(3, dtype=D)
        exact = 0.5 * float(torch.logdet(eye + program.W.T @ program.W / program.s**2))
        rows = result.estimates
        # q is the posterior, so q(z) approaches the prior and I the whole divergence as N grows;
        # for 4000 examples the marginal KL is the part that I lacks
        assert abs(rows["divergence"].value - exact) < 5 * rows["divergence"].se_data
        information, marginal = rows["mutual_information"], rows["marginal"]
        assert 0 < marginal.value < 0.05
        assert information.value < exact + 5 * information.se_data

    def test_fewer_examples_have_less_information(self):
        program = LinearGaussian(3)
        data = program.sample(3000)
        small, large = (surgery(program, data[:n], num_draws=6000).estimates for n in (30, 3000))
        for name, sign in (("mutual_information", -1), ("marginal", 1)):
            error = math.hypot(small[name].se_data, large[name].se_data)
            assert sign * (small[name].value - large[name].value) > 3 * error

    def test_marginal_vanishes_if_prior_is_the_aggregate_posterior(self):
        prior = partial(priors.VampPrior, components=20, interval=None)
        vae = small_vae(prior, likelihood=likelihoods.Gaussian).double()
        x = torch.randn(20, 3, dtype=D)
        with torch.no_grad():
            for parameter in vae.posterior.parameters():
                torch.nn.init.normal_(parameter)
            vae.prior.pseudo_inputs.copy_(x)
        result = surgery(vae, x, num_draws=400)
        assert result.per_datum["marginal"] == pytest.approx(np.zeros(20), abs=1e-9)
        assert result.mutual_information > 0.1

    def test_information_of_separated_examples_is_log_n(self):
        result = surgery(OneDimensional(1.0, 1e-3), X, num_draws=70)
        assert result.mutual_information == pytest.approx(math.log(7), rel=1e-9)
        assert result.limit == pytest.approx(math.log(7))
        assert result.warning == (
            "the mutual information is within 10% of log N = 1.9 nats, its maximum for 7 "
            "examples: use more examples"
        )
        assert result.warning in str(result)
        assert result.summary()["warning"] == result.warning

    def test_guide_that_ignores_x_has_no_information(self):
        result = surgery(OneDimensional(0.0, 0.5), X, num_draws=70)
        assert result.per_datum["mutual_information"] == pytest.approx(np.zeros(7), abs=1e-12)
        assert result.marginal == pytest.approx(0.5 * (0.25 - 1) - math.log(0.5))


@pytest.mark.parametrize("name", PROGRAMS)
def test_streaming_matches_a_single_sum(name, monkeypatch):
    shape = (1, 8, 8) if "images" in name else (3,)
    options = {"SemiSupervisedVAE": {"num_classes": 3}}.get(name, {})
    options = {"condition": 3} if "Conditional" in name else options
    program = PROGRAMS[name](shape, **options).double()
    x = torch.bernoulli(torch.full((13, *shape), 0.5, dtype=D))
    args = (torch.arange(13) % 3,) if "Conditional" in name else ()
    monkeypatch.setattr(MODULE, "_DRAWS", 9)
    monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.site_terms._MAX_ELEMENTS", 64 * 40)
    samples = {}
    check_prior = MODULE._check_prior

    def record(inputs, latents, *args):
        samples.update(latents)
        check_prior(inputs, latents, *args)

    monkeypatch.setattr(MODULE, "_check_prior", record)
    result = surgery(program, x, *args, num_draws=13 * 5)
    program.eval()
    layout = find_layout(program.model, program.guide, x, *args)
    expanded = {n: z[:, None].expand(len(z), 13, *z.shape[1:]) for n, z in samples.items()}
    with torch.no_grad():
        q = log_probs_at(program.guide, expanded, x, *args, layout=layout)
    log_q = torch.stack(list(q.values())).sum(0)
    own_log_q = log_q[torch.arange(65), torch.arange(65) // 5]
    exact = own_log_q - (log_q.logsumexp(1) - math.log(13))
    information = exact.unflatten(0, (13, 5)).mean(1).numpy()
    assert result.per_datum["mutual_information"] == pytest.approx(information, abs=1e-8)
    total = result.per_datum["mutual_information"] + result.per_datum["marginal"]
    assert result.per_datum["divergence"] == pytest.approx(total, rel=1e-9)
    assert (information <= math.log(13) + 1e-9).all()


class Conditioned(PyroModule):
    """A prior p(z | c) that depends on the example."""

    @pyro_method
    def model(self, x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + c, 0.5))


class Auxiliary(OneDimensional):
    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 0.3), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a))


class TestUnsupportedPrograms:
    def test_prior_that_depends_on_the_example(self):
        x = torch.randn(30)
        with pytest.raises(
            NoAggregateError, match=r"expected the same prior p\(z\) for all examples"
        ):
            surgery(Conditioned(), x, torch.linspace(-1, 1, 30))
        # the same input for all examples gives a single prior
        assert surgery(Conditioned(), x, torch.zeros(30)).marginal > 0

    def test_auxiliary_site_of_the_guide(self):
        with pytest.raises(
            NoAggregateError, match="only the model's latents; got additional sites 'a'"
        ):
            surgery(Auxiliary(0.7, 0.4), X)

    def test_flow_without_inverse(self):
        vae = small_vae(PRIORS["StandardNormal"], POSTERIORS["PlanarFlow"])
        x = torch.bernoulli(torch.full((9, 3), 0.5))
        with pytest.raises(NoAggregateError, match="a flow without an inverse, which only scores"):
            surgery(vae, x, num_draws=20)

    @pytest.mark.parametrize(("size", "num_draws"), [(1, 9), (7, 1)])
    def test_too_few_examples_or_samples(self, size, num_draws):
        with pytest.raises(ValueError, match="expected at least 2 samples of at least 2 examples"):
            surgery(OneDimensional(0.7, 0.4), X[:size], num_draws=num_draws)


def test_results_are_seeded_and_global_generators_unaffected():
    state = torch.get_rng_state()
    first, again, other = (
        surgery(OneDimensional(0.7, 0.4), X, num_draws=9, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.per_datum["marginal"] == again.per_datum["marginal"]).all()
    assert first.marginal != other.marginal
    assert first.num_samples == 2 and len(first) == 4 and first.num_data == 7


@pytest.mark.parametrize("name", ["SplineFlow", "InverseAutoregressiveFlow"])
def test_flow_that_cannot_score_its_own_samples_again_raises(name):
    torch.manual_seed(0)
    vae = small_vae(posterior=POSTERIORS[name], latent_dim=4)
    for parameter in vae.posterior.steps.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    x = torch.bernoulli(torch.full((40, 3), 0.5))
    with pytest.raises(NoAggregateError, match="too narrow for the precision of z: the density of"):
        surgery(vae, x, num_draws=400)
