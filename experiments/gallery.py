"""Figures drawn from trained programs, which may be shared with other tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vae.report.pictures import to_grey

from .cells import Cell, Preset, Table

__all__ = ["Gallery", "SharedCell", "include_all_rows", "latent_grid", "show_images"]


@dataclass(frozen=True)
class Gallery(Table):
    """A table that reuses runs of other tables' rows with the same name and arguments.

    Attributes:
        sources: the other tables.
    """

    sources: Sequence[Table] = ()

    def cell(self, preset: str, row: str, seed: int = 0, runs: Path = Path("runs")) -> SharedCell:
        return SharedCell(self, preset, row, seed, runs)


class SharedCell(Cell):
    """A row with one seed that uses another table's run if that is complete."""

    table: Gallery

    @property
    def folder(self) -> Path:
        return super().folder if self._shared_folder is None else self._shared_folder

    @cached_property
    def _shared_folder(self) -> Path | None:
        for source in self.table.sources:
            cell = Cell(source, self.preset, self.row, self.seed, self.runs)
            has_row = self.row in source.rows(self.preset)
            if has_row and cell.args == self.args and cell.incomplete_reason() is None:
                return cell.folder
        return None


def include_all_rows(presets: Mapping[str, Preset]) -> dict[str, Preset]:
    """Return presets of another table that exclude no row."""
    return {name: replace(preset, exclude=()) for name, preset in presets.items()}


def show_images(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """Draw images ``(rows · columns, *event)`` edge to edge."""
    pixels = to_grey(images)
    rows = pixels.reshape(-1, columns, *pixels.shape[1:])
    axes.imshow(np.block([[*row] for row in rows]), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def latent_grid(side: int) -> Tensor:
    """Return latents ``(side², 2)``: a regular grid on the unit square, mapped through Φ⁻¹.

    The first coordinate increases to the right, the second upwards.
    """
    levels = (torch.arange(side) + 0.5) / side
    quantiles = torch.special.ndtri(levels)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, up], -1).flatten(0, 1)
