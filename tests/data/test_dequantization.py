"""Dequantisation, and bits per dimension of the stored levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import pyro_vae as pv
from pyro_vae.data import Kind
from pyro_vae.data.pixel_values import dequantize


def _load(**kwargs):
    return pv.data.load("digits", **{"binarize": "none", "values": "dequantized"} | kwargs)


def test_noise_is_uniform_within_a_level_and_resampled():
    data = _load()
    assert data.values == "dequantized" and data.kind is Kind.UNIT
    levels = pv.data.load("digits", binarize="none", values="integer").train.draw()
    first, second = data.train.draw(), data.train.draw()
    assert not torch.equal(first, second)
    for x in (first, second):
        assert torch.equal((17 * x.double()).floor().float(), levels)
        noise = 17 * x.double() - levels.double()
        # false-alarm rate 1e-4 each
        assert stats.kstest(noise.flatten().numpy(), "uniform").pvalue > 1e-4
    index = torch.tensor([3, 5])
    assert torch.equal((17 * data.train.draw(index).double()).floor().float(), levels[index])


def test_materialize_is_reproducible_and_keeps_the_global_generator():
    split = _load().valid
    before = torch.get_rng_state()
    first = split.materialize(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, split.materialize(7))
    assert not torch.equal(first, split.materialize(8))
    assert split.to("cpu").noisy and split.head(20).noisy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_values_lie_strictly_inside_the_unit_interval(draw, dtype, monkeypatch):
    # the smallest and largest values that torch can sample
    extreme = draw * (1 - torch.finfo(dtype).eps / 2)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, extreme))
    for peak in (1, 16, 255, 65535):
        x = dequantize(torch.tensor([0.0, peak], dtype=dtype), peak)
        assert (x > 0).all() and (x < 1).all()
        # zero noise becomes half a step, not an outlier under a density with a pole at 0
        assert draw or float(x[0].log()) > -60


def test_density_of_dequantised_levels_bounds_the_probability():
    # toy problem: levels 0 … 3 of two pixels, each with density Beta(2, 3)
    fn = torch.distributions.Beta(torch.tensor(2.0).double(), torch.tensor(3.0).double())
    edges = stats.beta(2, 3).cdf(np.arange(5) / 4)
    x = torch.tensor([[0.0, 3.0], [1.0, 2.0]]).double()
    exact = np.log(np.diff(edges)[x.numpy().astype(int)]).sum(-1)
    draws = 20_000
    log_p = torch.stack([fn.log_prob(dequantize(x, 3)).sum(-1) for _ in range(draws)])
    bound = log_p.mean(0) - 2 * math.log(4)
    error = log_p.std(0) / draws**0.5
    # E_u log p ≤ log P, and it agrees with quadrature (5 standard errors)
    assert (bound < torch.from_numpy(exact)).all()
    fine = (np.arange(100_000) + 0.5) / 400_000
    means = np.array([np.log(stats.beta.pdf(fine + j / 4, 2, 3)).mean() for j in range(4)])
    expected = means[x.numpy().astype(int)].sum(-1) - 2 * math.log(4)
    assert (np.abs(bound.numpy() - expected) < 5 * error.numpy()).all()
    # the mean of the density equals the probability exactly
    np.testing.assert_allclose(
        log_p.exp().mean(0).log().numpy() - 2 * math.log(4), exact, atol=5 * float(error.max())
    )


class TestBitsPerDim:
    def test_uniform_density_takes_all_bits_of_a_level(self):
        assert _load().bits_per_dim(0.0) == math.log2(17)
        data = pv.data.load("mnist5k", binarize="none", values="dequantized")
        assert data.bits_per_dim(0.0) == 8.0

    def test_uniform_probabilities_take_all_bits(self):
        levels = pv.data.load("digits", binarize="none", values="integer")
        assert levels.bits_per_dim(-64 * math.log(17)) == pytest.approx(math.log2(17))
        binary = pv.data.load("digits", binarize="dynamic", values="integer")
        assert binary.bits_per_dim(-64 * math.log(2)) == pytest.approx(1)
        assert binary.values == "unit"  # no effect on binary data

    def test_arrays_and_tensors(self):
        data = _load()
        nats = np.array([0.0, 64 * math.log(17)])
        np.testing.assert_allclose(data.bits_per_dim(nats), [math.log2(17), 0], atol=1e-12)
        torch.testing.assert_close(
            data.bits_per_dim(torch.from_numpy(nats)), torch.tensor([math.log2(17), 0]).double()
        )

    def test_density_of_other_values_raises(self):
        message = r"expected integers or dequantised .*; got values in \[0, 1\], .*set data.values"
        with pytest.raises(ValueError, match=message):
            pv.data.load("digits", binarize="none").bits_per_dim(0.0)


@pytest.mark.parametrize("how", ["dynamic", "static", "threshold"])
def test_binarised_data_cannot_be_dequantised(how):
    message = f"expected data.binarize to be none for data.values dequantized; got {how}: "
    with pytest.raises(ValueError, match=message):
        _load(binarize=how)


@pytest.mark.parametrize(
    "values",
    [np.linspace(0, 1, 400), np.linspace(-2, 3, 400), np.arange(400.0)],
    ids=["unit", "reals", "counts"],
)
def test_values_without_levels_cannot_be_dequantised(values, tmp_path):
    np.save(tmp_path / "x.npy", values.reshape(40, 10))
    message = "expected image levels 0 … n to dequantise; got .*: set data.values to unit"
    with pytest.raises(ValueError, match=message):
        pv.data.load("array", binarize="none", values="dequantized", path=str(tmp_path / "x.npy"))


def test_unknown_values_choice_raises():
    with pytest.raises(ValueError, match="expected values to be one of unit, integer, dequantized"):
        _load(values="dequantised")
