"""Data sets of torchvision: its own classes read small files of the published formats."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import savemat

import pyro_vae as pv
from pyro_vae.data.sources import torchvision_sets

Image = pytest.importorskip("PIL.Image")
SIZES = {"train": 10, "valid": 3, "test": 4}
load = partial(pv.data.load, binarize="none", values="integer", valid=0)


@pytest.fixture(scope="module")
def classes():
    """The module ``torchvision.datasets``."""
    return torchvision_sets._import_torchvision_datasets()


def images(part, *shape):
    """Random bytes, the same ones for a part and shape."""
    return np.random.default_rng(len(part)).integers(0, 256, (SIZES[part], *shape)).astype(np.uint8)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_cifar(root, dataset, monkeypatch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    x, test = images("train", 3, 32, 32), images("test", 3, 32, 32)
    batches = [
        write(
            f"data_batch_{i}", {"data": x[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, 9 - i]}
        )
        for i in range(5)
    ]
    held_out = write("test_batch", {"data": test.reshape(4, -1), "labels": [3, 1, 4, 1]})
    name, checksum = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(dataset, "train_list", batches)
    monkeypatch.setattr(dataset, "test_list", [held_out])
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return x, [label for i in range(5) for label in (i, 9 - i)], test, [3, 1, 4, 1]


def write_svhn(root, dataset, monkeypatch):
    parts, checked = {}, {}
    for part in ("train", "test"):
        x, file = images(part, 3, 32, 32), root / f"{part}_32x32.mat"
        labels = np.arange(1, len(x) + 1)
        # the digit 0 is stored as 10
        savemat(file, {"X": x.transpose(2, 3, 1, 0), "y": labels[:, None].astype(np.uint8)})
        parts[part], checked[part] = (x, (labels % 10).tolist()), ["", file.name, md5(file)]
    monkeypatch.setattr(dataset, "split_list", checked)
    return *parts["train"], *parts["test"]


def write_idx(root, dataset, monkeypatch, names=("train", "t10k")):
    folder = root / dataset.__name__ / "raw"
    folder.mkdir(parents=True)
    parts = []
    for part, name in zip(("train", "test"), names, strict=True):
        x, labels = images(part, 28, 28), np.arange(SIZES[part], dtype=np.uint8)
        for kind, values in (("images-idx3", x), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())
        parts += [x[:, None], labels.tolist()]
    return parts


def write_emnist(root, dataset, monkeypatch):
    names = ("emnist-balanced-train", "emnist-balanced-test")
    x, labels, test, test_labels = write_idx(root, dataset, monkeypatch, names)
    # the pictures are stored transposed
    return x.swapaxes(2, 3), labels, test.swapaxes(2, 3), test_labels


@pytest.mark.parametrize(
    ("name", "class_name", "write"),
    [
        ("cifar10", "CIFAR10", write_cifar),
        ("svhn", "SVHN", write_svhn),
        ("kmnist", "KMNIST", write_idx),
        ("emnist", "EMNIST", write_emnist),
    ],
)
def test_pictures_and_labels(name, class_name, write, classes, monkeypatch, tmp_path):
    written = write(tmp_path, getattr(classes, class_name), monkeypatch)
    x, labels, test, test_labels = (np.asarray(part) for part in written)
    data = load(name, root=str(tmp_path))
    np.testing.assert_array_equal(data.test.draw(), test)
    assert data.test.labels.tolist() == test_labels.tolist()
    np.testing.assert_array_equal(data.train.draw(), x[data.train.rows])
    assert data.train.labels.tolist() == labels[data.train.rows].tolist()
    unit = load(name, values="unit", root=str(tmp_path)).test.draw()
    np.testing.assert_allclose(unit, test / 255, rtol=1e-6)


def test_celeba(classes, monkeypatch, tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    faces = np.concatenate([images(part, 9, 7, 3) for part in SIZES])
    files = [f"{i + 1:06d}.png" for i in range(len(faces))]
    for file, face in zip(files, faces, strict=True):
        Image.fromarray(face).save(folder / "img_align_celeba" / file)
    attributes = np.random.default_rng(1).integers(0, 2, (len(faces), 40))
    parts = np.repeat([0, 1, 2], list(SIZES.values()))

    def write(name, rows, header=""):
        lines = [" ".join([file, *map(str, row)]) for file, row in zip(files, rows, strict=True)]
        (folder / name).write_text(header + "\n".join(lines) + "\n")
        return "", md5(folder / name), name

    header = f"{len(files)}\n{' '.join(f'a{i}' for i in range(40))}\n"
    boxes = np.ones((len(files), 4), int)
    written = [
        write("list_attr_celeba.txt", 2 * attributes - 1, header),
        write("identity_CelebA.txt", boxes[:, :1]),
        write("list_bbox_celeba.txt", boxes, "17\nx y width height\n"),
        write("list_landmarks_align_celeba.txt", boxes, "17\na b c d\n"),
        write("list_eval_partition.txt", parts[:, None]),
    ]
    monkeypatch.setattr(classes.CelebA, "file_list", written)
    data = load("celeba", root=str(tmp_path))
    for split, part in ((data.train, 0), (data.valid, 1), (data.test, 2)):
        rows = np.flatnonzero(parts == part)[split.rows]
        np.testing.assert_array_equal(split.draw(), faces[rows].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(split.labels, attributes[rows])
    assert load("celeba", root=str(tmp_path), size=4).event_shape == (3, 4, 4)


def test_omniglot105(classes, monkeypatch, tmp_path):
    characters = {"images_background": ("Latin/c1", "Latin/c2", "Greek/c1"),
                  "images_evaluation": ("Tibetan/c1",)}  # fmt: skip
    drawn, checksums = {}, {}
    for i, (part, names) in enumerate(characters.items()):
        for name in names:
            folder = tmp_path / "omniglot-py" / part / name
            folder.mkdir(parents=True)
            ink = np.random.default_rng(len(drawn)).random((2, 105, 105)) < 0.1 * (1 + i)
            drawn[name] = 255 * ink.astype("f4")
            for j, strokes in enumerate(ink):
                # black strokes on white, of one bit
                Image.fromarray(~strokes).save(folder / f"{j}.png")
        with zipfile.ZipFile(tmp_path / "omniglot-py" / f"{part}.zip", "w") as archive:
            archive.writestr("part", part)
        checksums[part] = md5(Path(archive.filename))
    monkeypatch.setattr(classes.Omniglot, "zips_md5", checksums)
    data = load("omniglot105", root=str(tmp_path))
    assert data.classes == ("Greek/c1", "Latin/c1", "Latin/c2", "Tibetan/c1")
    np.testing.assert_array_equal(data.test.draw()[:, 0], drawn["Tibetan/c1"])
    assert data.test.labels.tolist() == [3, 3]
    for x, label, row in zip(data.train.draw(), data.train.labels, data.train.rows, strict=True):
        np.testing.assert_array_equal(x[0], drawn[data.classes[label]][row % 2])
    small = load("omniglot105", size=28, values="unit", root=str(tmp_path)).test.draw()
    assert small.shape[1:] == (1, 28, 28)
    # resizing keeps the mean, up to rounding
    np.testing.assert_allclose(small.mean(), drawn["Tibetan/c1"].mean() / 255, atol=0.01)
    for file in (tmp_path / "omniglot-py" / "images_evaluation").rglob("*.png"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"pictures of Omniglot in .*: remove its \.zip"):
        load("omniglot105", root=str(tmp_path))


def test_missing_sets_raise(monkeypatch, tmp_path):
    def fail(**options):
        raise RuntimeError("'gdown' is required")

    module = SimpleNamespace(CelebA=fail)
    monkeypatch.setattr(torchvision_sets, "_import_torchvision_datasets", lambda: module)
    message = r"expected CelebA under .*; found none and could not download it \('gdown' is req"
    with pytest.raises(FileNotFoundError, match=message):
        load("celeba", root=str(tmp_path))
