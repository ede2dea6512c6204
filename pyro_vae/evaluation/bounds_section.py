"""Report section of bounds on log p(x)."""

from __future__ import annotations

import numpy as np

from .bounds import Bounds
from .bounds_plots import plot_bound_against_k, plot_bounds, plot_khat
from .sections import Picture, Section

__all__ = ["make_section"]


def make_section(bounds: Bounds) -> Section:
    """Return the section of the report."""
    pictures = []
    if bounds.iwae:
        caption, (first, *_, last) = _describe_convergence(bounds), [*bounds.iwae.items()] * 2
        alt = (
            f"L_k rises from {first[1]:.2f} nats at k = {first[0]} to {last[1]:.2f} at "
            f"k = {last[0]}. {caption}"
        )
        axes = plot_bound_against_k(bounds)
        pictures.append(Picture("bounds", "Convergence of L_k", caption, axes, alt))
    khat = bounds.per_datum["khat"]
    if np.isfinite(khat).any():
        caption = _describe_reliability(bounds)
        alt = f"k̂ of {len(bounds)} examples: median {np.nanmedian(khat):.2f}, {caption}"
        pictures.append(Picture("khat", "k̂ per example", caption, plot_khat(bounds), alt))
    if "ais" in bounds.labels:
        caption = (
            "Error bars: ± 2 Monte Carlo standard errors. The error of the annealing on simulated "
            "data is measured by pyro-vae bdmc."
        )
        pictures.append(Picture("ladder", "Lower bounds", caption, plot_bounds(bounds)))
    return Section([bounds.make_table()], pictures)


def _describe_convergence(bounds: Bounds) -> str:
    k, last = max(bounds.iwae.items())
    plateau, evidence = bounds.plateau, bounds.estimates["log_evidence"]
    if plateau is not None:
        difference = evidence.value - bounds.iwae[plateau]
        return (
            f"L_k at k = {plateau} is {max(difference, 0):.3f} nats below log p̂, which is within "
            f"2 standard errors (Monte Carlo, {evidence.se_monte_carlo:.3f}): a further rise "
            f"cannot be told from noise."
        )
    if bounds.proposals:
        return (
            f"L_k has not converged at k = {k}: log p̂, from better proposals than q, is "
            f"{evidence.value - last:.2f} nats higher."
        )
    return f"L_k has not converged at k = {bounds.num_samples}: log p(x) is likely higher."


def _describe_reliability(bounds: Bounds) -> str:
    """Return the caption; the warning itself is at the top of the page."""
    bad, size = len(bounds.unreliable), len(bounds)
    text = f"{bad} of {size} examples are unreliable." if bad else f"All {size} are reliable."
    if not bounds.proposals:
        return text
    counts = ", ".join(f"{name} {count}" for name, count in bounds.proposals.items())
    return f"log p̂ from: {counts}. {text}"
