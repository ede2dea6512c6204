"""Weighted runs of a Pyro program: K particles of guide and model on a minibatch.

Everything that judges a program (and, later, everything that learns it) is a function of
the per-site log-probabilities computed here, so that there is one place where a plate, a
mask or a flow's log|det J| can be right or wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

__all__ = [
    "Particles",
    "Program",
    "Site",
    "log_weights",
    "own_parameters",
    "plate_nesting",
    "run",
    "samples",
    "stream",
    "traces",
]

#: What Pyro records of one site: its distribution ``fn``, ``value``, ``mask`` and so on.
Site = Mapping[str, Any]

#: The name of the plate that holds every per-datum site.
PLATE = "data"
_PARTICLES = "_particles"

#: Bytes that one (particles × data) tensor of observations should take: larger tensors leave
#: the processor's caches, smaller ones pay Python's overhead more often.
_CHUNK_BYTES = 1 << 24
#: Fewer particles than this in a chunk would repeat the encoder's work too often.
_MIN_PARTICLES = 64


@runtime_checkable
class Program(Protocol):
    """A Pyro model and its guide, called with the same arguments."""

    @property
    def model(self) -> Callable[..., Any]: ...

    @property
    def guide(self) -> Callable[..., Any]: ...


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


def run(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int,
    plate_nesting: int = 1,
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
        plate_nesting: the depth of the program's own plates, from :func:`plate_nesting`.
    """
    dim = -1 - plate_nesting
    with pyro.plate(_PARTICLES, num_samples, dim=dim):
        guide_sites, model_sites = map(samples, traces(model, guide, args, kwargs))
    shape = (num_samples, len(args[0]))
    return Particles(
        log_p={name: _log_prob(site, dim, shape) for name, site in model_sites.items()},
        log_q={name: _log_prob(site, dim, shape) for name, site in guide_sites.items()},
        latents={n: s["value"] for n, s in guide_sites.items() if not s["is_observed"]},
    )


def plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> int:
    """The depth of the program's plates, after checking that its weights exist per datum.

    Raises:
        ValueError: if a sample site is outside the plate ``"data"``, if the plate does not
            hold exactly the data given, or if model and guide do not sample the same sites.
    """
    guide_sites, model_sites = map(samples, traces(model, guide, args, kwargs))
    sites = {"guide": guide_sites, "model": model_sites}
    for program, members in sites.items():
        for name, site in members.items():
            _check_plate(program, name, site, len(args[0]))
    _check_match(model_sites, guide_sites)
    frames = [f for m in sites.values() for s in m.values() for f in s["cond_indep_stack"]]
    return max(-frame.dim for frame in frames if frame.vectorized)


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
        model: the Pyro model, called as ``model(x, *args, **kwargs)``; it must allow one more
            batch dimension on the left of its plates, as Pyro's vectorised particles do.
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
            exist per datum (a site outside the plate, sites that only one of the two samples).

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
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected num_samples to be an integer ≥ 1; got {num_samples!r}")
    draws_at_once, data_at_once = _chunk(x, num_samples, chunk_size)
    with own_parameters(model, guide), _evaluating(model, guide):
        nesting: int | None = None
        for start in range(0, len(x), data_at_once):
            data = slice(start, min(start + data_at_once, len(x)))
            x_n, *args_n = (_take(a, data, len(x)) for a in (x, *args))
            kwargs_n = {key: _take(value, data, len(x)) for key, value in kwargs.items()}
            if nesting is None:
                nesting = plate_nesting(model, guide, x_n, *args_n, **kwargs_n)
            for first in range(0, num_samples, draws_at_once):
                draws = slice(first, min(first + draws_at_once, num_samples))
                particles = run(
                    model,
                    guide,
                    x_n,
                    *args_n,
                    num_samples=draws.stop - draws.start,
                    plate_nesting=nesting,
                    **kwargs_n,
                )
                yield data, draws, particles.log_weights


def traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Site], dict[str, Site]]:
    """All sites of the guide, and of the model run on the guide's draws, by name."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    pruned = (prune_subsample_sites(trace) for trace in (guide_trace, model_trace))
    guide_sites, model_sites = (cast("dict[str, Site]", trace.nodes) for trace in pruned)
    return guide_sites, model_sites


def samples(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites that have a density; ``pyro.deterministic`` is a sample site in form only."""
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


