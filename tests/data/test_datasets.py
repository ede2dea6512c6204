"""Data sets: sizes, kinds, splits, labels and sources."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Kind
from pyro_vae.data.datasets import Split

#: name: ((train, valid, test sizes), event shape, highest level, has labels)
NAMED = {
    "digits": ((1455, 162, 180), (1, 8, 8), 16, True),
    "mnist5k": ((4050, 450, 500), (1, 28, 28), 255, True),
    "mnist": ((54000, 6000, 10000), (1, 28, 28), 255, True),
    "frey": ((1592, 177, 196), (1, 28, 20), 255, False),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_data_sets(name, real_data):
    sizes, shape, highest, labelled = NAMED[name]
    data = pv.data.load(name, binarize="none", root=str(real_data))
    splits = (data.train, data.valid, data.test)
    assert tuple(map(len, splits)) == sizes
    assert data.event_shape == shape
    assert data.kind is Kind.UNIT
    assert all(s.values.dtype == torch.uint8 for s in splits)
    assert max(int(s.values.max()) for s in splits) <= highest
    assert data.train.draw().min() == 0 or name == "frey"  # no pixel of a face is black
    assert data.train.draw().max() <= 1
    if labelled:
        assert set(data.train.labels.tolist()) == set(range(10))
        assert len(data.test.labels) == sizes[2]
    else:
        assert data.train.labels is None


def test_fashion_mnist_without_network_raises(real_data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected FashionMNIST/raw under .*data\.root"):
        # a file in place of the folder fails without network access
        (tmp_path / "FashionMNIST").write_text("")
        pv.data.load("fashion_mnist", binarize="dynamic", root=str(tmp_path))


def test_splits_partition_the_data(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(1000, 1103))
    data = pv.data.load(
        "array", binarize="none", path=str(tmp_path / "rows.npy"), valid=0.2, test=13
    )
    parts = [s.values.tolist() for s in (data.train, data.valid, data.test)]
    assert [len(p) for p in parts] == [72, 18, 13]
    assert sorted(itertools.chain(*parts)) == list(range(1000, 1103))
    assert parts[0] != sorted(parts[0])  # shuffled, so that head() is a random sample


def test_seed_determines_split_and_checksum():
    one, same, other = (pv.data.load("digits", binarize="dynamic", seed=s) for s in (3, 3, 4))
    assert one.checksum == same.checksum != other.checksum
    assert torch.equal(one.train.values, same.train.values)
    assert torch.equal(one.test.labels, same.test.labels)
    assert not torch.equal(one.test.values, other.test.values)


def test_labels_stay_with_their_images():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (image.astype(np.uint8).tobytes() for image in bunch.images)
    known = dict(zip(images, bunch.target.tolist(), strict=True))
    test = pv.data.load("digits", binarize="none").test
    assert all(
        known[v.numpy().tobytes()] == y for v, y in zip(test.values, test.labels, strict=True)
    )


def test_mnist_keeps_its_test_set(real_data):
    a, b = (pv.data.load("mnist", binarize="threshold", seed=s, valid=0) for s in (0, 1))
    assert torch.equal(a.test.values, b.test.values)
    assert (len(a.train), len(a.valid)) == (60000, 0)
    # the first test digit of MNIST is a 7
    assert a.test.labels[0] == 7


def test_frey_is_split_in_blocks_of_50_frames(real_data):
    from scipy.io import loadmat

    frames = loadmat(real_data / "frey" / "frey_rawface.mat")["ff"].T
    row_of = {frame.tobytes(): i for i, frame in enumerate(frames)}
    test = pv.data.load("frey", binarize="none", root=str(real_data)).test
    rows = np.array([row_of[v.numpy().tobytes()] for v in test.values])
    assert len(row_of) > 1900  # nearly all frames are distinct, so the lookup is valid
    # neighbours stay together: one run of rows per block, the last one shorter
    runs = 1 + int((np.diff(rows) != 1).sum())
    assert runs <= -(-len(rows) // 50) + 2


def test_frey_can_be_split_by_frames(real_data):
    load = partial(pv.data.load, "frey", binarize="none", root=str(real_data), test=365, valid=0)
    rows = load(keep_blocks=False).test.rows
    assert len(rows) == 365 and len(rows.unique()) == 365
    # every block of 50 frames has frames on both sides
    counts = (rows // 50).bincount(minlength=40)
    assert (counts > 0).all() and (counts[:-1] < 50).all()
    # single frames, not runs of neighbours
    assert (rows.diff() == 1).float().mean() < 0.05
    with pytest.raises(ValueError, match="keep_blocks false only for a data set with blocks"):
        pv.data.load("mnist5k", binarize="none", keep_blocks=False)


@pytest.mark.parametrize("photographs", [["china"], ["china", "astronaut"]])
def test_patches_can_be_split_by_patch(photographs):
    """Columns of patches are blocks if all photographs have one height, and groups if not."""
    load = partial(pv.data.load, "patches", binarize="none", photographs=photographs, valid=104)
    columns, patches = (load(keep_blocks=keep).valid.rows for keep in (True, False))
    assert len(patches) == 104
    # neighbours of a patch in its column, whose numbers are consecutive
    neighbours = [(rows.sort().values.diff() == 1).float().mean() for rows in (columns, patches)]
    assert neighbours[0] > 0.9 and neighbours[1] < 0.3


ARRAYS = {
    "bool": (np.eye(40, dtype=bool), "none", Kind.BINARY, 1.0),
    "binary uint8": (np.eye(40, dtype=np.uint8), "none", Kind.BINARY, 1.0),
    "grey uint8": (np.arange(400, dtype=np.uint16).reshape(40, 10).clip(0, 255).astype(np.uint8),
                   "none", Kind.UNIT, 1.0),
    "unit floats": (np.linspace(0, 1, 400).reshape(40, 10), "none", Kind.UNIT, 1.0),
    "unit floats, binarised": (np.linspace(0, 1, 400).reshape(40, 10), "dynamic", Kind.BINARY, 1.0),
    "counts": (np.arange(400).reshape(40, 10), "none", Kind.COUNTS, 399.0),
    "reals": (np.linspace(-2, 3, 400).reshape(40, 10), "none", Kind.REAL, 3.0),
    "scalars": (np.linspace(-2, 3, 40), "none", Kind.REAL, 3.0),
}  # fmt: skip


@pytest.mark.parametrize("case", ARRAYS)
def test_array(case, tmp_path):
    values, how, kind, highest = ARRAYS[case]
    np.save(tmp_path / "x.npy", values)
    data = pv.data.load("array", binarize=how, path=str(tmp_path / "x.npy"), test=0, valid=0)
    assert (len(data.train), len(data.valid), len(data.test)) == (40, 0, 0)
    assert data.event_shape == values.shape[1:]
    assert data.kind is kind
    x = data.train.draw()
    assert x.dtype == torch.float32
    assert x.max() == pytest.approx(highest)
    if how == "none":
        scale = 255 if case == "grey uint8" else 1
        np.testing.assert_allclose(
            np.sort(x.numpy().ravel()), np.sort(values.ravel() / scale), rtol=1e-6
        )


def test_split_cannot_be_dynamic_and_noisy():
    with pytest.raises(ValueError, match="expected a split to be dynamic or noisy; got both"):
        Split(torch.zeros(3, 2), dynamic=True, noisy=True)


@pytest.mark.parametrize("how", ["dynamic", "noisy"])
def test_splits_with_the_same_seed_have_independent_noise(how):
    # validation and test data use the same seed; their sizes separate the streams
    grey = torch.full((40, 50), 0.5) if how == "dynamic" else torch.full((40, 50), 3.0)
    one = Split(grey, peak=1.0 if how == "dynamic" else 7.0, **{how: True})
    assert torch.equal(one.materialize(5), one.materialize(5))
    assert not torch.equal(one.materialize(5), one.materialize(6))
    first = one.head(30).materialize(5)
    assert not torch.equal(first, one.materialize(5)[:30])
    if how == "dynamic":
        # about half of 1500 fair coins agree: 10 standard errors
        assert (first == one.materialize(5)[:30]).double().mean() < 0.63


def test_npz_by_key(tmp_path):
    file = str(tmp_path / "x.npz")
    np.savez(file, left=np.zeros((10, 2)), right=np.ones((12, 3)))
    data = pv.data.load("array", binarize="none", path=file, key="right", valid=0, test=0)
    assert data.train.values.shape == (12, 3)
    with pytest.raises(ValueError, match=r"data\.key .* got None, the file contains left, right"):
        pv.data.load("array", binarize="none", path=file)


def test_mnist_loads_offline_with_a_cpu_build_of_torch(real_data):
    """Uses a fresh interpreter, because a failed import leaves traces in sys.modules."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import socket\n"
        "def refuse(*a, **k): raise OSError('network disabled')\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n"
        "import pyro_vae as pv\n"
        "print(len(pv.data.load('mnist', binarize='dynamic').test))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout.strip(), process.stderr) == (0, "10000", "")


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_invalid_seed_raises(seed):
    with pytest.raises(ValueError, match=f"expected seed to be an integer ≥ 0; got {seed}"):
        pv.data.load("digits", binarize="none", seed=seed)


