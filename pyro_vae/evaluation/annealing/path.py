"""Annealing paths from the guide or the prior to the posterior, and chains along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from ...programs.base import empty_program
from ...programs.hmc import HMCState, StepSizeTuner, hmc_step, jitter_step_size, value_and_grad
from ...programs.particles import (
    Layout,
    guide_scorer,
    log_probs_at,
    run_particles,
    total_log_prob,
)
from ...programs.unconstrained import unconstrained_posterior

__all__ = [
    "AnnealingPath",
    "PilotResult",
    "ProgressCallback",
    "TunedSchedule",
    "make_annealing_path",
    "run_pilot",
]

Latents = Mapping[str, Tensor]
#: Called with the share of a block that was computed since the last call.
ProgressCallback = Callable[[float], None]

#: Number of samples that estimate the standard deviations of the guide.
_SCALE_SAMPLES = 64
#: Warm-up transitions of a pilot, its initial step size, and the gain of the adaptation of its
#: step sizes between temperatures.
_WARM_UP, _INITIAL_STEP_SIZE, _GAIN = 20, 0.3, 1.0
#: Transitions that decorrelate chains with the same starting point.
_DECORRELATION_TRANSITIONS = 20


@dataclass(frozen=True)
class AnnealingPath:
    """Geometric path log f_β = log f_0 + β (log f_1 − log f_0) for C chains of N examples.

    The densities are of unconstrained variables v, ``(C, N, …)`` by latent site. β may exceed 1.

    Attributes:
        terms: returns log f_0 and log f_1 − log f_0 at v, each ``(C, N)`` in nats.
        sample: returns the given number of samples of f_0.
        unconstrain: returns v for given latents.
        compiled: :meth:`evaluate` as a compiled graph; it returns ``None`` for v of another shape.
    """

    terms: Callable[[Latents], tuple[Tensor, Tensor]]
    sample: Callable[[int], dict[str, Tensor]]
    unconstrain: Callable[[Latents], dict[str, Tensor]]
    compiled: Callable[[float, Latents], tuple[HMCState, Tensor] | None] | None = None

    def density(self, beta: float) -> Callable[[Latents], Tensor]:
        """Return log f_β as a function of v."""
        return _Density(self, beta)

    def evaluate(self, beta: float, position: Latents) -> tuple[HMCState, Tensor]:
        """Return log f_β with its gradient, and log f_1 − log f_0, at a position."""
        result = None if self.compiled is None else self.compiled(beta, position)
        if result is not None:
            return result
        differences: list[Tensor] = []

        def log_density(v: Latents) -> Tensor:
            first, difference = self.terms(v)
            differences.append(difference.detach())
            return first + beta * difference

        return value_and_grad(log_density, position), differences[0]


@dataclass(frozen=True)
class _Density:
    """log f_β, with the (possibly compiled) gradient of its path."""

    path: AnnealingPath
    beta: float

    def __call__(self, v: Latents) -> Tensor:
        first, difference = self.path.terms(v)
        return first + self.beta * difference

    def make_state(self, position: Latents) -> HMCState:
        return self.path.evaluate(self.beta, position)[0]


def make_annealing_path(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    *args: Any,
    layout: Layout,
    initial: Literal["guide", "prior"],
    **kwargs: Any,
) -> AnnealingPath:
    """Return the path from q(z|x) or p(z) to p(x, z) of a Pyro program.

    A path from the guide scales the variables by the standard deviations of the guide, so that
    one step size suits all of them. A path from the prior does not use the guide.

    Arguments:
        model, guide: the program, called as ``model(x, *args, **kwargs)``.
        x: the data, ``(N, …)``.
        layout: the layout of the chains, see :func:`~.importance_weights.find_layout`.
        initial: the start of the path.

    Raises:
        ValueError: if a latent site is discrete or on a sphere. The path raises it if it starts
            at a guide that has no density at samples that are not its own (a flow without an
            inverse).
    """
    space = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
    source = guide if initial == "guide" else model
    log_q = guide_scorer(guide, x, *args, layout=layout, **kwargs)

    def sample(count: int) -> dict[str, Tensor]:
        particles = run_particles(
            empty_program, source, x, *args, num_samples=count, layout=layout, **kwargs
        )
        return space.inverse_samples(particles.latents)

    scale: dict[str, Tensor] = {}
    if initial == "guide":
        for name, u in sample(_SCALE_SAMPLES).items():
            scale[name] = u.std(0).clamp(min=torch.finfo(u.dtype).eps)

    def standardize(u: Latents) -> dict[str, Tensor]:
        return {name: part / scale[name] if scale else part for name, part in u.items()}

    def terms(v: Latents) -> tuple[Tensor, Tensor]:
        u = {name: part * scale[name] if scale else part for name, part in v.items()}
        # a diverging trajectory passes NaN to the distributions, which is not a user error
        with pyro.validation_enabled(False):
            z = space.constrain(u)
            volume = space.log_abs_det_jacobian(u, z)
            log_p = log_probs_at(model, z, x, *args, layout=layout, **kwargs)
            if initial == "guide":
                q = log_q(z)
                return volume + q, total_log_prob(log_p) - q
            prior = total_log_prob({name: log_p[name] for name in z})
            likelihood = {name: term for name, term in log_p.items() if name not in z}
            return volume + prior, total_log_prob(likelihood)

    return AnnealingPath(
        terms,
        lambda count: standardize(sample(count)),
        lambda z: standardize(space.inverse_samples(z)),
    )


@dataclass(frozen=True)
class TunedSchedule:
    """Schedule of β with tuned, fixed step sizes.

    Attributes:
        betas: T + 1 values of β, ascending from 0 or descending to 0.
        step_sizes: the step sizes, ``(T + 1, 1, N)``.
        num_steps: the number of leapfrog steps per transition.
    """

    betas: tuple[float, ...]
    step_sizes: Tensor
    num_steps: int

    @property
    def reversed(self) -> TunedSchedule:
        """The same schedule from the last β to the first."""
        return TunedSchedule(self.betas[::-1], self.step_sizes.flip(0), self.num_steps)

    def transition(
        self, path: AnnealingPath, index: int, point: HMCState
    ) -> tuple[HMCState, Tensor]:
        """Return the chains after an HMC transition at a β, and their acceptance probability."""
        epsilon = jitter_step_size(self.step_sizes[index].expand_as(point.log_density))
        return hmc_step(path.density(self.betas[index]), point, epsilon, self.num_steps)

    def decorrelate(self, path: AnnealingPath, exact: Latents, num_chains: int) -> Latents:
        """Return samples at the last β for C chains, ``(C, N, …)``, from one sample ``(1, N, …)``.

        Transitions that leave the distribution invariant decorrelate the chains.
        """
        position = {name: v.expand(num_chains, *v.shape[1:]) for name, v in exact.items()}
        point, _ = path.evaluate(self.betas[-1], position)
        for _ in range(_DECORRELATION_TRANSITIONS):
            point, _ = self.transition(path, -1, point)
        return point.position

    @torch.no_grad()
    def run(
        self,
        path: AnnealingPath,
        position: Latents,
        advance: ProgressCallback,
        record: Callable[[float, Tensor, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run annealed importance sampling.

        At each β, the weights are multiplied by f_β / f_{β'} at the positions of the chains, where
        β' is the previous β. Then one HMC transition leaves f_β invariant. At the end, the mean of
        w is Z_last / Z_first in expectation, for ascending and descending β, provided that the
        chains start at exact samples and that the step sizes do not depend on the chains.

        Arguments:
            path: the path f_β.
            position: samples of f at the first β.
            advance: called after each temperature with its share of the run.
            record: called before each transition with β, log w and log f_1 − log f_0. With these
                weights the chains are samples of f_β.

        Returns:
            The final log w, ``(C, N)`` float64, and the mean acceptance probability, ``(N,)``; NaN
            for a single temperature, which has no transitions.

        References:
            Annealed Importance Sampling (Neal, 2001), section 2.
            https://arxiv.org/abs/physics/9803008
        """
        log_weights, acceptance = torch.zeros((), dtype=torch.float64), []
        last = len(self.betas) - 1
        for i, (previous, beta) in enumerate(pairwise(self.betas), start=1):
            point, difference = path.evaluate(beta, position)
            step = (beta - previous) * difference.double()
            log_weights = log_weights.to(difference.device) + step
            if record is not None:
                record(beta, log_weights, difference)
            advance(1 / last)
            if i < last:
                point, probability = self.transition(path, i, point)
                position = point.position
                acceptance.append(probability.mean(0))
        if not acceptance:
            return log_weights, torch.full_like(log_weights[0], math.nan)
        return log_weights, torch.stack(acceptance).mean(0)


