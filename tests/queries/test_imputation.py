"""Inferring the unseen, against conditionals in closed form and by enumeration."""

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
from pyro_vae.evaluation.importance.streaming import khat_threshold
from pyro_vae.queries.fitted_proposals import Mixture, refit
from pyro_vae.queries.proposals import Seen
from pyro_vae.queries.runner import Runner, running

OBSERVED = torch.tensor([True, False, True, True, False, True])


def conditional(program, x, observed):
    """p(x_mis | x_obs) of a linear-Gaussian model: mean (N, M), covariance (M, M)."""
    joint = program.marginal
    mean, cov = joint.mean, joint.covariance_matrix
    gain = cov[~observed][:, observed] @ torch.linalg.inv(cov[observed][:, observed])
    there = mean[~observed] + (x[:, observed] - mean[observed]) @ gain.T
    return there, cov[~observed][:, ~observed] - gain @ cov[observed][:, ~observed]


def marginal(program, observed):
    joint = program.marginal
    return MultivariateNormal(joint.mean[observed], joint.covariance_matrix[observed][:, observed])


@pytest.mark.parametrize("shift, inflate", [(0.0, 1.0), (0.4, 1.3)])
def test_draws_have_the_conditional_moments(shift, inflate):
    program = LinearGaussian(2, shift=shift, inflate=inflate)
    x = program.sample(4)
    x[:, ~OBSERVED] = math.nan
    result = queries.impute(program, x, observed=OBSERVED, num_samples=20_000, draws=4000, seed=1)
    mean, cov = conditional(program, x, OBSERVED)
    drawn = result.x[:, :, ~OBSERVED]
    assert torch.equal(result.x[:, :, OBSERVED], x[:, OBSERVED].expand(4000, 4, 4))
    z = result.latents["z"]
    assert torch.allclose(
        result.means[..., ~OBSERVED], (z @ program.W.T + program.b)[..., ~OBSERVED]
    )
    assert (result.khat < 0.7).all() and result.warning is None
    # draws are repeated: the ESS of K proposals and S draws is that of 1/(1/ESS + 1/S).
    # 5 errors: 8 means and 12 (co)variances, a false alarm in 10⁵
    size = 1 / (1 / result.ess + 1 / 4000)
    error = (cov.diagonal() / size[:, None]).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    for n in range(4):
        wide = torch.cov(drawn[:, n].T)
        spread = (cov.diagonal().outer(cov.diagonal()) + cov**2) / size[n]
        assert ((wide - cov).abs() < 5 * spread.sqrt()).all()
    assert ((result.mean[:, ~OBSERVED] - mean).abs() < 5 * error).all()


@pytest.mark.parametrize(
    "options", [{}, {"defence": 0.0}, {"fills": 1}, {"rounds": 0}, {"refit_steps": 0}]
)
def test_log_evidence_of_what_was_seen(options):
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(30)
    result = queries.impute(program, x, observed=OBSERVED, num_samples=5000, **options)
    truth = marginal(program, OBSERVED).log_prob(x[:, OBSERVED])
    error = (result.log_evidence_variance / 30).mean().sqrt()
    # 4 standard errors of the mean: a false alarm in 15000
    assert abs((result.log_evidence - truth).mean()) < 4 * error
    assert error < 0.1
    assert result.num_samples == 5000


def test_nothing_missing_is_the_evidence_and_gives_the_data_back():
    program = LinearGaussian(2, shift=0.3, inflate=1.2)
    x = program.sample(5)
    result = queries.impute(program, x, num_samples=4000)
    error = result.log_evidence_variance.sqrt()
    assert ((result.log_evidence - program.log_evidence(x)).abs() < 5 * error).all()
    assert torch.allclose(result.mean, x) and torch.equal(result.x, x.expand(16, *x.shape))


