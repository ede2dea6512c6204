"""Which priors and posteriors combine: the rules, as data, and the table they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..core.components import Space
from ..posteriors import Posterior
from ..priors import Prior

__all__ = ["RULES", "Rule", "broken", "check"]


class _Prior(Protocol):
    """What the rules ask of a prior; its class and its instances can answer."""

    space: Space
    uses_posterior: bool


class _Posterior(Protocol):
    """What the rules ask of a posterior."""

    space: Space
    scores_any_value: bool
    self_contained: bool


@dataclass(frozen=True)
class Rule:
    """One reason why a prior and a posterior may not combine.

    Attributes:
        holds: whether a prior and a posterior keep the rule.
        expected: what it asks for, as a sentence goes on.
        remedy: what to do.
    """

    holds: Callable[[_Prior, _Posterior], bool]
    expected: str
    remedy: str


RULES = (
    Rule(
        lambda prior, posterior: prior.space is posterior.space,
        "a prior and a posterior of latents in the same space",
        "UniformSphere goes with PowerSpherical, and all others with each other",
    ),
    Rule(
        lambda prior, posterior: posterior.scores_any_value or not prior.uses_posterior,
        "a posterior with a density at any z, which a prior made of q(z|u) needs",
        "planar, radial and Sylvester flows have no inverse; InverseAutoregressiveFlow, "
        "SplineFlow and HouseholderFlow have one",
    ),
    Rule(
        lambda prior, posterior: posterior.self_contained or not prior.uses_posterior,
        "a posterior that does not need the model, as the prior here is made of it",
        "choose a prior other than VampPrior, or a posterior that is not refined",
    ),
)


def broken(prior: _Prior, posterior: _Posterior) -> Rule | None:
    """The first rule that the two break, if they do not combine."""
    return next((rule for rule in RULES if not rule.holds(prior, posterior)), None)


def check(prior: Prior, posterior: Posterior) -> None:
    """Refuses a prior and a posterior that do not combine.

    Raises:
        ValueError: in one sentence, with what was expected, what came and what to do.
    """
    rule = broken(prior, posterior)
    if rule is not None:
        raise ValueError(
            f"expected {rule.expected}; got prior {type(prior).__name__} with posterior "
            f"{type(posterior).__name__}: {rule.remedy}"
        )
