"""Programs as modules that own the parameters to train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..core.components import Labels
from ..core.evaluation_mode import before_modules, eval_mode, keep_frozen, owning_modules
from ..core.random import Stream, seeded
from .base import label_use, trace_program
from .inputs import split_program

__all__ = [
    "ProgramModule",
    "StoredParameters",
    "adopt_stored_parameters",
    "as_module",
    "with_functions",
]


class ProgramModule(nn.Module):
    """A model and a guide as a module, with the modules and parameters that they use.

    Attributes:
        functions: model and guide.

    Arguments:
        model, guide: functions, methods or modules, called with the same arguments.
        parts: the modules that own their parameters, by name.
        labels: how they use labels.
    """

    functions: tuple[Callable[..., Any], Callable[..., Any]]

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        parts: Mapping[str, nn.Module],
        labels: Labels = Labels.UNUSED,
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        # not as submodules: they are called as they are
        self.__dict__.update(functions=(model, guide), labels=labels)

    def model(self, *args: Any, **kwargs: Any) -> Any:
        return self.functions[0](*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        return self.functions[1](*args, **kwargs)


def as_module(program: Any) -> nn.Module:
    """Return a program as a module that owns its parameters.

    A pair of the model and the guide of one module is that module. Another program becomes a
    :class:`ProgramModule` of the modules whose methods its model and guide are, if any; functions
    own the parameters that they register with Pyro (:func:`adopt_stored_parameters`).

    Raises:
        ValueError: if ``program`` is not a program.
    """
    if isinstance(program, nn.Module):
        split_program(program)
        return program
    model, guide = split_program(program)
    owners = list(dict.fromkeys(owning_modules(model, guide)))
    for owner in owners:
        if (getattr(owner, "model", None), getattr(owner, "guide", None)) == (model, guide):
            return owner
    uses = [label_use(part) for part in (program, *owners)]
    labels = next((use for use in uses if use is not Labels.UNUSED), Labels.UNUSED)
    parts = {"owners": nn.ModuleList(owners)} if owners else {}
    return ProgramModule(model, guide, parts, labels)


def with_functions(
    program: nn.Module, model: Callable[..., Any], guide: Callable[..., Any]
) -> ProgramModule:
    """Return a module with the parts of a program, and another model and guide."""
    is_pair = isinstance(program, ProgramModule)
    parts = dict(program.named_children()) if is_pair else {"program": program}
    module = ProgramModule(model, guide, parts, label_use(program))
    module.training = program.training
    return module


class StoredParameters(NamedTuple):
    """Parameters in Pyro's parameter store that no module of a program owns.

    Attributes:
        params: unconstrained values by name.
        constraints: constraints by name.
    """

    params: dict[str, nn.Parameter]
    constraints: dict[str, Any]

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Use a separate parameter store that has these, and put them into Pyro's on exit.

        Other programs may use the same names for the parameters of their modules.
        """
        store = pyro.get_param_store()
        try:
            with store.scope(self._state()):
                yield
        finally:
            store.set_state(self._state())

    def _state(self) -> Any:
        return {"params": dict(self.params), "constraints": dict(self.constraints)}


def adopt_stored_parameters(
    program: nn.Module, examples: Iterable[tuple[Tensor, ...]]
) -> tuple[nn.Module, StoredParameters]:
    """Return a module that also owns the parameters that a program registers with Pyro.

    The program runs once for each of the examples, with the values in Pyro's parameter store where
    it has them. Values become parameters of the module. Networks are trained in place, also if the
    store has other values of them: Pyro runs them with their own.

    Arguments:
        program: a module with a ``model`` and a ``guide``.
        examples: arguments of the program, one tuple for each kind of minibatch.

    Returns:
        The program, if it owns all its parameters, else a :class:`ProgramModule`; and the
        parameters that it did not own.
    """
    pair: Any = program
    store = pyro.get_param_store()
    recorder = _Registrations(store.get_state())
    random = seeded(0, Stream.REGISTRATIONS)
    frozen = keep_frozen(pair.model, pair.guide)
    with store.scope(), warnings.catch_warnings(), torch.no_grad(), random, frozen:
        warnings.filterwarnings("ignore", message=".* because requires_grad=False")
        with eval_mode(pair.model, pair.guide), pyro.validation_enabled(False), recorder:
            for args in examples:
                trace_program(pair.model, pair.guide, args, {}, sum_out=False)
        state = store.get_state()
    owned = set(program.parameters())
    found = {n: p for n, p in state["params"].items() if p not in owned and p.requires_grad}
    params = {n: p if isinstance(p, nn.Parameter) else nn.Parameter(p) for n, p in found.items()}
    stored = StoredParameters(params, {name: state["constraints"][name] for name in params})
    if not params:
        return program, stored
    is_pair = isinstance(program, ProgramModule)
    functions = program.functions if is_pair else (pair.model, pair.guide)
    module = with_functions(program, *functions)
    module.add_module("stored", _container(params, recorder.modules))
    return module, stored


class _Registrations(Messenger):
    """Take initial values from another parameter store, and collect the modules that run.

    Arguments:
        state: the state of the other store.
    """

    def __init__(self, state: Any) -> None:
        super().__init__()
        self._state = state
        self.modules: dict[nn.Module, None] = {}

    def __enter__(self) -> _Registrations:
        self._watch = before_modules(self._record)
        self._watch.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        super().__exit__(*error)

    def _record(self, module: nn.Module, _: Any) -> None:
        self.modules[module] = None

    def _pyro_param(self, msg: Any) -> None:
        name, store = msg["name"], pyro.get_param_store()
        is_network = len(msg["args"]) > 1 and isinstance(msg["args"][1], nn.Parameter)
        if is_network or name in store or name not in self._state["params"]:
            return
        value = self._state["params"][name].detach().clone()
        constraints = {name: self._state["constraints"][name]}
        store.set_state({"params": {name: nn.Parameter(value)}, "constraints": constraints})


def _container(params: dict[str, nn.Parameter], modules: Iterable[nn.Module]) -> nn.Module:
    """Return a module of parameters, and of the called modules that have some of them.

    With the modules come their buffers and their mode.
    """
    container, names = nn.Module(), {p: name for name, p in params.items()}
    remaining = dict(params)
    called = [m for m in modules if any(p in names for p in m.parameters())]
    inner = {part for m in called for part in m.modules() if part is not m}
    for module in (m for m in called if m not in inner):
        local, parameter = next((n, p) for n, p in module.named_parameters() if p in names)
        name = names[parameter].removesuffix(local).rstrip("$.") or type(module).__name__
        container.add_module(_attribute(container, name), module)
        mine = set(module.parameters())
        remaining = {n: p for n, p in remaining.items() if p not in mine}
    for name, parameter in remaining.items():
        container.register_parameter(_attribute(container, name), parameter)
    return container


def _attribute(container: nn.Module, name: str) -> str:
    """Return a free attribute for a parameter of this name in Pyro's store."""
    name = name.replace("$$$", "/").replace(".", "/")
    while hasattr(container, name):
        name += "_"
    return name
