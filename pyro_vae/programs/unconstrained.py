"""The joint density of a program's latents, in variables that may be any real numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from .base import Site, sample_sites
from .importance_weights import Layout, log_probs_at
from .particles import data_axis, is_latent

__all__ = [
    "Unconstrained",
    "flatten_sites",
    "site_transforms",
    "unconstrained_posterior",
    "unflatten_sites",
]


@dataclass(frozen=True)
class Unconstrained:
    """log p(T(u)) + log|det ∂T/∂u| for variables z = T(u) whose log-density is log p(z).

    Calling it with u, ``(C, N, …)`` for each variable, gives ``(C, N)`` in nats.

    Attributes:
        log_density: log p, of variables z ``(C, N, *event)``, ``(C, N)``.
        transforms: T of each variable; where z may be any real numbers, the identity.
    """

    log_density: Callable[[Mapping[str, Tensor]], Tensor]
    transforms: Mapping[str, Transform]

    def __call__(self, u: Mapping[str, Tensor]) -> Tensor:
        z = self.constrain(u)
        # a trajectory that diverges hands NaN to distributions, which is no error of the user's
        with pyro.validation_enabled(False):
            return self.log_density(z) + self.log_volume(u, z)

    def log_volume(self, u: Mapping[str, Tensor], z: Mapping[str, Tensor]) -> Tensor:
        """log|det ∂T/∂u| of all variables together, where z = T(u), ``(C, N)``."""
        shape = next(iter(u.values())).shape[:2]
        parts = (t.log_abs_det_jacobian(u[name], z[name]) for name, t in self.transforms.items())
        return torch.stack([part.reshape(*shape, -1).sum(2) for part in parts]).sum(0)

    def constrain(self, u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """z = T(u)."""
        return {name: cast(Tensor, t(u[name])) for name, t in self.transforms.items()}

    def inverse(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """u, where T(u) = z."""
        return {name: cast(Tensor, t.inv(z[name])) for name, t in self.transforms.items()}


def unconstrained_posterior(
    model: Callable[..., Any], *args: Any, layout: Layout, **kwargs: Any
) -> Unconstrained:
    """log p(x, z) of a Pyro program as a density of z, that of p(z|x) but for a constant.

    Differentiable by the parameters, too. A module with dropout must be in evaluation mode.

    Arguments:
        model: the Pyro model, called as ``model(*args, **kwargs)``.
        *args: the first is the data, ``(N, …)``.
        layout: the layout of the chains, see :func:`~.importance_weights.inspect`.

    Raises:
        ValueError: as for :func:`site_transforms`.
    """
    transforms = site_transforms(model, *args, **kwargs)

    def log_density(z: Mapping[str, Tensor]) -> Tensor:
        terms = log_probs_at(model, z, *args, layout=layout, **kwargs)
        return torch.stack(tuple(terms.values())).sum(0)

    return Unconstrained(log_density, transforms)


def flatten_sites(u: Mapping[str, Tensor]) -> Tensor:
    """Variables of all sites, ``(C, N, *rest)``, as vectors ``(C, N, D)``."""
    return torch.cat([part.reshape(*part.shape[:2], -1) for part in u.values()], -1)


def unflatten_sites(u: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Vectors ``(C, N, D)`` as variables of sites, ``rest`` of which is given by name."""
    parts = u.split([math.prod(shape) for shape in shapes.values()], -1)
    return {
        name: part.reshape(*u.shape[:2], *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


@torch.no_grad()
def site_transforms(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Transform]:
    """For each latent site the transform of real numbers ``(C, N, …)`` to its support.

    Raises:
        ValueError: if a latent site is discrete, if its support has no such transform (a
            sphere), or if it depends on the values of other sites.
    """
    first, second = (_latents(model, args, kwargs) for _ in range(2))
    if not first:
        raise ValueError("expected a model with latent sites to move; got none")
    transforms = {}
    for name, site in first.items():
        support = _support(site)
        if support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites; site {name!r} "
                f"({type(site['fn']).__name__}) is discrete, and HMC follows gradients: sum it "
                f"out, or judge the program by importance sampling"
            )
        if name not in second or not _equal(support, _support(second[name])):
            raise ValueError(
                f"expected latent sites of fixed support; that of site {name!r} depends on what "
                f"other sites draw: write it as a fixed one, scaled afterwards"
            )
        try:
            transforms[name] = biject_to(_data_first(support, site))
        except NotImplementedError:
            raise ValueError(
                f"expected latent sites that real numbers can be transformed to; the support of "
                f"site {name!r} is {support}, to which there is no such transform: judge the "
                f"program by importance sampling"
            ) from None
    return transforms


def _latents(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Site]:
    drawn = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
    sites = sample_sites(cast("dict[str, Site]", drawn.nodes))
    return {name: site for name, site in sites.items() if is_latent(site)}


def _support(site: Site) -> Constraint:
    support = site["fn"].support
    # a mixture's is that of its components, where that is one for all of them
    if isinstance(support, MixtureSameFamilyConstraint) and not any(
        bound.ndim for bound in _bounds(support)
    ):
        support = support.base_constraint
    return support


def _bounds(support: Constraint) -> Iterator[Tensor]:
    for part in vars(support).values():
        if isinstance(part, Constraint):
            yield from _bounds(part)
        elif isinstance(part, (Tensor, float, int)):
            yield torch.as_tensor(part)


def _equal(one: Constraint, other: Constraint) -> bool:
    pairs = zip(_bounds(one), _bounds(other), strict=True)
    return type(one) is type(other) and all(torch.equal(a, b) for a, b in pairs)


def _data_first(support: Constraint, site: Site) -> Constraint:
    """A site's support, the bounds of which have their data where chains have theirs."""
    if isinstance(support, MixtureSameFamilyConstraint):
        return support
    moved = copy.copy(support)
    for key, part in vars(support).items():
        if isinstance(part, Constraint):
            setattr(moved, key, _data_first(part, site))
        elif isinstance(part, Tensor) and part.ndim:
            value = site["value"]
            full = part.expand(value.shape)
            setattr(moved, key, full.movedim(data_axis(site, value.ndim), 0))
    return moved
