"""Commands as functions: their arguments are their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from ..config.experiment import PLUGIN_OPTION, ExperimentParser, as_plugin_names
from ..config.parser import Layer, Parser
from ..config.signatures import Option, signature_options
from ..data import load
from ..runs.examples import DATA_OPTIONS
from ..runs.run import Run

__all__ = ["Command", "call", "command_name", "command_summary"]

#: A command is a function whose arguments are its options. It may return an exit status.
Command = Callable[..., int | None]
#: Help texts of the arguments that many commands share.
_SHARED_TEXTS = {
    "run": "folder of a finished run",
    "split": "data split",
    "num_data": "use only the first N examples of the split",
    "seed": "seed of sampling and binarisation",
    "device": "device to compute on",
}


#: Where the data of a trained run are, or new data; those of the run by default.
_DATA_GROUP = Option(
    "data",
    help="place of the data of the run, or new data for the trained model",
    group=tuple(
        o._replace(
            hint=(str if o.name in ("valid", "test") else o.hint) | None,
            default=None,
            positional=False,
        )
        for o in signature_options(load)
        if o.name in DATA_OPTIONS
    ),
)


def command_name(command: Command) -> str:
    """Return the name of a command on the command line."""
    return command.__name__.rstrip("_").replace("_", "-")


def command_summary(command: Command) -> str:
    """Return the first line of a command's docstring."""
    return (inspect.getdoc(command) or "").split("\n")[0]


def call(command: Command, argv: Sequence[str]) -> int | None:
    """Parse the arguments of a command and call it.

    Positional parameters without a default, and ``*args``, are positional on the command line; all
    others are options. A ``bool`` with default ``False`` is a flag. The arguments of a dataclass
    (``annealing: Annealing``) are options below its name (``--annealing.num_steps``). A parameter
    ``run: Run`` is a folder, with ``--plugin`` for the code that may be imported to open it, and
    ``--data.path`` and others for data that are elsewhere, or new. Help texts come from the
    docstring's section ``Arguments:``. ``*runs: Run`` are several folders.

    The attribute ``replaced`` of a command maps options of earlier versions to their replacement.

    Raises:
        ValueError: if the arguments are invalid: one sentence with the closest known name.
    """
    _check_replaced(command, argv)
    options = [
        o._replace(help=o.help or _SHARED_TEXTS.get(o.name, "")) for o in signature_options(command)
    ]
    opened = [o.name for o in options if o.hint in (Run, list[Run])]
    options = [
        o._replace(hint=list[str] if o.repeated else str) if o.name in opened else o
        for o in options
    ]
    options += [PLUGIN_OPTION, _DATA_GROUP] if opened else []
    parser_type = _RunParser if opened else Parser
    parser = parser_type(options, f"pyro-vae {command_name(command)}", command_summary(command))
    settings = parser.parse(argv)
    arguments = parser.instantiate(settings).as_dict()
    if opened:
        plugins = as_plugin_names(arguments.pop(PLUGIN_OPTION.name))
        data = arguments.pop(_DATA_GROUP.name)
        for name in opened:
            given = arguments[name]
            arguments[name] = (
                [Run(folder, plugins, data) for folder in given]
                if isinstance(given, list)
                else Run(given, plugins, data)
            )
    names = [o.name for o in options if o.positional and not o.repeated]
    repeated = [v for o in options if o.repeated for v in arguments.pop(o.name)]
    return command(*(arguments.pop(name) for name in names), *repeated, **arguments)


class _RunParser(ExperimentParser):
    """Parser of a command with a run, whose plugins must be outside the folder of the run."""

    def prepare(self, files: list[Layer], given: list[Layer]) -> list[Layer]:
        named = [layer["run"] for layer in given if isinstance(layer.get("run"), str)]
        named += [f for layer in given for f in layer.get("runs") or [] if isinstance(f, str)]
        for folder in named:
            Run(folder, self._plugins(given))  # refuses them before they are imported
        return super().prepare(files, given)


def _check_replaced(command: Command, argv: Sequence[str]) -> None:
    """Raise a ``ValueError`` for an option of an earlier version, with its replacement."""
    replaced = getattr(command, "replaced", {})
    for option in (arg for arg in argv if arg.startswith("--")):
        name = option[2:].partition("=")[0].partition(".")[0].replace("-", "_")
        if name in replaced:
            raise ValueError(
                f"{command_name(command)} has no option --{name}: use {replaced[name]}"
            )
