"""Classes named in a configuration: which ones an option accepts, and how their names resolve."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_origin

import torch
from jsonargparse import set_parsing_settings
from torch import nn

from .. import evaluation, learning, likelihoods, models, networks, posteriors, priors
from ..core.components import Shape
from ..core.validation import did_you_mean
from ..learning import objectives, trackers
from ..models import Autoencoder, inference
from .signatures import Option, signature_options, union_members

__all__ = [
    "ClassType",
    "allow_imports",
    "class_types",
    "component_names",
    "describe_denied",
    "import_class",
    "is_class_list",
]

#: A class path imports its module, so only these modules and the user's plugins are allowed.
_ALLOWED_MODULES = ("pyro_vae", "torch.nn", "torch.optim")
#: Base class -> module whose public classes have short names.
_SHORT_NAMES: dict[type, ModuleType] = {
    priors.Prior: priors,
    likelihoods.Likelihood: likelihoods,
    posteriors.Posterior: posteriors,
    Autoencoder: models,
    inference.Inference: inference,
    objectives.Objective: objectives,
    learning.Schedule: learning,
    learning.FreeBits: learning,
    torch.optim.Optimizer: torch.optim,
    torch.optim.lr_scheduler.LRScheduler: torch.optim.lr_scheduler,
    nn.Module: nn,
    evaluation.Estimator: evaluation,
    trackers.Tracker: trackers,
}

_plugins: set[str] = set()


def _is_estimator(cls: type) -> bool:
    """Whether a class is an estimator: its arguments are options, as those of a dataclass are."""
    return issubclass(cls, evaluation.Estimator)


# jsonargparse knows dataclasses without an abstract base
set_parsing_settings(subclasses_disabled=[_is_estimator])


def allow_imports(plugins: Iterable[str]) -> None:
    """Restrict class paths to pyro_vae, ``torch.nn``, ``torch.optim`` and ``plugins``."""
    _plugins.update(plugins)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*_ALLOWED_MODULES, *sorted(_plugins)]
    )


class ClassType(NamedTuple):
    """The type of an option whose value is a class: a factory of ``base``, or an instance of it.

    A factory ``Callable[[A, B], Base]`` is called with A and B by the program, so the first two
    parameters of its class are not options.
    """

    base: type
    #: The types of the arguments that a factory is called with; ``None`` for an instance.
    inputs: tuple[Any, ...] | None

    @property
    def module(self) -> ModuleType:
        """The module whose public classes have short names."""
        if self.base is nn.Module and self.inputs == (Shape, Shape):
            return networks
        return _SHORT_NAMES.get(self.base, sys.modules[self.base.__module__])

    @property
    def names(self) -> list[str]:
        """The short names of the classes that the option accepts."""
        names = component_names(self.module, self.base)
        # torch exports its base classes, too
        is_torch = self.module.__name__.startswith("torch.")
        return [n for n in names if not (is_torch and n == self.base.__name__)]

    @property
    def only(self) -> type | None:
        """The class that needs no name: a dataclass that is not a base class."""
        is_plain = dataclasses.is_dataclass(self.base) and not _is_abstract(self.base)
        return self.base if is_plain else None

    @property
    def is_listed(self) -> bool:
        """Whether the names are few enough to be listed, unlike those of ``torch.nn``."""
        return self.module is not nn

    def options(self, cls: type) -> tuple[Option, ...]:
        """Return the constructor arguments of ``cls`` that are options."""
        if issubclass(cls, Autoencoder):
            return signature_options(cls, skip=cls.from_data)
        return signature_options(cls)[len(self.inputs or ()) :]

    def names_with(self, argument: str) -> list[str]:
        """Return the short names of the classes that have an option."""
        options = {name: self.options(getattr(self.module, name)) for name in self.names}
        return [n for n in options if argument in [option.name for option in options[n]]]

    def path(self, cls: type) -> str:
        """Return the import path of a class, which is public if the class has a short name."""
        is_public = getattr(self.module, cls.__name__, None) is cls
        return f"{self.module.__name__ if is_public else cls.__module__}.{cls.__qualname__}"

    def find(self, name: Any, option: str) -> type:
        """Return the class with a short name, or with an import path, for a named option.

        Raises:
            ValueError: if there is no such class, or if the option does not accept it; the message
                suggests the closest name.
        """
        if not isinstance(name, str) or "." not in name:
            matches = [n for n in self.names if n.casefold() == str(name).casefold()]
            if name in matches or len(matches) == 1:
                return getattr(self.module, name if name in matches else matches[0])
            one_of = (
                f"one of {', '.join(self.names)}, or a class of a --plugin as module.Class"
                if self.is_listed
                else "the name of a class"
            )
            hint = did_you_mean(str(name), self.names)
            raise ValueError(f"expected {option} to be {one_of}; got {name!r}{hint}")
        if not _is_allowed(name.rpartition(".")[0]):
            raise ValueError(describe_denied(f"{option} to be a class", name))
        cls = _import(name, option)
        if not (inspect.isclass(cls) and issubclass(cls, self.base)) or _is_abstract(cls):
            raise ValueError(
                f"expected {option} to be a concrete subclass of {self.base.__name__}; got {name!r}"
            )
        return cls


def import_class(path: str, option: str) -> type:
    """Return the class of a plugin with an import path, for a named option.

    Raises:
        ValueError: if the module is not one of a plugin, or if it has no such class.
    """
    if not _is_allowed(path.rpartition(".")[0]):
        raise ValueError(describe_denied(f"{option} to be a class", path))
    found = _import(path, option)
    if not inspect.isclass(found):
        raise ValueError(f"expected {option} to be the path of a class; got {path!r}")
    return found


def describe_denied(subject: str, name: str) -> str:
    """Return the error message for a class path outside the allowed modules."""
    return (
        f"expected {subject} of {', '.join(_ALLOWED_MODULES)} or a --plugin; got "
        f"{name!r}: to use your own module add --plugin {name.split('.')[0]}"
    )


def _import(path: str, option: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"expected {option} to be the path of a class; cannot import module {module}"
        ) from None
    if not hasattr(found, name):
        hint = did_you_mean(name, [n for n in dir(found) if not n.startswith("_")])
        raise ValueError(
            f"expected {option} to be the path of a class; module {module} has no {name!r}{hint}"
        )
    return getattr(found, name)


def class_types(hint: Any) -> list[ClassType]:
    """Return the classes that an annotation accepts, also within a union or a list."""
    found = []
    for member in union_members(hint):
        if get_origin(member) in (list, Sequence):
            found += class_types(get_args(member)[0])
        elif get_origin(member) is Callable:
            inputs, base = get_args(member)
            if inspect.isclass(base) and base is not type(None):
                found.append(ClassType(base, tuple(inputs) if isinstance(inputs, list) else ()))
        elif inspect.isclass(member) and _is_allowed(member.__module__):
            found.append(ClassType(member, None))
    return found


def is_class_list(hint: Any) -> bool:
    """Whether an annotation accepts a list of classes, and no class on its own."""
    members = [member for member in union_members(hint) if class_types(member)]
    return bool(members) and all(get_origin(m) in (list, Sequence) for m in members)


def _is_allowed(module: str) -> bool:
    return any(f"{module}.".startswith(f"{m}.") for m in (*_ALLOWED_MODULES, *_plugins))


def component_names(module: Any, base: type = object) -> list[str]:
    """Return the public concrete subclasses of ``base`` in a module."""
    public = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
    classes = [getattr(module, name, None) for name in public]
    return [
        c.__name__
        for c in classes
        if inspect.isclass(c) and issubclass(c, base) and not _is_abstract(c)
    ]


def _is_abstract(cls: type) -> bool:
    # inspect.isabstract misses abstract methods of classes that do not derive from ABC
    methods = (getattr(cls, name, None) for name in dir(cls))
    return any(getattr(method, "__isabstractmethod__", False) for method in methods)
