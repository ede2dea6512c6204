"""Completed copies of data with unobserved values (NaN), for checks and initial values."""

from __future__ import annotations

import torch
from torch import Tensor

from .splits import contains_nan

__all__ = ["complete_by_column"]


def complete_by_column(x: Tensor) -> Tensor:
    """Replace the unobserved values of each column by its observed values, in turn.

    A column is one element of the event, over all examples. Its kind and range stay the same, and
    its mean and variance are close to those of the observed values ("hot deck"). It is no
    imputation: the dependence between columns is lost.

    Arguments:
        x: data, ``(N, *event_shape)``; NaN is unobserved.

    Returns:
        Data without NaN; ``x`` itself if it has none. A column without observed values gets an
        observed value of another.

    Raises:
        ValueError: if no value is observed.
    """
    if not contains_nan(x):
        return x
    columns = x.reshape(len(x), -1).T.contiguous()
    missing = columns.isnan()
    if bool(missing.all()):
        raise ValueError(f"expected at least one observed value; got NaN for all {x.numel()}")
    fallback = columns[~missing][:1]
    for index in missing.any(1).nonzero()[:, 0].tolist():
        holes = missing[index]
        observed = columns[index][~holes]
        observed = observed if len(observed) else fallback
        count = int(holes.sum())
        columns[index, holes] = observed[torch.arange(count, device=x.device) % len(observed)]
    return columns.T.reshape(x.shape)
