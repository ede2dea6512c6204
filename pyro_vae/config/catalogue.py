"""The components there are, read off their classes and docstrings: nothing is listed twice."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from .. import likelihoods, models, networks, posteriors, priors
from ..core.validation import did_you_mean
from ..data import Kind
from ..learning import objectives
from ..models.compatibility import RULES, broken
from .jsonargparse_compat import names

__all__ = ["COMBINATIONS", "FAMILIES", "combinations", "describe", "overview"]

#: The kinds of components by the name of their module.
FAMILIES: dict[str, ModuleType] = {
    "priors": priors,
    "likelihoods": likelihoods,
    "posteriors": posteriors,
    "networks": networks,
    "models": models,
    "objectives": objectives,
}
#: What a user asks for to see which of them go together.
COMBINATIONS = "combinations"
#: What a program supplies by itself when it makes a component.
_SUPPLIED = {"self", "latent_dim", "event_shape", "network", "in_shape", "out_shape"}


def overview(family: str | None = None) -> str:
    """Every component of a family, or of all, with a line and the paper for each.

    Raises:
        ValueError: if there is no such family, with the nearest one.
    """
    if family == COMBINATIONS:
        return combinations()
    shown = FAMILIES if family is None else {family: _family(family)}
    blocks = []
    for name, module in shown.items():
        lines = [f"{name}:"]
        for component in names(module):
            doc = inspect.getdoc(getattr(module, component)) or ""
            lines.append(f"  {component:30} {doc.splitlines()[0]}")
            lines += [f"  {'':30} {paper}" for paper in _papers(doc)]
        blocks.append("\n".join(lines))
    if family is None:
        blocks.append(combinations())
    return "\n\n".join(blocks)


def combinations() -> str:
    """Which priors go with which posteriors, and which likelihoods with which data."""
    lines = [f"{COMBINATIONS}:", f"  {'prior':30} posteriors"]
    every = names(posteriors)
    for prior in names(priors):
        fit = [q for q in every if not broken(getattr(priors, prior), getattr(posteriors, q))]
        rest = [q for q in every if q not in fit]
        told = ", ".join(fit) if len(fit) <= len(rest) else f"all but {', '.join(rest)}"
        lines.append(f"  {prior:30} {told if rest else 'all'}")
    lines.append("  SemiAmortized goes with what its family goes with, but not with VampPrior.")
    lines += [f"  Needed: {rule.expected}: {rule.remedy}." for rule in RULES]
    kinds = [str(kind) for kind in Kind]
    lines += ["", f"  {'likelihood':30} {'  '.join(kinds)}"]
    for likelihood in names(likelihoods):
        cls = getattr(likelihoods, likelihood)
        cells = ("yes" if cls.scores(kind) else "–" for kind in Kind)
        row = "  ".join(f"{cell:{len(kind)}}" for cell, kind in zip(cells, kinds, strict=True))
        lines.append(f"  {likelihood:30} {row.rstrip()}")
    lines.append("  Those with an argument `levels` refuse data above it.")
    return "\n".join(lines)


def describe(family: str, component: str) -> str:
    """One component: what it is, and the arguments that a user gives.

    Raises:
        ValueError: if there is no such family or component, with the nearest one.
    """
    module = _family(family)
    known = names(module)
    if component not in known:
        raise ValueError(
            f"expected one of the {family} {', '.join(known)}; got {component!r}"
            f"{did_you_mean(component, known)}"
        )
    cls = getattr(module, component)
    # a program is supplied by nobody but the data
    supplied = getattr(cls, "from_data", _SUPPLIED)
    given = [p for p in inspect.signature(cls).parameters.values() if p.name not in supplied]
    lines = [f"{component}({', '.join(map(_argument, given))})", "", inspect.getdoc(cls) or ""]
    return "\n".join(lines)


def _family(name: str) -> ModuleType:
    if name not in FAMILIES:
        known = [*FAMILIES, COMBINATIONS]
        raise ValueError(
            f"expected one of {', '.join(known)}; got {name!r}{did_you_mean(name, known)}"
        )
    return FAMILIES[name]


def _argument(parameter: inspect.Parameter) -> str:
    default: Any = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={default.__name__ if inspect.isclass(default) else repr(default)}"


def _papers(doc: str) -> list[str]:
    """The references of a docstring's ``References:``, a line for each."""
    _, found, after = doc.partition("References:\n")
    if not found:
        return []
    text = re.sub(r"\s+", " ", inspect.cleandoc("\n" + after).split("\n\n")[0]).strip()
    # a reference ends with its address
    return re.sub(r"(https?://\S+) (?!http)", r"\1\n", text).split("\n")
