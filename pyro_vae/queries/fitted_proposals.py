"""Mixture proposals fitted to the observed part of each example, for real-valued latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..programs.unconstrained import (
    UnconstrainedDensity,
    check_not_circular,
    flatten_sites,
    site_transforms,
    unflatten_sites,
)
from .runner import PartialObservation, merge_completions

__all__ = [
    "MAX_FULL_COVARIANCE_DIM",
    "FittedProposal",
    "Mixture",
    "fit_mixture",
    "make_unconstrained_density",
]

#: Samples from each component in a step, initial step size of Adam, and guide samples for the
#: initial moments of a component.
_NUM_DRAWS, _STEP_SIZE, _NUM_MOMENT_SAMPLES = 2, 0.05, 20
#: Above this dimension the normals are diagonal, to limit the number of parameters.
MAX_FULL_COVARIANCE_DIM = 200
#: Degrees of freedom of the Student's t distributions that replace the fitted normals.
_DF = 8.0


@dataclass(frozen=True)
class Mixture:
    """An equally weighted mixture of M multivariate normals or Student's t, for N examples.

    Attributes:
        loc: the locations, ``(M, N, D)``.
        scale: the diagonals of the Cholesky factors, ``(M, N, D)``.
        lower: their strictly lower triangles, ``(M, N, D, D)``; ``None`` for diagonal factors.
        df: the degrees of freedom of Student's t; infinite for normals.
    """

    loc: Tensor
    scale: Tensor
    lower: Tensor | None
    df: float = math.inf

    def select(self, rows: slice) -> Mixture:
        """Return the mixture of a subset of the examples."""
        lower = None if self.lower is None else self.lower[:, rows]
        return Mixture(self.loc[:, rows], self.scale[:, rows], lower, self.df)

    def rsample(self, count: int) -> Tensor:
        """Sample ``count`` values per component, ``(count × M, N, D)``.

        Normal samples are reparameterised.
        """
        noise = torch.randn(count, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        if math.isfinite(self.df):
            half = noise.new_full((*noise.shape[:-1], 1), self.df / 2)
            noise = noise * (half / torch.distributions.Gamma(half, 1.0).sample()).sqrt()
        offset = self.scale * noise
        if self.lower is not None:
            offset = offset + (self.lower.tril(-1) @ noise.unsqueeze(-1)).squeeze(-1)
        return (self.loc + offset).flatten(0, 1)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return the log density of values ``(K, N, D)``, ``(K, N)``."""
        offset = (u.unsqueeze(1) - self.loc).permute(1, 2, 3, 0)
        if self.lower is None:
            offset = offset / self.scale.unsqueeze(-1)
        else:
            factor = self.lower.tril(-1) + torch.diag_embed(self.scale)
            offset = torch.linalg.solve_triangular(factor, offset, upper=False)
        size, squares = u.shape[-1], offset.square().sum(2)
        if math.isfinite(self.df):
            nu = self.df
            constant = math.lgamma((nu + size) / 2) - math.lgamma(nu / 2)
            constant -= size / 2 * math.log(nu * math.pi)
            log_q = constant - (nu + size) / 2 * (squares / nu).log1p()
        else:
            log_q = -(squares + size * math.log(2 * math.pi)) / 2
        log_q = log_q - self.scale.log().sum(-1, keepdim=True)
        return (log_q.logsumexp(0) - math.log(len(self.loc))).T


@dataclass(frozen=True)
class FittedProposal:
    """A :class:`Mixture` over the unconstrained latents of all sites.

    Attributes:
        mixture: the mixture over the variables of all sites as one vector.
        shapes: the shape of each site's variables per example.
        space: the unconstrained space of these variables.
    """

    mixture: Mixture
    shapes: Mapping[str, tuple[int, ...]]
    space: UnconstrainedDensity

    def select(self, rows: slice, space: UnconstrainedDensity) -> FittedProposal:
        """Return the proposal of a subset of the examples, with their space."""
        return FittedProposal(self.mixture.select(rows), self.shapes, space)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Sample ``count`` latents per component, by site, ``(count × M, N, *rest)``."""
        return self.space.constrain(unflatten_sites(self.mixture.rsample(count), self.shapes))

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return the log density of latents, ``(K, N)``."""
        u = self.space.inverse(latents)
        log_q = self.mixture.log_prob(flatten_sites(u)) - self.space.log_abs_det_jacobian(
            u, latents
        )
        # a sample rounded to the edge of its support has no preimage, so its density is zero
        return log_q.nan_to_num(nan=-math.inf, neginf=-math.inf)


