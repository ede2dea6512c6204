"""Pyro's autoguides as guides of single examples, which score any latents."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal, AutoStructured
from pyro.infer.autoguide.gaussian import AutoGaussian
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    IndependentTransform,
    ReshapeTransform,
    Transform,
    biject_to,
)

from .. import distributions
from ..core.evaluation_mode import owning_modules
from .arguments import ProgramInputs
from .base import Site
from .context import inspecting

__all__ = ["TransformedNormal", "direct_guide", "sample_directly"]

#: Excess of the marginals' bounds over that of the joint guide, in nats per example, above which
#: a warning states it.
_MAX_EXCESS = 1e-3
#: Attribute of a guide whose autoguides sample the latents directly.
_DIRECT = "_samples_directly"
#: Normal distributions of the latents of all examples.
_NORMALS = (dist.MultivariateNormal, dist.LowRankMultivariateNormal)


class TransformedNormal(dist.TransformedDistribution):
    """Normal variables that a bijection transforms to the support of a latent."""

    @property
    def centre(self) -> Tensor:
        """The value for the mean of the normal variables, ``(*batch, *event)``."""
        value: Any = self.base_dist.mean
        for transform in self.transforms:
            value = transform(value)
        return value


def sample_directly(inputs: ProgramInputs) -> ProgramInputs:
    """Let autoguides sample each latent z of each example directly, instead of z = T(u).

    Pyro's autoguides sample unconstrained variables u at auxiliary sites, and pass T(u) on as point
    masses, which cannot be scored at other values. Here the latents are sampled from the density
    of T(u), inside the plate over the data:

    - ``AutoNormal`` and ``AutoDiagonalNormal``: exactly;
    - ``AutoMultivariateNormal`` and ``AutoLowRankMultivariateNormal``: each example from its
      marginal q(z_n), the normal of its own latents. If the guide correlates examples, the sum of
      the bounds Σ_n E[log p(x_n, z_n) − log q(z_n)] exceeds the bound of the joint guide by the
      total correlation Σ_n H[q(z_n)] − H[q(z)] ≥ 0, which a warning states;
    - ``AutoNormalizingFlow`` and ``AutoIAFNormal``: for a single example with a single site;
    - ``AutoGuideList``: by its parts.

    Autoguides inside other guides are included. Untrained autoguides are initialised on all
    examples.

    Arguments:
        inputs: a program with all its data.

    Returns:
        The inputs, with another guide if the guide has such parts and does not yet do this. When
        that guide runs, autoguides whose densities q(z_n) are not known raise a ``ValueError``.

    Raises:
        ValueError: if the parameters of an autoguide are those of another number of examples.
    """
    model, guide, x, args, kwargs = inputs
    parts = _find_parts(guide)
    if not parts or _is_direct(guide):
        return inputs
    with inspecting(model, guide), poutine.block():
        if any(part.prototype_trace is None for part in parts):
            guide(x, *args, **kwargs)
        for part, forward in parts.items():
            if not _is_per_datum(part):
                continue
            _check_size(part, len(x))
            if forward.func is _refuse and isinstance(guide, AutoGuide):
                _refuse(part)
            if forward.func is _run_continuous:
                posterior: Any = part.get_posterior(x, *args, **kwargs)  # type: ignore[operator]
                if isinstance(guide, AutoGuide):
                    _check_posterior(part, posterior)
                _warn_if_correlated(part, posterior)
    return inputs._replace(guide=direct_guide(guide))


def direct_guide(guide: Callable[..., Any]) -> Callable[..., Any]:
    """Return a guide whose autoguides sample the latents directly, see :func:`sample_directly`.

    Autoguides without parameters run as they are, to create them, and so do those of latents that
    all examples share. A guide without autoguides is returned unchanged.
    """
    parts = _find_parts(guide)
    if not parts:
        return guide

    @functools.wraps(guide, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        with _replace_forward({p: forward for p, forward in parts.items() if _is_per_datum(p)}):
            return guide(*args, **kwargs)

    setattr(run, _DIRECT, True)
    return run


def _is_direct(guide: Callable[..., Any]) -> bool:
    """Whether a guide is one of :func:`direct_guide`, e.g. with some of its examples."""
    while not hasattr(guide, _DIRECT):
        if not hasattr(guide, "__wrapped__"):
            return False
        guide = guide.__wrapped__
    return True


def _find_parts(guide: Callable[..., Any]) -> dict[AutoGuide, functools.partial[Any]]:
    """Return the autoguides of a guide, each with the function that replaces its ``forward``."""
    return {
        module: functools.partial(forward, module)
        for owner in owning_modules(guide)
        for module in owner.modules()
        if isinstance(module, AutoGuide) and (forward := _find_forward(module))
    }


def _find_forward(guide: AutoGuide) -> Callable[..., Any] | None:
    """Return the function that replaces the ``forward`` of an autoguide, if any.

    A subclass with its own ``forward`` runs as it is.
    """
    forward = type(guide).forward
    if forward is AutoNormal.forward:
        return _run_normal
    if forward is AutoContinuous.forward:
        return _run_continuous
    return _refuse if forward in (AutoStructured.forward, AutoGaussian.forward) else None


@contextmanager
def _replace_forward(parts: Mapping[AutoGuide, Callable[..., Any]]) -> Iterator[None]:
    # on the instance: a list of autoguides, or the user's guide, calls its parts itself
    for part, forward in parts.items():
        vars(part)["forward"] = forward
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop("forward", None)


def _is_per_datum(guide: AutoGuide) -> bool:
    """Whether an autoguide has been initialised, and has latents inside a plate."""
    if guide.prototype_trace is None:
        return False
    if isinstance(guide, AutoStructured):
        return bool(guide.plates)  # it keeps no sites
    return any(map(_frames, _latent_sites(guide)))


def _latent_sites(guide: AutoGuide) -> list[Site]:
    """Return the latent sites of the model on which an autoguide was initialised."""
    trace: Any = guide.prototype_trace
    return [site for _, site in trace.iter_stochastic_nodes()]


def _frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _full_size(frame: Any) -> int:
    return frame.full_size or frame.size


def _check_size(guide: AutoGuide, size: int) -> None:
    """Raise unless an autoguide has parameters for ``size`` examples."""
    if guide.create_plates is not None or isinstance(guide, AutoStructured):
        return
    sizes = [{_full_size(f) for f in _frames(site)} for site in _latent_sites(guide)]
    common = set.intersection(*sizes) if sizes else set()
    if common and size not in common:
        trained = " or ".join(map(str, sorted(common)))
        raise ValueError(
            f"expected the {trained} examples of which {type(guide).__name__} has parameters; got "
            f"{size}: evaluate it on the data that it was trained on, or use a guide that computes "
            f"q(z|x) from x"
        )


def _create_plates(guide: AutoGuide, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plates of an autoguide by name; the parts of a list share those of the list."""
    if guide.master is not None:
        return guide.master().plates  # type: ignore[operator]
    plates: dict[str, Any] = {}
    if guide.create_plates is not None:
        created = guide.create_plates(*args, **kwargs)
        created = [created] if isinstance(created, pyro.plate) else created
        plates = {plate.name: plate for plate in created}
    for site in _latent_sites(guide):
        for frame in _frames(site):
            if frame.name not in plates:
                plates[frame.name] = pyro.plate(frame.name, _full_size(frame), dim=frame.dim)
    return plates


