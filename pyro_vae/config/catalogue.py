"""Component catalogue for ``pyro-vae list``, generated from the classes and their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .. import data, likelihoods, models, networks, posteriors, priors
from ..core.validation import did_you_mean
from ..data import Kind
from ..data.sources import SOURCES
from ..learning import objectives, trackers
from ..models.compatibility import RULES, find_violation
from .classes import component_names
from .signatures import REQUIRED, Option, signature_options

__all__ = [
    "COMBINATIONS",
    "COMPONENT_KINDS",
    "component_options",
    "describe_component",
    "list_combinations",
    "list_components",
]

#: The modules of the component kinds by name.
COMPONENT_KINDS: dict[str, ModuleType] = {
    "priors": priors,
    "likelihoods": likelihoods,
    "posteriors": posteriors,
    "networks": networks,
    "models": models,
    "objectives": objectives,
    "trackers": trackers,
}
#: Constructor arguments set by the program, not by the user.
_SET_BY_PROGRAM = ("latent_dim", "event_shape", "network", "in_shape", "out_shape")
#: The argument of ``list`` that selects the compatibility tables.
COMBINATIONS = "combinations"
#: The argument of ``list`` that selects the named data sets.
DATA = "data"


def list_components(kind: str | None = None) -> str:
    """List the components of one kind, or of all kinds, each with a summary and its references.

    Raises:
        ValueError: if the kind is unknown; the message suggests the closest one.
    """
    if kind is None:
        return "\n\n".join(map(list_components, [DATA, *COMPONENT_KINDS, COMBINATIONS]))
    components = _components(kind)
    if kind == COMBINATIONS:
        return list_combinations()
    lines = [f"{kind}:"]
    for name, component in components.items():
        doc = inspect.getdoc(component) or ""
        lines.append(f"  {name:30} {doc.splitlines()[0].replace('``', '')}")
        lines += [f"  {'':30} {reference}" for reference in _references(doc)]
    if kind == DATA:
        lines += ["  Options, arguments of data.load:"]
        lines += _format_options(signature_options(data.load))
    return "\n".join(lines)


def list_combinations() -> str:
    """List the posteriors that work with each prior and the data kinds of each likelihood."""
    lines = [f"{COMBINATIONS}:", f"  {'prior':30} posteriors"]
    all_posteriors = component_names(posteriors)
    for name in component_names(priors):
        prior = getattr(priors, name)
        excluded = [q for q in all_posteriors if find_violation(prior, getattr(posteriors, q))]
        allowed = [q for q in all_posteriors if q not in excluded]
        text = f"all but {', '.join(excluded)}" if excluded else "all"
        if len(allowed) <= len(excluded):
            text = ", ".join(allowed)
        lines.append(f"  {name:30} {text}")
    lines.append(
        "  SemiAmortized works with the priors of its variational family, except VampPrior."
    )
    lines += [f"  Required: {rule.expected}: {rule.remedy}." for rule in RULES]
    kinds = [str(kind) for kind in Kind]
    lines += ["", f"  {'likelihood':30} {'  '.join(kinds)}"]
    for name in component_names(likelihoods):
        likelihood = getattr(likelihoods, name)
        cells = ("yes" if likelihood.supports(kind) else "–" for kind in Kind)
        row = "  ".join(f"{cell:{len(kind)}}" for cell, kind in zip(cells, kinds, strict=True))
        lines.append(f"  {name:30} {row.rstrip()}")
    lines.append("  Likelihoods with an argument `levels` reject values above it.")
    return "\n".join(lines)


def describe_component(kind: str, name: str) -> str:
    """Return the signature of a component, its docstring and its options.

    Arguments set by the program are omitted.

    Raises:
        ValueError: if the kind or the component is unknown; the message suggests the closest
            name.
    """
    components = _components(kind)
    _check_name(f"one of the {kind}", name, components)
    doc = inspect.getdoc(components[name]) or ""
    if kind == DATA:
        return f"{name}\n\n{doc}"
    options = component_options(components[name])
    # arguments inherited from a base class are explained in its docstring only
    before, _, after = re.sub(r"Arguments:\n(?:[ ].*\n?|\n)*", "\0", doc).partition("\0")
    lines = [f"{name}({', '.join(map(_format_option, options))})", "", before.strip()]
    if options:
        lines += ["", "Arguments:", *_format_options(options)]
    return "\n".join([*lines, *(["", after] if after else [])])


def component_options(component: Any) -> tuple[Option, ...]:
    """Return the arguments of a component that the user sets, not the program or the data."""
    return signature_options(component, skip=getattr(component, "from_data", _SET_BY_PROGRAM))


def _components(kind: str) -> dict[str, Callable[..., Any]]:
    _check_name("one of", kind, [DATA, *COMPONENT_KINDS, COMBINATIONS])
    if kind == DATA:
        return dict(sorted(SOURCES.items()))
    module = COMPONENT_KINDS.get(kind)
    return {name: getattr(module, name) for name in component_names(module)} if module else {}


def _check_name(expected: str, name: str, known: Sequence[str] | dict[str, Any]) -> None:
    if name not in known:
        raise ValueError(
            f"expected {expected} {', '.join(known)}; got {name!r}{did_you_mean(name, known)}"
        )


def _format_option(option: Option) -> str:
    if option.default is REQUIRED:
        return option.name
    default = option.default
    return f"{option.name}={default.__name__ if inspect.isclass(default) else repr(default)}"


def _format_options(options: Sequence[Option]) -> list[str]:
    wrapper = textwrap.TextWrapper(100, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return [wrapper.fill(f"{option.name}: {option.help}") for option in options]


def _references(doc: str) -> list[str]:
    """Return the entries of the docstring section ``References:``, one line each."""
    _, heading, section = doc.partition("References:\n")
    if not heading:
        return []
    text = re.sub(r"\s+", " ", inspect.cleandoc("\n" + section).split("\n\n")[0]).strip()
    # a reference ends with its URL
    return re.sub(r"(https?://\S+) (?!http)", r"\1\n", text).split("\n")
