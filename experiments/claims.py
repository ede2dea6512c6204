"""Statements of a paper about several rows, as one number with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Claim", "claim_verdict", "make_ordering_claim", "start_label"]

#: Distance from zero, in standard errors, at which a claim is decided.
_NUM_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Claim:
    """A weighted sum of rows that is positive if the paper's statement holds.

    Attributes:
        sentence: the statement.
        weights: the weight of each row.
        measure: the measure that is summed. If not given, log p̂ of the test examples, with a
            standard error over paired examples.
    """

    sentence: str
    weights: Mapping[str, float]
    measure: str | None = None


def make_ordering_claim(sentence: str, row: str, than: str, measure: str | None = None) -> Claim:
    """Return the claim that ``row`` has a higher value than ``than``."""
    return Claim(sentence, {row: 1.0, than: -1.0}, measure)


def start_label(row: str) -> str:
    """Return the name, in claims, of the run that a row starts from."""
    return f"before: {row}"


def claim_verdict(value: float, error: float) -> str:
    """Return ``holds``, ``reversed``, or ``undecided`` within two standard errors of zero."""
    if (
        not (math.isfinite(value) and math.isfinite(error))
        or abs(value) <= _NUM_STANDARD_ERRORS * error
    ):
        return "undecided"
    return "holds" if value > 0 else "reversed"