@contextmanager
def own_parameters(*programs: Callable[..., Any]) -> Iterator[None]:
    """Makes modules use the parameters they hold, whatever Pyro's parameter store remembers.

    Pyro's store is global: a second ``PyroModule`` with the same parameter names would
    silently be given the first one's values. Parameters that a program makes with plain
    ``pyro.param`` are read from the store as always; the store itself is left unchanged.
    """
    held = {
        name.removesuffix("_unconstrained")
        for module in _modules(programs)
        for name, _ in module.named_parameters()
    }
    store = pyro.get_param_store()
    state = store.get_state()
    # "$$$" separates a plain nn.Module's name from its parameter's in the store
    names = [n for n in state["params"] if n.replace("$$$", ".") in held]
    for name in names:
        del state["params"][name], state["constraints"][name]
    with store.scope(state):
        yield


def _log_prob(site: Site, particle_dim: int, shape: tuple[int, int]) -> Tensor:
    """log p of one site, ``(K, N)``: summed over every plate but the particles' and the data's."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    log_prob = scale_and_mask(log_prob, mask=site["mask"])
    (data_dim,) = (f.dim for f in site["cond_indep_stack"] if f.name == PLATE)
    others = [d for d in range(-log_prob.ndim, 0) if d not in (particle_dim, data_dim)]
    if others:
        log_prob = log_prob.sum(others)
    return log_prob.expand(shape)


def _check_plate(program: str, name: str, site: Site, size: int) -> None:
    frames = [f for f in site["cond_indep_stack"] if f.name == PLATE]
    if not frames:
        raise ValueError(
            f"site '{name}' of the {program} is outside the plate \"{PLATE}\", so its draw would "
            f"be shared by all data and no weight per datum exists: sample it inside "
            f'`with pyro.plate("{PLATE}", len(x)):` (for a bound on the joint minibatch there is '
            f"pyro.infer.RenyiELBO)"
        )
    if not frames[0].vectorized or frames[0].size != size:
        got = f"holds {frames[0].size}" if frames[0].vectorized else "is a sequential loop"
        raise ValueError(
            f"expected the plate \"{PLATE}\" to hold the {size} data given; at site '{name}' of "
            f'the {program} it {got}: write `pyro.plate("{PLATE}", len(x))` without subsampling'
        )


def _check_match(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    latent = {n for n, s in model.items() if not s["is_observed"]}
    proposed = {
        n for n, s in guide.items() if not (s["is_observed"] or s["infer"].get("is_auxiliary"))
    }
    for names, has, lacks in (
        (latent - proposed, "model", "guide"),
        (proposed - latent, "guide", "model"),
    ):
        if names:
            raise ValueError(
                f"the {has} samples {', '.join(map(repr, sorted(names)))} and the {lacks} does "
                f"not: importance weights need the same latent sites in both"
            )
    if latent == set(model):
        raise ValueError(
            "the model observes nothing: give the data to one of its sites, `pyro.sample(…, obs=x)`"
        )


def _chunk(x: Tensor, num_samples: int, chunk_size: int | None) -> tuple[int, int]:
    """How many draws and how many data to hold at once."""
    if chunk_size is None:
        chunk_size = _CHUNK_BYTES // (4 * max(1, math.prod(x.shape[1:])))
    elif chunk_size < 1:
        raise ValueError(f"expected chunk_size ≥ 1; got {chunk_size}")
    fewest = min(num_samples, _MIN_PARTICLES, chunk_size)
    draws = min(num_samples, max(chunk_size // len(x), fewest, 1))
    return draws, max(1, chunk_size // draws)


def _take(value: Any, data: slice, size: int) -> Any:
    per_datum = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
    return value[data] if per_datum else value


def _modules(programs: tuple[Callable[..., Any], ...]) -> Iterator[nn.Module]:
    for program in programs:
        while isinstance(program, functools.partial):
            program = program.func
        owner = getattr(program, "__self__", program)
        if isinstance(owner, nn.Module):
            yield owner


@contextmanager
def _evaluating(*programs: Callable[..., Any]) -> Iterator[None]:
    training = [m for owner in _modules(programs) for m in owner.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
