"""Settings from YAML files and the command line, resolved by the signatures of their options.

Every source is a *layer*: a mapping of options, nested by group and class. Later layers override
earlier ones; a class that replaces another one starts from its own defaults. A class is written as
its name, as ``{class_path: NAME, init_args: {...}}``, or as ``{class_path: NAME, argument: ...}``;
without a name, the arguments belong to the class selected before.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml

from ..core.validation import did_you_mean
from .classes import ClassType, class_path, class_types, default_class, inner_options
from .help import Section, format_help
from .signatures import (
    REQUIRED,
    Group,
    Option,
    accepts_mapping,
    convert,
    describe_type,
    flag,
    join_or,
    literal_choices,
    union_members,
    yaml_value,
)

__all__ = ["Chosen", "Layer", "Parser", "Settings", "build", "to_plain"]

Layer = dict[str, Any]

#: The value of an option without one, such as a flag.
_NO_VALUE = object()


class Settings(dict[str, Any]):
    """Resolved options, whose values are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Chosen(NamedTuple):
    """A class selected by an option, with its arguments, which are also attributes."""

    cls: type
    init_args: Settings
    #: Whether the value is a factory (the class with these arguments) or an instance.
    is_factory: bool
    #: Whether the class must be named, because it is not the only one or the default.
    is_named: bool = True

    @property
    def class_path(self) -> str:
        return class_path(self.cls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.init_args, name)


def build(value: Any) -> Any:
    """Return the objects described by resolved settings."""
    if isinstance(value, Chosen):
        arguments = build(value.init_args)
        make = partial(value.cls, **arguments) if arguments else value.cls
        return make if value.is_factory else make()
    if isinstance(value, dict):
        return {key: build(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(build, value))
    return value


def to_plain(value: Any, path: Callable[[type], str] = class_path) -> Any:
    """Return resolved settings as plain YAML values.

    Arguments:
        value: the settings.
        path: returns the path by which a class is written.
    """
    if isinstance(value, Chosen):
        arguments = to_plain(value.init_args, path)
        if not value.is_named:
            return arguments
        return {"class_path": path(value.cls)} | ({"init_args": arguments} if arguments else {})
    if isinstance(value, dict):
        return {key: to_plain(inner, path) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner, path) for inner in value]
    return str(value) if isinstance(value, Path) else value


