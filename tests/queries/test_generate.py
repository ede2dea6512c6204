"""Samples, reconstructions, interpolations and latent traversals."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae import queries

SMALL = partial(pv.networks.MLP, hidden=(8,))


def make_vae(**parts):
    return pv.VAE((5,), 3, encoder=SMALL, decoder=SMALL, **parts)


def sample_binary(size):
    return torch.bernoulli(torch.full((size, 5), 0.5))


def test_samples_are_decoded_prior_samples():
    program = make_vae()
    generated = queries.sample(program, 4000, seed=3)
    assert generated.latents["z"].shape == (4000, 3)
    assert torch.equal(generated.mean, program.likelihood(generated.latents["z"]).mean)
    # 15 comparisons at 5 standard errors: false alarm rate 1 in 10⁵
    assert (generated.latents["z"].mean(0).abs() < 5 / 4000**0.5).all()
    difference = (generated.x - generated.mean).mean(0)
    assert (difference.abs() < 5 * 0.5 / 4000**0.5).all()
    assert queries.sample(program, 2, mean=False).mean is None


def test_model_that_needs_data_uses_a_template():
    program = LinearGaussian(2)
    template = torch.zeros(5000, 6, dtype=torch.float64)
    generated = queries.sample(program, 5000, like=template)
    error = program.marginal.stddev / 5000**0.5
    # 6 means at 5 standard errors: false alarm rate 1 in 10⁵
    assert ((generated.x.mean(0) - program.b).abs() < 5 * error).all()
    assert torch.allclose(generated.mean, generated.latents["z"] @ program.W.T + program.b)
    with pytest.raises(ValueError, match=r"expected a model that runs without data.*like="):
        queries.sample(program, 3)
    with pytest.raises(ValueError, match="expected like to have 3 examples; got 5000"):
        queries.sample(program, 3, like=template)


def test_class_given_with_a_template_is_kept():
    def model(x, y):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.full((2,), 0.5)), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(100.0 * y + z, 1.0), obs=x)

    y = torch.tensor([0, 1, 0, 1])
    generated = queries.sample((model, None), 4, y, like=torch.zeros(4))
    assert torch.equal((generated.x > 50).long(), y)


def test_reconstructions_are_decoded_guide_samples():
    program = LinearGaussian(2)
    x = program.sample(4)
    generated = queries.reconstruct(program, x.repeat(200, 1))
    mean = generated.mean.unflatten(0, (200, 4)).mean(0)
    factor = program.W @ program.factor
    posterior = (x - program.b) @ program.W @ program.covariance / program.s**2
    error = factor.norm(dim=1) / 200**0.5
    # 24 means at 5 standard errors: false alarm rate 1 in 70,000
    assert ((mean - posterior @ program.W.T - program.b).abs() < 5 * error).all()


@pytest.mark.parametrize("path", ["straight", "spherical"])
def test_path_starts_and_ends_at_guide_means(path):
    program = make_vae()
    a, b = sample_binary(6), sample_binary(6)
    generated = queries.interpolate(program, a, b, steps=7, path=path)
    z = generated.latents["z"]
    ends = [program.posterior(x).mean for x in (a, b)]
    assert generated.mean.shape == (7, 6, 5) and z.shape == (7, 6, 3)
    assert torch.allclose(z[0], ends[0], atol=1e-6) and torch.allclose(z[-1], ends[1], atol=1e-6)
    assert torch.allclose(generated.mean, program.likelihood(z).mean)
    if path == "straight":
        assert torch.allclose(z[3], (ends[0] + ends[1]) / 2, atol=1e-6)
    else:
        norms = torch.stack([e.norm(dim=-1) for e in ends])
        expected = torch.lerp(norms[0], norms[1], torch.linspace(0, 1, 7)[:, None])
        assert torch.allclose(z.norm(dim=-1), expected, atol=1e-5)
        # equal angles between steps
        u = torch.nn.functional.normalize(z.double(), dim=-1)
        steps = (u[1:] * u[:-1]).sum(-1).clamp(max=1).acos()
        assert torch.allclose(steps, steps.mean(0).expand_as(steps), atol=1e-4)


def test_spherical_path_between_degenerate_endpoints():
    from pyro_vae.queries.latent_paths import LatentPoint, interpolate_latents

    a = torch.tensor([[1.0, 0.0, 0.0]]).double().repeat(4, 1)
    b = torch.tensor([[-2.0, 0, 0], [3.0, 0, 0], [0.0, 0, 0], [0.0, 1.0, 0]]).double()
    ends = [LatentPoint(x, False, False) for x in (a, b)]
    z = interpolate_latents(*ends, 5, "spherical")
    norms = torch.lerp(a.norm(dim=-1), b.norm(dim=-1), torch.linspace(0, 1, 5).double()[:, None])
    # antipodal, parallel, at the origin, orthogonal
    assert torch.allclose(z.norm(dim=-1), norms)
    assert torch.allclose(z[0], a) and torch.allclose(z[-1], b, atol=1e-12)
    half = math.sqrt(0.5)
    assert torch.allclose(z[2, 3], torch.tensor([half, half, 0.0]).double())


def test_paths_stay_on_the_sphere():
    program = make_vae(prior=pv.priors.UniformSphere, posterior=pv.posteriors.PowerSpherical)
    a, b = sample_binary(6), sample_binary(6)
    generated = queries.interpolate(program, a, b, steps=5)
    assert torch.allclose(generated.latents["z"].norm(dim=-1), torch.ones(5, 6), atol=1e-5)
    assert torch.allclose(generated.latents["z"][0], program.posterior(a).loc, atol=1e-5)
    with pytest.raises(ValueError, match="expected path 'spherical' for latents on the unit sph"):
        queries.interpolate(program, a, b, path="straight")
    traversal = queries.traverse(program, a, values=[-0.5, 0.9])
    assert torch.allclose(traversal.latents["z"].norm(dim=-1), torch.ones(3, 2, 6), atol=1e-5)
    assert torch.allclose(traversal.latents["z"][1, 1, :, 1], torch.full((6,), 0.9))
    with pytest.raises(ValueError, match=r"expected values in \(−1, 1\)"):
        queries.traverse(program, a, values=[-3.0, 3.0])


def test_traversal_changes_one_coordinate():
    program = make_vae()
    x = sample_binary(4)
    generated = queries.traverse(program, x, dims=[2, 0], values=[-3.0, 0.0, 3.0])
    z, start = generated.latents["z"], program.posterior(x).mean
    assert generated.x.shape == (2, 3, 4, 5)
    assert torch.equal(z[0, :, :, 2], torch.tensor([-3.0, 0.0, 3.0])[:, None].expand(3, 4))
    assert torch.equal(z[1, :, :, 0], torch.tensor([-3.0, 0.0, 3.0])[:, None].expand(3, 4))
    assert torch.equal(z[0, :, :, :2], start[:, :2].expand(3, 4, 2))
    assert torch.equal(z[1, :, :, 1:], start[:, 1:].expand(3, 4, 2))
    assert torch.allclose(generated.mean, program.likelihood(z).mean, atol=1e-6)


def test_traversal_follows_the_prior_quantiles():
    generated = queries.traverse(make_vae(), sample_binary(1))
    levels = (torch.arange(9) + 0.5) / 9
    expected = torch.distributions.Normal(0, 1).icdf(levels)
    # the error of the 1/18 quantile of 2000 samples is 0.046; 27 comparisons at 5 errors
    for d in range(3):
        assert torch.allclose(generated.latents["z"][d, :, 0, d], expected, atol=0.23)


class DiscreteTopLayer:
    """A discrete k, a continuous z given k, and two pixels."""

    def model(self, x=None, size=1):
        with pyro.plate("data", size if x is None else len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(k.float(), 1.0))
            return pyro.sample("x", dist.Normal(z[..., None], torch.ones(2)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = -(x.mean(-1, keepdim=True) - torch.arange(3.0)).square()
            k = pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal((k + x.sum(-1)) / 3, 0.5))


def test_two_layers_with_a_discrete_site():
    program = DiscreteTopLayer()
    a, b = torch.zeros(1, 2), torch.full((1, 2), 2.0)
    generated = queries.interpolate(program, a, b, steps=4, path="straight")
    assert generated.latents["k"][:, 0].tolist() == [0, 0, 2, 2]
    # the mean of z given the most probable k
    assert torch.allclose(generated.latents["z"][:, 0], torch.tensor([0.0, 2 / 3, 4 / 3, 2.0]))
    traversal = queries.traverse(program, a, values=[-1.0, 1.0])
    assert traversal.latents["z"].flatten().tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="expected latent to be one of the continuous latents, z;"):
        queries.traverse(program, a, latent="k")
    columns = queries.encode(program, torch.cat([a, b]))
    assert columns["k.mode"].tolist() == [0, 2]
    assert torch.allclose(torch.from_numpy(columns["z.mean"]), torch.tensor([0.0, 2.0]))
    assert columns["z.std"].tolist() == [0.5, 0.5]


INVALID = {
    "path": (lambda p, x: queries.interpolate(p, x, x, path="curved"), "expected path to be"),
    "steps": (lambda p, x: queries.interpolate(p, x, x, steps=1), "expected steps ≥ 2"),
    "ends": (
        lambda p, x: queries.interpolate(p, x, x[:1]),
        "expected x_a and x_b of the same shape",
    ),
    "dims": (lambda p, x: queries.traverse(p, x, dims=[3]), "expected dims from 0 to 2 of 'z'"),
    "size": (lambda p, x: queries.sample(p, 0), "expected size to be a positive integer; got 0"),
    "shape": (lambda p, x: queries.reconstruct(p, x[:, :4]), r"expected x.shape \(N ≥ 1, 5\)"),
    "values": (lambda p, x: queries.reconstruct(p, x + 0.5), "Bernoulli scores only 0/1"),
    "nothing": (lambda p, x: queries.reconstruct(p, None), "expected x to be a tensor of shape"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments(case):
    call, message = INVALID[case]
    with pytest.raises(ValueError, match=message):
        call(make_vae(), sample_binary(3))
