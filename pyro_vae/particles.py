"""Weighted runs of a Pyro program: K particles of guide and model on a minibatch.

Everything that judges a program (and, later, everything that learns it) is a function of
the per-site log-probabilities computed here, so that there is one place where a plate, a
mask or a flow's log|det J| can be right or wrong.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ._programs import PLATE, Site, check, evaluating, own_parameters, samples, traces, with_noise

__all__ = [
    "Layout",
    "Particles",
    "inspect",
    "laid_out",
    "log_prob_of",
    "log_weights",
    "run",
    "stream",
]

_PARTICLES = "_particles"

#: Bytes that one (particles × data) tensor of observations should take: larger tensors leave
#: the processor's caches, smaller ones pay Python's overhead more often.
_CHUNK_BYTES = 1 << 24
#: Numbers that the widest tensor of a chunk may have.
_MOST_NUMBERS = _CHUNK_BYTES
#: (particle, datum) pairs in a chunk, however small a datum is: networks between have width.
_MOST_PAIRS = 1 << 15
#: Fewer particles than this in a chunk would repeat the encoder's work too often.
_MIN_PARTICLES = 64


@dataclass(frozen=True)
class Particles:
    """One weighted run: K particles for each of N data.

    Attributes:
        log_p: log-density of every sample site of the model, each ``(K, N)``, in nats.
        log_q: the same for every sample site of the guide.
        latents: the values drawn by the guide, each ``(K, N, *event)`` where the guide's
            plates are those of the data alone.
    """

    log_p: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    latents: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log q(z|x), ``(K, N)``."""
        total = torch.stack(tuple(self.log_p.values())).sum(0)
        for log_q in self.log_q.values():
            total = total - log_q
        return total


@dataclass(frozen=True)
class Layout:
    """How a program's particles are laid out.

    Attributes:
        nesting: the depth of the program's own plates.
        tiled: ``False`` for a particle dimension on the left of the plates, which costs
            nothing where nothing depends on it (an encoder runs once for all particles);
            ``True`` to run each datum K times as if it were K data, for programs that do not
            allow another dimension (a ``Conv2d``, a ``softmax(dim=1)``).
        width: the numbers that the widest site holds for one (particle, datum): a categorical
            over 256 levels has as many logits for each pixel.
    """

    nesting: int = 1
    tiled: bool = False
    width: int = 1


def run(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    layout: Layout = Layout(),
    draws: Mapping[str, Site] | None = None,
    **kwargs: Any,
) -> Particles:
    """Runs guide and model once, ``num_samples`` particles wide; differentiable.

    Scales (of a subsampling plate, of an annealed KL) are devices of training and not part
    of the density: they are left out. Masks stay: a masked observation is not observed.

    Arguments:
        model: a Pyro model with every sample site inside ``pyro.plate("data", N)``.
        guide: its guide.
        *args: handed to both, as are ``**kwargs``; the first is the data, ``(N, …)``.
        num_samples: the number K of particles.
        layout: how to lay them out, from :func:`inspect`.
        draws: sites of one earlier run without particles: every particle repeats its draws.
    """
    size = len(args[0])
    shape = (num_samples, size)
    if draws is not None:
        draws = {name: _repeated(site, num_samples, layout) for name, site in draws.items()}
    args, kwargs, plate, dim = laid_out(size, num_samples, layout, args, kwargs)
    with plate:
        guide_sites, model_sites = map(samples, traces(model, guide, args, kwargs, draws))
    latents = {n: s["value"] for n, s in guide_sites.items() if not s["is_observed"]}
    if layout.tiled:
        latents = {
            n: v.unflatten(0, shape) for n, v in latents.items() if len(v) == math.prod(shape)
        }
    return Particles(
        log_p={name: log_prob_of(site, dim, shape) for name, site in model_sites.items()},
        log_q={name: log_prob_of(site, dim, shape) for name, site in guide_sites.items()},
        latents=latents,
    )


