"""jsonargparse with short class names, a readable help page and one-sentence errors."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    _typehints,
    set_parsing_settings,
)

from ..core.validation import did_you_mean

__all__ = [
    "SUPPRESS",
    "allow_imports",
    "component_names",
    "did_you_mean",
    "import_denied_message",
    "is_importable",
    "make_base_parser",
    "missing_class_message",
    "parse_or_explain",
    "unknown_name_message",
]

AnyParser = TypeVar("AnyParser", bound=ArgumentParser)

#: A class path imports its module, so only these modules and the user's plugins are allowed.
_ALLOWED_MODULES = ["pyro_vae", "torch.nn", "torch.optim"]
#: The torch modules whose classes have short names; other torch modules reuse the same names.
_TORCH_MODULES = (torch.nn, torch.optim, torch.optim.lr_scheduler)
#: Base classes, which the help does not offer as choices.
_BASE_CLASSES = ("LRScheduler", "Module", "Optimizer")
#: The functions of jsonargparse replaced by :func:`_patched_class_rules`.
_PATCHED = ("get_all_subclass_paths", "discard_init_args_on_class_path_change")

_plugins: set[str] = set()


def allow_imports(plugins: Iterable[str]) -> None:
    """Restrict class paths to pyro_vae, ``torch.nn``, ``torch.optim`` and ``plugins``."""
    _plugins.update(plugins)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*_ALLOWED_MODULES, *sorted(_plugins)]
    )


def is_importable(path: str) -> bool:
    """Whether a class path lies in an allowed module."""
    modules = [*_ALLOWED_MODULES, *_plugins]
    return any(path == name or path.startswith(f"{name}.") for name in modules)


def make_base_parser(cls: type[AnyParser] = ArgumentParser, **kwargs: Any) -> AnyParser:
    """Return a parser that rejects abbreviated options, as a typo could match another option."""
    return cls(exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)


def component_names(module: Any) -> list[str]:
    """Return the concrete classes in a module's ``__all__``."""
    public = (getattr(module, name) for name in module.__all__)
    return [c.__name__ for c in public if inspect.isclass(c) and not _is_abstract(c)]


def unknown_name_message(option: str, name: object, known: Sequence[str]) -> str:
    """Return the error message for an unknown short class name."""
    return (
        f"expected {option} to be one of {', '.join(known)}, or a class of a --plugin as "
        f"module.Class; got {name!r}{did_you_mean(str(name), known)}"
    )


def import_denied_message(option: str, path: str) -> str:
    """Return the error message for a class path outside the allowed modules."""
    return (
        f"expected {option} to be a class of {', '.join(_ALLOWED_MODULES)} or a --plugin; got "
        f"{path!r}: to use your own module add --plugin {path.split('.')[0]}"
    )


def missing_class_message(option: str, module: str, name: str) -> str:
    """Return the error message for a class that its module does not define."""
    known = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
    return (
        f"expected {option} to be the path of a class; module {module} has no {name!r}"
        f"{did_you_mean(name, known)}"
    )


def parse_or_explain(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Return ``parser.parse_args(argv)``, with errors rewritten as one plain sentence.

    Raises:
        ValueError: if the arguments are invalid.
    """
    try:
        with _patched_class_rules():
            return parser.parse_args(list(argv))
    except ArgumentError as error:
        raise ValueError(_ErrorExplainer(parser)(str(error))) from None


def _is_abstract(cls: type) -> bool:
    # inspect.isabstract misses abstract methods of classes that do not derive from ABC
    methods = (getattr(cls, name, None) for name in dir(cls))
    return any(getattr(method, "__isabstractmethod__", False) for method in methods)


@contextmanager
def _patched_class_rules() -> Iterator[None]:
    """Change two rules of jsonargparse for class names.

    Short names resolve to classes of pyro_vae, of plugins or of torch's public modules.
    jsonargparse searches all loaded subclasses, so that ``Sigmoid`` is ambiguous (torch has a
    quantised one) and ``MLP`` becomes ambiguous once torchvision is imported.

    A class that replaces another one starts from its own defaults. jsonargparse passes on the
    arguments common to both, so that ``--model.decoder ConvNet`` would get the widths and the
    activation that are the defaults of ``MLP``.
    """
    originals = tuple(getattr(_typehints, name) for name in _PATCHED)
    find_subclasses = originals[0]
    torch_modules = {module.__name__ for module in _TORCH_MODULES}

    def find_public_subclasses(*args: Any, **kwargs: Any) -> list[str]:
        paths = find_subclasses(*args, **kwargs)
        packages = {"pyro_vae", *_plugins}
        return [
            p for p in paths if p.split(".")[0] in packages or p.rpartition(".")[0] in torch_modules
        ]

    def discard_all_init_args(_: Any, before: Any, now: Any) -> None:
        if before and "init_args" in before and before["class_path"] != now["class_path"]:
            before["init_args"] = Namespace()

    replacements = (find_public_subclasses, discard_all_init_args)
    for name, replacement in zip(_PATCHED, replacements, strict=True):
        setattr(_typehints, name, replacement)
    try:
        yield
    finally:
        for name, original in zip(_PATCHED, originals, strict=True):
            setattr(_typehints, name, original)


class _HelpFormatter(DefaultHelpFormatter):
    """Help formatter that shows class names instead of types and import paths."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{**kwargs, "max_help_position": 28})

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._StoreTrueAction):
            return action.help or ""
        if not isinstance(action, _typehints.ActionTypeHint):
            return super()._get_help_string(action)
        subclasses = re.findall(r"(\w+)(?=,|$)", action.extra_help().partition("subclasses: ")[2])
        known = getattr(action, "names", [c for c in subclasses if c not in _BASE_CLASSES])
        details = [f"one of {', '.join(known)}"] if known else []
        if action.required:
            details.append("required")
        elif action.default is not None:
            details.append("default: %(default)s")
        return (action.help or "") + (f" ({'; '.join(details)})" if details else "")

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"\{'class_path': '[\w.]*?(\w+)'\}", r"\1", super()._expand_help(action))
        return text.replace("``", "")


