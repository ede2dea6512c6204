"""Evaluation of a program: ELBO, L_k, log p̂ and optional further estimators of log p(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compiler.matmul import Precision, check_precision
from ..core import distributed
from ..core.validation import check_memory, positive_int
from ..data import Dataset
from ..programs.base import Program
from ..programs.importance_weights import check_num_samples
from ..programs.inputs import AnyData, AnyProgram, prepare
from . import escalation, sharding
from .annealing.sampler import Annealing
from .bounds import DEFAULT_KS, Bounds
from .bounds_section import make_section
from .importance.sampling import ImportanceSampler
from .normalization import normalization_settings
from .precision import measure_precision_change
from .slices import Evaluation, SplitName

__all__ = ["BOUNDS", "evaluate"]


def evaluate(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 5000,
    ks: Sequence[int] = DEFAULT_KS,
    seed: int = 0,
    keep_log_weights: bool = False,
    chunk_size: int | None = None,
    corrected: bool = False,
    defensive: float | None = None,
    tolerance: float | None = None,
    ais: bool | Annealing = False,
    escalate: bool | Annealing = False,
    checkpoint: Path | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Estimate the ELBO, the IWAE bounds L_k and log p(x) of every example.

    All estimates share one set of importance weights. The weights are reduced as they are
    computed, so memory depends on the chunk size and not on N × K (unless the raw weights are
    kept).

    Options add further estimators. With ``tolerance``, the number of samples varies by example:
    pilot runs with few samples, doubled as often as necessary, estimate the number of samples
    that an example needs to reach the standard error. Then fresh samples are drawn, and only
    those are reported. The reported estimates are therefore not biased by the stopping rule. A
    few examples end up slightly above the tolerance; the table gives their number.

    In distributed runs (see :func:`~pyro_vae.distributed.process_group`) each process evaluates a
    shard of the data, and all processes return the bounds of all examples. Each process has its
    own random stream: a seed reproduces the result with the same number of processes, and differs
    by Monte Carlo error with another number.

    Arguments:
        program: any object with a ``model`` and a ``guide``, a pair of them, or model and guide as
            separate arguments before the data.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`. Dynamic
            binarisation or noise is drawn once, with ``seed``. A program that conditions on
            labels gets those of a ``Split``, unless there are further arguments.
        *args: further arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are split with the data (see :func:`~pyro_vae.log_weights`).
        num_samples: the number K of samples per example; with ``tolerance``, the maximum.
        ks: the L_k to report; values above K are ignored, and L_K is always included. With
            ``tolerance``, K is the smallest number of samples of any example.
        seed: the random seed of the samples and of the binarisation. The global random
            generators are not affected.
        keep_log_weights: keep the raw weights, float32 ``(K, N)``, in the result.
        chunk_size: the number of (sample, example) pairs in memory at a time; chosen
            automatically by default.
        corrected: add two estimates of log p(x) from the same weights: ``psis`` smooths the tail
            of the weights, and ``jackknife`` reduces the bias from order 1/K to order 1/K².
        defensive: add a lower bound that samples from a mixture of q and the prior. The value is
            the prior's share of the samples, between 0 and 1. The samples from the prior are in
            addition to the K samples from q.
        tolerance: choose the number of samples of each example such that the Monte Carlo
            standard error of its log p̂ is at most this many nats. The smallest number is between
            200 and 400: ``num_samples``, halved as long as it stays at or above 200.
        ais: add annealed importance sampling of all examples;
            :class:`~pyro_vae.evaluation.annealing.Annealing` sets its parameters.
        escalate: run annealed importance sampling only for examples with a bad k̂: ``escalated``
            is AIS for these and log p̂ for the others.
        checkpoint: the file in which AIS saves finished blocks, to resume after an interruption.
            It is not deleted at the end. Each process of a distributed run has a separate file.
        compile: whether to compile the program into one graph, with the same samples; by default
            only for long computations (see :func:`~pyro_vae.log_weights`). AIS decides
            separately.
        precision: with ``bfloat16``, the network layers run in bfloat16 when the samples of q are
            weighted. The resulting change of the ELBO and of L_K is measured with the same
            samples, for up to 64 examples, and shown below the table. AIS always uses float32.
        progress: show a progress bar on standard error; in a distributed run, that of the first
            process.

    Returns:
        The :class:`Bounds`.

    Raises:
        ValueError: if the data are empty, cannot be scored or lack labels that the program
            conditions on, if a number is out of range, if the program has no weights per example,
            if a weight is NaN, or if the program does not support an option: ``defensive`` and
            AIS from the guide need a guide with a density at samples that are not its own, AIS
            needs continuous latents, ``tolerance`` and ``escalate`` need a guide that can run on
            a subset of the examples.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015). https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
        Debiasing Evidence Approximations (Nowozin, 2018).
        https://openreview.net/forum?id=HyZoi-WRb
        Weighted Average Importance Sampling and Defensive Mixture Distributions (Hesterberg,
        1995). https://doi.org/10.2307/1269620
    """
    _check_options(ks, defensive, tolerance, keep_log_weights, precision, corrected)
    annealing = escalation.resolve_annealing(ais, escalate)
    inputs, first = sharding.shard_inputs(prepare(program, data, args, kwargs, seed))
    base_seed, seed = seed, distributed.rank_seed(seed)
    checkpoint = distributed.rank_file(checkpoint)
    progress = progress and distributed.is_main_process()
    num_samples = check_num_samples(num_samples)
    if keep_log_weights:
        size = 4 * num_samples * len(inputs.x)
        check_memory("the raw log weights", size, "drop keep_log_weights, or use fewer samples")
    if annealing is not None and not ais:
        # a short run on two examples, so that errors occur before the expensive work
        short = replace(annealing, num_chains=2, num_temperatures=1, num_steps=1)
        rows = np.arange(min(2, len(inputs.x)))
        escalation.run_ais(inputs, short, seed=0, checkpoint=None, progress=False, rows=rows)
    sampler = ImportanceSampler(
        inputs,
        first + torch.arange(len(inputs.x)),
        seed,
        {"chunk_size": chunk_size, "compile": compile, "precision": precision},
        corrected,
        defensive,
        keep_log_weights,
        progress,
    )
    # AIS first: its errors occur before the importance samples are drawn
    annealed = None
    if annealing is not None and ais:
        annealed = escalation.run_ais(inputs, annealing, seed, checkpoint, progress)
    if tolerance is None:
        bounds = sampler.run(num_samples, ks)
    else:
        bounds = sampler.run_adaptive(num_samples, ks, tolerance)
    if precision != "float32":
        bounds.settings["precision"] = measure_precision_change(inputs, precision, seed)
    if annealing is not None and escalate:
        rows = bounds.unreliable
        if annealed is None:
            annealed = escalation.run_ais(inputs, annealing, seed, checkpoint, progress, rows)
        annealed = escalation.merge_escalated(bounds, annealed)
    bounds.settings.update(normalization_settings(inputs))
    bounds = bounds if annealed is None else bounds.merge(annealed)
    return sharding.merge_shards(distributed.all_gather(bounds), base_seed)


