"""Reciprocal importance sampling: the estimator of log p(x) in appendix D of AEVB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ...core.random import Stream
from ...core.validation import positive_int
from ...programs.base import empty_program
from ...programs.chunking import max_chain_pairs
from ...programs.context import evaluating
from ...programs.hmc import sample_posterior
from ...programs.importance_weights import find_layout
from ...programs.inputs import AnyData, AnyProgram, prepare
from ...programs.particles import run_particles
from ...programs.unconstrained import (
    check_not_circular,
    flatten_sites,
    unconstrained_posterior,
)
from ..annealing.path import ProgressCallback
from ..annealing.sampler import estimate_log_mean_weight
from ..bounds import Bounds
from ..resumable import compute_in_blocks
from ..table_parts import BoundsRow, TablePart, register

__all__ = ["reciprocal"]

register(TablePart(order=70, rows=(BoundsRow("reciprocal", "reciprocal", "estimate"),)))

#: Above this number of latent dimensions a fitted density is too far from the posterior.
_MAX_DIMENSIONS = 5


def reciprocal(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 50,
    num_chains: int = 20,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Estimate log p(x) from posterior samples by reciprocal importance sampling.

    A normal density q of the unconstrained latents is fitted to samples from half of the chains of
    Hamiltonian Monte Carlo. With the samples of the other half,

        log p̂(x) = −log (1/L Σ_l q(z_l) / p(x, z_l)).

    The mean is 1 / p(x) in expectation for exact posterior samples, so this is an upper bound on
    log p(x) in expectation. Its variance is finite only if the tails of q are lighter than those
    of the posterior.

    Arguments:
        program, data, *args, **kwargs: as for :func:`~pyro_vae.evaluation.ais`.
        num_samples: the number of samples per chain.
        num_chains: the number of chains per example, at least 4; every other one is used for the
            fit.
        options: further arguments of :func:`~pyro_vae.programs.hmc.run_hmc`, such as ``thin``.
        force: allow more than 5 latent dimensions.
        seed: the random seed of the chains and of the binarisation.
        checkpoint, progress: as for :func:`~pyro_vae.evaluation.ais`.

    Returns:
        :class:`Bounds` with the row ``reciprocal`` and, per example, ``reciprocal_variance``,
        that between chains plus the squared bias; ``reciprocal_bias``, its expected value minus
        log p(x), for exact samples; the degrees of freedom ``reciprocal_dof`` of the variance; and
        ``hmc_acceptance``.

    Raises:
        ValueError: if there are more than 5 latent dimensions without ``force``, fewer than 4
            chains, or too few samples for the fit; and as for
            :func:`~pyro_vae.programs.hmc.sample_posterior`.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), appendix D.
        https://arxiv.org/abs/1312.6114
        Bayesian Model Choice: Asymptotics and Exact Calculations (Gelfand & Dey, 1994),
        section 4. https://doi.org/10.1111/j.2517-6161.1994.tb01996.x
    """
    positive_int("num_samples", num_samples)
    if positive_int("num_chains", num_chains) < 4:
        raise ValueError(
            f"expected num_chains ≥ 4, two to fit the density and two to evaluate it; got "
            f"{num_chains}"
        )
    inputs = prepare(program, data, args, kwargs, seed)
    options = {"num_samples": num_samples, **(options or {})}

    def compute(rows: slice, advance: ProgressCallback) -> dict[str, Tensor]:
        model, guide, x, args, kwargs = inputs.select(rows)
        layout = find_layout(model, guide, x, *args, **kwargs)
        target = unconstrained_posterior(model, x, *args, layout=layout, **kwargs)
        check_not_circular(target.transforms, "reciprocal importance sampling")
        if not force:
            latents = run_particles(
                empty_program, guide, x, *args, num_samples=1, layout=layout, **kwargs
            ).latents
            start = target.inverse({name: latents[name] for name in target.transforms})
            dimensions = flatten_sites(start).shape[-1]
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(
                    f"expected at most {_MAX_DIMENSIONS} latent dimensions; got {dimensions}, for "
                    f"which a fitted normal density is far from the posterior and single samples "
                    f"dominate the estimate: use ais, or set force=True"
                )
        chains = sample_posterior(
            model,
            guide,
            x,
            *args,
            num_chains=num_chains,
            seed=int(torch.randint(2**31, ())),
            layout=layout,
            options=options,
            **kwargs,
        )
        u = target.inverse(chains.draws)
        # one sample of all chains at a time, to save memory
        log_p = torch.stack(
            [target({name: part[i] for name, part in u.items()}) for i in range(num_samples)]
        )
        flat = flatten_sites({name: part.flatten(0, 1) for name, part in u.items()})
        value, variance = _estimate_log_evidence(
            flat.unflatten(0, (num_samples, num_chains)), log_p, rows
        )
        bias = variance / 2
        return {
            "reciprocal": value,
            "reciprocal_variance": variance + bias.square(),
            "reciprocal_bias": bias,
            "reciprocal_dof": torch.full_like(bias, num_chains // 2 - 1),
            "hmc_acceptance": chains.acceptance.mean(0),
        }

    with evaluating(inputs.model, inputs.guide):
        columns = compute_in_blocks(
            compute,
            len(inputs.x),
            block=max(1, max_chain_pairs(inputs.x) // num_chains),
            entropy=(seed, Stream.RECIPROCAL),
            checkpoint=checkpoint,
            key=(num_chains, options, *inputs),
            progress=progress,
            desc="reciprocal",
        )
    return Bounds(
        num_samples=num_samples * (num_chains // 2),
        per_datum=columns,
        seed=seed,
        settings={"reciprocal": {"num_chains": num_chains, **options}},
    )


def _estimate_log_evidence(u: Tensor, log_p: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Return log p̂ and its variance from samples ``(S, C, N, D)`` and log p(x, z) ``(S, C, N)``."""
    rounding = torch.finfo(u.dtype).eps
    u, log_p = u.double(), log_p.double()
    fitted, evaluated = u[:, ::2].flatten(0, 1), u[:, 1::2]
    q = _fit_normal(fitted, rounding)
    log_ratio = q.log_prob(evaluated) - log_p[:, 1::2]
    # per chain, because the samples of a chain are correlated
    chains = log_ratio.logsumexp(0) - math.log(len(log_ratio))
    value, variance, _ = estimate_log_mean_weight(chains, rows)
    return -value, variance


def _fit_normal(draws: Tensor, rounding: float) -> MultivariateNormal:
    """Return the normal density with the mean and covariance of samples ``(L, N, D)``, in float64.

    ``rounding`` is the relative rounding error of the precision in which they were computed.

    Raises:
        ValueError: if the samples of an example do not span all D dimensions.
    """
    centre = draws.mean(0)
    deviation = (draws - centre).movedim(0, 1)
    # scale by the spread of each dimension, so that the rank does not depend on units
    spread = deviation.norm(dim=-2, keepdim=True).clamp(min=torch.finfo(draws.dtype).tiny)
    smallest = torch.linalg.svdvals(deviation / spread).amin(-1)
    # the largest value that rounding can give to a zero singular value
    largest = draws.abs().amax(0).unsqueeze(-2)
    noise = rounding * len(draws) * (largest / spread).amax((-2, -1))
    singular = smallest <= noise
    if singular.any():
        raise ValueError(
            f"expected samples with a non-singular covariance; got one that is singular for "
            f"{int(singular.sum())} of {len(singular)} examples, whose chains hardly moved: "
            f"increase num_samples, or warm_up in options"
        )
    # QR factor of the deviations: the covariance itself has the square of their condition number
    factor = torch.linalg.qr(deviation / math.sqrt(len(draws) - 1), mode="r").R.mT
    factor = factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return MultivariateNormal(centre, scale_tril=factor)
