"""The contract of every prior, likelihood, posterior and network."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from components import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS, SMALL, bound_prior
from scipy import stats

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.data import Kind

FAMILIES = {priors: PRIORS, likelihoods: LIKELIHOODS, posteriors: POSTERIORS, networks: NETWORKS}


@pytest.mark.parametrize("module", FAMILIES, ids=lambda m: m.__name__)
def test_every_component_is_listed(module):
    public = {n for n in module.__all__ if not inspect.isabstract(getattr(module, n))}
    listed = {name.split(",")[0].split(" ")[0] for name in FAMILIES[module]}
    assert public == listed


@torch.no_grad()
def _integral(fn, low=-12.0, high=12.0, points=1201, dims=1):
    """∫ exp(log p) over a grid, by the trapezoid rule."""
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    weights = torch.full((points,), float(axis[1] - axis[0]), dtype=torch.float64)
    weights[[0, -1]] /= 2
    weights = torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1)
    return float((fn.log_prob(grid).exp() * weights).sum())


@torch.no_grad()
def _agrees(fn, draws, low=-12.0, high=12.0, points=4801):
    """Kolmogorov–Smirnov of 1-D samples against the integrated density.

    False alarm 1e-4 for each call.
    """
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    density = fn.log_prob(axis[:, None]).exp()
    cdf = torch.cumsum(density, 0).numpy() * float(axis[1] - axis[0])
    return stats.kstest(draws, lambda v: np.interp(v, axis.numpy(), cdf)).pvalue > 1e-4


def _counts_agree(draws, probabilities):
    """χ² of discrete samples, rare values pooled. False alarm 1e-4 for each call."""
    order = probabilities.argsort(descending=True)
    common = order[probabilities[order] * len(draws) >= 5]
    seen = torch.stack([(draws == value).sum() for value in common]).double()
    expected = probabilities[common] * len(draws)
    rest = len(draws) - torch.stack([seen.sum(), expected.sum()])
    if rest[1] > 1:
        seen, expected = torch.cat([seen, rest[:1]]), torch.cat([expected, rest[1:]])
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return stats.chi2.sf(statistic, len(seen) - 1) > 1e-4


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
class TestPriors:
    @pytest.mark.parametrize("latent_dim", [1, 2])
    def test_density_integrates_to_one(self, make, latent_dim):
        prior, posterior = bound_prior(make, latent_dim)
        prior.double(), posterior.double()
        points = 2401 if latent_dim == 1 else 481
        assert _integral(prior(), points=points, dims=latent_dim) == pytest.approx(1, abs=2e-3)

    def test_samples_agree_with_density(self, make):
        prior, posterior = bound_prior(make, 1)
        prior.double(), posterior.double()
        draws = prior().sample((2000,))
        assert draws.shape == (2000, 1)
        assert _agrees(prior(), draws[:, 0].detach().numpy())

    def test_gradients_reach_every_parameter(self, make):
        prior, _ = bound_prior(make)
        assert prior().batch_shape == () and prior().event_shape == (2,)
        prior().log_prob(torch.randn(50, 2, requires_grad=True)).sum().backward()
        for name, parameter in prior.named_parameters():
            # a mixture of one has nothing to weigh
            if not (name == "logits" and len(parameter) == 1):
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    def test_in_a_vae_nothing_is_registered_twice(self, make):
        vae = pv.VAE((3,), 2, prior=make, encoder=SMALL, decoder=SMALL)
        assert not [k for k in vae.state_dict() if k.startswith("prior") and "posterior" in k]
        other = pv.VAE((3,), 2, prior=make, encoder=SMALL, decoder=SMALL)
        other.load_state_dict(vae.state_dict())
        x = torch.bernoulli(torch.full((4, 3), 0.5))
        values = [pv.evaluate(v, x, num_samples=20).elbo for v in (vae, other)]
        assert values[0] == values[1]


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
class TestPosteriors:
    def test_contract(self, make):
        q = make((2, 3), 4, SMALL)
        for batch in ((), (5,), (7, 5)):
            fn = q(torch.randn(*batch, 2, 3))
            assert fn.has_rsample
            assert fn.batch_shape == batch and fn.event_shape == (4,)
            assert fn.rsample().shape == (*batch, 4)
        fn = q(torch.randn(5, 2, 3))
        fn.log_prob(fn.rsample()).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in q.parameters())

    def test_density_and_samples(self, make):
        q = make((3,), 1, SMALL).double()
        fn = q(torch.randn(3, dtype=torch.float64))
        assert _integral(fn) == pytest.approx(1, abs=1e-3)
        assert _agrees(fn, fn.sample((2000,))[:, 0].detach().numpy())


@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
class TestLikelihoods:
    def test_contract(self, make):
        p = make(4, (2, 3), SMALL)
        for batch in ((), (5,), (7, 5)):
            fn = p(torch.randn(*batch, 4))
            assert fn.batch_shape == batch and fn.event_shape == (2, 3)
        fn = p(torch.randn(50, 4))
        x = fn.sample()
        p.check(x)
        fn.log_prob(x).sum().backward()
        for name, parameter in p.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    @torch.no_grad()
    def test_density_and_samples(self, make):
        p = make(2, (1,), SMALL).double()
        fn = p(torch.randn(2, dtype=torch.float64))
        draws = fn.sample((2000,))[:, 0]
        if p.support in (Kind.BINARY, Kind.COUNTS):
            top = getattr(p, "levels", 1 if p.support is Kind.BINARY else 400)
            values = torch.arange(top + 1, dtype=torch.float64)[:, None]
            probabilities = fn.log_prob(values).exp()
            assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
            assert _counts_agree(draws.long(), probabilities)
        else:
            low, high = (0.0, 1.0) if p.support is Kind.UNIT else (-40.0, 40.0)
            # a Student t with few degrees of freedom has 1e-4 beyond ±40
            assert _integral(fn, low, high, 16_001) == pytest.approx(1, abs=1e-3)
            assert _agrees(fn, draws.numpy(), low, high, 16_001)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        vae = pv.VAE((3,), 2, likelihood=make, encoder=SMALL, decoder=SMALL).to(dtype)
        x = torch.bernoulli(torch.full((4, 3), 0.5, dtype=dtype))
        log_w = pv.log_weights(vae.model, vae.guide, x, num_samples=3)
        assert log_w.dtype == dtype


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks(make):
    network = make((2, 3), (4, 1))
    x = torch.randn(7, 5, 2, 3)
    out = network(x)
    assert out.shape == (7, 5, 4, 1)
    # every batch element by itself
    torch.testing.assert_close(network(x[3, 2]), out[3, 2])
    with pytest.raises(ValueError, match=r"shape \(…, 2, 3\); got \(5, 3, 2\)"):
        network(torch.randn(5, 3, 2))


@pytest.mark.parametrize(
    ("prior", "posterior"), list(itertools.product(PRIORS.values(), POSTERIORS.values()))
)
def test_both_kl_estimators_agree(prior, posterior):
    # in expectation: 4000 particles each, at 5 standard errors (false alarm < 1e-5)
    vae = pv.VAE((3,), 2, prior, posterior=posterior, encoder=SMALL, decoder=SMALL).double()
    x = torch.bernoulli(torch.full((1, 3), 0.5, dtype=torch.float64))
    pyro.set_rng_seed(0)
    values = []
    for analytic in (False, True):
        elbo = pv.objectives.ELBO(num_particles=4000, analytic_kl=analytic)
        values.append(-elbo.loss(vae.model, vae.guide, x))
    spread = float(pv.log_weights(vae.model, vae.guide, x, num_samples=4000).std())
    assert abs(values[0] - values[1]) < 5 * spread * math.sqrt(2 / 4000)


class TestReferences:
    """Against slow, obvious formulas."""

    @torch.no_grad()
    def test_mixture_of_normals(self):
        prior = priors.MixtureOfNormals(2, components=3).double()
        prior.logits.copy_(torch.randn(3)), prior.log_scale.copy_(torch.randn(3, 2))
        z = torch.randn(6, 2, dtype=torch.float64)
        weights = prior.logits.detach().softmax(0).numpy()
        loc, scale = prior.loc.detach().numpy(), prior.log_scale.detach().exp().numpy()
        for point in z.numpy():
            density = sum(
                w * np.prod(stats.norm.pdf(point, m, s))
                for w, m, s in zip(weights, loc, scale, strict=True)
            )
            assert float(prior().log_prob(torch.tensor(point))) == pytest.approx(math.log(density))

    @torch.no_grad()
    def test_vamp_prior(self):
        prior, posterior = bound_prior(PRIORS["VampPrior"], 2)
        z = torch.randn(2)
        densities = [float(posterior(u.clamp(0, 1)).log_prob(z).exp()) for u in prior.pseudo_inputs]
        assert float(prior().log_prob(z)) == pytest.approx(math.log(np.mean(densities)), rel=1e-5)

    @pytest.mark.parametrize("scale", [0.3, "learned", "per_pixel", "decoded"])
    @torch.no_grad()
    def test_gaussian(self, scale):
        p = likelihoods.Gaussian(2, (3,), SMALL, scale=scale, min_scale=0.05).double()
        if isinstance(p.log_scale, torch.nn.Parameter):
            torch.nn.init.normal_(p.log_scale)
        z, x = torch.randn(2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
        outputs = p.network(z).detach()
        sigma = {
            0.3: lambda: 0.3,
            "learned": lambda: 0.05 + math.exp(p.log_scale),
            "per_pixel": lambda: 0.05 + p.log_scale.detach().exp().numpy(),
            "decoded": lambda: 0.05 + outputs[1].exp().numpy(),
        }[scale]()
        expected = stats.norm.logpdf(x.numpy(), outputs[0].numpy(), sigma).sum()
        assert float(p(z).log_prob(x)) == pytest.approx(expected)

    @torch.no_grad()
    def test_counts(self):
        z, x = torch.randn(2, dtype=torch.float64), torch.tensor([0.0, 3.0, 7.0]).double()
        counts = x.numpy().astype(int)
        binomial = likelihoods.Binomial(2, (3,), SMALL, levels=16).double()
        expected = stats.binom.logpmf(counts, 16, binomial.network(z).sigmoid().numpy()).sum()
        assert float(binomial(z).log_prob(x)) == pytest.approx(expected)
        poisson = likelihoods.Poisson(2, (3,), SMALL).double()
        expected = stats.poisson.logpmf(counts, poisson.network(z).exp().numpy()).sum()
        assert float(poisson(z).log_prob(x)) == pytest.approx(expected)
        inflated = likelihoods.ZeroInflatedNegativeBinomial(2, (3,), SMALL).double()
        torch.nn.init.normal_(inflated.log_total_count)
        logits, gates = inflated.network(z)
        r, gate = inflated.log_total_count.exp().numpy(), gates.sigmoid().numpy()
        # scipy's p is the probability of stopping, ours of going on
        pmf = stats.nbinom.pmf(counts, r, 1 - logits.sigmoid().numpy())
        expected = np.log(gate * (counts == 0) + (1 - gate) * pmf).sum()
        assert float(inflated(z).log_prob(x)) == pytest.approx(expected)

    @torch.no_grad()
    def test_normals_with_correlations(self):
        x = torch.randn(3, dtype=torch.float64)
        z = torch.randn(4, dtype=torch.float64)
        full = posteriors.FullCovarianceNormal((3,), 4, SMALL).double()
        out = full.network(x).numpy()
        lower = np.tril(out[2:], -1) + np.diag(np.exp(out[1]))
        expected = stats.multivariate_normal.logpdf(z.numpy(), out[0], lower @ lower.T)
        assert float(full(x).log_prob(z)) == pytest.approx(expected)
        low = posteriors.LowRankNormal((3,), 4, SMALL, rank=2).double()
        out = low.network(x).numpy()
        covariance = out[2:].T @ out[2:] + np.diag(np.exp(2 * out[1]))
        expected = stats.multivariate_normal.logpdf(z.numpy(), out[0], covariance)
        assert float(low(x).log_prob(z)) == pytest.approx(expected)

    @torch.no_grad()
    def test_bernoulli(self):
        p = likelihoods.Bernoulli(2, (3,), SMALL).double()
        z, x = torch.randn(2, dtype=torch.float64), torch.tensor([0.0, 1.0, 1.0]).double()
        probability = p.network(z).sigmoid().detach().numpy()
        expected = stats.bernoulli.logpmf(x.numpy().astype(int), probability).sum()
        assert float(p(z).log_prob(x)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.StandardNormal(0), "expected latent_dim to be a positive integer; got 0"),
        (lambda: priors.MixtureOfNormals(2, 0), "expected components to be a positive integer"),
        (
            lambda: priors.VampPrior(2, interval=(1.0, 0.0)),
            "expected interval to be \\(low, high\\)",
        ),
        (
            lambda: likelihoods.Gaussian(2, (3,), SMALL, scale=-1.0),
            "expected scale to be a positive number, 'learned', 'per_pixel' or 'decoded'; got -1",
        ),
        (lambda: likelihoods.Gaussian(2, (3,), SMALL, scale="free"), "got 'free'"),
        (lambda: likelihoods.Gaussian(2, (3,), SMALL, min_scale=0.0), "expected min_scale > 0"),
        (lambda: priors.StudentT(2, df=0.0), "expected df > 0; got 0"),
        (lambda: likelihoods.StudentT(2, (3,), SMALL, df=1.0), "expected df > 1; got 1"),
        (lambda: likelihoods.Binomial(2, (3,), SMALL, levels=0), "expected levels to be a"),
        (lambda: posteriors.LowRankNormal((3,), 2, SMALL, rank=0), "expected rank to be a"),
        (lambda: networks.MLP((3,), (2,), hidden=(0,)), "expected every width in hidden"),
        (lambda: pv.VAE((3, 0), 2), "expected every size in event_shape"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_vamp_prior_must_be_bound():
    with pytest.raises(RuntimeError, match="call bind\\(posterior\\) first"):
        priors.VampPrior(2)()


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (
            "Bernoulli",
            torch.linspace(0, 1, 6).reshape(2, 3),
            r"Bernoulli scores only 0/1; got 6 levels \(values in \[0, 1\]\): set data.binarize",
        ),
        ("Bernoulli", torch.tensor([[0.0, 7.0, 255.0]]), r"got 3 levels \(integers 0…255\)"),
        ("Bernoulli", torch.tensor([[-1.0, 0.0, 1.0]]), r"real numbers from -1 to 1, 1 of them"),
        ("Poisson", torch.tensor([[0.0, -1.0, 1.0]]), r"Poisson scores only counts .*1 of them"),
        ("Binomial", torch.tensor([[0.0, 17.0, 1.0]]), r"levels=16 scores 0 … 16; got .* 17"),
        ("ContinuousBernoulli", torch.tensor([[0.0, 1.5, 1.0]]), r"only values in \[0, 1\]; got"),
        ("Gaussian", torch.tensor([[0.0, math.nan, 1.0]]), r"got 1 NaN or infinite of 3"),
    ],
)
def test_data_without_density_are_refused(likelihood, x, message):
    vae = pv.VAE((3,), 2, likelihood=LIKELIHOODS[likelihood], encoder=SMALL, decoder=SMALL)
    with pytest.raises(ValueError, match=message):
        vae.check(x)
    with pytest.raises(ValueError, match=message):
        pv.fit(vae, x, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(vae, x, num_samples=2)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 1), (3,), (0, 3)])
def test_data_of_another_shape_are_refused(shape):
    vae = pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL)
    with pytest.raises(ValueError, match=r"expected x.shape \(N ≥ 1, 3\); got \("):
        vae.check(torch.zeros(shape))
