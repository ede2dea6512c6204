"""Tests of reciprocal importance sampling (appendix D of AEVB) against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy import stats

from pyro_vae.evaluation import Bounds, reciprocal
from pyro_vae.evaluation.importance.reciprocal_sampling import _fit_normal

D = torch.float64
#: Of chains whose estimate is not compared with the truth.
SHORT = {"warm_up": 30, "num_steps": 4}


def linear_case(latent_dim, size, **options):
    program = LinearGaussian(latent_dim, 5, **options)
    torch.manual_seed(1)
    x = program.sample(size)
    return program, x, program.log_evidence(x).numpy()


def test_two_dimensions_are_within_a_tenth_of_a_nat():
    program, x, truth = linear_case(2, 10, shift=1.0)
    bounds = reciprocal(program, x, seed=1)
    assert np.abs(bounds.per_datum["reciprocal"] - truth).max() < 0.1
    z = (bounds.per_datum["reciprocal"] - truth) / np.sqrt(bounds.per_datum["reciprocal_variance"])
    assert np.abs(z).max() < 5 and z.std() < 2  # ten chains estimate their spread to 25 %
    assert bounds.per_datum["hmc_acceptance"].min() > 0.6


def test_positive_latent():
    # z ~ Gamma(3, 0.5), x | z ~ Poisson(z): p(x) is a negative binomial
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(3.0, dtype=D), 0.5))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(((x + 3) / 1.5).log(), 0.5))

    x = torch.tensor([0.0, 2.0, 5.0, 9.0], dtype=D)
    bounds = reciprocal((model, guide), x, num_samples=30, seed=1)
    truth = stats.nbinom(3, 1 / 3).logpmf(x.numpy())
    assert np.abs(bounds.per_datum["reciprocal"] - truth).max() < 0.1


def test_more_than_five_dimensions_require_force():
    program, x, truth = linear_case(6, 2)
    with pytest.raises(ValueError, match="expected at most 5 latent dimensions; got 6"):
        reciprocal(program, x)
    # here the posterior is normal, so the fitted density is close to it
    bounds = reciprocal(program, x, num_samples=60, force=True)
    assert np.abs(bounds.per_datum["reciprocal"] - truth).max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 3}, "expected num_chains ≥ 4"),
        ({"num_samples": 0}, "expected num_samples to be a positive integer; got 0"),
        ({"num_samples": 1, "num_chains": 4, "options": SHORT}, "singular for 2 of 2 examples"),
    ],
)
def test_invalid_input(options, message):
    program, x, _ = linear_case(2, 2)
    with pytest.raises(ValueError, match=message):
        reciprocal(program, x, **options)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_rank_of_samples_does_not_depend_on_units(dtype):
    for trial in range(100):
        pyro.set_rng_seed(trial)
        centre, scale = torch.randn(2, 3, 4, dtype=dtype)
        scale = 10 ** (3 * scale)
        line = centre + scale * torch.randn(9, 3, 1, dtype=dtype)
        full = scale * (centre + torch.randn(9, 3, 4, dtype=dtype))
        constant = centre.expand(9, 3, 4)
        rounding = torch.finfo(dtype).eps
        for draws in (line, constant, torch.zeros_like(constant), full[:4]):
            with pytest.raises(ValueError, match="singular for 3 of 3 examples"):
                _fit_normal(draws.double(), rounding)
        deviation = (full.double() - full.double().mean(0)).movedim(0, 1)
        # covariances are compared relative to the units of both dimensions
        unit = deviation.norm(dim=1)
        covariance = (
            _fit_normal(full.double(), rounding).covariance_matrix / unit[:, None] / unit[..., None]
        )
        expected = deviation.mT @ deviation / 8 / unit[:, None] / unit[..., None]
        torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-12)


def test_reproducible_with_checkpoint_and_netcdf(tmp_path):
    program, x, _ = linear_case(2, 3)
    options = {"num_samples": 5, "num_chains": 6, "seed": 1, "options": SHORT}
    first = reciprocal(program, x, **options)
    second = reciprocal(program, x, **options, checkpoint=tmp_path / "kept.npz")
    resumed = reciprocal(program, x, **options, checkpoint=tmp_path / "kept.npz")
    for name, column in first.per_datum.items():
        assert np.array_equal(column, second.per_datum[name])
        assert np.array_equal(column, resumed.per_datum[name])
    first.to_netcdf(tmp_path / "bounds.nc")
    assert Bounds.from_netcdf(tmp_path / "bounds.nc").estimates == first.estimates


def test_memory_does_not_grow_with_samples():
    program, x, _ = linear_case(2, 3)
    sizes = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
            sizes.append(z.numel() // 2)
            pyro.sample("x", dist.Normal(z @ program.W.T, program.s).to_event(1), obs=x)

    reciprocal((model, program.guide), x, num_samples=30, num_chains=4, seed=1, options=SHORT)
    assert max(sizes) == 4 * len(x)
