"""Annealed importance sampling: chains from q(z|x) or p(z) to p(z|x) that estimate log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.random import Stream
from ...core.validation import positive_int
from ...programs.arguments import ProgramInputs
from ...programs.chunking import max_chain_pairs
from ...programs.context import evaluating
from ...programs.enumeration.discrete_latents import sum_out_discrete
from ...programs.hmc import check_target_acceptance
from ...programs.importance_weights import find_layout
from ...programs.inputs import AnyData, AnyProgram, normalize_order, prepare
from ..bounds import Bounds
from ..chain_errors import MAX_CHAIN_KHAT, add_chain_errors, are_chains_good
from ..estimates import finite_or_none, median_and_worst
from ..estimators import EstimationTask, Estimator
from ..importance.streaming import check_log_weights
from ..normalization import normalization_settings
from ..resumable import compute_in_blocks
from ..table_parts import BoundsRow, TablePart, register
from .compiled import compile_path
from .path import AnnealingPath, ProgressCallback, TunedSchedule, make_annealing_path, run_pilot
from .schedules import SCHEDULES, make_betas

__all__ = [
    "Annealing",
    "ais",
    "anneal_in_blocks",
    "estimate_log_mean_weight",
    "run_forward_chains",
    "tune_schedule",
]

#: Pilots have a fifth of the temperatures of the run, but at least 20.
_MIN_PILOT_TEMPERATURES, _PILOT_DIVISOR = 20, 5


@dataclass(frozen=True)
class Annealing(Estimator):
    """Annealed importance sampling (AIS), see :func:`ais`: the row ``ais``.

    Attributes:
        num_chains: the number C of chains per example; a single chain gives no standard error.
        num_temperatures: the number T of steps from β = 0 to β = 1.
        num_steps: the number of leapfrog steps of the transition at each temperature.
        initial: the initial distribution of the chains: ``guide``, q(z|x), which needs fewer
            temperatures the better q is; or ``prior``, p(z), which does not depend on q.
        schedule: the schedule of β: ``sigmoidal``, with small steps at both ends; ``linear``; or
            ``adaptive``, whose steps each lose the same effective sample size.
        target: the target acceptance probability of the step sizes.

    Raises:
        ValueError: if a number is out of range or a name is unknown.

    References:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        sections 3.1 and 4. https://arxiv.org/abs/1611.04273
    """

    num_chains: int = 8
    num_temperatures: int = 500
    num_steps: int = 10
    initial: Literal["guide", "prior"] = "guide"
    schedule: Literal["sigmoidal", "linear", "adaptive"] = "sigmoidal"
    target: float = 0.65

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_steps"):
            positive_int(name, getattr(self, name))
        check_target_acceptance(self.target)
        for name, known in (("initial", ("guide", "prior")), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.schedule == "adaptive" and self.num_chains < 2:
            raise ValueError(
                "expected num_chains ≥ 2 for the adaptive schedule, which uses the variance over "
                "chains; got 1"
            )

    def check(self, task: EstimationTask) -> None:
        short = replace(self, num_chains=2, num_temperatures=1, num_steps=1)
        task.trial().run(ais, "ais", annealing=short)

    def estimate(self, task: EstimationTask, bounds: Bounds) -> Bounds:
        return bounds.merge(task.run(ais, "ais", annealing=self))


def ais(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Estimate log p(x) of every example by annealed importance sampling.

    A pilot run tunes the step sizes per example and temperature. They are fixed in the actual
    run, so its weights are unbiased: the mean of w over C chains is p(x) in expectation, and its
    logarithm is a lower bound on log p(x) in expectation.

    Arguments:
        program: any object with a ``model`` and a ``guide``, a pair of them, or model and guide as
            separate arguments before the data. Discrete latents are summed out.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        annealing: the settings.
        seed: the random seed of the chains and of the binarisation. The global random generators
            are not affected.
        checkpoint: a file for finished blocks of examples, from which the same call resumes after
            an interruption.
        progress: show a progress bar on standard error.

    Returns:
        :class:`Bounds` with the row ``ais`` and, per example, ``ais_ess``, the effective number
        of chains; ``acceptance``, the mean acceptance probability along the path; ``ais_bias``,
        the expected value of ``ais`` − log p(x), whose square is part of ``ais_variance``;
        ``ais_dof``, the degrees of freedom of the variance; and ``ais_khat``, the k̂ of the weights
        of all chains (see :func:`~pyro_vae.evaluation.chain_errors.add_chain_errors`).

    Raises:
        ValueError: if all latents are discrete, one of them has infinitely many values, or one is
            on a sphere; if the chains start at a guide that has no density at samples that are not
            its own; if a weight is NaN; and as for
            :func:`~pyro_vae.evaluate`.

    References:
        Annealed Importance Sampling (Neal, 2001). https://arxiv.org/abs/physics/9803008
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        section 3.1. https://arxiv.org/abs/1611.04273

    Example:
        >>> annealing = pv.Annealing(num_chains=4, num_temperatures=10, num_steps=2)
        >>> pv.ais(vae, x[:3], annealing=annealing).per_datum["ais"].shape
        (3,)
    """
    program, data, args = normalize_order(program, data, args)
    inputs = sum_out_discrete(prepare(program, data, args, kwargs, seed))
    columns = anneal_in_blocks(
        partial(run_forward_chains, annealing=annealing),
        inputs,
        annealing,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        stream=Stream.AIS,
        name="AIS",
    )
    bounds = Bounds(
        num_samples=annealing.num_chains,
        per_datum=add_chain_errors(columns, "ais"),
        seed=seed,
        settings={"annealing": asdict(annealing), **normalization_settings(inputs)},
    )
    return bounds.with_rows(getattr(data, "rows", None))


