"""Tests of forward and reverse annealed importance sampling against closed forms."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from chain import Chain
from components import PROGRAMS, program_for
from linear_gaussian import LinearGaussian
from scipy import stats

import pyro_vae as pv
from pyro_vae.evaluation import Annealing, Bounds, ais, bdmc
from pyro_vae.evaluation.annealing import sampler
from pyro_vae.evaluation.annealing.bidirectional import simulate_data
from pyro_vae.evaluation.annealing.path import PilotResult
from pyro_vae.evaluation.annealing.sampler import estimate_log_mean_weight
from pyro_vae.evaluation.annealing.schedules import SCHEDULES, make_betas

SHORT = partial(Annealing, num_temperatures=6, num_steps=3)
TEMPERATURES = {"guide": 6, "prior": 30}
D = torch.float64


def counts_model(x):
    """z ~ Gamma(3, 0.5), x | z ~ Poisson(z): p(x) is a negative binomial."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.tensor(3.0, dtype=D), 0.5))
        pyro.sample("x", dist.Poisson(z), obs=x)


def counts_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(((x + 3) / 1.5).log(), 0.9))


def counts(size):
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.negative_binomial(3, 1 / 3, size).astype(float))
    return x, torch.from_numpy(stats.nbinom(3, 1 / 3).logpmf(x.numpy()))


def chain_case(size):
    program = Chain()
    variance = program.w**2 * (program.v**2 + 0.6**2) + 0.7**2
    marginal = torch.distributions.Normal(torch.zeros((), dtype=D), variance.sqrt().detach())
    torch.manual_seed(1)
    x = marginal.sample((size,))
    return program, x, marginal.log_prob(x)


def linear_case(size, **options):
    program = LinearGaussian(3, 5, **options)
    torch.manual_seed(1)
    x = program.sample(size)
    return program, x, program.log_evidence(x)


CASES = {
    "linear": lambda size: linear_case(size, shift=0.7),
    "two sites": chain_case,
    "counts": lambda size: ((counts_model, counts_guide), *counts(size)),
}


@pytest.mark.parametrize(
    ("case", "initial", "schedule"),
    [
        *(("linear", "guide", schedule) for schedule in SCHEDULES),
        ("linear", "prior", "adaptive"),
        ("two sites", "guide", "adaptive"),
        ("two sites", "prior", "sigmoidal"),
        ("counts", "guide", "sigmoidal"),
        ("counts", "prior", "linear"),
    ],
)
def test_mean_weight_is_evidence(case, initial, schedule):
    # 1000 examples on a short, noisy path; false-alarm rate per case 1/15,000
    program, x, truth = CASES[case](1000)
    annealing = SHORT(num_chains=2, initial=initial, schedule=schedule)
    found = ais(program, x, annealing=annealing, seed=3).per_datum["ais"]
    ratio = np.exp(found - truth.numpy())
    assert ratio.std() > 0.05  # the weights vary
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))


@pytest.mark.parametrize(
    ("case", "initial"),
    [("linear", "guide"), ("two sites", "guide"), ("counts", "guide"), ("counts", "prior")],
)
def test_mean_reverse_weight_is_inverse_evidence(case, initial):
    # false-alarm rate per case 1/15,000
    program, x, _ = CASES[case](1000)
    # from the prior, few temperatures give weights of a too large variance
    annealing = SHORT(num_chains=1, initial=initial, num_temperatures=TEMPERATURES[initial])
    bounds = bdmc(program, x, annealing=annealing, num_samples=0, seed=4)
    simulated = simulate_data(program, x, (), 4)[0]
    ratio = np.exp(evidence(case, program, simulated).numpy() - bounds.per_datum["upper"])
    assert ratio.std() > 0.05
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))


def evidence(case, program, x):
    if case == "counts":
        return torch.from_numpy(stats.nbinom(3, 1 / 3).logpmf(x.numpy()))
    if case == "linear":
        return program.log_evidence(x)
    scale = (program.w**2 * (program.v**2 + 0.6**2) + 0.7**2).sqrt().detach()
    return torch.distributions.Normal(torch.zeros_like(scale), scale).log_prob(x)


