"""The sites of one run of a Pyro program, and which of them observes the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .base import Site, sample_sites

__all__ = ["find_site", "latent_sites", "trace_sites"]


def trace_sites(program: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The sample sites of one run, by name."""
    trace = prune_subsample_sites(poutine.trace(program).get_trace(*args, **kwargs))
    return sample_sites(cast("dict[str, Site]", trace.nodes))


def find_site(model: Callable[..., Any], x: Tensor, *args: Any) -> tuple[str, Tensor]:
    """The name of the site that observes ``x``, and a draw of it from the model.

    Raises:
        ValueError: if no site of the model, or more than one, observes ``x`` as it is.
    """
    sites = trace_sites(poutine.uncondition(model), x, *args)
    seen = {n: s for n, s in sites.items() if s["infer"].get("was_observed")}
    found = [n for n, s in seen.items() if _equal(s["infer"]["obs"], x)]
    if len(found) != 1:
        raise ValueError(
            f"expected one site of the model to observe x, of shape {tuple(x.shape)}, as it is; "
            f"got {len(found)} among {', '.join(map(repr, sorted(seen))) or 'none'}: write "
            f"pyro.sample(…, obs=x)"
        )
    return found[0], seen[found[0]]["value"]


def latent_sites(
    model: Callable[..., Any], size: int, like: Tensor | None, args: tuple
) -> tuple[str, Mapping[str, Site]]:
    """The name of the site of x, and all sites, of a run of the model that observes no x.

    Arguments:
        model: the model.
        size: how many data to make.
        like: data of their shape, whose values are not looked at; without them the model is
            called as ``model(None, *args, size=size)``.
        args: further arguments of the model.

    Raises:
        ValueError: if the site of x is not to be found, or a model without ``like`` does not run.
    """
    if like is not None:
        site, _ = find_site(model, like, *args)
        others = {n: s["value"] for n, s in trace_sites(model, like, *args).items()}
        seen = {
            n: others[n]
            for n, s in trace_sites(poutine.uncondition(model), like, *args).items()
            if n != site and s["infer"].get("was_observed")
        }
        return site, trace_sites(poutine.condition(poutine.uncondition(model), seen), like, *args)
    try:
        trace = poutine.trace(model).get_trace(None, *args, size=size)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a model that runs without data, as model(None, …, size={size}): {error}: "
            f"give data of the right shape as like=…"
        ) from error
    made = trace.nodes["_RETURN"].get("value")
    nodes = trace_sites(lambda: poutine.replay(model, trace)(None, *args, size=size))
    found = [n for n, s in nodes.items() if s["value"] is made] or [n for n in nodes if n == "x"]
    if not found:
        raise ValueError(
            f"expected the model to return the data that it makes, or to call their site 'x'; its "
            f"sites are {', '.join(map(repr, nodes))}"
        )
    return found[0], nodes


def _equal(a: Any, b: Tensor) -> bool:
    return a is b or (
        isinstance(a, Tensor)
        and (a.shape, a.dtype) == (b.shape, b.dtype)
        and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    )
