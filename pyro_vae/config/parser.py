"""Settings from YAML files and the command line: one nested mapping, checked, then parsed.

Every source is a *layer*: a mapping of options, nested by group and class. Later layers override
earlier ones; a class that replaces another one starts from its own defaults. A class is written as
its name, as ``{class_path: NAME, init_args: {...}}``, or as ``{class_path: NAME, argument: ...}``;
without a name, the arguments belong to the class selected before. jsonargparse gets the merged
mapping, in which every class is an import path: it converts values and creates objects.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from ..core.documents import load_yaml, read_text
from ..core.validation import as_path
from .classes import ClassType, class_types, describe_denied, is_class_list
from .signatures import REQUIRED, Option, check_value, join_or, literal_choices, union_members

__all__ = ["Layer", "Parser", "load_value", "read_file"]

Layer = dict[str, Any]

#: The value of an option without one.
_NO_VALUE = object()


class Parser:
    """Parser of a set of options.

    Arguments:
        options: the options.
        prog: the command, for messages and the help page.
        description: first paragraph of the help page.
        epilog: last paragraph of the help page.
    """

    def __init__(
        self, options: Sequence[Option], prog: str, description: str = "", epilog: str = ""
    ) -> None:
        self.options = tuple(options)
        self.prog = prog
        self.description = description
        self.epilog = epilog
        self._missing: list[Option] = []

    def parse(self, argv: Sequence[str]) -> Namespace:
        """Return the resolved options of a command line.

        Raises:
            FileNotFoundError: if a YAML file does not exist.
            ValueError: if the arguments are invalid: one sentence with the closest known name.
            SystemExit: after printing the help page, if requested.
        """
        files, given, help_of = self._read(argv)
        layers = self.prepare(files, given)
        self.selected = {o.name: self._select(o, layers) for o in self.options if o.expand}
        named = {name for layer in layers for name in layer}
        self.parser = self._make_parser(named if help_of is None else None)
        if help_of is not None:
            self._print_help(*help_of)
        self._missing = []
        settings = self._merge(self.options, layers)
        if self._missing:
            choices = [(o.name, literal_choices(o.hint)) for o in self._missing]
            texts = [f"{name} to be {join_or(c)}" if c else name for name, c in choices]
            # options with choices come last, so that the sentence is readable
            missing = " and ".join(sorted(texts, key=lambda text: " " in text))
            raise ValueError(f"expected {missing}; got nothing: see `{self.prog} --help`")
        try:
            return self.parser.parse_object(settings)
        except ArgumentError as error:  # a rule of jsonargparse that is not checked above
            raise ValueError(_find_sentence(str(error))) from None

    def instantiate(self, settings: Namespace) -> Namespace:
        """Return resolved options with their objects.

        Raises:
            ValueError: if a class rejects its arguments.
        """
        try:
            return self.parser.instantiate(settings)
        except ValueError as error:
            raise ValueError(_find_sentence(str(error))) from error

    def prepare(self, files: list[Layer], given: list[Layer]) -> list[Layer]:
        """Return the layers to resolve; a subclass may act on them before names are resolved.

        Arguments:
            files: the layers of the YAML files.
            given: the layers of the command line, which override them.
        """
        return [*files, *given]

    def _read(self, argv: Sequence[str]) -> tuple[list[Layer], list[Layer], tuple[str, Any] | None]:
        """Return the layers of the YAML files and of the command line, and the help requested.

        YAML files come first, then options from the outside in, so that their order does not
        matter: a class is selected before its arguments are set.
        """
        files: list[Layer] = []
        given: list[tuple[list[str], Any]] = []
        positional: list[str] = []
        help_of = None
        rest = list(argv)
        while rest:
            token = rest.pop(0)
            if token in ("-h", "--help"):
                help_of = ("", None)
            elif not token.startswith("--"):
                positional.append(token)
            else:
                name, equals, value = token[2:].partition("=")
                name = name.replace("-", "_")
                if not equals:
                    value = self._take_value(name, rest)
                path = [p for p in name.split(".") if p not in ("class_path", "init_args")]
                if path[-1:] == ["help"]:
                    help_of = (".".join(path[:-1]), value)
                    continue
                if path == ["config"] and isinstance(value, str):
                    files += read_file(as_path(value))
                given.append((path, value))
        given.sort(key=lambda item: len(item[0]))
        options = [_nest(path, value) for path, value in given]
        return files, [self._assign(positional), *options], help_of

    def _take_value(self, name: str, rest: list[str]) -> Any:
        """Return the value of an option, removed from the rest of the arguments."""
        is_flag = any(o.name == name and o.hint is bool for o in self.options)
        if is_flag:
            return rest.pop(0) == "true" if rest[:1] in (["true"], ["false"]) else True
        return rest.pop(0) if rest and not rest[0].startswith("--") else _NO_VALUE

    def _assign(self, values: list[str]) -> Layer:
        """Return the positional options."""
        layer: Layer = {}
        for option in self.options:
            if option.repeated:
                layer[option.name], values = values, []
            elif option.positional and values:
                layer[option.name], *values = values
        if values:
            got = " ".join(values)
            raise ValueError(f"expected only options and their values; got unexpected {got!r}")
        return layer

    def _merge(
        self,
        options: Sequence[Option],
        layers: Sequence[Layer],
        prefix: str = "",
        owner: tuple[ClassType, type] | None = None,
    ) -> Layer:
        """Return the options given in the layers, the last of which counts, with class paths."""
        known = [option.name for option in options]
        for name in (n for layer in layers for n in layer):
            if name not in known:
                raise ValueError(self._describe_unknown(name, options, prefix, owner))
        merged: Layer = {}
        for option in options:
            name = f"{prefix}{option.name}"
            values = [layer[option.name] for layer in layers if option.name in layer]
            if option.group:
                inner = [_as_mapping(value, name) for value in values]
                merged[option.name] = self._merge(option.group, inner, f"{name}.")
            elif not values:
                if option.default is REQUIRED:
                    self._missing.append(option._replace(name=name))
                elif option.expand:
                    merged[option.name] = self._merge_class(option, values, name)
            elif is_class_list(option.hint) and not _is_null(option, values[-1]):
                merged[option.name] = self._merge_class_list(option, values, name)
            elif class_types(option.hint) and not is_class_list(option.hint):
                merged[option.name] = self._merge_class(option, values, name)
            elif _takes_mapping(option.hint):
                merged[option.name] = self._check(option, _merge_mappings(values, name), name)
            else:
                merged[option.name] = self._check(option, values[-1], name)
        return merged

    def _check(self, option: Option, value: Any, name: str) -> Any:
        if value is _NO_VALUE:
            if bool not in union_members(option.hint):
                raise ValueError(f"expected a value after {_flag(name)}; got nothing")
            return True
        _check_limits(value)
        if isinstance(value, dict) and option.hint is not Any and not _takes_mapping(option.hint):
            inner = f"{name}.{next(iter(value), '')}"
            raise ValueError(self._describe_unknown(inner, self.options))
        is_null = value is None and option.default is not None
        # jsonargparse takes null for a value that is not set
        if is_null and type(None) not in union_members(option.hint) and option.hint is not Any:
            raise ValueError(f"expected {name} to have a value; got null: leave it out")
        check_value(option.hint, value, name)
        return value

    def _merge_class(self, option: Option, values: Sequence[Any], name: str) -> Any:
        """Return the class selected last, as an import path with the arguments given to it."""
        kind = class_types(option.hint)[0]
        default = option.default if inspect.isclass(option.default) else None
        current, layers, other = default, list[Layer](), None
        for value in values:
            selected, layer = _split_class(value)
            if selected is None and layer is None:
                current, layers, other = None, [], value
                continue
            cls = kind.find(selected, name) if selected is not None else current or kind.only
            if cls is None:
                raise ValueError(
                    f"expected {name} to be a class name, or class_path and init_args; got "
                    f"{value!r}"
                )
            layers = [*(layers if cls is current else ()), layer or {}]
            current = cls
        if current is None:
            return self._merge_other(option, kind, other, name)
        arguments = self._merge(kind.options(current), layers, f"{name}.", (kind, current))
        if option.expand or current is kind.only:
            return arguments
        if default is not None and current is not default:
            # jsonargparse would pass on those of the default class that both have
            common = {o.name for o in kind.options(default)}
            own = {o.name: _plain(o.default) for o in kind.options(current) if o.name in common}
            arguments = {**own, **arguments}
        return {"class_path": kind.path(current), "init_args": arguments}

    def _merge_class_list(self, option: Option, values: Sequence[Any], name: str) -> list[Any]:
        """Return the classes of a list, as import paths with the arguments given to them.

        A class or a list of classes replaces the list before; a mapping of class names to
        arguments, as ``--estimators.Annealing.num_chains 4`` is one, changes or extends it.
        """
        kind = class_types(option.hint)[0]
        chosen: list[tuple[type, list[Layer]]] = []
        for value in values:
            if value is _NO_VALUE:
                raise ValueError(f"expected a value after {_flag(name)}; got nothing")
            content = load_value(value)
            if isinstance(content, dict) and "class_path" not in content:
                for selected, layer in content.items():
                    cls = kind.find(selected, name)
                    layers = next((known for c, known in chosen if c is cls), None)
                    if layers is None:
                        chosen.append((cls, layers := []))
                    inner = {} if layer in (_NO_VALUE, None) else layer
                    layers.append(_as_mapping(inner, f"{name}.{selected}"))
                continue
            chosen = []
            for item in content if isinstance(content, list) else [content]:
                selected, layer = _split_class(item)
                cls = kind.find(item if selected is None else selected, name)
                chosen.append((cls, [layer or {}]))
        return [
            {
                "class_path": kind.path(cls),
                "init_args": self._merge(
                    kind.options(cls), layers, f"{name}.{cls.__name__}.", (kind, cls)
                ),
            }
            for cls, layers in chosen
        ]

    def _merge_other(self, option: Option, kind: ClassType, value: Any, name: str) -> Any:
        """Return the value of a class option that is not a class, such as a list of classes."""
        items = load_value(value)
        lists = [m for m in union_members(option.hint) if get_origin(m) is list]
        if isinstance(items, list) and any(map(class_types, lists)):
            return [self._merge_class(option, [value], name) for value in items]
        return self._check(option, value, name)

    def _select(self, option: Option, layers: Sequence[Layer]) -> type:
        """Return the class selected for an option whose arguments stand beside the others."""
        values = [layer[option.name] for layer in layers if option.name in layer]
        names = [name for value in values if (name := _split_class(value)[0])]
        kind = class_types(option.hint)[0]
        return kind.find(names[-1], option.name) if names else option.default

    def _describe_unknown(
        self,
        name: str,
        options: Sequence[Option],
        prefix: str = "",
        owner: tuple[ClassType, type] | None = None,
    ) -> str:
        """Return the error message for an unknown option, with the one probably meant."""
        message = f"unknown option {_flag(f'{prefix}{name}')}"
        last = name.rpartition(".")[2]
        elsewhere = [
            f"{o.name}.{inner.name}"
            for o in (options if not prefix else ())
            for inner in self._inner_options(o)
            if inner.name == last
        ]
        matches = elsewhere or difflib.get_close_matches(name, [o.name for o in options], n=1)
        if matches:
            return f"{message}; did you mean {_flag(f'{prefix}{matches[0]}')}?"
        if owner is not None:
            kind, cls = owner
            if others := kind.names_with(name):
                return (
                    f"{message}, which {cls.__name__} does not have: set {prefix}class_path to "
                    f"{join_or(others)}"
                )
        return message

    def _inner_options(self, option: Option) -> tuple[Option, ...]:
        """Return the options below the name of another one."""
        kinds = class_types(option.hint)
        cls = self.selected.get(option.name) or (kinds[0].only if kinds else None)
        return kinds[0].options(cls) if cls else option.group

    def _make_parser(self, given: Collection[str] | None = None) -> ArgumentParser:
        """Return the parser of the options.

        Arguments:
            given: names of the options that have values; all if ``None``.
        """
        names = [f"{o.name} ..." if o.repeated else o.name for o in self.options if o.positional]
        usage = " ".join([self.prog, *names, "[--OPTION VALUE ...]"])
        parser = ArgumentParser(
            prog=self.prog,
            usage=usage,
            description=self.description,
            epilog=self.epilog,
            exit_on_error=False,
            formatter_class=_HelpFormatter,
        )
        for option in self.options:
            if option.group or option.expand:
                group = parser.add_argument_group(option.help)
                for inner in self._inner_options(option):
                    _add_option(group, inner, f"{option.name}.")
            else:
                kinds = class_types(option.hint)
                if kinds and kinds[0].only and (given is None or option.name in given):
                    # the arguments of an optional dataclass are options if it is given
                    option = option._replace(hint=kinds[0].only)
                _add_option(parser, option)
        return parser

    def _print_help(self, option: str, name: Any) -> None:
        """Print the help page of all options, or of a class named for an option, and exit."""
        if not option:
            self.parser.print_help()
            raise SystemExit(0)
        found = {o.name: o for o in self.options}
        for outer in self.options:
            found |= {f"{outer.name}.{o.name}": o for o in self._inner_options(outer)}
        kinds = class_types(found[option].hint) if option in found else []
        if not kinds:
            raise ValueError(self._describe_unknown(f"{option}.help", self.options))
        default = found[option].default
        cls = kinds[0].find(name, option) if isinstance(name, str) else kinds[0].only or default
        if found[option].expand or cls is kinds[0].only:
            self.selected[option] = cls
            self._make_parser().print_help()
            raise SystemExit(0)
        self.parser.parse_args([f"--{option}.help", kinds[0].path(cls)])


class _HelpFormatter(DefaultHelpFormatter):
    """Help formatter that shows defaults, without types and import paths."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{**kwargs, "max_help_position": 28})

    def add_argument(self, action: Any) -> None:
        # omit the options of jsonargparse that every class has: its help, and a file
        if not action.dest.endswith(".help") and action.help != "Path to a configuration file.":
            super().add_argument(action)

    def _format_action_invocation(self, action: Any) -> str:
        # omit --OPTION+, which appends to a list
        return super()._format_action_invocation(action).partition(f", --{action.dest}+")[0]

    def _get_help_string(self, action: Any) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)" if action.option_strings else text
        # the default class is shown with the names of the others
        is_class = isinstance(action.default, dict | Namespace)
        has_default = action.default not in (None, "==SUPPRESS==", []) and not is_class
        return f"{text} (default: %(default)s)" if has_default and action.nargs != 0 else text


