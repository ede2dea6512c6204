"""Data sets of torchvision: the layout of their arrays and files, without downloading them."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.sources import torchvision_sets

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
SIZES = {"train": 6, "valid": 3, "test": 4}


def make_set(shape, label_name="targets", is_tensor=False):
    """A class like those of torchvision: ``data`` and labels by ``train`` or ``split``."""

    def make(*, root, download, train=None, split=None):
        part = split if split in SIZES else "train" if train else "test"
        generator = np.random.default_rng(len(part))
        data = generator.integers(0, 256, (SIZES[part], *shape)).astype(np.uint8)
        labels = list(range(SIZES[part]))
        return SimpleNamespace(
            data=torch.from_numpy(data) if is_tensor else data, **{label_name: labels}
        )

    return make


def images(shape, part):
    values = np.random.default_rng(len(part)).integers(0, 256, (SIZES[part], *shape))
    return torch.from_numpy(values).float()


load = partial(pv.data.load, binarize="none", values="integer", valid=0)


@pytest.mark.parametrize(
    ("name", "class_name", "shape", "label_name", "order"),
    [
        ("cifar10", "CIFAR10", (32, 32, 3), "targets", (0, 3, 1, 2)),
        ("svhn", "SVHN", (3, 32, 32), "labels", (0, 1, 2, 3)),
        ("kmnist", "KMNIST", (28, 28), "targets", (0, 1, 2)),
        ("emnist", "EMNIST", (28, 28), "targets", (0, 2, 1)),
    ],
)
def test_layout(name, class_name, shape, label_name, order, monkeypatch, tmp_path):
    made = make_set(shape, label_name, is_tensor=len(shape) == 2)
    module = SimpleNamespace(**{class_name: made})
    monkeypatch.setattr(torchvision_sets, "_import_torchvision_datasets", lambda: module)
    data = load(name, root=str(tmp_path))
    expected = images(shape, "test").permute(order)
    assert torch.equal(data.test.draw().squeeze(1), expected)
    assert data.event_shape == ((1, 28, 28) if len(shape) == 2 else (3, 32, 32))
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(data.train.labels, data.train.rows)


def test_celeba_reads_its_pictures(monkeypatch, tmp_path):
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    faces = RNG.integers(0, 256, (13, 9, 7, 3)).astype(np.uint8)
    for i, face in enumerate(faces):
        Image.fromarray(face).save(folder / f"{i}.png")
    starts = {"train": 0, "valid": 6, "test": 9}

    def make(*, root, download, split, target_type):
        names = [f"{starts[split] + i}.png" for i in range(SIZES[split])]
        return SimpleNamespace(filename=names, attr=torch.eye(40)[: len(names)].long())

    module = SimpleNamespace(CelebA=make)
    monkeypatch.setattr(torchvision_sets, "_import_torchvision_datasets", lambda: module)
    data = load("celeba", root=str(tmp_path))
    for split, name in ((data.valid, "valid"), (data.test, "test")):
        expected = faces[starts[name] : starts[name] + SIZES[name]].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.draw(), expected)
    assert torch.equal(data.test.labels, torch.eye(40)[:4])
    assert load("celeba", root=str(tmp_path), size=4).event_shape == (3, 4, 4)


def test_missing_sets_raise(monkeypatch, tmp_path):
    def fail(**options):
        raise RuntimeError("Dataset not found")

    module = SimpleNamespace(CIFAR10=fail)
    monkeypatch.setattr(torchvision_sets, "_import_torchvision_datasets", lambda: module)
    with pytest.raises(FileNotFoundError, match=r"expected CIFAR10 under .*; found none and could"):
        load("cifar10", root=str(tmp_path))
