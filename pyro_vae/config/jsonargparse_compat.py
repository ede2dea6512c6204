"""jsonargparse with short class names, a help page to read, and errors of one sentence."""

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
    "allow",
    "allowed",
    "denied",
    "did_you_mean",
    "lacking",
    "make",
    "names",
    "parse",
    "unknown",
]

Made = TypeVar("Made", bound=ArgumentParser)

#: A class path imports its module, so only these are allowed, and the user's own plugins.
_ALLOWED = ["pyro_vae", "torch.nn", "torch.optim"]
#: The modules of torch whose classes have short names; others hold private twins of them.
_TORCH = (torch.nn, torch.optim, torch.optim.lr_scheduler)

#: Their base classes, which are no choice.
_BASES = ("LRScheduler", "Module", "Optimizer")

#: The functions of jsonargparse that have other rules.
_PATCHED = ("get_all_subclass_paths", "discard_init_args_on_class_path_change")

_plugins: set[str] = set()


def allow(plugins: Iterable[str]) -> None:
    """Lets class paths name ``plugins``, pyro_vae and torch's networks and optimisers alone."""
    _plugins.update(plugins)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*_ALLOWED, *sorted(_plugins)]
    )


def allowed(path: str) -> bool:
    """Whether a class path is one of those."""
    known = [*_ALLOWED, *_plugins]
    return any(path == name or path.startswith(f"{name}.") for name in known)


def make(kind: type[Made] = ArgumentParser, **kwargs: Any) -> Made:
    """A parser without abbreviations, which would turn a typing error into another option."""
    return kind(exit_on_error=False, allow_abbrev=False, formatter_class=_Help, **kwargs)


def names(module: Any) -> list[str]:
    """The classes of a module's ``__all__`` that can be instantiated."""
    public = (getattr(module, name) for name in module.__all__)
    return [c.__name__ for c in public if inspect.isclass(c) and not _abstract(c)]


def unknown(slot: str, name: object, known: Sequence[str]) -> str:
    """The sentence for a short name that there is not."""
    return (
        f"expected {slot} to be one of {', '.join(known)}, or a class of a --plugin as "
        f"module.Class; got {name!r}{did_you_mean(str(name), known)}"
    )


def denied(slot: str, path: str) -> str:
    """The sentence for a class path that is not imported."""
    return (
        f"expected {slot} to name a class of {', '.join(_ALLOWED)} or a --plugin; got {path!r}, "
        f"which is not imported: for your own module add --plugin {path.split('.')[0]}"
    )


def lacking(slot: str, module: str, name: str) -> str:
    """The sentence for a class that a module does not have."""
    known = [n for n in dir(importlib.import_module(module)) if not n.startswith("_")]
    return f"expected {slot} to name a class; module {module} has no {name!r}{did_you_mean(name, known)}"


