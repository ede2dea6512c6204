"""Rules for combining priors and posteriors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..posteriors import Posterior
from ..priors import Prior

__all__ = ["CONDITIONAL_RULES", "RULES", "Rule", "check_compatible", "find_violation"]


@dataclass(frozen=True)
class Rule:
    """A condition that a prior and a posterior, instances or classes, must satisfy together."""

    holds: Callable[[Any, Any], bool]
    #: Requirement, as a phrase that follows "expected".
    expected: str
    #: Suggested fix.
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

#: Rules of programs in which p(x|z) and q(z|x) have a condition, which neither part can pass on.
CONDITIONAL_RULES = (
    Rule(
        lambda prior, posterior: posterior.self_contained,
        "a posterior that depends on its inputs alone",
        "choose another, because p(x|z) has a condition here",
    ),
    Rule(
        lambda prior, posterior: not prior.uses_posterior,
        "a prior that does not depend on the posterior",
        "choose another, because q(z|x) has a condition here",
    ),
    *RULES,
)


def find_violation(
    prior: Prior | type[Prior],
    posterior: Posterior | type[Posterior],
    rules: Sequence[Rule] = RULES,
) -> Rule | None:
    """Return the first rule that the pair violates, or ``None`` if it can be combined."""
    return next((rule for rule in rules if not rule.holds(prior, posterior)), None)


def check_compatible(prior: Prior, posterior: Posterior, rules: Sequence[Rule] = RULES) -> None:
    """Raise a ``ValueError`` if a prior and a posterior violate one of the rules."""
    rule = find_violation(prior, posterior, rules)
    if rule is not None:
        raise ValueError(
            f"expected {rule.expected}; got prior {type(prior).__name__} with posterior "
            f"{type(posterior).__name__}: {rule.remedy}"
        )
