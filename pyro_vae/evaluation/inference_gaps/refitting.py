"""Refitting q(z|x) to each example separately, many examples at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import identity_transform

from ...core.random import seeded
from ...programs.arguments import ProgramInputs
from ...programs.base import empty_program, is_latent, trace_sites
from ...programs.chunking import max_chain_pairs
from ...programs.particles import Layout, log_probs_at, run_particles
from ...programs.unconstrained import (
    UnconstrainedDensity,
    check_not_circular,
    flatten_sites,
    site_transforms,
    unflatten_sites,
)
from .families import VariationalFamily, is_noise

__all__ = ["RefitResult", "RefitSettings", "TargetDensity", "make_target_density", "refit"]

#: Samples for the comparison of the initial, the intermediate and the final parameters.
_NUM_COMPARISON_SAMPLES = 200
#: Remaining gain of an optimisation that is still under way, relative to that of the second half
#: of the steps, and the share of the last quarter above which it is reached. Measured on
#: linear-Gaussian models with 3 to 30 latents: 0.46 for shares of 0.10 to 0.11, 0.17 for 0.08,
#: 0.05 for 0.05, 0.01 for 0.02.
_REMAINING_FRACTION, _LINEAR_SHARE = 0.5, 0.1
#: Upper limit of the ratio of the gains of successive halves.
_MAX_RATIO = 0.9
#: Standard deviation of log q, in nats, above which q is numerically singular.
_MAX_LOG_Q_STD = 1e3


@dataclass(frozen=True)
class TargetDensity:
    """log p(x, T(u)) + log|det ∂T/∂u| of N examples, where u is the vector of all latents.

    A call with u ``(K, N, D)`` returns ``(K, N)`` in nats.

    Attributes:
        space: the density of the variables by site.
        shapes: the shape of each site's variables per example.
        sample_guide: returns the given number of samples from the guide, ``(K, N, D)``.
        max_pairs: number of (sample, example) pairs to hold in memory at once.
    """

    space: UnconstrainedDensity
    shapes: Mapping[str, tuple[int, ...]]
    sample_guide: Callable[[int], Tensor]
    max_pairs: int

    def __call__(self, u: Tensor) -> Tensor:
        return self.space(unflatten_sites(u, self.shapes))


def make_target_density(program: ProgramInputs, layout: Layout, constrained: bool) -> TargetDensity:
    """Make the density that a family is fitted to.

    Noise that model and guide share is sampled again for each u.

    Arguments:
        program: the program and the examples.
        layout: the layout of the particles, see :func:`~.importance_weights.find_layout`.
        constrained: keep the latents on their own space instead of transforming them to real
            numbers.

    Raises:
        ValueError: if a latent site is discrete, or cannot be transformed to real numbers.
    """
    model, guide, x, args, kwargs = program
    args = (x, *args)
    sites = {n: s for n, s in trace_sites(guide, *args, **kwargs).items() if is_latent(s)}
    for name, site in sites.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"expected continuous latent sites; site {name!r} ({type(site['fn']).__name__}) is "
                f"discrete, which no posterior family supports: observe it or sum it out"
            )
    noise = {name for name, site in sites.items() if is_noise(site)}
    latent_names = [
        n for n, s in sites.items() if n not in noise and not s["infer"].get("is_auxiliary")
    ]
    transforms = dict.fromkeys(latent_names, identity_transform)
    if not constrained:
        all_transforms = site_transforms(model, *args, **kwargs)
        transforms = {name: all_transforms[name] for name in latent_names}
        check_not_circular(transforms, "a variational family")

    def sample_sites(num_samples: int) -> Mapping[str, Tensor]:
        return run_particles(
            empty_program, guide, *args, num_samples=num_samples, layout=layout, **kwargs
        ).latents

    def log_density(z: Mapping[str, Tensor]) -> Tensor:
        if noise:
            with torch.no_grad():
                z = {**sample_sites(len(next(iter(z.values())))), **z}
        terms = log_probs_at(model, z, *args, layout=layout, **kwargs)
        return torch.stack([term for name, term in terms.items() if name not in noise]).sum(0)

    space = UnconstrainedDensity(log_density, transforms)

    def sample_guide(num_samples: int) -> Tensor:
        return flatten_sites(space.inverse(sample_sites(num_samples)))

    first = space.inverse({name: sample_sites(1)[name] for name in latent_names})
    shapes = {name: tuple(u.shape[2:]) for name, u in first.items()}
    return TargetDensity(space, shapes, sample_guide, max(1, max_chain_pairs(x)))


@dataclass(frozen=True)
class RefitSettings:
    """Settings of the optimisation, arguments of :func:`~.estimator.gaps`.

    The step size follows a half cosine in each half of the steps. A gain in the second half means
    that the optimisation had not converged after the first.
    """

    num_steps: int
    step_size: float
    num_draws: int

    @property
    def halves(self) -> tuple[int, int]:
        """The number of steps in the first and in the second half."""
        second = self.num_steps // 2
        return self.num_steps - second, second

    def step_sizes(self, count: int) -> Iterator[float]:
        """The step size of each of ``count`` steps of a half."""
        for step in range(count):
            yield self.step_size * (1 + math.cos(math.pi * step / count)) / 2


@dataclass(frozen=True)
class RefitResult:
    """A family at its best parameters.

    Attributes:
        family: the family.
        target: the density that it was fitted to.
        params: the best parameters, ``(N, *outputs)``.
        improved: whether the ELBO exceeds that of the initial parameters, ``(N,)``.
        late_gain: the gain in ELBO over the second half of the steps, ``(N,)``, nats.
        remaining: an estimate of the gain that more steps would bring, ``(N,)``, nats. It is
            noisy and may be negative.
    """

    family: VariationalFamily
    target: TargetDensity
    params: Tensor
    improved: Tensor
    late_gain: Tensor
    remaining: Tensor

    @torch.no_grad()
    def log_weights(self, num_samples: int) -> Iterator[Tensor]:
        """Yield log p(x, u) − log q(u) of fresh samples in chunks, each ``(samples, N)``."""
        for log_p, log_q in _sample_log_probs(self.family, self.params, self.target, num_samples):
            yield log_p - log_q


def refit(
    family: VariationalFamily,
    target: TargetDensity,
    settings: RefitSettings,
    advance: Callable[[float], None],
) -> RefitResult:
    """Maximise the ELBO of each example from the family's initial parameters.

    Adam scales each parameter separately, so examples do not influence each other. The second half
    of the steps is run twice, with independent noise, and the parameters are averaged. The best
    of the initial, the intermediate, both final and the averaged parameters is selected with
    samples that are used for nothing else, so the selection does not bias later estimates.
    ``advance`` is called with the fraction of the steps just completed.

    The ELBO may be below its maximum for two reasons. If the steps are too few, the gain of the
    last ones shows how much remains (:func:`_extrapolate`). And the gradient's noise keeps the
    parameters away from the maximum: by concavity, averaging two independent results halves that
    loss, so what averaging gains is what remains.
    """
    first_steps, second_steps = settings.halves
    total = first_steps + 2 * second_steps
    init_params = family.init_params.detach().clone()

    def climb(
        params: Tensor, count: int, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the parameters halfway and at the end, and the state of the optimiser."""
        params = params.clone()
        halfway = params.clone()
        # the large eps keeps rounding noise in the gradient from turning into steps
        adam = torch.optim.Adam(
            [params], lr=settings.step_size, betas=(0.9, 0.99), eps=1e-4, maximize=True
        )
        if state is not None:
            adam.load_state_dict(copy.deepcopy(state))
        for step, step_size in enumerate(settings.step_sizes(count)):
            if step == count // 2:
                halfway = params.clone()
            adam.param_groups[0]["lr"] = step_size
            params.grad = _compute_gradient(family, params, target, settings.num_draws)
            adam.step()
            advance(1 / total)
        return halfway, params.detach(), adam.state_dict()

    _, middle, state = climb(init_params, first_steps)
    lates, ends, _ = zip(*(climb(middle, second_steps, state) for _ in range(2)), strict=True)
    candidates = [sum(ends) / 2, *ends, sum(lates) / 2, middle, init_params]
    seed = int(torch.randint(2**31, ()))
    elbos = torch.stack([_compute_elbo(family, params, target, seed) for params in candidates])
    elbos = elbos.nan_to_num(nan=-math.inf)
    average, one, other, late, before, initial = elbos
    index = elbos.argmax(0)
    best = torch.stack(candidates)[index, torch.arange(len(index), device=index.device)]
    first_gain, gain, last_gain = (
        difference.nan_to_num(0.0, 0.0, 0.0)
        for difference in (before - initial, average - before, average - late)
    )
    loss = average - (one + other) / 2
    # where the ELBO is not concave in the parameters, averaging may reduce it
    loss = torch.where(loss < 0, (one - other).abs() / 2, loss).nan_to_num(0.0, 0.0, 0.0)
    return RefitResult(
        family,
        target,
        best,
        improved=elbos.amax(0) > initial,
        late_gain=gain,
        remaining=_extrapolate(first_gain, gain, last_gain) + loss,
    )


