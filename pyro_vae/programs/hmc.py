"""Hamiltonian Monte Carlo with many parallel chains for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.random import Stream, seeded
from ..core.validation import non_negative_int, positive_int
from .context import evaluating
from .importance_weights import find_layout
from .particles import Layout, run_particles
from .unconstrained import UnconstrainedDensity, unconstrained_posterior

__all__ = [
    "Chains",
    "DensityWithGradient",
    "HMCState",
    "LogDensity",
    "StepSizeTuner",
    "append_event_dims",
    "check_initial_state",
    "check_target_acceptance",
    "hmc_step",
    "jitter_step_size",
    "leapfrog",
    "make_state",
    "run_hmc",
    "sample_posterior",
    "value_and_grad",
]

#: Maps variables ``(C, N, *event)`` to the log-densities ``(C, N)`` of C chains for each of N
#: examples. The log-density of a chain must depend on the variables of that chain only.
LogDensity = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class HMCState:
    """State of all chains.

    Attributes:
        position: the unconstrained variables, each ``(C, N, *event)``.
        log_density: log-density, ``(C, N)``, in nats.
        gradient: gradient of the log-density with respect to each variable, ``(C, N, *event)``.
    """

    position: Mapping[str, Tensor]
    log_density: Tensor
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True)
class Chains:
    """Draws and diagnostics of HMC.

    Attributes:
        draws: S draws of each of C chains per datum, ``(S, C, N, *event)`` for each variable.
        acceptance: mean acceptance probability after warm-up, ``(C, N)``.
        divergences: number of transitions after warm-up with acceptance probability 0, because the
            energy was infinite, NaN or too high, ``(C, N)``.
        step_size: step size after warm-up, ``(C, N)``.
    """

    draws: Mapping[str, Tensor]
    acceptance: Tensor
    divergences: Tensor
    step_size: Tensor

    @property
    def last(self) -> dict[str, Tensor]:
        """Return the last draw of each chain, ``(C, N, *event)``."""
        return {name: draws[-1] for name, draws in self.draws.items()}


@runtime_checkable
class DensityWithGradient(Protocol):
    """A :data:`LogDensity` that computes its own gradient."""

    def make_state(self, position: Mapping[str, Tensor]) -> HMCState:
        """See :func:`make_state`."""
        ...


def make_state(log_density: LogDensity, position: Mapping[str, Tensor]) -> HMCState:
    """Evaluate the log-density and its gradient at a position; the result is detached."""
    if isinstance(log_density, DensityWithGradient):
        return log_density.make_state(position)
    return value_and_grad(log_density, position)


def value_and_grad(log_density: LogDensity, position: Mapping[str, Tensor]) -> HMCState:
    """Evaluate the log-density and its gradient by automatic differentiation."""
    with torch.enable_grad():
        position = {name: u.detach().requires_grad_() for name, u in position.items()}
        value = log_density(position)
        leaves = list(position.values())
        if value.requires_grad:
            gradients = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        else:
            gradients = tuple(map(torch.zeros_like, leaves))
    detached = {name: u.detach() for name, u in position.items()}
    return HMCState(detached, value.detach(), dict(zip(position, gradients, strict=True)))


def leapfrog(
    log_density: LogDensity,
    state: HMCState,
    momentum: Mapping[str, Tensor],
    step_size: Tensor,
    num_steps: int,
) -> tuple[HMCState, dict[str, Tensor]]:
    """Integrate the Hamiltonian −log p(u) + |r|²/2 by leapfrog steps; reversible, error O(ε²).

    The step size ε is ``(C, N)`` or broadcastable to it. Returns the final state and its momentum.
    """
    momentum = dict(momentum)
    # cast to the dtype of each variable: float64 data give a float64 density of float32 latents
    epsilon = {
        name: append_event_dims(step_size, u).to(u.dtype) for name, u in state.position.items()
    }
    for _ in range(num_steps):
        momentum = {n: r + epsilon[n] / 2 * state.gradient[n] for n, r in momentum.items()}
        moved = {n: u + epsilon[n] * momentum[n] for n, u in state.position.items()}
        state = make_state(log_density, moved)
        momentum = {n: r + epsilon[n] / 2 * state.gradient[n] for n, r in momentum.items()}
    return state, momentum


@torch.no_grad()
def hmc_step(
    log_density: LogDensity, state: HMCState, step_size: Tensor, num_steps: int = 10
) -> tuple[HMCState, Tensor]:
    """Run one HMC transition of every chain, which leaves p invariant for any step size.

    Uses torch's default generator.

    Arguments:
        log_density: log p of unconstrained variables.
        state: current state; the first is from :func:`make_state`.
        step_size: ε, ``(C, N)`` or broadcastable to it.
        num_steps: number of leapfrog steps.

    Returns:
        The next state, and the acceptance probability of each proposal, ``(C, N)``: 0 if its
        energy is not finite.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011), section 3.2.
        https://arxiv.org/abs/1206.1901
    """
    momentum = {name: torch.randn_like(u) for name, u in state.position.items()}
    proposal, final = leapfrog(log_density, state, momentum, step_size, num_steps)
    log_ratio = proposal.log_density - state.log_density + _kinetic(momentum) - _kinetic(final)
    probability = torch.where(log_ratio.isfinite(), log_ratio.clamp_max(0.0).exp(), 0.0)
    accepted = torch.rand_like(probability) < probability

    def select(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: torch.where(append_event_dims(accepted, old[n]), new[n], old[n]) for n in old}

    next_state = HMCState(
        select(proposal.position, state.position),
        torch.where(accepted, proposal.log_density, state.log_density),
        select(proposal.gradient, state.gradient),
    )
    return next_state, probability


class StepSizeTuner:
    """Adapt step sizes elementwise to a target acceptance probability.

    log ε ← log ε + 2 t^{−0.6} (probability − target) after each transition, where t counts the
    sign changes of the difference: far from the target the gain does not decrease.

    Arguments:
        step_size: initial step sizes, of any shape.
        target: target acceptance probability.

    References:
        Accelerated Stochastic Approximation (Kesten, 1958).
        https://doi.org/10.1214/aoms/1177706705
        A tutorial on adaptive MCMC (Andrieu & Thoms, 2008), section 4.2.
        https://doi.org/10.1007/s11222-008-9110-y
    """

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.target = target
        self._log = self._mean_log = step_size.log()
        self._sign_changes = torch.zeros_like(step_size)
        self._last_difference = torch.zeros_like(step_size)

    @property
    def step_size(self) -> Tensor:
        """Step size of the next transition."""
        return self._log.exp()

    @property
    def final(self) -> Tensor:
        """Step size after warm-up: geometric mean of the tried ones, weighted by t²."""
        return self._mean_log.exp()

    def update(self, probability: Tensor) -> None:
        """Update from the acceptance probabilities of a transition with :attr:`step_size`."""
        difference = probability - self.target
        self._sign_changes = self._sign_changes + (difference * self._last_difference <= 0)
        self._last_difference = difference
        self._log = self._log + 2 * self._sign_changes**-0.6 * difference
        weight = (3 / self._sign_changes).clamp_max(1.0)
        self._mean_log = weight * self._log + (1 - weight) * self._mean_log


def jitter_step_size(step_size: Tensor, jitter: float = 0.2) -> Tensor:
    """Return ε (1 + jitter · v), v uniform on [−1, 1], to avoid periodic trajectories.

    A chain hardly moves if its trajectory is as long as a period of the dynamics. If its step
    size is also tuned at the same time, the distribution is no longer invariant.
    """
    return step_size * (1 + jitter * (2 * torch.rand_like(step_size) - 1))


@torch.no_grad()
def run_hmc(
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
    """Sample from p(z) by Hamiltonian Monte Carlo, with C chains for each of N examples.

    The step size of each chain is tuned during warm-up and then fixed; each transition adds
    jitter, see :func:`jitter_step_size`.

    Arguments:
        log_density: log p of unconstrained variables, or an
            :class:`~.unconstrained.UnconstrainedDensity`, which transforms its variables.
        initial: initial values, ``(C, N, *event)`` for each variable.
        num_samples: the number S of draws per chain.
        thin: number of transitions per draw.
        warm_up: number of transitions that tune the step size; 0 keeps ``step_size``.
        num_steps: number of leapfrog steps per transition.
        target: target acceptance probability, in (0, 1).
        step_size: initial step size, a number or ``(C, N)``.
        jitter: relative width of the random step size, in [0, 1).
        seed: seed of all random numbers; the caller's generators are restored.

    Returns:
        The :class:`Chains`, in the variables of ``initial``.

    Raises:
        ValueError: if an argument is out of range, or if the density is not finite at
            ``initial``.
    """
    for name, value in (("num_samples", num_samples), ("thin", thin), ("num_steps", num_steps)):
        positive_int(name, value)
    check_target_acceptance(target)
    if not 0 <= jitter < 1:
        raise ValueError(f"expected jitter in [0, 1); got {jitter!r}")
    non_negative_int("warm_up", warm_up)
    space = log_density if isinstance(log_density, UnconstrainedDensity) else None
    with seeded(seed):
        state = make_state(log_density, space.inverse(initial) if space else initial)
        check_initial_state(state)
        epsilon = torch.as_tensor(step_size).to(state.log_density).expand_as(state.log_density)
        if not ((epsilon > 0) & epsilon.isfinite()).all():
            raise ValueError(f"expected step sizes > 0 and finite; got {step_size}")

        def step(step_size: Tensor) -> Tensor:
            nonlocal state
            jittered = jitter_step_size(step_size, jitter)
            state, probability = hmc_step(log_density, state, jittered, num_steps)
            return probability

        if warm_up:
            tuner = StepSizeTuner(epsilon, target)
            for _ in range(warm_up):
                tuner.update(step(tuner.step_size))
            epsilon = tuner.final
        acceptance, divergences = torch.zeros_like(epsilon), torch.zeros_like(epsilon)
        samples: list[Mapping[str, Tensor]] = []
        for _ in range(num_samples):
            for _ in range(thin):
                probability = step(epsilon)
                acceptance += probability / (num_samples * thin)
                divergences += probability == 0
            samples.append(space.constrain(state.position) if space else state.position)
    draws = {name: torch.stack([sample[name] for sample in samples]) for name in initial}
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
    """Sample from p(z|x) of a Pyro program by :func:`run_hmc`, jointly over all latent sites.

    The chains start from samples of the guide. The program runs in evaluation mode, with the
    parameters of its modules.

    Arguments:
        model, guide: the program, called as ``model(x, *args, **kwargs)``.
        x: the data, ``(N, …)``.
        num_chains: the number C of chains for each example.
        seed: seed of all random numbers.
        layout: layout of the chains; found by default.
        options: further arguments of :func:`run_hmc`.

    Returns:
        The :class:`Chains`, with the names of the model's latent sites.

    Raises:
        ValueError: as for :func:`run_hmc`; if densities per datum are undefined; if a latent site
            is discrete or has a support without a transform from unconstrained space.
    """
    positive_int("num_chains", num_chains)
    with evaluating(model, guide, seed=seed, stream=Stream.HMC):
        if layout is None:
            layout = find_layout(model, guide, x, *args, **kwargs)
        target = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
        particles = run_particles(
            model, guide, x, *args, num_samples=num_chains, layout=layout, **kwargs
        )
        initial = {name: particles.latents[name] for name in target.transforms}
        return run_hmc(target, initial, seed=seed, **(options or {}))


def check_target_acceptance(target: float) -> float:
    """Return ``target`` as a float.

    Raises:
        ValueError: if it is not in (0, 1).
    """
    if isinstance(target, bool) or not 0 < target < 1:
        raise ValueError(f"expected target in (0, 1); got {target!r}")
    return float(target)


def check_initial_state(state: HMCState) -> None:
    """Check that all chains can move from their initial state.

    Raises:
        ValueError: if the log-density or gradient of a chain is not finite.
    """
    invalid = ~state.log_density.isfinite()
    for gradient in state.gradient.values():
        invalid = invalid | ~gradient.reshape(*invalid.shape, -1).isfinite().all(2)
    if invalid.any():
        raise ValueError(
            f"expected a finite log-density and gradient at the initial values; got others for "
            f"{int(invalid.sum())} of {invalid.numel()} chains: use other initial values"
        )


def append_event_dims(per_chain: Tensor, like: Tensor) -> Tensor:
    """Append dimensions to ``(C, N)`` until it has as many as ``like``."""
    return per_chain.reshape(*per_chain.shape, *(1,) * (like.ndim - 2))


def _kinetic(momentum: Mapping[str, Tensor]) -> Tensor:
    """Kinetic energy |r|²/2 of all variables together, ``(C, N)``."""
    parts = (r.square().reshape(*r.shape[:2], -1).sum(2) for r in momentum.values())
    return torch.stack(tuple(parts)).sum(0) / 2
