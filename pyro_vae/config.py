"""One description of an experiment for YAML, the command line and Python.

There are no configuration classes: the parser is read off the signatures of ``data.load``,
``VAE`` and ``fit``, so that a new component or option is there as soon as it is written.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from . import _parsing, data, likelihoods, networks, posteriors, priors
from ._component import Shape
from ._random import seeded
from .learning import fit, objectives
from .models import VAE

__all__ = ["Experiment", "load_plugins", "parse", "parser"]

#: Where a class may be named, and the module whose public classes are the short names.
_SLOTS = {
    "model.prior": priors,
    "model.likelihood": likelihoods,
    "model.posterior": posteriors,
    "model.encoder": networks,
    "model.decoder": networks,
    "objective": objectives,
}
#: The groups of options and what they describe.
_TITLES = {"data": "the data", "model": "the model and its guide", "fit": "learning"}
#: Keys of the configuration that say how to run it and are not part of the experiment.
RUN_KEYS = ("config", "run", "resume", "overwrite")


class Experiment:
    """A resolved configuration and what it describes.

    Attributes:
        settings: the configuration, every default filled in, every file by its full path.
    """

    def __init__(self, parser: ArgumentParser, settings: Namespace) -> None:
        self._parser = parser
        self.settings = settings.clone()
        # a run is opened again from anywhere, so nothing may depend on the current folder
        self.settings.plugin = [_located(name) for name in _listed(settings.plugin)]
        for key in ("path", "root"):
            if settings.data[key] is not None:
                self.settings.data[key] = str(Path(settings.data[key]).expanduser().absolute())
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
    def objective(self) -> objectives.Objective:
        return self._instances.objective

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``fit`` that the configuration gives."""
        return {**self._instances.fit.as_dict(), "objective": self.objective}

    def load_data(self) -> data.Dataset:
        return data.load(**self._instances.data.as_dict())

    def build_model(self, event_shape: Shape) -> VAE:
        """The program with its initial weights, drawn with the experiment's seed."""
        with seeded(self.seed):
            return VAE(event_shape, **self._instances.model.as_dict())

    def to_yaml(self) -> str:
        """Everything that is needed to repeat the experiment, and nothing about running it."""
        kept = self.settings.clone()
        for key in RUN_KEYS:
            kept.pop(key, None)
        # a null that replaces another default must be written, or it would be lost
        return self._parser.dump(kept, skip_validation=True, skip_unset=False)

    def settings_dict(self) -> dict[str, Any]:
        """:meth:`to_yaml` as plain containers."""
        return yaml.safe_load(self.to_yaml())

    def differences(self, other: Experiment) -> list[str]:
        """The keys in which two experiments differ."""
        here, there = (_flatten(e.settings_dict()) for e in (self, other))
        return sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))


def parser(plugins: Sequence[str] = (), **kwargs: Any) -> ArgumentParser:
    """The parser of an experiment.

    Arguments:
        plugins: modules of the user that classes may be named from.
        **kwargs: for ``ArgumentParser``.
    """
    _parsing.allow(plugins)
    made = _parsing.make(**kwargs)
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
    made.add_function_arguments(data.load, "data", sub_configs=False)
    made.add_class_arguments(VAE, "model", skip={"event_shape"}, instantiate=False)
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
    for name, title in _TITLES.items():
        made.groups[name].title = title  # type: ignore[index]
    for action in made._actions:
        if action.dest in _SLOTS:
            vars(action)["names"] = _parsing.names(_SLOTS[action.dest])
        elif action.dest in _TITLES or action.dest.endswith(".help"):
            action.help = SUPPRESS  # a file for each group, a help for each class
    return made


def parse(source: Path, **kwargs: Any) -> Experiment:
    """The experiment in a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one sentence, if it does not describe an experiment.
    """
    argv = ["--config", str(source), *(f"--{k}={v}" for k, v in kwargs.items())]
    made = parser(load_plugins(argv))
    return Experiment(made, explained(made, argv))


