"""The option ``--model``: select a program by name and expose its arguments as options.

jsonargparse puts the arguments of a class below ``init_args`` and leaves them out of the help
page. Here the class name is read first and the parser is generated from that class, so that
``--model.prior`` is an option of every program with a prior. The default program is ``VAE``.
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
from .raw_settings import read_configs

__all__ = [
    "ExperimentParser",
    "find_program",
    "flatten_model",
    "model_class_options",
    "set_class_names",
    "strip_program_name",
]

#: The options that select the program.
_PROGRAM_OPTIONS = ("--model", "--model.class_path", "--model.help")
#: Base class of a component kind -> module whose public classes have short names.
_COMPONENT_MODULES: dict[type, ModuleType] = {
    priors.Prior: priors,
    likelihoods.Likelihood: likelihoods,
    posteriors.Posterior: posteriors,
    inference.Inference: inference,
}


class ExperimentParser(ArgumentParser):
    """Parser of an experiment with a program of class ``program``."""

    program: type[Autoencoder] = VAE
    _selected: type[Autoencoder] = VAE

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        self._selected = VAE
        return super().parse_args(*args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse the options in a YAML file, ignoring the model options of any other program."""
        tree = yaml.safe_load(content)
        if isinstance(tree, dict) and "model" in tree:
            self._selected = _select_program(tree["model"], self._selected)
            is_ours = self._selected is self.program
            tree["model"] = flatten_model(tree["model"]) if is_ours else {}
            content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return super().parse_string(content, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return YAML that selects the same program, also for ``--print_config``."""
        text = super().dump(*args, **kwargs)
        return text if self.program is VAE else _add_class_path(text, self.program)


def find_program(argv: Sequence[str]) -> type[Autoencoder]:
    """Return the class selected last by a YAML file or the command line; ``VAE`` by default.

    Raises:
        ValueError: if the name is not a program; the message suggests the closest one.
    """
    program: type[Autoencoder] = VAE
    for content in read_configs(argv):
        program = _select_program(content.get("model"), program)
    for group in _split_options(argv):
        if name := _program_name(group):
            program = _resolve_program(name)
    return program


def strip_program_name(argv: Sequence[str]) -> list[str]:
    """Return the arguments without those that select the program, and without ``init_args``.

    Raises:
        SystemExit: after printing the help of a program, if the arguments request it.
    """
    kept: list[str] = []
    for group in _split_options(argv):
        name = _program_name(group)
        if name and group[0].startswith("--model.help"):
            _print_program_help(_resolve_program(name))
            raise SystemExit(0)
        if not name:
            kept += [re.sub(r"^--model\.init_args\.", "--model.", group[0]), *group[1:]]
    return kept


def model_class_options(program: type[Autoencoder]) -> dict[str, list[str]]:
    """Return the options of a program whose value is a class, with the known short names."""
    options = {"model": jsonargparse_compat.component_names(models)}
    hints = get_type_hints(program.__init__)
    for name in inspect.signature(program).parameters:
        for module in _find_component_modules(hints.get(name)):
            options[f"model.{name}"] = jsonargparse_compat.component_names(module)
    return options


def set_class_names(parser: ArgumentParser, known: Mapping[str, list[str]]) -> None:
    """Set the short names shown in the help of the options whose value is a class."""
    for action in parser._actions:
        if action.dest in known and action.dest != "model":
            vars(action)["names"] = known[action.dest]
            # jsonargparse does not convert the default of an option that also accepts a list
            if inspect.isclass(action.default):
                parser.set_defaults({action.dest: {"class_path": get_import_path(action.default)}})


def flatten_model(model: Any) -> dict[str, Any]:
    """Return the options of a model in YAML, written with or without its class name."""
    if not isinstance(model, dict):
        return {}
    if "class_path" not in model:
        return model
    options = {k: value for k, value in model.items() if k not in ("class_path", "init_args")}
    return {**(model.get("init_args") or {}), **options}


def _add_class_path(text: str, program: type[Autoencoder]) -> str:
    """Return the YAML with the class path of the model."""
    tree = yaml.safe_load(text)
    is_built_in = getattr(models, program.__name__, None) is program
    module = models.__name__ if is_built_in else program.__module__
    path = f"{module}.{program.__qualname__}"
    tree["model"] = {"class_path": path, "init_args": tree["model"]}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _select_program(model: Any, default: type[Autoencoder]) -> type[Autoencoder]:
    name = model.get("class_path") if isinstance(model, dict) else model
    return default if name is None else _resolve_program(name)


def _resolve_program(name: Any) -> type[Autoencoder]:
    known = jsonargparse_compat.component_names(models)
    if not isinstance(name, str) or "." not in name:
        if name not in known:
            raise ValueError(jsonargparse_compat.unknown_name_message("model", name, known))
        return getattr(models, name)
    module, _, attribute = name.rpartition(".")
    if not jsonargparse_compat.is_importable(name):
        raise ValueError(jsonargparse_compat.import_denied_message("model", name))
    try:
        cls = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        raise ValueError(
            f"expected model to be the path of a class; cannot import module {module}"
        ) from None
    if cls is None:
        raise ValueError(jsonargparse_compat.missing_class_message("model", module, attribute))
    if not (inspect.isclass(cls) and issubclass(cls, Autoencoder)) or inspect.isabstract(cls):
        raise ValueError(f"expected model to be a concrete subclass of Autoencoder; got {name!r}")
    return cls


def _split_options(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield every option with its values, preceded by the positional arguments."""
    group: list[str] = []
    for arg in argv:
        if arg.startswith("--") and group:
            yield group
            group = []
        group.append(arg)
    if group:
        yield group


def _program_name(group: Sequence[str]) -> str | None:
    """Return the program name given by an option and its values, if any."""
    option, equals, inline = group[0].partition("=")
    value = inline if equals else next(iter(group[1:]), "")
    # any other value is a file name or a YAML mapping of options
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*", value) and not value.endswith((".yaml", ".yml"))
    return value if option in _PROGRAM_OPTIONS and is_name else None


def _find_component_modules(hint: Any) -> Iterator[ModuleType]:
    """Yield the module of the components made by a factory, or by a list of factories."""
    if get_origin(hint) is not collections.abc.Callable:
        for inner in get_args(hint):
            yield from _find_component_modules(inner)
        return
    inputs, output = get_args(hint)
    if output is nn.Module and inputs == [Shape, Shape]:
        yield networks
    elif output in _COMPONENT_MODULES:
        yield _COMPONENT_MODULES[output]


def _print_program_help(program: type[Autoencoder]) -> None:
    parser = jsonargparse_compat.make_base_parser(
        description=f"Help for --model.help={program.__name__}"
    )
    parser.add_class_arguments(program, "model", skip={*program.from_data})
    set_class_names(parser, model_class_options(program))
    for action in parser._actions:
        if action.dest == "model" or action.dest.endswith("help"):
            action.help = jsonargparse_compat.SUPPRESS
    parser.print_help()
