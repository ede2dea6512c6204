"""Data sets in local files: lookup, orientation and error messages."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

import pyro_vae as pv
from pyro_vae.data import Kind
from pyro_vae.data.sources import torchvision_sets

RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.random((12, 28, 28)), RNG.random((5, 28, 28))


def columns(images: np.ndarray) -> np.ndarray:
    """Flatten images to columns in column-major order, as in chardata.mat."""
    return np.stack([image.flatten(order="F") for image in images], 1)


@pytest.mark.parametrize("folder", [".", "OMNIGLOT"])
def test_omniglot(folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    savemat(tmp_path / folder / "chardata.mat", {"data": columns(TRAIN), "testdata": columns(TEST)})
    load = {"name": "omniglot", "root": str(tmp_path)}
    data = pv.data.load(**load, binarize="none", valid=0)
    assert data.event_shape == (1, 28, 28)
    assert data.kind is Kind.UNIT
    np.testing.assert_allclose(data.test.draw()[:, 0], TEST, rtol=1e-6)
    # the training data are shuffled
    rows = [np.abs(TRAIN - x).sum((1, 2)).argmin() for x in data.train.draw()[:, 0].numpy()]
    assert sorted(rows) == [*range(12)]
    np.testing.assert_allclose(data.train.draw()[:, 0], TRAIN[rows], rtol=1e-6)
    dynamic = pv.data.load(**load, binarize="dynamic", valid=3)
    assert (len(dynamic.train), len(dynamic.valid), len(dynamic.test)) == (9, 3, 5)
    assert dynamic.kind is Kind.BINARY
    assert dynamic.test.labels is None


def test_binarized_mnist(tmp_path):
    digits = {"train": (TRAIN > 0.5).astype(int), "test": (TEST > 0.5).astype(int)}
    for name, images in digits.items():
        rows = images.reshape(len(images), -1)
        np.savetxt(tmp_path / f"binarized_mnist_{name}.amat", rows, fmt="%d")
    data = pv.data.load("binarized_mnist", binarize="none", valid=0, root=str(tmp_path))
    assert data.kind is Kind.BINARY
    assert (len(data.train), len(data.valid), len(data.test)) == (12, 0, 5)
    assert torch.equal(data.test.draw()[:, 0], torch.tensor(digits["test"]).float())
    named = str(tmp_path / "binarized_mnist_train.amat")
    same = pv.data.load("binarized_mnist", binarize="none", valid=0, path=named)
    assert same.checksum == data.checksum


@pytest.mark.parametrize(
    ("name", "file", "description"),
    [
        ("omniglot", "chardata.mat", "the OMNIGLOT file of the IWAE paper"),
        ("binarized_mnist", "binarized_mnist_train.amat", "Larochelle's binarised digits"),
    ],
)
def test_missing_or_damaged_file_raises(name, file, description, tmp_path):
    def load() -> None:
        pv.data.load(name, binarize="none", root=str(tmp_path))

    with pytest.raises(
        FileNotFoundError, match=f"expected {description} at .*{file} or .*; found none: "
    ):
        load()
    (tmp_path / "binarized_mnist_test.amat").write_text("0 1\n")
    for content in (b"", b"no numbers here", b"0 1 0\n"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(
            ValueError, match=f"expected {tmp_path}.*; the file is damaged or has o"
        ):
            load()


def test_damaged_frey_face_file_raises(tmp_path):
    file = tmp_path / "frey_rawface.mat"
    savemat(file, {"ff": np.zeros((560, 30), np.uint8)}, do_compression=True)
    whole = file.read_bytes()
    load = partial(pv.data.load, "frey", binarize="none", root=str(tmp_path), test=0, valid=0)
    assert load().event_shape == (1, 28, 20)
    damaged = [whole[:size] for size in (0, 60, 130, 150, len(whole) - 3)]
    # inside the compressed part, whose reader raises a zlib.error
    damaged.append(whole[:140] + bytes(20) + whole[160:])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"expected {file} to contain 28 × 20 faces, .*; the"):
            load()
    savemat(file, {"ff": RNG.random((560, 30))})
    with pytest.raises(ValueError, match=f"expected {file} to contain 28 × 20 faces, bytes named"):
        load()


def test_damaged_archive_raises(tmp_path):
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=RNG.random((50, 40)))
    whole = file.read_bytes()
    for content in (whole[:400] + bytes(50) + whole[450:], whole[:-30]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"expected {file} to be a .npy or .npz file of num"):
            pv.data.load("array", binarize="none", path=str(file))


def test_file_without_permission_raises(tmp_path, monkeypatch):
    """The file is not called damaged. Patched, because root may read every file."""
    np.save(tmp_path / "x.npy", TRAIN)

    def load(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(PermissionError):
        pv.data.load("array", binarize="none", path=str(tmp_path / "x.npy"))


#: Types of numbers, with a byte order for those that have one.
TYPES = [
    "u1",
    "u2",
    ">u2",
    "u4",
    "u8",
    "i1",
    "i2",
    ">i2",
    "i4",
    "i8",
    "f2",
    ">f4",
    "f8",
    ">f8",
    "g",
]


@pytest.mark.parametrize("dtype", TYPES)
def test_array_of_any_type(dtype, tmp_path):
    counts = np.random.default_rng(0).integers(0, 100, (40, 3, 2))
    if dtype.endswith(("u2", "i2")):
        counts[0, 0, 0] = 60000 if dtype.endswith("u2") else 30000
    x = counts.astype(dtype)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(40).astype(dtype), z=x)
    load = partial(
        pv.data.load,
        "array",
        binarize="none",
        path=str(tmp_path / "x.npz"),
        key="x",
        valid=0,
        test=0,
    )
    data = load(labels_key="y", values="integer")
    values, labels = data.train.draw(), data.train.labels
    assert values.dtype == torch.float32
    order = labels.long().numpy()
    assert sorted(order) == [*range(40)]
    np.testing.assert_array_equal(values.numpy(), counts[order])
    is_float = dtype.strip(">")[0] in "fg"
    assert labels.dtype == (torch.float32 if is_float else torch.int64)
    # several numbers per example are not classes
    assert load(labels_key="z").train.labels.dtype == torch.float32


@pytest.mark.parametrize("labels", [np.array([0, 2**63] * 5, np.uint64), np.array([-2, 0] * 5)])
def test_labels_that_are_not_classes_raise(labels, tmp_path):
    np.savez(tmp_path / "x.npz", x=TRAIN[:10], y=labels)
    with pytest.raises(ValueError, match=r"expected classes 0, 1, 2, … as labels in .* got (-2|0)"):
        pv.data.load(
            "array", binarize="none", path=str(tmp_path / "x.npz"), key="x", labels_key="y"
        )


def test_tensor_that_torch_cannot_compare_raises():
    x = torch.zeros(4, 2, dtype=torch.uint16)
    message = (
        r"expected values to be of a type .*; got torch.uint16: convert it by values.float\(\)"
    )
    with pytest.raises(ValueError, match=message):
        pv.data.Split(x)


def test_omniglot_with_values_above_one_raises(tmp_path):
    stored = {"data": 255 * columns(TRAIN), "testdata": columns(TEST)}
    savemat(tmp_path / "chardata.mat", stored)
    with pytest.raises(
        ValueError, match=r"to contain 28 × 28 letters in \[0, 1\] named data and tes"
    ):
        pv.data.load("omniglot", binarize="dynamic", root=str(tmp_path))


def test_binarized_mnist_without_test_file_raises(tmp_path):
    (tmp_path / "binarized_mnist_train.amat").write_text("0 1\n")
    with pytest.raises(
        FileNotFoundError, match=r"expected binarized_mnist_test\.amat in the same folder as .*; "
    ):
        pv.data.load("binarized_mnist", binarize="none", root=str(tmp_path))


IMAGES = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.arange(6, dtype=np.uint8)


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A folder with small MNIST and Fashion-MNIST files, whose checksums are the published ones."""
    digests = {"MNIST": {}, "FashionMNIST": {}}
    for name, known in digests.items():
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for prefix, (kind, values) in itertools.product(
            ("train", "t10k"), {"images-idx3": IMAGES, "labels-idx1": LABELS}.items()
        ):
            file = folder / f"{prefix}-{kind}-ubyte"
            header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
            file.write_bytes(header + values.tobytes())
            archive = Path(f"{file}.gz")
            archive.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            checked = archive if name == "FashionMNIST" else file
            known[file.name.partition("-idx")[0]] = hashlib.sha256(checked.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision_sets, "_SHA256", digests)
    return tmp_path


