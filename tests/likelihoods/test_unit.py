"""Likelihoods of values in [0, 1]: Beta, continuous Bernoulli and Bernoulli."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from components import SMALL
from scipy import special, stats

from pyro_vae import distributions, likelihoods
from pyro_vae.compiler.trace import trace_graph


@torch.no_grad()
def test_beta_matches_scipy():
    p = likelihoods.Beta(2, (3,), SMALL).double()
    z, x = torch.randn(2).double(), torch.tensor([1e-6, 0.3, 1 - 1e-9]).double()
    logit, log_concentration = p.network(z).numpy()
    mean, concentration = special.expit(logit), np.exp(log_concentration)
    expected = stats.beta.logpdf(x.numpy(), concentration * mean, concentration * (1 - mean))
    assert float(p(z).log_prob(x)) == pytest.approx(expected.sum())
    np.testing.assert_allclose(p(z).mean, mean)


def test_beta_with_an_extreme_mean_has_finite_gradients():
    p = likelihoods.Beta(1, (4,), SMALL)
    outputs = torch.tensor([[-200.0, -30.0, 30.0, 200.0], [0.0, 2.0, 4.0, 6.0]]).requires_grad_()
    p.network.forward = lambda z: outputs
    log_p = p(torch.zeros(1)).log_prob(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    (gradient,) = torch.autograd.grad(log_p, outputs)
    assert log_p.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("log_concentration", [7.0, 10.0, 11.9, 12.0, 88.0, 500.0])
def test_beta_integrates_to_one_at_any_concentration(log_concentration):
    p = likelihoods.Beta(1, (3,), SMALL)
    logits = torch.tensor([-3.0, 0.0, 2.0])
    outputs = torch.stack([logits, torch.full((3,), log_concentration)]).requires_grad_()
    p.network.forward = lambda z: outputs
    fn = p(torch.zeros(1)).base_dist
    deviation = fn.variance.sqrt().detach()
    assert (deviation > 2e-4).all()  # the concentration is bounded
    x = (fn.mean + torch.linspace(-8, 8, 2001)[:, None] * deviation).detach().clamp(1e-6, 1 - 1e-6)
    integral = torch.trapezoid(fn.log_prob(x).double().exp(), x.double(), dim=0)
    torch.testing.assert_close(integral, torch.ones(3).double(), atol=1e-3, rtol=0)
    (gradient,) = torch.autograd.grad(fn.log_prob(x[900]).sum(), outputs)
    assert gradient.isfinite().all() and (gradient[0] != 0).all()
    ones, zeros = fn.concentration1.double().detach(), fn.concentration0.double().detach()
    expected = stats.beta.logpdf(x.double().numpy(), ones.numpy(), zeros.numpy())
    np.testing.assert_allclose(fn.log_prob(x).detach(), expected, rtol=1e-5, atol=1e-4)


def test_beta_is_initialised_at_the_variance_of_the_data():
    x = stats.beta(6.0, 2.0).rvs((20_000, 2), random_state=np.random.default_rng(0))
    p = likelihoods.Beta(1, (2,), SMALL)
    logit, log_concentration = p.initial_outputs(torch.from_numpy(x))
    # κ = 8; for 20,000 examples its logarithm has a standard error of about 0.01
    np.testing.assert_allclose(log_concentration, np.log(8), atol=0.05)
    np.testing.assert_allclose(logit.sigmoid(), 0.75, atol=0.01)
    # the initial concentration of a constant pixel is at the upper bound
    constant = p.initial_outputs(torch.full((5, 2), 0.5))
    assert (constant[1] == 12).all()


def test_beta_rejects_the_ends_and_never_samples_them():
    p = likelihoods.Beta(2, (3,), SMALL)
    message = (
        r"Beta scores only values inside \(0, 1\); got 2 of 6 equal to 0 or 1: dequantise the "
        r"data \(data.values: dequantized\), or use ContinuousBernoulli"
    )
    with pytest.raises(ValueError, match=message):
        p.check(torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]]))
    with pytest.raises(ValueError, match="Beta scores only values in"):
        p.check(torch.tensor([[0.5, 1.5, 0.2]]))
    # at these low concentrations most samples round to an end
    p.network.forward = lambda z: torch.tensor([[0.0, 0.0, 0.0], [-4.0, -5.0, -6.0]])
    fn = p(torch.zeros(2))
    x = fn.sample((1000,))
    p.check(x)
    assert fn.log_prob(x).isfinite().all()


class TestContinuousBernoulli:
    logits = torch.tensor([-4000.0, -300.0, -16.0, -2.0, -1e-3, 0.0, 1e-6, 0.5, 17.0, 900.0])

    @staticmethod
    def _grid():
        """Return a grid on [0, 1], finest at both ends."""
        half = 0.5 * torch.logspace(-9, 0, 20_001, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.cat([zero, half, 1 - half.flip(0)[1:], 1 - zero])[:, None]

    def test_integrates_to_one_at_any_logit(self):
        # torch's implementation integrates to 0.16 at a logit of −100
        x = self._grid()
        fn = distributions.ContinuousBernoulli(self.logits.double())
        density = fn.log_prob(x).exp()
        torch.testing.assert_close(
            torch.trapezoid(density, x, dim=0), torch.ones(10).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            torch.trapezoid(x * density, x, dim=0), fn.mean, atol=1e-6, rtol=1e-5
        )

    def test_single_precision_is_accurate(self):
        single = distributions.ContinuousBernoulli(self.logits)
        double = distributions.ContinuousBernoulli(self.logits.double())
        x = torch.tensor([0.0, 0.003, 0.4, 1.0])[:, None]
        torch.testing.assert_close(
            single.log_prob(x), double.log_prob(x.double()).float(), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(single.mean, double.mean.float(), rtol=1e-4, atol=1e-5)

    def test_matches_torch_at_moderate_logits(self):
        logits = torch.linspace(-10, 10, 21, dtype=torch.float64)
        x = torch.rand(50, 21, dtype=torch.float64)
        ours = distributions.ContinuousBernoulli(logits)
        theirs = torch.distributions.ContinuousBernoulli(logits=logits)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-5, atol=1e-5)

    def test_samples(self):
        for logit in self.logits.double():
            fn = distributions.ContinuousBernoulli(logit)
            samples = fn.sample((3000,))
            cdf = self._cdf(float(logit))
            # false-alarm rate 1e-4 each
            assert stats.kstest(samples.numpy(), cdf).pvalue > 1e-4

    @staticmethod
    def _cdf(f):
        if f == 0:
            return lambda x: x
        if f > 0:
            return lambda x: (np.exp(f * (x - 1)) - np.exp(-f)) / -np.expm1(-f)
        return lambda x: np.expm1(f * x) / np.expm1(f)

    def test_gradients_are_finite_everywhere(self):
        logits = self.logits.clone().requires_grad_()
        fn = distributions.ContinuousBernoulli(logits)
        (gradient,) = torch.autograd.grad(fn.log_prob(torch.full((10,), 0.3)).sum(), logits)
        # d log p / d f = x − E[x]
        torch.testing.assert_close(gradient, 0.3 - fn.mean.detach(), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_mean_and_its_gradient_are_accurate_everywhere(self, dtype):
        near = torch.logspace(-9, 0.5, 400, dtype=torch.float64)
        logits = torch.cat([-near, near, self.logits.double()]).to(dtype).requires_grad_()
        mean = distributions.ContinuousBernoulli(logits).mean
        (slope,) = torch.autograd.grad(mean.sum(), logits)
        # E[x] = ½ + ½ coth(f/2) − 1/f and Var[x], as a series where the terms cancel
        f = logits.detach().double()
        g = torch.where(f.abs() < 0.02, 1.0, f)
        series = 0.5 + f / 12 - f**3 / 720 + f**5 / 30_240
        expected = torch.where(f.abs() < 0.02, series, 0.5 + 0.5 / torch.tanh(g / 2) - 1 / g)
        torch.testing.assert_close(
            mean.detach().double(), expected, rtol=0, atol=torch.finfo(dtype).eps ** 0.85
        )
        series = 1 / 12 - f**2 / 240 + f**4 / 6048
        variance = 1 / g**2 - 0.25 / torch.sinh(g.clamp(-700, 700) / 2) ** 2
        expected = torch.where(f.abs() < 0.02, series, variance)
        tolerance = 20 * torch.finfo(dtype).eps ** (2 / 3)
        torch.testing.assert_close(slope.double(), expected, rtol=1e-3, atol=tolerance)

    def test_samples_have_gradients_with_respect_to_the_logit(self):
        # d E[x] / df = Var[x], also where a sample is nearly the underlying uniform variable
        for logit in (0.0, 1e-6, -1e-3, 0.018, 0.02, -2.0):
            f = torch.tensor(logit, requires_grad=True)
            fn = distributions.ContinuousBernoulli(f)
            (slope,) = torch.autograd.grad(fn.rsample((20_000,)).mean(), f)
            (expected,) = torch.autograd.grad(fn.mean, f)
            # the standard error of u (1 − u) / 2 is 3e-4
            assert float(slope) == pytest.approx(float(expected), abs=1.5e-3)

    def test_expanded_distribution_validates_values(self):
        for fn in (
            distributions.ContinuousBernoulli(torch.zeros(3)),
            distributions.Poisson(torch.zeros(3)),
            distributions.NegativeBinomial(torch.zeros(3), torch.zeros(3)),
        ):
            with pytest.raises(ValueError, match="support"):
                fn.expand((2, 3)).log_prob(torch.full((2, 3), -1.0))


def _eager(x, logits, dims=1):
    return distributions.IndependentBernoulli(dist.Bernoulli(logits=logits), dims).log_prob(x)


def _traced(x, logits, dims=1):
    """Evaluate the log-probability in a traced graph, which takes fewer logarithms."""
    graph, constants = trace_graph(lambda x, logits: (_eager(x, logits, dims),), x, logits)
    return graph(x, logits, *constants)[0]


def _exact(x, logits):
    """Compute −log(1 + e^{−l}) for x = 1 and −log(1 + e^l) for x = 0, in float64 with NumPy."""
    x, logits = x.double().numpy(), logits.double().numpy()
    return -np.logaddexp(0, np.where(x > 0.5, -logits, logits)).sum(-1)


@pytest.mark.parametrize("log_prob", [_eager, _traced])
class TestIndependentBernoulli:
    @pytest.mark.parametrize("size", [1, 15, 16, 17, 50, 784])
    def test_is_the_sum_over_pixels(self, log_prob, size):
        logits, x = torch.randn(4, 3, size).double() * 5, torch.ones(3, size).double()
        x[:, ::3] = 0.0
        result = log_prob(x, logits)
        assert result.shape == (4, 3)
        np.testing.assert_allclose(result, _exact(x.expand(4, 3, size), logits), rtol=1e-13)

    def test_at_extreme_logits(self, log_prob):
        logits = torch.tensor([-100.0, 100.0, -88.0, 0.0, 40.0, -17.5] * 8)
        likely = (logits > 0).float()
        # the small contributions of nearly deterministic pixels must not be lost
        certain = torch.full((784,), -17.5)
        for x, at in ((likely, logits), (1 - likely, logits), (torch.zeros(784), certain)):
            np.testing.assert_allclose(log_prob(x, at), _exact(x, at), rtol=1e-6)
            np.testing.assert_allclose(log_prob(x.double(), at.double()), _exact(x, at), rtol=1e-14)

    def test_is_as_accurate_as_the_sum_over_pixels_in_float32(self, log_prob):
        logits = torch.randn(2000, 784) * 4 - 3
        x = torch.bernoulli(logits.sigmoid())
        plain = dist.Bernoulli(logits=logits).to_event(1).log_prob(x)
        errors = [
            np.abs(v.double().numpy() - _exact(x, logits)) for v in (plain, log_prob(x, logits))
        ]
        assert errors[1].mean() < 2 * errors[0].mean() and errors[1].max() < 2 * errors[0].max()

    def test_images_and_broadcast_data(self, log_prob):
        logits, x = torch.randn(2, 5, 4, 6).double(), torch.bernoulli(torch.rand(5, 4, 6)).double()
        expected = dist.Bernoulli(logits=logits).to_event(2).log_prob(x)
        torch.testing.assert_close(log_prob(x, logits, 2), expected)
        # data with more batch dimensions than the distribution
        expected = dist.Bernoulli(logits=logits[0, 0]).to_event(2).log_prob(x)
        torch.testing.assert_close(log_prob(x, logits[0, 0], 2), expected)
        pixels = dist.Bernoulli(logits=logits).log_prob(x)
        torch.testing.assert_close(log_prob(x, logits, 0), pixels)


def test_bernoulli_gradients_eager_and_traced():
    logits, x = torch.randn(3, 20).double() * 3, torch.bernoulli(torch.rand(20)).double()
    leaves = [logits.requires_grad_(), x.requires_grad_()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist.Bernoulli, "_validate_sample", lambda self, value: None)
        assert torch.autograd.gradcheck(lambda a, b: _eager(b, a), leaves)
        assert torch.autograd.gradgradcheck(lambda a, b: _eager(b, a), leaves)

    def gradient(logits, x):
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            return torch.autograd.grad(_eager(x, leaf).sum(), leaf)

    logits, x = logits.detach(), x.detach()
    logits[:, :5] = torch.tensor([-800.0, -40.0, 0.0, 40.0, 800.0])
    graph, constants = trace_graph(gradient, logits, x)
    expected = x - logits.sigmoid()
    torch.testing.assert_close(graph(logits, x, *constants)[0], expected)
    # per-example gradients with vmap
    per_example = torch.func.vmap(torch.func.grad(lambda at: _eager(x, at)))
    torch.testing.assert_close(per_example(logits), expected)


def test_bernoulli_is_a_distribution():
    p = likelihoods.Bernoulli(2, (2, 3), SMALL)
    fn = p(torch.randn(4, 2))
    assert (fn.batch_shape, fn.event_shape) == ((4,), (2, 3))
    expanded = fn.expand((5, 4))
    assert type(expanded) is distributions.IndependentBernoulli
    x = expanded.sample()
    assert x.shape == (5, 4, 2, 3) and set(x.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(expanded.log_prob(x), fn.log_prob(x))
    torch.testing.assert_close(fn.mean, fn.base_dist.logits.sigmoid())
    masked = fn.mask(torch.tensor([True, False, True, False]))
    assert (masked.log_prob(x)[:, 1] == 0).all()
    torch.testing.assert_close(masked.log_prob(x)[:, 2], fn.log_prob(x)[:, 2])
    with pytest.raises(ValueError, match="Expected value argument"):
        fn.log_prob(torch.full((4, 2, 3), 0.5))
