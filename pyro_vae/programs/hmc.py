"""Hamiltonian Monte Carlo, many chains for each of many data in one leapfrog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.evaluation_mode import eval_mode
from ..core.random import seeded
from ..core.validation import positive_int
from .base import use_own_parameters
from .importance_weights import Layout, find_layout, run_particles
from .unconstrained import Unconstrained, unconstrained_posterior

__all__ = [
    "Chains",
    "Differentiated",
    "LogDensity",
    "Point",
    "StepSizes",
    "check_finite",
    "check_target",
    "jitter_step_size",
    "leapfrog",
    "sample",
    "sample_posterior",
    "spread",
    "start",
    "transition",
    "value_and_grad",
]

#: Log-densities ``(C, N)`` of C chains for each of N data, of variables ``(C, N, *event)``; an
#: entry must not depend on the variables of another.
LogDensity = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Point:
    """Where all chains are.

    Attributes:
        position: each variable, ``(C, N, *event)``, any real numbers.
        log_density: ``(C, N)``, in nats.
        gradient: of the log-density by each variable, ``(C, N, *event)``.
    """

    position: Mapping[str, Tensor]
    log_density: Tensor
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True)
class Chains:
    """What HMC gives.

    Attributes:
        draws: each variable, ``(S, C, N, *event)``: S draws of each of C chains per datum.
        acceptance: the mean probability of acceptance after the warm-up, ``(C, N)``.
        divergences: how many transitions after the warm-up had no chance of acceptance, their
            energy being infinite, not a number or too high, ``(C, N)``.
        step_size: what the warm-up arrived at, ``(C, N)``.
    """

    draws: Mapping[str, Tensor]
    acceptance: Tensor
    divergences: Tensor
    step_size: Tensor

    @property
    def last(self) -> dict[str, Tensor]:
        """The last draw of each chain, ``(C, N, *event)``."""
        return {name: draws[-1] for name, draws in self.draws.items()}


@runtime_checkable
class Differentiated(Protocol):
    """A :data:`LogDensity` that finds its gradient by itself."""

    def start(self, position: Mapping[str, Tensor]) -> Point:
        """See :func:`start`."""
        ...


def start(log_density: LogDensity, position: Mapping[str, Tensor]) -> Point:
    """A point, with its log-density and gradient; nothing is differentiable any more."""
    if isinstance(log_density, Differentiated):
        return log_density.start(position)
    return value_and_grad(log_density, position)


def value_and_grad(log_density: LogDensity, position: Mapping[str, Tensor]) -> Point:
    """:func:`start` by torch's autograd."""
    with torch.enable_grad():
        position = {name: u.detach().requires_grad_() for name, u in position.items()}
        value = log_density(position)
        gradients: tuple[Tensor | None, ...] = (None,) * len(position)
        if value.requires_grad:
            leaves = list(position.values())
            gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return Point(
        {name: u.detach() for name, u in position.items()},
        value.detach(),
        {
            name: torch.zeros_like(u) if g is None else g
            for (name, u), g in zip(position.items(), gradients, strict=True)
        },
    )


def leapfrog(
    log_density: LogDensity,
    point: Point,
    momentum: Mapping[str, Tensor],
    step_size: Tensor,
    num_steps: int,
) -> tuple[Point, dict[str, Tensor]]:
    """Follows the Hamiltonian −log p(u) + |r|²/2 for so many steps; reversible, O(ε²).

    Arguments:
        log_density: log p.
        point: where to start.
        momentum: r, of the variables' shapes.
        step_size: ε, ``(C, N)`` or broadcasting with it.
        num_steps: gradients to evaluate.

    Returns:
        The last point and its momentum.
    """
    momentum = dict(momentum)
    # of each variable's type: data in float64 make a density in float64 of any latents
    epsilon = {name: spread(step_size, u).to(u.dtype) for name, u in point.position.items()}
    for _ in range(num_steps):
        momentum = {n: r + epsilon[n] / 2 * point.gradient[n] for n, r in momentum.items()}
        moved = {n: u + epsilon[n] * momentum[n] for n, u in point.position.items()}
        point = start(log_density, moved)
        momentum = {n: r + epsilon[n] / 2 * point.gradient[n] for n, r in momentum.items()}
    return point, momentum


