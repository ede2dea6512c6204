"""The library size of counts: decoded, or observed in the datum itself."""

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


def _inflated(x, rate, r, gate):
    return gate * (x == 0) + (1 - gate) * _negative_binomial(x, rate, r, gate)


FAMILIES = {
    "Poisson": _poisson,
    "NegativeBinomial": _negative_binomial,
    "ZeroInflatedNegativeBinomial": _inflated,
}
each = pytest.mark.parametrize("name", FAMILIES)


def _made(name, library):
    p = getattr(likelihoods, name)(2, (2, 3), SMALL, library=library).double()
    if name != "Poisson":
        torch.nn.init.normal_(p.log_total_count)
    return p


def _expected(p, name, z, totals):
    """log p(x | z, ℓ) of each datum of X, slowly, with the given totals."""
    r = p.log_total_count.exp().numpy() if name != "Poisson" else None
    inflated = name.startswith("Zero")
    result = []
    for x, point, total in zip(X.numpy(), z, totals, strict=True):
        outputs = p.network(point).numpy()
        f = outputs if outputs.ndim == 2 else outputs[0]
        gate = special.expit(outputs[1]) if inflated else None
        rate = total * np.exp(f) / np.exp(f).sum()
        result.append(np.log(FAMILIES[name](x, rate, r, gate)).sum())
    return np.array(result)


@each
@torch.no_grad()
def test_decoded(name):
    p, z = _made(name, "decoded"), torch.randn(2, 2).double()
    # the last row of outputs says log ℓ in its mean
    totals = [float(p.network(point)[-1].mean().exp()) for point in z]
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, totals))
    if not name.startswith("Zero"):  # a gate takes from the mean
        np.testing.assert_allclose(p(z).mean.sum((-1, -2)), totals)


@each
@torch.no_grad()
def test_observed(name):
    p, z = _made(name, "observed"), torch.randn(2, 2).double()
    # a datum without counts is taken for one of total 1
    np.testing.assert_allclose(p(z).log_prob(X), _expected(p, name, z, [17.0, 1.0]))
    # every particle sees the same totals
    wide = torch.randn(4, 3, 2, 2).double()
    np.testing.assert_allclose(
        p(wide).log_prob(X)[3, 1], _expected(p, name, wide[3, 1], [17.0, 1.0])
    )


@each
@torch.no_grad()
def test_draws_are_of_a_typical_total(name):
    p, z = _made(name, "observed"), torch.randn(3, 2).double()
    gate = p.network(z)[:, 1].sigmoid() if name.startswith("Zero") else torch.zeros(())
    share = (p(z).mean / (1 - gate)).sum((-1, -2))
    torch.testing.assert_close(share, torch.ones(3).double())  # 1 before it has seen data
    x = torch.zeros(5, 2, 3).double()
    x[:, 0, 0] = torch.tensor([0.0, 3.0, 400.0, 8.0, 6.0])
    p.init_from_data(x)
    p.init_from_data(10 * x)  # the second time it has no effect
    torch.testing.assert_close((p(z).mean / (1 - gate)).sum((-1, -2)), 6 * share)
    draws = p(z).sample((4000,))
    assert draws.shape == (4000, 3, 2, 3)
    error = draws.std(0) / 4000**0.5
    # 18 pixels at 5 standard errors: false alarm 1e-5
    assert ((draws.mean(0) - p(z).mean).abs() < 5 * error + 1e-3).all()
    twin = getattr(likelihoods, name)(2, (2, 3), SMALL, library="observed").double()
    twin.load_state_dict(p.state_dict())
    assert torch.equal(twin(z).mean, p(z).mean)


@each
@torch.no_grad()
def test_without_a_library_nothing_has_changed(name):
    p, z = _made(name, None), torch.randn(2, 2).double()
    assert p.network.out_shape == ((2, 2, 3) if name.startswith("Zero") else (2, 3))
    assert set(p.state_dict()) - {"log_total_count"} == {
        f"network.{n}" for n in p.network.state_dict()
    }
    outputs = p.network(z)
    f = outputs[:, 0].numpy() if name.startswith("Zero") else outputs.numpy()
    gate = special.expit(outputs[:, 1].numpy()) if name.startswith("Zero") else None
    r = p.log_total_count.exp().numpy() if name != "Poisson" else 1.0
    # the mean is exp(f) for Poisson and r exp(f) for the others
    expected = np.log(FAMILIES[name](X.numpy(), r * np.exp(f), r, gate)).sum((-1, -2))
    np.testing.assert_allclose(p(z).log_prob(X), expected)


@each
def test_another_library_is_refused(name):
    message = "expected library to be None, 'decoded' or 'observed'; got 'given'"
    with pytest.raises(ValueError, match=message):
        getattr(likelihoods, name)(2, (3,), SMALL, library="given")


def test_library_takes_up_what_cells_differ_in_by_depth_alone():
    # the same profile at depths from 1 to 100: one share for all cells explains them
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
    assert elbos["observed"] > -10 > -30 > elbos[None]


