"""q(z|x) fitted to every datum by itself, many data at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import identity_transform

from ...core.random import seeded
from ...programs.base import empty_program
from ...programs.importance_weights import Layout, log_probs_at, max_pairs, run_particles
from ...programs.sites import trace_sites
from ...programs.unconstrained import Unconstrained, flatten_sites, site_transforms, unflatten_sites
from .families import Family, is_noise

__all__ = ["Refit", "Settings", "Target", "refit", "target_of"]

#: Draws by which the start, the end and what came before it are compared.
_JUDGES = 200
#: The share of the steps whose gain says whether they were enough.
_LAST = 0.1
#: The share of the step size that they start from.
_ANEW = 0.2
#: Nats by which log q of its own draws does not spread in sound arithmetic.
_WILD = 1e3


@dataclass(frozen=True)
class Target:
    """log p(x, T(u)) + log|det ∂T/∂u| of N data, u being all latents of a datum as one vector.

    Calling it with u ``(K, N, D)`` gives ``(K, N)`` in nats.

    Attributes:
        space: the density, of variables by site.
        shapes: of each site's variables of one datum.
        draw: so many draws of the guide, ``(K, N, D)``.
        at_once: how many (draw, datum) pairs to hold at once.
    """

    space: Unconstrained
    shapes: Mapping[str, tuple[int, ...]]
    draw: Callable[[int], Tensor]
    at_once: int

    def __call__(self, u: Tensor) -> Tensor:
        return self.space(unflatten_sites(u, self.shapes))


def target_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    layout: Layout,
    as_drawn: bool,
    **kwargs: Any,
) -> Target:
    """The density that a family is fitted to.

    Noise that a program draws besides its latents, alike in model and guide, is drawn anew for
    every u.

    Arguments:
        model, guide: the program, called as ``model(*args, **kwargs)``.
        *args: the first is the data, ``(N, …)``.
        layout: the layout of the draws, see :func:`~.importance_weights.inspect`.
        as_drawn: take the latents as they are, on whatever space they live.

    Raises:
        ValueError: if a latent site is discrete, or cannot be transformed to real numbers.
    """
    sites = {n: s for n, s in trace_sites(guide, *args, **kwargs).items() if not s["is_observed"]}
    for name, site in sites.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites; site {name!r} ({type(site['fn']).__name__}) is "
                f"discrete, and no posterior family here has it: observe it, or sum it out"
            )
    noise = {name for name, site in sites.items() if is_noise(site)}
    moved = [n for n, s in sites.items() if n not in noise and not s["infer"].get("is_auxiliary")]
    if as_drawn:
        transforms = dict.fromkeys(moved, identity_transform)
    else:
        found = site_transforms(model, *args, **kwargs)
        transforms = {name: found[name] for name in moved}

    def drawn(count: int) -> Mapping[str, Tensor]:
        particles = run_particles(
            empty_program, guide, *args, num_samples=count, layout=layout, **kwargs
        )
        return particles.latents

    def log_density(z: Mapping[str, Tensor]) -> Tensor:
        others: dict[str, Tensor] = {}
        if noise:
            with torch.no_grad():
                others = {n: v for n, v in drawn(len(next(iter(z.values())))).items() if n in noise}
        terms = log_probs_at(model, {**z, **others}, *args, layout=layout, **kwargs)
        return torch.stack([term for name, term in terms.items() if name not in noise]).sum(0)

    space = Unconstrained(log_density, transforms)

    def draw(count: int) -> Tensor:
        z = drawn(count)
        return flatten_sites(space.inverse({name: z[name] for name in moved}))

    first = space.inverse({name: drawn(1)[name] for name in moved})
    shapes = {name: tuple(u.shape[2:]) for name, u in first.items()}
    return Target(space, shapes, draw, max(1, max_pairs(args[0])))


@dataclass(frozen=True)
class Settings:
    """How a family is fitted.

    Attributes:
        num_steps: steps of Adam.
        step_size: the first; it falls along a half cosine, twice: in the last tenth of the
            steps anew, from a fifth of it. What these gain was still to be had.
        num_draws: draws for each datum in a step.
    """

    num_steps: int
    step_size: float
    num_draws: int

    @property
    def before_last(self) -> int:
        """The step at which the last tenth begins."""
        return round((1 - _LAST) * self.num_steps)

    @property
    def step_sizes(self) -> Iterator[float]:
        """Of every step."""
        for first, count in ((1.0, self.before_last), (_ANEW, self.num_steps - self.before_last)):
            for step in range(count):
                yield first * self.step_size * (1 + math.cos(math.pi * step / count)) / 2


@dataclass(frozen=True)
class Refit:
    """A family at the best words that were found.

    Attributes:
        family: the family.
        words: ``(N, *outputs)``.
        better: where the fit is better than what it started from, ``(N,)``.
        late: what the last tenth of the steps gained of the ELBO, ``(N,)`` nats.
    """

    family: Family
    target: Target
    words: Tensor
    better: Tensor
    late: Tensor

    @torch.no_grad()
    def log_weights(self, num_samples: int) -> Iterator[Tensor]:
        """log p(x, u) − log q(u) of fresh draws, ``(draws, N)``, in chunks of them."""
        for log_p, log_q in _drawn(self.family, self.words, self.target, num_samples):
            yield log_p - log_q


def refit(
    family: Family, target: Target, settings: Settings, advance: Callable[[float], None]
) -> Refit:
    """Climbs the ELBO of every datum from the family's first words.

    Every number has its own step (Adam), so that no datum meets another. Start and end are
    compared by draws that neither the climb nor anybody afterwards uses: choosing the better
    flatters nobody.

    Arguments:
        family: what is fitted.
        target: to this density.
        settings: how.
        advance: told what share of the steps is done.
    """
    words = family.start.detach().clone()
    # a slope that is noise of rounding must not become a step
    adam = torch.optim.Adam(
        [words], lr=settings.step_size, betas=(0.9, 0.99), eps=1e-4, maximize=True
    )
    earlier = words.clone()
    for step, size in enumerate(settings.step_sizes):
        if step == settings.before_last:
            earlier = words.clone()
        adam.param_groups[0]["lr"] = size
        words.grad = _slope(family, words, target, settings.num_draws)
        adam.step()
        advance(1 / settings.num_steps)
    stream = int(torch.randint(2**31, ()))
    start, late, end = (
        _judged(family, each, target, stream) for each in (family.start, earlier, words)
    )
    chosen, value = words, end
    for other, there in ((earlier, late), (family.start, start)):
        worse = ~(value >= there)  # so is NaN
        chosen = torch.where(worse.reshape(-1, *[1] * (words.ndim - 1)), other, chosen)
        value = torch.where(worse, there, value)
    return Refit(family, target, chosen, value > start, (end - late).nan_to_num(0.0))


def _slope(family: Family, words: Tensor, target: Target, count: int) -> Tensor:
    with torch.enable_grad(), pyro.validation_enabled(False):
        leaf = words.detach().requires_grad_()
        u, log_q = family.draw(leaf, count)
        (slope,) = torch.autograd.grad((target(u) - log_q).sum() / count, leaf)
    return slope.nan_to_num(0.0, 0.0, 0.0)


@torch.no_grad()
def _judged(family: Family, words: Tensor, target: Target, stream: int) -> Tensor:
    """The ELBO of every datum, ``(N,)``, by the same noise for the same ``stream``."""
    with seeded(stream):
        chunks = zip(*_drawn(family, words, target, _JUDGES), strict=True)
        log_p, log_q = (torch.cat(chunk).double() for chunk in chunks)
    # a q that is all but singular is scored by rounding alone, which may look like any gain
    return torch.where(log_q.std(0) < _WILD, (log_p - log_q).mean(0), -math.inf)


def _drawn(
    family: Family, words: Tensor, target: Target, num_samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """log p(x, u) and log q(u) of draws of q, each ``(draws, N)``, in chunks of them."""
    chunk = max(1, target.at_once // len(words))
    for first in range(0, num_samples, chunk):
        with pyro.validation_enabled(False):
            u, log_q = family.draw(words, min(chunk, num_samples - first))
            yield target(u), log_q
