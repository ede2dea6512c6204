"""Masks of sites: values that have no density, such as those after the end of a time series."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from .arguments import ProgramInputs
from .base import PLATE, Site, data_dim, is_latent, trace_sites
from .context import inspecting

__all__ = ["effective_mask", "scored_latents", "unscored_values"]


def effective_mask(site: Site) -> Tensor | None:
    """Return the mask of a site: its batch shape, and event dimensions that are masked singly."""
    masks = [(site["mask"], 0)]
    fn, depth = site["fn"], 0
    while not isinstance(fn, TransformedDistribution) and hasattr(fn, "base_dist"):
        if isinstance(fn, Independent):
            depth += fn.reinterpreted_batch_ndims
        masks.append((getattr(fn, "_mask", None), depth))
        fn = fn.base_dist
    given = [(torch.as_tensor(mask), n) for mask, n in masks if mask is not None]
    if not given:
        return None
    shape = site["fn"].batch_shape
    depth = max(n for _, n in given)
    total = torch.tensor(True)
    for mask, n in given:
        full = mask.cpu().expand(torch.broadcast_shapes(mask.shape, (*shape, *(1,) * n)))
        total = total & full.reshape(*full.shape, *(1,) * (depth - n))
    return total


def unscored_values(site: Site) -> Tensor | None:
    """Return which values of a site without particles are masked, with the data dimension first.

    Such a value has no density, neither in the model nor in the guide.

    Returns:
        A mask ``(N, *rest)`` on the device of the value; ``None`` if all values are scored.
    """
    mask = effective_mask(site)
    if mask is None or mask.all():
        return None
    value, event_dim = site["value"], site["fn"].event_dim
    depth = mask.ndim - len(site["fn"].batch_shape)
    full = mask.reshape(*mask.shape, *(1,) * (event_dim - depth)).expand(value.shape)
    return ~full.movedim(value.ndim - event_dim + data_dim(site), 0).to(value.device)


def scored_latents(inputs: ProgramInputs, block: int) -> dict[str, Tensor]:
    """Return which values of the latents of a guide are scored, as masks ``(N, *rest)`` by site.

    A site may exist in some blocks of the data only, such as one at a late time of a time series.
    For the examples of other blocks, it is not scored. Call it in the context
    :func:`~.context.evaluating`; random generators are left unchanged.

    Arguments:
        block: the number of examples per run.
    """
    found: dict[str, list[tuple[slice, Tensor]]] = {}
    with inspecting():
        for rows, (_, guide, x, args, kwargs) in inputs.blocks(block):
            for name, site in trace_sites(guide, x, *args, **kwargs).items():
                frames = {frame.name for frame in site["cond_indep_stack"]}
                if not is_latent(site) or PLATE not in frames:
                    continue
                value, masked = site["value"], unscored_values(site)
                if masked is None:
                    axis = value.ndim - site["fn"].event_dim + data_dim(site)
                    masked = torch.zeros_like(value.movedim(axis, 0), dtype=torch.bool)
                found.setdefault(name, []).append((rows, ~masked))
    result = {}
    for name, parts in found.items():
        shape = parts[0][1].shape[1:]
        result[name] = torch.zeros(len(inputs.x), *shape, dtype=torch.bool, device=inputs.x.device)
        for rows, mask in parts:
            result[name][rows] = mask
    return result
