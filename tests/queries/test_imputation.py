"""Imputation against conditionals in closed form and by enumeration."""

from __future__ import annotations

import itertools
import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae import queries
from pyro_vae.core.random import Stream
from pyro_vae.evaluation.importance.streaming import khat_threshold
from pyro_vae.programs.context import evaluating
from pyro_vae.programs.inputs import prepare
from pyro_vae.queries.fitted_proposals import Mixture, fit_mixture
from pyro_vae.queries.runner import PartialObservation, Runner

OBSERVED = torch.tensor([True, False, True, True, False, True])


def compute_conditional(program, x, observed):
    """Return mean (N, M) and covariance (M, M) of p(x_mis | x_obs) in a linear-Gaussian model."""
    joint = program.marginal
    mean, cov = joint.mean, joint.covariance_matrix
    gain = cov[~observed][:, observed] @ torch.linalg.inv(cov[observed][:, observed])
    conditional_mean = mean[~observed] + (x[:, observed] - mean[observed]) @ gain.T
    return conditional_mean, cov[~observed][:, ~observed] - gain @ cov[observed][:, ~observed]


def make_marginal(program, observed):
    joint = program.marginal
    return MultivariateNormal(joint.mean[observed], joint.covariance_matrix[observed][:, observed])


def test_samples_have_conditional_moments():
    program = LinearGaussian(2, shift=0.4, inflate=1.3)
    x = program.sample(4)
    x[:, ~OBSERVED] = math.nan
    result = queries.impute(program, x, observed=OBSERVED, num_samples=20_000, draws=4000, seed=1)
    mean, cov = compute_conditional(program, x, OBSERVED)
    samples = result.x[:, :, ~OBSERVED]
    assert torch.equal(result.x[:, :, OBSERVED], x[:, OBSERVED].expand(4000, 4, 4))
    z = result.latents["z"]
    assert torch.allclose(
        result.means[..., ~OBSERVED], (z @ program.W.T + program.b)[..., ~OBSERVED]
    )
    assert (result.khat < 0.7).all() and result.warning is None
    # resampling S of K proposals has the effective sample size 1/(1/ESS + 1/S)
    # 8 means and 12 (co)variances at 5 standard errors: false alarm rate 1 in 10⁵
    size = 1 / (1 / result.ess + 1 / 4000)
    error = (cov.diagonal() / size[:, None]).sqrt()
    assert ((samples.mean(0) - mean).abs() < 5 * error).all()
    for n in range(4):
        estimate = torch.cov(samples[:, n].T)
        spread = (cov.diagonal().outer(cov.diagonal()) + cov**2) / size[n]
        assert ((estimate - cov).abs() < 5 * spread.sqrt()).all()
    assert ((result.mean[:, ~OBSERVED] - mean).abs() < 5 * error).all()


@pytest.mark.parametrize(
    "options", [{}, {"defence": 0.0}, {"fills": 1}, {"rounds": 0}, {"refit_steps": 0}]
)
def test_log_evidence_of_observed_pixels(options):
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(30)
    options = {"num_samples": 5000, "refit_steps": 40, **options}
    result = queries.impute(program, x, observed=OBSERVED, **options)
    truth = make_marginal(program, OBSERVED).log_prob(x[:, OBSERVED])
    error = (result.log_evidence_variance / 30).mean().sqrt()
    # 4 standard errors of the mean: false alarm rate 1 in 15,000
    assert abs((result.log_evidence - truth).mean()) < 4 * error
    assert error < 0.1
    assert result.num_samples == 5000


def test_without_missing_pixels_the_data_are_returned():
    program = LinearGaussian(2, shift=0.3, inflate=1.2)
    x = program.sample(5)
    result = queries.impute(program, x, num_samples=4000, refit_steps=40)
    error = result.log_evidence_variance.sqrt()
    assert ((result.log_evidence - program.log_evidence(x)).abs() < 5 * error).all()
    assert torch.allclose(result.mean, x) and torch.equal(result.x, x.expand(16, *x.shape))


