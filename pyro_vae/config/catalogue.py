"""Component catalogue for ``pyro-vae list``, generated from the classes and their docstrings."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from .. import likelihoods, models, networks, posteriors, priors
from ..core.validation import did_you_mean
from ..data import Kind
from ..learning import objectives
from ..models.compatibility import RULES, find_violation
from .jsonargparse_compat import component_names

__all__ = [
    "COMBINATIONS",
    "COMPONENT_KINDS",
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
}
#: The argument of ``list`` that selects the compatibility tables.
COMBINATIONS = "combinations"
#: Constructor arguments set by the program, not by the user.
_SET_BY_PROGRAM = {"self", "latent_dim", "event_shape", "network", "in_shape", "out_shape"}


def list_components(kind: str | None = None) -> str:
    """List the components of one kind, or of all kinds, each with a summary and its references.

    Raises:
        ValueError: if the kind is unknown; the message suggests the closest one.
    """
    if kind == COMBINATIONS:
        return list_combinations()
    shown = COMPONENT_KINDS if kind is None else {kind: _kind_module(kind)}
    blocks = []
    for name, module in shown.items():
        lines = [f"{name}:"]
        for component in component_names(module):
            doc = inspect.getdoc(getattr(module, component)) or ""
            lines.append(f"  {component:30} {doc.splitlines()[0]}")
            lines += [f"  {'':30} {reference}" for reference in _references(doc)]
        blocks.append("\n".join(lines))
    if kind is None:
        blocks.append(list_combinations())
    return "\n\n".join(blocks)


def list_combinations() -> str:
    """List the posteriors that work with each prior and the data kinds of each likelihood."""
    lines = [f"{COMBINATIONS}:", f"  {'prior':30} posteriors"]
    all_posteriors = component_names(posteriors)
    for name in component_names(priors):
        prior = getattr(priors, name)
        allowed = [q for q in all_posteriors if not find_violation(prior, getattr(posteriors, q))]
        excluded = [q for q in all_posteriors if q not in allowed]
        if not excluded:
            text = "all"
        elif len(allowed) <= len(excluded):
            text = ", ".join(allowed)
        else:
            text = f"all but {', '.join(excluded)}"
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


def describe_component(kind: str, component: str) -> str:
    """Return the signature of a component, without arguments set by the program, and its docstring.

    Raises:
        ValueError: if the kind or the component is unknown; the message suggests the closest
            name.
    """
    module = _kind_module(kind)
    known = component_names(module)
    if component not in known:
        raise ValueError(
            f"expected one of the {kind} {', '.join(known)}; got {component!r}"
            f"{did_you_mean(component, known)}"
        )
    cls = getattr(module, component)
    # programs get some arguments from the data, other components from the program
    hidden = getattr(cls, "from_data", _SET_BY_PROGRAM)
    shown = [p for p in inspect.signature(cls).parameters.values() if p.name not in hidden]
    lines = [
        f"{component}({', '.join(map(_format_parameter, shown))})",
        "",
        inspect.getdoc(cls) or "",
    ]
    return "\n".join(lines)


def _kind_module(name: str) -> ModuleType:
    if name not in COMPONENT_KINDS:
        known = [*COMPONENT_KINDS, COMBINATIONS]
        raise ValueError(
            f"expected one of {', '.join(known)}; got {name!r}{did_you_mean(name, known)}"
        )
    return COMPONENT_KINDS[name]


def _format_parameter(parameter: inspect.Parameter) -> str:
    default: Any = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={default.__name__ if inspect.isclass(default) else repr(default)}"


def _references(doc: str) -> list[str]:
    """Return the entries of the docstring section ``References:``, one line each."""
    _, heading, section = doc.partition("References:\n")
    if not heading:
        return []
    text = re.sub(r"\s+", " ", inspect.cleandoc("\n" + section).split("\n\n")[0]).strip()
    # a reference ends with its URL
    return re.sub(r"(https?://\S+) (?!http)", r"\1\n", text).split("\n")