@pytest.mark.parametrize("case", CASES)
def test_bdmc_bounds_are_within_a_twentieth_of_a_nat(case):
    program, x, _ = CASES[case](160)
    annealing = Annealing(num_temperatures=60, num_steps=4)
    bounds = bdmc(program, x, annealing=annealing, num_samples=500, seed=2)
    truth = float(evidence(case, program, simulate_data(program, x, (), 2)[0]).mean())
    low, high = bounds.estimates["ais"], bounds.estimates["upper"]
    # false-alarm rate 1/700 each
    assert low.value - 3 * low.se_monte_carlo < truth < high.value + 3 * high.se_monte_carlo
    assert abs(low.value - truth) < 0.05 and abs(high.value - truth) < 0.05
    gap = bounds.estimates["bdmc_gap"]
    assert gap.value == pytest.approx(high.value - low.value)
    assert low.se_monte_carlo < 0.025
    assert bounds.iwae[500] < truth + 3 * bounds.estimates["iwae_500"].se_monte_carlo


def test_standard_errors_cover_log_evidence():
    program, x, truth = linear_case(400, shift=0.7)
    found = ais(program, x, annealing=SHORT(num_chains=16, num_temperatures=25), seed=1)
    z = (found.per_datum["ais"] - truth.numpy()) / np.sqrt(found.per_datum["ais_variance"])
    # 95 % of a normal distribution are within 2 standard errors; 16 chains estimate these to 18 %,
    # and 400 examples the share to 1.1 %
    assert 0.90 < (np.abs(z) < 2).mean() < 0.98
    assert found.per_datum["ais_ess"].max() <= 16


def test_single_temperature_is_importance_sampling():
    program, x, truth = linear_case(800, shift=0.5)
    found = ais(program, x, annealing=SHORT(num_chains=4, num_temperatures=1), seed=1)
    ratio = np.exp(found.per_datum["ais"] - truth.numpy())
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))  # false-alarm rate 1/15,000
    assert np.isnan(found.per_datum["acceptance"]).all()


def test_bad_guide_biases_importance_sampling_but_not_ais():
    program, x, truth = linear_case(30, shift=4.0)
    bounds = pv.evaluate(program, x, num_samples=1000)
    annealed = ais(program, x, annealing=Annealing(num_temperatures=150, num_steps=4), seed=1)
    importance_bias = bounds.log_evidence - float(truth.mean())
    ais_bias = annealed.estimates["ais"].value - float(truth.mean())
    assert importance_bias < -1 and abs(ais_bias) < 0.15
    assert len(bounds.unreliable) > 20


def test_step_sizes_reach_target_acceptance():
    program, x, _ = linear_case(30, shift=1.0)
    annealing = Annealing(num_temperatures=80, num_steps=4, target=0.8)
    found = ais(program, x, annealing=annealing, seed=1)
    assert abs(found.per_datum["acceptance"].mean() - 0.8) < 0.05


def test_variance_of_single_chain_is_nan():
    program, x, _ = linear_case(3)
    found = ais(program, x, annealing=SHORT(num_chains=1), seed=1)
    assert np.isnan(found.per_datum["ais_variance"]).all()