@contextmanager
def _inside(site: Site, plates: Mapping[str, Any]) -> Iterator[Callable[[Tensor, int], Tensor]]:
    """Enter the plates of a site.

    Yields a function that selects the rows of these plates from a parameter with a given number
    of event dimensions.
    """
    with ExitStack() as stack:
        rows = {f.dim: stack.enter_context(plates[f.name]) for f in _frames(site)}

        def select(parameter: Tensor, event_dim: int) -> Tensor:
            for dim, index in rows.items():
                axis = parameter.ndim - event_dim + dim
                if axis >= 0 and parameter.shape[axis] > 1:
                    parameter = parameter.index_select(axis, index.to(parameter.device))
            return parameter

        yield select


def _run_normal(guide: AutoNormal, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Run an ``AutoNormal``."""
    plates = _create_plates(guide, args, kwargs)
    result = {}
    for site in _latent_sites(guide):
        loc, scale = (attrgetter(site["name"])(part) for part in (guide.locs, guide.scales))
        result[site["name"]] = _sample_normal(site, plates, loc, scale)
    return result


def _run_continuous(guide: AutoContinuous, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Run an autoguide with one distribution of the unconstrained latents of all examples."""
    posterior: Any = guide.get_posterior(*args, **kwargs)
    _check_posterior(guide, posterior)
    plates, sites = _create_plates(guide, args, kwargs), _latent_sites(guide)
    if _is_product_of(dist.Normal, posterior):
        blocks = _split(sites)
        loc, scale = posterior.base_dist.loc, posterior.base_dist.scale
        return {
            site["name"]: _sample_normal(site, plates, loc[block], scale[block])
            for site, block in zip(sites, blocks, strict=True)
        }
    if isinstance(posterior, _NORMALS):
        return _sample_marginals(_Marginals.create(guide, posterior), sites, plates)
    (site,) = sites
    with _inside(site, plates):
        shape = _unconstrained(site).shape[len(site["fn"].batch_shape) :]
        event = [ReshapeTransform(posterior.event_shape, shape, cache_size=1)]
        fn = dist.TransformedDistribution(posterior, [*event, _cached_transform(site)])
        return {site["name"]: pyro.sample(site["name"], fn)}


def _is_product_of(kind: type[Distribution], posterior: Distribution) -> bool:
    """Whether the elements of a vector are independent, each with a distribution of a kind."""
    return isinstance(posterior, Independent) and isinstance(posterior.base_dist, kind)


def _check_posterior(guide: AutoGuide, posterior: Any) -> None:
    """Raise unless the distribution of the latents of all examples gives one of each example."""
    if _is_product_of(dist.Normal, posterior) or isinstance(posterior, _NORMALS):
        return
    if _is_product_of(dist.Delta, posterior):
        raise ValueError(
            f"expected a guide with a density of every continuous latent; got "
            f"{type(guide).__name__}, which samples the mode, a point mass: after training, pass "
            f"guide.laplace_approximation(x), the normal at the mode"
        )
    first, *others = _latent_sites(guide)
    if others or [_full_size(frame) for frame in _frames(first)] != [1]:
        _refuse(guide)


def _refuse(guide: AutoGuide, *args: Any, **kwargs: Any) -> Any:
    """Raise because the density q(z_n) of an example is not known."""
    raise ValueError(
        f"expected a guide with a density q(z_n) of each example; got {type(guide).__name__}, "
        f"which samples the latents of all examples together, and gives the density of all "
        f"together: use AutoNormal, AutoMultivariateNormal, or a guide that computes q(z_n) from "
        f"x_n"
    )


def _unconstrained(site: Site) -> Tensor:
    """Return the initial value of a site in unconstrained space, ``(*batch, *event)``."""
    value: Any = biject_to(site["fn"].support).inv(site["value"])
    return value


def _split(sites: Sequence[Site]) -> list[Tensor]:
    """Return the positions of the elements of each site in the vector of all latents."""
    blocks, start = [], 0
    for site in sites:
        value = _unconstrained(site)
        positions = torch.arange(start, start + value.numel(), device=value.device)
        blocks.append(positions.reshape(value.shape))
        start += value.numel()
    return blocks


def _cached_transform(site: Site) -> Transform:
    """Return the transform from unconstrained space to the support of a site."""
    # with a cache, the density of a draw needs no inverse, which is inexact near a boundary
    return biject_to(site["fn"].support).with_cache()


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


def _transform_normal(base: Distribution, *transforms: Transform) -> Any:
    """Return the distribution of transformed normal variables."""
    steps = [transform for transform in transforms if not _is_identity(transform)]
    return TransformedNormal(base, steps) if steps else base


def _sample_normal(site: Site, plates: Mapping[str, Any], loc: Tensor, scale: Tensor) -> Tensor:
    """Sample a site whose unconstrained elements are independent normal variables."""
    # the dimension of an unconstrained event may differ, e.g. of a Cholesky factor
    event_dim = site["fn"].event_dim + loc.ndim - site["value"].ndim
    with _inside(site, plates) as select:
        base = dist.Normal(select(loc, event_dim), select(scale, event_dim)).to_event(event_dim)
        fn = _transform_normal(base, _cached_transform(site))
        return pyro.sample(site["name"], fn)


class _Marginals(NamedTuple):
    """The normal q(z_n) of the D unconstrained latents of each of N examples.

    Attributes:
        loc: the means, ``(N, D)``.
        scale_tril: Cholesky factors of the covariances, ``(N, D, D)``.
        shapes: the shape of each site's unconstrained event; D is the sum of their sizes.
    """

    loc: Tensor
    scale_tril: Tensor
    shapes: Sequence[torch.Size]

    @classmethod
    def create(cls, guide: AutoGuide, posterior: Any) -> _Marginals:
        """Return the marginals of a normal of all latents of all examples.

        Raises:
            ValueError: if a site has several plates: a site of an inner plate is sampled
                independently for each of its elements, and the normal correlates them.
        """
        sites = _latent_sites(guide)
        rows, shapes = [], []
        for site, block in zip(sites, _split(sites), strict=True):
            frames = _frames(site)
            if len(frames) != 1:
                plates = ", ".join(repr(frame.name) for frame in frames) or "none"
                raise ValueError(
                    f"expected latents of {type(guide).__name__} inside the plate over the data "
                    f"alone; got site {site['name']!r} with the plates {plates}: make the others "
                    f"event dimensions by .to_event(…), or use AutoNormal"
                )
            depth = len(site["fn"].batch_shape)
            shapes.append(block.shape[depth:])
            size = _full_size(frames[0])
            rows.append(block.movedim(depth + frames[0].dim, 0).reshape(size, -1))
        index = torch.cat(rows, 1)
        if isinstance(posterior, dist.MultivariateNormal):
            factor = posterior.scale_tril[index]
            covariance = factor @ factor.mT
        else:
            factor = posterior.cov_factor[index]
            covariance = factor @ factor.mT + posterior.cov_diag[index].diag_embed()
        return cls(posterior.loc[index], torch.linalg.cholesky(covariance), shapes)

    @property
    def entropy(self) -> Tensor:
        """Sum of the entropies of all examples, in nats."""
        log_scale = self.scale_tril.diagonal(dim1=1, dim2=2).log().sum()
        return log_scale + self.loc.numel() * (1 + math.log(2 * math.pi)) / 2


def _sample_marginals(
    marginals: _Marginals, sites: Sequence[Site], plates: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Sample each site of an example, given its preceding sites."""
    result: dict[str, Tensor] = {}
    noise: list[Tensor] = []
    bounds = itertools.accumulate((shape.numel() for shape in marginals.shapes), initial=0)
    for site, shape, (start, stop) in zip(
        sites, marginals.shapes, itertools.pairwise(bounds), strict=True
    ):
        # the batch dimensions of an example to the right of the plate have size 1
        (frame,) = _frames(site)
        ones = (1,) * (-1 - frame.dim)
        loc, rows = marginals.loc[:, start:stop], marginals.scale_tril[:, start:stop]
        with _inside(site, plates) as select:
            mean = select(loc.reshape(len(loc), *ones, *loc.shape[1:]), 1)
            factor = select(rows.reshape(len(rows), *ones, *rows.shape[1:]), 2)
            if noise:
                preceding = torch.cat(noise, -1).unsqueeze(-1)
                mean = mean + (factor[..., :start] @ preceding).squeeze(-1)
            scale_tril = factor[..., start:stop]
            transform = _cached_transform(site)
            if shape:
                base = distributions.MultivariateNormal(mean, scale_tril=scale_tril)
                event = ReshapeTransform(mean.shape[-1:], shape, cache_size=1)
                fn = _transform_normal(base, *([event] if len(shape) > 1 else []), transform)
            else:
                base = dist.Normal(mean[..., 0], scale_tril[..., 0, 0])
                fn = _transform_normal(base, transform)
            value = pyro.sample(site["name"], fn)
        result[site["name"]] = value
        u: Any = transform.inv(value)
        u = u.flatten(u.ndim - len(shape)) if shape else u.unsqueeze(-1)
        difference = (u - mean).unsqueeze(-1)
        noise.append(torch.linalg.solve_triangular(scale_tril, difference, upper=False)[..., 0])
    return result


def _warn_if_correlated(guide: AutoGuide, posterior: Any) -> None:
    """Warn if the bounds of the examples' marginals exceed that of a joint normal guide."""
    if not isinstance(posterior, _NORMALS):
        return
    marginals = _Marginals.create(guide, posterior)
    excess = float(marginals.entropy - posterior.entropy())
    if excess > _MAX_EXCESS * len(marginals.loc):
        warnings.warn(
            f"{type(guide).__name__} correlates the examples: each is evaluated with its marginal "
            f"q(z_n), and the sum of their bounds exceeds the bound of the joint guide by "
            f"{excess:.3g} nats",
            stacklevel=4,
        )
