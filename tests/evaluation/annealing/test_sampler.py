"""Annealed importance sampling, forwards and backwards, against closed forms."""

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
from pyro_vae.evaluation.annealing.path import Pilot
from pyro_vae.evaluation.annealing.sampler import log_mean_exp
from pyro_vae.evaluation.annealing.schedules import SCHEDULES, betas_of

SHORT = partial(Annealing, num_temperatures=6, num_steps=3)
TEMPERATURES = {"guide": 6, "prior": 60}
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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("initial", ["guide", "prior"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_weight_is_the_evidence(case, initial, schedule):
    # of 3000 data with weights of their own, a short and noisy path; false alarm of one case:
    # 1 in 15,000
    program, x, truth = CASES[case](3000)
    annealing = SHORT(num_chains=2, initial=initial, schedule=schedule)
    found = ais(program, x, annealing=annealing, seed=3).per_datum["ais"]
    ratio = np.exp(found - truth.numpy())
    assert ratio.std() > 0.05  # there is something to average
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))


@pytest.mark.parametrize("initial", ["guide", "prior"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_weight_backwards_is_one_over_the_evidence(case, initial):
    # false alarm of one case: 1 in 15,000
    program, x, _ = CASES[case](3000)
    # few temperatures from the prior have weights with hardly a variance to tell the mean by
    annealing = SHORT(num_chains=1, initial=initial, num_temperatures=TEMPERATURES[initial])
    bounds = bdmc(program, x, annealing=annealing, num_samples=0, seed=4)
    made = simulated(program, x, 4)
    ratio = np.exp(evidence(case, program, made).numpy() - bounds.per_datum["upper"])
    assert ratio.std() > 0.05
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))


def simulated(program, like, seed):
    from pyro_vae.evaluation.annealing.bidirectional import simulated

    return simulated(program, like, (), seed)[0]


def evidence(case, program, x):
    if case == "counts":
        return torch.from_numpy(stats.nbinom(3, 1 / 3).logpmf(x.numpy()))
    if case == "linear":
        return program.log_evidence(x)
    scale = (program.w**2 * (program.v**2 + 0.6**2) + 0.7**2).sqrt().detach()
    return torch.distributions.Normal(torch.zeros_like(scale), scale).log_prob(x)


@pytest.mark.parametrize("case", CASES)
def test_enclosed_within_a_twentieth_of_a_nat(case):
    program, x, _ = CASES[case](40)
    annealing = Annealing(num_temperatures=100, num_steps=5)
    bounds = bdmc(program, x, annealing=annealing, num_samples=500, seed=2)
    truth = float(evidence(case, program, simulated(program, x, 2)).mean())
    low, high = bounds.estimates["ais"], bounds.estimates["upper"]
    # false alarm 1 in 700 for each
    assert low.value - 3 * low.se_monte_carlo < truth < high.value + 3 * high.se_monte_carlo
    assert abs(low.value - truth) < 0.05 and abs(high.value - truth) < 0.05
    gap = bounds.estimates["bdmc_gap"]
    assert gap.value == pytest.approx(high.value - low.value)
    assert low.se_monte_carlo < 0.03
    assert bounds.iwae[500] < truth + 3 * bounds.estimates["iwae_500"].se_monte_carlo


def test_stated_errors_cover():
    program, x, truth = linear_case(400, shift=0.7)
    found = ais(program, x, annealing=Annealing(num_chains=16, num_temperatures=40), seed=1)
    z = (found.per_datum["ais"] - truth.numpy()) / np.sqrt(found.per_datum["ais_variance"])
    # of a normal variable 95 % are within 2 standard errors; 16 chains know theirs to 18 %, and
    # 400 data tell the share to 1.1 %
    assert 0.90 < (np.abs(z) < 2).mean() < 0.98
    assert found.per_datum["ais_ess"].max() <= 16


def test_a_path_of_one_temperature_is_importance_sampling():
    program, x, truth = linear_case(2000, shift=0.5)
    found = ais(program, x, annealing=Annealing(num_chains=4, num_temperatures=1), seed=1)
    ratio = np.exp(found.per_datum["ais"] - truth.numpy())
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))  # 1 in 15,000
    assert np.isnan(found.per_datum["acceptance"]).all()


