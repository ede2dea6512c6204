"""Encoding of a data set, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

import pyro_vae as pv
from pyro_vae import queries


def test_file_round_trip(tmp_path):
    vae = pv.VAE((4,), 2)
    split = pv.data.Split(torch.bernoulli(torch.full((23, 4), 0.5)), labels=torch.arange(23))
    columns = queries.encode(vae, split, path=tmp_path / "z.npz", chunk_size=10)
    with np.load(tmp_path / "z.npz", allow_pickle=False) as file:
        assert set(file) == {"z.mean", "z.std", "labels"} == set(columns)
        for name in file:
            np.testing.assert_array_equal(file[name], columns[name])
    q = vae.posterior(split.values)
    np.testing.assert_allclose(columns["z.mean"], q.mean.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(columns["z.std"], q.stddev.detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(columns["labels"], np.arange(23))


def test_a_table_is_no_file_of_latents(tmp_path):
    vae = pv.VAE((3,), 2)
    with pytest.raises(ValueError, match=r"path to be that of an \.npz file; got .*z\.csv: "):
        queries.encode(vae, torch.zeros(2, 3), path=tmp_path / "z.csv")


def test_correlated_guide_gives_marginal_standard_deviations():
    program = LinearGaussian(2)
    columns = queries.encode(program, program.sample(3))
    expected = program.covariance.diagonal().sqrt().expand(3, 2)
    np.testing.assert_allclose(columns["z.std"], expected.numpy(), rtol=1e-12)


def test_flow_gives_samples_and_sphere_gives_directions():
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    flow = pv.VAE((4,), 2, posterior=pv.posteriors.PlanarFlow)
    first, again = (queries.encode(flow, x, seed=s)["z.draw"] for s in (0, 1))
    assert first.shape == (6, 2) and not np.array_equal(first, again)
    sphere = pv.VAE((4,), 3, prior=pv.priors.UniformSphere, posterior=pv.posteriors.PowerSpherical)
    columns = queries.encode(sphere, x)
    assert set(columns) == {"z.direction"}
    np.testing.assert_allclose(np.linalg.norm(columns["z.direction"], axis=1), 1, rtol=1e-5)


def test_existing_file_is_kept_if_writing_fails(tmp_path, monkeypatch):
    vae, x = pv.VAE((4,), 2), torch.zeros(3, 4)
    path = tmp_path / "codes"  # the name is used as given, without .npz
    queries.encode(vae, x, path=path)
    before = path.read_bytes()

    def raise_disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", raise_disk_full)
    with pytest.raises(OSError, match=r"could not write .*codes, the previous file is kept: No sp"):
        queries.encode(vae, x + 1, path=path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["codes"]


def test_weight_noise_is_not_a_latent():
    x = torch.bernoulli(torch.full((3, 4), 0.5))
    program = pv.BayesianVAE((4,), 2)
    assert set(queries.encode(program, x)) == {"z.mean", "z.std"}
    traversal = queries.traverse(program, x[:1])
    assert len(traversal.x) == 2  # the two dimensions of z
    with pytest.raises(ValueError, match="expected latent to be one of the continuous latents, z;"):
        queries.traverse(program, x[:1], latent="network.layers.0.noise")
