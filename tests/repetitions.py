"""Independent repetitions of an evaluation, from a single evaluation of many examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pyro_vae import Bounds


def split_bounds(bounds: Bounds, size: int) -> Iterator[tuple[slice, Bounds]]:
    """Yield the bounds of consecutive groups of ``size`` examples, and their rows.

    Examples have independent samples, so the groups repeat an evaluation of ``size`` examples.
    """
    for start in range(0, len(bounds), size):
        rows = slice(start, start + size)
        columns = (bounds.per_datum, bounds.iwae_per_datum, bounds.iwae_variance)
        per_datum, iwae, variance = ({k: v[rows] for k, v in c.items()} for c in columns)
        part = replace(bounds, per_datum=per_datum, iwae_per_datum=iwae, iwae_variance=variance)
        yield rows, part
