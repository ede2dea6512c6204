"""Help pages, generated from options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin

import yaml

from .classes import class_types
from .signatures import REQUIRED, Option, flag, literal_choices, union_members

__all__ = ["Section", "format_help", "plain_text"]

#: How the value of an option is shown.
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH", bool: "{true,false}"}


class Section(NamedTuple):
    """A titled part of a help page."""

    title: str
    prefix: str
    options: Sequence[Option]


def format_help(
    prog: str, sections: Sequence[Section], description: str = "", epilog: str = ""
) -> str:
    """Return a help page of a command."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )  # fmt: skip
    positional = [o for section in sections for o in section.options if o.positional]
    names = [f"{o.name} ..." if o.repeated else o.name for o in positional]
    parser.usage = " ".join([prog, *names, "[--OPTION VALUE ...]"])
    if positional:
        group = parser.add_argument_group("arguments")
        for option in positional:
            group.add_argument(option.name, nargs="*", help=_help(option))
    for section in sections:
        group = parser.add_argument_group(plain_text(section.title).removesuffix("."))
        for option in section.options:
            if not option.positional and not (option.is_expanded and not option.expand):
                name = flag(f"{section.prefix}{option.name}")
                if option.is_flag:
                    group.add_argument(name, action="store_true", help=_help(option))
                else:
                    group.add_argument(name, metavar=_metavar(option), help=_help(option))
    return parser.format_help().rstrip()


def _metavar(option: Option) -> str:
    if class_types(option.hint):
        return "CLASS"
    choices = literal_choices(option.hint)
    others = [m for m in union_members(option.hint) if m is not type(None)]
    names = [_METAVARS.get(m, "VALUE") for m in others if get_origin(m) is not Literal]
    if choices:
        return "{" + ",".join([*choices, *names]) + "}"
    is_list = any(get_origin(m) not in (None, Literal) for m in others)
    return "[X,...]" if is_list else names[0] if names else "VALUE"


def _help(option: Option) -> str:
    details = []
    kinds = class_types(option.hint)
    if kinds and kinds[0].is_listed:
        details.append(f"one of {', '.join(kinds[0].names)}")
    if option.default is REQUIRED and not option.positional:
        details.append("required")
    elif option.default not in (None, False, (), []) and not option.positional:
        details.append(f"default: {_format_default(option.default)}")
    text = plain_text(option.help) + (f" ({'; '.join(details)})" if details else "")
    return text.replace("%", "%%")


def _format_default(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, list | tuple):
        return yaml.safe_dump(list(value), default_flow_style=True, width=1000).strip()
    return str(value)


def plain_text(text: str) -> str:
    """Return a docstring's text without markup."""
    text = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"\1", text)
    return text.replace("``", "").replace("`", "")