def test_a_bad_guide_moves_importance_sampling_and_not_annealing():
    program, x, truth = linear_case(30, shift=4.0)
    bounds = pv.evaluate(program, x, num_samples=1000)
    annealed = ais(program, x, annealing=Annealing(num_temperatures=300, num_steps=5), seed=1)
    wrong = bounds.log_evidence - float(truth.mean())
    right = annealed.estimates["ais"].value - float(truth.mean())
    assert wrong < -1 and abs(right) < 0.15
    assert len(bounds.unreliable) > 20


def test_step_sizes_arrive_at_the_target():
    program, x, _ = linear_case(30, shift=1.0)
    annealing = Annealing(num_temperatures=200, num_steps=5, target=0.8)
    found = ais(program, x, annealing=annealing, seed=1)
    assert abs(found.per_datum["acceptance"].mean() - 0.8) < 0.05


def test_one_chain_cannot_tell_its_noise():
    program, x, _ = linear_case(3)
    found = ais(program, x, annealing=SHORT(num_chains=1), seed=1)
    assert np.isnan(found.per_datum["ais_variance"]).all()


def test_seeds_repeat_and_generators_stay():
    program, x, _ = linear_case(5, shift=1.0)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, two, other = (
        ais(program, x, annealing=SHORT(), seed=seed).per_datum["ais"] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (one == two).all() and (one != other).all()


def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    from pyro_vae.evaluation.annealing import sampler as module

    program, x, _ = linear_case(7, shift=1.0)
    monkeypatch.setattr(module, "max_pairs", lambda x: 16)  # blocks of two
    whole = ais(program, x, annealing=SHORT(), seed=1)
    file, calls, original = tmp_path / "ais.npz", [], module.planned

    def interrupted(path, annealing):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(path, annealing)

    monkeypatch.setattr(module, "planned", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ais(program, x, annealing=SHORT(), seed=1, checkpoint=file)
    again = ais(program, x, annealing=SHORT(), seed=1, checkpoint=file)
    assert len(calls) == 3 + 2  # of four blocks two were kept
    for name, column in whole.per_datum.items():
        assert np.array_equal(column, again.per_datum[name]), name
    with pytest.raises(ValueError, match="checkpoint of this computation"):
        ais(program, x, annealing=SHORT(num_steps=4), seed=1, checkpoint=file)


@pytest.fixture(scope="module")
def digits():
    """Real digits, 8 × 8, with their classes."""
    return pv.data.load("digits", binarize="threshold")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program(name, digits):
    torch.manual_seed(0)
    program, data = program_for(PROGRAMS[name], digits), digits.test.head(4)
    if name == "SemiSupervisedVAE":
        with pytest.raises(ValueError, match="discrete, and HMC follows gradients"):
            ais(program, data, annealing=SHORT())
        return
    annealing = Annealing(num_chains=8, num_temperatures=40, num_steps=5)
    low = ais(program, data, annealing=annealing, seed=1).estimates["ais"]
    estimate = pv.evaluate(program, data, num_samples=4000, seed=1).estimates["log_evidence"]
    error = np.hypot(low.se_monte_carlo, estimate.se_monte_carlo)
    # an untrained program's prior and posterior are near: both know log p(x) well
    assert abs(low.value - estimate.value) < 4 * error + 1e-3
    assert error < 0.6


def test_a_flow_without_an_inverse_begins_at_the_prior():
    vae = pv.VAE((4,), 2, posterior=pv.posteriors.PlanarFlow)
    x = torch.bernoulli(torch.full((3, 4), 0.5))
    with pytest.raises(ValueError, match="flow without an inverse"):
        ais(vae, x, annealing=SHORT())
    annealing = Annealing(num_temperatures=60, num_steps=5, initial="prior")
    low = ais(vae, x, annealing=annealing).estimates["ais"]
    weighed = pv.evaluate(vae, x, num_samples=2000).estimates["log_evidence"]
    assert abs(low.value - weighed.value) < 4 * np.hypot(low.se_monte_carlo, weighed.se_monte_carlo)


def test_a_sphere_is_refused():
    vae = pv.VAE((4,), 3, prior=pv.priors.UniformSphere, posterior=pv.posteriors.PowerSpherical)
    with pytest.raises(ValueError, match="no such transform"):
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
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Annealing(**options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_rise_from_0_to_1(schedule):
    for size in (1, 2, 50):
        betas = np.array(betas_of(schedule, size))
        assert betas[0] == 0 and betas[-1] == 1 and len(betas) == size + 1
        assert (np.diff(betas) > 0).all()


def test_the_adaptive_schedule_loses_the_same_at_each_step():
    # a spread of 1/β between 0.01 and 1 wants β that grow by the same factor
    where = torch.linspace(0.01, 1, 2000, dtype=D)
    pilot = Pilot(where, torch.ones(2000, 1, 1), 1 / where)
    betas = np.array(betas_of("adaptive", 10, pilot))[1:]
    assert np.allclose(betas[1:] / betas[:-1], 100 ** (1 / 10), rtol=0.02)


def test_step_sizes_between_those_of_the_pilot():
    pilot = Pilot(
        torch.tensor([0.0, 0.5, 1.0], dtype=D),
        torch.tensor([1.0, 3.0, 5.0])[:, None, None],
        torch.ones(3),
    )
    found = pilot.step_sizes_at((0.0, 0.25, 0.5, 1.0, 2.0)).flatten()
    assert found.tolist() == [1.0, 2.0, 3.0, 5.0, 5.0]


def test_simulation_by_number_and_by_likeness():
    vae = pv.VAE((4,), 2)
    made = bdmc(vae, 3, annealing=SHORT(), num_samples=30, seed=1)
    assert len(made) == 3 and made.settings["simulated"]
    x = torch.zeros(3, 4)
    like = bdmc(vae, x, annealing=SHORT(), num_samples=30, seed=1)
    assert {*made.per_datum} == {*like.per_datum} and "log_evidence" in like.per_datum


def test_labels_are_conditioned_on(tmp_path):
    vae = pv.ConditionalVAE((4,), condition=3, latent_dim=2)
    x, labels = torch.zeros(6, 4), torch.arange(6) % 3
    bounds = bdmc(vae, pv.data.Split(x, labels=labels), annealing=SHORT(), num_samples=30)
    bounds.to_netcdf(tmp_path / "bdmc.nc")
    again = Bounds.from_netcdf(tmp_path / "bdmc.nc")
    assert again.estimates == bounds.estimates and again.settings == bounds.settings
    with pytest.raises(ValueError, match="expected a label for every datum"):
        bdmc(vae, 6, annealing=SHORT())


def test_more_than_the_data_observed():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(len(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="'y' is observed, too"):
        bdmc((model, guide), torch.zeros(3), annealing=SHORT())


def test_data_that_the_density_looks_at():
    def model(x):
        # a decoder that is told the datum before: no draw of it is one of p(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            before = torch.nn.functional.pad(x[..., :-1], (1, 0))
            pyro.sample("x", dist.Normal(z[..., None] + before, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(ValueError, match="'x', or of a latent, looks at the data themselves"):
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
    found = ais((model, guide), x, annealing=Annealing(num_temperatures=60)).per_datum
    # false alarm 1 in 15,000 for each
    wrong = np.abs(found["ais"] - marginal.log_prob(x).numpy())
    assert (wrong < 4 * np.sqrt(found["ais_variance"])).all() and wrong.max() < 0.1


def test_one_chain_that_outshines_the_others():
    log_w = torch.tensor([[0.0, 1.0, 0.0], [-100.0, 1.0, -torch.inf]], dtype=D)
    value, variance, ess = log_mean_exp(log_w, slice(0, 3))
    assert np.allclose(value, [-np.log(2), 1, -np.log(2)]) and np.allclose(ess, [1, 2, 1])
    # without one of the two chains log p̂ is the other's: half their distance, squared
    assert variance[:2].tolist() == [2500, 0] and variance[2].isnan()
