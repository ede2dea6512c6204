"""Active units of models with known values, and the summary of all latent diagnostics."""

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
from pyro_vae.evaluation.latent_diagnostics.summary import Latents, latents


def compute_posterior_mean(program, x):
    return (x - program.b) @ program.W @ program.covariance / program.s**2


class TestTruth:
    @pytest.mark.parametrize(
        "pairs", [1 << 20, 50 * 700]
    )  # one block; several blocks, the last one smaller
    def test_variance_of_the_posterior_mean(self, pairs, monkeypatch):
        monkeypatch.setattr("pyro_vae.evaluation.latent_diagnostics.activity._PAIRS", pairs)
        program = LinearGaussian(3)
        pyro.set_rng_seed(0)
        x = program.sample(4000)
        result = active_units(program, x, num_samples=50, seed=1)
        # exact for these examples, up to the noise of the samples
        exact = compute_posterior_mean(program, x).var(0)
        noise = program.covariance.diagonal() / 25
        error = (noise * (2 * exact + noise) / len(x)).sqrt()
        difference = (torch.from_numpy(result.variance["z"]) - exact).abs()
        assert bool((difference < 5 * error).all())  # false alarm rate < 1e-5
        assert result.counts == {"z": 3}

    def test_unit_without_influence_on_x_is_inactive(self):
        program = LinearGaussian(3)
        program.W[:, 1] = 0
        precision = torch.eye(3, dtype=torch.float64) + program.W.T @ program.W / program.s**2
        program.covariance = torch.linalg.inv(precision)
        program.factor = torch.linalg.cholesky(program.covariance)
        pyro.set_rng_seed(0)
        result = active_units(program, program.sample(2000), num_samples=50)
        assert result.counts == {"z": 2}
        # its standard error is 1/25 / √2000 = 9e-4; with a bias of 1/50 it would count as active
        assert abs(result.variance["z"][1]) < 5e-3

    def test_second_layer_and_discrete_site(self):
        result = active_units(TwoLayers(), torch.randn(3000, 1), num_samples=40)
        assert list(result.variance) == ["z1", "z2"]
        # E[z2 | x] = 0.5 E[z1 | x] = 0.5 · 0.8 x
        exact = [0.8**2, 0.4**2]
        for values, variance in zip(result.variance.values(), exact, strict=True):
            # the relative sampling error of the data is √(2/3000)
            assert abs(values[0] - variance) < 5 * variance * (2 / 3000) ** 0.5 + 2e-3


class TwoLayers(PyroModule):
    """Two continuous layers z1 and z2, and a discrete site y."""

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


