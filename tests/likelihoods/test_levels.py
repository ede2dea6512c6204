"""Likelihoods of levels: discretised logistics, mixtures and categoricals."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from components import SMALL
from scipy import stats

import pyro_vae as pv
from pyro_vae import distributions, likelihoods

LOGISTICS = {
    "one": likelihoods.DiscretizedLogistic,
    "mixture": likelihoods.MixtureOfDiscretizedLogistics,
}


def _log_probs(levels, loc, log_scale):
    """Return log P of all levels, ``(levels + 1, *batch)``."""
    fn = distributions.DiscretizedLogistic(loc, log_scale, levels)
    values = torch.arange(levels + 1, dtype=loc.dtype).reshape(-1, *[1] * loc.ndim)
    return fn.log_prob(values)


class TestDiscretizedLogistic:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_sums_to_one_at_any_scale(self, dtype):
        # from a point mass on or between levels to all mass in the tails
        loc = torch.tensor([-1e4, -3.0, 0.0, 0.5, 100.3, 127.5, 254.9, 255.0, 1e4], dtype=dtype)
        log_scale = torch.tensor([-80, -40, -10, -3, -1, 0, 1, 3, 6, 10, 30, 80], dtype=dtype)
        log_p = _log_probs(255, *torch.meshgrid(loc, log_scale, indexing="ij"))
        assert (log_p <= 0).all()
        total = log_p.double().exp().sum(0)
        # every term is rounded once or twice
        exact = torch.ones_like(total)
        torch.testing.assert_close(total, exact, rtol=0, atol=8 * torch.finfo(dtype).eps)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gradients_are_finite_and_correct_in_the_tails(self, dtype):
        loc = torch.tensor([-1e4, 0.0, 100.3, 127.5, 255.0, 1e4], dtype=dtype)
        log_scale = torch.tensor([-80, -40, -10, -3, 0, 3, 10, 30, 80], dtype=dtype)
        grid = [g.clone().requires_grad_() for g in torch.meshgrid(loc, log_scale, indexing="ij")]
        log_p = _log_probs(255, *grid)
        assert log_p.isfinite().all()
        for gradient in torch.autograd.grad(log_p.sum(), grid):
            assert gradient.isfinite().all()
        # far above the location, log P decreases as (j − ½ − μ) / s: slope 1 / s in μ
        loc = torch.tensor(10.0, dtype=dtype, requires_grad=True)
        fn = distributions.DiscretizedLogistic(loc, torch.tensor(0.01, dtype=dtype).log(), 255)
        (slope,) = torch.autograd.grad(fn.log_prob(torch.tensor(200.0, dtype=dtype)), loc)
        assert float(slope) == pytest.approx(100, rel=1e-5)

    def test_tails_where_the_difference_of_cdfs_underflows(self):
        # σ(b) − σ(a) is 0 in float64 here; the tail of a logistic is exp(−distance / scale)
        fn = distributions.DiscretizedLogistic(torch.tensor(10.0), torch.tensor(-3.0), 255)
        scale = math.exp(-3.0)
        expected = -(200 - 0.5 - 10) / scale + math.log1p(-math.exp(-1 / scale))
        assert float(fn.log_prob(torch.tensor(200.0))) == pytest.approx(expected, rel=1e-6)

    def test_tails_are_assigned_to_the_ends(self):
        loc, scale = torch.tensor(2.0).double(), torch.tensor(1.7).double()
        log_p = _log_probs(7, loc, scale.log())
        cdf = stats.logistic(2.0, 1.7).cdf
        assert float(log_p[0].exp()) == pytest.approx(cdf(0.5))
        assert float(log_p[-1].exp()) == pytest.approx(1 - cdf(6.5))

    def test_moments_match_the_probabilities(self):
        loc = torch.tensor([-3.0, 0.2, 3.3, 6.9, 20.0]).double()
        for log_scale in (-4.0, 0.0, 3.0):
            fn = distributions.DiscretizedLogistic(loc, torch.tensor(log_scale).double(), 7)
            p = _log_probs(7, loc, fn.log_scale).exp()
            levels = torch.arange(8.0).double()[:, None]
            mean = (p * levels).sum(0)
            torch.testing.assert_close(fn.mean, mean)
            torch.testing.assert_close(fn.variance, (p * (levels - mean) ** 2).sum(0))

    def test_values_outside_the_support_raise(self):
        fn = distributions.DiscretizedLogistic(torch.zeros(3), torch.zeros(3), 7)
        for x in (-1.0, 0.5, 8.0):
            with pytest.raises(ValueError, match="support"):
                fn.log_prob(torch.full((3,), x))


@torch.no_grad()
def test_network_outputs_of_order_one_span_the_levels():
    p = likelihoods.DiscretizedLogistic(1, (3,), SMALL, levels=200)
    outputs = torch.tensor([[-1.0, 0.0, 1.0], [-9.0, -9.0, -9.0]])
    p.network.forward = lambda z: outputs.expand(*z.shape[:-1], 2, 3)
    mean = p(torch.zeros(1)).mean
    torch.testing.assert_close(mean, torch.tensor([0.0, 100.0, 200.0]), atol=0.02, rtol=0)
    outputs[1] = 0.0  # the scale is half the range of levels
    mean = p(torch.zeros(1))
    assert float(mean.base_dist.log_scale[0].exp()) == pytest.approx(100)


@torch.no_grad()
def test_discretized_logistic_is_a_difference_of_cdfs():
    p = likelihoods.DiscretizedLogistic(2, (4,), SMALL, levels=9).double()
    z, x = torch.randn(2).double(), torch.tensor([0.0, 3.0, 8.0, 9.0]).double()
    f, g = p.network(z).numpy()
    expected = _cdf_differences(x.numpy(), 4.5 * (f + 1), 4.5 * np.exp(g), 9)
    assert float(p(z).log_prob(x)) == pytest.approx(np.log(expected).sum())


@torch.no_grad()
def test_mixture_is_a_mixture_of_differences_of_cdfs():
    p = likelihoods.MixtureOfDiscretizedLogistics(2, (4,), SMALL, levels=9, components=3).double()
    z, x = torch.randn(2).double(), torch.tensor([0.0, 3.0, 8.0, 9.0]).double()
    outputs = p.network(z).numpy()
    assert outputs.shape == (9, 4)
    weights = np.exp(outputs[:3]) / np.exp(outputs[:3]).sum(0)
    expected = sum(
        weights[k]
        * _cdf_differences(x.numpy(), 4.5 * (outputs[3 + k] + 1), 4.5 * np.exp(outputs[6 + k]), 9)
        for k in range(3)
    )
    assert float(p(z).log_prob(x)) == pytest.approx(np.log(expected).sum())


def _cdf_differences(x, loc, scale, levels):
    upper = np.where(x == levels, 1.0, stats.logistic.cdf(x + 0.5, loc, scale))
    return upper - np.where(x == 0, 0.0, stats.logistic.cdf(x - 0.5, loc, scale))


@torch.no_grad()
def test_categorical_is_a_softmax_per_pixel():
    p = likelihoods.Categorical(2, (2, 3), SMALL, levels=4).double()
    z = torch.randn(2).double()
    x = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]]).double()
    outputs = p.network(z).numpy()
    assert outputs.shape == (5, 2, 3)
    probabilities = np.exp(outputs) / np.exp(outputs).sum(0)
    expected = sum(np.log(probabilities[int(x[i, j]), i, j]) for i in range(2) for j in range(3))
    assert float(p(z).log_prob(x)) == pytest.approx(expected)
    mean = (probabilities * np.arange(5)[:, None, None]).sum(0)
    np.testing.assert_allclose(p(z).mean, mean)
    np.testing.assert_allclose(p(z).expand((7,)).mean, np.stack([mean] * 7))
    # samples have the dtype of the data, so that an encoder accepts them
    assert p(z).sample().dtype == torch.float64


@torch.no_grad()
def test_mixture_components_are_initialised_differently():
    # identical components would have identical gradients
    p = likelihoods.MixtureOfDiscretizedLogistics(2, (4,), SMALL, levels=20, components=3)
    x = torch.randint(0, 21, (200, 4)).float()
    logits, _, log_scale = p.initial_outputs(x).reshape(3, 3, 4)
    assert (logits == 0).all()
    # a factor 2 apart, the middle one as wide as the data
    torch.testing.assert_close(log_scale.diff(dim=0), torch.full((2, 4), math.log(2)))
    deviation = 10 * log_scale[1].exp() * math.pi / math.sqrt(3)
    torch.testing.assert_close(deviation, x.std(0, correction=0))


@torch.no_grad()
def test_unseen_levels_have_positive_probability():
    p = likelihoods.Categorical(2, (2,), SMALL, levels=4)
    x = torch.tensor([[0.0, 4.0], [0.0, 3.0], [0.0, 4.0]])
    frequencies = p.initial_outputs(x).softmax(0)
    assert (frequencies > 0).all()
    torch.testing.assert_close(frequencies[:, 0], torch.tensor([3.2, 0.2, 0.2, 0.2, 0.2]) / 4)
    torch.testing.assert_close(frequencies[:, 1], torch.tensor([0.2, 0.2, 0.2, 1.2, 2.2]) / 4)


@pytest.mark.parametrize("name", ["Categorical", *(c.__name__ for c in LOGISTICS.values())])
def test_values_above_the_highest_level_raise(name):
    make = getattr(likelihoods, name)
    p = make(2, (3,), SMALL, levels=4)
    p.check(torch.tensor([[0.0, 3.0, 4.0]]))
    message = f"{name} with levels=4 scores 0 … 4; got a value of 5: set levels to the highest"
    with pytest.raises(ValueError, match=message):
        p.check(torch.tensor([[0.0, 5.0, 1.0]]))
    with pytest.raises(ValueError, match=f"{name} scores only counts .*: set data.values to integ"):
        p.check(torch.tensor([[0.0, 0.5, 1.0]]))
    with pytest.raises(ValueError, match="expected levels to be a positive integer; got 0"):
        make(2, (3,), SMALL, levels=0)


def test_mixture_needs_components():
    with pytest.raises(ValueError, match="expected components to be a positive integer; got 0"):
        likelihoods.MixtureOfDiscretizedLogistics(2, (3,), SMALL, components=0)


@pytest.mark.parametrize("make", [likelihoods.Categorical, *LOGISTICS.values()])
def test_fits_bytes(make):
    # for 50 copies of one example, log P(x) → 0
    x = torch.tensor([[0.0, 17.0, 128.0, 254.0, 255.0]]).expand(50, 5)
    vae = pv.VAE((5,), 1, likelihood=make, encoder=SMALL, decoder=SMALL)
    # with a constant learning rate the locations jump by several levels per step, so a single
    # ELBO can be low; with the rate decayed to zero, 28 seeds ended between −2.5 and 0
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.03)  # noqa: E731
    decay = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=300)
    history = pv.fit(vae, x, epochs=300, batch_size=50, optimizer=optimizer, schedule=decay)
    assert history["elbo"][0] < -20
    assert history["elbo"][-1] > -5
