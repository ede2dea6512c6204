"""Binarisation: reproducibility and mean of each scheme."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.pixel_values import binarize


def test_dynamic_resamples_with_the_grey_value_as_mean():
    train = pv.data.load("digits", binarize="dynamic").train.head(20)
    grey = pv.data.load("digits", binarize="none").train.head(20).draw()
    first, second = train.draw(), train.draw()
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    draws = 4000
    mean = sum(train.draw() for _ in range(draws)) / draws
    # 1280 pixels, each within 5.5 standard errors: false alarm below 1e-4
    error = (grey * (1 - grey) / draws).sqrt()
    assert ((mean - grey).abs() <= 5.5 * error + 1e-6).all()
    # deterministic pixels never change
    assert torch.equal(mean[grey == 0], grey[grey == 0])


def test_static_is_sampled_once_with_the_seed():
    one, same, other = (
        pv.data.load("digits", binarize="static", seed=s).train.values for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    split = pv.data.load("digits", binarize="static").train
    assert torch.equal(split.draw(), split.draw())


def test_static_mean_is_the_grey_value():
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat_interleave(10_000)
    mean = binarize(grey, "static", 3).view(5, -1).double().mean(1)
    # 5 standard errors at grey ½ are 0.025
    torch.testing.assert_close(
        mean, torch.tensor([0, 0.1, 0.5, 0.9, 1.0]).double(), atol=0.025, rtol=0
    )
    assert mean[0] == 0
    assert mean[-1] == 1


def test_threshold_is_one_half():
    grey = torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0])
    assert binarize(grey, "threshold").tolist() == [0, 0, 0, 1, 1]
    values = pv.data.load("digits", binarize="threshold").test.draw()
    grey = pv.data.load("digits", binarize="none").test.draw()
    assert torch.equal(values, (grey > 0.5).float())


def test_none_keeps_grey_values_or_levels():
    unit = pv.data.load("digits", binarize="none")
    levels = pv.data.load("digits", binarize="none", values="integer")
    assert unit.kind is pv.data.Kind.UNIT
    assert levels.kind is pv.data.Kind.LEVELS
    assert levels.train.draw().max() == 16
    torch.testing.assert_close(unit.train.draw(), levels.train.draw() / 16)


@pytest.mark.parametrize("how", ["dynamic", "static", "threshold", "none"])
def test_materialize_is_reproducible_and_keeps_the_global_generator(how):
    split = pv.data.load("digits", binarize=how).valid
    before = torch.get_rng_state()
    first = split.materialize(7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, split.materialize(7))
    assert torch.equal(first, split.materialize(8)) == (how != "dynamic")