def test_nothing_seen_is_the_model_itself():
    program = LinearGaussian(2)
    x = torch.full((1, 6), math.nan, dtype=torch.float64)
    result = queries.impute(
        program, x, observed=torch.zeros(6, dtype=torch.bool), num_samples=20_000, draws=4000
    )
    # weights are 1 where the proposal is the prior; nothing is learned from nothing
    assert abs(float(result.log_evidence)) < 5 * float(result.log_evidence_variance.sqrt()) + 1e-9
    size = 1 / (1 / float(result.ess) + 1 / 4000)
    deviation = program.marginal.stddev
    assert ((result.x[:, 0].mean(0) - program.b).abs() < 5 * deviation / size**0.5).all()


def test_missing_pixels_are_scored_as_in_closed_form():
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(40)
    score = queries.score_missing(program, x, observed=OBSERVED, num_samples=4000)
    mean, cov = conditional(program, x, OBSERVED)
    truth = MultivariateNormal(mean, cov).log_prob(x[:, ~OBSERVED])
    error = (score.variance / 40).mean().sqrt()
    # 4 standard errors of the mean: a false alarm in 15000
    assert abs((score.value - truth).mean()) < 4 * error
    assert error < 0.02 and (score.khat < khat_threshold(4000)).float().mean() > 0.9


def test_each_datum_has_a_mask_of_its_own_and_blocks_change_nothing(monkeypatch):
    program = LinearGaussian(2, shift=0.2, inflate=1.2)
    x = program.sample(7)
    observed = torch.rand(7, 6) < 0.6
    truth = torch.stack(
        [
            marginal(program, o).log_prob(row[o]) if o.any() else torch.zeros((), dtype=x.dtype)
            for o, row in zip(observed, x, strict=True)
        ]
    )
    # all at once; all fitted and three weighed at once; two fitted and one weighed
    for numbers in (1 << 23, 3 * 3000 * 6, 2 * 10 * 20 * 6):
        monkeypatch.setattr(sys.modules["pyro_vae.queries.imputation"], "_NUMBERS", numbers)
        result = queries.impute(program, x, observed=observed, num_samples=3000, refit_steps=20)
        error = result.log_evidence_variance.sqrt()
        # 21 comparisons at 5 errors: a false alarm in 10⁵
        assert ((result.log_evidence - truth).abs() < 5 * error + 1e-6).all()
        assert torch.equal(result.x[:, observed], x[observed].expand(16, -1))


def test_proposals_that_are_too_narrow_are_told():
    program = LinearGaussian(2, inflate=0.6)
    x = program.sample(20)
    plain = {"fills": 1, "rounds": 0, "defence": 0.0, "refit_steps": 0}
    result = queries.impute(program, x, observed=OBSERVED, **plain)
    assert len(result.unreliable) > 10
    assert "k̂ is not below 0.67" in result.warning
    # the mixture over fills and the prior makes the same guide good enough for most
    mixed = queries.impute(program, x, observed=OBSERVED, refit_steps=0)
    assert len(mixed.unreliable) < 5


