"""Training, validation and test data: own files, groups and classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv

RNG = np.random.default_rng(0)


@pytest.fixture
def file(tmp_path):
    """300 examples of four classes, one of them rare, of 30 patients with 1 to 19 examples."""
    classes = np.repeat([0, 1, 2, 3], [250, 40, 8, 2])
    patients = RNG.choice(30, 300, p=np.arange(1, 31) / 465)
    x = np.arange(300.0)[:, None].repeat(2, 1) / 7
    path = tmp_path / "x.npz"
    np.savez(path, x=x, y=classes, patient=np.array([f"p{p}" for p in patients]))
    return path


def load(file: Path, **options):
    return pv.data.load("array", path=str(file), binarize="none", key="x", **options)


@pytest.mark.parametrize("seed", range(4))
def test_stratified_splits_have_every_class_in_proportion(file, seed):
    data = load(file, labels_key="y", stratify=True, test=0.2, valid=0.1, seed=seed)
    counts = [s.labels.bincount(minlength=4).tolist() for s in (data.train, data.valid, data.test)]
    # 2 examples of the rarest class: one is held out, and the other one is left for training
    assert counts[2] == [50, 8, 2, 1]
    assert counts[1] == [20, 3, 1, 0]
    assert np.sum(counts, 0).tolist() == [250, 40, 8, 2]
    rows = torch.cat([data.train.rows, data.valid.rows, data.test.rows])
    assert sorted(rows.tolist()) == [*range(300)]
    assert not bool((data.train.labels.diff() >= 0).all())  # in random order


def test_groups_stay_on_one_side(file):
    data = load(file, groups_key="patient", test=0.2, valid=40)
    patients = np.load(file)["patient"]
    found = [set(patients[split.rows]) for split in (data.train, data.valid, data.test)]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert set.union(*found) == set(patients)
    # no group of the data has more than 30 examples
    largest = np.unique(patients, return_counts=True)[1].max()
    assert abs(len(data.test) - 60) <= largest / 2 + 1
    assert abs(len(data.valid) - 40) <= largest / 2 + 1
    assert not torch.equal(load(file, groups_key="patient", seed=1).test.rows, data.test.rows)
    assert len(load(file, groups_key="patient", test=0, valid=0).train) == 300


def test_own_files_for_each_part(tmp_path):
    parts = {name: RNG.normal(size=(n, 3)) for name, n in (("x", 20), ("v", 4), ("t", 6))}
    for name, values in parts.items():
        np.save(tmp_path / f"{name}.npy", values)
    paths = {name: str(tmp_path / f"{name}.npy") for name in parts}
    both = pv.data.load(
        "array", binarize="none", path=paths["x"], valid=paths["v"], test=paths["t"]
    )
    for split, name in ((both.train, "x"), (both.valid, "v"), (both.test, "t")):
        np.testing.assert_array_equal(split.values, parts[name])
        assert split.rows.tolist() == [*range(len(parts[name]))]
    assert both.take("all").rows.tolist() == [*range(20), *range(4), *range(6)]
    one = pv.data.load("array", binarize="none", path=paths["x"], valid=5, test=paths["t"])
    assert (len(one.train), len(one.valid), len(one.test)) == (15, 5, 6)


def test_classes_of_several_files_have_the_same_numbers(tmp_path):
    def save(name: str, labels: list[str]) -> str:
        np.savez(tmp_path / name, x=RNG.normal(size=(len(labels), 2)), y=np.array(labels))
        return str(tmp_path / name)

    train, test = save("a.npz", ["T", "B", "", "NK"]), save("b.npz", ["T", "B", "T", ""])
    data = partial(pv.data.load, "array", binarize="none", path=train, key="x", labels_key="y")
    loaded = data(test=test, valid=0)
    assert loaded.classes == ("B", "NK", "T")
    assert loaded.train.labels.tolist() == [[2, 0, -1, 1][i] for i in loaded.train.rows]
    assert loaded.test.labels.tolist() == [2, 0, 2, -1]
    assert loaded.num_classes == 3
    with pytest.raises(ValueError, match=r"expected classes of the training data \(B, NK, T\).*DC"):
        data(test=save("c.npz", ["DC"]), valid=0)


def test_dark_test_images_have_the_scale_of_the_training_images(tmp_path):
    np.save(tmp_path / "x.npy", np.full((5, 2, 2), 255, np.uint8))
    np.save(tmp_path / "t.npy", np.ones((3, 2, 2), np.uint8))
    data = pv.data.load(
        "array", binarize="none", path=f"{tmp_path}/x.npy", test=f"{tmp_path}/t.npy", valid=0
    )
    assert data.test.draw().unique().tolist() == [pytest.approx(1 / 255)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stratify": True}, r"expected class labels for data\.stratify; got none"),
        ({"stratify": True, "groups_key": "patient"}, r"data\.groups_key or data\.stratify; got b"),
        ({"groups_key": "x"}, r"expected one group for each of 300 examples .* \(300, 2\)"),
        ({"groups_key": "z"}, r"data\.groups_key to name an array .*; got 'z'"),
    ],
)
def test_unsuitable_groups_and_classes_raise(file, options, message):
    with pytest.raises(ValueError, match=message):
        load(file, **options)


def test_files_of_named_sets_raise(tmp_path):
    with pytest.raises(ValueError, match=r"data\.test to be a number .* 'digits'; got the file x"):
        pv.data.load("digits", binarize="none", test="x.npy")
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    np.save(tmp_path / "t.npy", np.zeros((9, 3)))
    with pytest.raises(ValueError, match=r"expected examples of shape \(2,\) in .*t.npy"):
        pv.data.load("array", binarize="none", path=f"{tmp_path}/x.npy", test=f"{tmp_path}/t.npy")
