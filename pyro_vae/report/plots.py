"""Plots of the report that are not those of a result; they return axes and display nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.figures import MUTED, get_axes, make_figure, rasterize_many

__all__ = [
    "plot_differences",
    "plot_histograms",
    "plot_image_grid",
    "plot_latents",
    "plot_log_weights",
]


def plot_log_weights(log_weights: np.ndarray, titles: list[str]) -> Figure:
    """Plot histograms of the log weights ``(K, n)`` of n examples."""
    figure, panels = make_figure(height=2.6 * len(titles), panels=len(titles))
    for axes, column, title in zip(panels, log_weights.T, titles, strict=True):
        axes.hist(column, bins=min(80, max(10, len(column) // 20)), density=True, alpha=0.7)
        log_mean = np.logaddexp.reduce(column) - math.log(len(column))
        axes.axvline(column.mean(), color=MUTED, ls=":", label=f"mean = ELBO {column.mean():.2f}")
        axes.axvline(log_mean, color="C3", lw=1, label=f"log p̂ {log_mean:.2f}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("log w (nats)")
        axes.set_ylabel("density")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def plot_histograms(values: list[np.ndarray], titles: list[str], unit: str) -> Axes:
    """Plot overlaid histograms of several sets of values."""
    axes = get_axes(None)
    # without clipping, outliers would put all other values into one bin
    low, high = np.quantile(np.concatenate(values), [0.005, 0.995])
    bins = np.linspace(low, high + 1e-9, 60).tolist()
    for sample, title in zip(values, titles, strict=True):
        axes.hist(np.clip(sample, low, high), bins=bins, density=True, alpha=0.6, label=title)
    axes.set_xlabel(unit)
    axes.set_ylabel("density")
    # a fixed place: matplotlib's search for the best one is slow, and warns when it is
    axes.legend(frameon=False, loc="upper left")
    return axes


def plot_differences(differences: dict[str, np.ndarray], unit: str) -> Axes:
    """Plot sorted differences of examples, ``(N,)`` by label, with their means."""
    axes = get_axes(None)
    for label, values in differences.items():
        share = (np.arange(len(values)) + 0.5) / len(values)
        (line,) = axes.plot(share, np.sort(values), label=label)
        axes.axhline(values.mean(), color=line.get_color(), ls=":", lw=1)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlabel("share of the examples, sorted")
    axes.set_ylabel(unit)
    axes.legend(frameon=False, loc="upper left")
    return axes


def plot_image_grid(images: np.ndarray, columns: int, row_pairs: bool = False) -> Figure:
    """Plot images in [0, 1], grey ``(n, H, W)`` or colour ``(n, H, W, 3)``, row by row.

    With ``row_pairs``, every second row is followed by a gap.
    """
    count, height, width, *channels = images.shape
    rows = -(-count // columns)
    # one white pixel between images
    cells = np.ones((rows * columns, height + 1, width + 1, *channels))
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, columns, height + 1, width + 1, *channels).swapaxes(1, 2)
    canvas = grid.reshape(rows * (height + 1), columns * (width + 1), *channels)[:, :-1]
    if row_pairs:
        gaps = np.arange(2, rows + 1, 2).repeat(6) * (height + 1)
        canvas = np.insert(canvas, gaps, 1.0, axis=0)
    inches = 6.4
    figure = Figure(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return figure


def plot_latents(
    draws: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None = None
) -> Axes:
    """Plot latents ``(n, 2)``, coloured by label.

    Arguments:
        draws: the latents.
        labels: classes 0, 1, …, with −1 for unknown ones.
        names: the names of the classes.
    """
    axes = get_axes(None, height=4.0)
    style: dict[str, Any] = {"s": 6, "alpha": 0.7, "lw": 0, "rasterized": rasterize_many(draws)}
    classes = [] if labels is None else np.unique(labels).tolist()
    # ten distinct colours, or one scale for more classes
    colors = (
        colormaps["tab10"] if len(classes) <= 10 else colormaps["turbo"].resampled(len(classes))
    )
    if len(classes) < 2 or labels is None:
        axes.scatter(*draws.T, **style)
    else:
        for i, code in enumerate(classes):
            name = "unknown" if code == -1 else names[code] if names else str(code)
            color = MUTED if code == -1 else colors(i)
            axes.scatter(*draws[labels == code].T, color=color, label=name, **style)
    if len(classes) > 1:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": 8}
        columns = -(-len(classes) // 20)
        axes.legend(frameon=False, handletextpad=0, ncols=columns, **place)
    axes.set_aspect("equal", "datalim")
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    return axes