def test_a_guide_that_is_wrong_is_refitted_to_the_exact_conditional():
    program = LinearGaussian(2, shift=1.0, inflate=0.5)
    x = program.sample(4)
    with running(program, 0):
        seen = Seen(torch.where(OBSERVED, x, 0.0), OBSERVED.expand(x.shape))
        runner = Runner.of(program, seen.x, ())
        found = refit(runner, seen, seen.x[None], 800).mixture
    W = program.W[OBSERVED]
    cov = torch.linalg.inv(torch.eye(2, dtype=x.dtype) + W.T @ W / program.s**2)
    mean = (x[:, OBSERVED] - program.b[OBSERVED]) @ W @ cov / program.s**2
    factor = found.lower.tril(-1) + torch.diag_embed(found.scale)
    deviation = cov.diagonal().sqrt()
    # exactly, since the gradient has no variance there
    assert ((found.loc - mean).abs() < 0.01 * deviation).all()
    assert ((factor @ factor.mT - cov).abs() < 0.01 * deviation.outer(deviation)).all()
    result = queries.impute(program, x, observed=OBSERVED, num_samples=2000)
    assert (result.khat < 0.3).all() and (result.ess > 1400).all()
    # each datum's error, at 5 standard errors: a false alarm in 400000
    error = result.log_evidence_variance.sqrt()
    truth = marginal(program, OBSERVED).log_prob(x[:, OBSERVED])
    assert (error < 0.03).all() and ((result.log_evidence - truth).abs() < 5 * error).all()


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("freedom", [math.inf, 8.0])
def test_the_fitted_mixture_has_the_density_of_its_draws(full, freedom):
    torch.manual_seed(0)
    loc, scale = torch.randn(3, 2, 4).double(), torch.rand(3, 2, 4).double() + 0.5
    lower = torch.randn(3, 2, 4, 4).double() if full else None
    mixture = Mixture(loc, scale, lower, freedom)
    factor = torch.diag_embed(scale) + (lower.tril(-1) if full else 0)
    each = (
        MultivariateNormal(loc, scale_tril=factor)
        if math.isinf(freedom)
        else dist.MultivariateStudentT(torch.tensor(freedom).double(), loc, factor)
    )
    u = mixture.rsample(20_000)
    truth = each.log_prob(u[:60].unsqueeze(1)).logsumexp(1) - math.log(3)
    assert torch.allclose(mixture.log_prob(u[:60]), truth)
    # 24 means of draws, component by component, at 5 errors: a false alarm in 70000
    drawn = u.unflatten(0, (20_000, 3))
    assert ((drawn.mean(0) - loc).abs() < 5 * drawn.std(0) / 20_000**0.5).all()
    assert torch.allclose(drawn.var(0), each.variance, rtol=0.12)


def test_chains_mend_bad_proposals():
    """HMC from draws of a far too narrow guide arrives at the conditional."""
    program = LinearGaussian(2, shift=1.5, inflate=0.3)
    x = program.sample(2)
    bad = {"fills": 2, "rounds": 0, "defence": 0.0, "num_samples": 50, "refit_steps": 0}
    options = {"warm_up": 150, "thin": 40, "num_steps": 8}
    start, end = (
        queries.impute(program, x, observed=OBSERVED, draws=2000, method=m, options=o, **bad)
        for m, o in (("importance", None), ("hmc", options))
    )
    mean, cov = conditional(program, x, OBSERVED)
    error = (cov.diagonal() / 2000).sqrt()
    # 4 means at 5 errors, and 2 covariances of 3 numbers: a false alarm in 10⁵
    assert ((end.x[:, :, ~OBSERVED].mean(0) - mean).abs() < 5 * error).all()
    for n in range(2):
        wide = torch.cov(end.x[:, n, ~OBSERVED].T)
        spread = ((cov.diagonal().outer(cov.diagonal()) + cov**2) / 2000).sqrt()
        assert ((wide - cov).abs() < 5 * spread).all()
    assert ((start.x[:, :, ~OBSERVED].mean(0) - mean).abs() > 5 * error).any()
    assert (end.acceptance > 0.6).all() and start.acceptance is None
    assert "the chains of HMC started there" in end.warning
    with pytest.raises(ValueError, match="expected continuous latent sites; site 'z'"):
        queries.impute(Coins(), torch.ones(2, 3).double(), method="hmc")


class Coins:
    """z ∈ {0, 1}, three pixels of Bernoulli(p[z]): everything can be enumerated."""

    p = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.7, 0.5]], dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=x.dtype)))
            pyro.sample("x", dist.Bernoulli(self.p[z.long()]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5], dtype=x.dtype)))

    def posterior(self, seen, observed, flip):
        """p(x | x̃ at the observed pixels) of all 8 images, and p(x̃)."""
        images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=self.p.dtype)
        prior = torch.tensor([0.3, 0.7], dtype=self.p.dtype)
        clean = (prior * dist.Bernoulli(self.p).log_prob(images[:, None]).sum(-1).exp()).sum(-1)
        agree = images == seen
        noise = torch.where(agree, 1 - flip, flip)
        joint = clean * torch.where(observed, noise, 1.0).prod(-1)
        return images, joint / joint.sum(), joint.sum()


