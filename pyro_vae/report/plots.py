"""Figures. Every function returns a ``matplotlib.figure.Figure`` and draws nothing on screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..evaluation import Bounds
from ..evaluation.bounds import PRINTED
from ..learning import History

__all__ = [
    "bound_against_k",
    "gap_parts",
    "histograms",
    "image_grid",
    "khat_per_datum",
    "ladder",
    "latent_scatter",
    "latent_units",
    "learning_curves",
    "log_weight_histograms",
    "rate_distortion",
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


#: What rows of bounds are to log p(x), by colour.
_COLORS = {"lower bound": "C0", "estimate": "C2", "upper bound": "C3"}
#: The parts of the gap, from the ELBO upwards: what they are called, and their colours.
_PARTS = {
    "amortisation": ("amortisation", "C1"),
    "closed": ("approximation, closed by {richer}", "#7fb0d8"),
    "remaining": ("approximation, left", "C0"),
    "approximation": ("approximation", "C0"),
}
_ALIVE, _DEAD = "C0", "0.75"
#: The least that a logarithmic axis shows of a variance.
_FLOOR = 1e-5


def ladder(panels: Mapping[str, Bounds]) -> Figure:
    """Bounds of log p(x) from the ELBO up, ± 2 Monte Carlo standard errors, a panel each."""
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, bounds) in zip(every, panels.items(), strict=True):
        names = rungs(bounds)
        rows = [bounds.estimates[name] for name in names]
        values = np.array([row.value for row in rows])
        errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
        axes.plot(range(len(names)), values, color="0.8", lw=1, zorder=0)
        for i, name in enumerate(names):
            color = _COLORS[bounds.labels[name][1]]
            axes.errorbar(i, values[i], errors[i], marker="o", ms=5, color=color, capsize=3)
        if {"ais", "upper"} <= {*names}:
            low, high = (values[names.index(name)] for name in ("ais", "upper"))
            axes.axhspan(low, high, color="C2", alpha=0.25, lw=0, label="log p(x) is in here")
        for role in dict.fromkeys(bounds.labels[name][1] for name in names):
            axes.plot([], [], "o", ms=5, color=_COLORS[role], label=role)
        axes.set_xticks(range(len(names)), [_label(bounds, name) for name in names])
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("nats per datum")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    return figure


def rungs(bounds: Bounds) -> list[str]:
    """The rows of the ladder: the ELBO, L_k that papers print, AIS and the upper bound."""
    last = max(bounds.iwae_per_datum, default=0)
    ks = [f"iwae_{k}" for k in bounds.iwae_per_datum if k in PRINTED or k == last]
    return [n for n in ("elbo", *ks, "escalated", "ais", "upper") if n in bounds.labels]


def _label(bounds: Bounds, name: str) -> str:
    if name.startswith("iwae_"):
        return f"$L_{{{name.removeprefix('iwae_')}}}$"
    return bounds.labels[name][0].replace(" or ", "\nor ")


def gap_parts(bars: Mapping[str, Mapping[str, Any]], richer: str | None) -> Figure:
    """log p̂ − ELBO as stacked bars.

    Arguments:
        bars: by what data they are of, ``amortisation`` and, if known, ``closed`` and
            ``remaining`` or else ``approximation``, each with ``value`` and ``se_data``.
        richer: the name of the family that closes what is ``closed``.
    """
    figure = Figure(figsize=(6.4, 1.4 + 0.7 * len(bars)), layout="constrained")
    axes = figure.subplots()
    named = {}
    for i, parts in enumerate(bars.values()):
        left = 0.0
        for part, row in parts.items():
            label, color = _PARTS[part]
            # noise may make a small part negative: its number says so
            value = math.nan if row["value"] is None else row["value"]
            width = max(value, 0.0) if math.isfinite(value) else 0.0
            axes.barh(i, width, left=left, height=0.6, color=color)
            named[label.format(richer=richer)] = color
            error = "" if row["se_data"] is None else f"\n± {row['se_data']:.2f}"
            told = f"{value:.2f}{error}"
            axes.text(left + width / 2, i, told, ha="center", va="center", fontsize=8)
            left += width
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("nats per datum above the ELBO")
    axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=color) for color in named.values()]
    place = {"loc": "outside upper center", "ncols": 3, "fontsize": 8}
    figure.legend(patches, list(named), frameon=False, **place)
    return figure


def latent_units(site: Mapping[str, Any], threshold: float, name: str) -> Figure:
    """KL of every unit of a latent site and the variance of its posterior mean, sorted.

    Arguments:
        site: ``dimensions``, KL in nats, and ``variance``, either of which may be ``None``.
        threshold: the variance above which a unit is active.
        name: of the site.
    """
    variance, cost = (
        None if site[key] is None else np.array(site[key], float)
        for key in ("variance", "dimensions")
    )
    panels = [values for values in (cost, variance) if values is not None]
    figure = Figure(figsize=(4.8 * len(panels), 3.2), layout="constrained")
    every = iter(figure.subplots(1, len(panels), squeeze=False)[0])
    order = np.argsort(-panels[0])
    alive = np.ones(len(order), bool) if variance is None else variance > threshold
    colors = [_ALIVE if alive[i] else _DEAD for i in order]
    if cost is not None:
        axes = next(every)
        axes.bar(range(len(order)), cost[order], color=colors, width=0.9)
        axes.set_ylabel("KL, nats per datum")
        axes.set_xlabel(f"units of {name}, by KL")
    if variance is not None:
        axes = next(every)
        shown = np.maximum(variance[order], _FLOOR)
        axes.bar(range(len(order)), shown, color=colors, width=0.9)
        axes.axhline(threshold, color="C3", ls="--", lw=1, label=f"active above {threshold:g}")
        axes.set_yscale("log")
        axes.set_ylim(bottom=_FLOOR / 2)
        axes.set_ylabel("variance of the posterior mean")
        axes.set_xlabel(f"units of {name}, in the same order" if cost is not None else name)
        axes.legend(frameon=False, loc="upper right")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def rate_distortion(
    betas: Sequence[float],
    rate: Sequence[Mapping[str, Any]],
    distortion: Sequence[Mapping[str, Any]],
    own: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Distortion against rate along β, ± 2 Monte Carlo standard errors, and what q itself does."""
    figure, axes = _axes(_SQUARE)
    (r, r_error), (d, d_error) = (
        (
            np.array([row["value"] for row in rows], float),
            2 * np.nan_to_num(np.array([row["se_monte_carlo"] for row in rows], float)),
        )
        for rows in (rate, distortion)
    )
    axes.errorbar(r, d, d_error, r_error, marker="o", ms=4, label="best channels, by AIS")
    for beta, x, y in zip(betas, r, d, strict=True):
        axes.annotate(
            f"β = {beta:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8
        )
    x, y = (np.array(own[name]["value"], float) for name in ("rate", "distortion"))
    axes.plot(x, y, "*", color="C3", ms=12, label="q itself")
    ends = np.array([0.0, x + y])  # of the pairs whose sum is the same
    low, high = axes.get_xlim(), axes.get_ylim()
    axes.plot(ends, ends[::-1], color="0.5", ls=":", lw=1, label="the same ELBO, −(R + D)")
    axes.set_xlim(low)
    axes.set_ylim(high)
    axes.set_xlabel("rate (nats per datum)")
    axes.set_ylabel("distortion (nats per datum)")
    axes.legend(frameon=False)
    return figure
