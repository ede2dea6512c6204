"""The modules and parameters that a callable uses."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CallableModule", "find_owners"]

#: Libraries that have no modules of the caller.
_LIBRARIES = ("torch", "pyro", "numpy", "builtins")


class CallableModule(nn.Module):
    """Base class of modules around a callable, which own the modules that the callable uses.

    The mode, the device and the training of the program then include them.

    Arguments:
        function: a module, a bound method, a function or any other callable.
        like: a tensor of the dtype that the callable takes, on its device; it may have no weights.
    """

    like: Tensor

    def __init__(self, function: Callable[..., Any], like: Tensor | None = None) -> None:
        super().__init__()
        empty = torch.zeros(()) if like is None else like.new_zeros(())
        self.register_buffer("like", empty, persistent=False)
        modules, parameters = find_owners(function)
        self.owned_modules = nn.ModuleList(modules)
        self.owned_parameters = nn.ParameterList(parameters)
        # not as a submodule, which would give the weights of a module a second name
        self.__dict__["function"] = function

    function: Callable[..., Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, and check that its callable uses the copied modules.

        Raises:
            ValueError: if the callable is a function, which refers to the original modules.
        """
        super().__setstate__(state)
        modules, parameters = find_owners(self.function)
        own = {id(part) for part in (*self.owned_modules, *self.owned_parameters)}
        if not {id(part) for part in (*modules, *parameters)} <= own:
            raise ValueError(
                "expected callables that can be copied, such as modules and their methods; got a "
                "function, which refers to the original modules: copy these, and make a program of "
                "the copies"
            )


def find_owners(*functions: Any) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Find the modules and parameters that callables reach.

    They are those of a callable itself, of the object whose method it is, of its closure, of its
    default arguments and of the global names that it reads, and the same of the functions among
    these.

    Returns:
        The modules that are not part of another one, and the parameters of no module.
    """
    visited: set[int] = set()
    found = [value for function in functions for value in _search(function, visited)]
    modules = [value for value in found if isinstance(value, nn.Module)]
    inner = {child for module in modules for child in module.modules() if child is not module}
    outer = [module for module in modules if module not in inner]
    owned = {id(parameter) for module in outer for parameter in module.parameters()}
    free = [v for v in found if isinstance(v, nn.Parameter) and id(v) not in owned]
    return outer, free


def _search(value: Any, visited: set[int]) -> Iterator[nn.Module | nn.Parameter]:
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        parts = [value.__self__, value.__func__]
    elif isinstance(value, FunctionType):
        if _is_library(value.__module__):
            return
        parts = [*_read_closure(value), *_read_globals(value)]
        parts += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, list | tuple):
        parts = [part for part in value if _is_searched(part)]
    elif isinstance(value, dict):
        parts = [part for part in value.values() if _is_searched(part)]
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type):
        # an object with modules or functions as attributes, such as a trainer
        parts = [part for part in vars(value).values() if _is_searched(part)]
    for part in parts:
        yield from _search(part, visited)


def _is_searched(value: Any) -> bool:
    return isinstance(value, nn.Parameter) or (callable(value) and not isinstance(value, type))


def _is_library(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in _LIBRARIES


def _read_closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _read_globals(function: FunctionType) -> Iterator[Any]:
    """Yield the values of the global names that a function, or one inside it, reads."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
                continue
            value = function.__globals__.get(step.argval)
            if not isinstance(value, ModuleType):
                yield value
            elif not _is_library(value.__name__) and value.__name__ != "pyro_vae":
                # of an imported file, the names that the function reads
                yield from (getattr(value, name, None) for name in code.co_names)
