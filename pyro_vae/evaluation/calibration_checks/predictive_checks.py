"""Statistics of held-out examples among those of replicates from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ...core.progress import progress_bar
from ...core.random import Stream
from ...core.validation import did_you_mean
from ...data.kinds import Kind, kind_of
from ...data.splits import contains_nan
from ...distributions.counts import ConditionedOnTotal, sum_counts
from ...programs.arguments import ProgramInputs
from ...programs.base import Site, empty_program, trace_sites
from ...programs.context import evaluating, inspecting
from ...programs.enumeration.posterior import with_enumerated_posterior
from ...programs.importance_weights import Chunk, stream_particles
from ...programs.particles import ParticleBatch, run_particles
from ...programs.simulation import check_generates_data
from ...programs.sites import DataSites, find_data_sites
from .simulated_ranks import weighted_ranks

__all__ = [
    "PREDICTIVES",
    "STATISTICS",
    "PredictiveChecks",
    "PredictiveName",
    "Statistic",
    "StatisticName",
    "check_predictive",
    "select_statistics",
]

#: A function of examples ``(…, E)`` with E elements in float64, which returns ``(…)``.
Statistic = Callable[[Tensor], Tensor]
#: Name of a statistic.
StatisticName = Literal["mean", "sd", "min", "max", "zero_fraction", "dispersion"]
#: Name of a predictive distribution.
PredictiveName = Literal["loo", "posterior"]
#: All predictive distributions.
PREDICTIVES: tuple[PredictiveName, ...] = ("loo", "posterior")


def _dispersion(x: Tensor) -> Tensor:
    """Return the index of dispersion, variance / mean; 0 for examples of zeros."""
    return (x.var(-1, correction=0) / x.mean(-1)).nan_to_num(nan=0.0)


#: The statistics by name.
STATISTICS: dict[StatisticName, Statistic] = {
    "mean": lambda x: x.mean(-1),
    "sd": lambda x: x.std(-1, correction=0),
    "min": lambda x: x.amin(-1),
    "max": lambda x: x.amax(-1),
    "zero_fraction": lambda x: (x == 0).double().mean(-1),
    "dispersion": _dispersion,
}


@dataclass(frozen=True)
class PredictiveChecks:
    """Statistics of N examples, and ranks among those of R replicates of each.

    Attributes:
        observed: the statistics of the examples, ``(N,)`` by name.
        replicated: those of the replicates, ``(R, N)`` by the name of the predictive distribution
            and of the statistic.
        pit: the ranks in [0, 1] of the former among the latter, ``(N,)`` by the same names.
    """

    observed: Mapping[str, np.ndarray]
    replicated: Mapping[PredictiveName, Mapping[str, np.ndarray]]
    pit: Mapping[PredictiveName, Mapping[str, np.ndarray]]

    def __len__(self) -> int:
        return len(next(iter(self.observed.values())))

    @property
    def constant(self) -> list[str]:
        """Statistics that have the same value for all examples and replicates."""
        return [
            name
            for name, value in self.observed.items()
            if all((parts[name] == value[0]).all() for parts in self.replicated.values())
            and (value == value[0]).all()
        ]


def select_statistics(
    statistics: Sequence[str] | Mapping[str, Statistic] | None, x: Tensor
) -> dict[str, Statistic]:
    """Return statistics by name, by default those that suit the data.

    Raises:
        ValueError: if a name is unknown, if there are none, or if ``x`` has NaN.
    """
    if contains_nan(x):
        raise ValueError(
            "expected complete examples for predictive checks, which compare statistics of whole "
            "examples with those of replicates; got NaN (unobserved values): pass examples without "
            "NaN"
        )
    if isinstance(statistics, Mapping):
        chosen = dict(statistics)
    else:
        if isinstance(statistics, str):
            raise ValueError(
                f"expected a list of statistics; got {statistics!r}: write [{statistics!r}]"
            )
        if statistics is None:
            counts = kind_of(x) in (Kind.LEVELS, Kind.COUNTS)
            statistics = [name for name in STATISTICS if counts or name != "dispersion"]
        known: dict[str, Statistic] = {**STATISTICS}
        for name in statistics:
            if name not in known:
                raise ValueError(
                    f"expected statistics among {', '.join(known)}; got {name!r}"
                    f"{did_you_mean(name, known)}: pass your own as a mapping from names to "
                    f"functions"
                )
        chosen = {name: known[name] for name in statistics}
    if not chosen:
        raise ValueError("expected at least one statistic; got none: set num_data or statistics")
    return chosen


def check_predictive(
    inputs: ProgramInputs,
    statistics: Mapping[str, Statistic],
    *,
    num_replicates: int,
    seed: int,
    progress: bool = False,
) -> PredictiveChecks:
    """Compare statistics of each example with those of replicates from two distributions.

    ``loo`` is the predictive distribution with the example left out. Each example has its own
    latents, about which other examples say nothing, and the parameters of the model are those of
    other data: it is p(x), from which the model is sampled. PSIS-LOO would estimate the same from
    samples of p(z|x) with the weights 1 / p(x|z), which are far more variable. ``posterior`` is
    ∫ q(z|x) p(x_rep|z) dz, of the reconstructions.

    Arguments:
        inputs: the program in normal form.
        statistics: by name.
        num_replicates: the number R of replicates of each example and distribution.
        seed: the random seed.
        progress: show a progress bar.

    Raises:
        ValueError: if the model has another observed site than the data, whose values would be
            part of the posterior; or if a statistic does not return a number per example.
    """
    # a replicate needs values of the sites that are summed out
    inputs = with_enumerated_posterior(inputs)
    x = inputs.x
    observed: dict[str, list[Tensor]] = {name: [] for name in statistics}
    replicated: dict[PredictiveName, dict[str, list[Tensor]]] = {
        name: {key: [] for key in statistics} for name in PREDICTIVES
    }
    columns: dict[tuple[PredictiveName, str], list[Tensor]] = {
        (name, key): [] for name in PREDICTIVES for key in statistics
    }
    bar = progress_bar(len(x), progress, desc="predictive checks")
    with evaluating(*inputs[:2], seed=seed, stream=Stream.CALIBRATION_PREDICTIVE), bar:
        data = _find_data_sites(inputs)
        chunks = stream_particles(inputs, num_replicates, compile=False)
        with closing(chunks):
            for chunk in chunks:
                for name in PREDICTIVES:
                    values = _summarize(_replicate(chunk, name, data), 2, statistics)
                    for key, value in values.items():
                        columns[name, key].append(value)
                if chunk.draws.stop == num_replicates:
                    values = _summarize(chunk.inputs.x, 1, statistics)
                    for key, value in values.items():
                        observed[key].append(value)
                    for name, key in columns:
                        replicated[name][key].append(torch.cat(columns[name, key]))
                        columns[name, key] = []
                    bar.update(chunk.data.stop - chunk.data.start)
        truth = {key: torch.cat(parts) for key, parts in observed.items()}
        merged: dict[PredictiveName, dict[str, Tensor]] = {
            name: {key: torch.cat(parts, 1) for key, parts in by_statistic.items()}
            for name, by_statistic in replicated.items()
        }
        weights = torch.full((num_replicates, len(x)), 1 / num_replicates, dtype=torch.float64)
        pit: dict[PredictiveName, dict[str, np.ndarray]] = {
            name: {
                key: weighted_ranks(value, truth[key][None], weights, weights[0]).numpy()
                for key, value in values.items()
            }
            for name, values in merged.items()
        }
        arrays: dict[PredictiveName, dict[str, np.ndarray]] = {
            name: {key: value.numpy() for key, value in values.items()}
            for name, values in merged.items()
        }
    return PredictiveChecks({key: value.numpy() for key, value in truth.items()}, arrays, pit)


def _find_data_sites(inputs: ProgramInputs) -> DataSites:
    model, _, x, args, kwargs = inputs
    data, drawn = find_data_sites(model, (x, *args), kwargs)
    trace_sites(poutine.uncondition(model), x, *args, **kwargs)  # keeps the samples for a seed
    if data.others or data.argument != 0:
        names = ", ".join(map(repr, data.others or data.sites))
        raise ValueError(
            f"expected a model whose observed sites are different parts of x, so that replicates "
            f"depend on no other values; got the observed sites {names}"
        )
    with inspecting(*inputs[:2]):
        sites = trace_sites(model, x, *args, **kwargs)
        check_generates_data(model, (x, *args), kwargs, data, sites, drawn)
    return data


def _replicate(chunk: Chunk, name: PredictiveName, data: DataSites) -> Tensor:
    """Sample x given the latents of a chunk, or as many samples of the prior.

    Returns:
        ``(K, n, *event)``.
    """
    model, _, x, args, kwargs = chunk.inputs
    count = chunk.draws.stop - chunk.draws.start
    batch = ParticleBatch(count, chunk.layout, (x, *args), kwargs)
    latents = chunk.particles.latents
    if name == "loo":
        latents = run_particles(
            empty_program, model, x, *args, num_samples=count, layout=chunk.layout, **kwargs
        ).latents
    sites = batch.trace(model, latents)
    values = {}
    for site in data.sites:
        value = batch.value({**sites[site], "value": _sample_observed(sites[site])})
        values[site] = value.reshape(*value.shape[:2], -1)
    return data.assemble(values, x)


def _sample_observed(site: Site) -> Tensor:
    """Sample an observed site from the density that scores it."""
    fn: Any = site["fn"]
    value = fn.sample()
    if isinstance(fn, ConditionedOnTotal):
        # the density that scores x has the total of x; its samples have a typical one
        total = sum_counts(site["value"], len(fn.event_shape))
        value = fn.conditional(total).expand(fn.batch_shape).sample()
    return value


def _summarize(
    x: Tensor, batch_dims: int, statistics: Mapping[str, Statistic]
) -> dict[str, Tensor]:
    """Return the statistics of examples in float32, on the CPU.

    Rounding restores ties between values that were summed in another order.
    """
    x = x.double().reshape(*x.shape[:batch_dims], -1)
    values = {}
    for name, statistic in statistics.items():
        value = statistic(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:-1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"expected the statistic {name!r} to return a number for each example, "
                f"{tuple(x.shape[:-1])} from {tuple(x.shape)}; got {got}: reduce the last "
                f"dimension only"
            )
        values[name] = value.float().cpu()
    return values
