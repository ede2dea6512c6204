"""Pictures of what a model makes, for the report and the command line."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import queries
from ..core import files
from ..core.components import Labels, Shape
from ..data import Split
from ..data.splits import is_class
from ..programs.base import Program, label_use
from ..programs.inputs import program_args
from . import plots

__all__ = [
    "Picture",
    "grey",
    "is_image",
    "new_labels",
    "reconstructions",
    "rows",
    "samples",
]

#: Images in a row, and rows of samples.
COLUMNS, ROWS = 12, 8


@dataclass(frozen=True)
class Picture:
    """A figure with its file name, heading and caption."""

    name: str
    title: str
    caption: str
    figure: Figure

    def png(self) -> bytes:
        """The picture as the bytes of a file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=130)
        return buffer.getvalue()

    def write(self, folder: Path) -> Path:
        """Writes ``NAME.png`` into a folder, whole or not at all."""
        path = folder / f"{self.name}.png"
        png = self.png()
        files.write(path, lambda file: file.write_bytes(png))
        return path


def is_image(event_shape: Shape) -> bool:
    """Whether a datum is a grey image: ``(H, W)`` or ``(1, H, W)``."""
    return len(event_shape) in (2, 3) and event_shape[:-2] in ((), (1,))


def grey(x: Tensor) -> np.ndarray:
    """Images as ``(n, H, W)`` in [0, 1]: levels and real numbers are stretched to it."""
    images = x.detach().cpu().reshape(-1, *x.shape[-2:]).double()
    low, high = images.min().clamp(max=0), images.max().clamp(min=1)
    return ((images - low) / (high - low)).numpy()


def rows(name: str, title: str, caption: str, images: Tensor, gaps: bool = False) -> Picture:
    """A picture of images ``(rows, columns, *event)``; a gap after every second row if asked."""
    figure = plots.image_grid(grey(images.flatten(0, 1)), images.shape[1], gap_after_rows=gaps)
    return Picture(name, title, caption, figure)


def new_labels(program: Program, split: Split, size: int) -> tuple[Tensor, str]:
    """What new data are conditioned on, for a program that looks at labels.

    Arguments:
        program: the program.
        split: where its labels come from.
        size: how many are wanted, if they are not classes.

    Returns:
        The labels of as many data as there will be, and a sentence about them; labels of
        length 0 for a program that is called without.
    """
    labels = split.labels
    if label_use(program) is Labels.UNUSED or labels is None:
        return torch.empty(0), ""
    if is_class(labels):
        classes = labels[labels >= 0].unique()
        if len(classes):
            return classes.repeat_interleave(COLUMNS), " A row for each class."
    if label_use(program) is Labels.PARTIAL:
        return torch.empty(0), ""
    return labels[:size], " Conditioned on what held-out data are."


def samples(program: Program, split: Split, seed: int) -> Picture:
    """New data, in rows by class where a program knows classes."""
    labels, about = new_labels(program, split, ROWS * COLUMNS)
    args = (labels,) if len(labels) else ()
    made = queries.sample(program, len(labels) or ROWS * COLUMNS, *args, seed=seed)
    assert made.mean is not None
    caption = f"Latents from the prior; the mean of p(x|z) is shown.{about}"
    return rows("samples", "Samples", caption, _in_rows(made.mean))


def reconstructions(program: Program, split: Split, seed: int) -> Picture:
    """Held-out data beside what is left of them after the latents."""
    x, *args = program_args(program, split.head(4 * COLUMNS), seed)
    made = queries.reconstruct(program, x, *args, seed=seed)
    assert made.mean is not None
    pairs = torch.stack([_in_rows(x), _in_rows(made.mean)], 1).flatten(0, 1)
    caption = "Held-out data above, the mean of p(x|z) at a draw of q(z|x) below."
    return rows("reconstructions", "Reconstructions", caption, pairs, gaps=True)


def _in_rows(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, COLUMNS if len(x) % COLUMNS == 0 else len(x)))