def _extrapolate(first_gain: Tensor, gain: Tensor, last_gain: Tensor) -> Tensor:
    """Return the remaining gain from those of both halves and of the last quarter of the steps.

    With the step size schedule, a last quarter that contributes a tenth of the gain of its half
    means that the optimisation has not approached the maximum. Then further halves gain as the
    first two suggest: the same ratio each time, but at least half of the second in total. A
    smaller contribution means that the maximum was approached before.
    """
    share = (last_gain / gain).nan_to_num(0.0, 0.0, 0.0).clamp(0, _LINEAR_SHARE) / _LINEAR_SHARE
    ratio = (gain / first_gain.clamp(min=0)).nan_to_num(0.0, 1.0, 0.0).clamp(0, _MAX_RATIO)
    fraction = (ratio / (1 - ratio)).clamp(min=_REMAINING_FRACTION)
    return torch.where(gain > 0, fraction * gain * share.square(), gain / 2)


def _compute_gradient(
    family: VariationalFamily, params: Tensor, target: TargetDensity, num_draws: int
) -> Tensor:
    with torch.enable_grad(), pyro.validation_enabled(False):
        leaf = params.detach().requires_grad_()
        u, log_q = family.sample(leaf, num_draws)
        (gradient,) = torch.autograd.grad((target(u) - log_q).sum() / num_draws, leaf)
    return gradient.nan_to_num(0.0, 0.0, 0.0)


@torch.no_grad()
def _compute_elbo(
    family: VariationalFamily, params: Tensor, target: TargetDensity, seed: int
) -> Tensor:
    """Return the ELBO of each example, ``(N,)``; the same seed gives the same noise."""
    with seeded(seed):
        samples = _sample_log_probs(family, params, target, _NUM_COMPARISON_SAMPLES)
        chunks = zip(*samples, strict=True)
        log_p, log_q = (torch.cat(chunk).double() for chunk in chunks)
    # log q of a nearly singular q is rounding noise, which could pass for a large gain
    return torch.where(log_q.std(0) < _MAX_LOG_Q_STD, (log_p - log_q).mean(0), -math.inf)


def _sample_log_probs(
    family: VariationalFamily, params: Tensor, target: TargetDensity, num_samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log p(x, u) and log q(u) of samples from q in chunks, each ``(samples, N)``."""
    chunk = max(1, target.max_pairs // len(params))
    for first in range(0, num_samples, chunk):
        with pyro.validation_enabled(False):
            u, log_q = family.sample(params, min(chunk, num_samples - first))
            yield target(u), log_q