def test_active_units_are_seeded():
    vae = small_vae()
    x = torch.bernoulli(torch.full((50, *vae.event_shape), 0.5))
    first, again, other = (active_units(vae, x, seed=s).variance["z"] for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize(
    ("size", "num_samples", "message"),
    [
        (1, 64, "expected at least 2 samples of at least 2 examples"),
        (9, 1, "expected at least 2 samples of at least 2 examples"),
        (9, 0, "expected num_samples to be a positive integer; got 0"),
    ],
)
def test_invalid_sizes(size, num_samples, message):
    vae = small_vae()
    with pytest.raises(ValueError, match=message):
        active_units(vae, torch.zeros(size, *vae.event_shape), num_samples=num_samples)


def test_active_units_of_a_split():
    vae = small_vae()
    split = pv.data.Split(torch.bernoulli(torch.full((30, *vae.event_shape), 0.5)))
    result = active_units(vae, split)
    assert str(result).startswith("active units (variance of the posterior mean > 0.01): z ")


class TestLatents:
    def test_latents_combines_all_three_diagnostics(self, tmp_path):
        vae = small_vae()
        x = torch.bernoulli(torch.full((40, 3), 0.5))
        result = latents(vae, x, num_samples=20, num_draws=200, seed=3)
        kl = divergences(vae, x, num_samples=20, seed=3)
        parts = surgery(vae, x, num_draws=200, seed=3)
        assert result.divergences.estimates == kl.estimates
        assert result.surgery is not None and result.surgery.estimates == parts.estimates
        active = active_units(vae, x, num_samples=20, seed=3)
        assert (result.active.variance["z"] == active.variance["z"]).all()
        for text in (str(kl), str(parts), str(active)):
            assert text in str(result)

    def test_summary_is_json_serializable(self):
        vae = small_vae()
        x = torch.bernoulli(torch.full((40, 3), 0.5))
        result = latents(vae, x, num_samples=20, num_draws=200, threshold=0.0)
        summary = json.loads(json.dumps(result.summary(), allow_nan=False))
        site = summary["sites"]["z"]
        assert site["variance"] == result.active.variance["z"].tolist()
        assert site["active"] == result.active.counts["z"] and site["units"] == 2
        assert site["sorted"] == sorted(site["dimensions"], reverse=True)
        assert sum(site["dimensions"]) == pytest.approx(summary["estimates"]["rate"]["value"])
        assert summary["surgery"]["estimates"]["mutual_information"]["value"] > 0
        assert summary["without_surgery"] is None

    def test_flow_without_inverse_has_no_surgery(self):
        vae = small_vae(posterior=POSTERIORS["PlanarFlow"])
        result = latents(vae, torch.bernoulli(torch.full((9, 3), 0.5)), num_samples=4)
        assert result.surgery is None
        assert "no ELBO surgery: expected densities that can be evaluated anywhere" in str(result)
        assert result.summary()["surgery"] is None
        assert result.summary()["sites"]["z"]["sorted"] is None

    def test_discrete_site_has_kl_but_no_units(self):
        result = latents(TwoLayers(), torch.randn(60, 1), num_samples=10, num_draws=120)
        sites = result.summary()["sites"]
        assert list(sites) == ["y", "z1", "z2"]
        assert sites["y"]["units"] is None and sites["y"]["total"]["value"] == 0
        assert sites["z1"]["units"] == 1

    def test_netcdf_columns(self, tmp_path):
        vae = small_vae()
        result = latents(vae, torch.bernoulli(torch.full((40, 3), 0.5)), num_draws=20)
        assert result.surgery is not None
        result.to_netcdf(tmp_path / "latents.nc")
        loaded = Latents.from_netcdf(tmp_path / "latents.nc")
        assert str(loaded) == str(result) and loaded.summary() == result.summary()
        with xarray.open_datatree(tmp_path / "latents.nc", engine="h5netcdf") as tree:
            rate, group = tree["divergences/rate"].to_numpy(), tree["surgery"].to_dataset()
            assert (rate == result.divergences.per_datum["rate"]).all()
            assert (group["marginal"].to_numpy() == result.surgery.per_datum["marginal"]).all()
            assert (group["datum"].to_numpy() == result.surgery.index).all() and len(
                group.datum
            ) == 10

    def test_netcdf_of_discrete_site_and_without_surgery(self, tmp_path):
        data = torch.bernoulli(torch.full((9, 3), 0.5))
        without = latents(small_vae(posterior=POSTERIORS["PlanarFlow"]), data, num_samples=4)
        discrete = latents(TwoLayers(), torch.randn(60, 1), num_samples=10, num_draws=120)
        for result in (without, discrete):
            result.to_netcdf(tmp_path / "latents.nc")
            loaded = Latents.from_netcdf(tmp_path / "latents.nc")
            assert str(loaded) == str(result) and loaded.summary() == result.summary()


def test_active_units_of_a_conditional_program_and_of_a_pair():
    program = PROGRAMS["ConditionalVAE"]((3,), condition=3)
    x, c = torch.bernoulli(torch.full((60, 3), 0.5)), torch.arange(60) % 3
    both = active_units(program, pv.data.Split(x, labels=c)).variance["z"]
    assert (both == active_units((program.model, program.guide), x, c).variance["z"]).all()
    assert (both == active_units(program, x, c=c).variance["z"]).all()