def test_without_observed_pixels_the_model_is_sampled():
    program = LinearGaussian(2)
    x = torch.full((1, 6), math.nan, dtype=torch.float64)
    result = queries.impute(
        program, x, observed=torch.zeros(6, dtype=torch.bool), num_samples=20_000, draws=4000
    )
    # all weights are equal if the proposal is the prior
    assert abs(float(result.log_evidence)) < 5 * float(result.log_evidence_variance.sqrt()) + 1e-9
    size = 1 / (1 / float(result.ess) + 1 / 4000)
    deviation = program.marginal.stddev
    assert ((result.x[:, 0].mean(0) - program.b).abs() < 5 * deviation / size**0.5).all()


def test_score_missing_matches_closed_form():
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(40)
    score = queries.score_missing(program, x, observed=OBSERVED, num_samples=4000, refit_steps=60)
    mean, cov = compute_conditional(program, x, OBSERVED)
    truth = MultivariateNormal(mean, cov).log_prob(x[:, ~OBSERVED])
    error = (score.variance / 40).mean().sqrt()
    # 4 standard errors of the mean: false alarm rate 1 in 15,000
    assert abs((score.value - truth).mean()) < 4 * error
    assert error < 0.02 and (score.khat < khat_threshold(4000)).float().mean() > 0.9


