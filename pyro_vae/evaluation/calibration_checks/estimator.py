"""Calibration checks: simulation-based calibration, coverage and predictive checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ...core.random import check_seed
from ...core.validation import did_you_mean, non_negative_int, positive_int
from ...data import Dataset
from ...programs.arguments import ProgramInputs
from ...programs.audit import reads_plate_index
from ...programs.base import PLATE, Program, innermost_error, trace_program
from ...programs.context import inspecting
from ...programs.inputs import AnyData, AnyProgram, normalize_order, prepare
from ..annealing.bidirectional import simulate_data
from ..importance.laplace_proposals import Laplace
from ..slices import Evaluation, SplitName
from .predictive_checks import (
    PredictiveChecks,
    Statistic,
    StatisticName,
    check_predictive,
    select_statistics,
)
from .result import Calibration
from .section import make_section
from .simulated_ranks import POSTERIORS, PosteriorName, Ranks, no_laplace_reason, rank_simulated
from .uniformity import Band, make_band

__all__ = ["CALIBRATION", "calibration"]

#: Default settings of the Laplace approximation.
_LAPLACE = Laplace()
#: The minimum number of ranks to compare with a band.
_MIN_SIZE = 20


def calibration(
    program: AnyProgram,
    data: AnyData | int,
    *args: Any,
    like: AnyData | None = None,
    num_simulated: int = 300,
    num_samples: int = 1000,
    num_replicates: int = 200,
    posteriors: Sequence[PosteriorName] = POSTERIORS,
    statistics: Sequence[str] | Mapping[str, Statistic] | None = None,
    laplace: Laplace = _LAPLACE,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Check the calibration of q(z|x), of weighted samples, and of predictive distributions.

    **Posteriors.** The latents from which the model simulates an example are an exact sample of
    its posterior. Their ranks among samples of a posterior approximation are uniform if it is
    exact. Ranked are every latent, log p(x|z), log p(x, z), log q(z|x), and the distance from a
    sample of the prior (TARP). The rank of the density gives the coverage of regions of highest
    density. Weighted samples have weighted ranks and count as (Σw)² / Σw² samples.

    **Predictive distributions.** Statistics of a held-out example are ranked among those of
    replicates from the model (the predictive distribution that leaves the example out, as
    latents of other examples say nothing about it) and of reconstructions.

    A quantity is flagged if the ECDF of its ranks leaves a simultaneous band. All quantities of
    a posterior approximation together have the given false-alarm rate, by Bonferroni's
    inequality; so have all statistics of a predictive distribution.

    Arguments:
        program: as for :func:`~pyro_vae.bdmc`: its guide computes q(z|x) from x, and the data are
            its only observed site.
        data: held-out data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`, of 20 or more
            examples; or, for simulated data only, their number.
        *args: further arguments of model and guide. Simulated examples get those of the held-out
            ones, or of ``like``, in turn.
        like: with the number of simulated data: data of the right shape, for a model that cannot
            run without data; see :func:`~pyro_vae.bdmc`.
        num_simulated: the number of simulated examples, 20 or more; 0 for none.
        num_samples: the number K of samples of each posterior approximation.
        num_replicates: the number of replicates of each held-out example.
        posteriors: ``guide``, its samples; ``resampled``, the same with importance weights;
            ``laplace``, samples of a Laplace approximation with importance weights. The last is
            skipped with the reason if the latents are discrete or on a sphere.
        statistics: names among ``mean``, ``sd``, ``min``, ``max``, ``zero_fraction`` and
            ``dispersion`` (variance / mean), or functions by name, from ``(…, E)`` float64
            tensors with E elements per example to ``(…)``. By default all, and ``dispersion``
            for counts only.
        laplace: settings of the Laplace approximation; K takes the place of its number of samples.
        false_alarm_rate: the probability that a right posterior approximation or predictive
            distribution has any flag.
        seed: seed of the simulated data and of all samples.
        progress: show progress bars on standard error.

    Returns:
        The :class:`Calibration`.

    Raises:
        ValueError: as for :func:`~pyro_vae.bdmc`; if q(z|x) has parameters per example, if a
            number is out of range, or if a name is unknown.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al.,
        2018). https://arxiv.org/abs/1804.06788
        Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test
        Quantities Shapes Sensitivity (Modrák et al., 2023). https://arxiv.org/abs/2211.02383
        A Trust Crisis In Simulation-Based Inference? Your Posterior Approximations Can Be
        Unfaithful (Hermans et al., 2022). https://arxiv.org/abs/2110.06581
        Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos et
        al., 2023). https://arxiv.org/abs/2302.03026
        Graphical Test for Discrete Uniformity and its Applications in Goodness-of-fit Evaluation
        and Multiple Sample Comparison (Säilynoja et al., 2022).
        https://doi.org/10.1007/s11222-022-10090-6
    """
    check_seed(seed)
    names = _check_posteriors(posteriors)
    positive_int("num_samples", num_samples)
    positive_int("num_replicates", num_replicates)
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"expected false_alarm_rate between 0 and 1; got {false_alarm_rate}")
    laplace = replace(laplace, num_samples=num_samples)
    program, data, args = normalize_order(program, data, args)
    if isinstance(data, int):
        num_simulated = data
    if num_simulated or isinstance(data, int):
        _check_size("simulated", non_negative_int("num_simulated", num_simulated))
    held_out: ProgramInputs | None = None
    chosen: dict[str, Statistic] = {}
    if not isinstance(data, int):
        _check_amortized(prepare(program, data, args, {}, seed, check=False))
        held_out = prepare(program, data, args, {}, seed)
        _check_size("held-out", len(held_out.x))
        chosen = select_statistics(statistics, held_out.x)
    ranks: dict[str, Ranks] = {}
    skipped: dict[str, str] = {}
    bands: dict[str, Band] = {}
    if num_simulated and names:
        inputs, latents = _simulate(program, data, args, num_simulated, seed, like)
        reason = no_laplace_reason(inputs) if "laplace" in names else None
        if reason is not None:
            skipped["laplace"] = reason
            names.remove("laplace")
        if not names:
            raise ValueError(reason)
        ranks |= rank_simulated(
            inputs,
            latents,
            posteriors=names,
            num_samples=num_samples,
            laplace=laplace,
            seed=seed,
            progress=progress,
        )
        size = max(len(part.columns) for part in ranks.values())
        bands["posteriors"] = make_band(num_simulated, false_alarm_rate / size)
    checks: PredictiveChecks | None = None
    if held_out is not None:
        checks = check_predictive(
            held_out, chosen, num_replicates=num_replicates, seed=seed, progress=progress
        )
        bands["predictive"] = make_band(len(checks), false_alarm_rate / len(chosen))
    settings = {
        "num_samples": num_samples,
        "num_replicates": num_replicates,
        "false_alarm_rate": false_alarm_rate,
        "laplace": asdict(laplace),
    }
    result = Calibration(ranks, checks, bands, skipped, settings, seed)
    return result.with_rows(getattr(data, "rows", None))


