"""Resolved experiment configurations, shared by YAML, the command line and Python.

There are no configuration classes: the options are derived from the signatures of ``data.load``,
the program (``VAE`` by default) and ``fit``, so that new components and options are available
without further code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from .. import data, likelihoods
from ..core.documents import load_yaml
from ..core.random import seeded
from ..core.validation import as_path
from ..data.sources import register_dataset
from ..learning import fit, objectives
from ..likelihoods import Columns
from ..models import VAE, Autoencoder
from .classes import class_types, import_class
from .parser import Layer, Parser, load_value
from .plugins import load_plugins, plugin_path
from .signatures import Option, signature_options

__all__ = [
    "EXPERIMENT_OPTIONS",
    "PLUGIN_OPTION",
    "Experiment",
    "ExperimentParser",
    "as_plugin_names",
    "flatten_settings",
    "load_experiment",
    "parse",
]

#: Arguments of ``fit`` that are set by the run, or by programs in Python.
_SET_BY_RUN = (
    *("program", "train", "valid", "objective"),
    *("checkpoint", "resume", "on_epoch", "progress", "log"),
    *("args", "arguments", "plate"),
)

#: The type of the option that selects the program.
_PROGRAM = Callable[..., Autoencoder]
#: The option that names plugins, also of the commands that open a run.
PLUGIN_OPTION = Option(
    "plugin",
    list[str] | str,
    [],
    "module or file to import, or [MODULE, ...], whose classes are MODULE.Class",
)
#: The options of an experiment.
EXPERIMENT_OPTIONS = (
    Option("config", Path | None, None, "YAML file with any of these options"),
    PLUGIN_OPTION,
    Option("start_from", Path | None, None, "finished run whose weights initialise this one"),
    Option("data", help="data", group=signature_options(data.load)),
    Option("model", _PROGRAM, VAE, "model and guide", expand=True),
    Option("objective", objectives.Objective, objectives.ELBO, "objective to maximise"),
    Option("fit", help="training", group=signature_options(fit, skip=_SET_BY_RUN)),
)
#: The keys of ``config.yaml``.
_KEYS = [option.name for option in EXPERIMENT_OPTIONS if option.name != "config"]


class ExperimentParser(Parser):
    """Parser of an experiment, whose plugins are imported before class names are resolved.

    Only plugins named on the command line are imported, not those that a YAML file names.
    """

    def prepare(self, files: list[Layer], given: list[Layer]) -> list[Layer]:
        configs = [str(layer["config"]) for layer in given if "config" in layer]
        load_plugins(self._plugins(given), self._plugins(files), " and ".join(configs))
        return super().prepare(files, given)

    def _plugins(self, layers: list[Layer]) -> list[str]:
        """Return the plugins of the last layer that names any."""
        name = PLUGIN_OPTION.name
        values = [layer[name] for layer in layers if name in layer]
        return as_plugin_names(self._check(PLUGIN_OPTION, values[-1], name)) if values else []


class Experiment:
    """A resolved configuration, with methods to build its data and model.

    Attributes:
        settings: the configuration with all defaults and absolute paths.
    """

    def __init__(self, parser: Parser, settings: Namespace) -> None:
        self._parser = parser
        self.settings = settings.clone()
        # a run can be opened from any folder, so relative paths must not be stored
        names = as_plugin_names(settings.plugin)
        self.settings.plugin = [plugin_path(name) for name in names]
        for key in ("path", "root"):
            self.settings.data[key] = _absolute(settings.data[key])
        for key in ("valid", "test"):  # a number, or a file
            if isinstance(settings.data[key], str):
                self.settings.data[key] = _absolute(settings.data[key])
        self.settings.start_from = _absolute(settings.start_from)

    @cached_property
    def _instances(self) -> Namespace:
        # instantiated once, so that the objective is always the same object
        return self._parser.instantiate(self.settings)

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

    @property
    def data_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``data.load`` set by the configuration.

        A name with dots is the import path of a ``Dataset`` class of a plugin.
        """
        arguments = self._instances.data.as_dict()
        name = arguments["name"]
        if "." in name:
            register_dataset(name, import_class(name, "data.name"))
        return arguments

    def load_data(self) -> data.Dataset:
        return data.load(**self.data_arguments)

    @property
    def program(self) -> type[Autoencoder]:
        """The class of the model."""
        return self._parser.selected["model"]

    def build_model(self, data: Any) -> Autoencoder:
        """Return the program with initial weights drawn with the experiment's seed.

        The likelihood ``Columns`` without parts gets those of the columns of a table.

        Arguments:
            data: a :class:`~pyro_vae.data.Dataset`, or any object with the attributes listed in
                the program's ``from_data``, and ``columns`` and ``scale`` if it is a table.

        Raises:
            ValueError: if the components cannot be combined, or if the data lack an attribute
                required by the program.
        """
        arguments = {name: getattr(data, name) for name in self.program.from_data}
        arguments |= self._instances.model.as_dict()
        if self._has_columns_of_data:
            arguments["likelihood"] = Columns.from_table(data)
        with seeded(self.seed):
            return self.program(**arguments)

    @property
    def _has_columns_of_data(self) -> bool:
        """Whether the likelihood is ``Columns`` with neither parts nor columns."""
        chosen = self.settings.model.get("likelihood")
        options = getattr(chosen, "init_args", {})
        return (
            getattr(chosen, "class_path", None) == f"{likelihoods.__name__}.{Columns.__name__}"
            and options.get("parts") is None
            and options.get("columns") is None
        )

    def to_yaml(self) -> str:
        """Return the settings needed to repeat the experiment, without execution settings."""
        return yaml.safe_dump(self.settings_dict(), sort_keys=False, allow_unicode=True)

    def settings_dict(self) -> dict[str, Any]:
        """Return :meth:`to_yaml` as plain containers."""
        # a null that overrides a default must be written
        text = self._parser.parser.dump(self.settings, skip_validation=True, skip_unset=False)
        tree = load_yaml(text)
        settings = {key: tree[key] for key in _KEYS if key != "start_from" or tree[key]}
        if self.program is not VAE:
            path = class_types(_PROGRAM)[0].path(self.program)
            settings["model"] = {"class_path": path, "init_args": settings["model"]}
        return settings

    def differences(self, other: Experiment) -> list[str]:
        """Return the keys that differ; a different program is reported as ``model`` alone."""
        ours, theirs = (flatten_settings(e.settings_dict()) for e in (self, other))
        keys = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
        if self.program is not other.program:
            keys = {"model"} | {k for k in keys if not k.startswith("model.")}
        return sorted(keys)