@torch.no_grad()
def transition(
    log_density: LogDensity, point: Point, step_size: Tensor, num_steps: int = 10
) -> tuple[Point, Tensor]:
    """One transition of every chain, which leaves p invariant whatever the step size is.

    Random numbers are taken from torch's generator.

    Arguments:
        log_density: log p, in unconstrained variables.
        point: where the chains are; :func:`start` makes the first.
        step_size: ε, ``(C, N)`` or broadcasting with it.
        num_steps: leapfrog steps.

    Returns:
        The next point, and the probability ``(C, N)`` with which each chain's proposal was
        accepted: 0 where its energy was not finite.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011), section 3.2.
        https://arxiv.org/abs/1206.1901
    """
    momentum = {name: torch.randn_like(u) for name, u in point.position.items()}
    proposal, final = leapfrog(log_density, point, momentum, step_size, num_steps)
    log_ratio = proposal.log_density - point.log_density + _kinetic(momentum) - _kinetic(final)
    usable = log_ratio.isfinite()
    probability = torch.where(usable, log_ratio.clamp_max(0.0).exp(), 0.0)
    accepted = torch.rand_like(probability) < probability

    def chosen(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: torch.where(spread(accepted, old[n]), new[n], old[n]) for n in old}

    following = Point(
        chosen(proposal.position, point.position),
        torch.where(accepted, proposal.log_density, point.log_density),
        chosen(proposal.gradient, point.gradient),
    )
    return following, probability


class StepSizes:
    """Tunes step sizes, each by itself, until proposals are accepted with a given probability.

    log ε ← log ε + 2 t^{−0.6} (probability − target) after each transition, where t counts how
    often the difference has changed its sign: far from the target the steps do not shrink.

    Arguments:
        step_size: where to start, of any shape.
        target: the probability of acceptance to arrive at.

    References:
        Accelerated Stochastic Approximation (Kesten, 1958).
        https://doi.org/10.1214/aoms/1177706705
        A tutorial on adaptive MCMC (Andrieu & Thoms, 2008), section 4.2.
        https://doi.org/10.1007/s11222-008-9110-y
    """

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.target = target
        self._log = self._mean_log = step_size.log()
        self._turns = torch.zeros_like(step_size)
        self._before = torch.zeros_like(step_size)

    @property
    def step_size(self) -> Tensor:
        """The one to try next."""
        return self._log.exp()

    @property
    def final(self) -> Tensor:
        """The one to go on with: the geometric mean of those tried, by the square of t."""
        return self._mean_log.exp()

    def update(self, probability: Tensor) -> None:
        """Takes the probabilities of acceptance that :attr:`step_size` had."""
        difference = probability - self.target
        self._turns = self._turns + (difference * self._before <= 0)
        self._before = difference
        self._log = self._log + 2 * self._turns**-0.6 * difference
        share = (3 / self._turns).clamp_max(1.0)
        self._mean_log = share * self._log + (1 - share) * self._mean_log


def jitter_step_size(step_size: Tensor, jitter: float = 0.2) -> Tensor:
    """ε (1 + jitter · v), v uniform on [−1, 1], so that no chain falls in step with its orbit.

    Where trajectories are as long as a period, a chain hardly moves; and if its step size is
    tuned all the while, that follows the chain, and the distribution is no longer invariant.
    """
    return step_size * (1 + jitter * (2 * torch.rand_like(step_size) - 1))