def test_score_missing_covers_the_latents_of_the_true_completion():
    """The guide sees the missing pixel only, so that other completions stay in the wrong place."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([z, z], -1), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 1], 0.1))

    # four standard deviations of the prior away
    x = torch.tensor([[4.0, 4.1], [-4.2, -4.0]], dtype=torch.float64)
    observed = torch.tensor([True, False])
    score = queries.score_missing((model, guide), x, observed=observed, refit_steps=0)
    covariance = torch.ones(2, 2, dtype=x.dtype) + 0.01 * torch.eye(2, dtype=x.dtype)
    joint = MultivariateNormal(torch.zeros(2, dtype=x.dtype), covariance).log_prob(x)
    truth = joint - dist.Normal(0.0, 1.01**0.5).log_prob(x[:, 0])
    # without the true completion the scores are up to 12 nats too high
    torch.testing.assert_close(score.value, truth, atol=1.0, rtol=0)


def test_masks_per_example_in_blocks_of_any_size(monkeypatch):
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(7)
    observed = torch.rand(7, 6) < 0.6
    truth = torch.stack(
        [
            make_marginal(program, o).log_prob(row[o])
            if o.any()
            else torch.zeros((), dtype=x.dtype)
            for o, row in zip(observed, x, strict=True)
        ]
    )
    # a single block; fitted together and weighted in threes; fitted in twos and weighted singly
    for max_elements in (1 << 23, 3 * 3000 * 6, 2 * 10 * 20 * 6):
        monkeypatch.setattr(
            sys.modules["pyro_vae.queries.imputation"], "_MAX_ELEMENTS", max_elements
        )
        result = queries.impute(program, x, observed=observed, num_samples=3000, refit_steps=20)
        error = result.log_evidence_variance.sqrt()
        # 21 comparisons at 5 standard errors: false alarm rate 1 in 10⁵
        assert ((result.log_evidence - truth).abs() < 5 * error + 1e-6).all()
        assert torch.equal(result.x[:, observed], x[observed].expand(16, -1))


def test_narrow_proposals_give_a_warning():
    program = LinearGaussian(2, inflate=0.6)
    x = program.sample(20)
    plain = {"fills": 1, "rounds": 0, "defence": 0.0, "refit_steps": 0}
    result = queries.impute(program, x, observed=OBSERVED, **plain)
    assert len(result.unreliable) > 10
    assert "k̂ is not below 0.67" in result.warning
    # the mixture over completions and the prior suffices for most examples
    mixed = queries.impute(program, x, observed=OBSERVED, refit_steps=0)
    assert len(mixed.unreliable) < 5


def test_wrong_guide_is_refitted_to_exact_conditional():
    program = LinearGaussian(2, shift=1.0, inflate=0.5)
    x = program.sample(4)
    with evaluating(program.model, program.guide, seed=0, stream=Stream.IMPUTE):
        completed = torch.where(OBSERVED, x, 0.0)
        runner = Runner.create(prepare(program, completed))
        observation = PartialObservation(runner, completed, OBSERVED.expand(x.shape))
        mixture = fit_mixture(observation, completed[None], 400).mixture
    W = program.W[OBSERVED]
    cov = torch.linalg.inv(torch.eye(2, dtype=x.dtype) + W.T @ W / program.s**2)
    mean = (x[:, OBSERVED] - program.b[OBSERVED]) @ W @ cov / program.s**2
    factor = mixture.lower.tril(-1) + torch.diag_embed(mixture.scale)
    deviation = cov.diagonal().sqrt()
    # the fit is exact because the gradient has no variance at the optimum
    assert ((mixture.loc - mean).abs() < 0.01 * deviation).all()
    assert ((factor @ factor.mT - cov).abs() < 0.01 * deviation.outer(deviation)).all()
    result = queries.impute(program, x, observed=OBSERVED, num_samples=2000)
    assert (result.khat < 0.3).all() and (result.ess > 1400).all()
    # 4 examples at 5 standard errors: false alarm rate 1 in 400,000
    error = result.log_evidence_variance.sqrt()
    truth = make_marginal(program, OBSERVED).log_prob(x[:, OBSERVED])
    assert (error < 0.03).all() and ((result.log_evidence - truth).abs() < 5 * error).all()


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("df", [math.inf, 8.0])
def test_mixture_density_matches_its_samples(full, df):
    torch.manual_seed(0)
    loc, scale = torch.randn(3, 2, 4).double(), torch.rand(3, 2, 4).double() + 0.5
    lower = torch.randn(3, 2, 4, 4).double() if full else None
    mixture = Mixture(loc, scale, lower, df)
    factor = torch.diag_embed(scale) + (lower.tril(-1) if full else 0)
    component = (
        MultivariateNormal(loc, scale_tril=factor)
        if math.isinf(df)
        else dist.MultivariateStudentT(torch.tensor(df).double(), loc, factor)
    )
    u = mixture.rsample(20_000)
    truth = component.log_prob(u[:60].unsqueeze(1)).logsumexp(1) - math.log(3)
    assert torch.allclose(mixture.log_prob(u[:60]), truth)
    # 24 sample means at 5 standard errors: false alarm rate 1 in 70,000
    samples = u.unflatten(0, (20_000, 3))
    assert ((samples.mean(0) - loc).abs() < 5 * samples.std(0) / 20_000**0.5).all()
    assert torch.allclose(samples.var(0), component.variance, rtol=0.12)


def test_hmc_corrects_bad_proposals():
    """HMC reaches the conditional from samples of a guide that is far too narrow."""
    program = LinearGaussian(2, shift=1.5, inflate=0.3)
    x = program.sample(2)
    bad = {"fills": 2, "rounds": 0, "defence": 0.0, "num_samples": 50, "refit_steps": 0}
    options = {"warm_up": 60, "thin": 15, "num_steps": 8}
    start, end = (
        queries.impute(program, x, observed=OBSERVED, draws=2000, method=m, options=o, **bad)
        for m, o in (("importance", None), ("hmc", options))
    )
    mean, cov = compute_conditional(program, x, OBSERVED)
    error = (cov.diagonal() / 2000).sqrt()
    # 4 means and 2 covariances of 3 values at 5 standard errors: false alarm rate 1 in 10⁵
    assert ((end.x[:, :, ~OBSERVED].mean(0) - mean).abs() < 5 * error).all()
    for n in range(2):
        estimate = torch.cov(end.x[:, n, ~OBSERVED].T)
        spread = ((cov.diagonal().outer(cov.diagonal()) + cov**2) / 2000).sqrt()
        assert ((estimate - cov).abs() < 5 * spread).all()
    assert ((start.x[:, :, ~OBSERVED].mean(0) - mean).abs() > 5 * error).any()
    assert (end.acceptance > 0.6).all() and start.acceptance is None
    assert "the HMC chains started from these samples" in end.warning
    with pytest.raises(ValueError, match="expected continuous latent sites; got site 'z'"):
        queries.impute(BernoulliMixture(), torch.ones(2, 3).double(), method="hmc")


class BernoulliMixture:
    """z ∈ {0, 1} and three Bernoulli(p[z]) pixels, which can be enumerated."""

    p = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.7, 0.5]], dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=x.dtype)))
            pyro.sample("x", dist.Bernoulli(self.p[z.long()]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5], dtype=x.dtype)))

    def posterior(self, noisy, observed, flip):
        """Return all 8 images, p(x | x̃) given the observed pixels, and p(x̃)."""
        images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=self.p.dtype)
        prior = torch.tensor([0.3, 0.7], dtype=self.p.dtype)
        clean = (prior * dist.Bernoulli(self.p).log_prob(images[:, None]).sum(-1).exp()).sum(-1)
        is_same = images == noisy
        noise = torch.where(is_same, 1 - flip, flip)
        joint = clean * torch.where(observed, noise, 1.0).prod(-1)
        return images, joint / joint.sum(), joint.sum()


@pytest.mark.parametrize("flip", [0.0, 0.2])
@pytest.mark.parametrize("observed", [[True, True, True], [True, False, True]])
def test_flip_noise_matches_enumeration(flip, observed):
    program, observed = BernoulliMixture(), torch.tensor(observed)
    x = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    noise = queries.Flip(flip) if flip else None
    result = queries.impute(
        program, x, observed=observed, noise=noise, draws=5000, num_samples=5000
    )
    for n, noisy in enumerate(x):
        images, posterior, evidence = program.posterior(noisy, observed, flip)
        error = float(result.log_evidence_variance[n].sqrt())
        assert float(result.log_evidence[n]) == pytest.approx(float(evidence.log()), abs=5 * error)
        counts = (result.x[:, n, None] == images).all(-1).double().mean(0)
        size = 1 / (1 / float(result.ess[n]) + 1 / 5000)
        # 64 frequencies at 5 standard errors: false alarm rate 1 in 30,000
        spread = (posterior * (1 - posterior) / size).sqrt()
        assert ((counts - posterior).abs() <= 5 * spread + 1e-12).all()
        assert torch.allclose(result.mean[n], posterior @ images, atol=0.03)


def test_normal_noise_matches_closed_form():
    program, scale = LinearGaussian(2, shift=0.2, inflate=1.2), 0.8
    clean = program.sample(4)
    noisy = clean + scale * torch.randn_like(clean)
    result = queries.impute(
        program,
        noisy,
        noise=queries.AdditiveNormal(scale),
        num_samples=20_000,
        draws=4000,
        refit_steps=60,
    )
    joint = program.marginal.covariance_matrix
    noisy_cov = joint + scale**2 * torch.eye(6, dtype=joint.dtype)
    truth = MultivariateNormal(program.b, noisy_cov).log_prob(noisy)
    error = result.log_evidence_variance.sqrt()
    assert ((result.log_evidence - truth).abs() < 5 * error).all()
    gain = joint @ torch.linalg.inv(noisy_cov)
    mean, cov = program.b + (noisy - program.b) @ gain.T, joint - gain @ joint
    size = 1 / (1 / result.ess + 1 / 4000)
    spread = (cov.diagonal() / size[:, None]).sqrt()
    # 24 means at 5 standard errors: false alarm rate 1 in 70,000
    assert ((result.x.mean(0) - mean).abs() < 5 * spread).all()
    assert torch.allclose(torch.cov(result.x[:, 0].T), cov, atol=0.1)


def test_flow_that_scores_only_its_own_samples():
    """Its proposals are weighted by their own component, and a fitted mixture replaces them."""
    torch.set_default_dtype(torch.float64)
    try:
        pyro.set_rng_seed(0)
        vae = pv.VAE(
            (3,), 2, likelihood=pv.likelihoods.Gaussian, posterior=pv.posteriors.PlanarFlow
        )
        x = torch.randn(3, 3)
        observed = torch.tensor([True, False, True])
        options = {"observed": observed, "num_samples": 4000}
        result = queries.impute(vae, x, refit_steps=0, **options)
        fitted = queries.impute(vae, x, refit_steps=100, **options)
        simple = queries.impute((vae.model, prior_guide), x, observed=observed, num_samples=20_000)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.num_samples == 3600  # without proposals from the prior
    assert fitted.num_samples == 3640  # the fitted mixture and the prior, without the guide
    # 3 comparisons at 5 standard errors: false alarm rate 1 in 10⁶
    error = (fitted.log_evidence_variance + simple.log_evidence_variance).sqrt()
    assert ((fitted.log_evidence - simple.log_evidence).abs() < 5 * error).all()
    # the untrained flow alone is too narrow for a reliable error, which k̂ detects
    assert len(fitted.unreliable) == 0 and len(result.unreliable) >= 2
    assert ((result.log_evidence - simple.log_evidence).abs() < 1.5).all()


def prior_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


class Correlated(LinearGaussian):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            cov = torch.eye(6, dtype=x.dtype)
            pyro.sample("x", dist.MultivariateNormal(z @ self.W.T, cov), obs=x)


INVALID = {
    "method": ({"method": "gibbs"}, "expected method to be 'importance' or 'hmc'; got 'gibbs'"),
    "options": ({"options": {"thin": 3}}, "expected method 'hmc' with options of HMC"),
    "numeric mask": (
        {"observed": torch.ones(6)},
        r"expected observed to be booleans of shape \(3, 6\) or \(6,\); got torch.float32",
    ),
    "mask shape": ({"observed": torch.ones(5, dtype=torch.bool)}, r"got torch.bool .*\(5,\)"),
    "defence": ({"defence": 1.0}, r"expected defence to be a fraction in \[0, 1\); got 1.0"),
    "rounds": ({"rounds": -1}, "expected rounds to be an integer ≥ 0; got -1"),
    "refit_steps": ({"refit_steps": 0.5}, "expected refit_steps to be an integer ≥ 0; got 0.5"),
    "fills": ({"fills": 0}, "expected fills to be a positive integer; got 0"),
    "few samples": ({"num_samples": 10}, "expected num_samples ≥ 2 × fills; got 10 for 10 fills"),
    "flips of real pixels": (
        {"noise": queries.Flip(0.1)},
        "expected Bernoulli pixels for the noise Flip; got Normal: use Flip with a Bernoulli",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_options(case):
    options, message = INVALID[case]
    program = LinearGaussian(2)
    with pytest.raises(ValueError, match=message):
        queries.impute(program, program.sample(3), **options)


def test_dependent_pixels_are_rejected():
    program = Correlated(2)
    with pytest.raises(ValueError, match=r"whose pixels are independent .*; got MultivariateNorma"):
        queries.impute(program, program.sample(3), observed=OBSERVED)


@pytest.mark.parametrize("probability", [0.0, 0.6, -1.0])
def test_flip_probability_out_of_range(probability):
    with pytest.raises(ValueError, match="expected a flip probability in"):
        queries.Flip(probability)


def test_noise_scale_out_of_range():
    with pytest.raises(ValueError, match="expected a noise scale > 0"):
        queries.AdditiveNormal(0.0)


def test_results_are_seeded_and_global_generator_unaffected():
    program = LinearGaussian(2)
    x = program.sample(3)
    before = torch.get_rng_state()
    first, second, other = (
        queries.impute(program, x, observed=OBSERVED, num_samples=50, refit_steps=5, seed=seed)
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x) and not torch.equal(first.x, other.x)


def test_named_masks():
    shape = (1, 4, 6)
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[0, ::2, ::2] = True
    assert torch.equal(queries.mask("every:2", shape), expected)
    for name, rows in {"lower-half": [1, 1, 0, 0], "upper-half": [0, 0, 1, 1]}.items():
        assert queries.mask(name, shape)[0].all(1).tolist() == rows
        assert queries.mask(name, shape)[0].any(1).tolist() == rows
    for name, columns in {
        "left-half": [0, 0, 0, 1, 1, 1],
        "right-half": [1, 1, 1, 0, 0, 0],
    }.items():
        assert queries.mask(name, shape)[0].all(0).tolist() == columns
        assert queries.mask(name, shape)[0].any(0).tolist() == columns
    assert queries.mask("none", (3,)).all()
    # 10⁴ pixels at 5 binomial standard errors
    fraction = queries.mask("random:0.3", (100, 100)).double().mean()
    assert abs(float(fraction) - 0.7) < 0.023


def test_pixelwise_score_uses_training_moments():
    train = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    x, observed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([False, False])
    # (n₁ + ½) / (n + 1)
    expected = [math.log(1.5 / 4) + math.log(0.5 / 4), math.log(2.5 / 4) + math.log(3.5 / 4)]
    assert queries.score_pixelwise(train, x, observed).tolist() == pytest.approx(expected)
    real = torch.randn(50, 2)
    score = queries.score_pixelwise(real, real[:3], torch.tensor([True, False]))
    normal = torch.distributions.Normal(real[:, 1].mean(), real[:, 1].std(correction=0))
    assert torch.allclose(score, normal.log_prob(real[:3, 1]))
    with pytest.raises(ValueError, match=r"expected 0/1 or real numbers; got .* levels"):
        queries.score_pixelwise(torch.arange(6.0).reshape(3, 2), x, observed)
