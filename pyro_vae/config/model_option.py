"""The slot ``model``: any program by its name, whose arguments are then options of their own.

For jsonargparse a class's arguments are below ``init_args`` and no part of the help page. Here
the name is read first, and the parser made off that class: ``--model.prior`` is an option of
every program that has a prior. A model without a name is a ``VAE``.
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser
from jsonargparse._util import get_import_path
from torch import nn

from .. import likelihoods, models, networks, posteriors, priors
from ..core.components import Shape
from ..models import VAE, Autoencoder, inference
from . import jsonargparse_compat
from .raw_settings import contents

__all__ = ["Parser", "flat", "name_classes", "options", "program_in", "slots"]

#: The options that name the program.
_NAMING = ("--model", "--model.class_path", "--model.help")
#: What a factory of a component returns, and the module whose public classes are short names.
_FAMILIES: dict[type, ModuleType] = {
    priors.Prior: priors,
    likelihoods.Likelihood: likelihoods,
    posteriors.Posterior: posteriors,
    inference.Inference: inference,
}


class Parser(ArgumentParser):
    """The parser of an experiment with a program of class ``program``."""

    program: type[Autoencoder] = VAE
    _named: type[Autoencoder] = VAE

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        self._named = VAE
        return super().parse_args(*args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """The options in a YAML file, those of another program than this parser's forgotten."""
        tree = yaml.safe_load(content)
        if isinstance(tree, dict) and "model" in tree:
            self._named = _named(tree["model"], self._named)
            tree["model"] = flat(tree["model"]) if self._named is self.program else {}
            content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return super().parse_string(content, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """YAML that is read as the same program, also where ``--print_config`` prints it."""
        text = super().dump(*args, **kwargs)
        return text if self.program is VAE else _with_name(text, self.program)


def program_in(argv: Sequence[str]) -> type[Autoencoder]:
    """The class that a YAML file or the command line names last; else ``VAE``.

    Raises:
        ValueError: if the name is not that of a program, with the nearest that is.
    """
    program: type[Autoencoder] = VAE
    for content in contents(argv):
        program = _named(content.get("model"), program)
    for group in _groups(argv):
        if name := _name_in(group):
            program = _found(name)
    return program


def options(argv: Sequence[str]) -> list[str]:
    """The words without those that name the program, ``init_args`` left out.

    Raises:
        SystemExit: after the help of a program, if that is what they ask for.
    """
    kept: list[str] = []
    for group in _groups(argv):
        name = _name_in(group)
        if name and group[0].startswith("--model.help"):
            _print_help(_found(name))
            raise SystemExit(0)
        if not name:
            kept += [re.sub(r"^--model\.init_args\.", "--model.", group[0]), *group[1:]]
    return kept


def slots(program: type[Autoencoder]) -> dict[str, list[str]]:
    """The options of a program that name a class, and the short names of our own there."""
    found = {"model": jsonargparse_compat.names(models)}
    hints = get_type_hints(program.__init__)
    for name in inspect.signature(program).parameters:
        for family in _families(hints.get(name)):
            found[f"model.{name}"] = jsonargparse_compat.names(family)
    return found


def name_classes(made: ArgumentParser, known: Mapping[str, list[str]]) -> None:
    """Gives the options that name a class the short names that their help shows."""
    for action in made._actions:
        if action.dest in known and action.dest != "model":
            vars(action)["names"] = known[action.dest]
            # jsonargparse does not do it where a list of classes may stand, too
            if inspect.isclass(action.default):
                made.set_defaults({action.dest: {"class_path": get_import_path(action.default)}})


def flat(model: Any) -> dict[str, Any]:
    """The options of a model, as YAML has them with or without the name of its class."""
    if not isinstance(model, dict):
        return {}
    if "class_path" not in model:
        return model
    rest = {key: value for key, value in model.items() if key not in ("class_path", "init_args")}
    return {**(model.get("init_args") or {}), **rest}


def _with_name(text: str, program: type[Autoencoder]) -> str:
    """YAML in which the model has the name of its class."""
    tree = yaml.safe_load(text)
    ours = getattr(models, program.__name__, None) is program
    module = models.__name__ if ours else program.__module__
    path = f"{module}.{program.__qualname__}"
    tree["model"] = {"class_path": path, "init_args": tree["model"]}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _named(model: Any, before: type[Autoencoder]) -> type[Autoencoder]:
    name = model.get("class_path") if isinstance(model, dict) else model
    return before if name is None else _found(name)


def _found(name: Any) -> type[Autoencoder]:
    known = jsonargparse_compat.names(models)
    if not isinstance(name, str) or "." not in name:
        if name not in known:
            raise ValueError(jsonargparse_compat.unknown("model", name, known))
        return getattr(models, name)
    module, _, attribute = name.rpartition(".")
    if not jsonargparse_compat.allowed(name):
        raise ValueError(jsonargparse_compat.denied("model", name))
    try:
        cls = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        raise ValueError(f"expected model to name a class; there is no module {module}") from None
    if cls is None:
        raise ValueError(jsonargparse_compat.lacking("model", module, attribute))
    if not (inspect.isclass(cls) and issubclass(cls, Autoencoder)) or inspect.isabstract(cls):
        raise ValueError(f"expected model to be an Autoencoder; got {name!r}, which is none")
    return cls


def _groups(argv: Sequence[str]) -> Iterator[list[str]]:
    """Every option with its values, and before them the words without an option."""
    group: list[str] = []
    for word in argv:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _name_in(group: Sequence[str]) -> str | None:
    """The name of a program that an option and its values give, if they do."""
    option, equals, inline = group[0].partition("=")
    value = inline if equals else next(iter(group[1:]), "")
    # what is no name is a file, or the options themselves as YAML
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*", value) and not value.endswith((".yaml", ".yml"))
    return value if option in _NAMING and is_name else None


def _families(hint: Any) -> Iterator[ModuleType]:
    """The family of the components that a factory makes, or each factory of a list."""
    if get_origin(hint) is not collections.abc.Callable:
        for inner in get_args(hint):
            yield from _families(inner)
        return
    inputs, output = get_args(hint)
    if output is nn.Module and inputs == [Shape, Shape]:
        yield networks
    elif output in _FAMILIES:
        yield _FAMILIES[output]


def _print_help(program: type[Autoencoder]) -> None:
    made = jsonargparse_compat.make(description=f"Help for --model.help={program.__name__}")
    made.add_class_arguments(program, "model", skip={*program.from_data})
    name_classes(made, slots(program))
    for action in made._actions:
        if action.dest == "model" or action.dest.endswith("help"):
            action.help = jsonargparse_compat.SUPPRESS
    made.print_help()
