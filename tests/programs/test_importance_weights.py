"""``log_weights`` for arbitrary Pyro programs."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from torch import nn

import pyro_vae as pv
from pyro_vae.programs import importance_weights, particles


def _normal(x, loc, scale):
    return dist.Normal(loc, scale).log_prob(x)


def test_one_example_agrees_with_pyro():
    program = LinearGaussian(3, shift=0.5)
    x = program.sample(1)
    pyro.set_rng_seed(1)
    ours = pv.log_weights(program.model, program.guide, x, num_samples=200, chunk_size=200)
    pyro.set_rng_seed(1)
    theirs, *_ = vectorized_importance_weights(
        program.model, program.guide, x, num_samples=200, max_plate_nesting=1
    )
    assert ours.shape == (200, 1) and theirs.shape == (200,)
    # log_weights draws additional samples to find the layout
    pyro.set_rng_seed(1)
    with torch.no_grad():
        same = particles.run_particles(program.model, program.guide, x, num_samples=200).log_weights
    torch.testing.assert_close(same[:, 0], theirs)
    evidence = [w.logsumexp(0) - math.log(200) for w in (ours[:, 0], theirs)]
    assert abs(evidence[0] - evidence[1]) < 0.5


def test_weights_are_per_datum_and_joint_in_pyro():
    program = LinearGaussian(3, shift=1.0)
    x = program.sample(64)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        ours = particles.run_particles(program.model, program.guide, x, num_samples=500).log_weights
    pyro.set_rng_seed(1)
    theirs, *_ = vectorized_importance_weights(
        program.model, program.guide, x, num_samples=500, max_plate_nesting=1
    )
    assert ours.shape == (500, 64) and theirs.shape == (500,)
    # the same draws: Pyro multiplies the weights of all examples before averaging over draws
    torch.testing.assert_close(ours.sum(1), theirs)
    per_datum = float((ours.logsumexp(0) - math.log(500)).mean())
    joint = float(theirs.logsumexp(0) - math.log(500)) / 64
    truth = float(program.log_evidence(x).mean())
    assert abs(per_datum - truth) < 0.05
    assert joint < truth - 0.5


def test_several_sites_scalar_and_vector_events_and_extra_arguments():
    def model(x, c, power, *, noise=1.0):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(c, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic("mean", a + b.sum(-1))
            pyro.sample("x", dist.Normal((a + b.sum(-1)) * power, noise), obs=x)

    def guide(x, c, power, *, noise=1.0):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(c + 0.1 * x, 1.2))
            pyro.sample("b", dist.Normal(0.1 * a[..., None] * torch.ones(3), 1.2).to_event(1))

    x, c = torch.randn(5), torch.randn(5)
    power = torch.tensor(2.0)
    run = particles.run_particles(model, guide, x, c, power, noise=0.5, num_samples=7)
    a, b = run.latents["a"], run.latents["b"]
    assert a.shape == (7, 5) and b.shape == (7, 5, 3)
    expected = (
        _normal(a, c, 1.0)
        + _normal(b, 0.0, 1.0).sum(-1)
        + _normal(x, 2 * (a + b.sum(-1)), 0.5)
        - _normal(a, c + 0.1 * x, 1.2)
        - _normal(b, 0.1 * a[..., None], 1.2).sum(-1)
    )
    torch.testing.assert_close(run.log_weights, expected)
    # only per-datum arguments are split with the data
    chunked = pv.log_weights(
        model, guide, x, c, power, noise=0.5, num_samples=20_000, chunk_size=2_500
    )
    log_p = chunked.logsumexp(0) - math.log(20_000)
    exact = _normal(x, 2 * c, math.sqrt(4 * 4 + 0.25))
    torch.testing.assert_close(log_p, exact, atol=0.15, rtol=0)


def test_inner_plates_are_summed():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.5))

    x = torch.randn(3, 4)
    pyro.set_rng_seed(5)
    run = particles.run_particles(model, guide, x, num_samples=6, layout=particles.Layout(2))
    z = run.latents["z"]
    assert z.shape == (6, 3, 1)
    expected = (
        _normal(z, 0.0, 1.0)[..., 0]
        + _normal(x, z, 1.0).sum(-1)
        - _normal(z, x.mean(-1, keepdim=True), 0.5)[..., 0]
    )
    torch.testing.assert_close(run.log_weights, expected)
    weights = pv.log_weights(model, guide, x, num_samples=5000)
    covariance = torch.ones(4, 4) + torch.eye(4)
    exact = torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    torch.testing.assert_close(weights.logsumexp(0) - math.log(5000), exact, atol=0.1, rtol=0)


def test_scales_are_ignored_and_masks_applied():
    program = LinearGaussian(2, shift=0.5)
    x = program.sample(4)

    def weights(model):
        pyro.set_rng_seed(2)
        return particles.run_particles(model, program.guide, x, num_samples=3).log_weights

    base = weights(program.model)
    torch.testing.assert_close(weights(poutine.scale(program.model, 0.1)), base)
    mask = torch.tensor([True, False, True, True])
    masked = weights(poutine.mask(program.model, mask))
    torch.testing.assert_close(masked[:, mask], base[:, mask])
    assert not torch.isclose(masked[:, ~mask], base[:, ~mask]).any()


def test_auxiliary_sites_of_an_autoguide():
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 1.0, 4.0])
    guide = AutoNormal(model, init_scale=0.5)
    guide(x)
    log_w = pv.log_weights(model, guide, x, num_samples=20_000)
    exact = dist.GammaPoisson(2.0, 2.0).log_prob(x)
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(20_000), exact, atol=0.1, rtol=0)


def test_all_chunk_sizes_give_all_weights():
    # q is the posterior, so every log weight equals log p(x)
    program = LinearGaussian(2)
    x = program.sample(11)
    for chunk_size in (1, 3, 7, 64, 1000):
        log_w = pv.log_weights(
            program.model, program.guide, x, num_samples=13, chunk_size=chunk_size
        )
        torch.testing.assert_close(log_w, program.log_evidence(x).expand(13, 11))


def test_dropout_is_off_and_the_mode_is_restored():
    vae = pv.VAE((4,), 2, encoder=_with_dropout).train()
    x = torch.bernoulli(torch.full((3, 4), 0.5))
    pyro.set_rng_seed(0)
    first = pv.log_weights(vae.model, vae.guide, x, num_samples=5)
    assert vae.training and all(m.training for m in vae.modules())
    pyro.set_rng_seed(0)
    again = pv.log_weights(vae.eval().model, vae.guide, x, num_samples=5)
    torch.testing.assert_close(first, again)


def _with_dropout(in_shape, out_shape):
    return nn.Sequential(nn.Dropout(0.5), pv.networks.MLP(in_shape, out_shape, hidden=(5,)))


class Positional(nn.Module):
    """Decoders that depend on the position of a batch dimension, with or without an error."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv1d(1, 1, 3, padding=1), nn.BatchNorm1d(8)

    def forward(self, z):
        if self.kind == "softmax":
            return z.softmax(dim=1)
        if self.kind == "conv":
            return self.conv(z.view(-1, 1, 8)).view(-1, 8)
        return self.norm(z)


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("kind", ["softmax", "conv", "norm"])
def test_programs_without_support_for_a_particle_dimension(kind, size):
    decoder = Positional(kind)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.9).to_event(1))

    x = torch.randn(size, 8)
    decoder.eval()
    decoder.norm.running_mean.copy_(torch.arange(8.0))
    with torch.no_grad():
        with pytest.warns(UserWarning, match="each particle runs as an additional example"):
            layout = importance_weights.find_layout(model, guide, x)
        assert layout.tiled
        run = particles.run_particles(model, guide, x, num_samples=6, layout=layout)
        z = run.latents["z"]
        assert z.shape == (6, size, 8)
        for k in range(6):
            expected = (
                _normal(z[k], 0.0, 1.0)
                + _normal(x, decoder(z[k]), 1.0)
                - _normal(z[k], 0.3 * x, 0.9)
            ).sum(-1)
            torch.testing.assert_close(run.log_weights[k], expected)
    with pytest.warns(UserWarning, match="each particle runs as an additional example"):
        chunked = pv.log_weights(model, guide, x, num_samples=7, chunk_size=4)
    assert chunked.shape == (7, size)