class Parser:
    """Parser of a set of options.

    Arguments:
        options: the options.
        prog: the command, for messages and the help page.
        description: first paragraph of the help page.
        epilog: last paragraph of the help page.
    """

    def __init__(
        self,
        options: Sequence[Option],
        prog: str = "pyro-vae",
        description: str = "",
        epilog: str = "",
    ) -> None:
        self.options = tuple(options)
        self.prog = prog
        self.description = description
        self.epilog = epilog
        self._missing: list[tuple[str, Any]] = []

    def parse(self, argv: Sequence[str]) -> Settings:
        """Return the resolved options of a command line.

        Raises:
            ValueError: if the arguments are invalid: one sentence with the closest known name.
            SystemExit: after printing the help page, if requested.
        """
        return self.resolve(self.read(argv))

    def read(self, argv: Sequence[str]) -> list[Layer]:
        """Return the layers of a command line: YAML files, then options from the outside in.

        The order of options does not matter, except for the same option given twice: that of a
        class is applied before those of its arguments.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file is not YAML, or if a positional argument is unexpected.
            SystemExit: after printing the help page, if requested.
        """
        flags = {option.name for option in self.options if option.is_flag}
        files: list[Layer] = []
        given: list[tuple[list[str], Any]] = []
        positional: list[str] = []
        rest = list(argv)
        while rest:
            token = rest.pop(0)
            if token in ("-h", "--help"):
                given.append((["help"], ""))
                continue
            if not token.startswith("--"):
                positional.append(token)
                continue
            name, equals, value = token[2:].partition("=")
            path = name.replace("-", "_").split(".")
            has_value = rest and not rest[0].startswith("--")
            if not equals:
                is_bare = name.replace("-", "_") in flags and rest[:1] not in (["true"], ["false"])
                value = rest.pop(0) if has_value and not is_bare else _NO_VALUE
            if path == ["config"] and isinstance(value, str):
                files += _read_file(Path(value))
            given.append(([p for p in path if p not in ("class_path", "init_args")], value))
        layers = [*files, *self._assign(positional)]
        layers += [nest(path, value) for path, value in sorted(given, key=lambda g: len(g[0]))]
        for path, value in given:
            if path[-1] == "help":
                self._print_help(path[:-1], value, layers)
                raise SystemExit(0)
        return layers

    def _assign(self, values: list[str]) -> Iterator[Layer]:
        """Yield the positional options."""
        values = list(values)
        for option in self.options:
            if option.repeated:
                yield {option.name: values}
                return
            if option.positional and values:
                yield {option.name: values.pop(0)}
        if values:
            raise ValueError(
                f"expected only options and their values; got unexpected {' '.join(values)!r}"
            )

    def resolve(self, layers: Sequence[Layer]) -> Settings:
        """Return the options with all defaults, checked.

        Raises:
            ValueError: if a name is unknown or a value is missing or has another type.
        """
        self._missing = []
        settings = self._resolve_options(self.options, layers, "")
        if self._missing:
            missing = []
            for name, hint in self._missing:
                choices = literal_choices(hint)
                missing.append(name + (f" to be {join_or(choices)}" if choices else ""))
            # options with choices come last, so that the sentence is readable
            missing.sort(key=lambda text: " " in text)
            raise ValueError(
                f"expected {' and '.join(missing)}; got nothing: see `{self.prog} --help`"
            )
        return settings

    def _resolve_options(
        self, options: Sequence[Option], layers: Sequence[Layer], prefix: str, owner: str = ""
    ) -> Settings:
        known = {option.name for option in options}
        for name in (n for layer in layers for n in layer):
            if name not in known:
                raise ValueError(self._unknown(name, options, prefix, owner))
        resolved = Settings()
        for option in options:
            given = [layer[option.name] for layer in layers if option.name in layer]
            value = self._resolve(option, given, f"{prefix}{option.name}")
            if value is not REQUIRED:
                resolved[option.name] = value
        return resolved

    def _resolve(self, option: Option, given: list[Any], name: str) -> Any:
        """Return the value of one option from those given for it, the last of which counts."""
        if isinstance(option.hint, Group):
            layers = [_as_mapping(value, name) for value in given]
            return self._resolve_options(option.hint.options, layers, f"{name}.")
        if given and given[-1] is _NO_VALUE:
            if bool not in union_members(option.hint):
                raise ValueError(f"expected a value after {flag(name)}; got nothing")
            given = [*given[:-1], True]
        types = class_types(option.hint)
        if types:
            return self._resolve_class(option, types[0], given, name)
        if not given:
            return self._default(option, name)
        if isinstance(given[-1], dict) and not accepts_mapping(option.hint):
            inner = f"{name}.{next(iter(given[-1]), '')}"
            raise ValueError(self._unknown(inner, self.options, "", ""))
        return _convert(option.hint, given[-1], name)

    def _default(self, option: Option, name: str) -> Any:
        if option.default is REQUIRED:
            self._missing.append((name, option.hint))
            return REQUIRED
        try:
            return convert(option.hint, option.default)
        except ValueError:  # a default of another type than annotated
            return option.default

    def _resolve_class(self, option: Option, kind: ClassType, given: list[Any], name: str) -> Any:
        """Return the class selected last, with the arguments given to it."""
        default = default_class(option.default)[0]
        current, is_default = default, True
        layers: list[Layer] = []
        value: Any = REQUIRED
        for v in given:
            selected, layer = split_class(v)
            if selected is None and layer is None:
                current, value, layers = None, self._resolve_other(option, kind, v, name), []
                continue
            if selected is not None:
                cls = kind.find(selected, name)
                if cls is not current:
                    layers = []
                current, is_default = cls, False
            current = current or kind.only
            if current is None:
                raise ValueError(
                    f"expected {name} to be a class name, or class_path and init_args; got {v!r}"
                )
            layers.append(layer or {})
        if current is None:
            return self._default(option, name) if value is REQUIRED else value
        options = inner_options(option, current)
        owner = f"{current.__name__}, the default," if is_default else current.__name__
        arguments = self._resolve_options(options, layers, f"{name}.", owner)
        is_named = current is not kind.only and not (option.expand and current is default)
        return Chosen(current, arguments, kind.inputs is not None, is_named)

    def _resolve_other(self, option: Option, kind: ClassType, value: Any, name: str) -> Any:
        """Return the value of a class option that is not a class, such as a list of classes."""
        value = yaml_value(value)
        lists = [m for m in union_members(option.hint) if get_origin(m) is list]
        if isinstance(value, list) and any(map(class_types, lists)):
            return [
                self._resolve_class(option._replace(default=REQUIRED), kind, [v], name)
                for v in value
            ]
        return _convert(option.hint, value, name)

    def _print_help(self, path: Sequence[str], name: Any, layers: Sequence[Layer]) -> None:
        """Print the help page of all options, or of a class named for the option at ``path``."""
        prefix, options, sections = "", self.options, list[Section]()
        for part in path:
            option = next((o for o in options if o.name == part), None)
            if option is None:
                raise ValueError(self._unknown(part, options, prefix, ""))
            layers = [layer[part] for layer in layers if isinstance(layer, dict) and part in layer]
            cls, prefix = _selected_class(option, layers, f"{prefix}{part}"), f"{prefix}{part}."
            layers = [split_class(value)[1] or {} for value in layers]
            options = inner_options(option, cls)
        if path:
            kinds = class_types(option.hint)
            if kinds and isinstance(name, str):
                cls = kinds[0].find(name, prefix[:-1])
                options = kinds[0].options(cls)
            sections = [Section(f"arguments of {cls.__name__ if cls else part}", prefix, options)]
            print(format_help(f"{self.prog} --{prefix}help", sections))
            return
        plain = [o for o in options if not isinstance(o.hint, Group)]
        sections = [Section("options", "", plain)]
        for o in options:
            if isinstance(o.hint, Group):
                sections.append(Section(o.hint.title or o.name, f"{o.name}.", o.hint.options))
            elif o.is_expanded:
                given = [layer[o.name] for layer in layers if o.name in layer]
                cls = _selected_class(o, given, o.name)
                sections.append(Section(o.help or o.name, f"{o.name}.", inner_options(o, cls)))
        print(format_help(self.prog, sections, self.description, self.epilog))

    def _unknown(self, name: str, options: Sequence[Option], prefix: str, owner: str) -> str:
        """Return the error message for an unknown option."""
        message = f"unknown option {flag(f'{prefix}{name}')}"
        known = [o.name for o in options]
        last = name.rpartition(".")[2]
        elsewhere = [
            f"{o.name}.{inner.name}"
            for o in (options if not prefix else ())
            for inner in inner_options(o)
            if inner.name == last
        ]
        matches = elsewhere or difflib.get_close_matches(name, known, n=1)
        if matches:
            return f"{message}; did you mean {flag(f'{prefix}{matches[0]}')}?"
        if owner.endswith(","):
            arguments = ", ".join(known) or "no arguments"
            return (
                f"{message}: {owner} has {arguments}; to use another class, add {prefix}class_path"
            )
        return message