@torch.no_grad()
def inspect(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> Layout:
    """Checks that the program's weights exist per datum, and finds a layout that gives them.

    One run without particles is repeated, on the same draws, with two particles. Where the
    repetition has other weights or fails, the program reads a batch dimension by position,
    and its particles are tiled.

    Raises:
        ValueError: if there are no weights per datum, saying why.
    """
    both = traces(model, guide, args, kwargs)
    draws = with_noise(both[0])
    guide_sites, model_sites = map(samples, both)
    size = len(args[0])
    nesting = check(guide_sites, model_sites, size)
    width = max(_width(s, size) for m in (guide_sites, model_sites) for s in m.values())
    once = Particles(
        log_p={n: log_prob_of(s, None, (1, size)) for n, s in model_sites.items()},
        log_q={n: log_prob_of(s, None, (1, size)) for n, s in guide_sites.items()},
    ).log_weights
    half = _half(model, guide, args, kwargs, draws, nesting)
    if half is not None and not _same(half, once[:, : half.shape[1]]):
        raise ValueError(_MIXES)
    failure: Exception | None = None
    for layout in (Layout(nesting, False, width), Layout(nesting, True, width)):
        try:
            twice = run(
                model, guide, *args, num_samples=2, layout=layout, draws=draws, **kwargs
            ).log_weights
        except (RuntimeError, ValueError, IndexError) as error:
            failure = error
            continue
        if _same(twice, once.expand(2, size)):
            if layout.tiled:
                warnings.warn(
                    "the program does not allow a particle dimension on the left of its plates: "
                    "each draw runs as one more datum, the encoder included",
                    stacklevel=2,
                )
            return layout
    raise ValueError(_MIXES) from failure


_MIXES = (
    "expected weights that do not depend on which other data and draws are run beside; this "
    "program's do: it mixes data (a statistic over the batch?), or reads a tensor of leading "
    "size N that is not per datum (bind that one with functools.partial)"
)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)


