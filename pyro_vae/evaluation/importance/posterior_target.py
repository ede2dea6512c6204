"""Modes and curvatures of the posteriors p(z|x) of a program, in unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from ...programs.unconstrained import (
    check_not_circular,
    flatten_sites,
    unconstrained_posterior,
    unflatten_sites,
)

__all__ = ["PosteriorTarget", "colour", "factorize", "whiten"]

#: Samples of the guide whose mean is the start of Newton's method.
_NUM_GUIDE = 8
#: Samples of the prior for the scale of each latent.
_NUM_PRIOR = 64
#: Lower limit on the curvature, in units of the prior's: a flat direction is not sampled wider.
_MIN_CURVATURE = 0.3
#: Initial damping of Newton's method, and its factors after a successful and a failed step.
_DAMPING, _SHRINK, _GROW = 0.3, 0.2, 5.0
#: Newton's method ends for an example when a step gains less, in nats, or with such a damping.
_MIN_GAIN, _MAX_DAMPING = 0.05, 1e6
#: Number of dimensions up to which Hessians are exact, and the rank of their approximation.
_MAX_EXACT, _RANK = 100, 50
#: Maximum number of dimensions: memory grows with their square, and time with their cube.
_MAX_DIMENSIONS = 500
#: Steps of the variational fit, and the number of points whose gradients each uses, if D is lower.
_NUM_FITS, _NUM_POINTS = 4, 80
#: Longest step of the variational fit, in standard deviations per dimension.
_MAX_STEP = 0.3


@dataclass(frozen=True)
class PosteriorTarget:
    """Posteriors of a block of examples in standardised unconstrained variables v, ``(C, N, D)``.

    Attributes:
        inputs: the program and the examples.
        layout: the layout of the particles.
        scale: v times the scale is unconstrained, ``(N, D)``: the prior's standard deviations.
        log_density: maps v to the log-density whose integral is p(x), ``(C, N)``.
        sample_guide, sample_prior: sample v from the guide and from the prior.
        guide_log_prob, prior_log_prob: their log-densities at v.
        has_guide: whether the guide can score other samples than its own. If not, the prior takes
            its place in ``sample_guide`` and ``guide_log_prob``.
        constrain: maps v to the latents by site, ``(C, N, *event)``.
        unconstrain: maps latents by site to v; masked ones get new samples.
        shapes: the shape of the unconstrained variables of each site per example.
    """

    inputs: ProgramInputs
    layout: Layout
    scale: Tensor
    log_density: Callable[[Tensor], Tensor]
    sample_guide: Callable[[int], Tensor]
    sample_prior: Callable[[int], Tensor]
    guide_log_prob: Callable[[Tensor], Tensor]
    prior_log_prob: Callable[[Tensor], Tensor]
    has_guide: bool
    constrain: Callable[[Tensor], dict[str, Tensor]]
    unconstrain: Callable[[Mapping[str, Tensor]], Tensor]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def create(
        cls,
        inputs: ProgramInputs,
        layout: Layout | None = None,
        scale: Tensor | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> PosteriorTarget:
        """Return the posteriors of examples.

        With ``shapes``, sites that the program does not have for these examples, such as later
        times of a time series, are added as if they were masked.

        Raises:
            ValueError: if a latent site is discrete or on a sphere, or if there are more than 500
                latent dimensions.
        """
        model, guide, x, args, kwargs = inputs
        if layout is None:
            layout = find_layout(model, guide, x, *args, **kwargs)
        space = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
        check_not_circular(space.transforms, "Laplace proposals")
        space, added = space.with_masked_sites(shapes or {}, len(x))

        def absent(count: int) -> dict[str, Tensor]:
            return {name: x.new_zeros(count, len(x), *shape) for name, shape in added.items()}

        def sample(source: Callable[..., Any], count: int) -> dict[str, Tensor]:
            run = run_particles(
                empty_program, source, x, *args, num_samples=count, layout=layout, **kwargs
            )
            return space.inverse_samples({**absent(count), **run.latents})

        u = sample(guide, 2)
        shapes = {name: tuple(part.shape[2:]) for name, part in u.items()}
        dim = sum(math.prod(shape) for shape in shapes.values())
        if dim > _MAX_DIMENSIONS:
            raise ValueError(
                f"expected at most {_MAX_DIMENSIONS} latent dimensions per example for Laplace "
                f"proposals, which have a covariance of their square; got {dim}: use annealed "
                f"importance sampling"
            )
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
            return total_log_prob({name: log_p[name] for name in z if name in log_p}) + change

        def draw(source: Callable[..., Any]) -> Callable[[int], Tensor]:
            return lambda count: flatten_sites(sample(source, count)) / unit

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
            draw(source),
            draw(model),
            log_prob,
            prior_log_prob,
            source is guide,
            lambda v: jacobian(v)[0],
            lambda z: flatten_sites(space.inverse_samples(z)) / unit,
            shapes,
        )

    def select(self, rows: Tensor) -> PosteriorTarget:
        """Return the posteriors of a subset of the examples."""
        if len(rows) == len(self.scale):
            return self
        part = self.inputs.select(rows)
        return PosteriorTarget.create(part, self.layout, self.scale[rows], self.shapes)

    def guide_mean(self) -> Tensor:
        """Return the mean of a few samples of the guide, ``(N, D)``."""
        return self.sample_guide(_NUM_GUIDE).mean(0)

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

        For more than 100 dimensions, the Hessian is that of the prior, as a diagonal, plus a term
        of rank 50 (Nyström's approximation): of many latents most are hardly used, and their
        posterior is close to the prior.
        """
        if v.shape[1] <= _MAX_EXACT:
            gradient, curvature = self._products(self.log_density, v, torch.eye(v.shape[1]))
        else:
            directions = torch.linalg.qr(torch.randn(v.shape[1], _RANK))[0].T
            gradient, products = self._products(self.log_density, v, directions)
            prior = self._diagonal(self.prior_log_prob, v)
            curvature = _nystrom(products, directions.to(v), prior)
        return gradient, (curvature + curvature.transpose(1, 2)) / 2

    def guide_precision(self, v: Tensor) -> Tensor:
        """Return the negative Hessian of the guide's log-density at ``(N, D)``, ``(N, D, D)``.

        For more than 100 dimensions it is taken to be diagonal.
        """
        if v.shape[1] > _MAX_EXACT:
            return torch.diag_embed(self._diagonal(self.guide_log_prob, v))
        precision = self._products(self.guide_log_prob, v, torch.eye(v.shape[1]))[1]
        return (precision + precision.transpose(1, 2)) / 2

    def _products(
        self, function: Callable[[Tensor], Tensor], v: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient, and the negative Hessian times each direction, ``(N, R, D)``.

        Examples are independent, so the gradient of the gradient in one direction, summed over the
        examples, is a product with each Hessian. One particle per direction gives many at once.
        """
        size, dim = v.shape
        products, gradient = [], torch.empty(0)
        for part in directions.to(v).split(max(1, self.max_pairs // (4 * size))):
            with torch.enable_grad():
                copies = v.expand(len(part), size, dim).clone().requires_grad_()
                total = function(copies).sum()
                (gradient,) = torch.autograd.grad(total, copies, create_graph=True)
                picked = torch.einsum("knd,kd->", gradient, part)
                (product,) = torch.autograd.grad(picked, copies)
            products.append(product)
        return gradient[0].detach(), -torch.cat(products).transpose(0, 1)

    def _diagonal(self, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """Return the negative Hessian, if diagonal, with a lower limit, ``(N, D)``."""
        _, products = self._products(function, v, torch.ones(1, v.shape[1]))
        return products[:, 0].clamp(min=_MIN_CURVATURE)

    def find_modes(self, v: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return modes, ``(N, D)``, precisions there, and the log-densities at the modes.

        Newton's method with Levenberg's damping, from v: a step that does not increase the density
        is undone and repeated with more damping.
        """
        v = v.clone()
        value = self.evaluate(self.log_density, v[None])[0]
        damping = torch.full_like(value, _DAMPING)
        gradient, curvature = self.derivatives(v)
        part, rows = self, torch.arange(len(v), device=v.device)
        active = torch.ones_like(value, dtype=torch.bool)
        for _ in range(num_steps):
            if not active.any():
                break
            if 2 * active.sum() < len(rows):
                # the others have converged
                rows = active.nonzero()[:, 0]
                part = self.select(rows)
            point = v[rows]
            eigenvalues, basis = _decompose(curvature[rows])
            components = (basis.transpose(1, 2) @ gradient[rows][..., None])[..., 0]
            step = components / (eigenvalues + damping[rows][:, None])
            proposal = point + (basis @ step[..., None])[..., 0].nan_to_num()
            gain = part.evaluate(part.log_density, proposal[None])[0] - value[rows]
            improved = gain > 0
            v[rows] = torch.where(improved[:, None], proposal, point)
            value[rows] = torch.where(improved, value[rows] + gain, value[rows])
            factor = torch.where(improved, _SHRINK, _GROW)
            damping[rows] = factor * damping[rows] + torch.where(improved, 0.0, 0.1)
            active[rows] = ~(improved & (gain < _MIN_GAIN)) & (damping[rows] < _MAX_DAMPING)
            if improved.any():
                gradient[rows], curvature[rows] = part.derivatives(v[rows])
        return v, curvature, value

    def fit_normals(self, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Return means ``(N, D)`` and precisions of normals that are closer to the posteriors.

        At the normal that minimises KL(normal ‖ posterior), the mean of the gradient is zero and
        the mean of the negative Hessian is the inverse covariance (Opper and Archambeau, 2009,
        equations 9 and 10). Newton steps lead towards it. The curvature at the mode is that of a
        point; its mean is that of the region with the mass.

        The mean Hessian is the slope of a linear regression of the gradient on the points, by
        Stein's lemma: D² numbers from a few gradients per dimension. A step that does not increase
        the ELBO of an example is undone and repeated with half the length.

        References:
            The Variational Gaussian Approximation Revisited (Opper and Archambeau, 2009).
            https://doi.org/10.1162/neco.2008.08-07-592
        """
        noise = _cubature_points(mean.shape[1]).to(mean)
        bound = torch.full_like(mean[:, 0], -math.inf)
        length = torch.ones_like(mean[:, :1])
        new_mean, new_precision = mean, precision
        gradient, slope = torch.zeros_like(mean), torch.zeros_like(precision)
        for index in range(_NUM_FITS + 1):
            factor = factorize(new_precision)
            points = new_mean + colour(noise[:, None].expand(-1, *mean.shape), factor)
            if index < _NUM_FITS:
                values, gradients = self._gradients(points)
            else:
                values = self.evaluate(self.log_density, points)
            entropy = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
            new_bound = values.mean(0) + entropy
            improved = (new_bound > bound) | (index == 0)
            bound = torch.where(improved, new_bound, bound)
            mean = torch.where(improved[:, None], new_mean, mean)
            precision = torch.where(improved[:, None, None], new_precision, precision)
            if index == _NUM_FITS:
                break
            gradient = torch.where(improved[:, None], gradients.mean(0), gradient)
            new_slope = _regress(noise, gradients, factor)
            slope = torch.where(improved[:, None, None], new_slope, slope)
            length = torch.where(improved[:, None], 1.0, length / 2)
            eigenvalues, basis = _decompose(slope)
            step = (basis.transpose(1, 2) @ gradient[..., None])[..., 0] / eigenvalues
            size = (step.square() * eigenvalues).mean(-1, keepdim=True).sqrt()
            step = length * step * (_MAX_STEP / size.clamp(min=_MAX_STEP))
            new_mean = mean + (basis @ step[..., None])[..., 0]
            new_precision = torch.lerp(precision, slope, length[..., None])
        return mean, precision

    def _gradients(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities, ``(S, N)``, and their gradients, at points ``(S, N, D)``."""
        values, gradients = [], []
        for part in v.split(max(1, self.max_pairs // (2 * v.shape[1]))):
            with torch.enable_grad():
                points = part.clone().requires_grad_()
                value = self.log_density(points)
                (gradient,) = torch.autograd.grad(value.sum(), points)
            values.append(value.detach())
            gradients.append(gradient)
        gradient = torch.cat(gradients).nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
        return torch.cat(values), gradient


def factorize(precision: Tensor) -> Tensor:
    """Return Cholesky factors of the inverses of precisions ``(N, D, D)``.

    The curvature is at least a limit in every direction. The inverse itself would lose the narrow
    directions of a likelihood with little noise to rounding.
    """
    eigenvalues, basis = _decompose(precision)
    root = eigenvalues.rsqrt()[..., None] * basis.transpose(1, 2)
    factor = torch.linalg.qr(root)[1].transpose(1, 2)
    return factor * factor.diagonal(dim1=1, dim2=2).sign()[:, None]


def _regress(noise: Tensor, gradients: Tensor, factor: Tensor) -> Tensor:
    """Return the negative slope, ``(N, D, D)``, of gradients at the points factor · noise."""
    # the noise has the covariance I
    slope = -torch.einsum("sd,sne->nde", noise, gradients) @ factor / len(noise)
    slope = torch.linalg.solve_triangular(factor.transpose(1, 2), slope, upper=True)
    slope = torch.linalg.solve_triangular(factor, slope, upper=False, left=False)
    return (slope + slope.transpose(1, 2)) / 2


def _cubature_points(dim: int) -> Tensor:
    """Return points ``(S, D)`` with mean zero and covariance I, exactly: ± orthogonal vectors."""
    count = max(1, round(_NUM_POINTS / (2 * dim)))
    half = torch.linalg.qr(torch.randn(count, dim, dim))[0].reshape(-1, dim) * math.sqrt(dim)
    return torch.cat([half, -half])


def colour(noise: Tensor, factor: Tensor) -> Tensor:
    """Return Cholesky factors ``(N, D, D)`` times vectors ``(K, N, D)``."""
    # one matrix product per example, not one per vector
    return (noise.transpose(0, 1) @ factor.transpose(1, 2)).transpose(0, 1)


def whiten(v: Tensor, factor: Tensor) -> Tensor:
    """Return the inverse of Cholesky factors ``(N, D, D)`` times vectors ``(K, N, D)``."""
    return torch.linalg.solve_triangular(factor, v.movedim(0, 2), upper=False).movedim(2, 0)


def _nystrom(products: Tensor, directions: Tensor, base: Tensor) -> Tensor:
    """Return a diagonal plus the Nyström approximation of the rest of A, from products with A.

    Arguments:
        products: A times each direction, ``(N, R, D)``.
        directions: ``(R, D)``, orthonormal.
        base: the diagonal, ``(N, D)``.

    References:
        Revisiting the Nyström Method for Improved Large-Scale Machine Learning (Gittens and
        Mahoney, 2016). https://arxiv.org/abs/1303.1849
    """
    excess = products - directions * base[:, None]
    core = excess @ directions.T
    eigenvalues, basis = torch.linalg.eigh((core + core.transpose(1, 2)) / 2)
    smallest = 1e-4 * eigenvalues.abs().amax(-1, keepdim=True)
    inverse = torch.where(eigenvalues.abs() > smallest, 1 / eigenvalues, 0.0)
    rotated = basis.transpose(1, 2) @ excess
    return torch.diag_embed(base) + rotated.transpose(1, 2) @ (inverse[..., None] * rotated)


def _decompose(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues with a lower limit, and eigenvectors, of the negative Hessians.

    Beside a very large eigenvalue the small ones are lost to rounding. They are reduced by the size
    of this error: a normal that is too wide needs more samples, one that is too narrow is wrong.
    """
    # a likelihood may be infinitely steep at a bad value; the step is then undone
    finite = curvature.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
    eigenvalues, basis = torch.linalg.eigh(finite)
    rounding = torch.finfo(finite.dtype).eps * math.sqrt(finite.shape[-1])
    error = rounding * eigenvalues.abs().amax(-1, keepdim=True)
    return (eigenvalues - error).clamp(min=_MIN_CURVATURE), basis