def parse(argv: Sequence[str]) -> Experiment:
    """Return the experiment described by command-line arguments.

    Raises:
        FileNotFoundError: if a YAML file does not exist.
        ValueError: if the arguments are invalid.
    """
    parser = ExperimentParser(EXPERIMENT_OPTIONS, "pyro-vae fit")
    return Experiment(parser, parser.parse(argv))


def load_experiment(source: Path, plugin: str | Sequence[str] = ()) -> Experiment:
    """Load an experiment from a YAML file.

    Arguments:
        source: the file.
        plugin: the plugins to import; those that the file uses must be among them.

    Raises:
        FileNotFoundError: if the file does not exist.
        PluginError: if the file uses a plugin that is not given, or if one cannot be imported.
        ValueError: if the file is not a valid experiment.
    """
    names = [plugin] if isinstance(plugin, str) else list(plugin)
    return parse(["--config", str(source), *(["--plugin", json.dumps(names)] if names else [])])


def as_plugin_names(value: Any) -> list[str]:
    """Return the value of the option ``plugin``, a name or a list, as a list."""
    names = load_value(value) if isinstance(value, str) and value.startswith("[") else value
    return [names] if isinstance(names, str) else [str(name) for name in names or []]


def _absolute(path: Any) -> str | None:
    return None if path is None else str(as_path(path).absolute())


def flatten_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten_settings(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
