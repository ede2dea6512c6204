"""Report section and plots of bounds on log p(x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .bounds import DEFAULT_KS, Bounds
from .sections import Picture, Section, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["make_section", "plot_bound_against_k", "plot_bounds", "plot_khat"]

#: Colours by the role of a bound.
_ROLE_COLORS = {"lower bound": "C0", "estimate": "C2", "upper bound": "C3"}


def make_section(bounds: Bounds) -> Section:
    """Return the section of the report."""
    pictures = [
        Picture(
            "bounds",
            "Convergence of L_k",
            _describe_convergence(bounds),
            plot_bound_against_k(bounds),
        )
    ]
    if np.isfinite(bounds.per_datum["khat"]).any():
        caption = bounds.warning or "k̂ is below its threshold for all examples."
        if bounds.proposals:
            counts = ", ".join(f"{name} {count}" for name, count in bounds.proposals.items())
            caption = f"log p̂ from: {counts}. {bounds.warning or 'All estimates are good.'}"
        pictures.append(Picture("khat", "k̂ per example", caption, plot_khat(bounds)))
    if "ais" in bounds.labels:
        caption = (
            "Error bars: ± 2 Monte Carlo standard errors. The error of the annealing on simulated "
            "data is measured by pyro-vae bdmc."
        )
        pictures.append(Picture("ladder", "Lower bounds", caption, plot_bounds(bounds)))
    return Section([bounds.make_table()], pictures)


def _describe_convergence(bounds: Bounds) -> str:
    plateau = bounds.plateau
    if plateau is not None:
        return (
            f"log p̂ exceeds L_k at k = {plateau} by no more than twice its Monte Carlo standard "
            f"error."
        )
    if bounds.proposals and bounds.iwae:
        k, last = max(bounds.iwae.items())
        return (
            f"L_k has not converged at k = {k}: log p̂, from better proposals than q, is "
            f"{bounds.log_evidence - last:.2f} nats higher."
        )
    return f"L_k has not converged at k = {bounds.num_samples}: log p(x) is likely higher."


def plot_bound_against_k(bounds: Bounds) -> Figure:
    """Plot L_k against k, ± 2 Monte Carlo standard errors, and the k at which it converges."""
    figure, (axes,) = make_figure()
    ks = np.array(list(bounds.iwae))
    estimates = bounds.estimates
    rows = [estimates[f"iwae_{k}"] for k in ks]
    values = np.array([row.value for row in rows])
    errors = 2 * np.nan_to_num([row.se_monte_carlo for row in rows])
    axes.fill_between(ks, values - errors, values + errors, alpha=0.3, lw=0)
    axes.plot(ks, values, marker=".", label="$L_k$ ± 2 standard errors (Monte Carlo)")
    axes.axhline(bounds.elbo, color="0.5", ls=":", label="ELBO")
    if bounds.proposals:
        axes.axhline(bounds.log_evidence, color="C2", ls="-.", label=r"$\log \hat p$ of the ladder")
    plateau = bounds.plateau
    if plateau is not None:
        axes.axvline(plateau, color="C3", ls="--", lw=1, label=f"converged at k = {plateau}")
    axes.set_xscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel("nats per datum")
    axes.legend(frameon=False, loc="lower right")
    return figure


def plot_khat(bounds: Bounds) -> Figure:
    """Plot the sorted k̂ of all examples and the threshold above which log p̂ is unreliable.

    With a ladder, those of the samples of q are shown too; AIS has none.
    """
    figure, (axes,) = make_figure()
    order = np.argsort(bounds.per_datum["khat"])
    khat, threshold = bounds.per_datum["khat"][order], bounds.khat_thresholds.max()
    good = ~np.isin(order, bounds.unreliable)
    index = np.arange(len(khat))
    axes.scatter(index[good], khat[good], s=6, label=f"{good.sum()} below")
    axes.scatter(index[~good], khat[~good], s=6, color="C3", label=f"{(~good).sum()} above")
    if "guide_khat" in bounds.per_datum:
        guide = bounds.per_datum["guide_khat"][order]
        axes.scatter(index, guide, s=6, color="0.7", zorder=0, label="samples of q (L_k)")
    axes.axhline(threshold, color="0.3", ls="--", lw=1, label=f"threshold {threshold:.2f}")
    axes.set_xlabel("examples, sorted by k̂")
    axes.set_ylabel("k̂")
    axes.legend(frameon=False)
    return figure


def plot_bounds(bounds: Bounds) -> Figure:
    """Plot bounds on log p(x), ± 2 Monte Carlo standard errors, in the order of the table.

    The L_k are those of :data:`DEFAULT_KS` and L_K. The range between AIS and an upper bound is
    shaded.
    """
    figure, (axes,) = make_figure(4.8, 3.8)
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
    axes.plot(range(len(labels)), values, color="0.8", lw=1, zorder=0)
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
    return figure
