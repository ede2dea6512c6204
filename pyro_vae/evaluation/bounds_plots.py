"""Plots of bounds on log p(x)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.figures import MUTED, WARNING, get_axes, rasterize_many, use_integer_ticks
from .table_parts import DEFAULT_KS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bound_against_k", "plot_bounds", "plot_khat"]

#: Colours by the role of a bound.
_ROLE_COLORS = {"lower bound": "C0", "estimate": "C2", "upper bound": "C3"}
#: The :class:`~.bounds.Bounds`, which use this module.
Bounds = Any


def plot_bound_against_k(bounds: Bounds, ax: Axes | None = None, label: str = "") -> Axes:
    """Plot L_k against k, ± 2 Monte Carlo standard errors, and log p̂ of a ladder.

    Arguments:
        bounds: bounds with L_k.
        ax: the axes; those of a new figure by default.
        label: the name of the bounds, to compare several on the same axes. The ELBO and the k
            from which L_k is within the error of log p̂ are then left out.

    Raises:
        ValueError: if there is no L_k.
    """
    if not bounds.iwae_per_datum:
        raise ValueError("expected bounds with L_k to plot; got none: evaluate with ks=(5, 50, …)")
    axes = get_axes(ax)
    ks = np.array(list(bounds.iwae))
    estimates = bounds.estimates
    rows = [estimates[f"iwae_{k}"] for k in ks]
    values = np.array([row.value for row in rows])
    errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
    (line,) = axes.plot(ks, values, marker=".", label=label or "$L_k$ ± 2 SE (Monte Carlo)")
    color = line.get_color()
    axes.fill_between(ks, values - errors, values + errors, alpha=0.3, lw=0, color=color)
    if not label:
        axes.axhline(bounds.elbo, color=MUTED, ls=":", label="ELBO")
    if bounds.proposals:
        style: dict[str, Any] = {"color": "C2", "ls": "-."}
        if label:
            style = {"color": color, "ls": "--", "lw": 1}
        name = rf"{label}, $\log \hat p$" if label else r"$\log \hat p$ of the ladder"
        axes.axhline(bounds.log_evidence, label=name, **style)
    plateau = None if label else bounds.plateau
    if plateau is not None:
        name = rf"k = {plateau}: within 2 SE of $\log \hat p$"
        axes.axvline(plateau, color=MUTED, ls="--", lw=1, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel("nats per datum")
    # above the line of the ELBO
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.05))
    return axes


def plot_khat(bounds: Bounds, ax: Axes | None = None) -> Axes:
    """Plot the sorted k̂ of all examples and the threshold above which log p̂ is unreliable.

    It is ``khat_pooled`` where it is known, which decides about an example. With a ladder, k̂ of the
    samples of q is shown too; AIS has none.
    """
    axes, data = get_axes(ax), bounds.per_datum
    khat = data.get("khat_pooled", data["khat"])
    order = np.argsort(khat)
    khat, threshold = khat[order], bounds.khat_thresholds.max()
    bad = np.isin(order, bounds.unreliable)
    index = np.arange(1, len(khat) + 1)
    style: dict[str, Any] = {"s": 6, "rasterized": rasterize_many(khat)}
    if "guide_khat" in data:
        guide = data["guide_khat"][order]
        axes.scatter(index, guide, color=MUTED, label="samples of q (L_k)", **style)
    infinite = np.isposinf(khat)
    for rows, color, name in ((~bad, "C0", "reliable"), (bad, WARNING, "unreliable")):
        if rows.any():
            name = f"{name}: {rows.sum()} of {len(khat)}"
            shown = np.where(infinite, np.nan, khat)[rows]
            axes.scatter(index[rows], shown, color=color, label=name, **style)
    axes.axhline(threshold, color=MUTED, ls="--", lw=1, label=f"threshold {threshold:.2f}")
    if infinite.any():
        top = np.full(infinite.sum(), axes.get_ylim()[1])
        label = f"infinite: {infinite.sum()}"
        axes.scatter(index[infinite], top, s=14, marker="^", color=WARNING, label=label)
    axes.set_xlabel("examples, sorted by k̂ of log p̂")
    axes.set_ylabel("k̂")
    use_integer_ticks(axes)
    # above the axes: points may be anywhere
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    axes.legend(frameon=False, fontsize=8, borderaxespad=0.2, **place)
    return axes


def plot_bounds(bounds: Bounds, ax: Axes | None = None) -> Axes:
    """Plot bounds on log p(x), ± 2 Monte Carlo standard errors, in the order of the table.

    The L_k are those of :data:`DEFAULT_KS` and L_K. The range between AIS and an upper bound is
    shaded.
    """
    axes = get_axes(ax)
    shown = {f"iwae_{k}" for k in DEFAULT_KS}
    labels = {
        name: row
        for name, row in bounds.labels.items()
        if row[1] in _ROLE_COLORS and (name in shown or not name.startswith("iwae_"))
    }
    estimates = bounds.estimates
    rows = [estimates[name] for name in labels]
    values = np.array([row.value for row in rows])
    errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
    axes.plot(range(len(labels)), values, color=MUTED, lw=1, zorder=0)
    for i, (_, role) in enumerate(labels.values()):
        axes.errorbar(
            i, values[i], errors[i], marker="o", ms=5, color=_ROLE_COLORS[role], capsize=3
        )
    if {"ais", "upper"} <= labels.keys():
        low, high = (estimates[name].value for name in ("ais", "upper"))
        axes.axhspan(low, high, color="C2", alpha=0.25, lw=0, label="range of log p(x)")
    for role in dict.fromkeys(role for _, role in labels.values()):
        axes.plot([], [], "o", ms=5, color=_ROLE_COLORS[role], label=role)
    ticks = [label.replace(" = ", "\n= ").replace(" or ", "\nor ") for label, _ in labels.values()]
    axes.set_xticks(range(len(labels)), ticks)
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False, loc="lower right")
    return axes
