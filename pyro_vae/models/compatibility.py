"""Rules for combining priors and posteriors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..core.components import Space
from ..posteriors import Posterior
from ..priors import Prior

__all__ = ["RULES", "Rule", "check_compatible", "check_unconditional", "find_violation"]


class _Prior(Protocol):
    """Attributes of a prior that the rules use, of a class or an instance."""

    space: Space
    uses_posterior: bool


class _Posterior(Protocol):
    """Attributes of a posterior that the rules use, of a class or an instance."""

    space: Space
    scores_any_value: bool
    self_contained: bool


@dataclass(frozen=True)
class Rule:
    """A condition that a prior and a posterior must satisfy to be combined.

    Attributes:
        holds: predicate of a prior and a posterior, true if they satisfy the rule.
        expected: requirement, as a phrase that follows "expected".
        remedy: suggested fix.
    """

    holds: Callable[[_Prior, _Posterior], bool]
    expected: str
    remedy: str


RULES = (
    Rule(
        lambda prior, posterior: prior.space is posterior.space,
        "a prior and a posterior of latents in the same space",
        "combine UniformSphere with PowerSpherical, and all others with each other",
    ),
    Rule(
        lambda prior, posterior: posterior.scores_any_value or not prior.uses_posterior,
        "a posterior with a density at any z, because the prior is defined by q(z|u)",
        "planar, radial and Sylvester flows have no inverse; use InverseAutoregressiveFlow, "
        "SplineFlow or HouseholderFlow",
    ),
    Rule(
        lambda prior, posterior: posterior.self_contained or not prior.uses_posterior,
        "a posterior that does not depend on the model, because the prior is defined by it",
        "use a prior other than VampPrior, or a posterior other than SemiAmortized",
    ),
)


def find_violation(prior: _Prior, posterior: _Posterior) -> Rule | None:
    """Return the first rule that the pair violates, or ``None`` if it can be combined."""
    return next((rule for rule in RULES if not rule.holds(prior, posterior)), None)


def check_compatible(prior: Prior, posterior: Posterior) -> None:
    """Raise if a prior and a posterior cannot be combined.

    Raises:
        ValueError: if they violate one of :data:`RULES`.
    """
    rule = find_violation(prior, posterior)
    if rule is not None:
        raise ValueError(
            f"expected {rule.expected}; got prior {type(prior).__name__} with posterior "
            f"{type(posterior).__name__}: {rule.remedy}"
        )


def check_unconditional(prior: Prior, posterior: Posterior) -> None:
    """Raise if the posterior needs p(x|z), or the prior q(z|x), without a condition.

    Raises:
        ValueError: if one of them cannot be used in a conditional program.
    """
    if not posterior.self_contained:
        raise ValueError(
            f"expected a posterior that depends on its inputs alone; got "
            f"{type(posterior).__name__}, which needs p(x|z) without a condition: choose another"
        )
    if prior.uses_posterior:
        raise ValueError(
            f"expected a prior that does not depend on the posterior; got "
            f"{type(prior).__name__}, which needs q(z|x) without a condition: choose another"
        )
