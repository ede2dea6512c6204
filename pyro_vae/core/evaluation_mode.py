"""Context manager that puts all modules of a program into evaluation mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["eval_mode", "owning_modules"]


@contextmanager
def eval_mode(*programs: Callable[..., Any]) -> Iterator[None]:
    """Put all modules of the programs into evaluation mode (no dropout, fixed batch statistics).

    Modules that a plain function calls are switched when they are first called.
    """
    changed: list[nn.Module] = []

    def switch(module: nn.Module, _: Any = None) -> None:
        if module.training:
            module.training = False
            changed.append(module)

    for owner in owning_modules(*programs):
        for module in owner.modules():
            switch(module)
    hook = register_module_forward_pre_hook(switch)
    try:
        yield
    finally:
        hook.remove()
        for module in changed:
            module.training = True


def owning_modules(*programs: Callable[..., Any]) -> Iterator[nn.Module]:
    """Yield the modules whose methods the programs are."""
    for program in programs:
        owner: Any = program
        while not isinstance(owner, nn.Module):
            if isinstance(owner, functools.partial):
                owner = owner.func
            elif hasattr(owner, "__self__"):
                owner = owner.__self__
            elif hasattr(owner, "__wrapped__"):
                owner = owner.__wrapped__
            else:
                break
        else:
            yield owner
