"""Resolved experiment configurations, shared by YAML, the command line and Python.

There are no configuration classes: the parser is generated from the signatures of ``data.load``,
the program (``VAE`` by default) and ``fit``, so that new components and options are available
without further code.
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
from ..core.random import Stream, seeded
from ..learning import fit, objectives
from ..models import VAE, Autoencoder
from . import jsonargparse_compat, model_option
from .plugins import load_plugins, plugin_path
from .raw_settings import GROUPS, as_list, collect_settings

__all__ = ["Experiment", "load_experiment", "make_experiment_parser", "parse_args"]

#: Keys that control the execution and are not part of the experiment.
_EXECUTION_KEYS = ("config", "run", "resume", "overwrite")


class Experiment:
    """A resolved configuration, with methods to build its data and model.

    Attributes:
        settings: the configuration with all defaults and absolute paths.
    """

    def __init__(self, parser: model_option.ExperimentParser, settings: Namespace) -> None:
        self._parser = parser
        self.settings = settings.clone()
        # a run can be opened from any folder, so relative paths must not be stored
        self.settings.plugin = [plugin_path(name) for name in as_list(settings.plugin)]
        for key in ("path", "root"):
            if settings.data[key] is not None:
                self.settings.data[key] = str(Path(settings.data[key]).expanduser().absolute())
        if settings.start_from is not None:
            folder = Path(settings.start_from).expanduser().absolute()
            self.settings.start_from = str(folder)
        self._cached_instances: Namespace | None = None

    @property
    def _instances(self) -> Namespace:
        # instantiated once, so that the objective is always the same object
        if self._cached_instances is None:
            self._cached_instances = self._parser.instantiate(self.settings)
        return self._cached_instances

    @property
    def seed(self) -> int:
        return self.settings.fit.seed

    @property
    def start_from(self) -> Path | None:
        """The folder of the run that provides the initial weights, if any."""
        folder = self.settings.start_from
        return None if folder is None else Path(folder)

    @property
    def objective(self) -> objectives.Objective:
        return self._instances.objective

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``fit`` set by the configuration."""
        return {**self._instances.fit.as_dict(), "objective": self.objective}

    def load_data(self) -> data.Dataset:
        return data.load(**self._instances.data.as_dict())

    @property
    def program(self) -> type[Autoencoder]:
        """The class of the model."""
        return self._parser.program

    def build_model(self, data: Any) -> Autoencoder:
        """Return the program with initial weights drawn with the experiment's seed.

        Arguments:
            data: a :class:`~pyro_vae.data.Dataset`, or any object with the attributes listed in
                the program's ``from_data``.

        Raises:
            ValueError: if the components cannot be combined, or if the data lack an attribute
                required by the program.
        """
        data_arguments = {name: getattr(data, name) for name in self.program.from_data}
        with seeded(self.seed, Stream.TRAINING, 0):
            return self.program(**data_arguments, **self._instances.model.as_dict())

    def to_yaml(self) -> str:
        """Return the settings needed to repeat the experiment, without execution settings."""
        settings = self.settings.clone()
        for key in _EXECUTION_KEYS:
            settings.pop(key, None)
        if settings.start_from is None:
            settings.pop("start_from")
        # a null that overrides a default must be written
        return self._parser.dump(settings, skip_validation=True, skip_unset=False)

    def settings_dict(self) -> dict[str, Any]:
        """Return :meth:`to_yaml` as plain containers."""
        return yaml.safe_load(self.to_yaml())

    def differences(self, other: Experiment) -> list[str]:
        """Return the keys that differ; a different program is reported as ``model`` alone."""
        ours, theirs = (_flatten(_with_defining_paths(e.settings_dict())) for e in (self, other))
        keys = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
        if self.program is not other.program:
            keys = {"model"} | {k for k in keys if not k.startswith("model.")}
        return sorted(keys)


