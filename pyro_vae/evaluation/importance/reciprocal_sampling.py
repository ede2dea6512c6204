"""AEVB's own estimator of log p(x): posterior draws and a density that is fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...data.splits import Split
from ...programs.base import Program, empty_program, use_own_parameters
from ...programs.hmc import sample_posterior
from ...programs.importance_weights import find_layout, max_pairs, run_particles
from ...programs.inputs import prepare
from ...programs.particles import map_batched
from ...programs.unconstrained import flatten_sites, unconstrained_posterior
from ..annealing.sampler import Advance, log_mean_exp
from ..bounds import Bounds
from ..resumable import fingerprint, in_blocks

__all__ = ["reciprocal"]

#: Of more latent dimensions a fitted density is too far from the posterior.
_MOST_DIMENSIONS = 5


def reciprocal(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 50,
    num_chains: int = 20,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    seed: int = 0,
    checkpoint: File | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """log p(x) from draws of p(z|x) alone, by reciprocal importance sampling.

    Half of the chains of Hamiltonian Monte Carlo give draws to which a normal density q of the
    unconstrained latents is fitted; with the draws of the other half,

        log p̂(x) = −log (1/L Σ_l q(z_l) / p(x, z_l)).

    The mean is 1 / p(x) in expectation if the draws are exact, so that this is an upper bound
    of log p(x) in expectation. Its variance is finite only where q's tails are lighter than
    the posterior's.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them, of continuous
            latent sites.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs``.
        num_samples: draws to keep of each chain.
        num_chains: chains for each datum, 4 or more; every other one is fitted to.
        options: further arguments of :func:`~pyro_vae.programs.hmc.sample`, such as ``thin``.
        force: go on above 5 latent dimensions, too.
        seed: of all draws and of the binarisation.
        checkpoint, progress: as for :func:`~pyro_vae.evaluation.ais`.

    Returns:
        :class:`Bounds` with the row ``reciprocal``, whose variance is that between chains, and
        by datum ``hmc_acceptance``.

    Raises:
        ValueError: if there are more than 5 latent dimensions and ``force`` is not set, if
            there are fewer than 4 chains or too few draws to fit, or as for
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
            f"expected num_chains ≥ 4, two to fit a density to and two to judge it by; got "
            f"{num_chains}"
        )
    model, guide, x, args, kwargs = prepare(program, data, args, kwargs, seed)
    size, options = len(x), {"num_samples": num_samples, **(options or {})}

    def compute(rows: slice, advance: Advance) -> dict[str, Tensor]:
        inputs, named = map_batched(lambda part: part[rows], size, (x, *args), kwargs)
        layout = find_layout(model, guide, *inputs, **named)
        target = unconstrained_posterior(model, *inputs, layout=layout, **named)
        if not force:
            drawn = run_particles(
                empty_program, guide, *inputs, num_samples=1, layout=layout, **named
            ).latents
            start = target.inverse({name: drawn[name] for name in target.transforms})
            _refuse_many(flatten_sites(start).shape[-1])
        chains = sample_posterior(
            model,
            guide,
            *inputs,
            num_chains=num_chains,
            seed=int(torch.randint(2**31, ())),
            layout=layout,
            options=options,
            **named,
        )
        u = target.inverse(chains.draws)
        # one draw of all chains after the other, as they were made: more would take more memory
        log_p = torch.stack(
            [target({name: part[i] for name, part in u.items()}) for i in range(num_samples)]
        )
        flat = flatten_sites({name: part.flatten(0, 1) for name, part in u.items()})
        value, variance = _estimate(flat.unflatten(0, (num_samples, num_chains)), log_p, rows)
        return {
            "reciprocal": value,
            "reciprocal_variance": variance,
            "hmc_acceptance": chains.acceptance.mean(0),
        }

    with torch.no_grad(), use_own_parameters(model, guide), eval_mode(model, guide):
        columns = in_blocks(
            compute,
            size,
            block=max(1, max_pairs(x) // num_chains),
            entropy=(seed, *b"reciprocal"),
            checkpoint=checkpoint,
            key=fingerprint(num_chains, options, model, guide, x, args, kwargs)
            if checkpoint
            else "",
            progress=progress,
            desc="reciprocal",
        )
    return Bounds(
        num_samples=num_samples * (num_chains // 2),
        per_datum=columns,
        seed=seed,
        settings={"reciprocal": {"num_chains": num_chains, **options}},
    )


def _estimate(u: Tensor, log_p: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """log p̂ and its variance, ``(N,)``, of draws ``(S, C, N, D)`` and their log p ``(S, C, N)``."""
    rounding = torch.finfo(u.dtype).eps
    u, log_p = u.double(), log_p.double()
    fitted, judged = u[:, ::2].flatten(0, 1), u[:, 1::2]
    q = _fitted(fitted, rounding)
    log_ratio = q.log_prob(judged) - log_p[:, 1::2]
    # by chain, because the draws of one resemble each other
    chains = log_ratio.logsumexp(0) - math.log(len(log_ratio))
    value, variance, _ = log_mean_exp(chains, rows)
    return -value, variance


def _fitted(draws: Tensor, rounding: float) -> MultivariateNormal:
    """The normal density with mean and covariance of draws ``(L, N, D)``.

    Arguments:
        draws: the draws, in double precision.
        rounding: the relative rounding error of the numbers they were computed with.

    Raises:
        ValueError: if the draws of a datum do not span all D dimensions.
    """
    centre = draws.mean(0)
    away = (draws - centre).movedim(0, 1)
    # in units of each dimension's own spread, so that no unit of measurement decides
    spread = away.norm(dim=-2, keepdim=True).clamp(min=torch.finfo(draws.dtype).tiny)
    smallest = torch.linalg.svdvals(away / spread).amin(-1)
    # what rounding alone can make of a singular value that is zero
    largest = draws.abs().amax(0).unsqueeze(-2)
    noise = rounding * len(draws) * (largest / spread).amax((-2, -1))
    flat = smallest <= noise
    if flat.any():
        raise ValueError(
            f"expected draws that a normal density can be fitted to; got a covariance that is "
            f"singular for {int(flat.sum())} of {len(flat)} data, the chains hardly moved: give "
            f"more num_samples or a longer warm_up in options"
        )
    # the factor of the covariance without the covariance, whose condition is that squared
    factor = torch.linalg.qr(away / math.sqrt(len(draws) - 1), mode="r").R.mT
    factor = factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return MultivariateNormal(centre, scale_tril=factor)


def _refuse_many(dimensions: int) -> None:
    """
    Raises:
        ValueError: if there are too many latent dimensions.
    """
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(
            f"expected at most {_MOST_DIMENSIONS} latent dimensions; got {dimensions}, where no "
            f"density fitted to draws is near the posterior and the mean hangs on single ones: "
            f"use ais, or force=True"
        )
