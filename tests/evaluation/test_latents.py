"""Active units, against models of which they are known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from components import small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method

import pyro_vae as pv
from pyro_vae.evaluation import active_units


def _posterior_mean(program, x):
    return (x - program.b) @ program.W @ program.covariance / program.s**2


class TestTruth:
    @pytest.mark.parametrize("pairs", [1 << 20, 50 * 700])  # at once; blocks, the last ragged
    def test_variance_of_the_posterior_mean(self, pairs, monkeypatch):
        monkeypatch.setattr("pyro_vae.evaluation.latents._PAIRS", pairs)
        program = LinearGaussian(3)
        pyro.set_rng_seed(0)
        x = program.sample(4000)
        found = active_units(program, x, num_samples=50, seed=1)
        # of these very data; what is left is the noise of the draws
        exact = _posterior_mean(program, x).var(0)
        noise = program.covariance.diagonal() / 25
        error = (noise * (2 * exact + noise) / len(x)).sqrt()
        difference = (torch.from_numpy(found.variance["z"]) - exact).abs()
        assert bool((difference < 5 * error).all())  # false alarm below 1e-5
        assert found.counts == {"z": 3}

    def test_a_unit_that_the_data_do_not_move_is_dead(self):
        program = LinearGaussian(3)
        program.W[:, 1] = 0
        precision = torch.eye(3, dtype=torch.float64) + program.W.T @ program.W / program.s**2
        program.covariance = torch.linalg.inv(precision)
        program.factor = torch.linalg.cholesky(program.covariance)
        pyro.set_rng_seed(0)
        found = active_units(program, program.sample(2000), num_samples=50)
        assert found.counts == {"z": 2}
        # its standard error is 1/25 / √2000 = 9e-4; biased by 1/50 it would be called alive
        assert abs(found.variance["z"][1]) < 5e-3

    def test_a_second_layer_and_a_discrete_site(self):
        found = active_units(_Layered(), torch.randn(3000, 1), num_samples=40)
        assert list(found.variance) == ["z1", "z2"]
        # E[z2 | x] = 0.5 E[z1 | x] = 0.5 · 0.8 x
        exact = [0.8**2, 0.4**2]
        for values, variance in zip(found.variance.values(), exact, strict=True):
            # the data's own sampling error is √(2/3000) of it
            assert abs(values[0] - variance) < 5 * variance * (2 / 3000) ** 0.5 + 2e-3


class _Layered(PyroModule):
    """x → y and z1 → z2."""

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
            z1 = pyro.sample("z1", dist.Normal(0.8 * x, 0.6).to_event(1))
            pyro.sample("z2", dist.Normal(0.5 * z1, 0.9).to_event(1))


def test_seeded():
    vae = small_vae()
    x = torch.bernoulli(torch.full((50, *vae.event_shape), 0.5))
    first, again, other = (active_units(vae, x, seed=s).variance["z"] for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize(
    ("size", "num_samples", "message"),
    [
        (1, 64, "expected 2 or more draws of 2 or more data"),
        (9, 1, "expected 2 or more draws of 2 or more data"),
        (9, 0, "expected num_samples to be a positive integer; got 0"),
    ],
)
def test_refusals(size, num_samples, message):
    vae = small_vae()
    with pytest.raises(ValueError, match=message):
        active_units(vae, torch.zeros(size, *vae.event_shape), num_samples=num_samples)


def test_a_split_and_its_name():
    vae = small_vae()
    split = pv.data.Split(torch.bernoulli(torch.full((30, *vae.event_shape), 0.5)))
    found = active_units(vae, split)
    assert str(found).startswith("active units (variance of the posterior mean > 0.01): z ")
