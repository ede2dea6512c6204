"""Objectives the VAE was originally compared with: wake-sleep and Monte Carlo EM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...programs.base import empty_program
from ...programs.enumeration.marks import mark_enumerated
from ...programs.hmc import (
    StepSizeTuner,
    append_event_dims,
    check_initial_state,
    check_target_acceptance,
    hmc_step,
    jitter_step_size,
    make_state,
)
from ...programs.particles import Layout, particles_at, run_particles, total_log_prob
from ...programs.unconstrained import UnconstrainedDensity, site_transforms
from .base import find_leaf_tensors, restrict_gradient
from .reweighted import ReweightedWakeSleep
from .weighted import WeightObjective, auxiliary_loss

__all__ = ["MonteCarloEM", "WakeSleep"]

#: Initial step size of a new chain.
_INITIAL_STEP_SIZE = 0.5
#: Gain of the step-size correction made by each transition, on the log scale.
_GAIN = 0.1


class WakeSleep(ReweightedWakeSleep):
    """Wake-sleep: train the model on samples of q and the guide on samples of the model.

    The wake phase follows ∇ log p(x, z) with z ~ q(z|x), the sleep phase ∇ log q(z̃|x̃) with
    (x̃, z̃) ~ p. The two phases do not maximise a common bound. The value returned is the ELBO.

    Raises:
        ValueError: as for ``ReweightedWakeSleep`` with ``k`` = 1 and ``wake`` = 0.

    References:
        The "Wake-Sleep" Algorithm for Unsupervised Neural Networks (Hinton et al., 1995).
        https://doi.org/10.1126/science.7761831
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self) -> None:
        super().__init__(k=1, wake=0.0)


class MonteCarloEM(WeightObjective):
    """Monte Carlo EM: train the model on posterior samples drawn by HMC.

    Each training example has a persistent chain. For each minibatch, one HMC transition moves
    the chains of its examples; ``updates`` optimizer steps then follow ∇ log p(x, z) at the new
    samples, which equals ∇ log p(x) at convergence of the chains (Fisher's identity). A new
    chain starts from a sample of the guide and tunes its step size in ``warm_up`` transitions;
    later transitions correct the step size slightly. Plain ``SVI`` does not pass the indices of
    the minibatch, so there all chains restart in each step: slower, with worse samples.

    The model does not depend on the guide. To allow evaluation by importance sampling, the guide
    is fitted to the same samples with ∇ log q(z|x), in those of its parameters that the model
    does not use. With ``poutine.scale``, scaled log-densities are the target of the chains and
    take the place of log p and log q in the gradient. The value returned is the ELBO, unscaled.

    Arguments:
        num_steps: leapfrog steps per transition.
        updates: optimizer steps per posterior sample.
        target: target acceptance probability of the step-size adaptation, in (0, 1).
        warm_up: transitions that tune the step size of a new chain.

    Attributes:
        acceptance: acceptance probabilities of the last transition, ``(N,)``.

    Raises:
        ValueError: if a number is out of range; at the first step, if a latent site is discrete
            or its support is not supported by HMC, or if the guide has no density at the samples.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix E.
        https://arxiv.org/abs/1312.6114
    """

    acceptance: Tensor
    not_traceable_reason = "its chains persist across steps"
    not_decomposable_reason = "each process keeps the chains of the examples it last saw"

    def __init__(
        self, num_steps: int = 10, updates: int = 5, target: float = 0.9, warm_up: int = 50
    ) -> None:
        super().__init__(1)
        self.num_steps = positive_int("num_steps", num_steps)
        self.updates = positive_int("updates", updates)
        self.target = check_target_acceptance(target)
        self.warm_up = positive_int("warm_up", warm_up)
        self._chains: _PersistentChains | None = None
        self._samples: dict[str, Tensor] | None = None
        self._program: tuple[Any, Any] | None = None

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def state_dict(self) -> dict[str, Any]:
        return self._chains.state_dict() if self._chains is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._chains = _PersistentChains(**state) if state else None
        self._samples = self._program = None

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().terms(model, guide, *args, **kwargs)
        if self._program is not None and self._program != (model, guide):
            self._chains = self._samples = None
        self._program = (model, guide)
        layout = self.layout(model, guide, args, kwargs)
        if self._step_info.update == 0 or self._samples is None:
            self._samples = self._sample_posterior(model, guide, args, kwargs, layout)
        z = self._samples
        particles = particles_at(model, guide, z, *args, layout=layout, **kwargs)
        log_p = total_log_prob(particles.scaled_log_p).sum()
        log_q = total_log_prob(particles.scaled_log_q).sum()
        shared = set(find_leaf_tensors([log_p]))
        guide_only = [leaf for leaf in find_leaf_tensors([log_q]) if leaf not in shared]
        surrogate = log_p + restrict_gradient(log_q, guide_only)
        with torch.no_grad():
            loss, _ = super().terms(model, guide, *args, **kwargs)
        return loss, auxiliary_loss(particles, scored=False) - surrogate

    @torch.no_grad()
    def _sample_posterior(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, layout: Layout
    ) -> dict[str, Tensor]:
        """Advance the chains; return the samples ``(1, N, *event)`` of each latent site."""
        info, size = self._step_info, len(args[0])
        with eval_mode(model, guide):
            marked = mark_enumerated(model, self.enumerated_sites(model, guide, args, kwargs))
            density = _scaled_posterior(marked, args, kwargs, layout)
            run = run_particles(model, guide, *args, num_samples=1, layout=layout, **kwargs)
            latents = run.latents
            if latents.keys() != density.transforms.keys():
                extra = ", ".join(map(repr, sorted(latents.keys() - density.transforms.keys())))
                raise ValueError(
                    f"expected a guide that samples only the model's latent sites, to score "
                    f"posterior samples; it also samples {extra}: remove them from the guide"
                )
            initial = density.inverse(latents)
            if info.index is None or info.num_data is None:
                chains, index = _PersistentChains.empty(initial, size), torch.arange(size)
            else:
                chains, index = self._chains, info.index
                if chains is None or len(chains.seen) != info.num_data:
                    chains = self._chains = _PersistentChains.empty(initial, info.num_data)
            new, log_step, position = chains.load(index, initial)
            state, step_size = make_state(density, position), log_step.exp()
            if new.any():
                check_initial_state(state)
                tuner = StepSizeTuner(step_size, self.target)
                for _ in range(self.warm_up):
                    jittered = jitter_step_size(tuner.step_size)
                    state, acceptance = hmc_step(density, state, jittered, self.num_steps)
                    tuner.update(acceptance)
                step_size = torch.where(new, tuner.final, step_size)
            jittered = jitter_step_size(step_size)
            state, acceptance = hmc_step(density, state, jittered, self.num_steps)
            log_step = step_size.log() + _GAIN * (acceptance - self.target)
            chains.store(index, log_step, state.position)
        self.acceptance = acceptance[0]
        return density.constrain(state.position)