def parse(made: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """``made.parse_args(argv)``, whose errors are one sentence with the nearest right name.

    Raises:
        ValueError: if the arguments do not parse.
    """
    try:
        with _our_rules():
            return made.parse_args(list(argv))
    except ArgumentError as error:
        raise ValueError(_Explainer(made)(str(error))) from None


def _abstract(cls: type) -> bool:
    # a class outside ABC may mark abstract methods too, and is as useless to a user
    methods = (getattr(cls, name, None) for name in dir(cls))
    return any(getattr(method, "__isabstractmethod__", False) for method in methods)


@contextmanager
def _our_rules() -> Iterator[None]:
    """Makes jsonargparse read classes as a user means them.

    A short name is a class of ours, of a plugin or of torch's public modules. jsonargparse
    takes it for any loaded subclass, so that ``Sigmoid`` is ambiguous (torch has a quantised
    one) and ``MLP`` becomes so once torchvision is imported.

    A class named in the place of another starts with its own defaults. jsonargparse hands it
    the other's arguments where both have them, so that ``--model.decoder ConvNet`` would get
    the widths and the activation that are ``MLP``'s defaults.
    """
    every, keep = (getattr(_typehints, name) for name in _PATCHED)
    torchs = {module.__name__ for module in _TORCH}

    def public(*args: Any, **kwargs: Any) -> list[str]:
        paths = every(*args, **kwargs)
        ours = {"pyro_vae", *_plugins}
        return [p for p in paths if p.split(".")[0] in ours or p.rpartition(".")[0] in torchs]

    def forget(_: Any, before: Any, now: Any) -> None:
        if before and "init_args" in before and before["class_path"] != now["class_path"]:
            before["init_args"] = Namespace()

    for name, ours in zip(_PATCHED, (public, forget), strict=True):
        setattr(_typehints, name, ours)
    try:
        yield
    finally:
        for name, theirs in zip(_PATCHED, (every, keep), strict=True):
            setattr(_typehints, name, theirs)


class _Help(DefaultHelpFormatter):
    """Help that shows class names where jsonargparse shows types and import paths."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{**kwargs, "max_help_position": 28})

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._StoreTrueAction):
            return action.help or ""
        if not isinstance(action, _typehints.ActionTypeHint):
            return super()._get_help_string(action)
        listed = re.findall(r"(\w+)(?=,|$)", action.extra_help().partition("subclasses: ")[2])
        known = getattr(action, "names", [name for name in listed if name not in _BASES])
        details = [f"one of {', '.join(known)}"] if known else []
        if action.required:
            details.append("required")
        elif action.default is not None:
            details.append("default: %(default)s")
        return (action.help or "") + (f" ({'; '.join(details)})" if details else "")

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"\{'class_path': '[\w.]*?(\w+)'\}", r"\1", super()._expand_help(action))
        return text.replace("``", "")


class _Explainer:
    """Turns the parser's messages, which quote types and namespaces, into one sentence."""

    def __init__(self, made: ArgumentParser) -> None:
        self.made = made

    def __call__(self, message: str) -> str:
        self.message = " ".join(message.split())
        # messages nest: a class's own parser reports its option within that of the class
        self.key = ".".join(re.findall(r'Parser key "([\w.\-]+)"', self.message))
        for pattern, explain in self._RULES.items():
            found = re.search(pattern, self.message)
            if found:
                return explain(self, *found.groups())
        return self.message

    def _unknown(self, name: str) -> str:
        options = [o for a in self.made._actions for o in a.option_strings]
        path = re.search(r"class_path[=\s]'([\w.]+)'", self.message)
        if path:
            module, _, cls = path[1].rpartition(".")
            parameters = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
            return f"there is no option --{name}{did_you_mean(name.rpartition('.')[2], parameters)}"
        return f"there is no option --{name}{did_you_mean(f'--{name}', options)}"

    def _no_class(self, name: str) -> str:
        known = {n for m in _TORCH for n in dir(m) if inspect.isclass(getattr(m, n))}
        action = next((a for a in self.made._actions if a.dest == self.key), None)
        return (
            f"expected {self.key} to be the name of a class; got {name!r}"
            f"{did_you_mean(name, getattr(action, 'names', known))}"
        )

    def _required(self, missing: str) -> str:
        prefix = f"{self.key}." if self.key else ""
        told = []
        for name in missing.split(", "):
            action = next((a for a in self.made._actions if a.dest == prefix + name), None)
            choices = _choices(getattr(action, "_typehint", None))
            told.append(f"{prefix}{name}" + (f" to be {_either(choices)}" if choices else ""))
        # one that is explained comes last, so that the sentence reads on
        told.sort(key=lambda words: " " in words)
        return f"expected {' and '.join(told)}; got nothing: see `{self.made.prog} --help`"

    def _value(self, value: str) -> str:
        kinds: list[str] = []
        for cls, literal in re.findall(
            r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", self.message
        ):
            kinds += re.findall(r"'(.*?)'", literal) if literal else [_WORDS.get(cls, f"a {cls}")]
        return (
            f"expected {self.key} to be {_either(kinds)}; got {value!r}{did_you_mean(value, kinds)}"
        )

    _RULES: dict[str, Callable[..., str]] = {  # noqa: RUF012 (a table, never changed)
        r"[Uu]nrecognized arguments: --([\w.\-]+)": _unknown,
        r"[Uu]nrecognized arguments: (.+)": lambda self, words: (
            f"expected options and their values; got {words!r} besides"
        ),
        r"Group '([\w.]+)' does not accept option '([\w.]+)'": lambda self, group, name: (
            self._unknown(f"{group}.{name}")
        ),
        r"Option '([\w.]+)' is not accepted": lambda self, name: self._unknown(
            f"{self.key}.{name}" if self.key else name
        ),
        r"Importing '([\w.]+)' is not allowed": lambda self, path: denied(self.key, path),
        r"Expected a dot import path string: (.+?)\.? (?:Got|-|Given|$)": _no_class,
        r"Expected a dot import path string: (.+?)\.?$": _no_class,
        r"Expected '([\w.]+)' to be a subclass of <class '(\w+)'>": lambda self, path, base: (
            f"expected {self.key} to be a {base}; got {path!r}, which is none"
        ),
        r"module '([\w.]+)' has no attribute '(\w+)'": lambda self, module, name: lacking(
            self.key, module, name
        ),
        r"(?:arguments are|is) required: (.+?)(?: - Expected|$)": _required,
        r"Dict must include a class_path.*? but got (\{.*\})": lambda self, got: (
            f"expected {self.key} to be a class name, or class_path and init_args; got {got}"
        ),
        r"Expected an? (?:<class|typing\.L).*?(?:Got|Given) value: (.*?)(?:\. Got|$)": _value,
    }


#: How a sentence calls a type.
_WORDS = {
    "NoneType": "null",
    "bool": "true or false",
    "dict": "options and their values",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "str": "a text",
    "tuple": "a list",
}


def _choices(typehint: Any) -> list[str]:
    text = re.search(r"Literal\[(.*?)\]", str(typehint))
    return re.findall(r"'(.*?)'", text[1]) if text else []


def _either(words: Sequence[str]) -> str:
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])
