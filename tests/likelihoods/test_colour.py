"""Mixtures of discretised logistics whose colour channels depend on one another."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from components import SMALL
from scipy import special, stats

import pyro_vae as pv
from pyro_vae import distributions, likelihoods, networks

Coupled = partial(likelihoods.MixtureOfDiscretizedLogistics, coupling=True)


def _constant(p, std=1.0):
    """Let the decoder return random outputs that do not depend on z."""
    outputs = std * torch.randn(p.network.out_shape, dtype=next(p.parameters()).dtype)
    p.network.forward = lambda z: outputs.expand(*z.shape[:-1], *outputs.shape)
    return outputs


def _authors_log_prob(colour, outputs, levels):
    """Return log P of one pixel as in the code of PixelCNN++: levels and locations in [−1, 1]."""
    size = len(outputs) // 10
    # red, green, blue; location, log scale, coefficient
    logits, rest = outputs[:size], outputs[size:].reshape(3, 3, size)
    means, log_scales, coeffs = rest[:, 0], rest[:, 1], np.tanh(rest[:, 2])
    x = 2 * np.asarray(colour, float) / levels - 1
    centres = [
        means[0],
        means[1] + coeffs[0] * x[0],
        means[2] + coeffs[1] * x[0] + coeffs[2] * x[1],
    ]
    total = np.zeros_like(logits)
    for channel in range(3):
        scale = np.exp(log_scales[channel])
        upper = special.expit((x[channel] + 1 / levels - centres[channel]) / scale)
        lower = special.expit((x[channel] - 1 / levels - centres[channel]) / scale)
        upper = 1.0 if colour[channel] == levels else upper
        lower = 0.0 if colour[channel] == 0 else lower
        total = total + np.log(upper - lower)
    return special.logsumexp(total + special.log_softmax(logits))


@torch.no_grad()
def test_probabilities_of_all_colours():
    p = Coupled(2, (3,), SMALL, levels=3, components=2).double()
    outputs = _constant(p).numpy()
    colours = list(itertools.product(range(4), repeat=3))
    fn = p(torch.zeros(2).double())
    grid = torch.tensor(colours).double()
    log_p = fn.log_prob(grid)
    expected = [_authors_log_prob(colour, outputs, 3) for colour in colours]
    np.testing.assert_allclose(log_p, expected, rtol=1e-10)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(fn.mean, log_p.exp() @ grid)
    # χ² test of samples, false alarm 1e-4; every expected count is above 5
    samples = fn.sample((40_000,)).long()
    counts = torch.bincount(samples @ torch.tensor([16, 4, 1]), minlength=64).double()
    expected = 40_000 * log_p.exp()
    common = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[common].sum()
    rest = expected[~common].sum()
    assert abs(float(counts[~common].sum() - rest)) < 6 * float(rest) ** 0.5 + 1e-9
    assert stats.chi2.sf(float(statistic), int(common.sum()) - 1) > 1e-4


@torch.no_grad()
def test_pixels_are_independent_and_channels_first():
    p = Coupled(2, (3, 2, 4), SMALL, levels=9, components=3).double()
    outputs = _constant(p).numpy()
    assert outputs.shape == (30, 2, 4)
    fn = p(torch.zeros(5, 2).double())
    assert (fn.batch_shape, fn.event_shape) == ((5,), (3, 2, 4))
    x = fn.sample((7,))
    assert x.shape == (7, 5, 3, 2, 4)
    expected = [
        sum(
            _authors_log_prob(image[:, i, j].int().tolist(), outputs[:, i, j], 9)
            for i in range(2)
            for j in range(4)
        )
        for image in x[:, 0]
    ]
    np.testing.assert_allclose(fn.log_prob(x)[:, 0], expected)
    expanded = p(torch.zeros(2).double()).expand((7, 5))
    torch.testing.assert_close(expanded.log_prob(x), fn.log_prob(x))
    torch.testing.assert_close(expanded.mean[3], fn.mean)


@torch.no_grad()
@pytest.mark.parametrize(("log_scale", "tolerance"), [(-3.0, 1.0), (1.0, 0.2), (3.0, 0.3)])
def test_mean_of_bytes_is_within_a_level(log_scale, tolerance):
    size, n = 8, 255
    loc = 127.5 + 90 * torch.randn(size, 3, 1).double()
    log_scale = log_scale + 0.5 * torch.randn(size, 3, 1).double()
    coefficients = torch.randn(size, 3, 1).double().tanh()
    fn = distributions.ColourLogisticMixture(
        torch.zeros(size, 1).double(), loc, log_scale, coefficients, n, 2
    )
    # the exact sum over all levels of red and green
    levels = torch.arange(n + 1.0).double()
    one = partial(distributions.DiscretizedLogistic, levels=n)
    (a, b, c), (s1, s2, s3) = (t.squeeze(-1).unbind(1) for t in (coefficients, log_scale))
    m1, m2, m3 = loc.squeeze(-1).unbind(1)
    shift = (levels - n / 2)[:, None]
    red = one(m1, s1).log_prob(levels[:, None]).exp()
    given_red = one(m2 + a * shift, s2)
    green = (red * given_red.mean).sum(0)
    given_both = one(m3 + b * shift[:, None] + c * shift, s3)  # red, green, pixel
    weights = red[:, None] * given_red.log_prob(levels[:, None, None]).exp().transpose(0, 1)
    blue = (weights * given_both.mean).sum((0, 1))
    expected = torch.stack([one(m1, s1).mean, green, blue])
    assert float((fn.mean - expected).abs().max()) < tolerance
    torch.testing.assert_close(fn.mean[0], expected[0])


@torch.no_grad()
def test_single_precision():
    single = Coupled(2, (3, 300), SMALL)
    outputs = _constant(single, std=2.0)
    x = single(torch.zeros(1, 2)).sample()
    double = copy.deepcopy(single).double()
    double.network.forward = lambda z: outputs.double().expand(*z.shape[:-1], *outputs.shape)
    expected = double(torch.zeros(1, 2).double()).log_prob(x.double())
    log_p = single(torch.zeros(1, 2)).log_prob(x)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-5, atol=0)


@torch.no_grad()
def test_initial_mean_is_that_of_the_data():
    p = Coupled(2, (3, 2), SMALL, levels=20, components=3)
    x = torch.binomial(torch.full((300, 3, 2), 20.0), torch.rand(3, 2).expand(300, 3, 2))
    outputs = p.initial_outputs(x)
    assert outputs.shape == p.network.out_shape
    p.network.forward = lambda z: outputs.expand(*z.shape[:-1], *outputs.shape)
    torch.testing.assert_close(p(torch.zeros(2)).mean, x.mean(0), atol=0.3, rtol=0)


def test_gradients_reach_every_parameter():
    p = Coupled(4, (3, 2), SMALL)
    fn = p(torch.randn(50, 4))
    fn.log_prob(fn.sample()).sum().backward()
    for name, parameter in p.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_coupling_learns_a_dependence_of_the_channels():
    # red is uniform and the others are equal to it: at best −log 16 = −2.77 nats with coupling,
    # and −3 log 16 = −8.3 with independent channels
    x = torch.arange(16.0)[:, None].expand(-1, 3)
    score = {}
    for coupling in (True, False):
        torch.manual_seed(0)
        make = partial(
            likelihoods.MixtureOfDiscretizedLogistics, levels=15, components=2, coupling=coupling
        )
        p = make(1, (3,), partial(networks.MLP, hidden=()))
        optimizer = torch.optim.Adam(p.parameters(), lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            loss = -p(torch.zeros(1)).log_prob(x).mean()
            loss.backward()
            optimizer.step()
        score[coupling] = -float(loss.detach())
    assert score[True] > -4.5 and score[False] < -7


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (4, 5), (3, 4)])
def test_auto_couples_colour_images_only(shape):
    make = partial(likelihoods.MixtureOfDiscretizedLogistics, components=2)
    auto, default = make(2, shape, SMALL, coupling="auto"), make(2, shape, SMALL)
    assert auto.is_coupled == (shape == (3, 4, 5)) and not default.is_coupled
    assert default.network.out_shape == (6, *shape)
    assert auto.network.out_shape == ((20, 4, 5) if auto.is_coupled else (6, *shape))


@pytest.mark.parametrize(
    ("shape", "coupling", "message"),
    [
        ((4, 5, 3), True, r"got event_shape \(4, 5, 3\): pass the channels first, x.permute"),
        ((1, 4, 5), True, r"expected colour images \(3, H, W\) .*: set it to false"),
        ((3, 4, 5), "yes", "expected coupling to be true, false or auto; got 'yes'"),
    ],
)
def test_invalid_coupling(shape, coupling, message):
    with pytest.raises(ValueError, match=message):
        likelihoods.MixtureOfDiscretizedLogistics(2, shape, SMALL, coupling=coupling)


@torch.no_grad()
def test_imputation_of_whole_pixels():
    vae = pv.VAE((3, 2), 2, likelihood=partial(Coupled, levels=9), encoder=SMALL, decoder=SMALL)
    _constant(vae.likelihood)
    # q(z|x) is the prior, so that all weights are equal
    zero = torch.zeros(vae.posterior.network.out_shape)
    vae.posterior.network.forward = lambda x: zero.expand(*x.shape[:-2], *zero.shape)
    fn = vae.likelihood(torch.zeros(2))
    x = fn.sample((4,))
    observed = torch.tensor([True, False]).expand(3, 2)
    options = {"num_samples": 40, "fills": 2, "rounds": 1, "refit_steps": 0, "draws": 500}
    result = pv.queries.impute(vae, x, observed=observed, **options)
    # x does not depend on z: log p(x_obs) is that of the first pixel
    other = torch.cartesian_prod(*[torch.arange(10.0)] * 3)
    pairs = torch.stack([x[:, None, :, 0].expand(4, 1000, 3), other.expand(4, -1, -1)], -1)
    torch.testing.assert_close(result.log_evidence, fn.log_prob(pairs).logsumexp(1).double())
    torch.testing.assert_close(result.mean[:, :, 1], fn.mean[:, 1].expand(4, 3))
    assert torch.equal(result.x[..., 0], x[..., 0].expand(500, 4, 3))
    # 2000 samples of the hidden pixel: six standard errors of levels below 10
    error = (result.x[..., 1].flatten(0, 1).mean(0) - fn.mean[:, 1]).abs()
    assert float(error.max()) < 6 * 5 / 2000**0.5
    # the marginal over a single channel has no closed form
    message = "in all three channels or in none, .*: mask whole pixels, or set the likelihood's"
    with pytest.raises(ValueError, match=message):
        pv.queries.impute(vae, x, observed=torch.rand(3, 2) < 2 * torch.eye(3)[:, :2], **options)
    with pytest.raises(ValueError, match="pixels are independent given the latents"):
        pv.queries.impute(vae, x, noise=pv.queries.AdditiveNormal(0.1), **options)


def _with_holes(*holes):
    """Return random images ``(8, 3, 2)`` of levels 0 … 3 with unobserved values."""
    x = torch.randint(4, (8, 3, 2)).float()
    for hole in holes:
        x[hole] = torch.nan
    return x


def test_unobserved_pixels_are_summed_out():
    p = Coupled(2, (3, 2), SMALL, levels=3, components=2).double()
    _constant(p)
    z = torch.zeros(2).double()
    x = _with_holes().double()
    holes = x.clone()
    holes[..., 1] = torch.nan
    complete = p(z)
    # all colours of the second pixel
    other = torch.cartesian_prod(*[torch.arange(4.0).double()] * 3)
    filled = torch.stack([x[:, None, :, 0].expand(8, 64, 3), other.expand(8, -1, -1)], -1)
    expected = complete.log_prob(filled).logsumexp(1)
    p.expects_missing = True
    fn = p(z)
    torch.testing.assert_close(fn.log_prob(holes), expected)
    torch.testing.assert_close(fn.expand((5, 8)).log_prob(holes), expected.expand(5, 8))
    torch.testing.assert_close(fn.log_prob(x), complete.log_prob(x))
    assert (fn.log_prob(torch.full_like(x, torch.nan)) == 0).all()
    # never a number for a pixel whose channels are observed in part
    holes[0, 0, 1] = 2.0
    assert fn.log_prob(holes).isnan().tolist() == [True] + 7 * [False]


def test_training_with_unobserved_pixels():
    x = _with_holes((0, slice(None), 1), (3,))
    options = {"encoder": SMALL, "decoder": SMALL}
    vae = pv.VAE((3, 2), 2, likelihood=partial(Coupled, levels=3, components=2), **options)
    pv.fit(vae, x, epochs=1, batch_size=4, compile=False)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    # an example without observed values has no log-likelihood: its weights are p(z) / q(z|x)
    bounds = pv.evaluate(vae, x, num_samples=4000, compile=False)
    assert bounds.per_datum["log_evidence"][3] == pytest.approx(0.0, abs=0.1)
    result = pv.queries.impute(vae, x, num_samples=40, fills=2, rounds=1, refit_steps=0, draws=3)
    assert torch.equal(result.x[:, ~x.isnan()], x[~x.isnan()].expand(3, -1))
    assert not result.x.isnan().any()


def test_pixels_observed_in_part_are_refused():
    vae = pv.VAE((3, 2), 2, likelihood=partial(Coupled, levels=9), encoder=SMALL, decoder=SMALL)
    message = "in all three channels or in none, because the channels depend on one another; got"
    with pytest.raises(ValueError, match=message):
        pv.fit(vae, _with_holes((0, 1, 0)), epochs=1)
