"""Data sets of papers, read from the files that their authors published."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import RawData, SourceOptions, explain_read_errors, find_file

__all__ = ["binarized_mnist", "frey", "omniglot"]

_FREY = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
_OMNIGLOT = "https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT"
_AMAT = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"


def frey(options: SourceOptions) -> RawData:
    """1965 frames of Brendan Frey's face, 28 × 20, levels 0…255, from ``frey_rawface.mat``."""
    file = find_file(options, "frey_rawface.mat", "frey", "the Frey Face file", _FREY)
    with explain_read_errors(file, "contain 28 × 20 faces, bytes named ff", _FREY):
        frames = _read_mat(file)["ff"].T.reshape(-1, 1, 28, 20)
        if frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"faces of type {frames.dtype}")
    # neighbouring frames of the film are near duplicates
    return RawData(torch.from_numpy(np.ascontiguousarray(frames)), None, peak=255, block=50)


def omniglot(options: SourceOptions) -> RawData:
    """24,345 + 8070 grey letters of 28 × 28 pixels, from the IWAE paper's ``chardata.mat``."""
    file = find_file(
        options, "chardata.mat", "OMNIGLOT", "the OMNIGLOT file of the IWAE paper", _OMNIGLOT
    )
    contents = "contain 28 × 28 letters in [0, 1] named data and testdata"
    with explain_read_errors(file, contents, _OMNIGLOT):
        stored = _read_mat(file)
        train, test = (_reshape_letters(stored[key]) for key in ("data", "testdata"))
    return RawData(train, None, peak=1, test=RawData(test, None, peak=1))


def _reshape_letters(columns: np.ndarray) -> Tensor:
    """Reshape columns of pixels, each image in column-major order, to ``(N, 1, 28, 28)``."""
    images = columns.T.reshape(-1, 1, 28, 28).swapaxes(2, 3).astype(np.float32)
    if not (images.size and images.min() >= 0 and images.max() <= 1):
        raise ValueError("grey values outside [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(images))


def binarized_mnist(options: SourceOptions) -> RawData:
    """50,000 + 10,000 binary digits of 28 × 28 pixels, binarised by Larochelle: ``.amat`` files.

    Reads ``binarized_mnist_train.amat`` and, in the same folder, ``binarized_mnist_test.amat``.
    The file with 10,000 validation digits is not used.
    """
    name = "binarized_mnist_train.amat"
    train = find_file(options, name, "BinaryMNIST", "Larochelle's binarised digits", _AMAT)
    test = train.with_name("binarized_mnist_test.amat")
    if not test.is_file():
        raise FileNotFoundError(
            f"expected {test.name} in the same folder as {train}; found none: download it from "
            f"{_AMAT}"
        )
    parts = []
    for file in (train, test):
        with explain_read_errors(file, "contain a row of 784 values 0 or 1 per digit", _AMAT):
            with warnings.catch_warnings(action="ignore"):  # NumPy warns about an empty file
                rows = np.loadtxt(file, dtype=np.uint8, ndmin=2).reshape(-1, 1, 28, 28)
            if not rows.size or rows.max() > 1:
                raise ValueError("values other than 0 and 1")
        parts.append(torch.from_numpy(rows))
    return RawData(parts[0], None, peak=1, test=RawData(parts[1], None, peak=1))


def _read_mat(file: Path) -> dict[str, Any]:
    """Read the arrays of a MATLAB file."""
    from scipy.io import loadmat

    return loadmat(file)
