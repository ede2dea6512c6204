"""The estimator of AEVB's appendix D against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy import stats

from pyro_vae.evaluation import Bounds, reciprocal
from pyro_vae.evaluation.reciprocal import _fitted

D = torch.float64


def linear_case(latent_dim, size, **options):
    program = LinearGaussian(latent_dim, 5, **options)
    torch.manual_seed(1)
    x = program.sample(size)
    return program, x, program.log_evidence(x).numpy()


def test_two_dimensions_within_a_tenth_of_a_nat():
    program, x, truth = linear_case(2, 10, shift=1.0)
    found = reciprocal(program, x, seed=1)
    assert np.abs(found.per_datum["reciprocal"] - truth).max() < 0.1
    z = (found.per_datum["reciprocal"] - truth) / np.sqrt(found.per_datum["reciprocal_variance"])
    assert np.abs(z).max() < 5 and z.std() < 2  # ten chains know their spread to a quarter
    assert found.per_datum["hmc_acceptance"].min() > 0.6


def test_a_positive_latent():
    # z ~ Gamma(3, 0.5), x | z ~ Poisson(z): p(x) is a negative binomial
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(3.0, dtype=D), 0.5))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(((x + 3) / 1.5).log(), 0.5))

    x = torch.tensor([0.0, 2.0, 5.0, 9.0], dtype=D)
    found = reciprocal((model, guide), x, seed=1)
    truth = stats.nbinom(3, 1 / 3).logpmf(x.numpy())
    assert np.abs(found.per_datum["reciprocal"] - truth).max() < 0.1


def test_above_five_dimensions_only_if_forced():
    program, x, truth = linear_case(6, 2)
    with pytest.raises(ValueError, match="expected at most 5 latent dimensions; got 6"):
        reciprocal(program, x)
    # the posterior is normal, so that here the fitted density is near it all the same
    found = reciprocal(program, x, num_samples=150, force=True)
    assert np.abs(found.per_datum["reciprocal"] - truth).max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 3}, "expected num_chains ≥ 4"),
        ({"num_samples": 0}, "expected num_samples to be a positive integer; got 0"),
        ({"num_samples": 1, "num_chains": 4}, "singular for 2 of 2 data"),
    ],
)
def test_bad_input(options, message):
    program, x, _ = linear_case(2, 2)
    with pytest.raises(ValueError, match=message):
        reciprocal(program, x, **options)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_draws_are_singular_or_not_whatever_their_units(dtype):
    for trial in range(100):
        pyro.set_rng_seed(trial)
        centre, scale = torch.randn(2, 3, 4, dtype=dtype)
        scale = 10 ** (3 * scale)
        line = centre + scale * torch.randn(9, 3, 1, dtype=dtype)
        full = scale * (centre + torch.randn(9, 3, 4, dtype=dtype))
        still = centre.expand(9, 3, 4)
        rounding = torch.finfo(dtype).eps
        for draws in (line, still, torch.zeros_like(still), full[:4]):
            with pytest.raises(ValueError, match="singular for 3 of 3 data"):
                _fitted(draws.double(), rounding)
        away = (full.double() - full.double().mean(0)).movedim(0, 1)
        # entries of dimensions in other units compare relative to both units
        unit = away.norm(dim=1)
        found = _fitted(full.double(), rounding).covariance_matrix / unit[:, None] / unit[..., None]
        expected = away.mT @ away / 8 / unit[:, None] / unit[..., None]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_repeats_and_goes_to_a_file(tmp_path):
    program, x, _ = linear_case(2, 3)
    one = reciprocal(program, x, num_samples=5, seed=1)
    two = reciprocal(program, x, num_samples=5, seed=1, checkpoint=tmp_path / "kept.npz")
    again = reciprocal(program, x, num_samples=5, seed=1, checkpoint=tmp_path / "kept.npz")
    for name, column in one.per_datum.items():
        assert np.array_equal(column, two.per_datum[name])
        assert np.array_equal(column, again.per_datum[name])
    one.to_netcdf(tmp_path / "bounds.nc")
    assert Bounds.from_netcdf(tmp_path / "bounds.nc").estimates == one.estimates


def test_memory_does_not_grow_with_the_draws():
    program, x, _ = linear_case(2, 3)
    widest = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
            widest.append(z.numel() // 2)
            pyro.sample("x", dist.Normal(z @ program.W.T, program.s).to_event(1), obs=x)

    reciprocal((model, program.guide), x, num_samples=30, num_chains=4, seed=1)
    assert max(widest) == 4 * len(x)
