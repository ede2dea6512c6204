"""Evaluations and queries of data that are not in memory, in blocks of examples."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.utils.data import Dataset

import pyro_vae as pv
from pyro_vae.core import validation
from pyro_vae.core.components import Labels
from pyro_vae.data import Split, containers, splits

X = torch.arange(40.0).reshape(10, 4) / 10
SHIFT = torch.arange(10.0)


class Exact(nn.Module):
    """z ~ N(0, 1), x_i ~ N(z + c, 1), with the exact posterior: every weight is p(x | c)."""

    labels = Labels.CONDITION

    def model(self, x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal((z + c)[..., None] + torch.zeros(4), 1.0).to_event(1), obs=x
            )

    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            mean = (x - c[..., None]).sum(-1) / 5
            pyro.sample("z", dist.Normal(mean, 0.2**0.5))

    @staticmethod
    def log_evidence(x, c):
        covariance = torch.eye(4) + torch.ones(4, 4)
        return dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x - c[:, None])


class ByIndex(Exact):
    """The same program, with the shifts as a parameter that is read by the index of the plate."""

    labels = Labels.UNUSED

    def model(self, x):
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0)) + SHIFT[i]
            pyro.sample("x", dist.Normal(z[..., None] + torch.zeros(4), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(-1) / 5, 0.2**0.5))


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], SHIFT[i]


@pytest.fixture(autouse=True)
def _blocks_of_three(monkeypatch):
    monkeypatch.setattr(containers, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(containers, "_BLOCK_BYTES", 3 * 4 * 4)


def make_vae():
    def network(in_shape, out_shape):
        return pv.networks.MLP(in_shape, out_shape, hidden=(5,))

    options = {"encoder": network, "decoder": network}
    return pv.VAE((4,), 2, likelihood=pv.likelihoods.Gaussian, **options)


def memory_map(path):
    stored = np.memmap(path, mode="w+", dtype=np.float32, shape=(10, 4))
    stored[:] = X.numpy()
    stored.flush()
    return stored


def test_evaluate(tmp_path):
    exact = Exact.log_evidence(X, SHIFT)
    rows = torch.arange(10).flip(0)
    stream = Split(memory_map(tmp_path / "x"), labels=SHIFT, rows=rows)
    for data in (stream, Pairs()):
        bounds = pv.evaluate(Exact(), data, num_samples=3, keep_log_weights=True)
        expected = torch.full((3, 1), 1.0) * exact
        np.testing.assert_allclose(bounds.log_weights, expected, rtol=1e-4)
        np.testing.assert_allclose(bounds.per_datum["elbo"], exact, rtol=1e-4)
    # arguments per example are split with the data
    bounds = pv.evaluate(Exact(), memory_map(tmp_path / "y"), SHIFT, num_samples=3)
    np.testing.assert_allclose(bounds.per_datum["log_evidence"], exact, rtol=1e-4)
    stream = pv.evaluate(Exact(), stream, num_samples=3)
    assert stream.rows.tolist() == rows.tolist() and stream.seed == 0


def test_blocks_have_different_random_numbers(tmp_path):
    # the same example in every row
    x = sparse.csr_matrix(np.ones((9, 4), np.float32))
    vae = make_vae()
    bounds = pv.evaluate(vae, x, num_samples=2, keep_log_weights=True)
    assert len(np.unique(bounds.log_weights)) == 18
    again = pv.evaluate(vae, x, num_samples=2, keep_log_weights=True)
    assert np.array_equal(bounds.log_weights, again.log_weights)
    draws = pv.queries.encode(vae, x)
    assert draws["z.mean"].shape == (9, 2) and len(np.unique(draws["z.mean"])) <= 4


def test_estimators_and_checkpoints_of_blocks(tmp_path):
    stream = Split(memory_map(tmp_path / "x"), labels=SHIFT)
    ais = pv.evaluation.Annealing(num_chains=2, num_temperatures=2, num_steps=1)
    options = {"num_samples": 3, "estimators": [ais], "checkpoint": tmp_path / "c"}
    bounds = pv.evaluate(Exact(), stream, **options)
    assert bounds.per_datum["ais"].shape == (10,)
    # one file for each of four blocks
    assert len(list(tmp_path.glob("c.examples*.ais"))) == 4
    again = pv.evaluate(Exact(), stream, **options)
    assert np.array_equal(bounds.per_datum["ais"], again.per_datum["ais"])


def test_encode(tmp_path):
    stream = Split(memory_map(tmp_path / "x"), labels=SHIFT)
    columns = pv.queries.encode(Exact(), stream)
    np.testing.assert_allclose(columns["z.mean"], (X - SHIFT[:, None]).sum(1) / 5, rtol=1e-5)
    assert columns["labels"].tolist() == SHIFT.tolist()


def test_index_of_the_plate_is_refused(tmp_path):
    with_index = pv.evaluate(ByIndex(), X, num_samples=2)
    assert len(with_index) == 10
    message = "expected a program that does not read the index of the plate, for data that are"
    with pytest.raises(ValueError, match=message):
        pv.evaluate(ByIndex(), memory_map(tmp_path / "x"), num_samples=2)
    with pytest.raises(ValueError, match=message):
        pv.queries.encode(ByIndex(), memory_map(tmp_path / "y"))


def test_other_evaluations_and_queries_take_any_data():
    arrays = X.tolist(), sparse.csr_matrix(X.numpy())
    vae = make_vae()
    torch.manual_seed(0)
    expected = pv.log_weights(vae.model, vae.guide, X, num_samples=2)
    kl = pv.evaluation.latents(vae, X, num_samples=4).to_datatree()
    rebuilt = pv.queries.reconstruct(vae, X)
    for data in arrays:
        torch.manual_seed(0)
        assert torch.equal(pv.log_weights(vae.model, vae.guide, data, num_samples=2), expected)
        assert pv.evaluation.latents(vae, data, num_samples=4).to_datatree().identical(kl)
        assert torch.equal(pv.queries.reconstruct(vae, data).x, rebuilt.x)
        between = pv.queries.interpolate(vae, data, data, steps=2)
        assert between.x.shape == (2, 10, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda vae, x: pv.evaluation.ais(vae, x),
        lambda vae, x: pv.evaluation.gaps(vae, x),
        lambda vae, x: pv.evaluation.latents(vae, x),
        lambda vae, x: pv.evaluation.calibration(vae, x),
        lambda vae, x: pv.bdmc(vae, x),
        lambda vae, x: pv.queries.score_missing(vae, x, observed=torch.ones(4) > 0),
        lambda vae, x: pv.queries.reconstruct(vae, x),
    ],
)
def test_data_that_exceed_the_memory_are_refused(use, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "free_memory", lambda: 100)
    x = memory_map(tmp_path / "x")
    message = "expected the examples to fit into 0.0 GiB, the free .*: pass some of them, e.g. spl"
    with pytest.raises(ValueError, match=message):
        use(make_vae(), x)
    # a part of them is read alone
    part = Split(x).head(6)
    assert pv.evaluate(make_vae(), x, num_samples=2).per_datum["elbo"].shape == (10,)
    assert pv.queries.reconstruct(make_vae(), part).x.shape == (6, 4)


def test_samples_that_exceed_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"expected the samples .*: use fewer draws, or pass some"):
        pv.queries.impute(make_vae(), memory_map(tmp_path / "x"), draws=3)


def test_containers_are_read_as_a_whole_by_blocks(tmp_path):
    for options in ({}, {"dynamic": True}):
        values = memory_map(tmp_path / "x"), X
        stored, resident = (splits.materialize(Split(v, 4.0, **options), 3) for v in values)
        assert torch.equal(stored, resident)


def test_free_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(validation, "_CGROUP", tmp_path)
    whole = validation.free_memory()
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   600 kB\n")
    assert validation.free_memory() == 600 * 1024 < whole
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nfile 900000\n")
    assert validation.free_memory() == 300000
    (tmp_path / "memory.max").write_text("max\n")
    assert validation.free_memory() == 600 * 1024
