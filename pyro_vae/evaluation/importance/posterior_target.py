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

__all__ = ["PosteriorTarget", "colour", "whiten"]

#: Samples of the prior for the scale of each latent.
_NUM_PRIOR = 64
#: Lower limit on the curvature, in units of the prior's: a flat direction is not sampled wider.
_MIN_CURVATURE = 0.3
#: Initial damping of Newton's method, and its factors after a successful and a failed step.
_DAMPING, _SHRINK, _GROW = 0.3, 0.2, 5.0
#: Newton's method ends for an example when a step gains less, in nats.
_MIN_GAIN = 1e-3
#: Number of dimensions up to which Hessians are exact, and the rank of their approximation.
_MAX_EXACT, _RANK = 100, 50
#: Steps of the variational fit, samples whose curvature is averaged, and samples of the ELBO.
_NUM_FITS, _NUM_CURVATURES, _NUM_CHECK = 3, 8, 64
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
        sample_guide: samples v from the guide.
        guide_log_prob, prior_log_prob: their log-densities at v.
        has_guide: whether the guide can score other samples than its own. If not, the prior takes
            its place in ``sample_guide`` and ``guide_log_prob``.
        constrain: maps v to the latents by site, ``(C, N, *event)``.
    """

    inputs: ProgramInputs
    layout: Layout
    scale: Tensor
    log_density: Callable[[Tensor], Tensor]
    sample_guide: Callable[[int], Tensor]
    guide_log_prob: Callable[[Tensor], Tensor]
    prior_log_prob: Callable[[Tensor], Tensor]
    has_guide: bool
    constrain: Callable[[Tensor], dict[str, Tensor]]

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
            prior_log_prob,
            source is guide,
            lambda v: jacobian(v)[0],
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

    def fit_normals(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return means ``(N, D)`` and covariances of normals that are closer to the posteriors.

        At the normal closest to the posterior in KL(normal ‖ posterior), the mean of the gradient
        is zero and the mean of the negative Hessian is the inverse covariance (Opper and
        Archambeau, 2009, equations 9 and 10). Newton steps towards it use the mean over a few
        samples. A step that does not increase the ELBO of an example is undone.

        The curvature at the mode describes a point; its mean describes the region with the mass.

        References:
            The Variational Gaussian Approximation Revisited (Opper and Archambeau, 2009).
            https://doi.org/10.1162/neco.2008.08-07-592
        """
        check = _antithetic(_NUM_CHECK, mean)
        bound = self._elbo(mean, covariance, check)
        total = torch.zeros_like(covariance)
        for index in range(_NUM_FITS):
            gradient, curvature = torch.zeros_like(mean), torch.zeros_like(covariance)
            factor = torch.linalg.cholesky(covariance)
            for noise in colour(_antithetic(_NUM_CURVATURES, mean), factor):
                parts = self.derivatives(mean + noise)
                gradient += parts[0].nan_to_num() / _NUM_CURVATURES
                curvature += parts[1].nan_to_num() / _NUM_CURVATURES
            # the first samples are those of the Laplace approximation: later ones are better
            total = curvature if index <= 1 else total + (curvature - total) / index
            eigenvalues, basis = _decompose(total)
            step = (basis.transpose(1, 2) @ gradient[..., None])[..., 0] / eigenvalues
            length = (step.square() * eigenvalues).mean(-1, keepdim=True).sqrt()
            step = step * (_MAX_STEP / length.clamp(min=_MAX_STEP))
            new_mean = mean + (basis @ step[..., None])[..., 0]
            inverse = basis @ torch.diag_embed(1 / eigenvalues) @ basis.transpose(1, 2)
            new_bound = self._elbo(new_mean, inverse, check)
            improved = new_bound > bound
            bound = torch.where(improved, new_bound, bound)
            mean = torch.where(improved[:, None], new_mean, mean)
            covariance = torch.where(improved[:, None, None], inverse, covariance)
        return mean, covariance

    def _elbo(self, mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
        """Return the ELBO of normals up to a constant, ``(N,)``, from given noise ``(S, N, D)``."""
        factor = torch.linalg.cholesky(covariance)
        v = mean + colour(noise, factor)
        entropy = factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        return self.evaluate(self.log_density, v).mean(0) + entropy


def colour(noise: Tensor, factor: Tensor) -> Tensor:
    """Return Cholesky factors ``(N, D, D)`` times vectors ``(K, N, D)``."""
    # one matrix product per example, not one per vector
    return (noise.transpose(0, 1) @ factor.transpose(1, 2)).transpose(0, 1)


def whiten(v: Tensor, factor: Tensor) -> Tensor:
    """Return the inverse of Cholesky factors ``(N, D, D)`` times vectors ``(K, N, D)``."""
    return torch.linalg.solve_triangular(factor, v.movedim(0, 2), upper=False).movedim(2, 0)


def _antithetic(count: int, like: Tensor) -> Tensor:
    """Return standard normal noise ``(count, N, D)`` that adds up to zero."""
    half = torch.randn(count // 2, *like.shape).to(like)
    return torch.cat([half, -half])


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
    """Return eigenvalues with a lower limit, and eigenvectors, of the negative Hessians."""
    # a likelihood may be infinitely steep at a bad value; the step is then undone
    finite = curvature.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
    eigenvalues, basis = torch.linalg.eigh(finite)
    return eigenvalues.clamp(min=_MIN_CURVATURE), basis