def test_labelled_keeps_the_same_number_per_class():
    load = partial(pv.data.load, "digits", binarize="threshold", seed=3)
    full, subset, larger = load(), load(labelled=50), load(labelled=100)
    kept = subset.train.has_label
    assert subset.train.labels[kept].bincount().tolist() == [5] * 10
    assert torch.equal(subset.train.labels[kept], full.train.labels[kept])
    assert (subset.train.labels[~kept] == -1).all()
    # the values and the test labels are unchanged
    assert subset.checksum == full.checksum
    assert torch.equal(subset.test.labels, full.test.labels)
    assert subset.num_classes == full.num_classes == subset.condition == 10
    assert larger.train.has_label.sum() == 100 and larger.train.has_label[kept].all()
    other = load(labelled=50, seed=4)
    assert not torch.equal(other.train.has_label, kept)


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (55, "expected data.labelled to be a multiple of the number of classes, 10; got 55"),
        (0, "expected data.labelled to be a positive integer; got 0"),
        (5000, r"expected data.labelled to be at most \d+, because class \d has \d+ training "),
    ],
)
def test_invalid_labelled_raises(labelled, message):
    with pytest.raises(ValueError, match=message):
        pv.data.load("digits", binarize="threshold", labelled=labelled)


def test_labels_from_a_file(tmp_path):
    """Partly unknown classes, and arrays to condition on, stay with their examples."""
    file = str(tmp_path / "x.npz")
    x = np.arange(40.0).reshape(20, 2)
    classes, numbers = np.arange(20, dtype=np.int16) % 4 - 1, np.stack([x, -x], 1)
    np.savez(file, x=x, classes=classes, numbers=numbers, both=classes[:, None])
    load = partial(pv.data.load, "array", binarize="none", path=file, key="x", valid=0.2)
    data = load(labels_key="classes")
    rows = (data.train.values[:, 0] / 2).long()
    assert torch.equal(data.train.labels, rows % 4 - 1) and data.train.labels.dtype == torch.long
    assert torch.equal(data.train.has_label, rows % 4 > 0)
    assert data.num_classes == data.condition == 3
    assert data.train.head(3).to("cpu").labels.tolist() == data.train.labels[:3].tolist()
    data = load(labels_key="numbers")
    assert data.condition == (2, 2) and data.train.labels.dtype == torch.float32
    both = torch.stack([data.train.values, -data.train.values], 1)
    assert torch.equal(data.train.labels, both.float()) and data.train.has_label.all()
    with pytest.raises(
        ValueError, match=r"to have class labels, .*; got labels of shape \(14, 2, 2\)"
    ):
        _ = data.num_classes
    with pytest.raises(
        ValueError, match=r"expected data set 'array' to have class labels.*; got no labels"
    ):
        _ = load().condition
    with pytest.raises(ValueError, match=r"data\.labels_key to name an array .* got 'class'"):
        load(labels_key="class")
    # the only other array needs no key
    np.savez(file, x=x, y=classes)
    pv.data.load("array", binarize="none", path=file, labels_key="y")
    np.savez(file, x=x, y=classes[1:])
    with pytest.raises(ValueError, match=r"expected labels of shape \(20, …\) .*; got int16 of sh"):
        load(labels_key="y")
    np.savez(file, x=x, y=np.full(20, -1))
    with pytest.raises(
        ValueError, match=r"expected data set 'array' to have known class labels; got −1 \(unk"
    ):
        _ = load(labels_key="y").num_classes
    np.savez(file, x=x, y=classes - 2)
    with pytest.raises(ValueError, match=r"expected classes 0, 1, 2, … as labels .*; got -3"):
        load(labels_key="y")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"expected a \.npz file, in which data\.labels_key"):
        load(path=str(tmp_path / "x.npy"), labels_key="y")