@torch.no_grad()
def sample(
    log_density: LogDensity,
    initial: Mapping[str, Tensor],
    *,
    num_samples: int = 1,
    thin: int = 1,
    warm_up: int = 200,
    num_steps: int = 10,
    target: float = 0.8,
    step_size: float | Tensor = 0.5,
    jitter: float = 0.2,
    seed: int,
) -> Chains:
    """Draws from p(z) by Hamiltonian Monte Carlo, C chains for each of N data at once.

    The step size of each chain is tuned during the warm-up and then frozen; each transition
    takes one that is :func:`jitter_step_size`.

    Arguments:
        log_density: log p: of any real numbers, or an
            :class:`~.unconstrained.Unconstrained`, which knows its variables' supports.
        initial: where to start, ``(C, N, *event)`` for each variable.
        num_samples: the number S of draws to keep of each chain.
        thin: transitions for each of them; with one sample, how long to run.
        warm_up: transitions before, to tune; 0 keeps the step sizes given.
        num_steps: leapfrog steps of a transition.
        target: the probability of acceptance to tune to, in (0, 1).
        step_size: where tuning starts, one number or ``(C, N)``.
        jitter: how much of a step size is random, in [0, 1).
        seed: of all draws; the caller's generators are left as they were.

    Returns:
        The :class:`Chains`, in the variables of ``initial``.

    Raises:
        ValueError: for numbers out of range, or if the density is not finite somewhere in
            ``initial``.
    """
    for name, value in (("num_samples", num_samples), ("thin", thin), ("num_steps", num_steps)):
        positive_int(name, value)
    check_target(target)
    if not 0 <= jitter < 1:
        raise ValueError(f"expected jitter in [0, 1); got {jitter!r}")
    if isinstance(warm_up, bool) or not isinstance(warm_up, Integral) or warm_up < 0:
        raise ValueError(f"expected warm_up to be an integer ≥ 0; got {warm_up!r}")
    space = log_density if isinstance(log_density, Unconstrained) else None
    with seeded(seed):
        point = start(log_density, space.inverse(initial) if space else initial)
        check_finite(point)
        epsilon = torch.as_tensor(step_size).to(point.log_density).expand_as(point.log_density)
        if not ((epsilon > 0) & epsilon.isfinite()).all():
            raise ValueError(f"expected step sizes > 0 and finite; got {step_size}")

        def step(tried: Tensor) -> Tensor:
            nonlocal point
            tried = jitter_step_size(tried, jitter)
            point, probability = transition(log_density, point, tried, num_steps)
            return probability

        if warm_up:
            tuning = StepSizes(epsilon, target)
            for _ in range(warm_up):
                tuning.update(step(tuning.step_size))
            epsilon = tuning.final
        acceptance, divergences = torch.zeros_like(epsilon), torch.zeros_like(epsilon)
        kept: list[Mapping[str, Tensor]] = []
        for _ in range(num_samples):
            for _ in range(thin):
                probability = step(epsilon)
                acceptance += probability / (num_samples * thin)
                divergences += probability == 0
            kept.append(space.constrain(point.position) if space else point.position)
    draws = {name: torch.stack([drawn[name] for drawn in kept]) for name in initial}
    return Chains(draws, acceptance, divergences, epsilon)


@torch.no_grad()
def sample_posterior(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    num_chains: int,
    seed: int,
    layout: Layout | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Chains:
    """Draws from p(z|x) of a Pyro program by :func:`sample`, all latent sites together.

    The chains start from the guide's draws. The programs run in evaluation mode, with the
    parameters that their modules hold.

    Arguments:
        model, guide: the program, called as ``model(x, *args, **kwargs)``.
        x: the data, ``(N, …)``.
        num_chains: the number C of chains for each datum.
        seed: of all draws.
        layout: how to lay the chains out; looked for if not given.
        options: further arguments of :func:`sample`.

    Returns:
        The :class:`Chains`, by the names of the model's latent sites.

    Raises:
        ValueError: as :func:`sample` does; if the program's densities do not exist per datum;
            if a latent site is discrete or has a support on which there is no HMC.
    """
    positive_int("num_chains", num_chains)
    with use_own_parameters(model, guide), eval_mode(model, guide), seeded(seed, 1):
        if layout is None:
            layout = find_layout(model, guide, x, *args, **kwargs)
        target = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
        particles = run_particles(
            model, guide, x, *args, num_samples=num_chains, layout=layout, **kwargs
        )
        initial = {name: particles.latents[name] for name in target.transforms}
        return sample(target, initial, seed=seed, **(options or {}))


def check_target(target: float) -> float:
    """``target`` if it is a probability of acceptance that can be arrived at."""
    if isinstance(target, bool) or not 0 < target < 1:
        raise ValueError(f"expected target in (0, 1); got {target!r}")
    return float(target)


def check_finite(point: Point) -> None:
    """Refuses a start from which a chain could not move.

    Raises:
        ValueError: if a chain's log-density or gradient is not finite.
    """
    lost = ~point.log_density.isfinite()
    for gradient in point.gradient.values():
        lost = lost | ~gradient.reshape(*lost.shape, -1).isfinite().all(2)
    if lost.any():
        raise ValueError(
            f"expected a finite log-density, with a gradient, where the chains start; got none "
            f"for {int(lost.sum())} of {lost.numel()} chains: start them elsewhere"
        )


def spread(per_chain: Tensor, like: Tensor) -> Tensor:
    """``(C, N)`` with as many dimensions as the variable has."""
    return per_chain.reshape(*per_chain.shape, *(1,) * (like.ndim - 2))


def _kinetic(momentum: Mapping[str, Tensor]) -> Tensor:
    """|r|²/2 of all variables together, ``(C, N)``."""
    parts = (r.square().reshape(*r.shape[:2], -1).sum(2) for r in momentum.values())
    return torch.stack(tuple(parts)).sum(0) / 2
