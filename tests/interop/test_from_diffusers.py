"""Programs from diffusers' AutoencoderKL: its own terms are ours, and the optimal noise."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import pyro_vae as pv
from pyro_vae.interop import from_diffusers
from pyro_vae.programs.particles import run_particles


@pytest.fixture(scope="module")
def autoencoder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=2,
        norm_num_groups=2,
    )


def test_terms_are_its_own(autoencoder):
    x = 2 * torch.rand(5, 3, 8, 8) - 1
    program = from_diffusers(autoencoder, noise=0.3, data=x)
    assert program.latent_dim == 2 * 4 * 4
    with torch.no_grad():
        run = run_particles(program.model, program.guide, x, num_samples=2)
        latents = autoencoder.encode(x).latent_dist
        for z, log_p in zip(run.latents["z"], run.log_p["x"], strict=True):
            mean = autoencoder.decode(z.reshape(latents.mean.shape)).sample
            torch.testing.assert_close(log_p, Normal(mean, 0.3).log_prob(x).flatten(1).sum(1))
        divergence = kl_divergence(program.posterior(x), program.prior())
    torch.testing.assert_close(divergence, latents.kl(), rtol=1e-4, atol=1e-4)
    bounds = pv.evaluate(program, x, num_samples=60, ks=(5,))
    assert bounds.elbo < bounds.log_evidence


def test_optimal_noise(autoencoder):
    """σ² is the mean squared error of reconstructions from samples of q(z|x)."""
    x = 2 * torch.rand(200, 3, 8, 8) - 1
    program = from_diffusers(autoencoder, noise="optimal", data=x)
    with torch.no_grad():
        z = autoencoder.encode(x).latent_dist.sample()
        error = (autoencoder.decode(z).sample - x).square().mean().sqrt()
    assert float(program.likelihood.log_scale.exp()) == pytest.approx(float(error), rel=0.01)
    # the density is then −½ log 2πe σ² per value
    bounds = pv.evaluate(program, x, num_samples=5, ks=(5,))
    with torch.no_grad():
        kl = float(kl_divergence(program.posterior(x), program.prior()).mean())
    entropy = 0.5 * math.log(2 * math.pi * math.e * float(error) ** 2)
    assert bounds.elbo == pytest.approx(-192 * entropy - kl, rel=0.01)


def test_refusals(autoencoder):
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"expected noise, the σ .* does not state; got None"):
        from_diffusers(autoencoder, noise=None, data=x)
    with pytest.raises(ValueError, match=r"expected encode to accept a tensor of shape \(2, 1, 8"):
        from_diffusers(autoencoder, noise=1.0, data=x[:, :1])


def test_other_models():
    with pytest.raises(ValueError, match=r"expected an AutoencoderKL of diffusers.*got a Linear"):
        from_diffusers(nn.Linear(2, 2), noise=1.0, data=torch.zeros(2, 2))
