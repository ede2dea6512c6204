"""Number of samples per example, chosen by pilot runs whose samples are discarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..bounds import Bounds
from ..estimators import SamplingOption, SamplingSettings
from ..table_parts import TablePart, register
from .streaming import khat_threshold

__all__ = ["AdaptiveSamples", "candidate_sample_counts", "choose_sample_counts"]

#: The minimum number of samples of a pilot.
_MIN_PILOT = 200
#: Factor on the tolerance that leaves room for the error of the pilot's standard error.
_MARGIN = 0.9


@dataclass(frozen=True)
class AdaptiveSamples(SamplingOption):
    """Number of samples from q that is chosen for each example.

    Pilot runs with few samples, doubled as often as necessary, estimate the number of samples that
    an example needs to reach the standard error. Then fresh samples are drawn, and only those are
    reported: the stopping rule does not bias them. A few examples end up slightly above the
    tolerance; the table gives their number.

    The smallest number is between 200 and 400: ``num_samples``, halved as long as it stays at or
    above 200.

    Attributes:
        tolerance: the Monte Carlo standard error of log p̂ of an example, in nats.

    Raises:
        ValueError: if the tolerance is not positive; with bfloat16 or raw weights.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"expected tolerance > 0, in nats; got {self.tolerance}")

    def configure(self, settings: SamplingSettings) -> SamplingSettings:
        if settings.keep_log_weights:
            raise ValueError(
                "expected keep_log_weights or AdaptiveSamples; got both, but the number of raw "
                "weights then varies by example: drop one of them"
            )
        if settings.precision != "float32":
            raise ValueError(
                f"expected precision float32 with AdaptiveSamples; got {settings.precision}, whose "
                f"rounding error of an example does not shrink with more samples: drop one of the "
                f"two"
            )
        return replace(settings, tolerance=self.tolerance)


def candidate_sample_counts(max_samples: int) -> list[int]:
    """Return ``max_samples``, halved as long as it stays at or above 200, in ascending order."""
    counts = [max_samples]
    while counts[0] > 1 and -(-counts[0] // 2) >= _MIN_PILOT:
        counts.insert(0, -(-counts[0] // 2))
    return counts


def choose_sample_counts(
    errors: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    size: int,
    candidates: list[int],
    tolerance: float,
) -> tuple[Tensor, int]:
    """Return the numbers of samples for which the standard errors are within the tolerance.

    If the k̂ of a pilot with n samples is good, its standard error predicts that of any number of
    samples, by the square root. If its k̂ is bad, the next pilot has twice the samples. The
    samples of the pilots must not be reported: a pilot that missed the large weights by chance
    understates its error, and would be selected for it.

    Arguments:
        errors: ``errors(n, rows)`` returns the standard errors and the k̂ of n samples for the
            given examples.
        size: the number N of examples.
        candidates: the numbers of samples to choose from, ascending.
        tolerance: the tolerance in nats.

    Returns:
        The number of samples of each example, ``(N,)``, the largest candidate if no smaller one
        is known to suffice; and the total number of samples of all pilots.
    """
    counts = torch.full((size,), candidates[-1])
    remaining, pilot_total = torch.arange(size), 0
    for count, following in pairwise(candidates):
        if not len(remaining):
            break
        error, khat = errors(count, remaining)
        pilot_total += count * len(remaining)
        required = count * (error / (_MARGIN * tolerance)).square()
        decided = (khat < khat_threshold(count)) & (required <= following)
        smallest = torch.where(required <= count, count, following)
        counts[remaining[decided]] = smallest[decided]
        remaining = remaining[~decided]
    return counts, pilot_total


def _describe(bounds: Bounds) -> str | None:
    if "tolerance" not in bounds.settings:
        return None
    tolerance, counts = bounds.settings["tolerance"], bounds.guide_sample_counts
    data = bounds.per_datum
    variances = data.get("guide_log_evidence_variance", data["log_evidence_variance"])
    errors = np.sqrt(variances)
    above = int((~(errors <= tolerance)).sum())
    low, high = counts.min(), counts.max()
    samples = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"{samples} samples per example, {bounds.settings['total_draws']} in total including "
        f"pilots; standard error of log p̂ above {tolerance:g} for {above} of {len(bounds)} examples"
    )


register(TablePart(order=20, describe=_describe))
