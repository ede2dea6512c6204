"""What the commands of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jsonargparse import ArgumentParser

from ..config import jsonargparse_compat
from ..evaluation import Annealing

__all__ = ["Command", "add_annealing", "add_device", "name", "parser", "sentence", "with_data"]

#: A command takes the words after its name, and may return a status other than 0; its docstring is
#: the sentence of its help.
Command = Callable[[list[str]], int | None]


def name(command: Command) -> str:
    """What a command is called."""
    return command.__name__.rstrip("_").replace("_", "-")


def parser(command: Command) -> ArgumentParser:
    """The parser of a command, named after its function."""
    return jsonargparse_compat.make(prog=f"pyro-vae {name(command)}", description=sentence(command))


def with_data(command: Command, num_data: int | None) -> ArgumentParser:
    """The parser of a command that opens a run and looks at some of its data."""
    made = parser(command)
    made.add_argument("run", type=str, help="the folder of a finished run")
    made.add_argument(
        "--split", type=Literal["test", "valid", "train"], default="test", help="which data"
    )
    made.add_argument(
        "--num-data", type=int | None, default=num_data, help="only the first so many"
    )
    made.add_argument("--seed", type=int, default=0, help="of the draws and the binarisation")
    return made


def add_device(made: ArgumentParser) -> None:
    """The option that says where to compute."""
    made.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="where to compute"
    )


def add_annealing(made: ArgumentParser, told: str) -> None:
    """The options of an :class:`~pyro_vae.evaluation.Annealing`, as ``options["annealing"]``."""
    made.add_class_arguments(Annealing, "annealing", help=told)


def sentence(command: Command) -> str:
    """What a command does."""
    return (command.__doc__ or "").strip()