def _half(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Site],
    nesting: int,
) -> Tensor | None:
    """The weights of the first half of the data, by themselves, on the draws they had.

    ``None`` where there is no half, where another tensor has as many entries as there are
    data (it may not be per datum), or where the guide knows these data alone.
    """
    size = len(args[0])
    if size < 2 or _batched(size, (*args[1:], *kwargs.values())):
        return None
    layout = Layout(nesting, tiled=True)  # of one particle: no dimension is added
    taken = {n: _changed(s, lambda v, dim: v.narrow(dim, 0, size // 2)) for n, s in draws.items()}
    try:
        x = args[0][: size // 2]
        halved = run(
            model, guide, x, *args[1:], num_samples=1, layout=layout, draws=taken, **kwargs
        )
    except (RuntimeError, ValueError, IndexError):
        return None
    return halved.log_weights


@torch.no_grad()
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """log p(x_n, z_kn) − log q(z_kn | x_n) with z_kn ~ q: importance weights **per datum**.

    The mean over k is the ELBO, the log-mean-exp over k is L_K, of each datum. For any Pyro
    program whose sample sites all lie in ``pyro.plate("data", len(x))``; Pyro's own
    ``vectorized_importance_weights`` gives one weight for the whole minibatch instead.

    Arguments:
        model: the Pyro model, called as ``model(x, *args, **kwargs)``.
        guide: its guide, called likewise.
        x: the data, ``(N, …)``.
        *args: further arguments of both. A tensor of leading size N, here or in ``**kwargs``,
            is taken to be per datum and split with ``x`` (bind others with ``partial``).
        num_samples: the number K of draws for each datum.
        chunk_size: how many (particle, datum) pairs to hold at once; chosen from the size of
            a datum if not given. Bounds the memory beyond the result itself.

    Returns:
        The log weights, ``(K, N)``, in nats, without gradient.

    Raises:
        ValueError: if ``x`` is empty, ``num_samples`` < 1, or the program's weights do not
            exist per datum (a site outside the plate, sites that only one of the two samples,
            data that depend on each other).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), equation 8.
        https://arxiv.org/abs/1509.00519
    """
    result: Tensor | None = None
    for data, draws, chunk in stream(
        model, guide, x, *args, num_samples=num_samples, chunk_size=chunk_size, **kwargs
    ):
        if result is None:
            result = chunk.new_empty(num_samples, len(x))
        result[draws, data] = chunk
    assert result is not None  # there is at least one datum and one draw
    return result


@torch.no_grad()
def stream(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """:func:`log_weights` chunk by chunk: ``(data, draws, (draws, data) weights)``.

    All draws of one block of data come before the next block. The programs run in
    evaluation mode (no dropout), with the parameters that their modules hold.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got {got}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ValueError(f"expected num_samples to be an integer ≥ 1; got {num_samples!r}")
    num_samples = int(num_samples)
    pairs = _pairs(x, chunk_size)
    size = len(x)

    def block(data: slice) -> tuple[tuple, dict[str, Any]]:
        return _map(lambda tensor: tensor[data], size, (x, *args), kwargs)

    with own_parameters(model, guide), evaluating(model, guide):
        draws_at_once, data_at_once = _chunk(size, num_samples, pairs)
        if data_at_once < size <= pairs and _batched(size, (*args, *kwargs.values())):
            # there is room for all data at once, so nothing needs to be taken for per datum
            draws_at_once, data_at_once = max(1, pairs // size), size
        try:
            inputs, named = block(slice(0, data_at_once))
            layout = inspect(model, guide, *inputs, **named)
        except ValueError:
            if data_at_once >= size:
                raise
            # a guide with parameters for each datum wants to see all of them
            layout = inspect(model, guide, x, *args, **kwargs)
            draws_at_once, data_at_once = max(1, pairs // size), size
        if chunk_size is None and pairs * layout.width > _MOST_NUMBERS:
            pairs = max(1, _MOST_NUMBERS // layout.width)
            draws_at_once = max(1, min(draws_at_once, pairs // data_at_once))
        for start in range(0, size, data_at_once):
            data = slice(start, min(start + data_at_once, size))
            inputs, named = block(data)
            for first in range(0, num_samples, draws_at_once):
                draws = slice(first, min(first + draws_at_once, num_samples))
                count = draws.stop - draws.start
                particles = run(model, guide, *inputs, num_samples=count, layout=layout, **named)
                yield data, draws, particles.log_weights


def laid_out(
    size: int, num_samples: int, layout: Layout, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any], Any, int | None]:
    """The arguments, the plate and the dimension of so many particles."""
    if layout.tiled:
        args, tiled = _map(lambda tensor: torch.cat([tensor] * num_samples), size, args, kwargs)
        return args, tiled, nullcontext(), None
    dim = -1 - layout.nesting
    return args, dict(kwargs), pyro.plate(_PARTICLES, num_samples, dim=dim), dim


def log_prob_of(site: Site, particle_dim: int | None, shape: tuple[int, int]) -> Tensor:
    """log p of one site, ``(K, N)``: summed over every plate but the particles' and the data's.

    Without a particle dimension, the data's holds K × N entries, particle by particle.
    """
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, mask=site["mask"])
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    others = [d for d in range(-log_prob.ndim, 0) if d not in (particle_dim, data_dim)]
    if others:
        log_prob = log_prob.sum(others)
    if particle_dim is None:
        return log_prob.expand(math.prod(shape)).reshape(shape)
    return log_prob.expand(shape)


def _width(site: Site, size: int) -> int:
    """The numbers of the largest tensor of a site, its value or a parameter, for one datum."""
    found, waiting = [site["value"]], [site["fn"]]
    while waiting:
        for part in vars(waiting.pop()).values():
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, torch.distributions.Distribution):
                waiting.append(part)
    return max(tensor.numel() for tensor in found) // size


def _changed(site: Site, change: Callable[[Tensor, int], Tensor]) -> Site:
    """A site of a run without particles, its draw changed along the data's dimension."""
    if site["type"] != "sample":
        return site
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    batch_dims = len(site["fn"].batch_shape)
    drawn = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {k: change(v, data_dim - (v.ndim - batch_dims)) for k, v in drawn.items()}


def _repeated(site: Site, num_samples: int, layout: Layout) -> Site:
    """A site of a run without particles, its draw repeated for each of them."""
    if layout.tiled:
        return _changed(site, lambda value, dim: torch.cat([value] * num_samples, dim))
    if site["type"] != "sample":
        return site
    # plates that the site is not in stand between the particles' dimension and its own
    missing = (1,) * (layout.nesting - len(site["fn"].batch_shape))
    drawn = {key: site[key] for key in ("value", "noise") if key in site}
    return {**site} | {
        k: v.reshape(*missing, *v.shape).expand(num_samples, *missing, *v.shape)
        for k, v in drawn.items()
    }


def _pairs(x: Tensor, chunk_size: int | None) -> int:
    """How many (particle, datum) pairs to hold at once."""
    if chunk_size is None:
        return max(1, min(_CHUNK_BYTES // (4 * max(1, math.prod(x.shape[1:]))), _MOST_PAIRS))
    if chunk_size < 1:
        raise ValueError(f"expected chunk_size ≥ 1; got {chunk_size}")
    return chunk_size


def _chunk(size: int, num_samples: int, pairs: int) -> tuple[int, int]:
    """How many draws and how many data make up so many pairs."""
    fewest = min(num_samples, _MIN_PARTICLES, pairs)
    draws = min(num_samples, max(pairs // size, fewest, 1))
    return draws, min(size, max(1, pairs // draws))


def _batched(size: int, values: tuple[Any, ...]) -> bool:
    return any(isinstance(v, Tensor) and v.ndim > 0 and len(v) == size for v in values)


def _map(
    change: Callable[[Tensor], Tensor], size: int, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Arguments with every per-datum tensor changed."""

    def changed(value: Any) -> Any:
        return change(value) if _batched(size, (value,)) else value

    return tuple(map(changed, args)), {key: changed(value) for key, value in kwargs.items()}