@pytest.mark.parametrize("flip", [0.0, 0.2])
@pytest.mark.parametrize("observed", [[True, True, True], [True, False, True]])
def test_flips_against_enumeration(flip, observed):
    program, observed = Coins(), torch.tensor(observed)
    x = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    noise = queries.Flip(flip) if flip else None
    result = queries.impute(
        program, x, observed=observed, noise=noise, draws=5000, num_samples=5000
    )
    for n, seen in enumerate(x):
        images, posterior, evidence = program.posterior(seen, observed, flip)
        error = float(result.log_evidence_variance[n].sqrt())
        assert float(result.log_evidence[n]) == pytest.approx(float(evidence.log()), abs=5 * error)
        counts = (result.x[:, n, None] == images).all(-1).double().mean(0)
        size = 1 / (1 / float(result.ess[n]) + 1 / 5000)
        # 64 frequencies at 5 errors: a false alarm in 30000
        spread = (posterior * (1 - posterior) / size).sqrt()
        assert ((counts - posterior).abs() <= 5 * spread + 1e-12).all()
        assert torch.allclose(result.mean[n], posterior @ images, atol=0.03)


def test_normal_noise_against_closed_form():
    program, scale = LinearGaussian(2, shift=0.2, inflate=1.2), 0.8
    clean = program.sample(4)
    seen = clean + scale * torch.randn_like(clean)
    result = queries.impute(
        program, seen, noise=queries.AdditiveNormal(scale), num_samples=20_000, draws=4000
    )
    joint = program.marginal.covariance_matrix
    noisy = joint + scale**2 * torch.eye(6, dtype=joint.dtype)
    truth = MultivariateNormal(program.b, noisy).log_prob(seen)
    error = result.log_evidence_variance.sqrt()
    assert ((result.log_evidence - truth).abs() < 5 * error).all()
    gain = joint @ torch.linalg.inv(noisy)
    mean, cov = program.b + (seen - program.b) @ gain.T, joint - gain @ joint
    size = 1 / (1 / result.ess + 1 / 4000)
    spread = (cov.diagonal() / size[:, None]).sqrt()
    # 24 means at 5 errors: a false alarm in 70000
    assert ((result.x.mean(0) - mean).abs() < 5 * spread).all()
    assert torch.allclose(torch.cov(result.x[:, 0].T), cov, atol=0.1)


def test_a_flow_that_scores_only_its_own_draws():
    """Its proposals are weighed one component each; what is refitted replaces them."""
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
        fitted = queries.impute(vae, x, **options)
        simple = queries.impute((vae.model, own_prior), x, observed=observed, num_samples=20_000)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.num_samples == 3600  # without a prior among the proposals
    assert fitted.num_samples == 3640  # nor the guide: the refitted mixture and the prior
    # 3 comparisons at 5 errors: a false alarm in 10⁶
    error = (fitted.log_evidence_variance + simple.log_evidence_variance).sqrt()
    assert ((fitted.log_evidence - simple.log_evidence).abs() < 5 * error).all()
    # the untrained flow alone is too narrow for any error to be known, and says so
    assert len(fitted.unreliable) == 0 and len(result.unreliable) >= 2
    assert ((result.log_evidence - simple.log_evidence).abs() < 1.5).all()


def own_prior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


class Correlated(LinearGaussian):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            cov = torch.eye(6, dtype=x.dtype)
            pyro.sample("x", dist.MultivariateNormal(z @ self.W.T, cov), obs=x)


