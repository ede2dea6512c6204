"""Free bits: a KL below a threshold is not penalised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro.poutine import Trace
from torch import Tensor

from ...core.validation import positive_int
from ...programs.base import PLATE, Site, sample_sites
from ...programs.kl import site_kl, split_independent, unwrap_independent

__all__ = ["PARTICLE_PLATE", "FreeBits"]

#: Name of the plate of vectorised particles, as in Pyro.
PARTICLE_PLATE = "num_particles_vectorized"
#: Cached log-densities of a trace's site.
_CACHED_ENTRIES = ("unscaled_log_prob", "log_prob", "log_prob_sum", "score_parts")


@dataclass(frozen=True)
class FreeBits:
    """λ free nats of KL(q ‖ p) in each group of latent dimensions.

    Replaces the KL by Σ_groups max(λ, KL_group), where KL_group is the mean per datum over the
    minibatch and its particles. Below λ, nothing pulls the group towards the prior. Every latent
    site in the plate ``"data"`` is divided into groups; other sites are unaffected. A KL without
    a closed form is estimated from the current samples, including their noise.

    Arguments:
        nats: threshold λ ≥ 0; 0 disables free bits.
        groups: number of equal-sized groups of consecutive dimensions per site: 1 for the site as
            a whole, ``None`` for one group per dimension. Values other than 1 require
            independent dimensions in both p and q.

    Raises:
        ValueError: if ``nats`` is negative or infinite, or ``groups`` is not a positive
            integer; at the first step, if a site cannot be divided into these groups.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        appendix C.8. https://arxiv.org/abs/1606.04934
    """

    nats: float
    groups: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.nats, bool) or not 0 <= self.nats < math.inf:
            raise ValueError(f"expected free bits with nats ≥ 0 and finite; got {self.nats!r}")
        if self.groups is not None:
            positive_int("groups", self.groups)

    def split_sites(self, model: Trace, guide: Trace) -> tuple[Trace, Trace]:
        """Return the traces with one log-density per latent dimension, if the groups need it.

        Raises:
            ValueError: if the KL of a site is not a sum over its dimensions.
        """
        if self.nats == 0 or self.groups == 1:
            return model, guide
        for name, site in sample_sites(cast("dict[str, Site]", guide.nodes)).items():
            if not (site["is_observed"] or site["fn"].has_rsample):
                raise ValueError(
                    f"expected a reparameterised guide for free bits with groups; site {name!r} "
                    f"({type(site['fn']).__name__}) is not: set the groups of free bits to 1"
                )
        names = _shared_latents(model, guide)
        model, guide = _split_sites(model, names), _split_sites(guide, names)
        model.compute_log_prob()
        guide.compute_score_parts()
        return model, guide

    @torch.no_grad()
    def weights(self, model: Trace, guide: Trace, analytic: bool) -> dict[str, Tensor]:
        """Return the weights of the latent terms: 1 if the group's KL is above λ, else 0.

        This is the derivative of max(λ, KL) with respect to the KL.

        Arguments:
            model, guide: traces of one run, as returned by :meth:`split_sites`.
            analytic: use the KL in closed form if there is one.

        Returns:
            For each site name, a tensor that broadcasts with the site's log-density.

        Raises:
            ValueError: if the groups do not divide a site's dimensions evenly, or if no latent
                site is in the plate ``"data"``.
        """
        if self.nats == 0:
            return {}
        weights = {}
        for name in _shared_latents(model, guide):
            q, p = guide.nodes[name], model.nodes[name]
            kl = site_kl(q, p, analytic)
            frames = cast("Site", q)["cond_indep_stack"]
            plates = [f.dim for f in frames if f.name in (PLATE, PARTICLE_PLATE)]
            mean = kl.mean(plates, keepdim=True)
            size = mean.numel()
            count = size if self.groups is None else self.groups
            if size % count:
                raise ValueError(
                    f"expected the groups of free bits to divide the {size} dimensions of site "
                    f"{name!r} evenly; got {count}: choose a divisor, or 1 for the whole site"
                )
            above = mean.reshape(count, -1).sum(1, keepdim=True) > self.nats
            weights[name] = above.expand(count, size // count).reshape(mean.shape).to(kl.dtype)
        if not weights:
            raise ValueError(
                f'expected latent sites in the plate "{PLATE}" for free bits; got none: '
                f'sample them inside `with pyro.plate("{PLATE}", len(x)):`'
            )
        return weights


def _shared_latents(model: Trace, guide: Trace) -> list[str]:
    """Return the names of the latent sites in the data plate that both traces contain."""
    sites = sample_sites(cast("dict[str, Site]", guide.nodes))
    return [
        name
        for name, site in sites.items()
        if name in model.nodes
        and not site["is_observed"]
        and any(frame.name == PLATE for frame in site["cond_indep_stack"])
    ]


def _split_sites(trace: Trace, names: list[str]) -> Trace:
    """Return a copy of a trace whose named sites have a log-density per dimension."""
    split = trace.copy()
    for name in names:
        site: Any = trace.nodes[name]
        fn = unwrap_independent(site["fn"])
        if fn.event_shape:
            raise ValueError(
                f"expected the KL of site {name!r} to be a sum over its dimensions; the dimensions "
                f"of {type(fn).__name__} are dependent: set the groups of free bits to 1"
            )
        kept = {k: v for k, v in site.items() if k not in _CACHED_ENTRIES}
        split.nodes[name] = cast("Any", {**kept, **split_independent(site)})
    return split
