"""Reports data and priors for which log p(x) is undefined, so that no row bounds it."""

from __future__ import annotations

from typing import Any

from ..programs.arguments import ProgramInputs
from ..programs.audit import unnormalized_sites
from .bounds import Bounds
from .table_parts import TablePart, register

__all__ = ["normalization_settings"]


def normalization_settings(inputs: ProgramInputs) -> dict[str, Any]:
    """Return the settings of bounds on these data: ``unnormalized`` if log p(x) is undefined.

    It maps each site that is the cause to the reason.
    """
    sites = unnormalized_sites(inputs)
    return {"unnormalized": sites} if sites else {}


def _describe(bounds: Bounds) -> str | None:
    sites = bounds.settings.get("unnormalized", {})
    if not sites:
        return None
    causes = ", ".join(f"{reason} at site '{name}'" for name, reason in sites.items())
    return f"log p(x) is undefined, and no row bounds or estimates it: {causes}."


register(TablePart(order=1, describe=_describe))
