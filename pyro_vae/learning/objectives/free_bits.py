"""Free bits: nats of a latent's KL that cost nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro.poutine import Trace
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import PLATE, Site, sample_sites
from ...programs.kl import site_kl, split_independent, unwrap_independent

__all__ = ["FreeBits", "rescored"]

#: The plate of Pyro's vectorised particles.
_PARTICLES = "num_particles_vectorized"
#: What a trace remembers of a site's density.
_MEMO = ("unscaled_log_prob", "log_prob", "log_prob_sum", "score_parts")


@dataclass(frozen=True)
class FreeBits:
    """λ nats of KL(q ‖ p) that cost nothing, in each group of a latent site's dimensions.

    In place of the KL stands Σ_groups max(λ, KL_group), KL_group being the mean over the
    minibatch and its particles, per datum: while it is below λ nothing pulls the group to the
    prior. Every latent site in the plate ``"data"`` has its own groups; others have none. A
    KL without a closed form is measured by the draws at hand, and its noise with it.

    Arguments:
        nats: λ, at least 0; at 0 nothing is free.
        groups: into how many groups of equal size to part each site's dimensions, in their
            order: 1 takes the site as a whole, and ``None`` each dimension by itself. All but
            1 need a KL that is a sum over the dimensions: independent ones in both p and q.

    Raises:
        ValueError: if ``nats`` is negative or infinite, or ``groups`` is not a positive
            integer; when used, if a site has no such groups.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        appendix C.8. https://arxiv.org/abs/1606.04934
    """

    nats: float
    groups: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.nats, bool) or not 0 <= self.nats < math.inf:
            raise ValueError(f"expected free bits of nats ≥ 0 and finite; got {self.nats!r}")
        if self.groups is not None:
            positive_int("groups", self.groups)

    def apart(self, model: Trace, guide: Trace) -> tuple[Trace, Trace]:
        """The same run, whose latent sites have a term for each dimension where groups need it.

        Raises:
            ValueError: if a site's terms are no sum over its dimensions.
        """
        if self.nats == 0 or self.groups == 1:
            return model, guide
        for name, site in sample_sites(cast("dict[str, Site]", guide.nodes)).items():
            if not (site["is_observed"] or site["fn"].has_rsample):
                raise ValueError(
                    f"expected a guide that is reparameterised for free bits of parts of a site; "
                    f"site {name!r} ({type(site['fn']).__name__}) is not: set their groups to 1"
                )
        names = _latents(model, guide)
        return (
            rescored(model, {name: _apart(name, model.nodes[name]) for name in names}),
            rescored(guide, {name: _apart(name, guide.nodes[name]) for name in names}),
        )

    @torch.no_grad()
    def weights(self, model: Trace, guide: Trace, analytic: bool) -> dict[str, Tensor]:
        """What to multiply a latent site's terms by: 1 where a group's KL is above λ, or 0.

        That is the derivative of max(λ, KL) by KL.

        Arguments:
            model, guide: traces of one run, as :meth:`split_independent` gives them.
            analytic: whether to use the closed forms of the KL that there are.

        Returns:
            By the site's name, a tensor that broadcasts with its log-density.

        Raises:
            ValueError: if the groups do not part a site's dimensions evenly, or if no latent
                site is in the plate ``"data"``.
        """
        if self.nats == 0:
            return {}
        weights = {}
        for name in _latents(model, guide):
            q, p = guide.nodes[name], model.nodes[name]
            kl = site_kl(q, p, analytic)
            frames = cast("Site", q)["cond_indep_stack"]
            mean = kl.mean([f.dim for f in frames if f.name in (PLATE, _PARTICLES)], keepdim=True)
            size = mean.numel()
            count = size if self.groups is None else self.groups
            if size % count:
                raise ValueError(
                    f"expected free bits whose groups divide the {size} dimensions of site "
                    f"{name!r} evenly; got {count}: choose a divisor, or 1 for the whole site"
                )
            above = mean.reshape(count, -1).sum(1, keepdim=True) > self.nats
            weights[name] = above.expand(count, size // count).reshape(mean.shape).to(kl.dtype)
        if not weights:
            raise ValueError(
                f'expected latent sites in the plate "{PLATE}" to give free bits to; got none: '
                f'draw them inside `with pyro.plate("{PLATE}", len(x)):`'
            )
        return weights


def rescored(trace: Trace, changes: Mapping[str, Mapping[str, Any]]) -> Trace:
    """A copy of a trace with some entries of some sites replaced, whose densities are unknown."""
    changed = trace.copy()
    for name, entries in changes.items():
        known = {k: v for k, v in trace.nodes[name].items() if k not in _MEMO}
        changed.nodes[name] = cast("Any", {**known, **entries})
    return changed


def _latents(model: Trace, guide: Trace) -> list[str]:
    """The latent sites of both that are per datum."""
    sites = sample_sites(cast("dict[str, Site]", guide.nodes))
    return [
        name
        for name, site in sites.items()
        if name in model.nodes
        and not site["is_observed"]
        and any(frame.name == PLATE for frame in site["cond_indep_stack"])
    ]


def _apart(name: str, site: Any) -> dict[str, Any]:
    """:func:`~pyro_vae.programs.kl.split_independent`, of a site that can be taken apart."""
    fn = unwrap_independent(site["fn"])
    if fn.event_shape:
        raise ValueError(
            f"expected the KL of site {name!r} to be a sum over its dimensions; the density of "
            f"{type(fn).__name__} is no product of theirs: set the groups of free bits to 1"
        )
    return split_independent(site)
