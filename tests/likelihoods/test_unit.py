"""Likelihoods of values in [0, 1]: Beta at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from components import SMALL
from scipy import special, stats

from pyro_vae import distributions, likelihoods


@torch.no_grad()
def test_beta_is_scipys():
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


def test_beta_refuses_the_ends_and_never_draws_them():
    p = likelihoods.Beta(2, (3,), SMALL)
    message = (
        r"Beta scores only values inside \(0, 1\); got 2 of 6 that are 0 or 1: dequantise the "
        r"data \(data.values: dequantized\), or use ContinuousBernoulli"
    )
    with pytest.raises(ValueError, match=message):
        p.check(torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]]))
    with pytest.raises(ValueError, match="Beta scores only values in"):
        p.check(torch.tensor([[0.5, 1.5, 0.2]]))
    # with so low a concentration most draws are nearer an end than numbers are
    p.network.forward = lambda z: torch.tensor([[0.0, 0.0, 0.0], [-4.0, -5.0, -6.0]])
    fn = p(torch.zeros(2))
    x = fn.sample((1000,))
    p.check(x)
    assert fn.log_prob(x).isfinite().all()


class TestContinuousBernoulli:
    logits = torch.tensor([-4000.0, -300.0, -16.0, -2.0, -1e-3, 0.0, 1e-6, 0.5, 17.0, 900.0])

    @staticmethod
    def _grid():
        """[0, 1], finest at both ends."""
        half = 0.5 * torch.logspace(-9, 0, 20_001, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        return torch.cat([zero, half, 1 - half.flip(0)[1:], 1 - zero])[:, None]

    def test_is_a_density_however_far_the_logit(self):
        # torch's own has an integral of 0.16 at a logit of −100
        x = self._grid()
        fn = distributions.ContinuousBernoulli(self.logits.double())
        density = fn.log_prob(x).exp()
        torch.testing.assert_close(
            torch.trapezoid(density, x, dim=0), torch.ones(10).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            torch.trapezoid(x * density, x, dim=0), fn.mean, atol=1e-6, rtol=1e-5
        )

    def test_single_precision_is_as_good(self):
        single = distributions.ContinuousBernoulli(self.logits)
        double = distributions.ContinuousBernoulli(self.logits.double())
        x = torch.tensor([0.0, 0.003, 0.4, 1.0])[:, None]
        torch.testing.assert_close(
            single.log_prob(x), double.log_prob(x.double()).float(), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(single.mean, double.mean.float(), rtol=1e-4, atol=1e-5)

    def test_is_torchs_where_that_is_right(self):
        logits = torch.linspace(-10, 10, 21, dtype=torch.float64)
        x = torch.rand(50, 21, dtype=torch.float64)
        ours = distributions.ContinuousBernoulli(logits)
        theirs = torch.distributions.ContinuousBernoulli(logits=logits)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-5, atol=1e-5)

    def test_draws(self):
        for logit in self.logits.double():
            fn = distributions.ContinuousBernoulli(logit)
            draws = fn.sample((3000,))
            cdf = self._cdf(float(logit))
            # false alarm 1e-4 each
            assert stats.kstest(draws.numpy(), cdf).pvalue > 1e-4

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