def make_unconstrained_density(observation: PartialObservation) -> UnconstrainedDensity:
    """Return log p(z, x_obs) as a function of unconstrained real variables.

    Raises:
        ValueError: if the latents are discrete or unit vectors.
    """
    runner = observation.runner
    transforms = site_transforms(runner.inputs.model, runner.inputs.x, *runner.inputs.args)
    return UnconstrainedDensity(lambda z: observation.log_joint(runner.decode(z)), transforms)


def fit_mixture(
    observation: PartialObservation, completions: Tensor, steps: int
) -> FittedProposal | None:
    """Fit a mixture to p(z | x_obs) of each example; return ``None`` if z is not real.

    There is one normal per completion, which starts from the moments of the guide there. All are
    optimised together on

        Σ_m E_{q_m}[log p(z, x_obs) − log Σ_m' q_m'(z) / M] / M,

    the ELBO of their mixture, so that the components do not overlap and cover more than a single
    normal could. The gradient flows through the samples alone (the score of the mixture has mean
    zero) and has no variance where the mixture is exact. Student's t distributions replace the
    normals at the end, because the ELBO favours components that are too narrow.

    Arguments:
        completions: M completions of the N examples, ``(M, N, *event)``.
        steps: gradient steps of Adam.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al.,
        2021), equation 5. https://arxiv.org/abs/2003.01687
        Sticking the Landing (Roeder et al., 2017). https://arxiv.org/abs/1703.09194
        Semi-Amortized Variational Autoencoders (Kim et al., 2018).
        https://arxiv.org/abs/1802.02550
    """
    try:
        space = make_unconstrained_density(observation)
        check_not_circular(space.transforms, "fitted proposals")
    except ValueError:
        return None
    runner = observation.runner
    latents, _ = runner.with_copies(completions).sample_guide(_NUM_MOMENT_SAMPLES)
    start = space.inverse(
        {n: merge_completions(latents[n], len(completions)) for n in space.transforms}
    )
    shapes = {name: tuple(u.shape[2:]) for name, u in start.items()}
    u = flatten_sites(start).unflatten(0, (_NUM_MOMENT_SAMPLES, -1))
    tiny = torch.finfo(u.dtype).eps ** 0.5
    # the unit of each coordinate is the geometric mean of the guide's standard deviation, which
    # may be far too small, and the prior's; one step size then suits all coordinates
    prior = runner.sample_prior(_NUM_MOMENT_SAMPLES)
    prior_std = flatten_sites(space.inverse(prior)).std(0)
    unit = (u.flatten(0, 1).std(0) * prior_std).sqrt().clamp(min=tiny)
    centre = u.mean(0)
    shift, log_scale = torch.zeros_like(centre), (u.std(0) / unit).clamp(min=tiny).log()
    params = [shift, log_scale]
    if len(unit[0]) <= MAX_FULL_COVARIANCE_DIM:
        params.append(torch.zeros(*shift.shape, shift.shape[-1]).to(shift))

    def make_mixture(params: list[Tensor]) -> Mixture:
        shift, log_scale, *lower = params
        factor = unit.unsqueeze(-1) * lower[0] if lower else None
        return Mixture(centre + unit * shift, unit * log_scale.exp(), factor)

    adam = torch.optim.Adam(params, lr=_STEP_SIZE, betas=(0.9, 0.99), maximize=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad():
            leaves = [param.detach().requires_grad_() for param in params]
            u = make_mixture(leaves).rsample(_NUM_DRAWS)
            log_w = space(unflatten_sites(u, shapes)) - make_mixture(params).log_prob(u)
            gradients = torch.autograd.grad(log_w.sum() / _NUM_DRAWS, leaves)
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        adam.step()
        scheduler.step()
    return FittedProposal(replace(make_mixture(params), df=_DF), shapes, space)