def _add_option(parser: Any, option: Option, prefix: str = "") -> None:
    """Add an option to a parser or a group of one."""
    if option.positional and not prefix:
        repeated = {"nargs": "*"} if option.repeated else {}
        hint = str if option.repeated else option.hint
        parser.add_argument(option.name, type=hint, help=option.help, **repeated)
        return
    kinds = class_types(option.hint)
    default, text, metavar = option.default, option.help, {}
    if kinds and kinds[0].only is None:
        names = [f"one of {', '.join(kinds[0].names)}"] if kinds[0].is_listed else []
        if inspect.isclass(default) and default is not REQUIRED:
            names.append(f"default: {default.__name__}")
        text, metavar = f"{text} ({'; '.join(names)})" if names else text, {"metavar": "CLASS"}
    if option.hint is bool and default is False and not prefix:
        parser.add_argument(_flag(option.name), action="store_true", help=text)
        return
    required = {"required": True} if default is REQUIRED else {"default": _plain(default)}
    if default is None and inspect.isclass(option.hint):
        required = {}
    name = _flag(f"{prefix}{option.name}")
    parser.add_argument(name, type=option.hint, help=text, **required, **metavar)


def _find_sentence(message: str) -> str:
    """Return our own sentence in a message of jsonargparse, or else the message on one line."""
    if denied := re.search(r"Importing '([^']*)' is not allowed", message):
        return describe_denied("functions and classes", denied[1])
    # of a union, whose types jsonargparse tries in turn
    own = re.search(r"^\s*- (expected .*)$", message, re.MULTILINE)
    return own[1] if own else " ".join(message.split())