def test_programs_that_mix_examples_raise():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)

    message = "expected examples that do not depend on each other"
    with pytest.raises(ValueError, match=message):
        pv.log_weights(model, _guide, torch.randn(5), num_samples=4)


def test_argument_of_leading_size_n_that_is_not_per_datum():
    # six mixture means and six examples
    means = torch.linspace(-3, 3, 6)

    def model(x, mu):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(6)))
            pyro.sample("x", dist.Normal(mu[c], 1.0), obs=x)

    def guide(x, mu):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=torch.zeros(6)))

    x = torch.randn(6)
    truth = _normal(x[:, None], means, 1.0).logsumexp(-1) - math.log(6)
    log_w = pv.log_weights(model, guide, x, means, num_samples=20_000, chunk_size=500)
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(20_000), truth, atol=0.05, rtol=0)


def test_batch_dimensions_without_a_plate_raise():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand((3, len(x))), obs=x)

    with pytest.raises(ValueError, match=r"batch shape \(3, 4\), whose dimension of size 3 has no"):
        pv.log_weights(model, _guide, torch.randn(4), num_samples=3)


def test_dropout_is_off_in_plain_functions():
    decoder = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    x = torch.randn(4, 3)
    training = pv.evaluate((model, guide), x, num_samples=100).elbo
    assert decoder.training and decoder[1].training
    decoder.eval()
    assert training == pv.evaluate((model, guide), x, num_samples=100).elbo


