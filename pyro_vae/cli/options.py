"""Options shared by the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jsonargparse import ArgumentParser

from ..config import jsonargparse_compat
from ..evaluation import Annealing

__all__ = [
    "Command",
    "add_annealing",
    "add_device",
    "command_name",
    "command_summary",
    "make_data_parser",
    "make_parser",
]

#: A command takes the arguments after its name and may return an exit status. Its docstring is
#: its help text.
Command = Callable[[list[str]], int | None]


def command_name(command: Command) -> str:
    """Return the name of a command on the command line."""
    return command.__name__.rstrip("_").replace("_", "-")


def command_summary(command: Command) -> str:
    """Return the help text of a command."""
    return (command.__doc__ or "").strip()


def make_parser(command: Command) -> ArgumentParser:
    """Return the parser of a command."""
    return jsonargparse_compat.make_base_parser(
        prog=f"pyro-vae {command_name(command)}", description=command_summary(command)
    )


def make_data_parser(command: Command, num_data: int | None) -> ArgumentParser:
    """Return the parser of a command that opens a run and a split of its data.

    Arguments:
        command: the command.
        num_data: the default of ``--num-data``.
    """
    parser = make_parser(command)
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument(
        "--split", type=Literal["test", "valid", "train"], default="test", help="data split"
    )
    parser.add_argument(
        "--num-data",
        type=int | None,
        default=num_data,
        help="use only the first N examples of the split",
        metavar="N",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and binarisation")
    return parser


def add_device(parser: ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="device to compute on"
    )


def add_annealing(parser: ArgumentParser, title: str) -> None:
    """Add the options of :class:`~pyro_vae.evaluation.Annealing` as ``options["annealing"]``."""
    parser.add_class_arguments(Annealing, "annealing", help=title)
