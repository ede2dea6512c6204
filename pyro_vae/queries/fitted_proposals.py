"""Proposals that are fitted to what was seen of each datum, where all latents are real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..programs.unconstrained import Unconstrained, flatten_sites, site_transforms, unflatten_sites
from .proposals import Seen, log_joint, together
from .runner import Runner

__all__ = ["MOST_FULL", "Mixture", "Refitted", "refit", "space_of"]

#: Draws of each component in a step, Adam's first step size, and draws of the guide behind the
#: moments of a component's start.
_DRAWS, _STEP, _MOMENTS = 2, 0.05, 20
#: Of more dimensions the normals are diagonal: there would be too many covariances to learn.
MOST_FULL = 200
#: Degrees of freedom of the tails that are put in the normals' place.
_FREEDOM = 8.0


@dataclass(frozen=True)
class Mixture:
    """An equal mixture of M multivariate normals, or Student's t, for each of N data.

    Attributes:
        loc: the centres, ``(M, N, D)``.
        scale: the diagonals of the Cholesky factors, ``(M, N, D)``.
        lower: what is below these, ``(M, N, D, D)``; ``None`` for nothing.
        freedom: the degrees of freedom of Student's t; infinite for normals.
    """

    loc: Tensor
    scale: Tensor
    lower: Tensor | None
    freedom: float = math.inf

    def rows(self, rows: slice) -> Mixture:
        """For some of the data."""
        lower = None if self.lower is None else self.lower[:, rows]
        return Mixture(self.loc[:, rows], self.scale[:, rows], lower, self.freedom)

    def rsample(self, each: int) -> Tensor:
        """So many draws of every component, ``(each × M, N, D)``; differentiable if normal."""
        noise = torch.randn(each, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        if math.isfinite(self.freedom):
            half = noise.new_full((*noise.shape[:-1], 1), self.freedom / 2)
            noise = noise * (half / torch.distributions.Gamma(half, 1.0).sample()).sqrt()
        moved = self.scale * noise
        if self.lower is not None:
            moved = moved + (self.lower.tril(-1) @ noise.unsqueeze(-1)).squeeze(-1)
        return (self.loc + moved).flatten(0, 1)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log-density of ``(K, N, D)``, ``(K, N)``."""
        away = (u.unsqueeze(1) - self.loc).permute(1, 2, 3, 0)
        if self.lower is None:
            away = away / self.scale.unsqueeze(-1)
        else:
            factor = self.lower.tril(-1) + torch.diag_embed(self.scale)
            away = torch.linalg.solve_triangular(factor, away, upper=False)
        size, squares = u.shape[-1], away.square().sum(2)
        if math.isfinite(self.freedom):
            nu = self.freedom
            constant = math.lgamma((nu + size) / 2) - math.lgamma(nu / 2)
            constant -= size / 2 * math.log(nu * math.pi)
            score = constant - (nu + size) / 2 * (squares / nu).log1p()
        else:
            score = -(squares + size * math.log(2 * math.pi)) / 2
        score = score - self.scale.log().sum(-1, keepdim=True)
        return (score.logsumexp(0) - math.log(len(self.loc))).T


@dataclass(frozen=True)
class Refitted:
    """A :class:`Mixture` over the unconstrained latents of all sites, as a proposal.

    Attributes:
        mixture: over the sites' variables as one vector.
        shapes: of each site's variables of one datum.
        space: which variables these are.
    """

    mixture: Mixture
    shapes: Mapping[str, tuple[int, ...]]
    space: Unconstrained

    def rows(self, rows: slice, space: Unconstrained) -> Refitted:
        """For some of the data, of which ``space`` is."""
        return Refitted(self.mixture.rows(rows), self.shapes, space)

    def draw(self, each: int) -> dict[str, Tensor]:
        """So many latents of every component, by site, ``(each × M, N, *rest)``."""
        return self.space.constrain(unflatten_sites(self.mixture.rsample(each), self.shapes))

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """The log-density of latents, ``(K, N)``."""
        u = self.space.inverse(latents)
        score = self.mixture.log_prob(flatten_sites(u)) - self.space.log_volume(u, latents)
        # a draw that was rounded to the edge of its support has no preimage to be proposed from
        return score.nan_to_num(nan=-math.inf, neginf=-math.inf)


