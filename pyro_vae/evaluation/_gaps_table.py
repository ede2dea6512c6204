"""The table that a terminal shows of ``Gaps``, and the sentence that reads it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ._estimates import Estimate

if TYPE_CHECKING:
    from .decomposition import Gaps

__all__ = ["reading", "text"]

#: So many standard errors from what is to be told from noise.
_ERRORS = 2
#: Shares above a half, in words.
_WORDS = {
    0.5: "A little over half",
    0.6: "Three fifths",
    2 / 3: "Two thirds",
    0.7: "Seven tenths",
    0.75: "Three quarters",
    0.8: "Four fifths",
    0.9: "Nine tenths",
    1.0: "Nearly all",
}
_PROPOSALS = {"elbo": "the encoder's q", "refitted": "the refitted q", "richer": "the richer q"}
_WIDE = 30
#: Nats that the last tenth of the steps may gain before it is told.
_SLOW = 0.01
#: The effective share of draws whose weights are nearly equal.
_EVEN = 0.99


def text(gaps: Gaps) -> str:
    """Bounds, differences and shares, a row each, and below them what they say."""
    bounds, told = gaps.bounds, gaps.bounds.settings["gaps"]
    rows, share = gaps.estimates, gaps.share
    lines = [
        f"{len(gaps)} data × {bounds.num_samples} draws; {gaps.family} refitted by "
        f"{told['num_steps']} steps; nats per datum",
        f"{'':{_WIDE}}{'mean':>11}{'± data':>10}{'± MC':>10}",
    ]
    found = bounds.estimates
    labels = {
        "elbo": "ELBO",
        "refitted": f"refitted {gaps.family}",
        "richer": f"refitted {gaps.richer}",
        "log_evidence": f"L_{bounds.num_samples}, {_PROPOSALS[told['proposal']]}",
        "ais": "AIS",
    }
    for name, label in labels.items():
        if name in found:
            what = ", taken for log p̂" if name == gaps.ruler else ""
            lines.append(_row(label, found[name], f"lower bound{what}"))
    parts = {"approximation": 1 - share.value, "amortisation": share.value}
    for name, part in parts.items():
        error = "" if math.isnan(share.se_data) else f" ± {share.se_data:.0%}"
        lines.append(_row(f"{name} gap", rows[name], f"{part:.0%}{error} of log p̂ − ELBO"))
    lines.append(_row("log p̂ − ELBO", rows["total"], "gap"))
    if "closed" in rows:
        lines.append(_row(f"left by {gaps.richer}", rows["remaining"], "gap"))
    if "generalisation" in rows:
        lines.append(_row("amortisation gap, train", rows["train_amortisation"], "gap"))
        lines.append(_row("encoder's generalisation", rows["generalisation"], "test − train"))
    return "\n".join([*lines, _found(gaps), *_doubts(gaps), gaps.reading])


def _row(label: str, row: Estimate, role: str) -> str:
    wide = _WIDE + label.count("\N{COMBINING CIRCUMFLEX ACCENT}")  # it takes no room of its own
    numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
    return f"{label:{wide}}{numbers}  {role}"


def _found(gaps: Gaps) -> str:
    """How the refits ended."""
    data, told = gaps.bounds.per_datum, []
    for name, family in (("refitted", gaps.family), ("richer", gaps.richer)):
        if f"{name}_late" in data:
            gain, better = data[f"{name}_late"].mean(), int(data[f"{name}_better"].sum())
            told.append(f"{family} {gain:+.3f}, better than its start for {better} of {len(gaps)}")
    return f"the last tenth of the steps gained: {'; '.join(told)}"


def _doubts(gaps: Gaps) -> list[str]:
    bounds, doubts = gaps.bounds, []
    # of weights that are nearly equal the tail is of no weight
    bad = bounds.per_datum["ess"][bounds.unreliable] < _EVEN * bounds.num_samples
    if gaps.ruler == "log_evidence" and bad.any():
        tell = "AIS does not rest on it" if "ais" in bounds.estimates else "annealing would tell"
        doubts.append(
            f"For {bad.sum()} of {len(gaps)} data k̂ is bad: there log p̂ may fall short of "
            f"log p(x), and the approximation gap with it; {tell}."
        )
    for name, family in (("refitted", gaps.family), ("richer", gaps.richer)):
        late = bounds.per_datum.get(f"{name}_late")
        if late is None:
            continue
        noise = late.std(ddof=1) / len(late) ** 0.5 if len(late) > 1 else 0.0
        if late.mean() > max(_SLOW, _ERRORS * noise):
            doubts.append(f"{family} was still gaining when its refit ended: take more steps.")
    return doubts


def reading(gaps: Gaps) -> str:
    """One sentence of the gap's shares, as far as their errors let them be told."""
    rows, share = gaps.estimates, gaps.share
    total, amortised = rows["total"], rows["amortisation"]
    if not total.value > _ERRORS * _error(total):
        return "The gap is too small to be told from noise."
    if amortised.value < -_ERRORS * _error(amortised):
        return (
            f"The refitted {gaps.family} is worse than the guide, which it cannot say: nothing is "
            f"known of amortisation; name a family that holds the guide."
        )
    error = _ERRORS * _error(share)
    if share.value - error > 0.5:
        return (
            f"{_words(share.value)} of the gap is amortisation: a bigger encoder or "
            f"semi-amortisation would help."
        )
    if share.value + error < 0.5:
        return f"{_words(1 - share.value)} of the gap is approximation: {_remedy(gaps)}."
    return (
        f"Amortisation ({share.value:.0%}) and approximation ({1 - share.value:.0%}) share the "
        f"gap; which is the larger cannot be told from {len(gaps)} data."
    )


def _remedy(gaps: Gaps) -> str:
    rows, help_ = gaps.estimates, "a richer posterior family would help"
    if "closed" not in rows:
        return help_
    closed = rows["closed"]
    if closed.value <= _ERRORS * _error(closed):
        return f"{help_}, but {gaps.richer} closes nothing that could be told from noise"
    return f"{help_}; {gaps.richer} closes {closed.value / rows['approximation'].value:.0%} of it"


def _error(row: Estimate) -> float:
    """The error of a mean over other data; of a single datum, that of its draws."""
    return row.se_monte_carlo if np.isnan(row.se_data) else row.se_data


def _words(share: float) -> str:
    return _WORDS[min(_WORDS, key=lambda known: abs(known - share))]
