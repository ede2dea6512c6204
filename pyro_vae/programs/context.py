"""The context in which programs are evaluated, and their parameters in Pyro's store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..core.evaluation_mode import eval_mode, keep_frozen, owning_modules
from ..core.random import Stream, seeded

__all__ = [
    "check_parameter_store",
    "evaluating",
    "inspecting",
    "load_parameter_store",
    "nan_parameters_reason",
    "use_own_parameters",
]

_log = logging.getLogger("pyro_vae")

#: Separates the name of a plain ``nn.Module`` from its parameter's in the store.
_DIVIDER = "$$$"


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
def inspecting(*programs: Callable[..., Any]) -> Iterator[None]:
    """Run programs to find their sites and plates: :func:`evaluating`, with a fixed seed.

    No result depends on the samples of these runs.
    """
    with evaluating(*programs, seed=0, stream=Stream.AUDIT):
        yield


@contextmanager
def use_own_parameters(*programs: Callable[..., Any]) -> Iterator[None]:
    """Make modules use their own parameters instead of those in Pyro's parameter store.

    The store is global: a second ``PyroModule`` with the same parameter names would silently get
    the values of the first. Parameters created with plain ``pyro.param`` are read from the store
    as usual; the store is restored on exit. Frozen parameters stay frozen.
    """
    state = pyro.get_param_store().get_state()
    for module in owning_modules(*programs):
        for name, _, _ in _stored_parameters(module):
            state["params"].pop(name, None)
            state["constraints"].pop(name, None)
    with pyro.get_param_store().scope(state), keep_frozen(*programs):
        yield


def check_parameter_store(*programs: Callable[..., Any]) -> None:
    """Raise if Pyro would use other values of the programs' parameters than their modules have.

    Everything in this package uses the values of the modules. When a program runs in plain Pyro,
    each ``PyroParam`` gets the value in the parameter store, if there is one: after
    ``param_store.load``, or after a run of another program with the same names. Other parameters
    keep the value of the module in Pyro too; if the store has another one, it is logged.

    Raises:
        ValueError: naming the parameters.
    """
    modules = dict.fromkeys(owning_modules(*programs))
    differing = {
        id(parameter): name.replace(_DIVIDER, ".")
        for module in modules
        for name, parameter, stored in _stored_parameters(module)
        if not _same_values(parameter, stored)
    }
    constrained = {
        id(part.get_parameter(f"{name}_unconstrained"))
        for module in modules
        for part in module.modules()
        if isinstance(part, PyroModule)
        for name in part._pyro_params
    }
    remedy = (
        f"call pyro.clear_param_store() to keep those of the module, or "
        f"{load_parameter_store.__module__}.{load_parameter_store.__name__}(program) to copy those "
        f"of the store into it"
    )
    overwritten = [name for key, name in differing.items() if key in constrained]
    if overwritten:
        raise ValueError(
            f"expected the values in Pyro's parameter store to be those of the module, which Pyro "
            f"overwrites by them; got other values in the store for {_join(overwritten)}: {remedy}"
        )
    if differing:
        _log.warning(
            "Pyro's parameter store has other values than the module for %s; those of the module "
            "are used: %s",
            _join([*differing.values()]),
            remedy,
        )


def nan_parameters_reason(*programs: Callable[..., Any]) -> str | None:
    """Return why a program cannot run if parameters of its modules are NaN, else ``None``."""
    names = dict.fromkeys(
        name
        for module in owning_modules(*programs)
        for name, parameter in module.named_parameters()
        if parameter.isnan().any()
    )
    if not names:
        return None
    return (
        f"expected parameters without NaN; got NaN in {_join([*names])}: use the parameters from "
        f"before training diverged"
    )


def _join(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


@torch.no_grad()
def load_parameter_store(*programs: Callable[..., Any]) -> None:
    """Copy the values in Pyro's parameter store into the modules of the programs.

    Restores modules whose parameters were saved with ``pyro.get_param_store().save(…)``. Pyro
    itself updates only each ``PyroParam``, when the program next runs.

    Raises:
        ValueError: if a parameter has another shape in the store.
    """
    for module in owning_modules(*programs):
        for name, parameter, stored in _stored_parameters(module):
            if parameter.shape != stored.shape:
                raise ValueError(
                    f"expected {name.replace(_DIVIDER, '.')!r} of shape {tuple(parameter.shape)} "
                    f"in Pyro's parameter store; got {tuple(stored.shape)}: build the program "
                    f"that was saved"
                )
            parameter.copy_(stored)


def _stored_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Return the parameters of a module that the store has a value of, with name and value.

    Values are unconstrained. In the store, a ``PyroModule`` has the name of its root followed by
    the path of the parameter; other modules have the name given to ``pyro.module``: for a part of
    the program, usually its path.
    """
    is_pyro = isinstance(module, PyroModule)
    if is_pyro and pyro.settings.get("module_local_params"):
        return []
    root = getattr(module, "_pyro_name", "")
    own = {
        f"{root}.{name}".lstrip(".").removesuffix("_unconstrained" if is_pyro else ""): parameter
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    found = []
    for name, stored in pyro.get_param_store().named_parameters():
        parameter = own.get(name.replace(_DIVIDER, "."))
        whole = None if is_pyro else own.get(name.partition(_DIVIDER)[2])
        if parameter is None and whole is not None and whole.shape == stored.shape:
            parameter = whole
        if parameter is not None:
            found.append((name, parameter, stored))
    return found


def _same_values(a: Tensor, b: Tensor) -> bool:
    # identity first, because NaN is not equal to itself
    return a is b or torch.equal(a.detach(), b.detach().to(a.device))
