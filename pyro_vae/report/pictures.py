"""Pictures of samples and reconstructions, for the report and the command line."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import queries
from ..core.components import Labels
from ..data import Split
from ..data.pixels import is_image, to_pixels
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


def image_rows(
    name: str, title: str, caption: str, images: Tensor, row_pairs: bool = False
) -> Picture:
    """Return a picture of images ``(rows, columns, *event)``, optionally grouped in row pairs."""
    figure = plots.plot_image_grid(
        to_pixels(images.flatten(0, 1)), images.shape[1], row_pairs=row_pairs
    )
    return Picture(name, title, caption, figure, is_bitmap=True)


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
    """Return a picture of examples and their reconstructions, in full rows if there is one."""
    count = min(4 * COLUMNS, len(split) // COLUMNS * COLUMNS or len(split))
    x, *args = program_args(program, split.head(count), seed)
    generated = queries.reconstruct(program, x, *args, seed=seed)
    assert generated.mean is not None
    images = (_unflatten_rows(in_data_units(part, split.scale)) for part in (x, generated.mean))
    pairs = torch.stack([*images], 1).flatten(0, 1)
    caption = "Top: held-out examples. Bottom: the mean of p(x|z) for one sample of z from q(z|x)."
    return image_rows("reconstructions", "Reconstructions", caption, pairs, row_pairs=True)


def _unflatten_rows(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, COLUMNS if len(x) % COLUMNS == 0 else len(x)))
