"""Plots; every function returns a ``matplotlib.figure.Figure`` without displaying it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..evaluation import Bounds
from ..evaluation.bounds import DEFAULT_KS
from ..learning import History

__all__ = [
    "plot_bound_against_k",
    "plot_bounds",
    "plot_gap_parts",
    "plot_histograms",
    "plot_image_grid",
    "plot_khat",
    "plot_latent_units",
    "plot_latents",
    "plot_learning_curves",
    "plot_log_weights",
    "plot_rate_distortion",
]

#: Figure sizes in inches.
_WIDE_SIZE, _SQUARE_SIZE = (6.4, 3.6), (5.2, 4.6)


def plot_learning_curves(history: History) -> Figure:
    """Plot the training objective and the validation ELBO by epoch."""
    figure, axes = _make_axes(_WIDE_SIZE)
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


def plot_bound_against_k(bounds: Bounds) -> Figure:
    """Plot L_k against k, ± 2 Monte Carlo standard errors, and the k at which it converges."""
    figure, axes = _make_axes(_WIDE_SIZE)
    ks = np.array(list(bounds.iwae))
    rows = [bounds.estimates[f"iwae_{k}"] for k in ks]
    values = np.array([row.value for row in rows])
    errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
    axes.fill_between(ks, values - errors, values + errors, alpha=0.3, lw=0)
    axes.plot(ks, values, marker=".", label="$L_k$ ± 2 standard errors (Monte Carlo)")
    axes.axhline(bounds.elbo, color="0.5", ls=":", label="ELBO")
    plateau = bounds.plateau
    if plateau is not None:
        axes.axvline(plateau, color="C3", ls="--", lw=1, label=f"converged at k = {plateau}")
    axes.set_xscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False, loc="lower right")
    return figure


def plot_khat(bounds: Bounds) -> Figure:
    """Plot the sorted k̂ of all examples and the threshold above which log p̂ is unreliable."""
    figure, axes = _make_axes(_WIDE_SIZE)
    order = np.argsort(bounds.per_datum["khat"])
    khat, threshold = bounds.per_datum["khat"][order], bounds.khat_thresholds.max()
    good = ~np.isin(order, bounds.unreliable)
    index = np.arange(len(khat))
    axes.scatter(index[good], khat[good], s=6, label=f"{good.sum()} below")
    axes.scatter(index[~good], khat[~good], s=6, color="C3", label=f"{(~good).sum()} above")
    axes.axhline(threshold, color="0.3", ls="--", lw=1, label=f"threshold {threshold:.2f}")
    axes.set_xlabel("examples, sorted by k̂")
    axes.set_ylabel("k̂")
    axes.legend(frameon=False)
    return figure


def plot_log_weights(log_weights: np.ndarray, titles: list[str]) -> Figure:
    """Plot histograms of the log weights ``(K, n)`` of n examples."""
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
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def plot_histograms(values: list[np.ndarray], titles: list[str], unit: str) -> Figure:
    """Plot overlaid histograms of several sets of values."""
    figure, axes = _make_axes(_WIDE_SIZE)
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
    """Plot greyscale images ``(n, H, W)`` in [0, 1] row by row.

    With ``row_pairs``, every second row is followed by a gap.
    """
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
        if row_pairs and row % 2:
            canvas_rows.append(np.ones((6, line.shape[1])))
    canvas = np.concatenate(canvas_rows)
    inches = 6.4
    figure = Figure(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return figure


def plot_latents(draws: np.ndarray, labels: np.ndarray | None) -> Figure:
    """Plot latents ``(n, 2)``, coloured by label."""
    figure, axes = _make_axes(_SQUARE_SIZE)
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


def _make_axes(size: tuple[float, float]) -> tuple:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


#: Colours by the role of a bound.
_ROLE_COLORS = {"lower bound": "C0", "estimate": "C2", "upper bound": "C3"}
#: Labels and colours of the parts of the gap, from the ELBO upwards.
_GAP_PARTS = {
    "amortisation": ("amortisation", "C1"),
    "closed": ("approximation, closed by {richer}", "#7fb0d8"),
    "remaining": ("approximation, remaining", "C0"),
    "approximation": ("approximation", "C0"),
}
#: Colours of latent units.
_ACTIVE_COLOR, _INACTIVE_COLOR = "C0", "0.75"
#: Lower limit of variances on a logarithmic axis.
_MIN_VARIANCE = 1e-5


def plot_bounds(panels: Mapping[str, Bounds]) -> Figure:
    """Plot bounds on log p(x), ± 2 Monte Carlo standard errors, one panel per set of bounds."""
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, bounds) in zip(all_axes, panels.items(), strict=True):
        names = _plotted_rows(bounds)
        rows = [bounds.estimates[name] for name in names]
        values = np.array([row.value for row in rows])
        errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
        axes.plot(range(len(names)), values, color="0.8", lw=1, zorder=0)
        for i, name in enumerate(names):
            color = _ROLE_COLORS[bounds.labels[name][1]]
            axes.errorbar(i, values[i], errors[i], marker="o", ms=5, color=color, capsize=3)
        if {"ais", "upper"} <= {*names}:
            low, high = (values[names.index(name)] for name in ("ais", "upper"))
            axes.axhspan(low, high, color="C2", alpha=0.25, lw=0, label="range of log p(x)")
        for role in dict.fromkeys(bounds.labels[name][1] for name in names):
            axes.plot([], [], "o", ms=5, color=_ROLE_COLORS[role], label=role)
        axes.set_xticks(range(len(names)), [_tick_label(bounds, name) for name in names])
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("nats per datum")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    return figure


def _plotted_rows(bounds: Bounds) -> list[str]:
    """Return the rows to plot: the ELBO, the default L_k, AIS and the upper bound."""
    last = max(bounds.iwae_per_datum, default=0)
    ks = [f"iwae_{k}" for k in bounds.iwae_per_datum if k in DEFAULT_KS or k == last]
    return [n for n in ("elbo", *ks, "escalated", "ais", "upper") if n in bounds.labels]


def _tick_label(bounds: Bounds, name: str) -> str:
    if name.startswith("iwae_"):
        return f"$L_{{{name.removeprefix('iwae_')}}}$"
    return bounds.labels[name][0].replace(" or ", "\nor ")


def plot_gap_parts(bars: Mapping[str, Mapping[str, Any]], richer: str | None) -> Figure:
    """Plot the parts of log p̂ − ELBO as stacked bars.

    Arguments:
        bars: parts by data split: ``amortisation`` and, if known, either ``closed`` and
            ``remaining`` or ``approximation``, each with ``value`` and ``se_data``.
        richer: name of the richer family, which closes the part ``closed``.
    """
    figure = Figure(figsize=(6.4, 1.4 + 0.7 * len(bars)), layout="constrained")
    axes = figure.subplots()
    legend = {}
    for i, parts in enumerate(bars.values()):
        left = 0.0
        for part, row in parts.items():
            label, color = _GAP_PARTS[part]
            # noise can make a small part negative: it is labelled but has no bar
            value = math.nan if row["value"] is None else row["value"]
            width = max(value, 0.0) if math.isfinite(value) else 0.0
            axes.barh(i, width, left=left, height=0.6, color=color)
            legend[label.format(richer=richer)] = color
            error = "" if row["se_data"] is None else f"\n± {row['se_data']:.2f}"
            text = f"{value:.2f}{error}"
            axes.text(left + width / 2, i, text, ha="center", va="center", fontsize=8)
            left += width
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel("nats per datum above the ELBO")
    axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=color) for color in legend.values()]
    place = {"loc": "outside upper center", "ncols": 3, "fontsize": 8}
    figure.legend(patches, list(legend), frameon=False, **place)
    return figure


def plot_latent_units(site: Mapping[str, Any], threshold: float, name: str) -> Figure:
    """Plot the KL and the variance of the posterior mean of all units of a site, sorted.

    Arguments:
        site: ``dimensions``, the KL in nats, and ``variance``; either may be ``None``.
        threshold: variance above which a unit is active.
        name: name of the site.
    """
    variance, kl = (
        None if site[key] is None else np.array(site[key], float)
        for key in ("variance", "dimensions")
    )
    panels = [values for values in (kl, variance) if values is not None]
    figure = Figure(figsize=(4.8 * len(panels), 3.2), layout="constrained")
    axes_iterator = iter(figure.subplots(1, len(panels), squeeze=False)[0])
    order = np.argsort(-panels[0])
    active = np.ones(len(order), bool) if variance is None else variance > threshold
    colors = [_ACTIVE_COLOR if active[i] else _INACTIVE_COLOR for i in order]
    if kl is not None:
        axes = next(axes_iterator)
        axes.bar(range(len(order)), kl[order], color=colors, width=0.9)
        axes.set_ylabel("KL (nats per datum)")
        axes.set_xlabel(f"units of {name}, sorted by KL")
    if variance is not None:
        axes = next(axes_iterator)
        shown = np.maximum(variance[order], _MIN_VARIANCE)
        axes.bar(range(len(order)), shown, color=colors, width=0.9)
        axes.axhline(threshold, color="C3", ls="--", lw=1, label=f"active above {threshold:g}")
        axes.set_yscale("log")
        axes.set_ylim(bottom=_MIN_VARIANCE / 2)
        axes.set_ylabel("variance of the posterior mean")
        axes.set_xlabel(f"units of {name}, in the same order" if kl is not None else name)
        axes.legend(frameon=False, loc="upper right")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_rate_distortion(
    betas: Sequence[float],
    rate: Sequence[Mapping[str, Any]],
    distortion: Sequence[Mapping[str, Any]],
    own: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Plot distortion against rate by β, ± 2 Monte Carlo standard errors, and the point of q."""
    figure, axes = _make_axes(_SQUARE_SIZE)
    (r, r_error), (d, d_error) = (
        (
            np.array([row["value"] for row in rows], float),
            2 * np.nan_to_num(np.array([row["se_monte_carlo"] for row in rows], float)),
        )
        for rows in (rate, distortion)
    )
    axes.errorbar(r, d, d_error, r_error, marker="o", ms=4, label="rate–distortion curve, by AIS")
    for beta, x, y in zip(betas, r, d, strict=True):
        axes.annotate(
            f"β = {beta:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8
        )
    x, y = (np.array(own[name]["value"], float) for name in ("rate", "distortion"))
    axes.plot(x, y, "*", color="C3", ms=12, label="q itself")
    ends = np.array([0.0, x + y])  # rate and distortion with the same sum
    low, high = axes.get_xlim(), axes.get_ylim()
    axes.plot(ends, ends[::-1], color="0.5", ls=":", lw=1, label="ELBO of q, −(R + D)")
    axes.set_xlim(low)
    axes.set_ylim(high)
    axes.set_xlabel("rate (nats per datum)")
    axes.set_ylabel("distortion (nats per datum)")
    axes.legend(frameon=False)
    return figure