def test_seed_is_reproducible_and_global_generator_is_unaffected():
    program, x, _ = linear_case(5, shift=1.0)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, repeated, other = (
        ais(program, x, annealing=SHORT(), seed=seed).per_datum["ais"] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (first == repeated).all() and (first != other).all()


def test_interrupted_run_resumes_to_same_bits(tmp_path, monkeypatch):
    program, x, _ = linear_case(7, shift=1.0)
    monkeypatch.setattr(sampler, "max_chain_pairs", lambda x: 16)  # blocks of two
    whole = ais(program, x, annealing=SHORT(), seed=1)
    file, calls, original = tmp_path / "ais.npz", [], sampler.tune_schedule

    def interrupted(path, annealing):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(path, annealing)

    monkeypatch.setattr(sampler, "tune_schedule", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ais(program, x, annealing=SHORT(), seed=1, checkpoint=file)
    resumed = ais(program, x, annealing=SHORT(), seed=1, checkpoint=file)
    assert len(calls) == 3 + 2  # two of four blocks were saved
    for name, column in whole.per_datum.items():
        assert np.array_equal(column, resumed.per_datum[name], equal_nan=True), name
    with pytest.raises(ValueError, match="checkpoint of this computation"):
        ais(program, x, annealing=SHORT(num_steps=4), seed=1, checkpoint=file)


@pytest.fixture(scope="module")
def digits():
    """Labelled images of digits, 8 × 8."""
    return pv.data.load("digits", binarize="threshold")


@pytest.mark.parametrize("name", PROGRAMS)
def test_ais_of_every_program(name, digits):
    torch.manual_seed(0)
    program, data = program_for(PROGRAMS[name], digits), digits.test.head(4)
    annealing = Annealing(num_chains=8, num_temperatures=20, num_steps=4)
    low = ais(program, data, annealing=annealing, seed=1).estimates["ais"]
    estimate = pv.evaluate(program, data, num_samples=4000, seed=1).estimates["log_evidence"]
    error = np.hypot(low.se_monte_carlo, estimate.se_monte_carlo)
    # prior and posterior of an untrained program are close, so both estimates are accurate
    assert abs(low.value - estimate.value) < 4 * error + 1e-3
    assert error < 0.6


def test_flow_without_inverse_requires_start_at_prior():
    vae = pv.VAE((4,), 2, posterior=pv.posteriors.PlanarFlow)
    x = torch.bernoulli(torch.full((3, 4), 0.5))
    with pytest.raises(ValueError, match="flow without an inverse"):
        ais(vae, x, annealing=SHORT())
    annealing = Annealing(num_chains=40, num_temperatures=25, num_steps=4, initial="prior")
    low = ais(vae, x, annealing=annealing).estimates["ais"]
    # samples from the prior suffice for two latents; the untrained flow would miss much
    with torch.no_grad():
        p = vae.likelihood(torch.randn(40_000, 1, 2)).log_prob(x).double().exp()
    error = float((p.std(0) / p.mean(0)).square().mean() / len(p) / len(x)) ** 0.5
    exact = float(p.mean(0).log().mean())
    # false-alarm rate 1e-5
    assert abs(low.value - exact) < 4.4 * np.hypot(low.se_monte_carlo, error)


def test_latent_on_sphere_raises():
    vae = pv.VAE((4,), 3, prior=pv.priors.UniformSphere, posterior=pv.posteriors.PowerSpherical)
    with pytest.raises(
        ValueError, match=r"with a transform from unconstrained space; got site .* which has none"
    ):
        ais(vae, torch.bernoulli(torch.full((3, 4), 0.5)), annealing=SHORT())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "expected num_chains to be a positive integer; got 0"),
        ({"num_temperatures": 1.5}, "expected num_temperatures to be a positive integer; got 1.5"),
        ({"target": 1.0}, r"expected target in \(0, 1\); got 1.0"),
        ({"initial": "middle"}, "expected initial to be one of guide, prior; got 'middle'"),
        ({"schedule": "cubic"}, "expected schedule to be one of sigmoidal, linear, adaptive"),
        ({"schedule": "adaptive", "num_chains": 1}, "expected num_chains ≥ 2 for the adaptive"),
    ],
)
def test_invalid_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Annealing(**options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_increase_from_0_to_1(schedule):
    for size in (1, 2, 50):
        betas = np.array(make_betas(schedule, size))
        assert betas[0] == 0 and betas[-1] == 1 and len(betas) == size + 1
        assert (np.diff(betas) > 0).all()


def test_adaptive_schedule_has_equal_loss_per_step():
    # for a spread of 1/β between 0.01 and 1, β grows by a constant factor
    grid = torch.linspace(0.01, 1, 2000, dtype=D)
    pilot = PilotResult(grid, torch.ones(2000, 1, 1), 1 / grid)
    betas = np.array(make_betas("adaptive", 10, pilot))[1:]
    assert np.allclose(betas[1:] / betas[:-1], 100 ** (1 / 10), rtol=0.02)


def test_step_sizes_are_interpolated():
    pilot = PilotResult(
        torch.tensor([0.0, 0.5, 1.0], dtype=D),
        torch.tensor([1.0, 3.0, 5.0])[:, None, None],
        torch.ones(3),
    )
    found = pilot.step_sizes_at((0.0, 0.25, 0.5, 1.0, 2.0)).flatten()
    assert found.tolist() == [1.0, 2.0, 3.0, 5.0, 5.0]


def test_simulation_from_size_and_from_template():
    vae = pv.VAE((4,), 2)
    from_size = bdmc(vae, 3, annealing=SHORT(), num_samples=30, seed=1)
    assert len(from_size) == 3 and from_size.settings["simulated"]
    x = torch.zeros(3, 4)
    from_template = bdmc(vae, x, annealing=SHORT(), num_samples=30, seed=1)
    assert {*from_size.per_datum} == {
        *from_template.per_datum
    } and "log_evidence" in from_template.per_datum


def test_bdmc_of_conditional_program(tmp_path):
    vae = pv.ConditionalVAE((4,), condition=3, latent_dim=2)
    x, labels = torch.zeros(6, 4), torch.arange(6) % 3
    bounds = bdmc(vae, pv.data.Split(x, labels=labels), annealing=SHORT(), num_samples=30)
    bounds.to_netcdf(tmp_path / "bdmc.nc")
    loaded = Bounds.from_netcdf(tmp_path / "bdmc.nc")
    assert loaded.estimates == bounds.estimates and loaded.settings == bounds.settings
    with pytest.raises(ValueError, match="expected a label for every example"):
        bdmc(vae, 6, annealing=SHORT())


def test_second_observed_site_raises():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(len(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"got 'y', which is neither a view of an argument"):
        bdmc((model, guide), torch.zeros(3), annealing=SHORT())


def test_density_that_depends_on_data_raises():
    def model(x):
        # autoregressive in the data: a sample given other data is not from p(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            before = torch.nn.functional.pad(x[..., :-1], (1, 0))
            pyro.sample("x", dist.Normal(z[..., None] + before, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(ValueError, match="a density of 'x' that depends on the data"):
        bdmc((model, guide), torch.ones(3, 2), annealing=SHORT())
    vae = pv.VAE((3,), 2, likelihood=partial(pv.likelihoods.NegativeBinomial, library="observed"))
    vae.likelihood.init_from_data(torch.ones(2, 3))
    with pytest.raises(ValueError, match="their total"):
        bdmc(vae, 3, annealing=SHORT())


def test_float64_data_of_a_float32_program():
    weight = torch.ones(1, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = torch.tensor([[0.3, -0.4], [1.0, 2.0]], dtype=D)
    covariance = torch.ones(2, 2, dtype=D) + torch.eye(2, dtype=D)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=D), covariance)
    # the standard error of eight chains is itself too uncertain: Student's t with 7 degrees of
    # freedom exceeds 4 once in 200 times
    annealing = SHORT(num_chains=100, num_temperatures=30)
    found = ais((model, guide), x, annealing=annealing).per_datum
    # false-alarm rate 1/10,000 each
    error = np.abs(found["ais"] - marginal.log_prob(x).numpy())
    assert (error < 4 * np.sqrt(found["ais_variance"])).all() and error.max() < 0.1


def test_log_mean_weight_of_dominating_chain():
    log_w = torch.tensor([[0.0, 1.0, 0.0], [-100.0, 1.0, -torch.inf]], dtype=D)
    value, variance, ess = estimate_log_mean_weight(log_w, slice(0, 3))
    assert np.allclose(value, [-np.log(2), 1, -np.log(2)]) and np.allclose(ess, [1, 2, 1])
    # leaving out one of two chains gives the other: the variance is half the distance, squared
    assert variance[:2].tolist() == [2500, 0] and variance[2].isnan()
