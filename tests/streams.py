"""The tests' streams of random numbers, all of which ``PYRO_VAE_TEST_SEED`` moves together.

A test that passes with one stream only is a false alarm on the next processor or release of
torch. With ``PYRO_VAE_TEST_SEED=1`` every seed that a test or the package sets is moved by
the same amount, so that equal seeds still give equal numbers and other seeds other numbers.
Tests marked ``recorded_seed`` keep their seeds: they compare with numbers recorded once.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

#: Far apart, so that ``range(20)`` has no seed in common with that of another offset.
STEP = 1_000_003

offset = int(os.environ.get("PYRO_VAE_TEST_SEED", "0"))
_moving = True


def move(moving: bool) -> None:
    """Whether the offset counts from here on; it does from the start."""
    global _moving
    _moving = moving


def moved(seed: int) -> int:
    """``seed`` with the offset; within 32 bits, which NumPy takes."""
    return (seed + STEP * offset) % 2**32 if _moving and offset else seed


def generator(seed: int) -> torch.Generator:
    """A generator of torch with the offset: ``torch.Generator`` itself cannot be wrapped."""
    return torch.Generator().manual_seed(moved(seed))


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int):
            args = (moved(args[0]), *args[1:])
        elif args and isinstance(args[0], list):  # entropy of numpy.random.default_rng
            args = ([moved(0), *args[0]] if _moving else args[0], *args[1:])
        return function(*args, **kwargs)

    return call


# pyro.set_rng_seed, and with it the package's `seeded`, go through these too
if offset:
    torch.manual_seed = _wrapped(torch.manual_seed)
    np.random.seed = _wrapped(np.random.seed)
    np.random.default_rng = _wrapped(np.random.default_rng)
    random.seed = _wrapped(random.seed)
