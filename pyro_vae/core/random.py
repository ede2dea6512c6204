"""Reproducible random streams that leave the caller's generators unchanged."""

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
    """Return ``seed`` if it is valid.

    Raises:
        ValueError: if it is not an integer ≥ 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"expected seed to be an integer ≥ 0; got {seed!r}")
    return int(seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed torch (all devices), NumPy and ``random`` within a context.

    The numbers in ``entropy`` are hashed together: ``seeded(seed, epoch)`` gives each epoch its
    own stream, so a resumed run only needs to know its epoch. The previous state of all
    generators is restored on exit.
    """
    # pyro.set_rng_seed also seeds NumPy, which takes 32 bits
    seed = int(np.random.SeedSequence([*map(check_seed, entropy)]).generate_state(1)[0])
    state = get_rng_state()
    with torch.random.fork_rng(_devices()):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)


def _devices() -> list[int]:
    """GPUs whose generators are in use: in a distributed run, only that of this process."""
    if distributed.world_size() > 1 and torch.cuda.is_available():
        return [torch.cuda.current_device()]
    return list(range(torch.cuda.device_count()))
