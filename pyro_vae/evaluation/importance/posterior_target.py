"""Modes and curvatures of the posteriors p(z|x) of a program, in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...programs.arguments import ProgramInputs
from ...programs.base import empty_program
from ...programs.chunking import max_chain_pairs
from ...programs.importance_weights import find_layout
from ...programs.particles import (
    Layout,
    UnscorableError,
    guide_scorer,
    log_probs_at,
    run_particles,
    total_log_prob,
)
from ...programs.unconstrained import flatten_sites, unconstrained_posterior, unflatten_sites

__all__ = ["PosteriorTarget"]

#: Samples of the prior for the scale of each latent.
_NUM_PRIOR = 64
#: Lower limit on the curvature, in units of the prior's: a flat direction is not sampled wider.
_MIN_CURVATURE = 0.3
#: Initial damping of Newton's method, and its factors after a successful and a failed step.
_DAMPING, _SHRINK, _GROW = 0.3, 0.2, 5.0
#: Newton's method ends for an example when a step gains less, in nats.
_MIN_GAIN = 1e-3


@dataclass(frozen=True)
class PosteriorTarget:
    """Posteriors of a block of examples in standardised unconstrained variables v, ``(C, N, D)``.

    Attributes:
        inputs: the program and the examples.
        layout: the layout of the particles.
        scale: v times the scale is unconstrained, ``(N, D)``: the prior's standard deviations.
        log_density: maps v to the log-density whose integral is p(x), ``(C, N)``.
        sample_guide: samples v from the guide.
        guide_log_prob: the log-density of the guide at v, or of the prior if the guide can only
            score its own samples.
    """

    inputs: ProgramInputs
    layout: Layout
    scale: Tensor
    log_density: Callable[[Tensor], Tensor]
    sample_guide: Callable[[int], Tensor]
    guide_log_prob: Callable[[Tensor], Tensor]

    @classmethod
    def create(
        cls, inputs: ProgramInputs, layout: Layout | None = None, scale: Tensor | None = None
    ) -> PosteriorTarget:
        model, guide, x, args, kwargs = inputs
        if layout is None:
            layout = find_layout(model, guide, x, *args, **kwargs)
        space = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)

        def sample(source: Callable[..., Any], count: int) -> dict[str, Tensor]:
            run = run_particles(
                empty_program, source, x, *args, num_samples=count, layout=layout, **kwargs
            )
            return space.inverse({name: run.latents[name] for name in space.transforms})

        u = sample(guide, 2)
        shapes = {name: tuple(part.shape[2:]) for name, part in u.items()}
        if scale is None:
            scale = flatten_sites(sample(model, _NUM_PRIOR)).std(0)
            scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
        unit, volume = scale, scale.log().sum(-1)

        def log_density(v: Tensor) -> Tensor:
            return space(unflatten_sites(v * unit, shapes)) + volume

        def jacobian(v: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            u = unflatten_sites(v * unit, shapes)
            z = space.constrain(u)
            return z, space.log_abs_det_jacobian(u, z) + volume

        score = guide_scorer(guide, x, *args, layout=layout, **kwargs)

        def guide_log_prob(v: Tensor) -> Tensor:
            z, change = jacobian(v)
            return score(z) + change

        def prior_log_prob(v: Tensor) -> Tensor:
            z, change = jacobian(v)
            log_p = log_probs_at(model, z, x, *args, layout=layout, **kwargs)
            return total_log_prob({name: log_p[name] for name in z}) + change

        source, log_prob = guide, guide_log_prob
        try:
            guide_log_prob(flatten_sites(u) / unit)
        except UnscorableError:
            source, log_prob = model, prior_log_prob
        return cls(
            inputs,
            layout,
            unit,
            log_density,
            lambda count: flatten_sites(sample(source, count)) / unit,
            log_prob,
        )

    def select(self, rows: Tensor) -> PosteriorTarget:
        """Return the posteriors of a subset of the examples."""
        if len(rows) == len(self.scale):
            return self
        return PosteriorTarget.create(self.inputs.select(rows), self.layout, self.scale[rows])

    @property
    def max_pairs(self) -> int:
        """The number of (particle, example) pairs to evaluate at once."""
        return max_chain_pairs(self.inputs.x)

    def evaluate(self, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """Return log-densities of many particles, ``(C, N)``, without gradient."""
        count = max(1, self.max_pairs // v.shape[1])
        with torch.no_grad():
            return torch.cat([function(part) for part in v.split(count)])

    def derivatives(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient, ``(N, D)``, and the negative Hessian, ``(N, D, D)``, at ``(N, D)``.

        Examples are independent, so the gradient of one component of the gradient, summed over
        the examples, is a row of each Hessian. One particle per component gives many rows at once.
        """
        size, dim = v.shape
        rows = []
        gradient = torch.empty(0)
        count = max(1, self.max_pairs // (4 * size))
        for first in range(0, dim, count):
            index = torch.arange(first, min(first + count, dim), device=v.device)
            with torch.enable_grad():
                copies = v.expand(len(index), size, dim).clone().requires_grad_()
                total = self.log_density(copies).sum()
                (gradient,) = torch.autograd.grad(total, copies, create_graph=True)
                picked = gradient[torch.arange(len(index), device=v.device), :, index].sum()
                (row,) = torch.autograd.grad(picked, copies)
            rows.append(row)
        hessian = torch.cat(rows).movedim(0, 1)
        return gradient[0].detach(), -(hessian + hessian.transpose(1, 2)) / 2

    def find_modes(self, v: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return modes, ``(N, D)``, covariances there, and the log-densities at the modes.

        Newton's method with Levenberg's damping, from v: a step that does not increase the density
        is undone and repeated with more damping.
        """
        value = self.evaluate(self.log_density, v[None])[0]
        damping = torch.full_like(value, _DAMPING)
        gradient, curvature = self.derivatives(v)
        for _ in range(num_steps):
            eigenvalues, basis = _decompose(curvature)
            components = (basis.transpose(1, 2) @ gradient[..., None])[..., 0]
            step = (basis @ (components / (eigenvalues + damping[:, None]))[..., None])[..., 0]
            proposal = v + step.nan_to_num()
            gain = self.evaluate(self.log_density, proposal[None])[0] - value
            improved = gain > 0
            v = torch.where(improved[:, None], proposal, v)
            value = torch.where(improved, value + gain, value)
            damping = torch.where(improved, damping * _SHRINK, damping * _GROW + 0.1)
            if not improved.any():
                continue
            gradient, curvature = self.derivatives(v)
            if (improved & (gain < _MIN_GAIN)).all():
                break
        eigenvalues, basis = _decompose(curvature)
        covariance = basis @ torch.diag_embed(1 / eigenvalues) @ basis.transpose(1, 2)
        return v, covariance, value


def _decompose(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues with a lower limit, and eigenvectors, of the negative Hessians."""
    # a likelihood may be infinitely steep at a bad value; the step is then undone
    finite = curvature.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
    eigenvalues, basis = torch.linalg.eigh(finite)
    return eigenvalues.clamp(min=_MIN_CURVATURE), basis
