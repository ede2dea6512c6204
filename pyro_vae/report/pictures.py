"""Pictures of samples and reconstructions, for the report and the command line."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import queries
from ..core.components import Labels, Shape
from ..data import Split
from ..data.scaling import in_data_units
from ..data.splits import are_class_labels
from ..evaluation.sections import Picture
from ..programs.base import Program, label_use
from ..programs.inputs import program_args
from . import plots

__all__ = [
    "Picture",
    "image_rows",
    "is_image",
    "reconstruction_picture",
    "sample_labels",
    "sample_picture",
    "to_pixels",
]

#: Images per row, and rows of samples.
COLUMNS, ROWS = 12, 8


def is_image(event_shape: Shape) -> bool:
    """Whether an example is an image: grey ``(H, W)`` or ``(1, H, W)``, colour ``(3, H, W)``."""
    return len(event_shape) in (2, 3) and event_shape[:-2] in ((), (1,), (3,))


def to_pixels(x: Tensor) -> np.ndarray:
    """Return images ``(n, *event)`` as pixels in [0, 1]; other ranges are rescaled.

    Unobserved pixels (NaN) are grey, ½.

    Returns:
        ``(n, H, W)`` for grey images, and ``(n, H, W, 3)`` for colour images, whose channels are
        rescaled alike.
    """
    images = x.detach().cpu().double()
    is_colour = images.ndim == 4 and images.shape[1] == 3
    images = images.movedim(1, -1) if is_colour else images.reshape(-1, *images.shape[-2:])
    missing = images.isnan()
    # 0 is within the range in any case
    known = images.masked_fill(missing, 0.0)
    low, high = known.min().clamp(max=0), known.max().clamp(min=1)
    return ((images - low) / (high - low)).masked_fill(missing, 0.5).numpy()


def image_rows(
    name: str, title: str, caption: str, images: Tensor, row_pairs: bool = False
) -> Picture:
    """Return a picture of images ``(rows, columns, *event)``, optionally grouped in row pairs."""
    figure = plots.plot_image_grid(
        to_pixels(images.flatten(0, 1)), images.shape[1], row_pairs=row_pairs
    )
    return Picture(name, title, caption, figure)


def sample_labels(program: Program, split: Split, size: int) -> tuple[Tensor, str]:
    """Return labels to condition new samples on, and a sentence for the caption.

    The labels come from ``split``, ``size`` of them if they are not classes, and none if the
    program takes none.
    """
    labels = split.labels
    if label_use(program) is Labels.UNUSED or labels is None:
        return torch.empty(0), ""
    if are_class_labels(labels):
        classes = labels[labels >= 0].unique()
        if len(classes):
            return classes.repeat_interleave(COLUMNS), " One row per class."
    if label_use(program) is Labels.PARTIAL:
        return torch.empty(0), ""
    return labels[:size], " Conditioned on the labels of held-out examples."


def sample_picture(program: Program, split: Split, seed: int) -> Picture:
    """Return a picture of new samples, one row per class for class-conditional programs."""
    labels, note = sample_labels(program, split, ROWS * COLUMNS)
    args = (labels,) if len(labels) else ()
    generated = queries.sample(program, len(labels) or ROWS * COLUMNS, *args, seed=seed)
    assert generated.mean is not None
    caption = f"The mean of p(x|z) for samples of z from the prior.{note}"
    images = _unflatten_rows(in_data_units(generated.mean, split.scale))
    return image_rows("samples", "Samples", caption, images)


def reconstruction_picture(program: Program, split: Split, seed: int) -> Picture:
    """Return a picture of examples and their reconstructions."""
    x, *args = program_args(program, split.head(4 * COLUMNS), seed)
    generated = queries.reconstruct(program, x, *args, seed=seed)
    assert generated.mean is not None
    images = (_unflatten_rows(in_data_units(part, split.scale)) for part in (x, generated.mean))
    pairs = torch.stack([*images], 1).flatten(0, 1)
    caption = "Top: held-out examples. Bottom: the mean of p(x|z) for one sample of z from q(z|x)."
    return image_rows("reconstructions", "Reconstructions", caption, pairs, row_pairs=True)


def _unflatten_rows(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, COLUMNS if len(x) % COLUMNS == 0 else len(x)))
