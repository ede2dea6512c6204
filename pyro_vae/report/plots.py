"""Figures. Every function returns a ``matplotlib.figure.Figure`` and draws nothing on screen."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from ..evaluation import Bounds
from ..learning import History

__all__ = [
    "bound_against_k",
    "histograms",
    "image_grid",
    "khat_per_datum",
    "latent_scatter",
    "learning_curves",
    "log_weight_histograms",
]

_WIDE, _SQUARE = (6.4, 3.6), (5.2, 4.6)


def learning_curves(history: History) -> Figure:
    """The objective of training data and the ELBO of validation data against the epoch."""
    figure, axes = _axes(_WIDE)
    axes.plot(history["epoch"], history["elbo"], label="training, the objective")
    if "valid_elbo" in history.epochs[0]:
        axes.plot(history["epoch"], history["valid_elbo"], label="validation, the ELBO")
    # the first epochs fall far below the rest and would flatten it
    settled = np.sort(history["elbo"])[len(history) // 10 :]
    top = max(max(history["elbo"]), max(history.epochs[-1].get("valid_elbo", -np.inf), settled[-1]))
    axes.set_ylim(
        settled[0] - 0.1 * (top - settled[0]) - 1e-3, top + 0.1 * (top - settled[0]) + 1e-3
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False)
    return figure


def bound_against_k(bounds: Bounds) -> Figure:
    """L_k against k, ± 2 Monte Carlo standard errors, with the point where it stops rising."""
    figure, axes = _axes(_WIDE)
    ks = np.array(list(bounds.iwae))
    rows = [bounds.estimates[f"iwae_{k}"] for k in ks]
    values = np.array([row.value for row in rows])
    errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
    axes.fill_between(ks, values - errors, values + errors, alpha=0.3, lw=0)
    axes.plot(ks, values, marker=".", label="$L_k$ ± 2 standard errors (Monte Carlo)")
    axes.axhline(bounds.elbo, color="0.5", ls=":", label="ELBO")
    plateau = bounds.plateau
    if plateau is not None:
        axes.axvline(plateau, color="C3", ls="--", lw=1, label=f"stops rising at k = {plateau}")
    axes.set_xscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False, loc="lower right")
    return figure


def khat_per_datum(bounds: Bounds) -> Figure:
    """k̂ of every datum, and the limit above which its estimate is not to be trusted."""
    figure, axes = _axes(_WIDE)
    order = np.argsort(bounds.per_datum["khat"])
    khat, limit = bounds.per_datum["khat"][order], bounds.khat_limits.max()
    good = ~np.isin(order, bounds.unreliable)
    index = np.arange(len(khat))
    axes.scatter(index[good], khat[good], s=6, label=f"{good.sum()} below")
    axes.scatter(index[~good], khat[~good], s=6, color="C3", label=f"{(~good).sum()} above")
    axes.axhline(limit, color="0.3", ls="--", lw=1, label=f"limit {limit:.2f}")
    axes.set_xlabel("datum, by k̂")
    axes.set_ylabel("k̂")
    axes.legend(frameon=False)
    return figure


def log_weight_histograms(log_weights: np.ndarray, titles: list[str]) -> Figure:
    """The distribution of log weights, ``(K, n)``, of n data."""
    figure = Figure(figsize=(3.4 * len(titles), 3.2), layout="constrained")
    axes_row = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, column, title in zip(axes_row, log_weights.T, titles, strict=True):
        axes.hist(column, bins=min(80, max(10, len(column) // 20)), density=True, alpha=0.7)
        log_mean = np.logaddexp.reduce(column) - math.log(len(column))
        axes.axvline(column.mean(), color="0.4", ls=":", label=f"mean = ELBO {column.mean():.2f}")
        axes.axvline(log_mean, color="C3", lw=1, label=f"log p̂ {log_mean:.2f}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("log w (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


def histograms(values: list[np.ndarray], titles: list[str], unit: str) -> Figure:
    """The distributions of several sets of numbers, one over the other."""
    figure, axes = _axes(_WIDE)
    # a few numbers far out would leave all others in one bar
    low, high = np.quantile(np.concatenate(values), [0.005, 0.995])
    bins = np.linspace(low, high + 1e-9, 60).tolist()
    for numbers, title in zip(values, titles, strict=True):
        axes.hist(np.clip(numbers, low, high), bins=bins, density=True, alpha=0.6, label=title)
    axes.set_xlabel(unit)
    axes.legend(frameon=False)
    return figure


def image_grid(images: np.ndarray, columns: int, gap_after_rows: bool = False) -> Figure:
    """Grey images ``(n, H, W)`` in [0, 1], row by row; a gap after every second row if asked."""
    count, height, width = images.shape
    rows = -(-count // columns)
    pad = 1
    canvas_rows = []
    for row in range(rows):
        cells = images[row * columns : (row + 1) * columns]
        line = np.ones((height + pad, columns * (width + pad) - pad))
        for i, cell in enumerate(cells):
            line[:height, i * (width + pad) : i * (width + pad) + width] = cell
        canvas_rows.append(line)
        if gap_after_rows and row % 2:
            canvas_rows.append(np.ones((6, line.shape[1])))
    canvas = np.concatenate(canvas_rows)
    inches = 6.4
    figure = Figure(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return figure


def latent_scatter(draws: np.ndarray, labels: np.ndarray | None) -> Figure:
    """Latents ``(n, 2)``, coloured by label."""
    figure, axes = _axes(_SQUARE)
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


def _axes(size: tuple[float, float]) -> tuple:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
