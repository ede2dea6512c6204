"""Subsets of the examples of a program, and results on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.random import Stream
from ..programs.arguments import ProgramInputs
from ..programs.context import evaluating
from ..programs.importance_weights import find_layout

__all__ = ["scatter", "select_examples"]


def select_examples(inputs: ProgramInputs, rows: Tensor | np.ndarray) -> ProgramInputs:
    """Return a subset of the examples and of all arguments per example, if the program allows.

    Raises:
        ValueError: if the program only runs on all examples at once.
    """
    if len(rows) == len(inputs.x):
        return inputs
    subset = inputs.select(torch.as_tensor(rows))
    model, guide, x, args, kwargs = subset
    try:
        with evaluating(model, guide, seed=0, stream=Stream.SUBSET):
            find_layout(model, guide, x, *args, **kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"expected a program that runs on a subset of the examples, as AdaptiveSamples, "
            f"precision bfloat16 and distributed runs require; it failed ({error}): use the same "
            f"number of samples for all examples, in a single process and in float32"
        ) from error
    return subset


def scatter(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Return an array ``(size,)`` with values at the given rows and NaN elsewhere."""
    result = np.full(size, np.nan)
    result[rows] = values
    return result