def _check_posteriors(posteriors: Sequence[str]) -> list[PosteriorName]:
    """Return the names in their order; raise if one is unknown."""
    names = [posteriors] if isinstance(posteriors, str) else list(posteriors)
    for name in names:
        if name not in POSTERIORS:
            raise ValueError(
                f"expected posteriors among {', '.join(POSTERIORS)}; got {name!r}"
                f"{did_you_mean(str(name), POSTERIORS)}"
            )
    return [name for name in POSTERIORS if name in names]


def _check_size(kind: str, size: int) -> None:
    if size < _MIN_SIZE:
        raise ValueError(
            f"expected at least {_MIN_SIZE} {kind} examples, whose ranks are compared with uniform "
            f"ones; got {size}"
        )


def _check_amortized(inputs: ProgramInputs) -> None:
    """Raise if q(z|x) is only defined for the given examples."""
    x = inputs.x
    reason = ""
    with inspecting(inputs.model, inputs.guide):
        if reads_plate_index(inputs):
            reason = f'reads the index of the plate "{PLATE}"'
        elif len(x) > 1:
            part = inputs.select(slice(0, len(x) - 1))
            try:
                trace_program(
                    part.model, part.guide, (part.x, *part.args), part.kwargs, sum_out=False
                )
            except (RuntimeError, ValueError, IndexError) as error:
                reason = f"only runs on all {len(x)} examples ({innermost_error(error)})"
    if reason:
        raise ValueError(
            f"expected a guide that computes q(z|x) from x, which is defined for simulated "
            f"examples; got a program that {reason}, e.g. parameters per example: use an encoder"
        )


def _simulate(
    program: AnyProgram,
    data: AnyData | int,
    args: tuple[Any, ...],
    size: int,
    seed: int,
    like: AnyData | None,
) -> tuple[ProgramInputs, dict[str, Tensor]]:
    """Return the program with simulated data, and the latents of these, ``(1, N, *rest)``."""
    if not isinstance(data, int):
        if like is not None:
            raise ValueError("expected the number of examples to simulate, with like=…; got data")
        like = data
    x, args, latents = simulate_data(program, size, args, seed, like)
    if isinstance(data, int):
        _check_amortized(prepare(program, x, args, {}, seed, check=False))
    return prepare(program, x, args, {}, seed), latents


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = None,
    statistics: Sequence[StatisticName] | None = None,
    checkpoint: object,
    **options: Any,
) -> Calibration:
    """Check the calibration of q(z|x) on simulated data, and of p(x) on held-out data.

    Arguments:
        split: data split of the predictive checks.
        num_data: use only the first examples of the split.
        statistics: statistics of the predictive checks; by default those that suit the data.
    """
    return calibration(program, dataset.take(split, num_data), statistics=statistics, **options)


CALIBRATION = Evaluation(
    name="calibration",
    title="Calibration",
    compute=_compute,
    function=calibration,
    result=Calibration,
    make_section=make_section,
    command="calibrate",
    resumable=False,
)