@dataclass(frozen=True)
class PilotResult:
    """Result of a pilot run.

    Attributes:
        betas: the values of β, ``(P,)``.
        step_sizes: the step sizes, ``(P, 1, N)``.
        spread: the standard deviation of log f_1 − log f_0 over chains at each β, ``(P,)``: the
            square root of the mean variance over examples.
    """

    betas: Tensor
    step_sizes: Tensor
    spread: Tensor

    def step_sizes_at(self, betas: Sequence[float]) -> Tensor:
        """Return step sizes ``(len(betas), 1, N)`` by linear interpolation."""
        targets = torch.as_tensor(betas, dtype=torch.float64)
        right = torch.searchsorted(self.betas, targets).clamp(1, len(self.betas) - 1)
        low, high = self.betas[right - 1], self.betas[right]
        share = ((targets - low) / (high - low)).clamp(0, 1)[:, None, None].to(self.step_sizes)
        return self.step_sizes[right - 1] * (1 - share) + self.step_sizes[right] * share


@torch.no_grad()
def run_pilot(
    path: AnnealingPath, betas: Sequence[float], num_chains: int, num_steps: int, target: float
) -> PilotResult:
    """Run chains through a few temperatures to tune the step sizes.

    The chains are discarded, because adaptive step sizes would bias their weights.

    Arguments:
        path: the path f_β.
        betas: the values of β, ascending from 0.
        num_chains: the number C of chains per example; the step sizes adapt to their mean
            acceptance, of which ``target`` is the desired value.
        num_steps: the number of leapfrog steps per transition.
    """
    point, difference = path.evaluate(betas[0], path.sample(num_chains))
    step_size = torch.full_like(difference[:1], _INITIAL_STEP_SIZE)
    tuner = StepSizeTuner(step_size, target)
    for _ in range(_WARM_UP):
        epsilon = jitter_step_size(tuner.step_size.expand_as(difference))
        point, probability = hmc_step(path.density(betas[0]), point, epsilon, num_steps)
        tuner.update(probability.mean(0, keepdim=True))
    log_step = tuner.final.log()
    steps, spread = [log_step], []
    for beta in betas[1:]:
        point, difference = path.evaluate(beta, point.position)
        spread.append(_pooled_std(difference))
        epsilon = jitter_step_size(log_step.exp().expand_as(difference))
        point, probability = hmc_step(path.density(beta), point, epsilon, num_steps)
        log_step = log_step + _GAIN * (probability.mean(0, keepdim=True) - target)
        steps.append(log_step)
    _, difference = path.evaluate(betas[-1], point.position)
    spread.append(_pooled_std(difference))
    return PilotResult(
        torch.as_tensor(betas, dtype=torch.float64), torch.stack(steps).exp(), torch.stack(spread)
    )


def _pooled_std(difference: Tensor) -> Tensor:
    """Return the standard deviation over the chains of an example, pooled over examples."""
    finite = difference.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return finite.var(0, correction=0).mean().sqrt().cpu()
