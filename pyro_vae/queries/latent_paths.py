"""Points and paths in the space of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.functional import normalize

from .runner import Runner

__all__ = ["End", "Typical", "between", "is_discrete", "is_sphere", "moved_along", "typical"]


@dataclass(frozen=True)
class End:
    """The latents of one site.

    Attributes:
        value: ``(N, *rest)``.
        discrete: whether they have no values between.
        sphere: whether they are unit vectors.
    """

    value: Tensor
    discrete: bool
    sphere: bool


class Typical(Messenger):
    """Puts the mean, or what is nearest to one, in the place of every draw.

    Attributes:
        kinds: what it put there, by site: ``mean``; the mean's ``direction`` on the unit
            sphere; the ``mode`` of discrete values; or a ``draw`` where there is nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        try:
            self.kinds[msg["name"]], msg["value"] = _centre(msg["fn"])
        except (NotImplementedError, AttributeError):
            self.kinds[msg["name"]] = "draw"


def _centre(fn: Any) -> tuple[str, Tensor]:
    if is_discrete(fn):
        return "mode", fn.mode
    return ("direction", normalize(fn.mean, dim=-1)) if is_sphere(fn) else ("mean", fn.mean)


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is one of separate values."""
    support = _support(fn)
    return support is not None and support.is_discrete


def is_sphere(fn: Any) -> bool:
    """Whether a distribution is one of unit vectors."""
    return _support(fn) is constraints.sphere


def _support(fn: Any) -> Any:
    try:
        support = fn.support
    except NotImplementedError:
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def typical(runner: Runner) -> dict[str, End]:
    """The guide's centre, by site, each given those before it; a draw where there is none."""
    latents, fns = runner.under(Typical())
    return {n: End(v, is_discrete(fns[n]), is_sphere(fns[n])) for n, v in latents.items()}


def between(a: End, b: End, steps: int, path: str) -> Tensor:
    """Points from a to b, both included: ``(S, N, *rest)``.

    Raises:
        ValueError: if a straight path would leave the unit sphere.
    """
    if a.sphere and path == "straight":
        raise ValueError(
            "expected path 'spherical' for latents on the unit sphere, which a straight one "
            "leaves; got 'straight'"
        )
    real = torch.float64 if a.discrete else a.value.dtype
    t = torch.linspace(0, 1, steps, dtype=real, device=a.value.device)
    t = t.reshape(-1, *(1,) * a.value.ndim)
    if a.discrete:
        return torch.where(t < 0.5, a.value, b.value)
    if path == "straight":
        return a.value + t * (b.value - a.value)
    shape = a.value.shape
    flat = a.value.reshape(shape[0], -1), b.value.reshape(shape[0], -1)
    return _slerp(*flat, t.reshape(-1, 1, 1)).reshape(steps, *shape)


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Directions at a constant rate along the great circle, norms from |a| to |b|."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = normalize(a, dim=-1), normalize(b, dim=-1)
    # of the part of v across u; the angle by its tangent, exact near 0 and π
    cosine = (u * v).sum(-1, keepdim=True)
    across = v - cosine * u
    sine = across.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, cosine)
    eps = torch.finfo(a.dtype).eps ** 0.5
    # opposite ends have no great circle of their own: take one through the axis least like u
    axis = torch.zeros_like(u).scatter(-1, u.abs().argmin(-1, keepdim=True), 1.0)
    other = normalize(axis - (axis * u).sum(-1, keepdim=True) * u, dim=-1)
    across = torch.where((sine < eps) & (cosine < 0), other, across / sine.clamp(min=1e-30))
    turned = (t * angle).cos() * u + (t * angle).sin() * across
    on_sphere = (norm_a + t * (norm_b - norm_a)) * turned
    straight = a + t * (b - a)
    # no direction at the origin, and none to turn to where both are the same
    plain = (norm_a == 0) | (norm_b == 0) | ((sine < eps) & (cosine > 0))
    return torch.where(plain, straight, on_sphere)


def moved_along(end: End, dims: list[int], values: Tensor) -> Tensor:
    """The latents with one coordinate at each of its values.

    Arguments:
        end: where they start.
        dims: D' coordinates.
        values: V for each of them, ``(D', V)``.

    Returns:
        ``(D' × V, N, *rest)``.

    Raises:
        ValueError: if a value does not lie inside of (−1, 1) on the unit sphere.
    """
    if end.sphere and not (values.abs() < 1).all():
        raise ValueError(
            f"expected values inside of (−1, 1) for latents on the unit sphere; got "
            f"{float(values.min()):g} to {float(values.max()):g}"
        )
    shape = end.value.shape
    start = end.value.reshape(shape[0], -1)
    moved = start.expand(*values.shape, *start.shape).clone()
    for row, dim in enumerate(dims):
        if end.sphere:
            moved[row, :, :, dim] = 0
            room = (1 - values[row].square()).sqrt()[:, None, None]
            moved[row] = room * normalize(moved[row], dim=-1)
        moved[row, :, :, dim] = values[row][:, None]
    return moved.reshape(-1, *shape)
