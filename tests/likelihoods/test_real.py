"""The optimal scale: best for a batch in training, a constant in evaluation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from components import SMALL
from scipy import stats

import pyro_vae as pv
from pyro_vae import likelihoods

#: The best scale of residuals, by likelihood: E|x − μ|^p to the power 1 / p.
BEST = {
    likelihoods.Gaussian: lambda r: r.square().mean().sqrt(),
    likelihoods.Laplace: lambda r: r.abs().mean(),
}
FAMILY = {likelihoods.Gaussian: stats.norm, likelihoods.Laplace: stats.laplace}
each = pytest.mark.parametrize("make", BEST, ids=lambda make: make.__name__)


def _optimal(make, **kwargs):
    return make(2, (2, 3), SMALL, scale="optimal", **kwargs).double()


def _location(p, z):
    return p.network(z)[..., 0, :, :]


@each
def test_training_uses_the_best_scale_of_all_that_is_scored(make):
    p = _optimal(make)
    # two particles: one scale for all of them
    z, x = torch.randn(2, 5, 2).double(), torch.randn(5, 2, 3).double()
    loc = _location(p, z).detach()
    scale = BEST[make](x - loc)
    expected = FAMILY[make].logpdf(x.numpy(), loc.numpy(), float(scale)).sum((-1, -2))
    log_p = p(z).log_prob(x)
    torch.testing.assert_close(log_p.detach(), torch.from_numpy(expected))
    # no other scale is better
    for factor in (0.99, 1.01):
        other = FAMILY[make].logpdf(x.numpy(), loc.numpy(), factor * float(scale)).sum()
        assert other < expected.sum()


@each
def test_gradient_is_that_of_the_log_of_the_mean_error(make):
    p = _optimal(make)
    z, x = torch.randn(5, 2).double(), torch.randn(5, 2, 3).double()
    ours = torch.autograd.grad(p(z).log_prob(x).sum(), list(p.parameters()))
    residual = x - _location(p, z)
    profile = {
        likelihoods.Gaussian: lambda: -residual.numel() / 2 * residual.square().mean().log(),
        likelihoods.Laplace: lambda: -residual.numel() * residual.abs().mean().log(),
    }[make]()
    for a, b in zip(ours, torch.autograd.grad(profile, list(p.parameters())), strict=True):
        torch.testing.assert_close(a, b)


@each
def test_evaluation_uses_the_running_average_as_a_constant(make):
    p = _optimal(make)
    z = torch.randn(5, 2).double()
    batches = [torch.randn(5, 2, 3).double() * scale for scale in (1, 3, 0.5)]
    power = 2 if make is likelihoods.Gaussian else 1
    moments = [float(BEST[make](x - _location(p, z).detach()) ** power) for x in batches]
    for x in batches:
        p(z).log_prob(x)
    average = moments[0]  # the first batch sets it
    for moment in moments[1:]:
        average += 0.1 * (moment - average)
    p.eval()
    x = 7 * torch.randn(5, 2, 3).double()
    loc = _location(p, z).detach().numpy()
    expected = FAMILY[make].logpdf(x.numpy(), loc, average ** (1 / power)).sum((-1, -2))
    for _ in range(2):  # scoring in evaluation mode leaves it as it is
        torch.testing.assert_close(p(z).log_prob(x).detach(), torch.from_numpy(expected))
    # and it is kept with the weights
    twin = _optimal(make).eval()
    twin.load_state_dict(copy.deepcopy(p.state_dict()))
    assert torch.equal(twin(z).log_prob(x), p(z).log_prob(x))


@each
def test_min_scale_bounds_the_density_of_a_perfect_fit(make):
    p = _optimal(make, min_scale=0.05)
    z = torch.randn(5, 2).double()
    x = _location(p, z).detach()
    expected = 6 * float(FAMILY[make].logpdf(0, scale=0.05))
    torch.testing.assert_close(p(z).log_prob(x), torch.full((5,), expected).double())
    torch.testing.assert_close(p.eval()(z).log_prob(x), torch.full((5,), expected).double())


@each
def test_moments_and_draws_while_training(make):
    p = _optimal(make)
    fn = p(torch.randn(5, 2).double())
    assert fn.has_rsample
    assert fn.sample((7,)).shape == fn.rsample((7,)).shape == (7, 5, 2, 3)
    wide = fn.expand((4, 5))
    torch.testing.assert_close(wide.mean[3], fn.mean)
    assert wide.variance.shape == (4, 5, 2, 3)
    x = torch.randn(5, 2, 3).double()
    torch.testing.assert_close(wide.log_prob(x)[2], fn.log_prob(x))


def test_needs_no_learning():
    # σ is far from 1, where a learned one starts, but after a few steps all but right; what is
    # left is the KL of an encoder that has not learned
    x = 40 * torch.randn(500, 3)
    vae = pv.VAE(
        (3,),
        1,
        likelihood=lambda *a: likelihoods.Gaussian(*a, scale="optimal"),
        encoder=SMALL,
        decoder=SMALL,
    )
    pv.fit(vae, x, epochs=2, batch_size=50)
    elbo = pv.evaluate(vae, x, num_samples=10).elbo
    best = float(stats.norm.logpdf(x.numpy(), 0, 40).sum(-1).mean())
    assert best - 2 < elbo < best + 0.3


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            likelihoods.Gaussian,
            {"mean": "tanh"},
            "expected mean to be 'identity' or 'sigmoid'; got 'tanh'",
        ),
        (likelihoods.Gaussian, {"scale": math.inf}, "expected scale to be a positive .*; got inf"),
        (likelihoods.Laplace, {"scale": True}, "expected scale to be a positive .*; got True"),
        (likelihoods.Gaussian, {"scale": math.nan}, "expected scale to be a positive .*; got nan"),
        (
            likelihoods.Gaussian,
            {"min_scale": math.inf},
            "expected min_scale > 0 and finite; got inf",
        ),
        (likelihoods.StudentT, {"df": math.inf}, "expected df > 1 and finite; got inf: Gaussian"),
    ],
)
def test_what_is_no_scale_and_no_mean_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(2, (3,), SMALL, **arguments)


@torch.no_grad()
@pytest.mark.parametrize("make", [likelihoods.Gaussian, likelihoods.Laplace])
def test_a_decoded_scale_starts_at_the_deviation_of_every_pixel(make):
    # σ is min_scale + exp g, and starts within min_scale of the data's
    p = make(2, (3,), SMALL, scale="decoded", min_scale=1e-4)
    x = torch.randn(4000, 3) * torch.tensor([0.1, 1.0, 30.0]) + 5
    outputs = p.outputs_for(x)
    p.network.forward = lambda z: outputs
    fn = p(torch.zeros(2)).base_dist
    torch.testing.assert_close(fn.scale, x.std(0, correction=0), rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(fn.mean, x.mean(0))


def test_student_t_has_none():
    with pytest.raises(ValueError, match=r"StudentT has no scale 'optimal', .*: choose 'learned'"):
        likelihoods.StudentT(2, (3,), SMALL, scale="optimal")
