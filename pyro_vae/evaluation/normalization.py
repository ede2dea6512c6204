"""Reports data outside the support of p(x|z), for which no row bounds a probability."""

from __future__ import annotations

from typing import Any

from ..programs.arguments import ProgramInputs
from ..programs.audit import unnormalized_sites
from .bounds import Bounds
from .estimators import Estimator, register

__all__ = ["normalization_settings"]


def normalization_settings(inputs: ProgramInputs) -> dict[str, Any]:
    """Return the settings of bounds on these data: ``unnormalized`` if they have no probability.

    It maps each observed site with values outside its support to the name of its distribution.
    """
    sites = unnormalized_sites(inputs)
    return {"unnormalized": sites} if sites else {}


def _describe(bounds: Bounds) -> str | None:
    sites = bounds.settings.get("unnormalized", {})
    if not sites:
        return None
    names = ", ".join(f"{fn} at site '{name}'" for name, fn in sites.items())
    return (
        f"The data are outside the support of {names}: they have no probability under the model, "
        f"and no row bounds or estimates log p(x)."
    )


register(Estimator(order=1, describe=_describe))
