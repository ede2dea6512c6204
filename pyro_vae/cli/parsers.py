"""Commands as functions: their arguments are their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config.parser import Parser, build
from ..config.signatures import Option, signature_options

__all__ = ["Command", "call", "command_name", "command_summary", "make_parser"]

#: A command is a function whose arguments are its options. It may return an exit status.
Command = Callable[..., int | None]


def command_name(command: Command) -> str:
    """Return the name of a command on the command line."""
    return command.__name__.rstrip("_").replace("_", "-")


def command_summary(command: Command) -> str:
    """Return the first line of a command's docstring."""
    return (inspect.getdoc(command) or "").split("\n")[0]


def make_parser(
    function: Callable[..., Any],
    *,
    prog: str | None = None,
    skip: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    more: Sequence[Option] = (),
) -> Parser:
    """Return a parser whose options are the arguments of a function or dataclass.

    Positional parameters without a default, and ``*args``, are positional on the command line; all
    others are options. A ``bool`` with default ``False`` is a flag. The arguments of a dataclass
    (``annealing: Annealing``) are options below its name (``--annealing.num_steps``). Help texts
    come from the docstring's section ``Arguments:``.

    Arguments:
        function: the function.
        prog: the command, for messages; the function's name by default.
        skip: arguments that are not options.
        defaults: defaults that replace those of the signature.
        more: further options, placed first.
    """
    options = [*more, *signature_options(function, skip=skip, defaults=defaults)]
    prog = prog or f"pyro-vae {command_name(function)}"
    return Parser(options, prog, command_summary(function))


def call(command: Command, argv: Sequence[str]) -> int | None:
    """Parse the arguments of a command and call it.

    Raises:
        ValueError: if the arguments are invalid: one sentence with the closest known name.
    """
    parser = make_parser(command)
    arguments = build(parser.parse(argv))
    names = [o.name for o in parser.options if o.positional and not o.repeated]
    repeated = [v for o in parser.options if o.repeated for v in arguments.pop(o.name)]
    return command(*(arguments.pop(name) for name in names), *repeated, **arguments)
