"""Likelihoods of real values: optimal, decoded and invalid scales."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from components import SMALL
from scipy import stats

import pyro_vae as pv
from pyro_vae import likelihoods

#: Optimal scale of residuals: E|x − μ|^p to the power 1 / p.
OPTIMAL_SCALE = {
    likelihoods.Gaussian: lambda r: r.square().mean().sqrt(),
    likelihoods.Laplace: lambda r: r.abs().mean(),
}
SCIPY_DISTRIBUTION = {likelihoods.Gaussian: stats.norm, likelihoods.Laplace: stats.laplace}
each_likelihood = pytest.mark.parametrize("make", OPTIMAL_SCALE, ids=lambda make: make.__name__)


def _optimal(make, **kwargs):
    return make(2, (2, 3), SMALL, scale="optimal", **kwargs).double()


def _location(p, z):
    return p.network(z)[..., 0, :, :]


@each_likelihood
def test_training_uses_the_optimal_scale_of_the_batch(make):
    p = _optimal(make)
    # one scale for both particles
    z, x = torch.randn(2, 5, 2).double(), torch.randn(5, 2, 3).double()
    loc = _location(p, z).detach()
    scale = OPTIMAL_SCALE[make](x - loc)
    expected = SCIPY_DISTRIBUTION[make].logpdf(x.numpy(), loc.numpy(), float(scale)).sum((-1, -2))
    log_p = p(z).log_prob(x)
    torch.testing.assert_close(log_p.detach(), torch.from_numpy(expected))
    # the scale is a maximum
    for factor in (0.99, 1.01):
        other = SCIPY_DISTRIBUTION[make].logpdf(x.numpy(), loc.numpy(), factor * float(scale)).sum()
        assert other < expected.sum()


@each_likelihood
def test_gradient_matches_the_profile_likelihood(make):
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


@each_likelihood
def test_evaluation_uses_the_running_average(make):
    p = _optimal(make)
    z = torch.randn(5, 2).double()
    batches = [torch.randn(5, 2, 3).double() * scale for scale in (1, 3, 0.5)]
    power = 2 if make is likelihoods.Gaussian else 1
    moments = [float(OPTIMAL_SCALE[make](x - _location(p, z).detach()) ** power) for x in batches]
    for x in batches:
        p(z).log_prob(x)
    average = moments[0]  # the first batch initialises it
    for moment in moments[1:]:
        average += 0.1 * (moment - average)
    p.eval()
    x = 7 * torch.randn(5, 2, 3).double()
    loc = _location(p, z).detach().numpy()
    expected = SCIPY_DISTRIBUTION[make].logpdf(x.numpy(), loc, average ** (1 / power)).sum((-1, -2))
    for _ in range(2):  # scoring in evaluation mode does not update the average
        torch.testing.assert_close(p(z).log_prob(x).detach(), torch.from_numpy(expected))
    # the average is part of the state_dict
    twin = _optimal(make).eval()
    twin.load_state_dict(copy.deepcopy(p.state_dict()))
    assert torch.equal(twin(z).log_prob(x), p(z).log_prob(x))


@each_likelihood
def test_min_scale_bounds_the_density_of_a_perfect_fit(make):
    p = _optimal(make, min_scale=0.05)
    z = torch.randn(5, 2).double()
    x = _location(p, z).detach()
    expected = 6 * float(SCIPY_DISTRIBUTION[make].logpdf(0, scale=0.05))
    torch.testing.assert_close(p(z).log_prob(x), torch.full((5,), expected).double())
    torch.testing.assert_close(p.eval()(z).log_prob(x), torch.full((5,), expected).double())


@each_likelihood
def test_moments_and_samples_in_training(make):
    p = _optimal(make)
    fn = p(torch.randn(5, 2).double())
    assert fn.has_rsample
    assert fn.sample((7,)).shape == fn.rsample((7,)).shape == (7, 5, 2, 3)
    expanded = fn.expand((4, 5))
    torch.testing.assert_close(expanded.mean[3], fn.mean)
    assert expanded.variance.shape == (4, 5, 2, 3)
    x = torch.randn(5, 2, 3).double()
    torch.testing.assert_close(expanded.log_prob(x)[2], fn.log_prob(x))


def test_optimal_scale_needs_no_training():
    # σ is far from 1, the initial value of a learned scale; the remaining gap to the optimum is
    # the KL of an encoder that is not trained yet
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
        (likelihoods.StudentT, {"df": math.inf}, "expected df > 1 and finite; got inf: use Gauss"),
    ],
)
def test_invalid_arguments_raise(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(2, (3,), SMALL, **arguments)


@torch.no_grad()
@pytest.mark.parametrize("scale", ["decoded", "decoded_variance"])
@pytest.mark.parametrize("make", [likelihoods.Gaussian, likelihoods.Laplace])
def test_decoded_scale_is_initialised_at_the_standard_deviation(make, scale):
    # σ is min_scale + exp g, so its initial value exceeds that of the data by min_scale
    p = make(2, (3,), SMALL, scale=scale, min_scale=1e-4)
    x = torch.randn(4000, 3) * torch.tensor([0.1, 1.0, 30.0]) + 5
    outputs = p.initial_outputs(x)
    p.network.forward = lambda z: outputs
    fn = p(torch.zeros(2)).base_dist
    torch.testing.assert_close(fn.scale, x.std(0, correction=0), rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(fn.mean, x.mean(0))


@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "LogNormal", "StudentT"])
def test_decoded_variance_has_the_same_density_and_half_the_gradient(name):
    """The output log σ² = 2 log σ moves log σ half as far as the output log σ does."""
    make, x = getattr(likelihoods, name), torch.rand(4, 3).double() + 0.5
    outputs, results = torch.randn(2, 3).double(), []
    for scale, factor in (("decoded", 1.0), ("decoded_variance", 2.0)):
        p = make(2, (3,), SMALL, scale=scale).double()
        out = (outputs * torch.tensor([[1.0], [factor]])).requires_grad_()
        p.network.forward = lambda z, out=out: out
        log_prob = p(torch.zeros(2)).log_prob(x).sum()
        results.append((log_prob.detach(), *torch.autograd.grad(log_prob, out)[0]))
    (log_prob, loc, log_scale), (log_prob_2, loc_2, log_variance) = results
    torch.testing.assert_close(log_prob_2, log_prob)
    torch.testing.assert_close(loc_2, loc)
    torch.testing.assert_close(log_variance, log_scale / 2)


def test_student_t_has_no_optimal_scale():
    with pytest.raises(
        ValueError, match=r"StudentT does not support scale 'optimal', .*: choose 'learned'"
    ):
        likelihoods.StudentT(2, (3,), SMALL, scale="optimal")