def _plain(default: Any) -> Any:
    """Return a default value as jsonargparse expects it."""
    if inspect.isclass(default):
        return {"class_path": f"{default.__module__}.{default.__qualname__}"}
    return list(default) if isinstance(default, tuple) else default


def _flag(name: str) -> str:
    """Return how an option is written on the command line."""
    return f"--{name if '.' in name else name.replace('_', '-')}"


def load_value(value: Any) -> Any:
    """Return a string as the YAML value that it spells; other values are returned unchanged."""
    try:
        return load_yaml(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _is_null(option: Option, value: Any) -> bool:
    """Whether a value is null and the option accepts it."""
    return type(None) in union_members(option.hint) and load_value(value) is None


def _takes_mapping(hint: Any) -> bool:
    """Whether an annotation accepts a mapping whose keys are not options."""
    return any(member is dict or get_origin(member) is dict for member in union_members(hint))


def _merge_mappings(values: Sequence[Any], name: str) -> Any:
    """Return the last value; single keys, as in ``--options.bins 4``, change the mapping before."""
    merged: Any = None
    for value in values:
        if not isinstance(value, dict):
            merged = value if value is _NO_VALUE else load_value(value)
            continue
        for key, item in value.items():
            if item is _NO_VALUE:
                raise ValueError(f"expected a value after {_flag(f'{name}.{key}')}; got nothing")
        before = merged if isinstance(merged, dict) else {}
        merged = before | {key: load_value(item) for key, item in value.items()}
    return merged


def _check_limits(value: Any) -> None:
    """Raise if a string that jsonargparse may read as YAML exceeds a limit of our own loader."""
    if isinstance(value, str):
        load_value(value)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_limits(item)


def _split_class(value: Any) -> tuple[str | None, Layer | None]:
    """Return the class name and the arguments in a value; either may be missing."""
    value = load_value(value)
    if isinstance(value, str):
        return value, None
    if not isinstance(value, dict):
        return None, None
    others = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
    return value.get("class_path"), {**(value.get("init_args") or {}), **others}


def _as_mapping(value: Any, name: str) -> Layer:
    value = load_value(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected {name} to be a mapping of options; got {value!r}")
    return value


def read_file(file: Path) -> list[Layer]:
    """Return the layers of a YAML file: its mapping, then its dotted keys."""
    if not file.is_file():
        raise FileNotFoundError(f"expected a YAML file at {file}; the file does not exist")
    try:
        content = load_yaml(read_text(file))
    except (yaml.YAMLError, ValueError) as error:
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
            dotted.append(_nest(path + parts, inner))
    return plain


def _nest(path: Sequence[str], value: Any) -> Layer:
    """Return a layer with one value."""
    for name in reversed(path):
        value = {name: value}
    return value