def run_forward_chains(
    path: AnnealingPath,
    schedule: TunedSchedule,
    rows: slice,
    advance: ProgressCallback,
    annealing: Annealing,
) -> dict[str, Tensor]:
    """Return the columns of :func:`ais` for a block of examples, and its log weights."""
    log_w, acceptance = schedule.run(path, path.sample(annealing.num_chains), advance)
    value, variance, ess = estimate_log_mean_weight(log_w, rows)
    return {
        "ais": value,
        "ais_variance": variance,
        "ais_ess": ess,
        "acceptance": acceptance,
        "ais_log_weights": log_w.mT,
    }


def tune_schedule(path: AnnealingPath, annealing: Annealing) -> TunedSchedule:
    """Return a schedule with step sizes tuned by a pilot run on the same examples."""
    num_pilot = max(_MIN_PILOT_TEMPERATURES, annealing.num_temperatures // _PILOT_DIVISOR)
    coarse = make_betas(annealing.schedule, num_pilot)
    pilot = run_pilot(path, coarse, annealing.num_chains, annealing.num_steps, annealing.target)
    betas = make_betas(annealing.schedule, annealing.num_temperatures, pilot)
    return TunedSchedule(betas, pilot.step_sizes_at(betas), annealing.num_steps)


def anneal_in_blocks(
    run: Callable[[AnnealingPath, TunedSchedule, slice, ProgressCallback], Mapping[str, Tensor]],
    inputs: ProgramInputs,
    annealing: Annealing,
    *,
    seed: int,
    stream: Stream,
    name: str,
    make_schedule: Callable[[AnnealingPath, Annealing], TunedSchedule] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Compute columns per example from annealing runs on blocks of examples.

    Arguments:
        run: ``run(path, schedule, rows, advance)`` returns the columns of a block.
        name: the label of the progress bar.
        make_schedule: returns the schedule of a path; :func:`tune_schedule` by default.
    """

    def compute(rows: slice, advance: ProgressCallback) -> Mapping[str, Tensor]:
        model, guide, x, args, kwargs = inputs.select(rows)
        layout = find_layout(model, guide, x, *args, **kwargs)
        path = make_annealing_path(
            model, guide, x, *args, layout=layout, initial=annealing.initial, **kwargs
        )
        gradients = annealing.num_temperatures * annealing.num_steps
        path = compile_path(path, gradients, layout.width)
        schedule = (make_schedule or tune_schedule)(path, annealing)
        return run(path, schedule, rows, advance)

    with evaluating(inputs.model, inputs.guide):
        return compute_in_blocks(
            compute,
            len(inputs.x),
            block=max(1, max_chain_pairs(inputs.x) // annealing.num_chains),
            entropy=(seed, stream),
            checkpoint=checkpoint,
            key=(name, make_schedule, asdict(annealing), *inputs),
            progress=progress,
            desc=name,
        )


def estimate_log_mean_weight(log_w: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log mean weight of C chains, its variance, and the effective number of chains.

    The variance is the jackknife's, which, unlike the delta method's, is not too small for a
    dominating weight. NaN for a single chain, or if no second chain has a weight above zero.

    Arguments:
        log_w: log weights ``(C, N)``, float64.
        rows: the rows of the examples, for error messages.

    Raises:
        ValueError: if a weight is NaN or +inf.
    """
    check_log_weights(log_w, rows.start)
    count = len(log_w)
    value = log_w.logsumexp(0) - math.log(count)
    # if all weights of an example are zero, softmax is NaN
    shares = log_w.softmax(0).nan_to_num(nan=1 / count)
    ess = 1 / shares.square().sum(0)
    if count < 2:
        return value, torch.full_like(value, math.nan), ess
    # sums over the other weights, not differences: a dominating weight equals the rounded sum,
    # which would leave zero
    others = ~torch.eye(count, dtype=torch.bool, device=log_w.device)
    without = torch.stack([log_w[keep].logsumexp(0) for keep in others])
    return value, without.var(0, correction=0) * (count - 1), ess


#: Columns with the quality of the chains, and their names in the text.
_DIAGNOSTICS = {"ais_ess": "ESS", "acceptance": "acceptance"}


def _describe(bounds: Bounds) -> str | None:
    data, parts = bounds.per_datum, ["AIS"]
    if "ais_ess" not in data:
        return None
    used = ~np.isnan(data["ais_ess"])
    if not used.all():
        parts[0] = f"AIS of {used.sum()} of {len(bounds)} examples"
    if "annealing" in bounds.settings:
        parts[0] += f", {bounds.settings['annealing']['num_chains']} chains each"
    for name, label in _DIAGNOSTICS.items():
        values = data.get(name, np.empty(0))
        values = values[~np.isnan(values)]
        if len(values):
            parts.append(f"{label} median {np.median(values):.2f}, worst {values.min():.2f}")
    line = "; ".join(parts)
    if "ais_khat" not in data:
        return line
    known = data["ais_dof"] > 0  # false where AIS was not run
    khat = np.fmax.reduce(data["ais_khat"], initial=-np.inf)
    if np.isfinite(khat):
        line += f"; k̂ of all chains {khat:.2f}"
    if khat >= MAX_CHAIN_KHAT:
        line += (
            f"\nAIS: the weights of the chains are too heavy-tailed (k̂ ≥ {MAX_CHAIN_KHAT}) for its "
            f"standard error to be reliable: use more temperatures, or chains from the prior."
        )
    elif bad := int((known & ~are_chains_good(data)).sum()):
        line += (
            f"\nAIS: a single chain dominates for {bad} of {known.sum()} examples: use more "
            f"temperatures or more chains."
        )
    return line


def _summarize(bounds: Bounds) -> dict[str, Any]:
    data = bounds.per_datum
    values: dict[str, Any] = {
        n: median_and_worst(data[n], lowest=True) for n in _DIAGNOSTICS if n in data
    }
    if "ais_khat" in data:
        values["ais_khat"] = finite_or_none(np.fmax.reduce(data["ais_khat"]))
        values["ais_unreliable"] = int(((data["ais_dof"] > 0) & ~are_chains_good(data)).sum())
    return values


register(
    TablePart(
        order=60,
        rows=(BoundsRow("ais", "AIS", "lower bound", gap=("ais_gap", "elbo"), unit="chains"),),
        describe=_describe,
        summarize=_summarize,
        remedy="AIS does not use these weights.",
    )
)
