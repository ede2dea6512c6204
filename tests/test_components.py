"""Contract of all priors, likelihoods, posteriors and networks."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from components import (
    COMPATIBLE_PAIRS,
    INSIDE_UNIT,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    PRIORS,
    SMALL,
    data_for,
    small_vae,
)
from scipy import stats
from torch.distributions.transforms import ExpTransform, SigmoidTransform

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.data import Kind
from pyro_vae.distributions import ConditionedOnTotal

COMPONENTS = {priors: PRIORS, likelihoods: LIKELIHOODS, posteriors: POSTERIORS, networks: NETWORKS}


@pytest.mark.parametrize("module", COMPONENTS, ids=lambda m: m.__name__)
def test_every_component_is_listed(module):
    public = {n for n in module.__all__ if not inspect.isabstract(getattr(module, n))}
    listed = {name.split(",")[0].split(" ")[0] for name in COMPONENTS[module]}
    # the contract has examples of any shape, but Columns only vectors: tests/likelihoods/
    assert public - {"Columns"} == listed


@torch.no_grad()
def _integral(fn, low=-12.0, high=12.0, points=1201, dims=1):
    """Integrate exp(log p) over a grid with the trapezoidal rule."""
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    weights = torch.full((points,), float(axis[1] - axis[0]), dtype=torch.float64)
    weights[[0, -1]] /= 2
    weights = torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1)
    return float((fn.log_prob(grid).exp() * weights).sum())


@torch.no_grad()
def _samples_match_density(fn, samples, low=-12.0, high=12.0, points=4801):
    """Kolmogorov–Smirnov test of 1-D samples against the integrated density.

    False alarm 1e-4 per call.
    """
    axis = torch.linspace(low, high, points, dtype=torch.float64)
    density = fn.log_prob(axis[:, None]).exp()
    cdf = torch.cumsum(density, 0).numpy() * float(axis[1] - axis[0])
    return stats.kstest(samples, lambda v: np.interp(v, axis.numpy(), cdf)).pvalue > 1e-4


def _samples_match_probabilities(samples, probabilities):
    """χ² test of discrete samples, with rare values pooled. False alarm 1e-4 per call."""
    order = probabilities.argsort(descending=True)
    common = order[probabilities[order] * len(samples) >= 5]
    observed = torch.stack([(samples == value).sum() for value in common]).double()
    expected = probabilities[common] * len(samples)
    pooled = len(samples) - torch.stack([observed.sum(), expected.sum()])
    if pooled[1] > 1:
        observed = torch.cat([observed, pooled[:1]])
        expected = torch.cat([expected, pooled[1:]])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return stats.chi2.sf(statistic, len(observed) - 1) > 1e-4


def _noisy_data(likelihood, size):
    """Return data (size, 2, 3) for a likelihood: four random pixels and two constant ones."""
    discrete = likelihood.supported_kind in (Kind.BINARY, Kind.LEVELS, Kind.COUNTS)
    top = getattr(likelihood, "levels", 1 if likelihood.supported_kind is Kind.BINARY else 20)
    rates = torch.tensor([[0.3, 0.5, 0.6], [0.9, 1.0, 0.0]])
    x = torch.binomial(torch.full((size, 2, 3), float(top)), rates.expand(size, 2, 3))
    x = x if discrete else x / top
    return x.clamp(1e-3, 1 - 1e-3) if isinstance(likelihood, INSIDE_UNIT) else x


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
        p = make(2, (1,), SMALL).double().eval()
        fn = p(torch.randn(2, dtype=torch.float64))
        if isinstance(fn, ConditionedOnTotal):
            fn = fn.conditional(torch.tensor(7.0, dtype=torch.float64))
        if isinstance(p, likelihoods.Beta):
            # the density can be infinite at 0 and 1; that of the log odds is bounded
            fn = dist.TransformedDistribution(fn, SigmoidTransform().inv)
        if isinstance(p, likelihoods.LogNormal):
            fn = dist.TransformedDistribution(fn, ExpTransform().inv)
        samples = fn.sample((4000,))[:, 0]
        if p.supported_kind in (Kind.BINARY, Kind.LEVELS, Kind.COUNTS):
            top = getattr(p, "levels", 1 if p.supported_kind is Kind.BINARY else 400)
            values = torch.arange(top + 1, dtype=torch.float64)[:, None]
            probabilities = fn.log_prob(values).exp()
            assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
            assert _samples_match_probabilities(samples.long(), probabilities)
            assert float(fn.mean) == pytest.approx(float(probabilities @ values[:, 0]), rel=1e-6)
        else:
            low, high = (0.0, 1.0) if p.supported_kind is Kind.UNIT else (-40.0, 40.0)
            if isinstance(p, likelihoods.Beta):
                low, high = -30.0, 30.0  # beyond, x is rounded to 1
            # a Student t with few degrees of freedom has mass 1e-4 beyond ±40
            assert _integral(fn, low, high, 16_001) == pytest.approx(1, abs=1e-3)
            assert _samples_match_density(fn, samples.numpy(), low, high, 16_001)

    @torch.no_grad()
    def test_initial_mean_is_that_of_the_data(self, make):
        p = make(4, (2, 3), SMALL).eval()
        x = _noisy_data(p, 400)
        p.check(x)
        outputs = p.initial_outputs(x)
        assert outputs.shape == p.network.out_shape
        p.init_from_data(x)
        p.network.forward = lambda z: outputs.expand(*z.shape[:-1], *outputs.shape)
        mean = p(torch.randn(7, 4)).mean
        # most are clamped to 1e-3 from the ends, gates start at 1e-2, and two levels are coarse for
        # an integral; the mean of torch's ContinuousBernoulli is limited to [0.066, 0.934]
        tolerance = 0.07 if isinstance(p, likelihoods.ContinuousBernoulli) else 0.015
        expected = x.mean(0).expand_as(mean)
        torch.testing.assert_close(mean, expected, atol=tolerance * float(x.max()), rtol=0)

    @torch.no_grad()
    def test_any_particle_dimensions(self, make):
        p = make(4, (2, 3), SMALL).eval()
        z, x = torch.randn(3, 7, 5, 4), data_for(p, 5)
        log_p = p(z).log_prob(x)
        assert log_p.shape == (3, 7, 5)
        torch.testing.assert_close(log_p[2, 6, 1:2], p(z[2, 6, 1:2]).log_prob(x[1:2]))
        # a Pyro plate expands a distribution that does not depend on the particles
        expanded = p(z[0, 0]).expand((7, 5))
        assert expanded.batch_shape == (7, 5)
        assert expanded.mean.shape == expanded.sample().shape == (7, 5, 2, 3)
        torch.testing.assert_close(expanded.log_prob(x), p(z[0, 0]).log_prob(x).expand(7, 5))
        torch.testing.assert_close(expanded.mean[3], p(z[0, 0]).mean)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, make, dtype):
        vae = pv.VAE((3,), 2, likelihood=make, encoder=SMALL, decoder=SMALL).to(dtype)
        x = data_for(vae.likelihood, 4).to(dtype)
        log_w = pv.log_weights(vae.model, vae.guide, x, num_samples=3)
        assert log_w.dtype == dtype


@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((2, 3), (4, 1)), ((5,), (2, 3, 4))], ids=["encoder", "decoder"]
)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
class TestNetworks:
    def test_any_batch_dimensions(self, make, in_shape, out_shape):
        network = make(in_shape, out_shape)
        x = torch.randn(7, 5, *in_shape)
        assert network(x).shape == (7, 5, *out_shape)  # also updates the statistics of batch norm
        out = network.eval()(x)
        # batch elements are independent
        for index in ((), (3,), (3, 2), (slice(2, 2),)):
            torch.testing.assert_close(network(x[index]), out[index])
        expected = ", ".join(map(str, in_shape))
        with pytest.raises(ValueError, match=rf"shape \(…, {expected}\); got \(5, 9, 9\)"):
            network(torch.randn(5, 9, 9))

    def test_gradients_reach_every_parameter(self, make, in_shape, out_shape):
        network = make(in_shape, out_shape).double()
        network(torch.randn(50, *in_shape, dtype=torch.float64)).square().sum().backward()
        for name, parameter in network.named_parameters():
            # a gradient of zero (a bias before a norm) would leave rounding errors only
            assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-10, name

    def test_dtypes_and_state_dict(self, make, in_shape, out_shape):
        network, other = (make(in_shape, out_shape) for _ in range(2))
        network(torch.randn(50, *in_shape))
        x = torch.randn(5, *in_shape)
        expected = network.eval()(x)
        assert other.load_state_dict(network.state_dict()) and other.eval()
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        double = other.double()(x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), expected)


#: Flows and mixtures have no closed form: both estimators sample.
SIMPLE_PAIRS = [
    pair
    for pair in COMPATIBLE_PAIRS
    if not any(word in name for word in ("Flow", "Mixture", "Vamp") for name in pair)
]


@pytest.mark.parametrize(("prior", "posterior"), SIMPLE_PAIRS)
def test_both_kl_estimators_agree(prior, posterior):
    # in expectation: 4000 particles each, 5 standard errors (false alarm < 1e-5)
    vae = small_vae(PRIORS[prior], POSTERIORS[posterior]).double()
    for parameter in vae.posterior.parameters():
        torch.nn.init.normal_(parameter)  # far from the prior: a KL of several nats
    x = torch.bernoulli(torch.full((1, 3), 0.5, dtype=torch.float64))
    values = []
    vae.eval()
    for analytic in (False, True):
        pyro.set_rng_seed(0)
        elbo = pv.objectives.ELBO(num_particles=4000, analytic_kl=analytic)
        values.append(-elbo.loss(vae.model, vae.guide, x))
    spread = float(pv.log_weights(vae.model, vae.guide, x, num_samples=4000).std())
    assert abs(values[0] - values[1]) < 5 * spread * math.sqrt(2 / 4000)


class TestReferences:
    """Comparison with direct formulas in SciPy and NumPy."""

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
        vae = small_vae(PRIORS["VampPrior"])
        prior, posterior = vae.prior, vae.posterior
        z = torch.randn(2)
        densities = [float(posterior(u.clamp(0, 1)).log_prob(z).exp()) for u in prior.pseudo_inputs]
        assert float(prior().log_prob(z)) == pytest.approx(math.log(np.mean(densities)), rel=1e-5)

    @pytest.mark.parametrize("scale", [0.3, "learned", "per_pixel", "decoded", "decoded_variance"])
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
            "decoded_variance": lambda: 0.05 + np.sqrt(outputs[1].exp().numpy()),
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
        # scipy's p is 1 − probs of torch
        pmf = stats.nbinom.pmf(counts, r, 1 - logits.sigmoid().numpy())
        expected = np.log(gate * (counts == 0) + (1 - gate) * pmf).sum()
        assert float(inflated(z).log_prob(x)) == pytest.approx(expected)

    @torch.no_grad()
    def test_correlated_normals(self):
        x = torch.randn(3, dtype=torch.float64)
        z = torch.randn(4, dtype=torch.float64)
        full = posteriors.FullCovarianceNormal((3,), 4, SMALL).double()
        out = full.network(x).numpy()
        lower = np.tril(out[2:], -1) / 2 + np.diag(np.exp(out[1]))
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
            "expected scale to be a positive number, 'learned', 'per_pixel', 'decoded', "
            "'decoded_variance' or 'optimal'; got -1",
        ),
        (lambda: likelihoods.Gaussian(2, (3,), SMALL, scale="free"), "got 'free'"),
        (lambda: likelihoods.Gaussian(2, (3,), SMALL, min_scale=0.0), "expected min_scale > 0"),
        (lambda: priors.StudentT(2, df=0.0), "expected df > 0 and finite; got 0"),
        (lambda: likelihoods.StudentT(2, (3,), SMALL, df=1.0), "expected df > 1 and finite; got 1"),
        (lambda: likelihoods.Binomial(2, (3,), SMALL, levels=0), "expected levels to be a"),
        (lambda: posteriors.LowRankNormal((3,), 2, SMALL, rank=0), "expected rank to be a"),
        (lambda: networks.MLP((3,), (2,), hidden=(0,)), "expected every number in hidden"),
        (lambda: pv.VAE((3, 0), 2), "expected every number in event_shape"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unbound_vamp_prior_raises():
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
        ("Gaussian", torch.tensor([[0.0, math.inf, 1.0]]), r"got 1 infinite of 3"),
    ],
)
def test_data_without_density_raise(likelihood, x, message):
    vae = pv.VAE((3,), 2, likelihood=LIKELIHOODS[likelihood], encoder=SMALL, decoder=SMALL)
    with pytest.raises(ValueError, match=message):
        vae.check(x)
    with pytest.raises(ValueError, match=message):
        pv.fit(vae, x, epochs=1)
    with pytest.raises(ValueError, match=message):
        pv.evaluate(vae, x, num_samples=2)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 1), (3,), (0, 3)])
def test_data_of_another_shape_raise(shape):
    vae = pv.VAE((3,), 2, encoder=SMALL, decoder=SMALL)
    with pytest.raises(ValueError, match=r"expected x.shape \(N ≥ 1, 3\); got \("):
        vae.check(torch.zeros(shape))