def _scaled_posterior(
    model: Any, args: tuple, kwargs: dict, layout: Layout
) -> UnconstrainedDensity:
    """Return the scaled log p(x, z) as a density in unconstrained space."""

    def log_density(z: Mapping[str, Tensor]) -> Tensor:
        run = particles_at(model, empty_program, z, *args, layout=layout, **kwargs)
        return total_log_prob(run.scaled_log_p)

    return UnconstrainedDensity(log_density, site_transforms(model, *args, **kwargs))


class _PersistentChains:
    """Position and step size of the chain of every training example.

    Arguments:
        seen: whether an example has a chain yet, ``(num_data,)``.
        log_step: log step size of each chain, ``(num_data,)``.
        position: unconstrained value of each latent site, ``(num_data, *event)``.
    """

    def __init__(self, seen: Tensor, log_step: Tensor, position: dict[str, Tensor]) -> None:
        self.seen, self.log_step, self.position = seen, log_step, position

    @classmethod
    def empty(cls, like: Mapping[str, Tensor], num_data: int) -> _PersistentChains:
        """Allocate ``num_data`` chains for variables shaped ``(1, N, *event)``."""
        position = {name: u.new_zeros(num_data, *u.shape[2:]) for name, u in like.items()}
        first = next(iter(like.values()))
        log_step = first.new_full((num_data,), math.log(_INITIAL_STEP_SIZE))
        return cls(torch.zeros_like(log_step, dtype=torch.bool), log_step, position)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the constructor arguments."""
        position = {name: u.clone() for name, u in self.position.items()}
        seen, log_step = self.seen.clone(), self.log_step.clone()
        return {"seen": seen, "log_step": log_step, "position": position}

    def load(
        self, index: Tensor, initial: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return which chains are new, ``(1, N)``, their log step sizes and their positions."""
        device = next(iter(initial.values())).device
        self.seen, self.log_step = self.seen.to(device), self.log_step.to(device)
        self.position = {name: u.to(device) for name, u in self.position.items()}
        index = index.to(device)
        new = ~self.seen[index]
        position = {
            name: torch.where(append_event_dims(new[None], u), u, self.position[name][index])
            for name, u in initial.items()
        }
        return new[None], self.log_step[index][None], position

    def store(self, index: Tensor, log_step: Tensor, position: Mapping[str, Tensor]) -> None:
        """Store log step sizes ``(1, N)`` and positions ``(1, N, *event)``."""
        index = index.to(self.seen.device)
        self.seen[index], self.log_step[index] = True, log_step[0]
        for name, u in position.items():
            self.position[name][index] = u[0]
