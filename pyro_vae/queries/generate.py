"""Samples, reconstructions, interpolations and latent traversals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.random import Stream
from ..core.validation import positive_int
from ..programs.arguments import ProgramInputs
from ..programs.base import Program, data_plate, empty_program
from ..programs.context import evaluating
from ..programs.inputs import (
    AnyData,
    add_split_arguments,
    blank_examples,
    data_arguments,
    materialize,
    prepare,
    read_with_arguments,
    split_program,
)
from ..programs.plates import normalize_plate
from ..programs.simulation import check_generates_data, prior_predictive_sites
from ..programs.sites import DataSites, SiteNames, data_first
from .decoding import get_mean
from .latent_paths import compute_guide_centres, interpolate_latents, traverse_latents
from .runner import Runner

__all__ = ["Generated", "GeneratedSite", "interpolate", "reconstruct", "sample", "traverse"]

#: Prior samples for the quantiles of a latent traversal.
_NUM_PRIOR_SAMPLES = 2000


class GeneratedSite(NamedTuple):
    """Generated values of one observed site.

    Attributes:
        x: samples, ``(*batch, N, *rest)``.
        mean: the mean of their distribution; ``None`` if not requested. NaN for one of several
            sites whose distribution has no mean.
    """

    x: Tensor
    mean: Tensor | None


@dataclass(frozen=True)
class Generated:
    """Generated examples.

    Attributes:
        sites: the values of each observed site, by name. In :func:`sample` these are the sites
            that are generated; otherwise all, given the latents and the given values of others.
        latents: by site, ``(*batch, *rest)``.
        data: the examples that consist of the values of the data sites; or the reason why several
            sites are not the parts of one argument.
        rows: the row of each reconstructed example in the file of the data, ``(N,)``; ``None`` if
            the examples are in its order, or unknown.
    """

    sites: Mapping[str, GeneratedSite]
    latents: Mapping[str, Tensor]
    data: GeneratedSite | str
    rows: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Samples of p(x | latents), ``(*batch, *event)``, in the shape of the user's examples.

        Elements of x that no site observes are those of the given examples.

        Raises:
            ValueError: if there are several data sites that are not the parts of one argument.
        """
        return self._data.x

    @property
    def mean(self) -> Tensor | None:
        """The mean of p(x | latents), of the same shape; ``None`` if not requested.

        It is NaN at one of several data sites whose distribution has no mean.

        Raises:
            ValueError: as for :attr:`x`.
        """
        return self._data.mean

    @property
    def _data(self) -> GeneratedSite:
        if isinstance(self.data, str):
            raise ValueError(
                f"expected one data site, or several that observe different parts of x; got "
                f"{self.data}: read sites[{next(iter(self.sites))!r}].x, or name one site by site=…"
            )
        return self.data

    def map(self, function: Callable[[Tensor], Tensor]) -> Generated:
        """Apply a function to all tensors."""

        def apply(site: GeneratedSite) -> GeneratedSite:
            return GeneratedSite(
                function(site.x), None if site.mean is None else function(site.mean)
            )

        return Generated(
            {name: apply(site) for name, site in self.sites.items()},
            {name: function(value) for name, value in self.latents.items()},
            self.data if isinstance(self.data, str) else apply(self.data),
            self.rows,
        )


