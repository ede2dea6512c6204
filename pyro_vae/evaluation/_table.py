"""The table that a terminal shows of ``Bounds``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .defensive import draws_of_prior
from .psis import khat_limits

if TYPE_CHECKING:
    from .bounds import Bounds

__all__ = ["text"]

_HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"


def text(bounds: Bounds, ks: Sequence[int] | None = None) -> str:
    """The estimates, a row each, and below them how far to trust them.

    Arguments:
        bounds: what to show.
        ks: the L_k to show; all that there are if not given. The largest is always shown.
    """
    last = max(bounds.iwae_per_datum, default=0)
    hidden = {
        f"iwae_{k}" for k in bounds.iwae_per_datum if ks is not None and k not in ks and k != last
    }
    labels = {name: told for name, told in bounds.labels.items() if name not in hidden}
    wide = max([14, *(2 + len(label) - label.count(_HAT) for label, _ in labels.values())])
    lines = [_head(bounds), f"{'':{wide}}{'mean':>11}{'± data':>10}{'± MC':>10}"]
    estimates = bounds.estimates
    for name, (label, role) in labels.items():
        row = estimates[name]
        numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
        # the circumflex of p̂ takes no room of its own
        lines.append(f"{label:{wide + label.count(_HAT)}}{numbers}  {role}")
    return "\n".join([*lines, *_diagnostics(bounds)])


def _head(bounds: Bounds) -> str:
    what = f"{bounds.num_samples} draws"
    if "num_samples" in bounds.per_datum:
        what = f"at most {what}"
    elif "annealing" in bounds.settings and not {"elbo", "log_evidence"} & bounds.per_datum.keys():
        what = f"{bounds.settings['annealing']['num_chains']} chains"
    return f"{len(bounds)} data × {what}; nats per datum, higher is better"


def _diagnostics(bounds: Bounds) -> list[str]:
    data, lines = bounds.per_datum, []
    if {"khat", "ess"} <= data.keys():
        khat, ess = data["khat"], data["ess"]
        lines.append(
            f"k̂ median {np.median(khat):.2f}, worst {khat.max():.2f}; "
            f"ESS median {np.median(ess):.1f}, worst {ess.min():.1f}"
        )
    if "tolerance" in bounds.settings:
        lines.append(_adaptive(bounds))
    if "defensive_khat" in data:
        lines.append(_defensive(bounds))
    if "precision" in bounds.settings:
        lines.append(_rounded(bounds))
    if "ais_ess" in data or "escalated" in data:
        lines.append(_annealed(bounds))
    return [*lines, *([bounds.warning] if bounds.warning else [])]


def _adaptive(bounds: Bounds) -> str:
    tolerance, draws = bounds.settings["tolerance"], bounds.per_datum["num_samples"]
    errors = np.sqrt(bounds.per_datum["log_evidence_variance"])
    short = int((~(errors <= tolerance)).sum())
    low, high = draws.min(), draws.max()
    spread = f"{low} draws for every datum" if low == high else f"{low} to {high} draws for a datum"
    return (
        f"{spread}, {bounds.settings['total_draws']} in all with the pilots that chose how many; "
        f"for {short} of {len(bounds)} data the standard error of log p̂ is above {tolerance:g}"
    )


def _defensive(bounds: Bounds) -> str:
    share, khat = bounds.settings["defensive"], bounds.per_datum["defensive_khat"]
    draws = bounds.draws + np.array([draws_of_prior(share, int(n)) for n in bounds.draws])
    above = int((~(khat < khat_limits(draws))).sum())
    return (
        f"with {share:.1%} of draws from the prior: k̂ median {np.median(khat):.2f}, worst "
        f"{khat.max():.2f}, above its limit for {above} of {len(bounds)} data"
    )


def _rounded(bounds: Bounds) -> str:
    told = bounds.settings["precision"]
    k = told["num_samples"]
    changes = ", ".join(
        f"{label} by {told[name]:+.4f} ± {told.get(f'{name}_se', np.nan):.4f}"
        for name, label in (("elbo", "the ELBO"), ("iwae", f"L_{k}"))
    )
    return (
        f"layers of networks in {told['name']}, which changes {changes} nats per datum "
        f"(the same {k} draws for {told['num_data']} data)"
    )


def _annealed(bounds: Bounds) -> str:
    data, told = bounds.per_datum, ["AIS"]
    if "escalated" in data:
        told[0] = f"AIS took {(~np.isnan(data['ais'])).sum()} of {len(bounds)} data"
    if "annealing" in bounds.settings:
        told[0] += f", {bounds.settings['annealing']['num_chains']} chains each"
    for name, label in (("ais_ess", "ESS"), ("acceptance", "acceptance")):
        some = data.get(name, np.empty(0))
        some = some[~np.isnan(some)]
        if len(some):
            told.append(f"{label} median {np.median(some):.2f}, worst {some.min():.2f}")
    return "; ".join(told)
