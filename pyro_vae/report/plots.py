"""Plots; every function returns a ``matplotlib.figure.Figure`` without displaying it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.sections import make_figure
from ..learning import History

__all__ = [
    "plot_histograms",
    "plot_image_grid",
    "plot_latents",
    "plot_learning_curves",
    "plot_log_weights",
]


def plot_learning_curves(history: History) -> Figure:
    """Plot the training objective and the validation ELBO by epoch."""
    figure, (axes,) = make_figure()
    axes.plot(history["epoch"], history["elbo"], label="objective, training")
    if "valid_elbo" in history.epochs[0]:
        axes.plot(history["epoch"], history["valid_elbo"], label="ELBO, validation")
    # the first epochs are far lower and would flatten the rest of the curve
    settled = np.sort(history["elbo"])[len(history) // 10 :]
    top = max(max(history["elbo"]), max(history.epochs[-1].get("valid_elbo", -np.inf), settled[-1]))
    axes.set_ylim(
        settled[0] - 0.1 * (top - settled[0]) - 1e-3, top + 0.1 * (top - settled[0]) + 1e-3
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False)
    return figure


def plot_log_weights(log_weights: np.ndarray, titles: list[str]) -> Figure:
    """Plot histograms of the log weights ``(K, n)`` of n examples."""
    figure, axes_row = make_figure(3.4 * len(titles), 3.2, len(titles))
    for axes, column, title in zip(axes_row, log_weights.T, titles, strict=True):
        axes.hist(column, bins=min(80, max(10, len(column) // 20)), density=True, alpha=0.7)
        log_mean = np.logaddexp.reduce(column) - math.log(len(column))
        axes.axvline(column.mean(), color="0.4", ls=":", label=f"mean = ELBO {column.mean():.2f}")
        axes.axvline(log_mean, color="C3", lw=1, label=f"log p̂ {log_mean:.2f}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("log w (nats)")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def plot_histograms(values: list[np.ndarray], titles: list[str], unit: str) -> Figure:
    """Plot overlaid histograms of several sets of values."""
    figure, (axes,) = make_figure()
    # without clipping, outliers would put all other values into one bin
    low, high = np.quantile(np.concatenate(values), [0.005, 0.995])
    bins = np.linspace(low, high + 1e-9, 60).tolist()
    for sample, title in zip(values, titles, strict=True):
        axes.hist(np.clip(sample, low, high), bins=bins, density=True, alpha=0.6, label=title)
    axes.set_xlabel(unit)
    # a fixed place: matplotlib's search for the best one is slow, and warns when it is
    axes.legend(frameon=False, loc="upper left")
    return figure


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


def plot_latents(draws: np.ndarray, labels: np.ndarray | None) -> Figure:
    """Plot latents ``(n, 2)``, coloured by label."""
    figure, (axes,) = make_figure(5.2, 4.6)
    if labels is None:
        axes.scatter(*draws.T, s=5, alpha=0.6)
    else:
        points = axes.scatter(*draws.T, s=5, c=labels, cmap="tab10", alpha=0.8)
        axes.legend(
            *points.legend_elements(), frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
        )
    axes.set_aspect("equal", "datalim")
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    return figure
