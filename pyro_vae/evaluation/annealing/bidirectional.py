"""Bidirectional Monte Carlo: log p(x) of simulated data enclosed from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path as File
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ...core.components import Labels
from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...core.validation import positive_int
from ...data.splits import Split
from ...distributions.counts import GivenTotal
from ...programs.base import Program, Site, label_use, use_own_parameters
from ...programs.importance_weights import check_num_samples
from ...programs.inputs import prepare, program_labels
from ...programs.particles import Layout, log_prob_of, particle_values
from ...programs.sites import latent_sites, trace_sites
from ..bounds import Bounds
from ..evaluator import evaluate
from .path import Path
from .sampler import Advance, Annealing, Plan, forward, log_mean_exp, over_paths

__all__ = ["bdmc", "simulated"]


def bdmc(
    program: Program | tuple[Any, Any],
    data: int | Split | Tensor = 64,
    *args: Any,
    annealing: Annealing = Annealing(),
    num_samples: int = 5000,
    seed: int = 0,
    checkpoint: File | None = None,
    progress: bool = False,
) -> Bounds:
    """log p(x) between two bounds, on data that the model itself has made.

    The latents that made a datum are an exact draw of its posterior. Annealing backwards from
    there has weights whose mean is 1 / p(x) in expectation, so that minus its logarithm is an
    upper bound of log p(x) in expectation; annealing forwards is a lower one. Their distance
    says how far either is off, and how well the same annealing does on data that look alike.

    The chains backwards begin at the one draw that there is, and part in transitions that leave
    the posterior as it is. Where these do not get from one mode to another the chains resemble
    each other: the upper bound is one all the same, but its Monte Carlo error is understated,
    and the spread of the data is what to trust.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them, whose latent
            sites are continuous and whose only observed site is the data.
        data: how many data to make, of a program that runs without; or data as many as are
            to be made, of which the shape and the labels are used and not the values.
        *args: further arguments of model and guide.
        annealing: how to walk, both ways.
        num_samples: K, draws of importance sampling on the same data; 0 for none.
        seed: of the data and all draws.
        checkpoint, progress: as for :func:`~pyro_vae.evaluation.ais`.

    Returns:
        :class:`Bounds` of the simulated data: the rows of :func:`~pyro_vae.evaluate`, ``ais``,
        ``upper`` and their difference ``bdmc_gap``.

    Raises:
        ValueError: as for :func:`~pyro_vae.evaluation.ais`; if ``num_samples`` is neither 0 nor a
            positive integer, if the model observes more than the data, or if its density of
            them depends on the data that it is called with.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al.,
        2015), sections 4 and 5. https://arxiv.org/abs/1511.02543
    """
    if num_samples:
        check_num_samples(num_samples)
    x, args, latents = simulated(program, data, args, seed)

    def both_ways(path: Path, plan: Plan, rows: slice, advance: Advance) -> Mapping[str, Tensor]:
        columns = forward(path, plan, rows, lambda share: advance(share / 2), annealing)
        exact = path.variables({n: z[:, rows] for n, z in latents.items()})
        start = plan.settled(path, exact, annealing.num_chains)
        log_w, _ = plan.backwards.walk(path, start, lambda share: advance(share / 2))
        value, variance, ess = log_mean_exp(log_w, rows)
        columns |= {"upper": -value, "upper_variance": variance, "upper_ess": ess}
        return columns

    columns = over_paths(
        both_ways,
        prepare(program, x, args, {}, seed),
        annealing,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        name="BDMC",
    )
    bounds = Bounds(
        num_samples=num_samples or annealing.num_chains,
        per_datum=columns,
        seed=seed,
        settings={"annealing": asdict(annealing), "simulated": True},
    )
    if not num_samples:
        return bounds
    weighed = evaluate(program, x, *args, num_samples=num_samples, seed=seed, progress=progress)
    return weighed.merged(bounds)


def simulated(
    program: Program | tuple[Any, Any], data: int | Split | Tensor, args: tuple, seed: int
) -> tuple[Tensor, tuple, dict[str, Tensor]]:
    """Data from the model, what goes with them, and the latents that made them, ``(1, N, …)``."""
    model = program[0] if isinstance(program, tuple) else program.model
    like = None
    if isinstance(data, int):
        size = positive_int("the number of data", data)
        if label_use(program) is Labels.CONDITION and not args:
            program_labels(program, torch.empty(size))  # refuses: there are none
    else:
        _, _, like, args, _ = prepare(program, data, args, {}, seed)
        size = len(like)
    with torch.no_grad(), use_own_parameters(model), eval_mode(model), seeded(seed, 5):
        site, nodes = latent_sites(model, size, like, args)
        x = nodes[site]["value"]
        given = {n: s["value"] for n, s in nodes.items() if n != site}
        again = trace_sites(poutine.condition(model, data=given), x, *args)
    others = [n for n, s in nodes.items() if n != site and s["is_observed"]]
    if others:
        raise ValueError(
            f"expected a model that observes the data alone, so that all it draws with them is "
            f"from its posterior; {', '.join(map(repr, others))} is observed, too"
        )
    if isinstance(nodes[site]["fn"], GivenTotal) or not _alike(nodes, again, size):
        raise ValueError(
            f"expected a model that makes data by the very density that it scores them with; that "
            f"of site '{site}', or of a latent, looks at the data themselves (their total, or the "
            f"pixels before), so that no exact posterior draw is known: use ais"
        )
    tiled = Layout(tiled=True)  # of one particle: no dimension is added
    latents = {n: particle_values(s, tiled, (1, size)) for n, s in nodes.items() if n != site}
    return x, args, latents


def _alike(one: Mapping[str, Site], other: Mapping[str, Site], size: int) -> bool:
    """Whether two runs have the same sites, which give the same values the same density."""
    return one.keys() == other.keys() and all(
        torch.allclose(
            *(log_prob_of(s[name], None, (1, size)) for s in (one, other)),
            rtol=1e-4,
            atol=1e-3,
            equal_nan=True,
        )
        for name in one
    )
