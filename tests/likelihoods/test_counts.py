"""Likelihoods of counts, with a decoded or observed library size."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from components import SMALL
from scipy import special, stats

import pyro_vae as pv
from pyro_vae import distributions, likelihoods

X = torch.tensor([[[0.0, 2.0, 5.0], [1.0, 0.0, 9.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]).double()


def _poisson(x, rate, r, gate):
    return stats.poisson.pmf(x, rate)


def _negative_binomial(x, rate, r, gate):
    return stats.nbinom.pmf(x, r, r / (r + rate))


def _zero_inflated(x, rate, r, gate):
    return gate * (x == 0) + (1 - gate) * _negative_binomial(x, rate, r, gate)


PMFS = {
    "Poisson": _poisson,
    "NegativeBinomial": _negative_binomial,
    "ZeroInflatedNegativeBinomial": _zero_inflated,
}
each_likelihood = pytest.mark.parametrize("name", PMFS)


def _make(name, library):
    p = getattr(likelihoods, name)(2, (2, 3), SMALL, library=library).double()
    if name != "Poisson":
        torch.nn.init.normal_(p.log_total_count)
    return p


def _expected(p, name, z, totals):
    """Compute log p(x | z, ℓ) of each example in X with the given totals, by SciPy."""
    r = p.log_total_count.exp().numpy() if name != "Poisson" else None
    is_inflated = name.startswith("Zero")
    result = []
    for x, point, total in zip(X.numpy(), z, totals, strict=True):
        outputs = p.network(point).numpy()
        f = outputs if outputs.ndim == 2 else outputs[0]
        gate = special.expit(outputs[1]) if is_inflated else None
        rate = total * np.exp(f) / np.exp(f).sum()
        result.append(np.log(PMFS[name](x, rate, r, gate)).sum())
    return np.array(result)


@each_likelihood
@torch.no_grad()
def test_decoded_library(name):
    p, z = _make(name, "decoded"), torch.randn(2, 2).double()
    # log ℓ is the mean of the last row of outputs
    totals = [float(p.network(point)[-1].mean().exp()) for point in z]
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, totals))
    if not name.startswith("Zero"):  # the gate lowers the mean
        np.testing.assert_allclose(p(z).mean.sum((-1, -2)), totals)


@each_likelihood
@torch.no_grad()
def test_observed_library(name):
    p, z = _make(name, "observed"), torch.randn(2, 2).double()
    # the total of an all-zero example is 1
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, [17.0, 1.0]))
    # the totals are the same for all particles
    particles = torch.randn(4, 3, 2, 2).double()
    np.testing.assert_allclose(
        p(particles).log_prob(X)[3, 1], _expected(p, name, particles[3, 1], [17.0, 1.0])
    )


@each_likelihood
@torch.no_grad()
def test_samples_have_the_typical_total(name):
    p, z = _make(name, "observed"), torch.randn(3, 2).double()
    gate = p.network(z)[:, 1].sigmoid() if name.startswith("Zero") else torch.zeros(())
    share = (p(z).mean / (1 - gate)).sum((-1, -2))
    torch.testing.assert_close(share, torch.ones(3).double())  # 1 before initialisation
    x = torch.zeros(5, 2, 3).double()
    x[:, 0, 0] = torch.tensor([0.0, 3.0, 400.0, 8.0, 6.0])
    p.init_from_data(x)
    p.init_from_data(10 * x)  # no effect the second time
    torch.testing.assert_close((p(z).mean / (1 - gate)).sum((-1, -2)), 6 * share)
    samples = p(z).sample((4000,))
    assert samples.shape == (4000, 3, 2, 3)
    error = samples.std(0) / 4000**0.5
    # 18 pixels at 5 standard errors: false-alarm rate 1e-5
    assert ((samples.mean(0) - p(z).mean).abs() < 5 * error + 1e-3).all()
    twin = getattr(likelihoods, name)(2, (2, 3), SMALL, library="observed").double()
    twin.load_state_dict(p.state_dict())
    assert torch.equal(twin(z).mean, p(z).mean)


@each_likelihood
@torch.no_grad()
def test_without_a_library_the_mean_is_the_exponential(name):
    p, z = _make(name, None), torch.randn(2, 2).double()
    assert p.network.out_shape == ((2, 2, 3) if name.startswith("Zero") else (2, 3))
    assert set(p.state_dict()) - {"log_total_count"} == {
        f"network.{n}" for n in p.network.state_dict()
    }
    outputs = p.network(z)
    f = outputs[:, 0].numpy() if name.startswith("Zero") else outputs.numpy()
    gate = special.expit(outputs[:, 1].numpy()) if name.startswith("Zero") else None
    r = p.log_total_count.exp().numpy() if name != "Poisson" else 1.0
    # the mean is exp(f) for Poisson and r exp(f) for the others
    expected = np.log(PMFS[name](X.numpy(), r * np.exp(f), r, gate)).sum((-1, -2))
    np.testing.assert_allclose(p(z).log_prob(X), expected)


@each_likelihood
def test_invalid_library_raises(name):
    message = "expected library to be None, 'decoded' or 'observed'; got 'given'"
    with pytest.raises(ValueError, match=message):
        getattr(likelihoods, name)(2, (3,), SMALL, library="given")


def test_observed_library_explains_variation_in_depth():
    # one profile at depths from 1 to 100: the same shares for all cells explain the data
    depth = torch.logspace(0, 2, 400)[:, None]
    x = torch.poisson(depth * torch.tensor([[0.1, 0.3, 0.6]]))
    elbos = {}
    for library in (None, "observed"):
        torch.manual_seed(0)
        vae = pv.VAE(
            (3,),
            1,
            likelihood=partial(likelihoods.Poisson, library=library),
            encoder=SMALL,
            decoder=SMALL,
        )
        pv.fit(vae, x, epochs=5, batch_size=50)
        elbos[library] = pv.evaluate(vae, x, num_samples=10).elbo
    # over four seeds: −11 to −6 observed, −46 to −41 without
    assert elbos["observed"] > -15 > -30 > elbos[None]


class TestPoisson:
    def test_log_prob_where_the_rate_underflows(self):
        f = torch.tensor([-120.0, -104.0, -104.0, 3.0, 12.0], requires_grad=True)
        x = torch.tensor([3.0, 0.0, 1.0, 17.0, 162_000.0])
        log_p = distributions.Poisson(f).log_prob(x)
        with torch.no_grad():
            rate = f.double().exp()
            expected = x.double() * f.double() - rate - (x.double() + 1).lgamma()
        torch.testing.assert_close(log_p, expected.float(), rtol=1e-6, atol=1e-6)
        assert float(log_p[0].detach()) == pytest.approx(-361.79, abs=0.01)
        (gradient,) = torch.autograd.grad(log_p.sum(), f)
        torch.testing.assert_close(gradient, (x.double() - rate).float(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("library", [None, "decoded", "observed"])
    def test_extreme_outputs_have_finite_gradients(self, library):
        p = likelihoods.Poisson(1, (3,), SMALL, library=library)
        outputs = torch.tensor([-60.0, 0.0, 60.0])
        outputs = torch.stack([outputs, torch.zeros(3)]) if library == "decoded" else outputs
        outputs.requires_grad_()
        p.network.forward = lambda z: outputs
        log_p = p(torch.zeros(1)).log_prob(torch.tensor([2.0, 0.0, 5.0]))
        (gradient,) = torch.autograd.grad(log_p, outputs)
        assert log_p.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 0

    @torch.no_grad()
    def test_moments_and_samples(self):
        fn = distributions.Poisson(torch.tensor([-120.0, 0.5, 2.0])).expand((2, 3))
        assert fn.mean.shape == fn.sample().shape == (2, 3)
        samples = fn.sample((5000,))
        # 4 means at 5 standard errors: false-alarm rate 1e-6
        error = fn.variance.sqrt() / 5000**0.5
        assert ((samples.mean(0) - fn.mean).abs() <= 5 * error).all()
        with pytest.raises(ValueError, match="support"):
            fn.log_prob(torch.full((3,), 0.5))


class TestNegativeBinomial:
    mean = torch.tensor([0.01, 5.0, 5000.0])

    def _distribution(self, log_r, dtype=torch.float32):
        log_r = torch.full((3,), log_r, dtype=dtype)
        return distributions.NegativeBinomial(log_r, self.mean.to(dtype).log() - log_r)

    @pytest.mark.parametrize("log_r", [-30.0, -3.0, 0.0, 4.5, 4.7, 11.5, 16.1])
    def test_matches_scipy_in_single_precision(self, log_r):
        x = torch.tensor([0.0, 1.0, 7.0, 5100.0])[:, None]
        fn = self._distribution(log_r)
        # for the rounded value of log μ − log r
        f, r, counts = fn.logits.double().numpy(), np.exp(log_r), x.double().numpy()
        expected = special.gammaln(r + counts) - special.gammaln(r) - special.gammaln(counts + 1)
        expected = expected - counts * np.logaddexp(0, -f) - r * np.logaddexp(0, f)
        np.testing.assert_allclose(fn.log_prob(x), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("log_r", [11.5, 16.1, 30.0, 80.0, 100.0, 400.0, 1000.0])
    def test_sums_to_one_and_tends_to_poisson(self, log_r):
        x = torch.arange(6000.0)[:, None]
        for dtype in (torch.float32, torch.float64):
            fn = self._distribution(log_r, dtype)
            log_p = fn.log_prob(x.to(dtype))
            total = log_p.double().exp().sum(0)
            torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=1e-4)
            if log_r >= 30:
                # the mean of the Poisson must include the rounding of log μ − log r
                poisson = distributions.Poisson(fn.logits + fn.log_total_count).log_prob(
                    x.to(dtype)
                )
                torch.testing.assert_close(log_p, poisson, rtol=1e-6, atol=1e-4)

    @pytest.mark.parametrize(
        ("log_r", "logits"),
        [
            (log_r, logits)
            for log_r in (-1000.0, -200.0, -90.0, 0.0, 4.605, 90.0, 200.0, 1000.0)
            for logits in (-1000.0, -200.0, -30.0, -20.0, 0.0, 30.0)
            if log_r + logits < 80  # beyond, the mean overflows float32
        ],
    )
    def test_gradients_are_never_nan(self, log_r, logits):
        log_r = torch.tensor(log_r, requires_grad=True)
        f = torch.tensor(logits, requires_grad=True)
        log_p = distributions.NegativeBinomial(log_r, f).log_prob(torch.tensor([0.0, 1.0, 50.0]))
        assert log_p.isfinite().all()
        for gradient in torch.autograd.grad(log_p.sum(), [log_r, f]):
            assert gradient.isfinite()

    def test_gradients_are_correct_on_both_sides_of_the_stirling_threshold(self):
        for start in (-4.0, 3.0, 4.60, 4.61, 9.0):
            log_r = torch.tensor(start).double().requires_grad_()
            f = torch.tensor(0.3).double().requires_grad_()
            x = torch.tensor([0.0, 1.0, 40.0]).double()
            assert torch.autograd.gradcheck(
                lambda r, f, x=x: distributions.NegativeBinomial(r, f).log_prob(x), (log_r, f)
            )

    @pytest.mark.parametrize("log_r", [-2.0, 3.0, 200.0])
    @torch.no_grad()
    def test_samples(self, log_r):
        fn = self._distribution(log_r, torch.float64)
        samples = fn.expand((2, 3)).sample((20_000,))
        assert samples.shape == (20_000, 2, 3)
        # 6 means at 5 standard errors: false-alarm rate 4e-6
        error = fn.variance.sqrt() / 20_000**0.5
        assert ((samples.mean(0) - fn.mean).abs() < 5 * error).all()
        torch.testing.assert_close(samples.var(0)[0, 1], fn.variance[1], rtol=0.2, atol=0)

    @pytest.mark.parametrize("name", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
    def test_huge_dispersion_is_finite(self, name):
        p = getattr(likelihoods, name)(2, (3,), SMALL)
        torch.nn.init.constant_(p.log_total_count, 95.0)  # its exponential overflows float32
        p.network.forward = lambda z: torch.full(p.network.out_shape, -93.0)
        log_p = p(torch.zeros(2)).log_prob(torch.tensor([0.0, 4.0, 9.0]))
        rate = np.exp(2.0)
        gate = special.expit(-93.0)
        expected = np.log(PMFS[name](np.array([0.0, 4.0, 9.0]), rate, 1e12, gate)).sum()
        assert float(log_p.detach()) == pytest.approx(expected, rel=1e-4)
        log_p.backward()
        assert p.log_total_count.grad.isfinite().all()


def test_initial_outputs_account_for_the_dispersion():
    # the mean is r exp(f), so the initial f depends on r
    x = torch.tensor([[2.0, 30.0], [4.0, 50.0]])
    for name, log_r in (("NegativeBinomial", 3.0), ("ZeroInflatedNegativeBinomial", -2.0)):
        p = getattr(likelihoods, name)(2, (2,), SMALL)
        torch.nn.init.constant_(p.log_total_count, log_r)
        outputs = p.initial_outputs(x)
        f = outputs if name == "NegativeBinomial" else outputs[0]
        torch.testing.assert_close(f.detach(), x.mean(0).log() - log_r)