def _selected_class(option: Option, given: Sequence[Any], name: str) -> type | None:
    """Return the class selected last for an option, if any."""
    names = [split_class(value)[0] for value in given]
    kinds = class_types(option.hint)
    return next((kinds[0].find(n, name) for n in reversed(names) if n), None)


def split_class(value: Any) -> tuple[str | None, Layer | None]:
    """Return the class name and the arguments in a value; either may be missing."""
    value = yaml_value(value)
    if isinstance(value, str):
        return value, None
    if not isinstance(value, dict):
        return None, None
    others = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
    return value.get("class_path"), {**(value.get("init_args") or {}), **others}


def _as_mapping(value: Any, name: str) -> Layer:
    value = yaml_value(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected {name} to be a mapping of options; got {value!r}")
    return value


def _convert(hint: Any, value: Any, name: str) -> Any:
    try:
        return convert(hint, value)
    except ValueError:
        types = describe_type(hint)
        if kinds := class_types(hint):
            types.append("a mapping of options" if kinds[0].only else "the name of a class")
        raise ValueError(
            f"expected {name} to be {join_or(types or [str(hint)])}; got {value!r}"
            f"{did_you_mean(str(value), types)}"
        ) from None


def _read_file(file: Path) -> list[Layer]:
    """Return the layers of a YAML file: its mapping, then its dotted keys."""
    if not file.is_file():
        raise FileNotFoundError(f"expected a YAML file at {file}; the file does not exist")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {file} to be YAML; {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected {file} to have keys such as data and model; got {content!r}")
    dotted: list[Layer] = []
    return [_split_dotted(content, (), dotted), *dotted]


def _split_dotted(tree: Any, path: tuple[str, ...], dotted: list[Layer]) -> Any:
    """Return a mapping without its dotted keys, such as ``prior.components``, added to the list."""
    if not isinstance(tree, dict):
        return tree
    plain = {}
    for key, value in tree.items():
        parts = tuple(str(key).split("."))
        inner = _split_dotted(value, path + parts, dotted)
        if len(parts) == 1:
            plain[parts[0]] = inner
        else:
            dotted.append(nest(path + parts, inner))
    return plain


def nest(path: Sequence[str], value: Any) -> Layer:
    """Return a layer with one value."""
    for name in reversed(path):
        value = {name: value}
    return value
