"""Contributions of each latent site and dimension to log q − log p, from one run of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...programs.arguments import ProgramInputs
from ...programs.base import Site, data_dim, is_latent, marginal
from ...programs.checks import check_has_latents
from ...programs.chunking import max_chain_pairs
from ...programs.importance_weights import find_block_layout
from ...programs.kl import analytic_kl, site_kl, split_independent, unwrap_independent
from ...programs.particles import Layout, ParticleBatch

__all__ = ["SiteTerm", "SiteTerms", "compute_site_terms", "plan_particles"]

#: Maximum number of elements of the widest tensor in a run.
_MAX_ELEMENTS = 1 << 24
#: Reduction of the number of pairs for the first run, before the tensor widths are known.
_PROBE_REDUCTION = 64


@dataclass(frozen=True)
class SiteTerm:
    """Contribution of one latent site to log q − log p.

    Attributes:
        values: ``(K, N, D)`` if it is a sum over D dimensions, else ``(K, N, 1)``, in nats:
            KL(q ‖ p) given the preceding sites if it has a closed form, else log q − log p of
            the sample.
        per_dimension: whether the last axis is that of the latent dimensions, as opposed to
            their sum.
        closed_form: whether the KL is in closed form.
    """

    values: Tensor
    per_dimension: bool
    closed_form: bool


@dataclass(frozen=True)
class SiteTerms:
    """Terms of K particles for each of N examples.

    Attributes:
        sites: the :class:`SiteTerm` of each latent site, without noise sites.
        log_likelihood: log p(x|z), ``(K, N)``: log p of all other sites, minus log q of those
            that the guide samples.
        log_q: log q of all sites that the guide samples, including noise, ``(K, N)``.
        latents: the values of these sites, each ``(K, N, *event)``.
    """

    sites: Mapping[str, SiteTerm]
    log_likelihood: Tensor
    log_q: Tensor
    latents: Mapping[str, Tensor]

    @property
    def divergence(self) -> Tensor:
        """The sum of the terms of all latent sites, ``(K, N)``."""
        return torch.stack([t.values.sum(2) for t in self.sites.values()]).sum(0)


@torch.no_grad()
def compute_site_terms(program: ProgramInputs, num_samples: int, layout: Layout) -> SiteTerms:
    """Run guide and model with ``num_samples`` particles and return the terms of each site.

    A closed-form KL replaces the mean over a site's own samples. This is valid only if p does
    not condition on a site sampled after it, that is, if all sites that precede it in the model
    also precede it in the guide. Otherwise log q − log p of the sample is used.
    """
    batch = ParticleBatch(num_samples, layout, (program.x, *program.args), program.kwargs)
    guided, modelled = batch.trace_program(program.model, program.guide)
    guided = {name: site for name, site in guided.items() if is_latent(site)}
    names = [
        name
        for name, site in guided.items()
        if name in modelled and not site["infer"].get("is_noise")
    ]
    check_has_latents(names, "their KL divergences")
    log_p, log_q = batch.log_probs(modelled), batch.log_probs(guided)
    zero = next(iter(log_p.values())).new_zeros(batch.shape)
    log_likelihood = sum((v for n, v in log_p.items() if n not in names), zero)
    log_likelihood = log_likelihood - sum((v for n, v in log_q.items() if n not in names), zero)
    ordered = _select_ordered_sites(list(guided), list(modelled))
    sites = {
        name: _compute_term(guided[name], modelled[name], name in ordered, batch)
        or SiteTerm((log_q[name] - log_p[name]).unsqueeze(2), False, False)
        for name in names
    }
    return SiteTerms(
        sites,
        log_likelihood,
        sum(log_q.values(), zero),
        batch.latents(guided),
    )


def _select_ordered_sites(guided: list[str], modelled: list[str]) -> set[str]:
    """Return the sites whose predecessors in the model also precede them in the guide."""
    common = [name for name in modelled if name in guided]
    return {
        name for i, name in enumerate(common) if {*common[:i]} <= {*guided[: guided.index(name)]}
    }


def _compute_term(q: Site, p: Site, is_ordered: bool, batch: ParticleBatch) -> SiteTerm | None:
    """Return the term of a site if it is a sum over dimensions or has a closed form."""
    if marginal(p) is not None:
        return None
    dim, shape = batch.dim, batch.shape
    per_dimension = not any(unwrap_independent(site["fn"]).event_shape for site in (q, p))
    if per_dimension:
        depth = len(q["fn"].event_shape)
        q, p = ({**site, **split_independent(site)} for site in (q, p))
        dim = None if dim is None else dim - depth
    closed_form = analytic_kl(*_expand_to_same_batch(q, p)) if is_ordered else None
    if closed_form is None and not per_dimension:
        return None
    values = site_kl(q, p, analytic=False) if closed_form is None else closed_form
    if dim is None:
        values = values.movedim(data_dim(q), 0).unflatten(0, shape)
    else:
        values = values.movedim((dim, data_dim(q)), (0, 1))
    values = values.reshape(*shape, -1)
    if not per_dimension:
        values = values.sum(2, keepdim=True)
    return SiteTerm(values, per_dimension, closed_form is not None)


def _expand_to_same_batch(*sites: Site) -> Iterator[Site]:
    """Expand the distributions to one batch shape: some of torch's KL formulas do not broadcast."""
    shape = torch.broadcast_shapes(*(site["fn"].batch_shape for site in sites))
    for site in sites:
        is_same = site["fn"].batch_shape == shape
        yield site if is_same else {**site, "fn": site["fn"].expand(shape)}


def plan_particles(inputs: ProgramInputs) -> tuple[Layout, int, int]:
    """Return the particle layout, the maximum number of pairs and the minimum block size.

    The pairs are (sample, example) pairs held in memory at once. The minimum block is the whole
    data set for a guide with parameters per example, which cannot run on a subset.
    """
    pairs = max_chain_pairs(inputs.x)
    block = min(len(inputs.x), max(1, pairs // _PROBE_REDUCTION))
    layout, min_block = find_block_layout(inputs, block)
    return layout, max(1, min(pairs, _MAX_ELEMENTS // layout.width)), min_block
