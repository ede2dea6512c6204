"""The components there are, read off their classes and docstrings: nothing is listed twice."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from . import likelihoods, networks, posteriors, priors
from ._parsing import names, nearest
from .learning import objectives

__all__ = ["FAMILIES", "describe", "overview"]

#: The kinds of components by the name of their module.
FAMILIES: dict[str, ModuleType] = {
    "priors": priors,
    "likelihoods": likelihoods,
    "posteriors": posteriors,
    "networks": networks,
    "objectives": objectives,
}
#: What a program supplies by itself when it makes a component.
_SUPPLIED = {"self", "latent_dim", "event_shape", "network", "in_shape", "out_shape"}


def overview(family: str | None = None) -> str:
    """Every component of a family, or of all, with a line and the paper for each.

    Raises:
        ValueError: if there is no such family, with the nearest one.
    """
    shown = FAMILIES if family is None else {family: _family(family)}
    blocks = []
    for name, module in shown.items():
        lines = [f"{name}:"]
        for component in names(module):
            doc = inspect.getdoc(getattr(module, component)) or ""
            lines.append(f"  {component:28} {doc.splitlines()[0]}")
            lines += [f"  {'':28} {paper}" for paper in _papers(doc)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


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
            f"{nearest(component, known)}"
        )
    cls = getattr(module, component)
    given = [p for p in inspect.signature(cls).parameters.values() if p.name not in _SUPPLIED]
    lines = [f"{component}({', '.join(map(_argument, given))})", "", inspect.getdoc(cls) or ""]
    return "\n".join(lines)


def _family(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise ValueError(
            f"expected one of {', '.join(FAMILIES)}; got {name!r}{nearest(name, FAMILIES)}"
        )
    return FAMILIES[name]


def _argument(parameter: inspect.Parameter) -> str:
    default: Any = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={default.__name__ if inspect.isclass(default) else repr(default)}"


def _papers(doc: str) -> list[str]:
    """The lines of a docstring's ``References:``, each reference joined."""
    _, found, after = doc.partition("References:\n")
    if not found:
        return []
    text = re.sub(r"\s+", " ", inspect.cleandoc("\n" + after).split("\n\n")[0]).strip()
    return [text]
