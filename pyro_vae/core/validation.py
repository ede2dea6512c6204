"""What somebody may have meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral

__all__ = ["did_you_mean", "positive_int"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean …?"``, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def positive_int(name: str, value: int) -> int:
    """``value`` if it is a positive integer, else a ``ValueError`` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer; got {value!r}")
    return int(value)