def sample(
    program: Program | tuple[Any, Any],
    size: int,
    *args: Any,
    like: AnyData | None = None,
    site: SiteNames | None = None,
    mean: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Generated:
    """Sample new examples: latents from the prior, x from p(x | latents).

    Arguments:
        program: any object with a ``model``, or a pair of a model and a guide, which is not used.
        size: the number of examples. The model is called as ``model(None, *args, size=size)``.
        *args: additional arguments of the model, such as labels to condition on, ``(size,)``, as
            are ``**kwargs``.
        like: data of the right shape, ``(size, *event)``, for a model that cannot run without
            data; by default zeros, if the program states ``event_shape``. The model is called as
            ``model(like, *args)``. Values that a data site observes are ignored.
        site: the observed site to generate, or several of them, as for :func:`reconstruct`. All
            others keep their given values, such as a class.
        mean: whether to return the mean of p(x | latents), which not every distribution has.
        seed: seed of the samples; global generators are not affected.

    Returns:
        :class:`Generated`, ``(size, *event)``.

    Raises:
        ValueError: if the model cannot run without data and ``like`` is not given, if ``like``
            has a different number of examples, if the model has no observed site of that name, or
            if the mean is requested and p(x|z) has none.

    Example:
        >>> pv.queries.sample(vae, 4).x.shape
        torch.Size([4, 1, 8, 8])
    """
    positive_int("size", size)
    model, _ = split_program(program)
    like = blank_examples(program, size) if like is None else like
    if like is not None:
        examples = read_with_arguments(program, like, kwargs, "like")
        like = materialize(program, examples, seed)
        if len(like) != size:
            raise ValueError(f"expected like to have {size} examples; got {len(like)}")
        args, _ = data_arguments(program, examples, args, {})
        inputs = add_split_arguments(ProgramInputs(model, model, like, args, {}), examples)
        inputs = inputs._replace(guide=empty_program)
        inputs = normalize_plate(inputs, data_plate(program), allow_shared=True)
        model, args = inputs.model, inputs.args
    elif kwargs:
        model = functools.partial(model, **kwargs)
    with evaluating(model, seed=seed, stream=Stream.SAMPLE):
        data, nodes = prior_predictive_sites(model, size, like, args, site)
        if like is not None:
            check_generates_data(model, (like, *args), {}, data, nodes)
        sites = {}
        for name in data.sites:
            node = nodes[name]
            average = (
                data_first(node, get_mean(node, required=len(data.sites) == 1)) if mean else None
            )
            sites[name] = GeneratedSite(data_first(node, node["value"]), average)
    latents = {n: s["value"] for n, s in nodes.items() if n not in sites and not s["is_observed"]}
    template = None if data.argument is None else (like, *args)[int(data.argument)]
    generated = _assemble(data, sites, template, batch_dim=0)
    if like is None and isinstance(generated, str):
        generated = f"{', '.join(map(repr, sites))} of a model without data (like=…)"
    return Generated(sites, latents, generated)


def _assemble(
    data: DataSites, sites: Mapping[str, GeneratedSite], like: Tensor | None, batch_dim: int
) -> GeneratedSite | str:
    """Return the examples that consist of the values of the data sites, or why there are none."""
    if like is None:
        (first, *more) = data.sites
        return data.no_argument_reason or "" if more else sites[first]

    def assemble(values: dict[str, Tensor]) -> Tensor:
        flat = {n: v.reshape(*v.shape[: batch_dim + 1], -1) for n, v in values.items()}
        return data.assemble(flat, like)

    x = assemble({name: sites[name].x for name in data.sites})
    means = {n: mean for n in data.sites if (mean := sites[n].mean) is not None}
    return GeneratedSite(x, assemble(means) if means else None)


def reconstruct(
    program: Program | tuple[Any, Any],
    x: AnyData,
    *args: Any,
    site: SiteNames | None = None,
    mean: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Generated:
    """Reconstruct examples: latents from the guide, x from p(x | latents).

    The latents are sampled, because not every guide has a mean, and because reconstructions from
    the mean look better than the model is.

    Arguments:
        program: any object with a ``model`` and a ``guide``, or a pair of them.
        x: the examples, a tensor ``(N, *event)`` or anything that
            :func:`~pyro_vae.data.as_split` accepts.
        *args: additional arguments of model and guide, as are ``**kwargs``.
        site: the observed site whose values are the data, or several of them. By default the only
            observed site, or the only one that observes all of x (``obs=x``, also reshaped), or
            all that observe parts of x (``obs=x[:, 0]``).
        mean: whether to return the mean of p(x | latents).
        seed: seed of the samples.

    Returns:
        :class:`Generated`, ``(N, *event)``.

    Raises:
        ValueError: if the examples cannot be scored, if the model has no observed site of that
            name, or if the mean is requested and p(x|z) has none.
    """
    data = read_with_arguments(program, x, kwargs)
    inputs = prepare(program, data, args)
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.RECONSTRUCT):
        runner = Runner.create(inputs, site)
        latents, _ = runner.sample_guide(1)
        generated = _decode(runner, latents, mean).map(lambda value: value[0])
    return replace(generated, rows=getattr(data, "rows", None))


def interpolate(
    program: Program | tuple[Any, Any],
    x_a: Tensor,
    x_b: Tensor,
    *args: Any,
    steps: int = 8,
    path: Literal["spherical", "straight"] = "spherical",
    site: SiteNames | None = None,
    mean: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Generated:
    """Interpolate between two examples through the latents of all sites.

    The endpoints are the guide's means (on the sphere their directions) where available, the most
    probable value of a discrete site, and a sample otherwise. A discrete latent changes half-way.
    Samples from N(0, I) in many dimensions all have nearly the same norm, which a straight path
    does not preserve. The spherical path rotates the direction at a constant rate and
    interpolates the norm linearly. It is the only path on the unit sphere.

    Arguments:
        program, *args, site, mean, seed, **kwargs: as for :func:`reconstruct`.
        x_a, x_b: the examples at the two endpoints, each ``(N, *event)``. The path is decoded with
            the arguments of ``x_a``, if these are splits with arguments.
        steps: the number S of points on the path, including both endpoints.
        path: ``"spherical"`` or ``"straight"``.

    Returns:
        :class:`Generated`, ``(S, N, *event)``.

    Raises:
        ValueError: if the endpoints differ in shape, there are fewer than two steps, the examples
            cannot be scored, or a straight path is requested on the sphere.

    References:
        Sampling Generative Networks (White, 2016), section 2.1.
        https://arxiv.org/abs/1609.04468
    """
    if path not in ("spherical", "straight"):
        raise ValueError(f"expected path to be 'spherical' or 'straight'; got {path!r}")
    if positive_int("steps", steps) < 2:
        raise ValueError("expected steps ≥ 2, which includes both endpoints; got 1")
    inputs, other = (
        prepare(program, read_with_arguments(program, x, kwargs), args, seed=seed)
        for x in (x_a, x_b)
    )
    shapes = tuple(inputs.x.shape), tuple(other.x.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected x_a and x_b of the same shape; got {shapes[0]} and {shapes[1]}")
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.INTERPOLATE):
        runner = Runner.create(inputs, site)
        start = compute_guide_centres(runner)
        end = compute_guide_centres(runner.with_data(other.x, other.args))
        latents = {n: interpolate_latents(a, end[n], steps, path) for n, a in start.items()}
        return _decode(runner, latents, mean)


def traverse(
    program: Program | tuple[Any, Any],
    x: Tensor,
    *args: Any,
    dims: Sequence[int] | None = None,
    values: Sequence[float] | Tensor | None = None,
    latent: str | None = None,
    site: SiteNames | None = None,
    mean: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Generated:
    """Vary one latent coordinate at a time, with all others fixed at their encoded values.

    Arguments:
        program, x, *args, site, mean, seed, **kwargs: as for :func:`reconstruct`.
        dims: D' coordinates of the site's latents as one vector; all by default.
        values: V values, the same for each coordinate. By default nine quantiles of each
            coordinate under the prior, 1/18, 3/18 … 17/18. On the unit sphere the other
            coordinates are rescaled to keep the norm.
        latent: the latent site; by default the first continuous one that the guide samples.

    Returns:
        :class:`Generated`, ``(D', V, N, *event)``.

    Raises:
        ValueError: if the examples cannot be scored, a site or a coordinate does not exist, the
            latent site is discrete, there is no value, or one is not finite or outside (−1, 1) on
            the unit sphere.
    """
    inputs = prepare(program, read_with_arguments(program, x, kwargs), args)
    table = None
    if values is not None:
        table = torch.as_tensor(values, dtype=inputs.x.dtype, device=inputs.x.device)
        if not table.numel() or not bool(table.isfinite().all()):
            raise ValueError(f"expected at least one value, all finite; got {values}")
    with evaluating(inputs.model, inputs.guide, seed=seed, stream=Stream.TRAVERSE):
        runner = Runner.create(inputs, site)
        centres = compute_guide_centres(runner)
        name = _select_latent(
            {n: c for n, c in centres.items() if n not in runner.noise_sites}, latent
        )
        width = centres[name].value[0].numel()
        selected = list(range(width)) if dims is None else [int(d) for d in dims]
        if not selected or not all(0 <= d < width for d in selected):
            raise ValueError(f"expected dims from 0 to {width - 1} of {name!r}; got {selected}")
        if table is None:
            draws = runner.sample_prior(_NUM_PRIOR_SAMPLES)[name]
            prior = draws[:, 0].reshape(len(draws), width)
            levels = (torch.arange(9, dtype=prior.dtype, device=prior.device) + 0.5) / 9
            table = prior.quantile(levels, 0).T[selected]
        else:
            table = table.expand(len(selected), -1)
        moved = traverse_latents(centres[name], selected, table)
        latents = {n: c.value.expand(len(moved), *c.value.shape) for n, c in centres.items()}
        generated = _decode(runner, {**latents, name: moved}, mean)
    return generated.map(lambda value: value.unflatten(0, table.shape))


def _select_latent(centres: Mapping[str, Any], latent: str | None) -> str:
    continuous = [name for name, centre in centres.items() if not centre.discrete]
    if latent is None and continuous:
        return continuous[0]
    if latent not in continuous:
        raise ValueError(
            f"expected latent to be one of the continuous latents, "
            f"{', '.join(continuous) or 'none'}; got {latent!r}"
        )
    return latent


def _decode(runner: Runner, latents: Mapping[str, Tensor], mean: bool) -> Generated:
    decoded = runner.decode(latents)
    sites = {
        name: GeneratedSite(site.sample(), decoded.site_mean(name) if mean else None)
        for name, site in decoded.sites.items()
    }
    like = None if decoded.data.argument is None else decoded.like
    return Generated(sites, dict(latents), _assemble(decoded.data, sites, like, batch_dim=1))
