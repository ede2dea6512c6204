"""Distributions and posteriors on the unit sphere."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from components import SMALL, small_vae
from scipy import stats

import pyro_vae as pv
from pyro_vae import distributions, posteriors, priors


class TestSphere:
    def test_power_spherical_against_scipy(self):
        # De Cao & Aziz: (1 + μᵀz)/2 ~ Beta((D − 1)/2 + κ, (D − 1)/2)
        loc = torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
        fn = distributions.PowerSpherical(loc, torch.tensor(7.0, dtype=torch.float64))
        cosine = fn.sample((4000,)) @ loc
        marginal = stats.beta(2 + 7, 2)
        # false alarm 1e-4
        assert stats.kstest(((1 + cosine) / 2).numpy(), marginal.cdf).pvalue > 1e-4
        # p(z) = p(cos) / (area of the circle of latitude)
        t = 0.3
        latitude = 2 * math.pi**2 / math.gamma(2) * (1 - t * t) ** ((5 - 3) / 2)
        z = t * loc + math.sqrt(1 - t * t) * _orthogonal(loc)
        expected = math.log(marginal.pdf((1 + t) / 2) / 2 / latitude)
        assert float(fn.log_prob(z)) == pytest.approx(expected)

    @pytest.mark.parametrize("dim", [2, 3, 20])
    @pytest.mark.parametrize("concentration", [0.5, 10.0, 2000.0])
    def test_sample_mean_matches_the_mean(self, dim, concentration):
        loc = torch.nn.functional.normalize(torch.randn(dim), dim=0)
        fn = distributions.PowerSpherical(loc, torch.tensor(concentration))
        z = fn.sample((20_000,))
        torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))
        error = z.std(0) / math.sqrt(len(z))
        # five standard errors plus float32 rounding
        assert bool(((z.mean(0) - fn.mean).abs() < 5 * error + 1e-5).all())
        assert bool(torch.isfinite(fn.log_prob(z)).all())

    @pytest.mark.parametrize("concentration", [0.5, 10.0, 300.0])
    def test_entropy_and_kl_are_expectations(self, concentration):
        loc = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0)
        q = distributions.PowerSpherical(loc, torch.tensor(concentration, dtype=torch.float64))
        p = distributions.UniformSphere(loc)
        z = q.sample((20_000,))
        log_q = q.log_prob(z)
        error = float(log_q.std()) / math.sqrt(len(z))
        assert abs(float(q.entropy() + log_q.mean())) < 5 * error
        kl = torch.distributions.kl_divergence(q, p)
        assert abs(float(kl - (log_q - p.log_prob(z)).mean())) < 5 * error
        assert float(p.entropy()) == pytest.approx(-float(p.log_prob(z[0])))

    def test_pathwise_gradient_by_concentration(self):
        # d E[μᵀz] / dκ is known: E[μᵀz] = κ/(κ + D − 1)
        kappa = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        loc = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
        z = distributions.PowerSpherical(loc, kappa).rsample((20_000,))
        gradients = [
            torch.autograd.grad((c @ loc).mean(), kappa, retain_graph=True)[0] for c in z.chunk(20)
        ]
        gradient = torch.stack(gradients)
        error = float(gradient.std()) / math.sqrt(len(gradients))
        assert abs(float(gradient.mean()) - 2 / (4 + 2) ** 2) < 5 * error

    def test_pathwise_gradient_with_the_mean_on_an_axis(self):
        # moving μ along the sphere rotates every sample with it: d E[z] / dμ = κ/(κ + D − 1)
        for axis in (1.0, -1.0):
            loc = torch.tensor([axis, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
            torch.manual_seed(0)
            unit = torch.nn.functional.normalize(loc, dim=0)
            z = distributions.PowerSpherical(unit, torch.tensor(5.0).double()).rsample((20_000,))
            gradient = torch.autograd.grad(z[:, 1].mean(), loc)[0][1]
            assert float(gradient) == pytest.approx(5 / 7, abs=0.03)

    @pytest.mark.parametrize(("dim", "concentration"), [(2, 1e5), (10, 1e5), (50, 1e6), (3, 0.3)])
    def test_float32_is_accurate(self, dim, concentration):
        torch.manual_seed(0)
        loc = torch.nn.functional.normalize(torch.randn(dim), dim=0)
        q = distributions.PowerSpherical(loc, torch.tensor(concentration))
        z = q.sample((100,))
        exact = distributions.PowerSpherical(
            torch.nn.functional.normalize(loc.double(), dim=0), torch.tensor(concentration).double()
        )
        on_sphere = torch.nn.functional.normalize(z.double(), dim=-1)
        # no more than the error from rounding the sample itself, κ ε |μ − z|
        error = q.log_prob(z).double() - exact.log_prob(on_sphere)
        assert float(error.abs().mean()) < 1e-2 and abs(float(error.mean())) < 3e-3
        kl, exact_kl = (
            torch.distributions.kl_divergence(f, distributions.UniformSphere(f.loc))
            for f in (q, exact)
        )
        assert float(kl) == pytest.approx(float(exact_kl), abs=1e-4)

    def test_concentration_is_at_least_one(self):
        q = posteriors.PowerSpherical((3,), 4, SMALL)
        q.network.forward = lambda x: torch.full((5,), -50.0)
        assert float(q(torch.zeros(3)).concentration) >= 1

    def test_uniform_samples_match_their_marginals(self):
        # each coordinate z_d on S^{D−1} has (z_d + 1)/2 ~ Beta((D − 1)/2, (D − 1)/2)
        z = distributions.UniformSphere(torch.zeros(4)).sample((4000,))
        assert z.shape == (4000, 4)
        for column in z.T:
            assert stats.kstest(((column + 1) / 2).numpy(), stats.beta(1.5, 1.5).cdf).pvalue > 1e-4

    def test_spherical_vae_trains(self):
        x = torch.bernoulli(torch.rand(1, 6)).expand(60, 6)
        vae = small_vae(priors.UniformSphere, latent_dim=3, event_shape=(6,))
        history = pv.fit(vae, x, epochs=60, optimizer=partial(torch.optim.Adam, lr=0.02))
        # with 60 copies of one example log p(x) → 0
        assert history["elbo"][0] < -2 < -0.5 < history["elbo"][-1]


def _orthogonal(loc):
    other = torch.zeros_like(loc)
    other[0] = 1.0
    return torch.nn.functional.normalize(other - (other @ loc) * loc, dim=0)