def test_autoguides_keep_their_own_parameters():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(4)
    first, second = AutoNormal(model), AutoNormal(model, init_scale=0.7)
    first(x)
    expected = pv.evaluate((model, first), x, num_samples=50).elbo
    pyro.clear_param_store()
    second(x)
    with torch.no_grad():
        second.locs.z_unconstrained.add_(2.0)
    pyro.clear_param_store()  # refused otherwise, see test_context.py
    assert pv.evaluate((model, first), x, num_samples=50).elbo == expected


def test_models_with_equal_names_keep_their_own_weights():
    x = torch.bernoulli(torch.full((3, 4), 0.5))
    first, second = pv.VAE((4,), 2), pv.VAE((4,), 2)

    def elbo(vae):
        return pv.evaluate(vae, x, num_samples=50).elbo

    alone = elbo(second)
    # Pyro's global store now has the parameters of the first under the names of the second
    pyro.infer.Trace_ELBO().loss(first.model, first.guide, x)
    assert elbo(second) == alone != elbo(first)
    assert len(pyro.get_param_store()) == len(list(first.parameters()))


def test_plain_pyro_params_come_from_the_store():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = (x + pyro.param("loc", torch.tensor(0.0))) / 2
            pyro.sample("z", dist.Normal(loc, math.sqrt(0.5)))

    x = torch.randn(4)
    pyro.param("loc", torch.tensor(3.0))
    log_w = pv.log_weights(model, guide, x, num_samples=2)
    torch.testing.assert_close(log_w[0], _normal(x, 3.0, math.sqrt(2)))


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _no_plate_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))


def _global_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _global_guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    _guide(x)


def _subsampled(x):
    with pyro.plate("data", len(x), subsample=torch.arange(2)) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def _subsampled_guide(x):
    with pyro.plate("data", len(x), subsample=torch.arange(2)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _sequential(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def _sequential_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))


def _two_latents(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        u = pyro.sample("u", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _two_latents_guide(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("u", dist.Normal(z, 1.0))


def test_guide_parameters_per_example_with_more_examples_than_a_chunk():
    # the guide fails on a part of the data, in a plate or in a sum
    locs = torch.randn(50)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def plated(x):
        loc = pyro.param("loc", locs)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.7))

    def summed(x):
        loc = pyro.param("loc", locs)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + 0 * x, 0.7))

    x = torch.randn(50)
    for guide in (plated, summed):
        log_w = pv.log_weights(model, guide, x, num_samples=10_000, chunk_size=2000)
        truth = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x)
        close = (locs - x / 2).abs() < 0.7
        evidence = log_w.logsumexp(0) - math.log(10_000)
        torch.testing.assert_close(evidence[close], truth[close], atol=0.06, rtol=0)


def _plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _unobserved(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            _no_plate,
            _no_plate_guide,
            r"inside the plate \"data\"; got site 'z' of the guide outside",
        ),
        (
            _global_latent,
            _global_guide,
            r"inside the plate \"data\"; got site 'w' of the guide outside",
        ),
        (
            _subsampled,
            _subsampled_guide,
            r"expected the plate \"data\" to have the size of the data, 3;",
        ),
        (_sequential, _sequential_guide, r"it is a sequential loop"),
        (_two_latents, _guide, r"expected the same latent .* got 'u' in the model only: "),
        (_plain, _two_latents_guide, r"expected the same latent .* got 'u' in the guide only: "),
        (_unobserved, _guide, r"expected a model that observes the data; got no observed site"),
    ],
)
def test_programs_without_weights_per_datum_raise(model, guide, message):
    with pytest.raises(ValueError, match=message):
        pv.log_weights(model, guide, torch.randn(3), num_samples=4)


def test_partial_programs_find_their_module():
    program = LinearGaussian(2)
    x = program.sample(3)
    model, guide = (functools.partial(f) for f in (program.model, program.guide))
    log_w = pv.log_weights(model, guide, x, num_samples=2)
    torch.testing.assert_close(log_w[1], program.log_evidence(x))


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.empty(0, 3), []])
def test_invalid_data_raise(x):
    with pytest.raises(ValueError, match=r"expected x to be a tensor of shape \(N ≥ 1, …\)"):
        pv.log_weights(_plain, _guide, x, num_samples=4)


