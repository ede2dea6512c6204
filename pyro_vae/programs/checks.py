"""Checks that the sites of a run define an importance weight of each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, biject_to
from torch.distributions.constraints import Constraint

from ..core.links import see
from .base import (
    PLATE,
    Site,
    data_dim,
    empty_program,
    is_latent,
    marginal,
    sample_sites,
    site_log_prob,
    trace_program,
)
from .enumeration.marks import not_enumerable_reason
from .masks import effective_mask
from .unconstrained import is_circular

__all__ = [
    "check_has_latents",
    "check_latents",
    "check_sites",
    "find_unnormalized",
    "has_point_mass",
]

#: Tolerance of the density of a change of variables, in nats per dimension.
_JACOBIAN_TOLERANCE = 1e-2


def check_sites(guide: Mapping[str, Site], model: Mapping[str, Site], size: int) -> int:
    """Check that the sites of a program define an importance weight of each example.

    Arguments:
        guide, model: the sample sites of one run without particles.
        size: the number N of examples.

    Returns:
        The plate nesting depth of the program.

    Raises:
        ValueError: if a sample site is outside the plate ``"data"``; if the size of the plate is
            not N; if a site has batch dimensions without a plate; or if model and guide do not
            sample the same latent sites.
    """
    for program, sites in (("guide", guide), ("model", model)):
        for name, site in sites.items():
            _check_plate(program, name, site, size)
    _check_match(model, guide)
    frames = [f for m in (guide, model) for s in m.values() for f in s["cond_indep_stack"]]
    nesting = max(-frame.dim for frame in frames if frame.vectorized)
    for program, sites in (("guide", guide), ("model", model)):
        for name, site in sites.items():
            shape = tuple(site["fn"].batch_shape)
            plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
            undeclared = [n for d, n in enumerate(shape, -len(shape)) if n != 1 and d not in plates]
            if undeclared:
                raise ValueError(
                    f"expected a plate for every batch dimension; got site '{name}' of the "
                    f"{program} with batch shape {shape}, whose dimension of size {undeclared[0]} "
                    f"has no plate: make it an event dimension with .to_event(…)"
                )
    return nesting


def check_latents(
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    guide_sites: Mapping[str, Site],
    model_sites: Mapping[str, Site],
) -> None:
    """Check that log p(x, z) − log q(z|x) is a log weight: both score all latents alike.

    A guide may sample u at auxiliary sites and pass z = T(u) on as point masses with the
    log-density −log|det ∂z/∂u|, as Pyro's autoguides do. This is checked on the first example.

    Arguments:
        guide: the guide, called as ``guide(*args, **kwargs)``.
        guide_sites, model_sites: the sample sites of a run without particles.

    Raises:
        ValueError: if model and guide score a latent by different measures (a probability and a
            density), or mask it differently; or if the guide has a point mass at a continuous
            latent, or an auxiliary site without a density in the model, and they are no such change
            of variables.
    """
    guide_sites = {name: site for name, site in guide_sites.items() if is_latent(site)}
    for name in (n for n in guide_sites if n in model_sites):
        _check_measure(name, guide_sites[name], model_sites[name])
        _check_mask(name, guide_sites[name], model_sites[name])
    points = [n for n, s in guide_sites.items() if _is_point_mass(n, s, model_sites)]
    auxiliary = [
        name
        for name, site in guide_sites.items()
        if name not in model_sites and site["infer"].get("is_auxiliary")
    ]
    if not points and not auxiliary:
        return
    if auxiliary and _is_change_of_variables(
        guide, args, kwargs, {n: guide_sites[n] for n in auxiliary}, points, model_sites
    ):
        return
    if points:
        raise ValueError(
            f"expected a guide with a density of every continuous latent; got a point mass (Delta) "
            f"at site {points[0]!r}, so that log p(x, z) − log q(z|x) is no bound on log p(x): "
            f"sample the site from a distribution with a density, e.g. dist.Normal or AutoNormal "
            f"({see('docs/how-to/own-program.md#what-may-a-program-contain')})"
        )
    raise ValueError(
        f"expected a density r({auxiliary[0]} | z, x) of the guide's auxiliary site "
        f"{auxiliary[0]!r} in the model; got none, so that log q counts a variable that log p does "
        f"not: sample the site in the model too, or marginalize it out of the guide"
    )


def check_has_latents(names: Collection[str], use: str) -> None:
    """Raise a ``ValueError`` if a program has no latents, or if all of them are summed out.

    Arguments:
        names: the latent sites.
        use: the computation that needs them, for the message.
    """
    if not names:
        raise ValueError(
            f"expected a program with latents, for {use}; got one without any, or in which all "
            f"are summed out, so that the weight of every sample is p(x): use evaluate"
        )


def find_unnormalized(model: Mapping[str, Site]) -> dict[str, str]:
    """Return the sites of a model without which log p(x) would be defined.

    Returns:
        The reason by site, as a noun phrase: an improper prior, or a distribution that scores
        values outside its support.
    """
    found = {}
    for name, site in model.items():
        fn, mask = site["fn"], effective_mask(site)
        if isinstance(_unwrap(fn), dist.ImproperUniform):
            found[name] = "an improper prior"
        if isinstance(fn, dist.Unit):  # pyro.factor has no values
            continue
        # the support of an event says nothing about single dimensions that are masked
        if is_latent(site) or (mask is not None and mask.ndim > len(fn.batch_shape)):
            continue
        try:
            if marginal(site) is not None and _has_own_bounds(fn.support):
                continue  # they are those of one value of the sites that are summed out
            inside = fn.support.check(site["value"])
        except NotImplementedError:  # a distribution without a support
            continue
        # −inf is right for such a value, and NaN is reported elsewhere
        counted = site_log_prob(site) > -math.inf
        if mask is not None:
            counted = counted & mask.to(counted.device)
        if (counted & ~inside).any():
            found[name] = f"data outside the support of {type(_unwrap(fn)).__name__}"
    return found


def _has_own_bounds(support: Any) -> bool:
    """Whether the bounds of a support differ between examples."""
    return any(
        _has_own_bounds(part) if isinstance(part, Constraint) else bool(getattr(part, "ndim", 0))
        for part in vars(support).values()
    )


def _check_plate(program: str, name: str, site: Site, size: int) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.name == PLATE]
    if not frames:
        raise ValueError(
            f"expected all sample sites inside the plate \"{PLATE}\"; got site '{name}' of the "
            f"{program} outside of it, which is shared by all examples, so that weights per datum "
            f'are undefined: sample it inside `with pyro.plate("{PLATE}", len(x)):` (AutoNormal '
            f"does; pyro.infer.RenyiELBO bounds the joint minibatch); "
            f"{see('docs/how-to/estimators.md#which-programs-have-a-log-px-per-example')}"
        )
    if not frames[0].vectorized or frames[0].size != size:
        got = f"has size {frames[0].size}" if frames[0].vectorized else "is a sequential loop"
        raise ValueError(
            f'expected the plate "{PLATE}" to have the size of the data, {size}; at site '
            f"'{name}' of the {program} it {got}: write `pyro.plate(\"{PLATE}\", len(x))` without "
            f"subsampling"
        )


def check_guide_samples(model: Mapping[str, Site], guide: Collection[str]) -> None:
    """Raise a ``ValueError`` if a guide lacks latents of the model.

    Arguments:
        model: the sample sites of the model, without those that are summed out.
        guide: the names of the sites of the guide.
    """
    missing = sorted(n for n, site in model.items() if is_latent(site) and n not in guide)
    if not missing:
        return
    remedy, fn = "sample the site in the guide too", model[missing[0]]["fn"]
    reason = not_enumerable_reason(fn)
    if reason is None:
        remedy += ', or sum it out by infer={"enumerate": "parallel"} in the model'
    elif _is_discrete(fn):
        remedy += f" (it cannot be summed out: it {reason})"
    raise ValueError(
        f"expected the same latent sites in model and guide; got "
        f"{', '.join(map(repr, missing))} in the model only: {remedy}"
    )


def _check_match(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    latent = {n for n, s in model.items() if is_latent(s)}
    proposed = {
        n
        for n, s in guide.items()
        if is_latent(s) and (n in latent or not s["infer"].get("is_auxiliary"))
    }
    check_guide_samples(model, proposed)
    if names := proposed - latent:
        raise ValueError(
            f"expected the same latent sites in model and guide; got "
            f"{', '.join(map(repr, sorted(names)))} in the guide only: sample the site in the "
            f"model too"
        )
    if latent == set(model):
        raise ValueError(
            "expected a model that observes the data; got no observed site: write "
            "`pyro.sample(…, obs=x)`"
        )


def _check_measure(name: str, q: Site, p: Site) -> None:
    """Raise if one program scores a site by a probability and the other by a density.

    Also if one of the densities is of angles: it has no integral over the values of the other.
    """
    if is_circular(q["fn"]) != is_circular(p["fn"]):
        raise ValueError(
            f"expected the latent {name!r} to be an angle in both programs or in neither; got "
            f"{type(_unwrap(q['fn'])).__name__} in the guide and {type(_unwrap(p['fn'])).__name__} "
            f"in the model: use distributions of angles, such as VonMises, in both"
        )
    kinds = [_is_discrete(site["fn"]) for site in (q, p)]
    if None in kinds or kinds[0] == kinds[1] or has_point_mass(q["fn"]):
        return
    scores = ["a probability" if kind else "a density" for kind in kinds]
    raise ValueError(
        f"expected model and guide to score the latent {name!r} by the same measure; got "
        f"{scores[0]} in the guide ({type(_unwrap(q['fn'])).__name__}) and {scores[1]} in the "
        f"model ({type(_unwrap(p['fn'])).__name__}): use distributions of one kind, e.g. "
        f"OneHotCategoricalStraightThrough in place of a relaxed distribution"
    )


def _check_mask(name: str, q: Site, p: Site) -> None:
    masks = [effective_mask(site) for site in (q, p)]
    if all(mask is None for mask in masks):
        return
    masks = [torch.tensor(True) if mask is None else mask for mask in masks]
    depth = max(mask.ndim for mask in masks)
    same_depth = [mask.reshape(*mask.shape, *(1,) * (depth - mask.ndim)) for mask in masks]
    if not torch.equal(*torch.broadcast_tensors(*same_depth)):
        raise ValueError(
            f"expected the latent {name!r} under the same mask in model and guide; got different "
            f"masks, so that log q counts values that log p does not, or the reverse: sample the "
            f"site under the same `poutine.mask(mask=…)` in both"
        )


def _is_point_mass(name: str, q: Site, model: Mapping[str, Site]) -> bool:
    """Whether a guide has no density at a latent site that is continuous in the model."""
    if not is_latent(q) or not has_point_mass(q["fn"]) or name not in model:
        return False
    fn = model[name]["fn"]
    return not (_is_discrete(fn) or has_point_mass(fn))


@torch.enable_grad()
def _is_change_of_variables(
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    auxiliary: Mapping[str, Site],
    points: Iterable[str],
    model: Mapping[str, Site],
) -> bool:
    """Whether point masses z = T(u) have the log-density −log|det ∂z/∂u| of auxiliary u."""
    if not all(site["value"].is_floating_point() for site in auxiliary.values()):
        return False
    leaves = {n: s["value"].detach().clone().requires_grad_() for n, s in auxiliary.items()}
    draws = {n: {**site, "value": leaves[n]} for n, site in auxiliary.items()}
    sites = sample_sites(trace_program(empty_program, guide, args, kwargs, draws)[0])
    coordinates, log_density = [], torch.tensor(0.0)
    for name in points:
        q, value = sites[name], sites[name]["value"]
        transform = biject_to(model[name]["fn"].support)
        w = transform.inv(value)
        jacobian = transform.log_abs_det_jacobian(w, value)
        total = q["fn"].log_prob(value)
        total = total + jacobian.reshape(*total.shape, -1).sum(-1)
        coordinates.append(_first_example(q, w).reshape(-1))
        log_density = log_density + _first_example(q, total, event_dim=0).sum()
    w = torch.cat(coordinates) if coordinates else torch.empty(0)
    size = sum(_first_example(site, leaves[n]).numel() for n, site in auxiliary.items())
    if len(w) != size or not w.requires_grad:
        return False
    rows = []
    for element in w:
        gradients = torch.autograd.grad(
            element, [*leaves.values()], retain_graph=True, materialize_grads=True
        )
        parts = zip(gradients, auxiliary.values(), strict=True)
        rows.append(torch.cat([_first_example(site, g).reshape(-1) for g, site in parts]))
    error = log_density.detach() + torch.stack(rows).double().slogdet().logabsdet
    return bool(error.abs() <= _JACOBIAN_TOLERANCE * size)


def _first_example(site: Site, value: Any, event_dim: int | None = None) -> Tensor:
    """Select the first example of a tensor, unless all examples share the site."""
    if all(frame.name != PLATE for frame in site["cond_indep_stack"]):
        return value
    depth: int = site["fn"].event_dim if event_dim is None else event_dim
    return value.narrow(value.ndim - depth + data_dim(site), 0, 1)


def _unwrap(fn: Any) -> Distribution:
    """Return the distribution inside ``.to_event()``, ``.expand()`` and ``.mask()``."""
    while not isinstance(fn, TransformedDistribution) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def has_point_mass(fn: Distribution) -> bool:
    """Whether a distribution is, or contains, a point mass."""
    return any(isinstance(part, dist.Delta) for part in _parts(fn))


def _parts(fn: Distribution) -> Iterator[Distribution]:
    yield fn
    for part in vars(fn).values():
        if isinstance(part, Distribution):
            yield from _parts(part)


def _is_discrete(fn: Any) -> bool | None:
    """Whether a distribution has probabilities rather than a density; ``None`` if unknown."""
    try:
        return fn.support.is_discrete
    except NotImplementedError:
        return None