class TestPoisson:
    def test_is_scipys_where_the_rate_underflows(self):
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
    def test_moments_and_draws(self):
        fn = distributions.Poisson(torch.tensor([-120.0, 0.5, 2.0])).expand((2, 3))
        assert fn.mean.shape == fn.sample().shape == (2, 3)
        draws = fn.sample((5000,))
        # 4 numbers at 5 standard errors: false alarm 1e-6
        error = fn.variance.sqrt() / 5000**0.5
        assert ((draws.mean(0) - fn.mean).abs() <= 5 * error).all()
        with pytest.raises(ValueError, match="support"):
            fn.log_prob(torch.full((3,), 0.5))


class TestNegativeBinomial:
    mean = torch.tensor([0.01, 5.0, 5000.0])

    def _fn(self, log_r, dtype=torch.float32):
        log_r = torch.full((3,), log_r, dtype=dtype)
        return distributions.NegativeBinomial(log_r, self.mean.to(dtype).log() - log_r)

    @pytest.mark.parametrize("log_r", [-30.0, -3.0, 0.0, 4.5, 4.7, 11.5, 16.1])
    def test_is_scipys_in_single_precision(self, log_r):
        x = torch.tensor([0.0, 1.0, 7.0, 5100.0])[:, None]
        fn = self._fn(log_r)
        # of the very numbers that it was given: log μ − log r is rounded
        f, r, counts = fn.logits.double().numpy(), np.exp(log_r), x.double().numpy()
        expected = special.gammaln(r + counts) - special.gammaln(r) - special.gammaln(counts + 1)
        expected = expected - counts * np.logaddexp(0, -f) - r * np.logaddexp(0, f)
        np.testing.assert_allclose(fn.log_prob(x), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("log_r", [11.5, 16.1, 30.0, 80.0, 100.0, 400.0, 1000.0])
    def test_sums_to_one_and_tends_to_poisson(self, log_r):
        x = torch.arange(6000.0)[:, None]
        for dtype in (torch.float32, torch.float64):
            fn = self._fn(log_r, dtype)
            log_p = fn.log_prob(x.to(dtype))
            total = log_p.double().exp().sum(0)
            torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=1e-4)
            if log_r >= 30:
                # rounding log μ − log r makes the mean of that Poisson another
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
            if log_r + logits < 80  # beyond, the mean is no float32
        ],
    )
    def test_gradients_are_never_nan(self, log_r, logits):
        log_r = torch.tensor(log_r, requires_grad=True)
        f = torch.tensor(logits, requires_grad=True)
        log_p = distributions.NegativeBinomial(log_r, f).log_prob(torch.tensor([0.0, 1.0, 50.0]))
        assert log_p.isfinite().all()
        for gradient in torch.autograd.grad(log_p.sum(), [log_r, f]):
            assert gradient.isfinite()

    def test_gradients_are_right_on_both_sides_of_stirling(self):
        for start in (-4.0, 3.0, 4.60, 4.61, 9.0):
            log_r = torch.tensor(start).double().requires_grad_()
            f = torch.tensor(0.3).double().requires_grad_()
            x = torch.tensor([0.0, 1.0, 40.0]).double()
            assert torch.autograd.gradcheck(
                lambda r, f, x=x: distributions.NegativeBinomial(r, f).log_prob(x), (log_r, f)
            )

    @pytest.mark.parametrize("log_r", [-2.0, 3.0, 200.0])
    @torch.no_grad()
    def test_draws(self, log_r):
        fn = self._fn(log_r, torch.float64)
        draws = fn.expand((2, 3)).sample((20_000,))
        assert draws.shape == (20_000, 2, 3)
        # 6 numbers at 5 standard errors: false alarm 4e-6
        error = fn.variance.sqrt() / 20_000**0.5
        assert ((draws.mean(0) - fn.mean).abs() < 5 * error).all()
        torch.testing.assert_close(draws.var(0)[0, 1], fn.variance[1], rtol=0.2, atol=0)

    @pytest.mark.parametrize("name", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
    def test_a_huge_dispersion_is_a_likelihood(self, name):
        p = getattr(likelihoods, name)(2, (3,), SMALL)
        torch.nn.init.constant_(p.log_total_count, 95.0)  # exp of it is no float32
        p.network.forward = lambda z: torch.full(p.network.out_shape, -93.0)
        log_p = p(torch.zeros(2)).log_prob(torch.tensor([0.0, 4.0, 9.0]))
        rate = np.exp(2.0)
        gate = special.expit(-93.0)
        expected = np.log(FAMILIES[name](np.array([0.0, 4.0, 9.0]), rate, 1e12, gate)).sum()
        assert float(log_p.detach()) == pytest.approx(expected, rel=1e-4)
        log_p.backward()
        assert p.log_total_count.grad.isfinite().all()


def test_starts_where_the_dispersion_makes_it_the_mean():
    # the mean is r exp(f): with r = 20 the start is another f than with r = 1
    x = torch.tensor([[2.0, 30.0], [4.0, 50.0]])
    for name, log_r in (("NegativeBinomial", 3.0), ("ZeroInflatedNegativeBinomial", -2.0)):
        p = getattr(likelihoods, name)(2, (2,), SMALL)
        torch.nn.init.constant_(p.log_total_count, log_r)
        outputs = p.outputs_for(x)
        f = outputs if name == "NegativeBinomial" else outputs[0]
        torch.testing.assert_close(f.detach(), x.mean(0).log() - log_r)
