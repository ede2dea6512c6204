"""What the variational autoencoder was first compared with, as objectives to ``fit`` with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...programs.hmc import (
    StepSizes,
    check_finite,
    check_target,
    jitter_step_size,
    spread,
    start,
    transition,
)
from ...programs.importance_weights import Layout, log_probs_at, run_particles
from ...programs.unconstrained import unconstrained_posterior
from .reweighted import ReweightedWakeSleep
from .weighted import WeightObjective

__all__ = ["MonteCarloEM", "WakeSleep"]

#: Where the step size of a new chain starts.
_STEP_SIZE = 0.5
#: How far a transition may correct the logarithm of a chain's step size.
_GAIN = 0.1


class WakeSleep(ReweightedWakeSleep):
    """Wake-sleep: the model learns from one draw of q, the guide from one dream for each datum.

    Awake, ∇ log p(x, z) with z ~ q(z|x); asleep, ∇ log q(z̃|x̃) with (x̃, z̃) ~ p. The two do
    not climb one bound together. What is returned is the ELBO.

    Raises:
        ValueError: as for ``ReweightedWakeSleep``, of which it is ``k`` = 1 and ``wake`` = 0.

    References:
        The "Wake-Sleep" Algorithm for Unsupervised Neural Networks (Hinton et al., 1995).
        https://doi.org/10.1126/science.7761831
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self) -> None:
        super().__init__(k=1, wake=0.0)


class MonteCarloEM(WeightObjective):
    """Monte Carlo EM: the model learns from draws of its own posterior, made by HMC.

    For each minibatch, one Hamiltonian transition moves the chain of each datum, which goes on
    where the datum was last seen; with that sample, ``updates`` steps follow ∇ log p(x, z).
    By Fisher's identity that is ∇ log p(x) where the chains have converged. A chain starts
    from a draw of the guide, with transitions that tune its step size; afterwards each
    transition corrects the step size a little. Where :func:`~pyro_vae.fit` does not say which
    data are in a minibatch (plain ``SVI``), all chains start anew in each step, which costs
    ``warm_up`` more transitions and draws less well.

    The guide takes no part in what the model learns. So that the model can be judged by
    importance sampling, it follows the samples by ∇ log q(z|x), in the parameters that are
    its alone; those that the model uses, too, are the model's. What is returned is the ELBO.

    Arguments:
        num_steps: leapfrog steps of a transition.
        updates: steps of the optimiser with each sample.
        target: the probability of acceptance to which the step sizes are tuned, in (0, 1).
        warm_up: transitions of a new chain, during which its step size is found.

    Attributes:
        acceptance: the probabilities with which the last transition was accepted, ``(N,)``.

    Raises:
        ValueError: if a number is out of range; when used, if a latent site is discrete or has
            a support on which there is no HMC, or if the guide has no density at the samples.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix E.
        https://arxiv.org/abs/1312.6114
    """

    acceptance: Tensor
    not_traceable_reason = "its chains go on where each datum was last seen"
    not_decomposable_reason = "the chain of a datum stays in the process that saw it last"

    def __init__(
        self, num_steps: int = 10, updates: int = 5, target: float = 0.9, warm_up: int = 50
    ) -> None:
        super().__init__(1)
        self.num_steps = positive_int("num_steps", num_steps)
        self.updates = positive_int("updates", updates)
        self.target = check_target(target)
        self.warm_up = positive_int("warm_up", warm_up)
        self._memory: _Memory | None = None
        self._held: dict[str, Tensor] | None = None
        self._learned: tuple[Any, Any] | None = None

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def state_dict(self) -> dict[str, Any]:
        return self._memory.copied() if self._memory is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory = _Memory(**state) if state else None
        self._held = self._learned = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self._learned is not None and self._learned != (model, guide):
            self._memory = self._held = None
        self._learned = (model, guide)
        layout = self.layout(model, guide, args, kwargs)
        if self._moment.update == 0 or self._held is None:
            self._held = self._sample(model, guide, args, kwargs, layout)
        z = self._held
        with poutine.trace(param_only=True) as taught:
            log_p = _total(log_probs_at(model, z, *args, layout=layout, **kwargs))
        with poutine.trace(param_only=True) as following:
            log_q = _total(log_probs_at(guide, z, *args, layout=layout, **kwargs))
        shared = set(_parameters(taught))
        own = [p for p in _parameters(following) if p not in shared]
        climbed = log_p + _restricted(log_q, own)
        return self.loss(model, guide, *args, **kwargs) + climbed.detach() - climbed

    @torch.no_grad()
    def _sample(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, layout: Layout
    ) -> dict[str, Tensor]:
        """A draw of each datum's posterior, ``(1, N, *event)`` for each latent site."""
        moment, size = self._moment, len(args[0])
        with eval_mode(model, guide):
            density = unconstrained_posterior(model, *args, layout=layout, **kwargs)
            drawn = run_particles(
                model, guide, *args, num_samples=1, layout=layout, **kwargs
            ).latents
            if drawn.keys() != density.transforms.keys():
                own = ", ".join(map(repr, sorted(drawn.keys() - density.transforms.keys())))
                raise ValueError(
                    f"expected a guide that samples the model's latent sites alone, to score the "
                    f"posterior's draws; it also samples {own}: write it without"
                )
            fresh = density.inverse(drawn)
            if moment.index is None or moment.num_data is None:
                memory, index = _Memory.of(fresh, size), torch.arange(size)
            else:
                memory, index = self._memory, moment.index
                if memory is None or len(memory.seen) != moment.num_data:
                    memory = self._memory = _Memory.of(fresh, moment.num_data)
            new, log_step, position = memory.recall(index, fresh)
            point, step_size = start(density, position), log_step.exp()
            if new.any():
                check_finite(point)
                tuning = StepSizes(step_size, self.target)
                for _ in range(self.warm_up):
                    tried = jitter_step_size(tuning.step_size)
                    point, accepted = transition(density, point, tried, self.num_steps)
                    tuning.update(accepted)
                step_size = torch.where(new, tuning.final, step_size)
            point, accepted = transition(
                density, point, jitter_step_size(step_size), self.num_steps
            )
            log_step = step_size.log() + _GAIN * (accepted - self.target)
            memory.keep(index, log_step, point.position)
        self.acceptance = accepted[0]
        return density.constrain(point.position)


