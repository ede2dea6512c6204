"""Centres of q(z|x), and paths through the latent space."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.functional import normalize

from ..programs.autoguides import TransformedNormal
from ..programs.checks import has_point_mass
from .runner import Runner

__all__ = [
    "LatentPoint",
    "compute_guide_centres",
    "interpolate_latents",
    "traverse_latents",
]


@dataclass(frozen=True)
class LatentPoint:
    """The latents of one site.

    Attributes:
        value: ``(N, *rest)``.
        discrete: whether they are discrete.
        sphere: whether they are unit vectors.
        kind: the kind of value: ``mean`` of the distribution; the ``direction`` of the mean on the
            unit sphere; the ``mode`` of a discrete distribution; the ``centre`` of an autoguide,
            i.e. the value for the means of its auxiliary sites; or a ``draw`` if none of these is
            available.
        fn: the distribution of the guide.
    """

    value: Tensor
    discrete: bool
    sphere: bool
    kind: str = "draw"
    fn: Any = None

    @property
    def std(self) -> Tensor | None:
        """The standard deviation, ``(N, *rest)``, if the value is a mean."""
        return self.fn.variance.sqrt().reshape(self.value.shape) if self.kind == "mean" else None


class _SubstituteCentres(Messenger):
    """Replace each sample by the mean of its distribution, or by a substitute for the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        fn, kind = msg["fn"], "draw"
        is_discrete, is_sphere = _classify(fn)
        with suppress(NotImplementedError, AttributeError):
            if is_discrete:
                kind, msg["value"] = "mode", fn.mode
            elif isinstance(fn, TransformedNormal):
                kind, msg["value"] = "centre", fn.centre
            elif has_point_mass(fn):
                kind, msg["value"] = "centre", fn.mean
            elif is_sphere:
                kind, msg["value"] = "direction", normalize(fn.mean, dim=-1)
            else:
                kind, msg["value"] = "mean", fn.mean
        self.kinds[msg["name"]] = kind


def _classify(fn: Any) -> tuple[bool, bool]:
    """Return whether a distribution is discrete, and whether its values are unit vectors."""
    try:
        support = fn.support
    except NotImplementedError:
        return False, False
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return getattr(support, "is_discrete", False), support is constraints.sphere


def compute_guide_centres(runner: Runner) -> dict[str, LatentPoint]:
    """Return the centre of the guide at each site, given the centres of the preceding sites.

    A site whose distribution has no centre gives a sample.
    """
    messenger = _SubstituteCentres()
    latents, fns = runner.run_guide(messenger)
    return {
        name: LatentPoint(value, *_classify(fn), messenger.kinds[name], fn)
        for (name, value), fn in zip(latents.items(), fns.values(), strict=True)
    }


def interpolate_latents(a: LatentPoint, b: LatentPoint, steps: int, path: str) -> Tensor:
    """Return points from a to b, both included, ``(S, N, *rest)``.

    Raises:
        ValueError: if a straight path is requested on the unit sphere.
    """
    if a.sphere and path == "straight":
        raise ValueError(
            "expected path 'spherical' for latents on the unit sphere; got 'straight', which "
            "leaves the sphere"
        )
    dtype = torch.float64 if a.discrete else a.value.dtype
    t = torch.linspace(0, 1, steps, dtype=dtype, device=a.value.device)
    t = t.reshape(-1, *(1,) * a.value.ndim)
    if a.discrete:
        return torch.where(t < 0.5, a.value, b.value)
    if path == "straight":
        return a.value + t * (b.value - a.value)
    shape = a.value.shape
    flat = a.value.reshape(shape[0], -1), b.value.reshape(shape[0], -1)
    return _slerp(*flat, t.reshape(-1, 1, 1)).reshape(steps, *shape)


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Rotate from a to b at a constant rate along a great circle; interpolate the norm linearly."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = normalize(a, dim=-1), normalize(b, dim=-1)
    # component of v orthogonal to u; atan2 gives an accurate angle near 0 and π
    cosine = (u * v).sum(-1, keepdim=True)
    orthogonal = v - cosine * u
    sine = orthogonal.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, cosine)
    eps = torch.finfo(a.dtype).eps ** 0.5
    # antipodal points have no unique great circle: use the one through the axis least like u
    axis = torch.zeros_like(u).scatter(-1, u.abs().argmin(-1, keepdim=True), 1.0)
    other = normalize(axis - (axis * u).sum(-1, keepdim=True) * u, dim=-1)
    is_antipodal = (sine < eps) & (cosine < 0)
    orthogonal = torch.where(is_antipodal, other, orthogonal / sine.clamp(min=1e-30))
    direction = (t * angle).cos() * u + (t * angle).sin() * orthogonal
    spherical = (norm_a + t * (norm_b - norm_a)) * direction
    straight = a + t * (b - a)
    # the origin has no direction, parallel vectors need no rotation, and a line has no circles
    is_straight = (norm_a == 0) | (norm_b == 0) | ((sine < eps) & (cosine > 0))
    is_straight = is_straight | (a.shape[-1] == 1)
    return torch.where(is_straight, straight, spherical)


def traverse_latents(start: LatentPoint, dims: list[int], values: Tensor) -> Tensor:
    """Set one of D' coordinates at a time to each of its V values, ``(D', V)``.

    Returns:
        ``(D' × V, N, *rest)``.

    Raises:
        ValueError: if a value is outside (−1, 1) on the unit sphere.
    """
    if start.sphere and not (values.abs() < 1).all():
        raise ValueError(
            f"expected values in (−1, 1) for latents on the unit sphere; got "
            f"{float(values.min()):g} to {float(values.max()):g}"
        )
    shape = start.value.shape
    flat = start.value.reshape(shape[0], -1)
    moved = flat.expand(*values.shape, *flat.shape).clone()
    for row, dim in enumerate(dims):
        if start.sphere:
            moved[row, :, :, dim] = 0
            norm = (1 - values[row].square()).sqrt()[:, None, None]
            moved[row] = norm * normalize(moved[row], dim=-1)
        moved[row, :, :, dim] = values[row][:, None]
    return moved.reshape(-1, *shape)
