"""KL(q ‖ p) of a latent site, as a whole and taken apart into its dimensions."""

from __future__ import annotations

from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from .base import Site

__all__ = ["analytic_kl", "site_kl", "split_independent", "unwrap_independent"]


def unwrap_independent(fn: Distribution) -> Distribution:
    """What ``.to_event()`` wraps; its event has no dimensions if they were independent."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def split_independent(site: Any) -> dict[str, Any]:
    """The entries of a site whose event dimensions are made batch dimensions.

    Arguments:
        site: a sample site whose density is a product over the dimensions of its event.
    """
    depth = len(site["fn"].event_shape)
    frames = (f._replace(dim=f.dim - depth) for f in site["cond_indep_stack"] if f.vectorized)
    wider = {key: _wider(site[key], depth) for key in ("scale", "mask")}
    return {"fn": unwrap_independent(site["fn"]), "cond_indep_stack": tuple(frames), **wider}


def site_kl(q: Site | Any, p: Site | Any, analytic: bool) -> Tensor:
    """KL(q ‖ p) of one site, or its estimate by the draw, of the batch shape of the site.

    Arguments:
        q: the site of the guide.
        p: the site of the model, run on the guide's draw.
        analytic: whether to use the closed form, if there is one.
    """
    closed = analytic_kl(q, p) if analytic else None
    if closed is not None:
        return closed
    log_q, log_p = (scale_and_mask(_log_prob(site), mask=site["mask"]) for site in (q, p))
    return log_q - log_p


def analytic_kl(q: Site | Any, p: Site | Any) -> Tensor | None:
    """KL(q ‖ p) of one site, of its batch shape; ``None`` if torch and Pyro know no formula."""
    try:
        return scale_and_mask(kl_divergence(q["fn"], p["fn"]), mask=q["mask"])
    except NotImplementedError:
        return None


def _wider(value: Any, depth: int) -> Any:
    return value.reshape(*value.shape, *[1] * depth) if isinstance(value, Tensor) else value


def _log_prob(site: Site) -> Tensor:
    if "unscaled_log_prob" in site:
        return site["unscaled_log_prob"]
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
