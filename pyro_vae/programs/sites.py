"""The site of a model that observes the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .base import Site, trace_sites

__all__ = ["find_data_site", "prior_predictive_sites"]


def find_data_site(model: Callable[..., Any], x: Tensor, *args: Any) -> tuple[str, Tensor]:
    """Find the site that observes ``x``, and sample it from the model.

    Returns:
        The name of the site and its sample.

    Raises:
        ValueError: if not exactly one site of the model observes ``x`` unchanged.
    """
    sites = trace_sites(poutine.uncondition(model), x, *args)
    observed = {n: s for n, s in sites.items() if s["infer"].get("was_observed")}
    matches = [n for n, s in observed.items() if _tensors_equal(s["infer"]["obs"], x)]
    if len(matches) != 1:
        raise ValueError(
            f"expected one site of the model to observe x, of shape {tuple(x.shape)}, unchanged; "
            f"got {len(matches)} among {', '.join(map(repr, sorted(observed))) or 'none'}: write "
            f"pyro.sample(…, obs=x)"
        )
    return matches[0], observed[matches[0]]["value"]


def prior_predictive_sites(
    model: Callable[..., Any], size: int, like: Tensor | None, args: tuple
) -> tuple[str, Mapping[str, Site]]:
    """Sample all sites of the model for ``size`` examples, without observing x.

    Arguments:
        like: data of the right shape, whose values are ignored; without it the model is called as
            ``model(None, *args, size=size)``.

    Returns:
        The name of the site of x, and all sites by name.

    Raises:
        ValueError: if the site of x cannot be found, or if the model fails without ``like``.
    """
    if like is not None:
        site, _ = find_data_site(model, like, *args)
        values = {n: s["value"] for n, s in trace_sites(model, like, *args).items()}
        observed = {
            n: values[n]
            for n, s in trace_sites(poutine.uncondition(model), like, *args).items()
            if n != site and s["infer"].get("was_observed")
        }
        return site, trace_sites(
            poutine.condition(poutine.uncondition(model), observed), like, *args
        )
    try:
        trace = poutine.trace(model).get_trace(None, *args, size=size)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a model that runs without data, as model(None, …, size={size}); got an "
            f"error ({error}): pass data of the right shape as like=…"
        ) from error
    output = trace.nodes["_RETURN"].get("value")
    nodes = trace_sites(lambda: poutine.replay(model, trace)(None, *args, size=size))
    matches = [n for n, s in nodes.items() if s["value"] is output]
    matches = matches or [n for n in nodes if n == "x"]
    if not matches:
        raise ValueError(
            f"expected a model that returns its data or names their site 'x'; got a model with "
            f"the sites {', '.join(map(repr, nodes))}"
        )
    return matches[0], nodes


def _tensors_equal(a: Any, b: Tensor) -> bool:
    return a is b or (
        isinstance(a, Tensor)
        and (a.shape, a.dtype) == (b.shape, b.dtype)
        and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    )