def test_flow_with_inexact_inverse_is_replayed_by_value():
    # inverting the logit of a uniform loses digits, so the recovered noise is inexact
    from pyro.distributions import transforms

    def parts(x):
        steps = [transforms.SigmoidTransform().inv, transforms.AffineTransform(x[:, :1], 1.0)]
        zero = torch.zeros(len(x), 50)
        return dist.TransformedDistribution(dist.Uniform(zero, zero + 1), steps).to_event(1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", parts(x))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(50), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=x)

    for seed in range(20):
        pyro.set_rng_seed(seed)
        importance_weights.find_layout(model, guide, torch.randn(256, 2))


def test_chunk_size_depends_on_the_width_of_the_likelihood(monkeypatch):
    # 256 logits per pixel: a chunk size for binary pixels would need gigabytes here
    from functools import partial

    small = partial(pv.networks.MLP, hidden=(4,))
    parts = {"likelihood": pv.likelihoods.Categorical, "encoder": small, "decoder": small}
    vae = pv.VAE((2, 3), 2, **parts)
    x = torch.randint(256, (7, 2, 3)).float()
    expected = pv.log_weights(vae.model, vae.guide, x, num_samples=90)
    monkeypatch.setattr("pyro_vae.programs.chunking._MAX_ELEMENTS", 256 * 6 * 20)
    sizes = []
    vae.likelihood.network.register_forward_hook(lambda m, i, out: sizes.append(out.numel()))
    pyro.set_rng_seed(0)
    got = pv.log_weights(vae.model, vae.guide, x, num_samples=90)
    assert got.shape == expected.shape
    # finding the plate takes a run, the audit six and the layout two
    assert max(sizes[9:]) == 256 * 6 * 14 and len(sizes) == 9 + 45


def _two_plates(outer):
    """Return a program with a second plate, on either side of the data plate."""
    data, repeats = (-2, -1) if outer else (-1, -2)

    def at(x, power):
        # at the position of the data plate
        return (x * power).unsqueeze(-1) if outer else x * power

    def model(x, power):
        with pyro.plate("data", len(x), dim=data):
            a = pyro.sample("a", dist.Normal(at(x, power), 1.0))
            with pyro.plate("repeats", 3, dim=repeats):
                b = pyro.sample("b", dist.Normal(a[..., None].expand(*a.shape, 2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(b.sum(-1), 0.5), obs=at(x, 1.0))

    def guide(x, power):
        with pyro.plate("data", len(x), dim=data):
            a = pyro.sample("a", dist.Normal(0.5 * at(x, power), 1.0))
            with pyro.plate("repeats", 3, dim=repeats):
                pyro.sample("b", dist.Normal(a[..., None] * torch.ones(2), 0.7).to_event(1))

    return model, guide


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_log_probs_at_agree_with_the_run(outer, tiled):
    model, guide = _two_plates(outer)
    x, power = torch.randn(4), torch.tensor(0.5)
    layout = particles.Layout(2, tiled)
    run = particles.run_particles(model, guide, x, power, num_samples=5, layout=layout)
    assert run.latents["b"].shape == (5, 4, 3, 2)
    for program, expected in ((model, run.log_p), (guide, run.log_q)):
        actual = particles.log_probs_at(program, run.latents, x, power, layout=layout)
        assert list(actual) == list(expected)
        for name in actual:
            torch.testing.assert_close(actual[name], expected[name])
    a, b = run.latents["a"].reshape(5, 4), run.latents["b"]
    expected_weights = _normal(a, 0.5 * x, 1.0) + _normal(b, a[..., None, None], 1.0).sum((-1, -2))
    expected_weights = expected_weights + _normal(x[:, None], b.sum(-1), 0.5).sum(-1)
    torch.testing.assert_close(sum(run.log_p.values()), expected_weights)


def test_log_probs_at_are_differentiable_masked_and_not_scaled():
    program = LinearGaussian(2)
    x = program.sample(3)
    z = torch.randn(4, 3, 2, dtype=x.dtype, requires_grad=True)
    mask = torch.tensor([True, False, True])
    model = poutine.scale(poutine.mask(program.model, mask), 0.3)
    total = sum(particles.log_probs_at(model, {"z": z}, x).values())
    (gradient,) = torch.autograd.grad(total.sum(), z)
    score = ((x - z @ program.W.T - program.b) @ program.W) / program.s**2
    torch.testing.assert_close(gradient, mask[:, None] * (score - z).detach())


def test_log_probs_at_needs_values_for_all_latent_sites():
    model, _ = _two_plates(True)
    with pytest.raises(ValueError, match="got values for 'a', but not for 'b'"):
        particles.log_probs_at(
            model,
            {"a": torch.zeros(1, 4, 1)},
            torch.zeros(4),
            torch.tensor(1.0),
            layout=particles.Layout(2),
        )
