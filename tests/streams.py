"""Random streams of the tests, shifted together by ``PYRO_VAE_TEST_SEED``.

A test that only passes with one random stream may fail on another processor or torch version.
``PYRO_VAE_TEST_SEED=1`` shifts all seeds that tests and the package set by the same amount, so
equal seeds stay equal and different seeds stay different. Tests marked ``recorded_seed`` keep
their seeds, as they compare with recorded numbers.
"""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Large, so that small seeds such as ``range(20)`` do not overlap between offsets.
STEP = 1_000_003

offset = int(os.environ.get("PYRO_VAE_TEST_SEED", "0"))
_enabled = True


def enable_offset(enabled: bool) -> None:
    """Enable or disable the offset; it is enabled initially."""
    global _enabled
    _enabled = enabled


def shift_seed(seed: int) -> int:
    """Add the offset to ``seed``, modulo 2³² as NumPy requires."""
    return (seed + STEP * offset) % 2**32 if _enabled and offset else seed


def generator(seed: int) -> torch.Generator:
    """Return a torch generator with a shifted seed, as ``torch.Generator`` cannot be wrapped."""
    return torch.Generator().manual_seed(shift_seed(seed))


#: Code for ``python -c`` in a subprocess that gives it the same streams.
PRELUDE = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import streams\n"


def pyro_vae(*args: str) -> list[str]:
    """Return the command ``python -m pyro_vae`` with these arguments and the same streams."""
    code = "import runpy; runpy.run_module('pyro_vae', run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", PRELUDE + code, *args]


def _with_shifted_seed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int):
            args = (shift_seed(args[0]), *args[1:])
        return function(*args, **kwargs)

    return call


# pyro.set_rng_seed and the package's `seeded` call these functions too. Lists of entropy are not
# shifted, so that subprocesses without the offset split named data sets alike
if offset:
    torch.manual_seed = _with_shifted_seed(torch.manual_seed)
    np.random.seed = _with_shifted_seed(np.random.seed)
    np.random.default_rng = _with_shifted_seed(np.random.default_rng)
    random.seed = _with_shifted_seed(random.seed)