def make_experiment_parser(
    argv: Sequence[str] = (), **kwargs: Any
) -> model_option.ExperimentParser:
    """Return the parser of an experiment, with the options of the program selected in ``argv``.

    Arguments:
        argv: the arguments to be parsed, searched for plugins and for the program.
        **kwargs: passed to ``ArgumentParser``.

    Raises:
        ValueError: if a plugin or the program cannot be imported.
    """
    jsonargparse_compat.allow_imports(load_plugins(argv))
    program = model_option.find_program(argv)
    parser = jsonargparse_compat.make_base_parser(model_option.ExperimentParser, **kwargs)
    parser.program = program
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file with any of these options"
    )
    parser.add_argument(
        "--plugin",
        type=list[str] | str,
        default=[],
        metavar="MODULE",
        help="module, or [MODULE, ...], whose classes can be used as MODULE.Class",
    )
    parser.add_argument(
        "--start_from",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="finished run whose weights initialise this one",
    )
    parser.add_function_arguments(data.load, "data", sub_configs=False)
    parser.add_class_arguments(program, "model", skip={*program.from_data}, instantiate=False)
    parser.add_argument(
        "--objective",
        type=objectives.Objective,
        default={"class_path": "pyro_vae.learning.objectives.ELBO"},
        help="objective to maximise",
    )
    parser.add_function_arguments(
        fit,
        "fit",
        skip={
            *("program", "train", "valid", "objective"),
            *("checkpoint", "resume", "on_epoch", "progress"),
        },
    )
    for name, title in GROUPS.items():
        parser.groups[name].title = title  # type: ignore[index]
    model_option.set_class_names(parser, known := class_options(program))
    for action in parser._actions:
        if action.dest == "model":
            action.metavar = "CLASS"
            action.help = f"program (one of {', '.join(known['model'])}; default: VAE)"
        elif action.dest in GROUPS or action.dest.endswith(".help"):
            action.help = SUPPRESS  # a config file per group and a help option per class
        elif action.dest == "print_config":
            action.help = "print the resolved configuration and exit"
    return parser


def class_options(program: type[Autoencoder] = VAE) -> dict[str, list[str]]:
    """Return the options whose value is a class, with the short names of the built-in classes."""
    options = model_option.model_class_options(program)
    return {**options, "objective": jsonargparse_compat.component_names(objectives)}


def load_experiment(source: Path, **kwargs: Any) -> Experiment:
    """Load an experiment from a YAML file.

    Arguments:
        source: the file.
        **kwargs: further options, which override those of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a valid experiment.
    """
    argv = ["--config", str(source), *(f"--{k}={v}" for k, v in kwargs.items())]
    parser = make_experiment_parser(argv)
    return Experiment(parser, parse_args(parser, argv))


def parse_args(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse ``argv``; errors are one sentence that suggests the closest known name.

    Raises:
        ValueError: if the arguments are invalid.
    """
    if isinstance(parser, model_option.ExperimentParser):
        _check_class_names(collect_settings(argv), parser.program)
        argv = model_option.strip_program_name(argv)
    return jsonargparse_compat.parse_or_explain(parser, argv)


def _check_class_names(settings: dict[str, Any], program: type[Autoencoder]) -> None:
    """Raise if a short class name is unknown, and suggest the closest one."""
    if isinstance(settings.get("model"), dict):
        model = model_option.flatten_model(settings["model"])
        settings = settings | {f"model.{k}": v for k, v in model.items()}
    for option, known in class_options(program).items():
        if option == "model":
            continue  # checked when the parser was built
        value = settings.get(option)
        for part in value if isinstance(value, list) else [value]:
            name = part.get("class_path") if isinstance(part, dict) else part
            if isinstance(name, str) and name.isidentifier() and name not in known:
                raise ValueError(jsonargparse_compat.unknown_name_message(option, name, known))


def _with_defining_paths(settings: Any) -> Any:
    """Replace every class path by the path of the module that defines the class.

    A class exported by two modules may be written as either of them.
    """
    if isinstance(settings, list):
        return [_with_defining_paths(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    resolved = {key: _with_defining_paths(value) for key, value in settings.items()}
    if "class_path" in resolved:
        with suppress(ValueError, ImportError, AttributeError):
            cls = pkgutil.resolve_name(resolved["class_path"])
            resolved["class_path"] = f"{cls.__module__}.{cls.__qualname__}"
    return resolved


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
