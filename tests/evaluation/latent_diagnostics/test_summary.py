"""Active units, against models of which they are known, and all that latents carry."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from components import POSTERIORS, PROGRAMS, small_vae
from linear_gaussian import LinearGaussian
from pyro.nn import PyroModule, pyro_method

import pyro_vae as pv
from pyro_vae.evaluation import active_units
from pyro_vae.evaluation.latent_diagnostics.elbo_surgery import surgery
from pyro_vae.evaluation.latent_diagnostics.kl import divergences
from pyro_vae.evaluation.latent_diagnostics.summary import latents


def _posterior_mean(program, x):
    return (x - program.b) @ program.W @ program.covariance / program.s**2


class TestTruth:
    @pytest.mark.parametrize("pairs", [1 << 20, 50 * 700])  # at once; blocks, the last ragged
    def test_variance_of_the_posterior_mean(self, pairs, monkeypatch):
        monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.activity._PAIRS", pairs)
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


class TestLatents:
    def test_it_is_all_three_of_the_same_draws(self, tmp_path):
        vae = small_vae()
        x = torch.bernoulli(torch.full((40, 3), 0.5))
        found = latents(vae, x, num_samples=20, num_draws=200, seed=3)
        costs, cut = (
            divergences(vae, x, num_samples=20, seed=3),
            surgery(vae, x, num_draws=200, seed=3),
        )
        assert found.divergences.estimates == costs.estimates
        assert found.surgery is not None and found.surgery.estimates == cut.estimates
        active = active_units(vae, x, num_samples=20, seed=3)
        assert (found.active.variance["z"] == active.variance["z"]).all()
        for part in (str(costs), str(cut), str(active)):
            assert part in str(found)

    def test_summary_is_plain(self):
        vae = small_vae()
        x = torch.bernoulli(torch.full((40, 3), 0.5))
        found = latents(vae, x, num_samples=20, num_draws=200, threshold=0.0)
        told = json.loads(json.dumps(found.summary(), allow_nan=False))
        site = told["sites"]["z"]
        assert site["variance"] == found.active.variance["z"].tolist()
        assert site["active"] == found.active.counts["z"] and site["units"] == 2
        assert site["sorted"] == sorted(site["dimensions"], reverse=True)
        assert sum(site["dimensions"]) == pytest.approx(told["estimates"]["rate"]["value"])
        assert told["surgery"]["estimates"]["mutual_information"]["value"] > 0
        assert told["without_surgery"] is None

    def test_a_flow_without_an_inverse_goes_without_surgery(self):
        vae = small_vae(posterior=POSTERIORS["PlanarFlow"])
        found = latents(vae, torch.bernoulli(torch.full((9, 3), 0.5)), num_samples=4)
        assert found.surgery is None
        assert "no surgery: expected densities that can be scored at any draw" in str(found)
        assert found.summary()["surgery"] is None
        assert found.summary()["sites"]["z"]["sorted"] is None

    def test_a_discrete_site_has_a_cost_and_no_units(self):
        found = latents(_Layered(), torch.randn(60, 1), num_samples=10, num_draws=120)
        sites = found.summary()["sites"]
        assert list(sites) == ["y", "z1", "z2"]
        assert sites["y"]["units"] is None and sites["y"]["total"]["value"] == 0
        assert sites["z1"]["units"] == 1

    def test_netcdf(self, tmp_path):
        vae = small_vae()
        found = latents(vae, torch.bernoulli(torch.full((40, 3), 0.5)), num_draws=20)
        assert found.surgery is not None
        found.to_netcdf(tmp_path / "latents.nc")
        with xarray.open_datatree(tmp_path / "latents.nc", engine="h5netcdf") as tree:
            rate, cut = tree["divergences/rate"].to_numpy(), tree["surgery"].to_dataset()
            assert (rate == found.divergences.per_datum["rate"]).all()
            assert (cut["marginal"].to_numpy() == found.surgery.per_datum["marginal"]).all()
            assert (cut["datum"].to_numpy() == found.surgery.index).all() and len(cut.datum) == 10


def test_active_units_of_a_conditional_program_and_of_a_pair():
    program = PROGRAMS["ConditionalVAE"]((3,), condition=3)
    x, c = torch.bernoulli(torch.full((60, 3), 0.5)), torch.arange(60) % 3
    both = active_units(program, pv.data.Split(x, labels=c)).variance["z"]
    assert (both == active_units((program.model, program.guide), x, c).variance["z"]).all()
    assert (both == active_units(program, x, c=c).variance["z"]).all()
