"""One description of an experiment for YAML, the command line and Python.

There are no configuration classes: the parser is read off the signatures of ``data.load``,
``VAE`` and ``fit``, so that a new component or option is there as soon as it is written.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from . import data, likelihoods, networks, posteriors, priors
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
#: Keys of the configuration that say how to run it and are not part of the experiment.
RUN_KEYS = ("config", "run", "resume", "overwrite")


class Experiment:
    """A resolved configuration and what it describes.

    Attributes:
        settings: the configuration, every default filled in.
    """

    def __init__(self, parser: ArgumentParser, settings: Namespace) -> None:
        self._parser = parser
        self.settings = settings
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
        return self._parser.dump(kept, skip_validation=True)

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
    allowed = ["pyro_vae", "torch.nn", "torch.optim", *plugins]
    # a class path imports its module: only ours and those the user vouched for by --plugin
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    made = ArgumentParser(exit_on_error=False, **kwargs)
    made.add_argument("--config", action="config", help="a YAML file with any of these options")
    made.add_argument(
        "--plugin", type=list[str], default=[], help="your own modules, whose classes may be named"
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
    given = _given(argv)
    _check_names(given)
    try:
        return made.parse_args(list(argv))
    except ArgumentError as error:
        raise ValueError(_sentence(str(error), made)) from None


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Imports the modules that ``--plugin`` or the YAML file's ``plugin`` names.

    They are looked for beside the YAML file and in the current folder.

    Raises:
        ValueError: if one cannot be imported.
    """
    given = _given(argv)
    named = given.get("plugin", [])
    names = [named] if isinstance(named, str) else list(named)
    folders = [Path.cwd(), *(Path(f).resolve().parent for f in _configs(argv))]
    for folder in map(str, folders):
        if names and folder not in sys.path:
            sys.path.insert(0, folder)
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"expected plugin {name!r} to be a Python module beside the YAML file or in the "
                f"current folder; {error}"
            ) from error
    return names


def _check_names(given: dict[str, Any]) -> None:
    """Refuses an unknown short class name, with the nearest right one."""
    for slot, module in _SLOTS.items():
        value = given.get(slot)
        name = value.get("class_path") if isinstance(value, dict) else value
        if not isinstance(name, str) or "." in name or name in module.__all__:
            continue
        concrete = [n for n in module.__all__ if not getattr(module, n).__dict__.get("_abstract")]
        near = difflib.get_close_matches(name, concrete, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"expected {slot} to be one of {', '.join(concrete)}, or a class of a --plugin as "
            f"module.Class; got {name!r}{hint}"
        )


def _sentence(message: str, made: ArgumentParser) -> str:
    """jsonargparse's message, shortened, with the nearest option where one was unknown."""
    denied = re.search(r"[Ii]mport path '?([\w.]+)'?", message) if "allowlist" in message else None
    if denied:
        return (
            f"expected a class of pyro_vae, torch.nn or torch.optim; got {denied[1]!r}: name your "
            f"own module with --plugin {denied[1].split('.')[0]}"
        )
    unknown = re.search(
        r"(?:Unrecognized arguments: --|unrecognized arguments: --|[Oo]ption '|[Kk]ey '|[Kk]ey \")"
        r"([\w.\-]+)",
        message,
    )
    if unknown and "required" not in message:
        options = [o[2:] for a in made._actions for o in a.option_strings if o.startswith("--")]
        near = difflib.get_close_matches(unknown[1], options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no option {unknown[1]!r}{hint}"
    return " ".join(message.split())


def _configs(argv: Sequence[str]) -> list[str]:
    """The files that ``--config`` names."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    return files + [b for a, b in zip(argv, argv[1:], strict=False) if a == "--config"]


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
            raise ValueError(f"expected {file} to be YAML; {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"expected {file} to hold keys such as data and model; got {content!r}")
        for key, value in content.items():
            given[key] = value
            if isinstance(value, dict):
                given |= {f"{key}.{inner}": v for inner, v in value.items()}
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
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
