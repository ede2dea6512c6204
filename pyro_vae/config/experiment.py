"""One description of an experiment for YAML, the command line and Python.

There are no configuration classes: the parser is read off the signatures of ``data.load``,
the program (``VAE`` unless another is named) and ``fit``, so that a new component or option is
there as soon as it is written.
"""

from __future__ import annotations

import pkgutil
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from .. import data
from ..core.random import seeded
from ..learning import fit, objectives
from ..models import VAE, Autoencoder
from . import jsonargparse_compat, model_option
from .plugins import load_plugins, located
from .raw_settings import GROUPS, given_in, listed

__all__ = ["Experiment", "parse", "parser"]

#: Keys of the configuration that say how to run it and are not part of the experiment.
RUN_KEYS = ("config", "run", "resume", "overwrite")


class Experiment:
    """A resolved configuration and what it describes.

    Attributes:
        settings: the configuration, every default filled in, every file by its full path.
    """

    def __init__(self, parser: model_option.Parser, settings: Namespace) -> None:
        self._parser = parser
        self.settings = settings.clone()
        # a run is opened again from anywhere, so nothing may depend on the current folder
        self.settings.plugin = [located(name) for name in listed(settings.plugin)]
        for key in ("path", "root"):
            if settings.data[key] is not None:
                self.settings.data[key] = str(Path(settings.data[key]).expanduser().absolute())
        if settings.start_from is not None:
            folder = Path(settings.start_from).expanduser().absolute()
            self.settings.start_from = str(folder)
        self._made: Namespace | None = None

    @property
    def _instances(self) -> Namespace:
        # instantiated once, so that the objective is the same object throughout
        if self._made is None:
            self._made = self._parser.instantiate(self.settings)
        return self._made

    @property
    def seed(self) -> int:
        return self.settings.fit.seed

    @property
    def start_from(self) -> Path | None:
        """The folder of the run whose weights this one begins with, if it does."""
        named = self.settings.start_from
        return None if named is None else Path(named)

    @property
    def objective(self) -> objectives.Objective:
        return self._instances.objective

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``fit`` that the configuration gives."""
        return {**self._instances.fit.as_dict(), "objective": self.objective}

    def load_data(self) -> data.Dataset:
        return data.load(**self._instances.data.as_dict())

    @property
    def program(self) -> type[Autoencoder]:
        """The class of the model."""
        return self._parser.program

    def build_model(self, data: Any) -> Autoencoder:
        """The program with its initial weights, drawn with the experiment's seed.

        Arguments:
            data: a :class:`~pyro_vae.data.Dataset`, or anything with those of its attributes
                that the program's ``from_data`` names.

        Raises:
            ValueError: if the parts do not combine, or the data lack what the program asks of
                them.
        """
        decided = {name: getattr(data, name) for name in self.program.from_data}
        with seeded(self.seed):
            return self.program(**decided, **self._instances.model.as_dict())

    def to_yaml(self) -> str:
        """Everything that is needed to repeat the experiment, and nothing about running it."""
        kept = self.settings.clone()
        for key in RUN_KEYS:
            kept.pop(key, None)
        if kept.start_from is None:
            kept.pop("start_from")
        # a null that replaces another default must be written, or it would be lost
        return self._parser.dump(kept, skip_validation=True, skip_unset=False)

    def settings_dict(self) -> dict[str, Any]:
        """:meth:`to_yaml` as plain containers."""
        return yaml.safe_load(self.to_yaml())

    def differences(self, other: Experiment) -> list[str]:
        """The keys in which two experiments differ; ``model`` alone for two programs."""
        here, there = (_flatten(_located(e.settings_dict())) for e in (self, other))
        keys = {k for k in here.keys() | there.keys() if here.get(k) != there.get(k)}
        if self.program is not other.program:
            keys = {"model"} | {k for k in keys if not k.startswith("model.")}
        return sorted(keys)


def parser(argv: Sequence[str] = (), **kwargs: Any) -> model_option.Parser:
    """The parser of an experiment, whose options are those of the program that is named.

    Arguments:
        argv: the words that it is to parse: it looks in them for plugins and for the program.
        **kwargs: for ``ArgumentParser``.

    Raises:
        ValueError: if a plugin or a program is none.
    """
    jsonargparse_compat.allow(load_plugins(argv))
    program = model_option.program_in(argv)
    made = jsonargparse_compat.make(model_option.Parser, **kwargs)
    made.program = program
    made.add_argument(
        "--config", action="config", metavar="FILE", help="a YAML file with any of these options"
    )
    made.add_argument(
        "--plugin",
        type=list[str] | str,
        default=[],
        metavar="MODULE",
        help="your own module, or [several], whose classes may be named as module.Class",
    )
    made.add_argument(
        "--start_from",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="a finished run, whose weights this one begins with",
    )
    made.add_function_arguments(data.load, "data", sub_configs=False)
    made.add_class_arguments(program, "model", skip={*program.from_data}, instantiate=False)
    made.add_argument(
        "--objective",
        type=objectives.Objective,
        default={"class_path": "pyro_vae.learning.objectives.ELBO"},
        help="what SVI maximises",
    )
    made.add_function_arguments(
        fit,
        "fit",
        skip={
            *("program", "train", "valid", "objective"),
            *("checkpoint", "resume", "on_epoch", "progress"),
        },
    )
    for name, title in GROUPS.items():
        made.groups[name].title = title  # type: ignore[index]
    model_option.name_classes(made, known := slots(program))
    for action in made._actions:
        if action.dest == "model":
            action.metavar = "CLASS"
            action.help = f"the program (one of {', '.join(known['model'])}; default: VAE)"
        elif action.dest in GROUPS or action.dest.endswith(".help"):
            action.help = SUPPRESS  # a file for each group, a help for each class
        elif action.dest == "print_config":
            action.help = "print the resolved configuration and exit"
    return made


def slots(program: type[Autoencoder] = VAE) -> dict[str, list[str]]:
    """Where a class may be named, and the short names of our own there."""
    return {**model_option.slots(program), "objective": jsonargparse_compat.names(objectives)}


def parse(source: Path, **kwargs: Any) -> Experiment:
    """The experiment in a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one sentence, if it does not describe an experiment.
    """
    argv = ["--config", str(source), *(f"--{k}={v}" for k, v in kwargs.items())]
    made = parser(argv)
    return Experiment(made, explained(made, argv))


def explained(made: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """``made.parse_args(argv)``, whose errors are one sentence with the nearest right name.

    Raises:
        ValueError: if the arguments do not parse.
    """
    if isinstance(made, model_option.Parser):
        _check_names(given_in(argv), made.program)
        argv = model_option.options(argv)
    return jsonargparse_compat.parse(made, argv)


def _check_names(given: dict[str, Any], program: type[Autoencoder]) -> None:
    """Refuses an unknown short class name, with the nearest right one."""
    if isinstance(given.get("model"), dict):
        given = given | {f"model.{k}": v for k, v in model_option.flat(given["model"]).items()}
    for slot, known in slots(program).items():
        if slot == "model":
            continue  # it was found, or there would be no parser
        value = given.get(slot)
        for part in value if isinstance(value, list) else [value]:
            name = part.get("class_path") if isinstance(part, dict) else part
            if isinstance(name, str) and name.isidentifier() and name not in known:
                raise ValueError(jsonargparse_compat.unknown(slot, name, known))


def _located(settings: Any) -> Any:
    """Settings whose classes are named by where they are defined.

    A class that is public in two places is written as one of them, and that may change.
    """
    if isinstance(settings, list):
        return [_located(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    found = {key: _located(value) for key, value in settings.items()}
    if "class_path" in found:
        with suppress(ValueError, ImportError, AttributeError):
            cls = pkgutil.resolve_name(found["class_path"])
            found["class_path"] = f"{cls.__module__}.{cls.__qualname__}"
    return found


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
