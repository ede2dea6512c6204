"""Argument checks and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral

__all__ = ["did_you_mean", "positive_int"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the closest known name for a typo.

    Returns:
        ``"; did you mean …?"``, or an empty string if no known name is close.
    """
    matches = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def positive_int(name: str, value: int) -> int:
    """Return ``value`` as an int.

    Raises:
        ValueError: if it is not a positive integer; the message contains ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer; got {value!r}")
    return int(value)