def explained(made: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """``made.parse_args(argv)``, whose errors are one sentence with the nearest right name.

    Raises:
        ValueError: if the arguments do not parse.
    """
    _check_names(_given(argv))
    return _parsing.parse(made, argv)


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Imports the modules that ``--plugin`` or the YAML file's ``plugin`` names.

    They are looked for beside the YAML file, in the current folder and among the installed
    ones. A run records the file it found, so that it is found again from another folder.

    Returns:
        The names of the modules.

    Raises:
        ValueError: if one cannot be imported.
    """
    folders = [*(Path(f).resolve().parent for f in _configs(argv)), Path.cwd()]
    return [_import_plugin(name, folders) for name in _listed(_given(argv).get("plugin", []))]


def _import_plugin(name: str, folders: list[Path]) -> str:
    """Imports a plugin given by its module's name or file, and returns the module's name."""
    module = Path(name).stem if name.endswith(".py") else Path(name).name
    places = [Path(name), *(f / file for f in folders for file in (f"{module}.py", module))]
    found = next((p.resolve() for p in places if _is_module(p)), None)
    file = found / "__init__.py" if found and found.is_dir() else found
    try:
        if file is None:
            importlib.import_module(module)
        elif getattr(sys.modules.get(module), "__file__", None) != str(file):
            # what the plugin itself imports may lie beside it
            sys.path.append(str(file.parent if file is found else file.parent.parent))
            spec = importlib.util.spec_from_file_location(module, file)
            assert spec is not None and spec.loader is not None
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
    except Exception as error:
        if file is not None:
            sys.modules.pop(module, None)
            raise ValueError(f"could not import plugin {file}: {error}") from error
        raise ValueError(
            f"expected plugin {name!r} to be a Python module beside the YAML file, in the current "
            f"folder or installed; got none: {error}"
        ) from error
    return module


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def _located(plugin: str) -> str:
    """The file of a plugin that lies beside somebody's YAML; the name of an installed one."""
    module = Path(plugin).stem if plugin.endswith(".py") else Path(plugin).name
    file = Path(getattr(sys.modules.get(module), "__file__", None) or module)
    if not file.is_absolute() or "site-packages" in file.parts:
        return module
    return str(file.parent if file.name == "__init__.py" else file)


def _listed(value: object) -> list[str]:
    """One name, a list of names, or a list as the command line writes it, as a list."""
    content = yaml.safe_load(value) if isinstance(value, str) else value
    return [content] if isinstance(content, str) else list(content or [])  # type: ignore[call-overload]


def _check_names(given: dict[str, Any]) -> None:
    """Refuses an unknown short class name, with the nearest right one."""
    for slot, module in _SLOTS.items():
        value = given.get(slot)
        name = value.get("class_path") if isinstance(value, dict) else value
        known = _parsing.names(module)
        if isinstance(name, str) and "." not in name and name not in known:
            raise ValueError(
                f"expected {slot} to be one of {', '.join(known)}, or a class of a --plugin as "
                f"module.Class; got {name!r}{_parsing.nearest(name, known)}"
            )


def _configs(argv: Sequence[str]) -> list[str]:
    """The files that ``--config`` names."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    return files + [b for a, b in pairwise(argv) if a == "--config"]


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """What the user wrote, in YAML and on the command line, by dotted key, unresolved."""
    given: dict[str, Any] = {}
    for name in _configs(argv):
        file = Path(name)
        if not file.is_file():
            raise FileNotFoundError(f"expected a YAML file at {file}; there is none")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"expected {file} to be YAML; {' '.join(str(error).split())}"
            ) from None
        if not isinstance(content, dict):
            raise ValueError(
                f"expected {file} to hold keys such as data and model; got {content!r}"
            )
        for key, value in content.items():
            given[key] = value
            if key in _TITLES and not isinstance(value, dict):
                raise ValueError(
                    f"expected {key} in {file} to hold options and their values; got {value!r}"
                )
            if isinstance(value, dict):
                given |= {f"{key}.{inner}": v for inner, v in value.items()}
    for option, value in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, inline = option.partition("=")
        if key.startswith("--"):
            given[key[2:]] = inline if equals else value
    return given


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