REFUSED = {
    "method": ({"method": "gibbs"}, "expected method to be 'importance' or 'hmc'; got 'gibbs'"),
    "options": ({"options": {"thin": 3}}, "expected method 'hmc' where options of HMC are given"),
    "mask of numbers": (
        {"observed": torch.ones(6)},
        r"expected observed to be booleans of shape \(3, 6\) or \(6,\); got torch.float32",
    ),
    "mask's shape": ({"observed": torch.ones(5, dtype=torch.bool)}, r"got torch.bool .*\(5,\)"),
    "defence": ({"defence": 1.0}, r"expected defence to be a fraction in \[0, 1\); got 1.0"),
    "rounds": ({"rounds": -1}, "expected rounds to be an integer ≥ 0; got -1"),
    "refit_steps": ({"refit_steps": 0.5}, "expected refit_steps to be an integer ≥ 0; got 0.5"),
    "fills": ({"fills": 0}, "expected fills to be a positive integer; got 0"),
    "too few": ({"num_samples": 10}, "expected num_samples ≥ 2 × fills; got 10 for 10 fills"),
    "flips of reals": (
        {"noise": queries.Flip(0.1)},
        "expected Bernoulli pixels for the noise Flip, .* got Normal: Flip goes with a Bernoulli",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    program = LinearGaussian(2)
    with pytest.raises(ValueError, match=message):
        queries.impute(program, program.sample(3), **options)


def test_pixels_that_depend_on_each_other_are_refused():
    program = Correlated(2)
    with pytest.raises(ValueError, match=r"whose pixels are independent .*; got MultivariateNorma"):
        queries.impute(program, program.sample(3), observed=OBSERVED)


@pytest.mark.parametrize("probability", [0.0, 0.6, -1.0])
def test_flips_out_of_range(probability):
    with pytest.raises(ValueError, match="expected a probability of flips in"):
        queries.Flip(probability)


def test_noise_out_of_range():
    with pytest.raises(ValueError, match="expected a scale of the noise > 0"):
        queries.AdditiveNormal(0.0)


def test_the_same_seed_gives_the_same_draws_and_leaves_the_generator():
    program = LinearGaussian(2)
    x = program.sample(3)
    before = torch.get_rng_state()
    first, second, other = (
        queries.impute(program, x, observed=OBSERVED, seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x) and not torch.equal(first.x, other.x)


def test_masks():
    shape = (1, 4, 6)
    every = torch.zeros(shape, dtype=torch.bool)
    every[0, ::2, ::2] = True
    assert torch.equal(queries.mask("every:2", shape), every)
    for word, rows in {"lower-half": [1, 1, 0, 0], "upper-half": [0, 0, 1, 1]}.items():
        assert queries.mask(word, shape)[0].all(1).tolist() == rows
        assert queries.mask(word, shape)[0].any(1).tolist() == rows
    for word, columns in {
        "left-half": [0, 0, 0, 1, 1, 1],
        "right-half": [1, 1, 1, 0, 0, 0],
    }.items():
        assert queries.mask(word, shape)[0].all(0).tolist() == columns
        assert queries.mask(word, shape)[0].any(0).tolist() == columns
    assert queries.mask("none", (3,)).all()
    # 10⁴ pixels: 5 binomial errors
    share = queries.mask("random:0.3", (100, 100)).double().mean()
    assert abs(float(share) - 0.7) < 0.023


def test_independent_pixels_are_scored_by_their_moments():
    train = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    x, observed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([False, False])
    # (n₁ + ½) / (n + 1)
    expected = [math.log(1.5 / 4) + math.log(0.5 / 4), math.log(2.5 / 4) + math.log(3.5 / 4)]
    assert queries.score_pixelwise(train, x, observed).tolist() == pytest.approx(expected)
    real = torch.randn(50, 2)
    one = queries.score_pixelwise(real, real[:3], torch.tensor([True, False]))
    normal = torch.distributions.Normal(real[:, 1].mean(), real[:, 1].std(correction=0))
    assert torch.allclose(one, normal.log_prob(real[:3, 1]))
    with pytest.raises(ValueError, match=r"expected 0/1 or real numbers; got .* levels"):
        queries.score_pixelwise(torch.arange(6.0).reshape(3, 2), x, observed)
