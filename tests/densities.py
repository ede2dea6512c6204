"""Numerical checks of a density and its samples in one or two dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from pyro.distributions import TransformedDistribution
from scipy import stats

from pyro_vae import distributions


class DensityGrid(NamedTuple):
    """A density on a grid of one coordinate.

    Attributes:
        points: increasing values of the coordinate.
        density: density with respect to the coordinate.
    """

    points: np.ndarray
    density: np.ndarray

    @property
    def integral(self) -> float:
        return float(np.trapezoid(self.density, self.points))

    def agrees(self, draws: torch.Tensor) -> bool:
        """Kolmogorov–Smirnov test of draws of the coordinate, with false-alarm rate 1e-4."""
        steps = np.diff(self.points) * (self.density[1:] + self.density[:-1]) / 2
        cdf = np.concatenate([[0.0], np.cumsum(steps)])
        draws = draws.detach().double().numpy()
        return stats.kstest(draws, lambda v: np.interp(v, self.points, cdf)).pvalue > 1e-4


def is_spherical(fn) -> bool:
    return isinstance(fn, distributions.PowerSpherical | distributions.UniformSphere)


@torch.no_grad()
def density_grid(fn, low=-12.0, high=12.0, points=4801) -> DensityGrid:
    """Evaluate a density on a grid of ℝ, or of the circle (by angle).

    A flow without an inverse is evaluated on a grid that it has transformed.
    """
    if is_spherical(fn):
        angle = torch.linspace(-math.pi, math.pi, points, dtype=torch.float64)
        z = torch.stack([angle.cos(), angle.sin()], -1)
        return DensityGrid(angle.numpy(), fn.log_prob(z).exp().numpy())
    z = torch.linspace(low, high, points, dtype=torch.float64)[:, None]
    try:
        log_prob = fn.log_prob(z)
    except (KeyError, NotImplementedError):
        assert isinstance(fn, TransformedDistribution)
        for transform in fn.transforms:
            z = transform(z)
        log_prob = fn.log_prob(z)
    order = z[:, 0].argsort()
    return DensityGrid(z[order, 0].numpy(), log_prob[order].exp().numpy())


def coordinate(fn, draws: torch.Tensor) -> torch.Tensor:
    """Return the grid coordinate of draws ``(n, 1)``, or of ``(n, 2)`` on the circle."""
    return torch.atan2(draws[:, 1], draws[:, 0]) if is_spherical(fn) else draws[:, 0]


@torch.no_grad()
def plane_integral(fn, half_width=12.0, points=481) -> float:
    """Integrate a density over ℝ², or over the unit sphere in three dimensions."""
    if is_spherical(fn):
        height = torch.linspace(-1, 1, 4 * points, dtype=torch.float64)
        angle = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
        h, a = torch.meshgrid(height, angle, indexing="ij")
        z = torch.stack([(1 - h**2).sqrt() * a.cos(), (1 - h**2).sqrt() * a.sin(), h], -1)
        rings = fn.log_prob(z).exp().mean(1) * 2 * math.pi
        return float(torch.trapezoid(rings, height))
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = fn.log_prob(grid).exp().reshape(points, points)
    return float(torch.trapezoid(torch.trapezoid(density, axis), axis))
