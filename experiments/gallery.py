"""Pictures of programs that another table has trained, or trains the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vae.report.pictures import grey

from .cells import Cell, Preset, Table

__all__ = ["Gallery", "SharedCell", "all_rows", "manifold", "show"]


@dataclass(frozen=True)
class Gallery(Table):
    """A table whose runs may be those of other tables' rows with the same name and words.

    Attributes:
        lenders: the other tables.
    """

    lenders: Sequence[Table] = ()

    def cell(self, preset: str, row: str, seed: int = 0, runs: Path = Path("runs")) -> SharedCell:
        return SharedCell(self, preset, row, seed, runs)


class SharedCell(Cell):
    """A row with one seed, whose run is another table's if that is complete."""

    table: Gallery

    @property
    def folder(self) -> Path:
        return super().folder if self._lent is None else self._lent

    @cached_property
    def _lent(self) -> Path | None:
        for lender in self.table.lenders:
            cell = Cell(lender, self.preset, self.row, self.seed, self.runs)
            known = self.row in lender.rows(self.preset)
            if known and cell.words == self.words and cell.missing() is None:
                return cell.folder
        return None


def all_rows(presets: Mapping[str, Preset]) -> dict[str, Preset]:
    """Presets of another table, for rows that they leave out there."""
    return {name: replace(preset, without=()) for name, preset in presets.items()}


def show(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """Images ``(rows · columns, *event)``, edge to edge."""
    pixels = grey(images)
    rows = pixels.reshape(-1, columns, *pixels.shape[1:])
    axes.imshow(np.block([[*row] for row in rows]), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def manifold(side: int) -> Tensor:
    """Equally likely latents ``(side², 2)``: a grid on the unit square through Φ⁻¹.

    The first coordinate rises to the right, the second upwards.
    """
    levels = (torch.arange(side) + 0.5) / side
    quantiles = torch.special.ndtri(levels)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([right, up], -1).flatten(0, 1)