class _ErrorExplainer:
    """Rewrites the parser's messages, which quote types and namespaces, as one sentence."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser

    def __call__(self, message: str) -> str:
        self.message = " ".join(message.split())
        # messages nest: the parser of a class reports its options within those of the class
        self.key = ".".join(re.findall(r'Parser key "([\w.\-]+)"', self.message))
        for pattern, explain in self._RULES.items():
            match = re.search(pattern, self.message)
            if match:
                return explain(self, *match.groups())
        return self.message

    def _unknown_option(self, name: str) -> str:
        options = [o for a in self.parser._actions for o in a.option_strings]
        path = re.search(r"class_path[=\s]'([\w.]+)'", self.message)
        if path:
            module, _, cls = path[1].rpartition(".")
            parameters = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
            return f"unknown option --{name}{did_you_mean(name.rpartition('.')[2], parameters)}"
        return f"unknown option --{name}{did_you_mean(f'--{name}', options)}"

    def _invalid_class_name(self, name: str) -> str:
        known = {n for m in _TORCH_MODULES for n in dir(m) if inspect.isclass(getattr(m, n))}
        action = next((a for a in self.parser._actions if a.dest == self.key), None)
        return (
            f"expected {self.key} to be the name of a class; got {name!r}"
            f"{did_you_mean(name, getattr(action, 'names', known))}"
        )

    def _missing_options(self, missing: str) -> str:
        prefix = f"{self.key}." if self.key else ""
        options = []
        for name in missing.split(", "):
            action = next((a for a in self.parser._actions if a.dest == prefix + name), None)
            choices = _literal_choices(getattr(action, "_typehint", None))
            options.append(f"{prefix}{name}" + (f" to be {_join_or(choices)}" if choices else ""))
        # options with choices come last, so that the sentence is readable
        options.sort(key=lambda option: " " in option)
        return f"expected {' and '.join(options)}; got nothing: see `{self.parser.prog} --help`"

    def _invalid_value(self, value: str) -> str:
        types: list[str] = []
        for cls, literal in re.findall(
            r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", self.message
        ):
            types += (
                re.findall(r"'(.*?)'", literal) if literal else [_TYPE_NAMES.get(cls, f"a {cls}")]
            )
        hint = did_you_mean(value, types)
        return f"expected {self.key} to be {_join_or(types)}; got {value!r}{hint}"

    _RULES: dict[str, Callable[..., str]] = {  # noqa: RUF012 (never modified)
        r"[Uu]nrecognized arguments: --([\w.\-]+)": _unknown_option,
        r"[Uu]nrecognized arguments: (.+)": lambda self, args: (
            f"expected only options and their values; got unexpected {args!r}"
        ),
        r"Group '([\w.]+)' does not accept option '([\w.]+)'": lambda self, group, name: (
            self._unknown_option(f"{group}.{name}")
        ),
        r"Option '([\w.]+)' is not accepted": lambda self, name: self._unknown_option(
            f"{self.key}.{name}" if self.key else name
        ),
        r"Importing '([\w.]+)' is not allowed": lambda self, path: import_denied_message(
            self.key, path
        ),
        r"Expected a dot import path string: (.+?)\.? (?:Got|-|Given|$)": _invalid_class_name,
        r"Expected a dot import path string: (.+?)\.?$": _invalid_class_name,
        r"Expected '([\w.]+)' to be a subclass of <class '(\w+)'>": lambda self, path, base: (
            f"expected {self.key} to be a subclass of {base}; got {path!r}"
        ),
        r"module '([\w.]+)' has no attribute '(\w+)'": lambda self, module, name: (
            missing_class_message(self.key, module, name)
        ),
        r"(?:arguments are|is) required: (.+?)(?: - Expected|$)": _missing_options,
        r"Dict must include a class_path.*? but got (\{.*\})": lambda self, value: (
            f"expected {self.key} to be a class name, or class_path and init_args; got {value}"
        ),
        r"Expected an? (?:<class|typing\.L).*?(?:Got|Given) value: (.*?)(?:\. Got|$)": (
            _invalid_value
        ),
    }


#: Plain names of types for error messages.
_TYPE_NAMES = {
    "NoneType": "null",
    "bool": "true or false",
    "dict": "a mapping of options",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "str": "a string",
    "tuple": "a list",
}


def _literal_choices(typehint: Any) -> list[str]:
    match = re.search(r"Literal\[(.*?)\]", str(typehint))
    return re.findall(r"'(.*?)'", match[1]) if match else []


def _join_or(choices: Sequence[str]) -> str:
    return " or ".join([*([", ".join(choices[:-1])] if choices[1:] else []), choices[-1]])
