"""Context managers for the mode, the frozen parameters and the buffers of a program's modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["eval_mode", "keep_frozen", "owning_modules", "preserve_buffers"]


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


@contextmanager
def keep_frozen(*programs: Callable[..., Any]) -> Iterator[None]:
    """Freeze the frozen parameters of the programs (``requires_grad=False``) again on exit.

    Pyro's parameter store sets ``requires_grad`` of each ``nn.Parameter`` of a ``PyroModule`` when
    it first gets it. Modules that a plain function calls are included when they are first called.
    """
    frozen: dict[nn.Parameter, None] = {}
    visited: set[nn.Module] = set()

    def record(module: nn.Module, _: Any = None) -> None:
        if module not in visited:
            visited.update(module.modules())
            frozen.update({p: None for p in module.parameters() if not p.requires_grad})

    for owner in owning_modules(*programs):
        record(owner)
    hook = register_module_forward_pre_hook(record)
    try:
        yield
    finally:
        hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def preserve_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore buffers that a run changes, such as batch-norm statistics."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
