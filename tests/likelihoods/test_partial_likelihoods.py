"""Likelihoods of examples with unobserved values (NaN), against sums over all values."""

import math
from functools import partial

import pytest
import torch
from components import LIKELIHOODS
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods

NAN = math.nan


class Outputs(nn.Module):
    """A decoder whose outputs are parameters, the same for every z."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.outputs = nn.Parameter(torch.randn(out_shape, generator=generator))

    def forward(self, z):
        return self.outputs.expand(*z.shape[:-1], *self.outputs.shape)


def make(likelihood, expects_missing=True):
    made = likelihood(1, (3,), Outputs).double().eval()
    made.expects_missing = expects_missing
    return made


def values_of(name):
    """Return three values that a likelihood scores, and all values of one, if countable."""
    if name.startswith("LogNormal"):
        return [0.2, 1.7, 0.4], None
    if name == "Ordinal":
        return [0.0, 4.0, 2.0], torch.arange(5.0)
    if name.startswith("Bernoulli") or "two levels" in name:
        return [0.0, 1.0, 1.0], torch.arange(2.0)
    if name.startswith(("Binomial", "Categorical", "Discretized", "MixtureOf")):
        return [0.0, 16.0, 5.0], torch.arange(256.0 if name == "DiscretizedLogistic" else 17.0)
    if name.startswith(("Poisson", "NegativeBinomial", "ZeroInflated")):
        return [0.0, 3.0, 1.0], torch.arange(2000.0)
    if name.startswith(("Beta", "Continuous")):
        return [0.2, 0.7, 0.4], None
    return [0.2, -1.7, 0.4], None


FACTORISED = [name for name in LIKELIHOODS if not name.endswith("observed")]


@pytest.mark.parametrize("name", FACTORISED)
def test_unobserved_values_are_summed_out(name):
    values, domain = values_of(name)
    x, z = torch.tensor(values, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    complete, partial_fn = (make(LIKELIHOODS[name], flag)(z) for flag in (False, True))
    holes = torch.tensor([x[0], NAN, x[2]])
    log_prob = partial_fn.log_prob(holes)
    log_weights, tolerance = torch.zeros(()), 1e-9
    if domain is None:
        # the trapezoidal rule, on the log or logit scale for values in an interval
        tolerance = 5e-3
        grid = torch.linspace(-40, 40, 80001, dtype=torch.float64)
        domain, jacobian = 10 * grid, math.log(10)
        if name.startswith("LogNormal"):
            domain, jacobian = grid.exp(), grid
        elif name.startswith(("Beta", "Continuous")):
            domain = grid.sigmoid().clamp(1e-15, 1 - 1e-15)
            jacobian = nn.functional.logsigmoid(torch.stack([grid, -grid])).sum(0)
        log_weights = (grid[1] - grid[0]).log() + jacobian
    rows = x.repeat(len(domain), 1)
    rows[:, 1] = domain
    expected = (complete.log_prob(rows) + log_weights).logsumexp(0)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(partial_fn.log_prob(x), complete.log_prob(x))
    assert partial_fn.log_prob(torch.full_like(x, NAN)) == 0


@pytest.mark.parametrize("name", FACTORISED)
def test_unobserved_values_have_no_gradient(name):
    values, _ = values_of(name)
    made = make(LIKELIHOODS[name])
    x = torch.tensor([values[0], NAN, values[2]], dtype=torch.float64)
    made(torch.zeros(1, dtype=torch.float64)).log_prob(x).backward()
    gradient = made.network.outputs.grad.reshape(-1, 3)
    assert gradient.isfinite().all()
    if "decoded" not in name or name.startswith("Gaussian"):  # a softmax reaches all pixels
        assert (gradient[:, 1] == 0).all()
    assert (gradient[:, [0, 2]] != 0).any()


@pytest.mark.parametrize("name", ["Poisson, observed", "NegativeBinomial, observed"])
def test_totals_need_complete_examples(name):
    message = r"complete examples for \w+, because library 'observed' needs the total count; got N"
    x = torch.tensor([[1.0, NAN, 2.0]])
    with pytest.raises(ValueError, match=message):
        pv.VAE((3,), 1, likelihood=LIKELIHOODS[name]).check(x)
    with pytest.raises(ValueError, match=message):
        make(LIKELIHOODS[name])(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("Bernoulli", [[0.0, NAN, 0.5]], r"Bernoulli scores only 0/1; got 2 levels"),
        ("Binomial", [[0.0, NAN, 17.0]], r"levels=16 scores 0 … 16; got .* 17"),
        ("Beta", [[0.5, NAN, 1.0]], r"inside \(0, 1\)"),
        ("Gaussian", [[0.0, NAN, math.inf]], r"got \d infinite"),
        ("Gaussian", [[NAN, NAN, NAN]], r"at least one observed value; got NaN for all 3"),
    ],
)
def test_observed_values_are_checked(name, x, message):
    vae = pv.VAE((3,), 1, likelihood=LIKELIHOODS[name])
    with pytest.raises(ValueError, match=message):
        vae.check(torch.tensor(x))


def test_nan_without_data_with_nan_is_an_error():
    vae = pv.VAE((3,), 1, likelihood=likelihoods.Gaussian)
    vae.check(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="support"):
        vae.likelihood(torch.zeros(1)).log_prob(torch.tensor([0.0, NAN, 1.0]))
    vae.check(torch.tensor([[0.0, NAN, 1.0]]))
    with pytest.raises(ValueError, match="loc"):  # a NaN of the decoder stays an error
        vae.likelihood(torch.tensor([NAN]))


def test_the_optimal_scale_is_that_of_the_observed_values():
    likelihood = make(partial(likelihoods.Gaussian, scale="optimal")).train()
    x = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, -3.0]], dtype=torch.float64)
    loc = likelihood.network.outputs.detach().reshape(3)
    moment = (x - loc).square().nanmean()
    log_prob = likelihood(torch.zeros(2, 1, dtype=torch.float64)).log_prob(x)
    normal = torch.distributions.Normal(loc, moment.sqrt(), validate_args=False)
    torch.testing.assert_close(log_prob, normal.log_prob(x).nan_to_num().sum(-1))
    torch.testing.assert_close(likelihood.average_moment, moment)


def test_initial_values_are_those_of_the_observed_values():
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) + torch.arange(3.0)
    x[::3, 1] = NAN
    decoder = partial(pv.networks.MLP, hidden=(), init=1e-6, output_bias="data")
    encoder = partial(pv.networks.MLP, hidden=(), standardize=True)
    likelihood = partial(likelihoods.Gaussian, scale="decoded")
    vae = pv.VAE((3,), 1, likelihood=likelihood, encoder=encoder, decoder=decoder)
    pv.initialize(vae, x)
    observed = x[1:3, 1].new_tensor([v for v in x[:, 1] if not math.isnan(v)])
    fn = vae.likelihood(torch.zeros(1)).base_dist
    torch.testing.assert_close(fn.loc[1], observed.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(fn.scale[1], observed.std(correction=0), atol=0.02, rtol=0)
    torch.testing.assert_close(fn.loc[[0, 2]], x[:, [0, 2]].mean(0), atol=1e-4, rtol=0)
    assert 1.3 < float(vae.posterior.network.input_mean) < 1.7