DAMAGES = {
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "truncated": lambda content: content[:-100] if len(content) > 1000 else content[:-2],
    "foreign": lambda content: b"GIF89a" + content,
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_downloaded_files_are_checked_when_found(name, downloaded, caplog):
    load = {"name": name, "binarize": "none", "root": str(downloaded), "valid": 0}
    data = pv.data.load(**load)
    assert sorted(data.train.labels.tolist()) == LABELS.tolist()
    assert torch.equal(data.test.values[:, 0], torch.from_numpy(IMAGES))
    folder = downloaded / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    for file, damage in itertools.product(sorted(folder.glob("*-ubyte")), DAMAGES.values()):
        content = file.read_bytes()
        file.write_bytes(damage(content))
        with pytest.raises(ValueError, match=r"expected the published .*: remove .*download"):
            pv.data.load(**load)
        file.write_bytes(content)
    for archive in folder.glob("t10k*.gz"):
        archive.write_bytes(gzip.compress(b"other images"))
    if name == "mnist":  # whose published checksums are those of the uncompressed files
        pv.data.load(**load)
        return
    with pytest.raises(ValueError, match=r"expected the published FashionMNIST in .*t10k-images"):
        pv.data.load(**load)
    for archive in folder.glob("*.gz"):
        archive.unlink()
    pv.data.load(**load)
    assert "not checked, because" in caplog.text


@pytest.mark.parametrize("name", ["digits", "mnist", "cells"])
def test_path_of_a_data_set_that_reads_no_file_is_refused(name, tmp_path):
    """It would be ignored, and numbers of other data than those given would be reported."""
    expected = (
        f"expected data.path only for a data set that reads a file, array, .* got it for {name}"
    )
    with pytest.raises(ValueError, match=expected):
        pv.data.load(name, binarize="none", path=tmp_path / "new.npy")
