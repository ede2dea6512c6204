"""The path of annealing: from what can be drawn from, to the posterior."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from ...programs.base import empty_program
from ...programs.hmc import Point, StepSizes, jitter_step_size, transition, value_and_grad
from ...programs.importance_weights import Layout, log_probs_at, run_particles
from ...programs.particles import guide_scorer
from ...programs.unconstrained import unconstrained_posterior

__all__ = ["Path", "PathState", "Pilot", "annealed", "bridge", "explored"]

Latents = Mapping[str, Tensor]

#: Draws behind the guide's standard deviations.
_DRAWS = 64
#: Transitions before a pilot moves, its first step size, and how fast its step sizes follow the
#: acceptance from one temperature to the next.
_WARM_UP, _STEP, _GAIN = 20, 0.3, 1.0


@dataclass(frozen=True)
class Path:
    """log f_β = log f_0 + β (log f_1 − log f_0), of C chains for each of N data.

    The densities are of unconstrained variables v, ``(C, N, …)`` by latent site. β may be
    above 1.

    Attributes:
        terms: log f_0 and log f_1 − log f_0, each ``(C, N)`` in nats, at given v.
        draw: so many draws of f_0.
        variables: v of given latents.
        slope: :meth:`at` as a compiled graph, of β and v, or ``None`` for v of another shape.
    """

    terms: Callable[[Latents], tuple[Tensor, Tensor]]
    draw: Callable[[int], dict[str, Tensor]]
    variables: Callable[[Latents], dict[str, Tensor]]
    slope: Callable[[float, Latents], tuple[Point, Tensor] | None] | None = None

    def density(self, beta: float) -> Callable[[Latents], Tensor]:
        """log f_β."""
        return _Density(self, beta)

    def at(self, beta: float, position: Latents) -> tuple[Point, Tensor]:
        """Where chains are on log f_β, with its gradient, and log f_1 − log f_0 there."""
        found = None if self.slope is None else self.slope(beta, position)
        if found is not None:
            return found
        seen: list[Tensor] = []

        def log_density(v: Latents) -> Tensor:
            first, difference = self.terms(v)
            seen.append(difference.detach())
            return first + beta * difference

        return value_and_grad(log_density, position), seen[0]


@dataclass(frozen=True)
class _Density:
    """log f_β, with a gradient as its path has it."""

    path: Path
    beta: float

    def __call__(self, v: Latents) -> Tensor:
        first, difference = self.path.terms(v)
        return first + self.beta * difference

    def start(self, position: Latents) -> Point:
        return self.path.at(self.beta, position)[0]


def bridge(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    layout: Layout,
    initial: Literal["guide", "prior"],
    **kwargs: Any,
) -> Path:
    """The path from q(z|x) or from p(z) to p(x, z) of a Pyro program.

    From the guide, variables are measured in its standard deviations, so that one step size
    serves all of them; from the prior, nothing is asked of the guide.

    Arguments:
        model, guide: the program, called as ``model(x, *args, **kwargs)``.
        x: the data, ``(N, …)``.
        layout: the layout of the chains, see :func:`~.importance_weights.inspect`.
        initial: where the path begins.

    Raises:
        ValueError: if a latent site is discrete or on a sphere; when used, if the guide has no
            density at a draw that is not its own (a flow without an inverse).
    """
    space = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
    source = guide if initial == "guide" else model
    log_q = guide_scorer(guide, x, *args, layout=layout, **kwargs)

    def drawn(count: int) -> dict[str, Tensor]:
        run_ = run_particles(
            empty_program, source, x, *args, num_samples=count, layout=layout, **kwargs
        )
        return space.inverse({name: run_.latents[name] for name in space.transforms})

    unit: dict[str, Tensor] = {}
    if initial == "guide":
        for name, u in drawn(_DRAWS).items():
            unit[name] = u.std(0).clamp(min=torch.finfo(u.dtype).eps)

    def scaled(u: Latents) -> dict[str, Tensor]:
        return {name: part / unit[name] if unit else part for name, part in u.items()}

    def terms(v: Latents) -> tuple[Tensor, Tensor]:
        u = {name: part * unit[name] if unit else part for name, part in v.items()}
        # a trajectory that diverges hands NaN to distributions, which is no error of the user's
        with pyro.validation_enabled(False):
            z = space.constrain(u)
            volume = space.log_volume(u, z)
            log_p = log_probs_at(model, z, x, *args, layout=layout, **kwargs)
            if initial == "guide":
                q = log_q(z)
                return volume + q, _sum(log_p.values()) - q
            prior = _sum(log_p[name] for name in z)
            likelihood = _sum(term for name, term in log_p.items() if name not in z)
            return volume + prior, likelihood

    return Path(terms, lambda count: scaled(drawn(count)), lambda z: scaled(space.inverse(z)))


@dataclass(frozen=True)
class PathState:
    """Where chains are on their way.

    Attributes:
        beta: β, which the chains are about to be moved at.
        log_weights: log w of each chain, ``(C, N)`` float64, so far that the chains with
            these weights are draws of f_β.
        difference: log f_1 − log f_0, ``(C, N)``.
        acceptance: the probability with which the transition before was accepted, ``(C, N)``.
    """

    beta: float
    log_weights: Tensor
    difference: Tensor
    acceptance: Tensor | None


@torch.no_grad()
def annealed(
    path: Path,
    position: Latents,
    betas: Sequence[float],
    step_sizes: Tensor,
    num_steps: int,
) -> Iterator[PathState]:
    """Annealed importance sampling: chains follow f_β from the first β to the last.

    At every β but the first the weights grow by f_β / f_{β'} where the chains are, β' being
    the one before; then one transition of HMC leaves f_β invariant. From the last weight on,
    the mean of w is Z_last / Z_first in expectation, whichever way β moves, if the chains
    begin as exact draws and the step sizes do not depend on them.

    Arguments:
        path: f_β.
        position: draws of f at the first β.
        betas: the β, T + 1 of them.
        step_sizes: for each of them, ``(T + 1, 1, N)`` or ``(T + 1, C, N)``.
        num_steps: leapfrog steps of a transition.

    References:
        Annealed Importance Sampling (Neal, 2001), section 2.
        https://arxiv.org/abs/physics/9803008
    """
    log_weights, acceptance = torch.zeros((), dtype=torch.float64), None
    for i, (before, beta) in enumerate(pairwise(betas), start=1):
        point, difference = path.at(beta, position)
        log_weights = log_weights.to(difference.device) + (beta - before) * difference.double()
        yield PathState(beta, log_weights, difference, acceptance)
        if i == len(betas) - 1:
            return
        epsilon = jitter_step_size(step_sizes[i].expand_as(point.log_density))
        point, acceptance = transition(path.density(beta), point, epsilon, num_steps)
        position = point.position


@dataclass(frozen=True)
class Pilot:
    """What a first, short run has found out.

    Attributes:
        betas: where it was, ``(P,)``.
        step_sizes: for each, ``(P, 1, N)``.
        spread: the standard deviation of log f_1 − log f_0 at each, ``(P,)``: the root of the
            mean over data of the variance over their chains.
    """

    betas: Tensor
    step_sizes: Tensor
    spread: Tensor

    def step_sizes_at(self, betas: Sequence[float]) -> Tensor:
        """Step sizes ``(len(betas), 1, N)``, interpolated."""
        wanted = torch.as_tensor(betas, dtype=torch.float64)
        right = torch.searchsorted(self.betas, wanted).clamp(1, len(self.betas) - 1)
        low, high = self.betas[right - 1], self.betas[right]
        share = ((wanted - low) / (high - low)).clamp(0, 1)[:, None, None].to(self.step_sizes)
        return self.step_sizes[right - 1] * (1 - share) + self.step_sizes[right] * share


@torch.no_grad()
def explored(
    path: Path, betas: Sequence[float], num_chains: int, num_steps: int, target: float
) -> Pilot:
    """A run through a few temperatures that tunes step sizes, for another to be frozen in.

    Weights of chains whose step sizes follow their acceptance would be biased; these chains
    are thrown away.

    Arguments:
        path: f_β.
        betas: the temperatures, rising from 0.
        num_chains: the number C of chains for each datum, whose mean acceptance counts.
        num_steps: leapfrog steps of a transition.
        target: the probability of acceptance to arrive at.
    """
    point, difference = path.at(betas[0], path.draw(num_chains))
    step_size = torch.full_like(difference[:1], _STEP)
    tuning = StepSizes(step_size, target)
    for _ in range(_WARM_UP):
        epsilon = jitter_step_size(tuning.step_size.expand_as(difference))
        point, probability = transition(path.density(betas[0]), point, epsilon, num_steps)
        tuning.update(probability.mean(0, keepdim=True))
    log_step = tuning.final.log()
    steps, spread = [log_step], []
    for beta in betas[1:]:
        point, difference = path.at(beta, point.position)
        spread.append(_spread(difference))
        epsilon = jitter_step_size(log_step.exp().expand_as(difference))
        point, probability = transition(path.density(beta), point, epsilon, num_steps)
        log_step = log_step + _GAIN * (probability.mean(0, keepdim=True) - target)
        steps.append(log_step)
    _, difference = path.at(betas[-1], point.position)
    spread.append(_spread(difference))
    where = torch.as_tensor(betas, dtype=torch.float64)
    return Pilot(where, torch.stack(steps).exp(), torch.stack(spread))


def _spread(difference: Tensor) -> Tensor:
    """The standard deviation within a datum's chains, over all data."""
    usable = difference.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return usable.var(0, correction=0).mean().sqrt().cpu()


def _sum(terms: Any) -> Tensor:
    return torch.stack(tuple(terms)).sum(0)
