"""The context in which programs are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch

from ..core.evaluation_mode import eval_mode, owning_modules
from ..core.random import Stream, seeded

__all__ = ["evaluating", "use_own_parameters"]


@contextmanager
def evaluating(
    *programs: Callable[..., Any],
    seed: int | None = None,
    stream: Stream | None = None,
    more: tuple[int, ...] = (),
) -> Iterator[None]:
    """Run programs for an evaluation: reproducible, without side effects and without gradients.

    Modules are in evaluation mode and use their own parameters (:func:`use_own_parameters`). The
    mode, Pyro's parameter store and all random generators are restored on exit.

    Arguments:
        *programs: models and guides.
        seed: the seed; by default the random generators are not touched.
        stream: the random stream of this use.
        more: further integers ≥ 0 that select a part of the stream, such as a block.
    """
    random = nullcontext() if seed is None or stream is None else seeded(seed, stream, *more)
    with torch.no_grad(), use_own_parameters(*programs), eval_mode(*programs), random:
        yield


@contextmanager
def use_own_parameters(*programs: Callable[..., Any]) -> Iterator[None]:
    """Make modules use their own parameters instead of those in Pyro's parameter store.

    The store is global: a second ``PyroModule`` with the same parameter names would silently get
    the values of the first. Parameters created with plain ``pyro.param`` are read from the store
    as usual; the store is restored on exit.
    """
    own_names = set()
    for module in owning_modules(*programs):
        root = getattr(module, "_pyro_name", "")
        for name, _ in module.named_parameters():
            own_names.add(f"{root}.{name}".lstrip(".").removesuffix("_unconstrained"))
    store = pyro.get_param_store()
    state = store.get_state()
    # "$$$" separates a plain nn.Module's name from its parameter's in the store
    names = [n for n in state["params"] if n.replace("$$$", ".") in own_names]
    for name in names:
        del state["params"][name], state["constraints"][name]
    with store.scope(state):
        yield
