"""Data sets in local files: lookup, orientation and error messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.io import savemat

import pyro_vae as pv
from pyro_vae.data import Kind

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
