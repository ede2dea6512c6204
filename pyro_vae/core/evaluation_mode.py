"""Context managers for the mode, the frozen parameters and the buffers of a program's modules."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = [
    "before_modules",
    "eval_mode",
    "keep_frozen",
    "owning_modules",
    "preserve_buffers",
    "run_eagerly",
]

#: Compiled modules warn that a hook also runs for their parts, as it should here.
_WARNING = r"Using `torch\.compile\(module\)` when there are global hooks"
#: Number of open contexts of ``run_eagerly``. Those of generators may end in any order: the last
#: one to end restores Dynamo.
_num_open = 0
_dynamo = ExitStack()


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run what ``torch.compile`` has compiled eagerly, also as a part of a graph that is traced."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes a second
        yield
        return
    global _num_open
    if _num_open == 0:
        config: Any = torch._dynamo.config
        _dynamo.enter_context(torch.compiler.set_stance("force_eager"))
        _dynamo.enter_context(config.patch(error_on_nested_fx_trace=False))
    _num_open += 1
    try:
        yield
    finally:
        _num_open -= 1
        if _num_open == 0:
            _dynamo.close()


@contextmanager
def before_modules(function: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Call a function with each module, and its inputs, before it runs.

    Modules run eagerly: a compiled one does not tell its parts, and ``torch.compile`` does not
    support what our functions do.
    """
    hook = register_module_forward_pre_hook(function)
    # another filter with each call would show old warnings again
    if not any(pattern and pattern.pattern == _WARNING for _, pattern, *_ in warnings.filters):
        warnings.filterwarnings("ignore", message=_WARNING)
    try:
        with run_eagerly():
            yield
    finally:
        hook.remove()


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
    try:
        with before_modules(switch):
            yield
    finally:
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
    try:
        with before_modules(record):
            yield
    finally:
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
