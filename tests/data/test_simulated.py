"""Simulated and bundled data sets for the studies of counts and of colour."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.datasets import load_sample_images

import pyro_vae as pv
from pyro_vae.data.sources import cells_log_prob
from pyro_vae.data.sources.simulated import _parameters


def test_true_log_prob_of_cells_matches_an_adaptive_quadrature():
    data = pv.data.load("cells", binarize="none", values="integer")
    x = data.test.values[:1]
    probs, profiles, theta = _parameters()

    def joint(log_library, counts, profile):
        rates = math.exp(log_library) * profile
        score = stats.nbinom.logpmf(counts, theta, theta / (theta + rates)).sum()
        # relative to e⁻¹⁰⁰, because the quadrature stops at an absolute error
        return math.exp(100 + score + stats.norm.logpdf(log_library, math.log(100), 0.4))

    expected = [
        math.log(
            sum(
                p * integrate.quad(joint, 3.2, 6, (counts.numpy(), profile), epsabs=0, limit=200)[0]
                for p, profile in zip(probs, profiles, strict=True)
            )
        )
        - 100
        for counts in x
    ]
    np.testing.assert_allclose(cells_log_prob(x), expected, rtol=1e-6)


def test_cells_have_the_moments_of_the_simulation():
    data = pv.data.load("cells", binarize="none", values="integer", valid=0.1)
    assert (len(data.train), len(data.valid), len(data.test)) == (3240, 360, 400)
    x = torch.cat([data.train.values, data.valid.values, data.test.values]).double()
    types = torch.cat([data.train.labels, data.valid.labels, data.test.labels])
    assert 0.77 < float((x == 0).double().mean()) < 0.79
    probs, profiles, _ = _parameters()
    frequencies = torch.bincount(types).numpy() / len(types)
    assert np.abs(frequencies - probs).max() < 0.03  # 4 standard errors
    # E[ℓ] = 100 exp(0.4² / 2)
    mean = 100 * math.exp(0.08) * probs @ profiles
    spread = x.std(0).numpy() / len(x) ** 0.5
    # false-alarm rate 200 · 6e-7
    assert (np.abs(x.mean(0).numpy() - mean) < 5 * spread + 1e-3).all()


def test_patches_are_regions_of_the_photographs():
    data = pv.data.load("patches", binarize="none", values="integer", valid=0.1)
    assert (len(data.train), len(data.valid), len(data.test)) == (1404, 156, 520)
    china, flower = load_sample_images()["images"]
    found = {"train": data.train, "valid": data.valid, "test": data.test}
    patches = {name: {p.numpy().tobytes() for p in split.values} for name, split in found.items()}
    for label, photograph in enumerate((china, flower)):
        for row in (0, 13, 25):
            for column in (0, 17, 29, 30, 39):
                pixels = photograph[16 * row :, 16 * column :][:16, :16].transpose(2, 0, 1)
                known = np.ascontiguousarray(pixels).tobytes()
                names = ["test"] if column >= 30 else ["train", "valid"]
                assert any(known in patches[name] for name in names), (label, row, column)
    # validation patches are whole columns, so that no neighbour above or below is for training
    assert data.valid.rows is None or len(set((data.valid.rows // 26).tolist())) == 6
    assert set(data.test.labels.tolist()) == {0, 1}


def test_patches_of_photographs_of_scikit_image():
    skimage_data = pytest.importorskip("skimage.data")
    names = ["rocket", "china", "chelsea"]
    data = pv.data.load("patches", photographs=names, binarize="none", values="integer", valid=0.1)
    assert data.classes == tuple(names)
    # 40, 40 and 28 columns of patches, of which the last quarter is for testing
    assert data.test.labels.bincount().tolist() == [10 * 26, 10 * 26, 7 * 18]
    cat = skimage_data.chelsea()
    # the first column of the test set, from the top
    column = data.test.draw()[2 * 260 : 2 * 260 + 18].numpy()
    assert (
        column == cat[:288, 21 * 16 : 22 * 16].reshape(18, 16, 16, 3).transpose(0, 3, 1, 2)
    ).all()
    # columns stay on one side
    sizes = [len(split) for split in (data.train, data.valid)]
    assert sum(sizes) == 2 * 30 * 26 + 21 * 18 and abs(sizes[1] - 0.1 * sum(sizes)) < 26
    starts = [0, 30 * 26, 60 * 26]
    columns = [
        {
            (label, (row - starts[label]) // (18 if label == 2 else 26))
            for row, label in zip(split.rows.tolist(), split.labels.tolist(), strict=True)
        }
        for split in (data.train, data.valid)
    ]
    assert len(columns[0]) + len(columns[1]) == 30 + 30 + 21
    for wrong in (["chelsae"], [], ["china", "china"]):
        with pytest.raises(
            ValueError, match=r"data\.photographs to be a list of some of china, fl"
        ):
            pv.data.load("patches", photographs=wrong, binarize="none")
    with pytest.raises(ValueError, match=r"got data\.stratify for the groups of 'patches'"):
        pv.data.load("patches", photographs=names, binarize="none", stratify=True)
