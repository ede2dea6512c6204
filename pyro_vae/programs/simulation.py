"""Samples of data from a model, which does not observe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..distributions.counts import ConditionedOnTotal
from .base import Site, is_latent, trace_sites
from .sites import DataSites, ObservedSite, SiteNames, data_first, find_data_sites

__all__ = ["check_generates_data", "prior_predictive_sites", "replace_data"]


def prior_predictive_sites(
    model: Callable[..., Any],
    size: int,
    like: Tensor | None,
    args: tuple,
    site: SiteNames | None = None,
    *,
    every_argument: bool = False,
) -> tuple[DataSites, Mapping[str, Site]]:
    """Sample all sites of the model for ``size`` examples, without observing the data.

    Arguments:
        like: data of the right shape, whose values are ignored where a data site observes them;
            without it the model is called as ``model(None, *args, size=size)``.
        site, every_argument: as for :func:`find_data_sites`.

    Returns:
        The data sites, and all sites by name. Other observed sites have their given values.

    Raises:
        ValueError: if the data sites cannot be found, or if the model fails without ``like``.
    """
    if like is not None:
        data, _ = find_data_sites(model, (like, *args), {}, site, every_argument=every_argument)
        sites = trace_sites(model, like, *args)
        given = {name: sites[name]["value"] for name in data.others}
        unconditioned = poutine.uncondition(model)
        trace_sites(unconditioned, like, *args)  # keeps the samples for a seed
        return data, trace_sites(poutine.condition(unconditioned, given), like, *args)
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
    names = [site] if isinstance(site, str) else list(site or matches[:1])
    if not names or not nodes.keys() >= set(names):
        raise ValueError(
            f"expected a model that returns its data, names their site 'x', or has the site that "
            f"site=… names; got a model with the sites {', '.join(map(repr, nodes))}"
        )
    given = [n for n, s in nodes.items() if s["is_observed"] and n not in names]
    return DataSites(*({n: ObservedSite(n) for n in part} for part in (names, given))), nodes


def replace_data(
    data: DataSites, sites: Mapping[str, Site], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a model with the values of the sites that observe them.

    Arguments:
        data: the data sites, which observe different parts of the arguments.
        sites: a run of the model without particles, with the values of these sites.
        args, kwargs: the arguments.
    """
    values = {name: data_first(sites[name], sites[name]["value"]) for name in data.sites}
    flat = {name: value.reshape(len(value), -1) for name, value in values.items()}
    arguments: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
    for key, argument in arguments.items():
        parts = {name: flat[name] for name, site in data.sites.items() if site.argument == key}
        if parts:
            arguments[key] = data.assemble(parts, argument)
    positional = tuple(arguments.pop(position) for position in range(len(args)))
    return positional, {str(name): value for name, value in arguments.items()}


def check_generates_data(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: DataSites,
    sites: Mapping[str, Site],
    others: Mapping[str, Site] | None = None,
) -> None:
    """Check that no distribution of a model depends on the data that it observes.

    They do if a model computes the distribution of a value from previous values in x (teacher
    forcing). Its sites then have the distribution given these values, not p(x | latents). A
    distribution that is conditional on the total of x is known for this, and is allowed.

    Arguments:
        model: the model, called as ``model(*args, **kwargs)``.
        data: its data sites.
        sites: a run of the model.
        others: a run that samples other values of the data sites; by default ``sites``.

    Raises:
        ValueError: if one does.
    """
    unknown = data.no_parts_reason
    if unknown is None:
        args, kwargs = replace_data(data, others or sites, args, kwargs)
    else:
        args = (args[0].roll(1, 0), *args[1:])  # the values of other examples
    latents = {n: site for n, site in sites.items() if is_latent(site) and n not in data.sites}
    values = {name: site["value"] for name, site in latents.items()}
    checked = [*latents, *data.sites]
    try:
        again = trace_sites(poutine.condition(model, data=values), *args, **kwargs)
        changed = [name for name in checked if not _same_density(sites[name], again.get(name))]
    except (RuntimeError, ValueError, IndexError):
        changed = list(data.sites)  # it cannot run on its own samples
    if not changed:
        return
    names = ", ".join(map(repr, changed))
    if unknown:
        raise ValueError(
            f"expected distributions that do not depend on the data that the model observes; got "
            f"a model in which that of {names} changes with x, and {unknown}, so that it is not "
            f"known whether these are covariates or data: observe parts of x (obs=x[:, 0])"
        )
    raise ValueError(
        f"expected distributions that do not depend on the data that the model observes; got a "
        f"model that computes that of {names} from them, e.g. from previous values of x (teacher "
        f"forcing), so that p(x | latents) is unknown"
    )


def _same_density(site: Site, other: Site | None) -> bool:
    """Whether a site has the same density in two runs."""
    if other is None:
        return False
    if isinstance(site["fn"], ConditionedOnTotal):
        return True
    a, b = (run["fn"].log_prob(site["value"]) for run in (site, other))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)