def _check_options(
    ks: Sequence[int],
    defensive: float | None,
    tolerance: float | None,
    keep_log_weights: bool,
    precision: Precision,
    corrected: bool,
) -> None:
    if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in ks):
        raise ValueError(f"expected every k in ks to be an integer ≥ 1; got {tuple(ks)}")
    if defensive is not None and not 0 < defensive < 1:
        raise ValueError(
            f"expected defensive, the prior's share of samples, between 0 and 1; got {defensive}"
        )
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"expected tolerance > 0, in nats; got {tolerance}")
    if tolerance is not None and keep_log_weights:
        raise ValueError(
            "expected keep_log_weights or tolerance; got both, but with tolerance the number of "
            "raw weights varies by example: drop one of them"
        )
    if check_precision(precision) != "float32" and (corrected or defensive is not None):
        option = "corrected" if corrected else "defensive"
        raise ValueError(
            f"expected precision float32 with {option} estimates; got {precision}, whose rounding "
            f"errors exceed the correction: drop one of the two options"
        )


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = None,
    num_samples: int = 5000,
    ks: Sequence[int] = DEFAULT_KS,
    ais: bool = False,
    escalate: bool = False,
    annealing: Annealing | None = None,
    **options: Any,
) -> Bounds:
    """Bound and estimate log p(x) of held-out data by importance sampling.

    Arguments:
        split: data split.
        num_data: use only the first examples of the split.
        num_samples: samples per example; with tolerance, the maximum.
        ks: the L_k to print.
        ais: add annealed importance sampling (AIS).
        escalate: use AIS for the examples with a bad k̂.
        annealing: options of ais and escalate.
    """
    if annealing is not None and not (ais or escalate):
        raise ValueError(
            "expected --ais or --escalate with annealing settings; got neither: add one"
        )
    positive_int("num_samples", num_samples)
    # the report plots L_k against k; further k are almost free
    grid = [c * 10**e for e in range(9) for c in (1, 2, 5) if c * 10**e <= num_samples]
    bounds = evaluate(
        program,
        dataset.take(split, num_data),
        num_samples=num_samples,
        ks=sorted({*ks, *grid}),
        ais=(annealing or True) if ais is True else ais,
        escalate=(annealing or True) if escalate is True else escalate,
        **options,
    )
    return replace(bounds, shown_ks=tuple(ks))


BOUNDS = Evaluation(
    name="bounds",
    title="Bounds on log p(x)",
    compute=_compute,
    function=evaluate,
    result=Bounds,
    make_section=make_section,
    command="evaluate",
    resumable=("ais", "escalate"),
    is_distributed=True,
)