class _Memory:
    """Where the chain of each training datum is, and its step size.

    Arguments:
        seen: whether a datum has a chain, ``(num_data,)``.
        log_step: the logarithm of its step size, likewise.
        position: the unconstrained value of each latent site, ``(num_data, *event)``.
    """

    def __init__(self, seen: Tensor, log_step: Tensor, position: dict[str, Tensor]) -> None:
        self.seen, self.log_step, self.position = seen, log_step, position

    @classmethod
    def of(cls, like: Mapping[str, Tensor], num_data: int) -> _Memory:
        """Room for so many chains of variables ``(1, N, *event)``."""
        position = {name: u.new_zeros(num_data, *u.shape[2:]) for name, u in like.items()}
        first = next(iter(like.values()))
        log_step = first.new_full((num_data,), math.log(_STEP_SIZE))
        return cls(torch.zeros_like(log_step, dtype=torch.bool), log_step, position)

    def copied(self) -> dict[str, Any]:
        """What makes another one like this."""
        position = {name: u.clone() for name, u in self.position.items()}
        return {
            "seen": self.seen.clone(),
            "log_step": self.log_step.clone(),
            "position": position,
        }

    def recall(
        self, index: Tensor, fresh: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Which data are new, their log step sizes, ``(1, N)``, and where their chains are."""
        device = next(iter(fresh.values())).device
        self.seen, self.log_step = self.seen.to(device), self.log_step.to(device)
        self.position = {name: u.to(device) for name, u in self.position.items()}
        index = index.to(device)
        new = ~self.seen[index]
        position = {
            name: torch.where(spread(new[None], u), u, self.position[name][index])
            for name, u in fresh.items()
        }
        return new[None], self.log_step[index][None], position

    def keep(self, index: Tensor, log_step: Tensor, position: Mapping[str, Tensor]) -> None:
        """Takes ``(1, N)`` log step sizes and positions ``(1, N, *event)``."""
        index = index.to(self.seen.device)
        self.seen[index], self.log_step[index] = True, log_step[0]
        for name, u in position.items():
            self.position[name][index] = u[0]


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(tuple(terms.values())).sum()


def _parameters(captured: Any) -> list[Tensor]:
    """What ``pyro.param`` gave a program that was traced, each once, in order."""
    sites = captured.trace.nodes.values()
    return list(dict.fromkeys(site["value"].unconstrained() for site in sites))


def _restricted(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """A number whose gradient is that of ``value``, by these parameters alone."""
    wanted = [p for p in parameters if p.requires_grad]
    if not (wanted and value.requires_grad):
        return value.detach()
    gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    pairs = zip(wanted, gradients, strict=True)
    linear = torch.stack([(p * g).sum() for p, g in pairs if g is not None]).sum()
    return value.detach() + linear - linear.detach()
