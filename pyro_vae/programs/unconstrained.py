"""Densities of a program's latents in unconstrained space."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed
from torch import Tensor
from torch.distributions import (
    Distribution,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
    identity_transform,
)
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from .base import Site, is_latent, trace_sites
from .masks import unscored_values
from .particles import Layout, data_axis, log_probs_at, total_log_prob

__all__ = [
    "CircularTransform",
    "MaskedTransform",
    "UnconstrainedDensity",
    "check_not_circular",
    "flatten_sites",
    "is_circular",
    "site_transforms",
    "unconstrained_posterior",
    "unflatten_sites",
]


@dataclass(frozen=True)
class UnconstrainedDensity:
    """Log-density log p(T(u)) + log|det ∂T/∂u| of unconstrained variables u, where z = T(u).

    Calling it with u, ``(C, N, …)`` for each variable, returns ``(C, N)`` in nats.

    Attributes:
        log_density: maps the variables z, ``(C, N, *event)``, to log p(z), ``(C, N)``.
        transforms: the transform T of each variable; the identity for a real support.
    """

    log_density: Callable[[Mapping[str, Tensor]], Tensor]
    transforms: Mapping[str, Transform]

    def __call__(self, u: Mapping[str, Tensor]) -> Tensor:
        z = self.constrain(u)
        # a divergent trajectory passes NaN to distributions, which is not an error of the user
        with pyro.validation_enabled(False):
            return self.log_density(z) + self.log_abs_det_jacobian(u, z)

    def log_abs_det_jacobian(self, u: Mapping[str, Tensor], z: Mapping[str, Tensor]) -> Tensor:
        """Return log|det ∂T/∂u| of all variables together at z = T(u), ``(C, N)``."""
        shape = next(iter(u.values())).shape[:2]
        parts = (t.log_abs_det_jacobian(u[name], z[name]) for name, t in self.transforms.items())
        return torch.stack([part.reshape(*shape, -1).sum(2) for part in parts]).sum(0)

    def constrain(self, u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return z = T(u)."""
        return {name: cast(Tensor, t(u[name])) for name, t in self.transforms.items()}

    def inverse(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return u = T⁻¹(z)."""
        return {name: cast(Tensor, t.inv(z[name])) for name, t in self.transforms.items()}

    def inverse_samples(self, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return u = T⁻¹(z) of samples of a program, with new samples of masked values."""
        u = self.inverse({name: z[name] for name in self.transforms})
        for name, transform in self.transforms.items():
            if isinstance(transform, MaskedTransform):
                u[name] = transform.sample_masked(u[name])
        return u

    def with_masked_sites(
        self, shapes: Mapping[str, tuple[int, ...]], size: int
    ) -> tuple[UnconstrainedDensity, dict[str, tuple[int, ...]]]:
        """Add sites whose values are all masked.

        Arguments:
            shapes: the shape of each site per example, in the order of the result.
            size: the number N of examples.

        Returns:
            The density, and the shapes of the sites that it did not have.
        """
        added = {n: shape for n, shape in shapes.items() if n not in self.transforms}
        if not added:
            return self, {}
        masks = {n: torch.ones(size, *shape, dtype=torch.bool) for n, shape in added.items()}
        transforms = {
            name: MaskedTransform(identity_transform, masks[name])
            if name in masks
            else self.transforms[name]
            for name in shapes
        }
        return UnconstrainedDensity(self.log_density, transforms), added


class CircularTransform(Transform):
    """Map real numbers to angles in [−π, π), those of torch's ``VonMises``.

    A density of angles is periodic on the real line: it can be moved along, but not integrated.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


class MaskedTransform(Transform):
    """Transform of a site of which some values are masked, so that they have no density.

    In unconstrained space these values are independent of all others and standard normal: the
    logarithm of this density takes the place of their log|det ∂T/∂u|. The integral of a density
    is then that over all other values, as if the masked ones were left out.

    Arguments:
        base: the transform of all values.
        masked: the mask of the masked values in unconstrained space, ``(N, …)``.
    """

    bijective = True

    def __init__(self, base: Transform, masked: Tensor) -> None:
        super().__init__()
        self.base, self.masked = base, masked

    @property
    def domain(self) -> Any:
        return self.base.domain

    @property
    def codomain(self) -> Any:
        return self.base.codomain

    def _call(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.base(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.base.inv(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum over all values of each particle and example, ``(C, N)``."""
        jacobian = self.base.log_abs_det_jacobian(x, y)
        masked = self.masked
        while masked.ndim >= jacobian.ndim:
            masked = masked[..., 0]  # the same for all values of an event
        normal = -(x.square() + math.log(2 * math.pi)) / 2
        parts = torch.where(masked, 0.0, jacobian), torch.where(self.masked, normal, 0.0)
        return torch.stack([part.reshape(*x.shape[:2], -1).sum(2) for part in parts]).sum(0)

    def sample_masked(self, x: Tensor) -> Tensor:
        """Replace the masked values by samples of their density."""
        return torch.where(self.masked, torch.randn_like(x), x)


def is_circular(fn: Distribution) -> bool:
    """Whether a distribution is one of angles, with a density of period 2π.

    torch and Pyro state the support of such a distribution as the real line.
    """
    if isinstance(fn, (VonMises, SineBivariateVonMises, SineSkewed)):
        return True
    if isinstance(fn, MixtureSameFamily):
        return is_circular(fn.component_distribution)
    base = getattr(fn, "base_dist", None)
    return (
        not isinstance(fn, TransformedDistribution)
        and isinstance(base, Distribution)
        and is_circular(base)
    )


def check_not_circular(transforms: Mapping[str, Transform], use: str) -> None:
    """Check that densities on the real line can be fitted to all sites.

    Arguments:
        transforms: the transform of each site, from :func:`site_transforms`.
        use: the computation that needs them, for the message.

    Raises:
        ValueError: if a site is an angle, whose density has no integral on the real line.
    """
    for name, transform in transforms.items():
        base = transform.base if isinstance(transform, MaskedTransform) else transform
        if isinstance(base, CircularTransform):
            raise ValueError(
                f"expected latents on the real line for {use}; got angles at site {name!r}: use "
                f"evaluate or ais with a guide of angles, such as VonMises"
            )


def unconstrained_posterior(
    model: Callable[..., Any], *args: Any, layout: Layout, **kwargs: Any
) -> UnconstrainedDensity:
    """Return log p(x, z), the unnormalised posterior, as a density in unconstrained space.

    Also differentiable with respect to the parameters. Modules with dropout must be in evaluation
    mode.

    Arguments:
        model: the Pyro model, called as ``model(*args, **kwargs)``.
        *args: the first is the data, ``(N, …)``.
        layout: layout of the chains.

    Raises:
        ValueError: as for :func:`site_transforms`.
    """
    transforms = site_transforms(model, *args, **kwargs)

    def log_density(z: Mapping[str, Tensor]) -> Tensor:
        return total_log_prob(log_probs_at(model, z, *args, layout=layout, **kwargs))

    return UnconstrainedDensity(log_density, transforms)


def flatten_sites(u: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the variables of all sites, ``(C, N, …)``, to vectors ``(C, N, D)``."""
    return torch.cat([part.reshape(*part.shape[:2], -1) for part in u.values()], -1)


def unflatten_sites(u: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Split vectors ``(C, N, D)`` into variables ``(C, N, *shape)``; see :func:`flatten_sites`."""
    parts = u.split([math.prod(shape) for shape in shapes.values()], -1)
    return {
        name: part.reshape(*u.shape[:2], *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


@torch.no_grad()
def site_transforms(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Transform]:
    """Return the transform of each latent site from unconstrained space ``(C, N, …)``.

    That of angles is a :class:`CircularTransform`, and that of a site with masked values a
    :class:`MaskedTransform`.

    Raises:
        ValueError: if a latent site is discrete, if its support has no such transform (a
            sphere), or if its support or its mask depends on other sites.
    """
    runs = [trace_sites(model, *args, **kwargs).items() for _ in range(2)]
    first, second = ({name: site for name, site in run if is_latent(site)} for run in runs)
    if not first:
        raise ValueError(
            "expected a model with latent sites; got one without any, or in which all are summed "
            "out, so that the weight of every sample is p(x): use evaluate"
        )
    transforms = {}
    for name, site in first.items():
        support = _support(site)
        if support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites; got site {name!r} "
                f"({type(site['fn']).__name__}), which is discrete and has no gradient for HMC: "
                f"use importance sampling, or let evaluations sum it out: leave it out of the "
                f'guide, and mark it with infer={{"enumerate": "parallel"}} in the model'
            )
        if name not in second or not _constraints_equal(support, _support(second[name])):
            raise ValueError(
                f"expected latent sites of fixed support; got site {name!r}, whose support depends "
                f"on other sites: sample from a fixed support and rescale the value"
            )
        masks = [unscored_values(run[name]) for run in (first, second)]
        if not _masks_equal(*masks):
            raise ValueError(
                f"expected latent sites under a fixed mask; got site {name!r}, whose mask depends "
                f"on other sites: evaluate the program by importance sampling"
            )
        try:
            transform = (
                CircularTransform()
                if is_circular(site["fn"])
                else biject_to(_data_first(support, site))
            )
            transforms[name] = _mask_transform(name, transform, support, masks[0])
        except NotImplementedError:
            raise ValueError(
                f"expected latent sites with a transform from unconstrained space; got site "
                f"{name!r} with support {support}, which has none: evaluate the program by "
                f"importance sampling"
            ) from None
    return transforms


def _masks_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _mask_transform(
    name: str, transform: Transform, support: Constraint, masked: Tensor | None
) -> Transform:
    """Return a transform for a site with masked values, whose mask is ``(N, *rest)``."""
    if masked is None:
        return transform
    depth = support.event_dim
    if depth:
        first = masked[(..., *(slice(1),) * depth)]
        shape = transform.inverse_shape(masked.shape)
        if torch.equal(first.expand_as(masked), masked):
            masked = first.expand(shape)
        elif not _is_real(support):
            raise ValueError(
                f"expected a mask of whole samples at the latent site {name!r}, whose values are "
                f"not real; got one of single dimensions: move the mask outside of .to_event(…)"
            )
    return MaskedTransform(transform, masked)


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return type(support) is type(constraints.real)


def _support(site: Site) -> Constraint:
    support = site["fn"].support
    # a mixture has the support of its components if they share one
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


def _constraints_equal(a: Constraint, b: Constraint) -> bool:
    pairs = zip(_bounds(a), _bounds(b), strict=True)
    return type(a) is type(b) and all(torch.equal(u, v) for u, v in pairs)


def _data_first(support: Constraint, site: Site) -> Constraint:
    """Move the data dimension of the bounds of a support to the front."""
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
