"""Bidirectional Monte Carlo: lower and upper bounds on log p(x) of simulated data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from ...core.components import Labels
from ...core.random import Stream
from ...core.validation import positive_int
from ...data import Dataset, Split
from ...distributions.counts import ConditionedOnTotal
from ...programs.base import Program, Site, label_use, trace_sites
from ...programs.context import evaluating, inspecting
from ...programs.enumeration.discrete_latents import sum_out_discrete
from ...programs.importance_weights import check_num_samples
from ...programs.inputs import (
    AnyData,
    AnyProgram,
    blank_examples,
    normalize_order,
    prepare,
    program_labels,
    split_program,
)
from ...programs.particles import ParticleBatch, data_frame
from ...programs.simulation import prior_predictive_sites, replace_data
from ...programs.sites import DataSites
from ..bounds import Bounds
from ..bounds_plots import plot_bounds
from ..chain_errors import add_chain_errors
from ..evaluator import evaluate
from ..sections import Picture, Section
from ..slices import Evaluation
from ..table_parts import BoundsRow, TablePart, register
from .path import AnnealingPath, ProgressCallback, TunedSchedule
from .sampler import Annealing, anneal_in_blocks, estimate_log_mean_weight, run_forward_chains

__all__ = ["BDMC", "bdmc", "simulate_data"]

register(
    TablePart(order=80, rows=(BoundsRow("upper", "BDMC", "upper bound", gap=("bdmc_gap", "ais")),))
)


def bdmc(
    program: AnyProgram,
    data: int | AnyData = 64,
    *args: Any,
    like: AnyData | None = None,
    annealing: Annealing = Annealing(),
    num_samples: int = 5000,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> Bounds:
    """Bound log p(x) from below and above, on data simulated from the model.

    The latents from which an example was simulated are an exact sample of its posterior. The
    weights of reverse annealing from that sample have the mean 1 / p(x) in expectation, so minus
    the logarithm of their mean is an upper bound on log p(x) in expectation. Forward annealing
    gives a lower bound. The gap between the bounds limits the error of both, and indicates the
    accuracy of the same settings on similar data.

    The reverse chains start at the same exact sample, and are decorrelated by transitions that
    leave the posterior invariant. If these do not mix between modes, the chains stay correlated:
    the upper bound is still valid, but its Monte Carlo error is underestimated, and the spread
    over examples is more reliable.

    Arguments:
        program: as for :func:`~pyro_vae.evaluation.ais`. All its observed sites are simulated:
            they observe different parts of x (``obs=x``, ``obs=x[:, 0]``) or of further arguments.
        data: the number of examples to simulate; or data of the desired size, which are used as
            ``like``.
        *args: further arguments of model and guide, of the examples of ``like``.
        like: data of the right shape, for a model that cannot run without data. Simulated examples
            take the values that no site observes, their labels and further arguments from these
            examples in turn.
        annealing: the settings, for both directions.
        num_samples: the number K of importance samples on the same data; 0 for none.
        seed: the random seed of the data and the samples.
        checkpoint, progress: as for :func:`~pyro_vae.evaluation.ais`.

    Returns:
        :class:`Bounds` on the simulated data: the rows of :func:`~pyro_vae.evaluate`, ``ais``,
        ``upper`` and their difference ``bdmc_gap``.

    Raises:
        ValueError: as for :func:`~pyro_vae.evaluation.ais`; if ``num_samples`` is neither 0 nor a
            positive integer, if the model cannot run without data and ``like`` is not given, if an
            observed site cannot be simulated, or if its density depends on the data with which the
            model is called.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al.,
        2015), sections 4 and 5. https://arxiv.org/abs/1511.02543

    Example:
        >>> annealing = pv.Annealing(num_chains=4, num_temperatures=10, num_steps=2)
        >>> bounds = pv.bdmc(vae, 3, annealing=annealing, num_samples=50)
        >>> sorted({"ais", "upper"} & set(bounds.per_datum))  # below and above log p(x)
        ['ais', 'upper']
    """
    if num_samples:
        check_num_samples(num_samples)
    program, data, args = normalize_order(program, data, args)
    x, args, latents = simulate_data(program, data, args, seed, like)

    def run(
        path: AnnealingPath, schedule: TunedSchedule, rows: slice, advance: ProgressCallback
    ) -> Mapping[str, Tensor]:
        columns = run_forward_chains(
            path, schedule, rows, lambda share: advance(share / 2), annealing
        )
        exact = path.unconstrain({n: z[:, rows] for n, z in latents.items()})
        start = schedule.decorrelate(path, exact, annealing.num_chains)
        log_w, _ = schedule.reversed.run(path, start, lambda share: advance(share / 2))
        value, variance, ess = estimate_log_mean_weight(log_w, rows)
        columns |= {
            "upper": -value,
            "upper_variance": variance,
            "upper_ess": ess,
            "upper_log_weights": log_w.mT,
        }
        return columns

    inputs = sum_out_discrete(prepare(program, x, args, {}, seed))
    options: Any = {"seed": seed, "progress": progress}
    columns = anneal_in_blocks(
        run, inputs, annealing, stream=Stream.BDMC, name="BDMC", checkpoint=checkpoint, **options
    )
    columns["bdmc_gap_variance"] = columns["ais_variance"] + columns["upper_variance"]
    # it is the sum of both biases, not an estimate of zero
    columns["bdmc_gap_bias"] = np.zeros(len(x))
    bounds = Bounds(
        num_samples=num_samples or annealing.num_chains,
        per_datum=add_chain_errors(add_chain_errors(columns, "ais"), "upper"),
        seed=seed,
        settings={"annealing": asdict(annealing), "simulated": True},
    )
    if not num_samples:
        return bounds
    return evaluate(program, x, *args, num_samples=num_samples, **options).merge(bounds)


def simulate_data(
    program: AnyProgram,
    data: int | AnyData,
    args: tuple,
    seed: int,
    like: AnyData | None = None,
) -> tuple[Tensor, tuple, dict[str, Tensor]]:
    """Simulate data from the model, at all its observed sites.

    Arguments:
        program, data, args, seed, like: as for :func:`bdmc`.

    Returns:
        The data, the further arguments, of which those that a site observes are simulated too, and
        the latents, ``(1, N, …)``.
    """
    model, _ = split_program(program)
    size, x = 0, None
    if isinstance(data, int):
        size = positive_int("the number of examples", data)
        like = blank_examples(program, size) if like is None else like
    elif like is not None:
        raise ValueError("expected the number of examples to simulate, with like=…; got data")
    else:
        prepare(program, data, args, {}, seed)  # audits the program
        like = data
    if like is not None:
        inputs = prepare(program, like, args, {}, seed, check=False)
        if size:
            inputs = inputs.select(torch.arange(size) % len(inputs.x))
        model, x, args = inputs.model, inputs.x, inputs.args
    else:
        if label_use(program) is Labels.CONDITION and not args:
            program_labels(program, torch.empty(size))  # raises: the labels are missing
        model = _normalize_without_data(program, size, args, seed)
    with evaluating(model, seed=seed, stream=Stream.SIMULATION):
        observed, nodes = prior_predictive_sites(model, size, x, args, every_argument=True)
        _check_all_simulated(observed, nodes, x)
        if x is None:
            (site,) = observed.sites
            x = nodes[site]["value"]
        else:
            (x, *more), _ = replace_data(observed, nodes, (x, *args), {})
            args = tuple(more)
        latents = {n: s for n, s in nodes.items() if n not in observed.sites}
        values = {name: site["value"] for name, site in latents.items()}
        replayed = trace_sites(poutine.condition(model, data=values), x, *args)
    batch = ParticleBatch.single((x, *args), {})

    def is_same_density(name: str) -> bool:
        if name not in nodes or name not in replayed:
            return False
        a, b = (batch.log_prob(sites[name]) for sites in (nodes, replayed))
        return torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)

    changed = [
        name
        for name, site in {**nodes, **replayed}.items()
        if isinstance(site["fn"], ConditionedOnTotal) or not is_same_density(name)
    ]
    if changed:
        raise ValueError(
            f"expected a model that samples data from the density that scores them; got a density "
            f"of {', '.join(map(repr, changed))} that depends on the data (their total, or "
            f"previous values), so that no exact posterior sample is known: use ais"
        )
    return x, args, {name: batch.value(site) for name, site in latents.items()}


def _normalize_without_data(
    program: AnyProgram, size: int, args: tuple, seed: int
) -> Callable[..., Any]:
    """Return a model that runs without data, with its plate over the data in normal form."""
    model, _ = split_program(program)
    with inspecting(model):
        observed, nodes = prior_predictive_sites(model, size, None, args)
    if all(data_frame(site) for site in nodes.values()):
        return model
    (site,) = observed.sites
    return prepare(program, nodes[site]["value"], args, {}, seed, check=False).model


def _check_all_simulated(observed: DataSites, nodes: Mapping[str, Site], x: Tensor | None) -> None:
    """Raise unless all observed sites are simulated, and their values can be given to the model."""
    factors = [name for name in observed.others if isinstance(nodes[name]["fn"], Unit)]
    others = {name: site for name, site in observed.others.items() if name not in factors}
    if factors:
        reason = f"pyro.factor {factors[0]!r}, which has no samples"
    elif x is None:
        names = ", ".join(map(repr, others))
        reason = names and f"{names}, whose values are given: pass like=… to simulate these too"
    else:
        reason = DataSites({**observed.sites, **others}, {}).no_parts_reason
    if reason:
        raise ValueError(
            f"expected a model whose observed sites observe different parts of its arguments, so "
            f"that simulated latents are exact posterior samples; got {reason}"
        )


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    num_data: int = 64,
    checkpoint: Path | None,
    progress: bool,
    **options: Any,
) -> Bounds:
    """Bound log p(x) of simulated data from both sides by bidirectional Monte Carlo.

    Arguments:
        num_data: number of examples to simulate; a conditional model gets the labels of the
            first test examples.
    """
    simulated: int | Split = positive_int("num_data", num_data)
    if label_use(program) is Labels.CONDITION:
        simulated = dataset.test.head(num_data)
        if len(simulated) < num_data:
            raise ValueError(
                f"expected num_data of at most {len(simulated)}, the number of test examples whose "
                f"labels the model can be conditioned on; got {num_data}"
            )
    return bdmc(program, simulated, checkpoint=checkpoint, progress=progress, **options)


def _make_section(bounds: Bounds) -> Section:
    gap = bounds.estimates["bdmc_gap"]
    annealing = bounds.settings["annealing"]
    caption = (
        f"Error bars: ± 2 Monte Carlo standard errors. On {len(bounds)} examples simulated by the "
        f"model, {annealing['num_chains']} chains with {annealing['num_temperatures']} "
        f"temperatures × {annealing['num_steps']} steps bound the mean of log p(x) from both "
        f"sides, with a gap of {gap.value:.2f} ± {gap.se_monte_carlo:.2f} nats (Monte Carlo). The "
        f"gap limits the error of AIS on these examples; the error is comparable on similar "
        f"held-out data."
    )
    picture = Picture("bdmc", "Lower and upper bounds", caption, plot_bounds(bounds))
    return Section([bounds.make_table()], [picture])


BDMC = Evaluation(
    name="bdmc",
    title="Bounds on log p(x) of simulated data",
    compute=_compute,
    function=bdmc,
    result=Bounds,
    make_section=_make_section,
)
