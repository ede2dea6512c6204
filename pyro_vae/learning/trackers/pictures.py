"""Pictures of a program during its training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import queries
from ...core.components import Labels
from ...data import Split
from ...data.pixels import is_image, to_pixels
from ...data.scaling import in_data_units
from ...programs.base import label_use
from ...programs.inputs import program_args

__all__ = ["draw_pictures"]

#: Images per row, and examples that are reconstructed.
_COLUMNS = 8


def draw_pictures(program: Any, data: Split | Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return pictures of samples and reconstructions, ``(H, W, 3)`` of ``uint8``.

    They show means of p(x|z): for z from the prior, and for examples above their reconstructions.

    Arguments:
        program: the program.
        data: the examples, of which the first are reconstructed.
        seed: seed of all samples.

    Returns:
        The pictures by name; none if the data are no images, and no samples of a program that is
        given labels.
    """
    split = data if isinstance(data, Split) else Split(data)
    if not is_image(tuple(split.event_shape)):
        return {}
    x, *args = program_args(program, split.head(2 * _COLUMNS), seed)
    found = {"reconstructions": queries.reconstruct(program, x, *args, seed=seed).mean}
    if label_use(program) is Labels.UNUSED:
        found["samples"] = queries.sample(program, 4 * _COLUMNS, seed=seed).mean
    pictures = {}
    for name, mean in found.items():
        if mean is None:
            continue
        images = in_data_units(mean, split.scale)
        if name == "reconstructions":
            # a row of examples above the row of their reconstructions
            rows = (in_data_units(x, split.scale).split(_COLUMNS), images.split(_COLUMNS))
            images = torch.cat([part for pair in zip(*rows, strict=True) for part in pair])
        pictures[name] = _tile(to_pixels(images))
    return pictures


def _tile(images: np.ndarray) -> np.ndarray:
    """Return images ``(n, H, W)`` or ``(n, H, W, 3)`` side by side, in rows."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    empty = rows * columns - len(images)
    images = np.concatenate([images, np.ones((empty, *images.shape[1:]))])
    _, height, width, _ = images.shape
    grid = images.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, 3)
    return (255 * grid).round().astype(np.uint8)
