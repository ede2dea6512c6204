"""Options derived from the signatures and docstrings of functions and classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser

from ..core.validation import did_you_mean

__all__ = [
    "REQUIRED",
    "Option",
    "check_value",
    "document_arguments",
    "join_or",
    "literal_choices",
    "signature_options",
    "union_members",
]

#: The default of a required option.
REQUIRED: Any = inspect.Parameter.empty
#: Plain names of types for error messages.
_TYPE_NAMES = {
    type(None): "null",
    bool: "true or false",
    float: "a number",
    int: "an integer",
    str: "a string",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    dict: "a mapping",
}


class Option(NamedTuple):
    """One option, derived from a parameter of a function or class."""

    name: str
    hint: Any = Any
    default: Any = REQUIRED
    help: str = ""
    #: Given without its name on the command line.
    positional: bool = False
    #: A positional option that takes any number of values.
    repeated: bool = False
    #: The options of a group, which has no value itself.
    group: tuple[Option, ...] = ()
    #: Whether the options of the class stand beside the others in the help and in YAML.
    expand: bool = False


def signature_options(
    function: Callable[..., Any], *, skip: Collection[str] = ()
) -> tuple[Option, ...]:
    """Return the options of a function or class, in the order of its signature.

    Types come from the annotations and help texts from the docstring. A parameter without a
    default that may be passed by position, and ``*args``, are positional on the command line.
    Parameters in ``skip`` are omitted.
    """
    texts = document_arguments(function)
    options = []
    for p, hint in _parameters(function):
        if p.name in skip or p.kind is p.VAR_KEYWORD:
            continue
        repeated = p.kind is p.VAR_POSITIONAL
        positional = repeated or (p.default is REQUIRED and p.kind is not p.KEYWORD_ONLY)
        default = [] if repeated else p.default
        hint = list[hint] if repeated else hint
        options.append(Option(p.name, hint, default, texts.get(p.name, ""), positional, repeated))
    return tuple(options)


def document_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Return the texts of a docstring's arguments; a class inherits those of its bases."""
    texts: dict[str, str] = {}
    for owner in reversed(inspect.getmro(function)) if inspect.isclass(function) else [function]:
        for p in docstring_parser.parse(owner.__doc__ or "").params:
            # one entry may explain several arguments: "low, high: …"
            texts |= {n.strip(" *"): p.description or "" for n in p.arg_name.split(",")}
    # on one line, without markup
    role = re.compile(r":\w+:`~?[\w.]*?(\w+)`")
    return {n: role.sub(r"\1", " ".join(t.split())).replace("``", "") for n, t in texts.items()}


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield the parameters with their types; a class passes ``**kwargs`` on to its base."""
    if not inspect.isclass(function):
        yield from _own_parameters(function)
        return
    seen: set[str] = set()
    for cls in function.__mro__[:-1]:
        if "__init__" in cls.__dict__:
            own = list(_own_parameters(cls.__init__))[1:]
            yield from (
                (p, h) for p, h in own if p.name not in seen and p.kind is not p.VAR_POSITIONAL
            )
            seen |= {p.name for p, _ in own}
            if not any(p.kind is p.VAR_KEYWORD for p, _ in own):
                return


def _own_parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hints = {}
    for p in inspect.signature(function).parameters.values():
        known = p.annotation is not REQUIRED and not isinstance(p.annotation, str)
        yield p, hints.get(p.name, p.annotation if known else Any)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(m for arg in get_args(hint) for m in union_members(arg))
    return (hint,)


def literal_choices(hint: Any) -> list[str]:
    """Return the choices of an annotation that contains a ``Literal``."""
    return [str(c) for m in union_members(hint) if get_origin(m) is Literal for c in get_args(m)]


def check_value(hint: Any, value: Any, name: str) -> None:
    """Check that a value from YAML, or a string from the command line, has the annotated type.

    Raises:
        ValueError: if it has another type.
    """
    try:
        _value_parser(hint).parse_object({"value": value})
    except ArgumentError:
        types: list[str] = []
        for member in union_members(hint):
            if get_origin(member) is Literal:
                types += map(str, get_args(member))
            elif get_origin(member) is tuple and ... not in get_args(member):
                types.append(f"a list of length {len(get_args(member))}")
            elif inspect.isclass(get_origin(member) or member):
                other = "a mapping of options" if is_dataclass(member) else "the name of a class"
                types.append(_TYPE_NAMES.get(get_origin(member) or member, other))
        raise ValueError(
            f"expected {name} to be {join_or(types)}; got {value!r}"
            f"{did_you_mean(str(value), types)}"
        ) from None


@cache
def _value_parser(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def join_or(choices: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    return " or ".join([*([", ".join(choices[:-1])] if choices[1:] else []), choices[-1]])
