"""Randomness that is repeatable and leaves the caller's generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

from . import distributed

__all__ = ["check_seed", "seeded"]


def check_seed(seed: int) -> int:
    """``seed`` if it can seed a generator.

    Raises:
        ValueError: if it is not an integer ≥ 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"expected seed to be an integer ≥ 0; got {seed!r}")
    return int(seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds torch (every device), NumPy and ``random`` from the numbers given.

    The numbers are hashed together, so that ``seeded(seed, epoch)`` gives every epoch its
    own stream: a resumed run needs to know only which epoch it is in. On leaving, all
    generators are as they were before.
    """
    # pyro.set_rng_seed hands the seed to NumPy, which takes 32 bits
    seed = int(np.random.SeedSequence([*map(check_seed, entropy)]).generate_state(1)[0])
    state = get_rng_state()
    with torch.random.fork_rng(_devices()):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)


def _devices() -> list[int]:
    """The GPUs whose generators are used: of several processes each has a GPU of its own."""
    if distributed.world_size() > 1 and torch.cuda.is_available():
        return [torch.cuda.current_device()]
    return list(range(torch.cuda.device_count()))
