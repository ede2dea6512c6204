"""Options derived from signatures and docstrings, and values checked by type hints."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

__all__ = [
    "REQUIRED",
    "Group",
    "Option",
    "accepts_mapping",
    "convert",
    "describe_type",
    "document_arguments",
    "flag",
    "join_or",
    "literal_choices",
    "signature_options",
    "union_members",
    "yaml_value",
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
    Path: "a path",
    dict: "a mapping",
    Mapping: "a mapping",
}
#: The types of YAML lists; a tuple is kept as a tuple.
_LISTS = (list, tuple, Sequence, Iterable, Collection)


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
    #: Whether the help page shows the arguments of the class among the options.
    expand: bool = False

    @property
    def is_expanded(self) -> bool:
        """Whether the help page shows the arguments of the class: also of a dataclass alone."""
        members = [m for m in union_members(self.hint) if m is not type(None)]
        return self.expand or all(is_dataclass(m) for m in members)

    @property
    def is_flag(self) -> bool:
        """Whether the name alone means true."""
        return self.hint is bool and self.default is False


class Group(NamedTuple):
    """The type of an option whose value are the options of a function."""

    options: tuple[Option, ...]
    title: str = ""


def signature_options(
    function: Callable[..., Any],
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Option, ...]:
    """Return the options of a function or class, in the order of its signature.

    Types come from the annotations and help texts from the docstring. A parameter without a
    default that may be passed by position, and ``*args``, are positional on the command line.

    Arguments:
        function: the function or class.
        skip: names of parameters that are not options.
        defaults: defaults that replace those of the signature.
    """
    texts = document_arguments(function)
    options = []
    for p, hint in _parameters(function):
        if p.name in skip or p.kind is p.VAR_KEYWORD:
            continue
        repeated = p.kind is p.VAR_POSITIONAL
        positional = repeated or (p.default is REQUIRED and p.kind is not p.KEYWORD_ONLY)
        default = (defaults or {}).get(p.name, () if repeated else p.default)
        options.append(Option(p.name, hint, default, texts.get(p.name, ""), positional, repeated))
    return tuple(options)


def document_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Return the texts of the docstring section ``Arguments:``, ``Args:`` or ``Attributes:``.

    A class inherits the texts of its bases.
    """
    if not inspect.isclass(function):
        return _document_arguments(inspect.getdoc(function))
    texts: dict[str, str] = {}
    for cls in reversed(function.__mro__[:-1]):
        texts |= _document_arguments(cls.__dict__.get("__init__", object).__doc__)
        texts |= _document_arguments(cls.__dict__.get("__doc__"))
    return texts


def _document_arguments(doc: str | None) -> dict[str, str]:
    texts: dict[str, str] = {}
    for section in re.split(r"\n(?=\S)", inspect.cleandoc(doc or "")):
        heading, _, body = section.partition("\n")
        if heading.strip() in ("Arguments:", "Args:", "Attributes:"):
            # an entry starts at the least indentation of its section
            for entry in re.split(r"\n(?=\S)", inspect.cleandoc("\n" + body)):
                names, colon, text = entry.partition(": ")
                if colon:
                    text = " ".join(text.split())
                    names = re.sub(r"\(.*?\)", "", names).replace("*", "")
                    texts |= {name.strip(): text for name in names.split(",")}
    return texts


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield the parameters with their types; a class passes ``**kwargs`` on to its base."""
    if not inspect.isclass(function):
        yield from _own_parameters(function)
        return
    seen: set[str] = set()
    for cls in function.__mro__:
        if "__init__" not in cls.__dict__ or cls is object:
            continue
        own = list(_own_parameters(cls.__init__))[1:]
        yield from ((p, hint) for p, hint in own if p.name not in seen)
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
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(m for arg in get_args(hint) for m in union_members(arg))
    return (hint,)


def convert(hint: Any, value: Any) -> Any:
    """Return a value from YAML, or a string from the command line, as the annotated type.

    Raises:
        ValueError: if the value has another type.
    """
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(union_members(hint), value)
    if origin is Literal:
        candidates = [value, yaml_value(value)]
        return next(c for c in args if c in candidates) if _any_in(candidates, args) else _fail()
    if origin in (str, Path):
        return origin(value) if isinstance(value, str | Path) else _fail()
    if origin is float and isinstance(value, str):
        return float(value)  # YAML reads 1e-3 as a string
    value = yaml_value(value)
    if origin in (None, type(None)):
        return None if value is None else _fail()
    if origin is bool:
        return value if isinstance(value, bool) else _fail()
    if origin is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _fail()
    if origin is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else _fail()
    if origin in _LISTS:
        if not isinstance(value, list | tuple):
            _fail()
        if origin is tuple and args and args[-1] is not ... and len(args) != len(value):
            _fail()
        one_type = origin is not tuple or ... in args or not args
        inner = [args[0] if args else Any] * len(value) if one_type else args
        items = (convert(h, v) for h, v in zip(inner, value, strict=True))
        return tuple(items) if origin is tuple else list(items)
    if origin in (dict, Mapping):
        return value if isinstance(value, dict) else _fail()
    if isinstance(origin, type) and not isinstance(value, origin):
        _fail()
    return value


def _convert_union(members: Sequence[Any], value: Any) -> Any:
    for member in members:  # an int stays an int beside a float
        if isinstance(member, type) and type(value) is member and member is not str:
            return value
    # a string is the last resort: "3" is a number for int | str
    for member in sorted(members, key=lambda m: (m in (str, Path), m is float)):
        try:
            return convert(member, value)
        except ValueError:
            continue
    return _fail()


def yaml_value(value: Any) -> Any:
    """Return a string as the YAML value that it spells; other values are returned unchanged."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _any_in(candidates: Iterable[Any], choices: Sequence[Any]) -> bool:
    return any(c in choices for c in candidates if not isinstance(c, list | dict))


def _fail() -> Any:
    raise ValueError


def describe_type(hint: Any) -> list[str]:
    """Return the plain names of the types and choices of an annotation."""
    names: list[str] = []
    for member in union_members(hint):
        origin, args = get_origin(member) or member, get_args(member)
        if origin is Literal:
            names += map(str, args)
        elif origin in _LISTS:
            inner = describe_type(args[0]) if args else []
            names.append(f"a list of {_plural(inner[0])}" if len(inner) == 1 else "a list")
        else:
            names += [_TYPE_NAMES[origin]] if origin in _TYPE_NAMES else []
    return names


def accepts_mapping(hint: Any) -> bool:
    """Whether a mapping may be the value of an annotation."""
    types = [get_origin(m) or m for m in union_members(hint)]
    return any(t is Any or t in (dict, Mapping) for t in types)


def _plural(name: str) -> str:
    return f"{name.split(' ', 1)[-1]}s" if name.startswith(("a ", "an ")) else name


def literal_choices(hint: Any) -> list[str]:
    """Return the choices of an annotation that contains a ``Literal``."""
    return [str(c) for m in union_members(hint) if get_origin(m) is Literal for c in get_args(m)]


def flag(name: str) -> str:
    """Return how an option is written on the command line."""
    return f"--{name if '.' in name else name.replace('_', '-')}"


def join_or(choices: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    return " or ".join([*([", ".join(choices[:-1])] if choices[1:] else []), choices[-1]])
