"""Splits and kinds of data with unobserved values (NaN)."""

import math

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.loading import load_unsplit
from pyro_vae.data.sources import SOURCES, RawData
from pyro_vae.data.splits import contains_nan

NAN = math.nan


def test_a_mask_marks_unobserved_integers():
    counts = torch.tensor([[3, 0], [7, 1]])
    split = pv.data.Split(counts, observed=torch.tensor([[True, False], [True, True]]))
    expected = torch.tensor([[3.0, NAN], [7.0, 1.0]])
    torch.testing.assert_close(split.draw(), expected, equal_nan=True)
    torch.testing.assert_close(split.at(torch.tensor([0])).draw(), expected[:1], equal_nan=True)
    assert split.has_missing
    assert not pv.data.Split(counts).has_missing
    assert torch.equal(pv.data.Split(counts, observed=counts >= 0).draw(), counts.float())


@pytest.mark.parametrize("options", [{"dynamic": True}, {"noisy": True, "peak": 255.0}])
def test_randomness_leaves_unobserved_values_unobserved(options):
    values = torch.tensor([[0.0, NAN, 1.0]] * 4)
    split = pv.data.Split(values, **options)
    for x in (split.draw(), split.materialize(0)):
        assert torch.equal(x.isnan(), values.isnan())
        assert (x[:, 0] < x[:, 2]).all()


def test_observed_values_of_a_dynamic_split_do_not_depend_on_the_others():
    values = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    holes = values.masked_fill(values < 0.3, NAN)
    complete, partial = (pv.data.Split(v, dynamic=True).materialize(3) for v in (values, holes))
    assert torch.equal(complete[values >= 0.3], partial[values >= 0.3])


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (torch.ones(2, 3), r"booleans of shape \(2, 3\).*got torch.float32"),
        (torch.ones(3, dtype=torch.bool), r"booleans of shape \(2, 3\).*shape \(3,\)"),
    ],
)
def test_wrong_masks_raise(observed, message):
    with pytest.raises(ValueError, match=message):
        pv.data.Split(torch.zeros(2, 3), observed=observed)


def test_the_kind_is_that_of_the_observed_values():
    assert pv.data.kind_of(torch.tensor([0.0, NAN, 1.0])) is pv.data.Kind.BINARY
    assert pv.data.kind_of(torch.tensor([0.0, NAN, 300.0])) is pv.data.Kind.COUNTS
    assert pv.data.kind_of(torch.tensor([0.5, NAN, -1.0])) is pv.data.Kind.REAL
    with pytest.raises(ValueError, match=r"at least one observed value; got NaN for all 2"):
        pv.data.kind_of(torch.tensor([NAN, NAN]))
    with pytest.raises(ValueError, match=r"got 1 infinite of 3"):
        pv.data.kind_of(torch.tensor([NAN, math.inf, 0.0]))


def test_infinite_values_are_not_nan():
    assert not contains_nan(torch.tensor([math.inf, -math.inf, 0.0]))
    assert contains_nan(torch.tensor([math.inf, NAN]))


def test_a_file_with_holes_loads_but_has_no_bits_per_dimension(tmp_path):
    values = np.array([[0.0, 3.0], [np.nan, 2.0], [1.0, 5.0], [4.0, 1.0]] * 5, dtype=np.float32)
    np.save(tmp_path / "x.npy", values)
    options = {"path": str(tmp_path / "x.npy"), "valid": 0, "test": 5}
    data = pv.data.load("array", binarize="none", values="integer", **options)
    assert data.kind is pv.data.Kind.LEVELS
    assert data.has_missing
    with pytest.raises(ValueError, match="complete data for bits per dimension; got NaN"):
        data.bits_per_dim(-3.0)


def test_binarising_once_needs_complete_values(monkeypatch):
    raw = RawData(torch.tensor([[0.2, NAN], [0.7, 1.0]] * 5), None, peak=1)
    monkeypatch.setitem(SOURCES, "digits", lambda options: raw)
    options = {"valid": 0, "test": 2}
    assert pv.data.load("digits", binarize="dynamic", **options).train.has_missing
    with pytest.raises(ValueError, match=r"complete values for data\.binarize static; got NaN"):
        pv.data.load("digits", binarize="static", **options)


@pytest.mark.parametrize("how", ["none", "dynamic"])
def test_grey_values_with_holes_are_recognised(how, tmp_path):
    """Of arrays in memory and on the disk, and of data that a model was not trained on."""
    grey = np.random.default_rng(0).random((40, 6))
    holes = np.where(grey < 0.2, NAN, grey)
    np.save(tmp_path / "x.npy", holes)
    data = pv.data.load("array", binarize=how, path=str(tmp_path / "x.npy"))
    assert data.peak == 1 and data.has_missing
    assert data.kind is (pv.data.Kind.BINARY if how == "dynamic" else pv.data.Kind.UNIT)
    x = data.train.draw().numpy()
    stored = holes[data.train.rows]
    np.testing.assert_array_equal(np.isnan(x), np.isnan(stored))
    if how == "none":
        np.testing.assert_array_equal(x, stored.astype("f4"))
    else:
        assert set(x[~np.isnan(x)]) == {0, 1}
    np.save(tmp_path / "x.npy", np.where(holes > 0.9, 7, holes))
    with pytest.raises(
        ValueError, match=r"levels 0 … 1, as in the training data; got values up to"
    ):
        load_unsplit("array", binarize=how, path=str(tmp_path / "x.npy"), peak=1)
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\] or image levels to"):
        pv.data.load("array", binarize="dynamic", path=str(tmp_path / "x.npy"))
