"""What a paper says of several rows together, as one number with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Claim", "before", "higher", "verdict"]

#: Standard errors that a number must be away from zero to say anything.
_CLEAR = 2.0


@dataclass(frozen=True)
class Claim:
    """A sum of rows that is positive if the paper is right.

    Attributes:
        sentence: what the paper says.
        weights: by what each row is multiplied.
        measure: the measure that is added up; log p̂ of the test data where none is named, with
            its error paired datum by datum.
    """

    sentence: str
    weights: Mapping[str, float]
    measure: str | None = None


def higher(sentence: str, row: str, than: str, measure: str | None = None) -> Claim:
    """That one row has more than another."""
    return Claim(sentence, {row: 1.0, than: -1.0}, measure)


def before(row: str) -> str:
    """What a claim calls the run that a row began with."""
    return f"before: {row}"


def verdict(value: float, error: float) -> str:
    """``holds``, ``reversed``, or ``undecided`` within two standard errors of zero."""
    if not (math.isfinite(value) and math.isfinite(error)) or abs(value) <= _CLEAR * error:
        return "undecided"
    return "holds" if value > 0 else "reversed"