def test_split_needs_one_label_per_example():
    with pytest.raises(
        ValueError, match=r"expected one label for each of 3 examples; got .* \(4,\)"
    ):
        Split(torch.zeros(3, 2), labels=torch.zeros(4))


class TestWithoutClass:
    def test_is_removed_from_train_and_valid(self):
        full_data = pv.data.load("digits", binarize="threshold")
        data = pv.data.load("digits", binarize="threshold", without_class=3)
        for split in ("train", "valid"):
            part, full = getattr(data, split), getattr(full_data, split)
            kept = full.labels != 3
            assert 0 < int(kept.sum()) < len(full)
            assert torch.equal(part.values, full.values[kept])
            assert torch.equal(part.labels, full.labels[kept])
        assert torch.equal(data.test.values, full_data.test.values)
        assert data.num_classes == 10
        assert data.checksum != full_data.checksum

    @pytest.mark.parametrize("label", [10, -1])
    def test_unknown_class_raises(self, label):
        message = f"expected data.without_class to be one of at least two classes .*; got {label}"
        with pytest.raises(ValueError, match=message):
            pv.data.load("digits", binarize="threshold", without_class=label)

    def test_data_without_labels_raise(self, tmp_path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (40, 5)))
        with pytest.raises(ValueError, match=r"classes of 'array' \(none\); got 1"):
            pv.data.load("array", binarize="none", path=str(tmp_path / "x.npy"), without_class=1)


def test_a_part_of_a_split_knows_its_rows():
    split = pv.data.Split(torch.arange(10.0)[:, None])
    part = split.at(torch.tensor([7, 2, 5])).at(slice(1, None))
    assert part.rows is not None and part.rows.tolist() == [2, 5]
    assert part.values[:, 0].tolist() == [2, 5]
    mask = split.at(split.values[:, 0] > 7).rows
    assert mask is not None and mask.tolist() == [8, 9]
    with pytest.raises(ValueError, match="expected one row number for each of 10 examples"):
        replace(split, rows=torch.arange(9))
