"""What a model makes: samples, reconstructions, and walks through its latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.validation import positive_int
from ..programs.base import Program
from ..programs.sites import latent_sites
from .latent_paths import between, moved_along, typical
from .runner import Runner, as_pair, checked, mean_of, running

__all__ = ["Generated", "interpolate", "reconstruct", "sample", "traverse"]


@dataclass(frozen=True)
class Generated:
    """Data that a model made.

    Attributes:
        x: draws of p(x | latents), ``(*batch, *event)``.
        mean: the mean of p(x | latents), of the same shape; ``None`` if it was not asked for.
        latents: by site, ``(*batch, *rest)``.
    """

    x: Tensor
    mean: Tensor | None
    latents: Mapping[str, Tensor]


def sample(
    program: Program | tuple[Any, Any],
    size: int,
    *args: Any,
    like: Tensor | None = None,
    mean: bool = True,
    seed: int = 0,
) -> Generated:
    """New data from the model: latents from the prior, x from p(x | latents).

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        size: the number of data. The model is called as ``model(None, *args, size=size)``.
        *args: what else the model is called with: labels to condition on, ``(size,)``.
        like: data of the right shape, ``(size, *event)``, for a model that cannot do without;
            it is called as ``model(like, *args)`` and does not observe them.
        mean: whether the mean of p(x | latents) is wanted; not every distribution has one.
        seed: of the draws; global generators are left as they were.

    Returns:
        :class:`Generated`, ``(size, *event)``.

    Raises:
        ValueError: if the model cannot run without data and none are given, if ``like`` holds
            another number of data, or p(x|z) has no mean where it is asked for.
    """
    positive_int("size", size)
    if like is not None and len(like) != size:
        raise ValueError(f"expected like to hold {size} data; got {len(like)}")
    model, _ = as_pair(program)
    with running(program, seed, 23):
        site, nodes = latent_sites(model, size, like, args)
    fn = nodes[site]["fn"]
    latents = {n: s["value"] for n, s in nodes.items() if n != site and not s["is_observed"]}
    return Generated(nodes[site]["value"], mean_of(fn) if mean else None, latents)


def reconstruct(
    program: Program | tuple[Any, Any], x: Tensor, *args: Any, mean: bool = True, seed: int = 0
) -> Generated:
    """The data again: latents drawn from the guide, x from p(x | latents).

    A draw, because not every guide knows its mean, and because the mean alone flatters.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        x: the data, ``(N, *event)``.
        *args: further arguments of both.
        mean: whether the mean of p(x | latents) is wanted.
        seed: of the draws.

    Returns:
        :class:`Generated`, ``(N, *event)``.

    Raises:
        ValueError: if the data cannot be scored, or p(x|z) has no mean where it is asked for.
    """
    x, args = checked(program, x, args)
    with running(program, seed, 24):
        runner = Runner.of(program, x, args)
        latents, _ = runner.draw(1)
        made = _made(runner, latents, mean)
    return Generated(
        made.x[0],
        None if made.mean is None else made.mean[0],
        {name: value[0] for name, value in made.latents.items()},
    )


def interpolate(
    program: Program | tuple[Any, Any],
    x_a: Tensor,
    x_b: Tensor,
    *args: Any,
    steps: int = 8,
    path: Literal["spherical", "straight"] = "spherical",
    mean: bool = True,
    seed: int = 0,
) -> Generated:
    """From one datum to another through the latents of all sites.

    The ends are the guide's means (on the sphere their directions) where it knows them, the
    most probable value of a discrete site, and a draw of anything else. A discrete latent
    changes half-way. Of N(0, I) in many dimensions all draws have nearly the same norm, which
    a straight path leaves: the spherical one turns the direction at a constant rate and moves
    the norm from that of one end to that of the other. On the unit sphere there is no other.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        x_a, x_b: the data at the two ends, each ``(N, *event)``.
        *args: further arguments of both, the same at both ends.
        steps: the number S of points on the path, both ends included.
        path: ``"spherical"`` or ``"straight"``.
        mean: whether the mean of p(x | latents) is wanted.
        seed: of the draws.

    Returns:
        :class:`Generated`, ``(S, N, *event)``.

    Raises:
        ValueError: if the two ends differ in shape, there are fewer than two steps, the data
            cannot be scored, or a straight path is asked for on the sphere.

    References:
        Sampling Generative Networks (White, 2016), section 2.1.
        https://arxiv.org/abs/1609.04468
    """
    if path not in ("spherical", "straight"):
        raise ValueError(f"expected path to be 'spherical' or 'straight'; got {path!r}")
    if positive_int("steps", steps) < 2:
        raise ValueError("expected steps ≥ 2, the two ends; got 1")
    if x_a.shape != x_b.shape:
        raise ValueError(
            f"expected x_a and x_b of one shape; got {tuple(x_a.shape)} and {tuple(x_b.shape)}"
        )
    (x_a, args), (x_b, _) = checked(program, x_a, args), checked(program, x_b, args)
    with running(program, seed, 25):
        runner = Runner.of(program, x_a, args)
        ends = [typical(r) for r in (runner, runner.on(x_b, args))]
        latents = {name: between(a, ends[1][name], steps, path) for name, a in ends[0].items()}
        return _made(runner, latents, mean)


def traverse(
    program: Program | tuple[Any, Any],
    x: Tensor,
    *args: Any,
    dims: Sequence[int] | None = None,
    values: Sequence[float] | Tensor | None = None,
    site: str | None = None,
    mean: bool = True,
    seed: int = 0,
) -> Generated:
    """One latent coordinate at a time through given values, all others where the datum has them.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        x: the data, ``(N, *event)``.
        *args: further arguments of both.
        dims: the coordinates, D' of those of a site's latents as one vector; all if not given.
        values: V of them, the same for every coordinate. If not given, nine quantiles of each
            coordinate under the prior, of 1/18, 3/18 … 17/18. On the unit sphere the other
            coordinates shrink to make room.
        site: of which latents; the only real ones, or the first that the guide draws.
        mean: whether the mean of p(x | latents) is wanted.
        seed: of the draws.

    Returns:
        :class:`Generated`, ``(D', V, N, *event)``.

    Raises:
        ValueError: if the data cannot be scored, there is no such site or coordinate, its
            latents are discrete, or a value is not inside of (−1, 1) on the unit sphere.
    """
    x, args = checked(program, x, args)
    with running(program, seed, 26):
        runner = Runner.of(program, x, args)
        start = typical(runner)
        chosen = _site({n: end for n, end in start.items() if n not in runner.noise}, site)
        width = start[chosen].value[0].numel()
        picked = list(range(width)) if dims is None else [int(d) for d in dims]
        if not picked or not all(0 <= d < width for d in picked):
            raise ValueError(f"expected dims from 0 to {width - 1} of {chosen!r}; got {picked}")
        if values is None:
            prior = runner.prior(_PRIOR_DRAWS)[chosen].flatten(2)[:, 0]
            levels = (torch.arange(9, dtype=prior.dtype, device=prior.device) + 0.5) / 9
            table = prior.quantile(levels, 0).T[picked]
        else:
            table = torch.as_tensor(values, dtype=x.dtype, device=x.device).expand(len(picked), -1)
        walked = moved_along(start[chosen], picked, table)
        many = len(walked)
        latents = {n: e.value.expand(many, *e.value.shape) for n, e in start.items()}
        made = _made(runner, {**latents, chosen: walked}, mean)
    return _shaped(made, (len(picked), table.shape[1]))


#: Draws of the prior behind its quantiles.
_PRIOR_DRAWS = 2000


def _site(ends: Mapping[str, Any], site: str | None) -> str:
    real = [name for name, end in ends.items() if not end.discrete]
    if site is None and real:
        return real[0]
    if site not in real:
        raise ValueError(
            f"expected site to be one of the continuous latents, {', '.join(real) or 'none'}; got "
            f"{site!r}"
        )
    return site


def _made(runner: Runner, latents: Mapping[str, Tensor], mean: bool) -> Generated:
    decoded = runner.decode(latents)
    return Generated(decoded.draw(), decoded.mean if mean else None, dict(latents))


def _shaped(made: Generated, shape: tuple[int, ...]) -> Generated:
    def unflatten(value: Tensor) -> Tensor:
        return value.unflatten(0, shape)

    return replace(
        made,
        x=unflatten(made.x),
        mean=None if made.mean is None else unflatten(made.mean),
        latents={name: unflatten(value) for name, value in made.latents.items()},
    )