def space_of(runner: Runner, seen: Seen) -> Unconstrained:
    """log p(z, what was seen) in variables that may be any real numbers.

    Raises:
        ValueError: if the latents are discrete, or unit vectors.
    """
    transforms = site_transforms(runner.model, runner.x, *runner.args)
    return Unconstrained(lambda z: log_joint(seen, runner.decode(z)), transforms)


def refit(runner: Runner, seen: Seen, fills: Tensor, steps: int) -> Refitted | None:
    """A mixture that comes near p(z | what was seen) of each datum; ``None`` if z is not real.

    A normal for each of M fills, which starts from the moments of the guide there. All climb

        Σ_m E_{q_m}[log p(z, x_obs) − log Σ_m' q_m'(z) / M] / M,

    the ELBO of their mixture, so that what one has is of no use to another, and they share out
    what a single normal cannot cover. The gradient is taken along the draws alone (the score
    of the mixture has mean zero), which has no variance where the mixture is exact. Tails of
    Student's t replace the normals' in the end, as the ELBO prefers what is too narrow.

    Arguments:
        runner: the program on the N data.
        seen: what was seen of them.
        fills: M versions of them, ``(M, N, *event)``.
        steps: gradient steps, with Adam.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al.,
        2021), equation 5. https://arxiv.org/abs/2003.01687
        Sticking the Landing (Roeder et al., 2017). https://arxiv.org/abs/1703.09194
        Semi-Amortized Variational Autoencoders (Kim et al., 2018).
        https://arxiv.org/abs/1802.02550
    """
    try:
        space = space_of(runner, seen)
    except ValueError:
        return None
    drawn, _ = runner.repeated(fills).draw(_MOMENTS)
    start = space.inverse({n: together(drawn[n], len(fills)) for n in space.transforms})
    shapes = {name: tuple(u.shape[2:]) for name, u in start.items()}
    u = flatten_sites(start).unflatten(0, (_MOMENTS, -1))
    tiny = torch.finfo(u.dtype).eps ** 0.5
    # in units between what the guide leaves open of each coordinate, which may be far too little,
    # and what the prior does: a step is then as good for one as for another
    prior = flatten_sites(space.inverse(runner.prior(_MOMENTS))).std(0)
    unit = (u.flatten(0, 1).std(0) * prior).sqrt().clamp(min=tiny)
    centre = u.mean(0)
    moved, log_scale = torch.zeros_like(centre), (u.std(0) / unit).clamp(min=tiny).log()
    leaves = [moved, log_scale]
    if len(unit[0]) <= MOST_FULL:
        leaves.append(torch.zeros(*moved.shape, moved.shape[-1]).to(moved))

    def mixture(leaves: list[Tensor]) -> Mixture:
        moved, log_scale, *lower = leaves
        factor = unit.unsqueeze(-1) * lower[0] if lower else None
        return Mixture(centre + unit * moved, unit * log_scale.exp(), factor)

    adam = torch.optim.Adam(leaves, lr=_STEP, betas=(0.9, 0.99), maximize=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        with torch.enable_grad():
            climbing = [leaf.detach().requires_grad_() for leaf in leaves]
            u = mixture(climbing).rsample(_DRAWS)
            gain = space(unflatten_sites(u, shapes)) - mixture(leaves).log_prob(u)
            slopes = torch.autograd.grad(gain.sum() / _DRAWS, climbing)
        for leaf, slope in zip(leaves, slopes, strict=True):
            leaf.grad = slope.nan_to_num(0.0, 0.0, 0.0)
        adam.step()
        slower.step()
    found = mixture(leaves)
    return Refitted(replace(found, freedom=_FREEDOM), shapes, space)
