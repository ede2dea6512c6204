"""KL(q ‖ p) of a latent site, in total or per dimension."""

from __future__ import annotations

from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from .base import Site, marginal, site_log_prob

__all__ = ["analytic_kl", "site_kl", "split_independent", "unwrap_independent"]


def unwrap_independent(fn: Distribution) -> Distribution:
    """Return the base distribution of ``.to_event()``; scalar events if it is fully factorised."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def split_independent(site: Any) -> dict[str, Any]:
    """Return the entries of a site that change if its event dimensions become batch dimensions.

    Its density must factorise over its event dimensions.
    """
    depth = len(site["fn"].event_shape)
    frames = (f._replace(dim=f.dim - depth) for f in site["cond_indep_stack"] if f.vectorized)
    expanded = {key: _append_dims(site[key], depth) for key in ("scale", "mask")}
    return {"fn": unwrap_independent(site["fn"]), "cond_indep_stack": tuple(frames), **expanded}


def site_kl(q: Site | Any, p: Site | Any, analytic: bool) -> Tensor:
    """Return KL(q ‖ p) of one site, or its single-sample estimate, with the site's batch shape.

    The site p of the model is replayed on the guide's draw; ``analytic`` selects the closed form,
    if available.
    """
    exact = analytic_kl(q, p) if analytic else None
    return _log_prob(q) - _log_prob(p) if exact is None else exact


def analytic_kl(q: Site | Any, p: Site | Any) -> Tensor | None:
    """Return KL(q ‖ p) of one site in closed form, with its batch shape; ``None`` if unknown."""
    if marginal(p) is not None:
        return None  # the distribution is that given a draw of the sites that are summed out
    try:
        return scale_and_mask(kl_divergence(q["fn"], p["fn"]), mask=q["mask"])
    except NotImplementedError:
        return None


def _append_dims(value: Any, depth: int) -> Any:
    return value.reshape(*value.shape, *[1] * depth) if isinstance(value, Tensor) else value


def _log_prob(site: Site) -> Tensor:
    if "unscaled_log_prob" in site:  # computed by Pyro
        return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    return site_log_prob(site)
