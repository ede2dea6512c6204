"""Evaluation of a program: ELBO, L_k, log p̂ and optional further estimators of log p(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compiler.matmul import Precision, check_precision
from ..core import distributed
from ..core.progress import progress_bar
from ..core.validation import check_memory, positive_int
from ..data import Dataset, Split
from ..programs.arguments import map_batched
from ..programs.base import Program
from ..programs.importance_weights import check_num_samples
from ..programs.inputs import (
    AnyData,
    AnyProgram,
    block_seed,
    check_blockwise,
    check_examples,
    data_arguments,
    is_large,
    normalize_order,
    prepare,
    program_dtype,
    read_data,
)
from . import sharding
from .bounds import DEFAULT_KS, Bounds
from .bounds_section import make_section
from .escalation import Ladder
from .estimators import EstimationTask, Estimator, SamplingSettings, check_estimators
from .importance.sampling import ImportanceSampler
from .normalization import normalization_settings
from .precision import check_dtype, choose_rescored, correct_rounding
from .slices import Evaluation, SplitName

__all__ = ["BOUNDS", "evaluate"]

#: Options of versions before 0.5, and what replaced them.
_REPLACED_BY = {
    "corrected": "estimators=[Corrected()]",
    "defensive": "estimators=[Defensive(share)]",
    "tolerance": "estimators=[AdaptiveSamples(tolerance)]",
    "ais": "estimators=[Annealing()]",
    "escalate": "reliable=True, or estimators=[Ladder(annealing=Annealing(…))]",
}


def evaluate(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 5000,
    ks: Sequence[int] = DEFAULT_KS,
    seed: int = 0,
    keep_log_weights: bool = False,
    chunk_size: int | None = None,
    reliable: bool = False,
    estimators: Sequence[Estimator] = (),
    checkpoint: Path | None = None,
    compile: bool | None = None,
    precision: Precision = "float32",
    plate: str | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Estimate the ELBO, the IWAE bounds L_k and log p(x) of every example.

    All estimates share one set of importance weights. The weights are reduced as they are
    computed, so memory depends on the chunk size and not on N × K (unless the raw weights are
    kept).

    log p̂ is L_K by default: it is as good as the guide. With ``reliable``, an example whose
    weights are too heavy-tailed is sampled from better proposals until its estimate is good, see
    :class:`~pyro_vae.evaluation.Ladder`. The ELBO and the L_k do not change.

    In distributed runs (see :func:`~pyro_vae.distributed.process_group`) each process evaluates a
    shard of the data, and all processes return the bounds of all examples. Each process has its
    own random stream: a seed reproduces the result with the same number of processes, and differs
    by Monte Carlo error with another number.

    Arguments:
        program: any object with a ``model`` and a ``guide``, a pair of them, or model and guide as
            separate arguments before the data.
        data: the data, a tensor ``(N, …)``, a :class:`~pyro_vae.data.Split`, or anything that
            :func:`~pyro_vae.data.as_split` accepts. Dynamic binarisation or noise is drawn once,
            with ``seed``. A program that conditions on labels gets those of a ``Split`` or a
            ``Dataset``, unless there are further arguments. Data that are not in memory and take
            more than 256 MiB are evaluated in blocks of 16 MiB, each with its own random stream.
        *args: further arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are split with the data (see :func:`~pyro_vae.log_weights`).
        num_samples: the number K of samples per example; with
            :class:`~pyro_vae.evaluation.AdaptiveSamples`, the maximum.
        ks: the L_k to report; values above K are ignored, and L_K is always included. With
            ``AdaptiveSamples``, K is the smallest number of samples of any example.
        seed: the random seed of the samples and of the binarisation. The global random
            generators are not affected.
        keep_log_weights: keep the raw weights, float32 ``(K, N)``, in the result.
        chunk_size: the number of (sample, example) pairs in memory at a time; chosen
            automatically by default.
        reliable: improve log p̂ of each example until it is reliable: the estimator
            :class:`~pyro_vae.evaluation.Ladder` with its default settings.
        estimators: further estimators, at most one of each class: ``Annealing()`` and
            ``Laplace()`` for all examples; ``Corrected()``, ``Defensive()`` and
            ``AdaptiveSamples(tolerance)``, which use the samples of q; ``Ladder(…)``; or your own
            subclass of :class:`~pyro_vae.evaluation.Estimator`.
        checkpoint: the file whose name, with a suffix for each estimator, is that of the file in
            which ``Laplace``, ``Annealing`` and ``Ladder`` save finished blocks, to resume after
            an interruption. The files are not deleted at the end. Each process of a distributed
            run has separate ones.
        compile: whether to compile the program into one graph, with the same samples; by default
            only for long computations (see :func:`~pyro_vae.log_weights`). AIS decides
            separately.
        precision: with ``bfloat16``, the network layers run in bfloat16 when the samples of q are
            weighted. A random 5 % of the examples, at least 50, are also weighted in float32 with
            the same samples. Their mean change corrects all rows from samples of q, which are
            then unbiased estimates of those in float32, with a standard error that includes the
            correction; see :meth:`Bounds.correction_error`. The column ``rescored`` marks these
            examples; k̂ and ESS of the others are those in bfloat16. Laplace proposals and AIS
            always use float32. ``Ladder``, ``AdaptiveSamples`` and ``Defensive`` are refused, as
            are programs of another dtype, and those that only run on all examples at once.
        plate: the name of the plate over the data, see :func:`~pyro_vae.log_weights`; by default
            the attribute ``plate`` of the program, if it has one.
        progress: show a progress bar on standard error; in a distributed run, that of the first
            process.

    Returns:
        The :class:`Bounds`.

    Raises:
        ValueError: if the data are empty, cannot be scored or lack labels that the program
            conditions on, if a number is out of range, if the program has no weights per example,
            if a weight is NaN, if ``estimators`` has two of one class or something else, or if an
            estimator does not support the program. ``Ladder`` supports every program.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015). https://arxiv.org/abs/1509.00519

    Example:
        >>> bounds = pv.evaluate(vae, x, num_samples=100, ks=(5,))
        >>> bounds.elbo <= bounds.iwae[5] <= bounds.log_evidence
        True
        >>> bounds.per_datum["log_evidence"].shape
        (20,)
    """
    _check_arguments(ks, precision, reliable, kwargs)
    program, data, args = normalize_order(program, data, args)
    data = read_data(program, data)
    chosen = check_estimators(estimators)
    if reliable and not any(isinstance(item, Ladder) for item in chosen):
        chosen.append(Ladder())
    settings = SamplingSettings(
        check_num_samples(num_samples), ks, chunk_size, compile, precision, keep_log_weights
    )
    for estimator in chosen:
        settings = estimator.configure(settings)
    options = _Options(settings, chosen, plate, progress and distributed.is_main_process())
    rescored: Tensor | None = None
    if precision != "float32":
        check_examples(data)
        check_dtype(program, precision)
        rescored = choose_rescored(len(data), seed)
    run = _evaluate_blocks if isinstance(data, Split) and is_large(data) else _evaluate
    bounds = run(program, data, args, kwargs, seed, checkpoint, rescored, options)
    if precision != "float32":
        bounds = correct_rounding(bounds, precision)
    return bounds.with_rows(getattr(data, "rows", None))


@dataclass(frozen=True)
class _Options:
    """What :func:`evaluate` computes, whatever the data.

    Attributes:
        settings: how q is sampled.
        estimators: further estimators, in their order.
        plate: the name of the plate over the data.
        progress: whether this process shows a progress bar.
    """

    settings: SamplingSettings
    estimators: Sequence[Estimator]
    plate: str | None
    progress: bool


def _evaluate(
    program: AnyProgram,
    data: Split | Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
    checkpoint: Path | None,
    rescored: Tensor | None,
    options: _Options,
) -> Bounds:
    """Evaluate data at once."""
    settings = options.settings
    prepared = prepare(program, data, args, kwargs, seed, plate=options.plate)
    inputs, first = sharding.shard_inputs(prepared)
    if settings.keep_log_weights:
        size = 4 * settings.num_samples * len(inputs.x)
        check_memory("the raw log weights", size, "drop keep_log_weights, or use fewer samples")
    task = EstimationTask(
        inputs, distributed.rank_seed(seed), distributed.rank_file(checkpoint), options.progress
    )
    for estimator in options.estimators:
        estimator.check(task)
    indices = first + torch.arange(len(inputs.x))
    if rescored is not None:
        rescored = rescored[indices]
    sampler = ImportanceSampler(inputs, indices, task.seed, settings, rescored, options.progress)
    bounds = sampler.run()
    bounds.settings.update(normalization_settings(inputs))
    for estimator in options.estimators:
        bounds = estimator.estimate(task, bounds)
    return sharding.merge_shards(distributed.all_gather(bounds), seed)


def _evaluate_blocks(
    program: AnyProgram,
    data: Split,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
    checkpoint: Path | None,
    rescored: Tensor | None,
    options: _Options,
) -> Bounds:
    """Evaluate data that are not in memory block by block, and concatenate the results."""
    size, parts = len(data), []
    if options.settings.keep_log_weights:
        num_bytes = 4 * options.settings.num_samples * size
        check_memory(
            "the raw log weights", num_bytes, "drop keep_log_weights, or use fewer samples"
        )
    args, kwargs = data_arguments(program, data, args, kwargs)
    quiet = replace(options, progress=False)
    with progress_bar(size, options.progress, unit=" examples") as bar:
        for rows, x in data.iter_materialized(seed, program_dtype(program)):
            block_args, block_kwargs = map_batched(lambda t, r=rows: t[r], size, args, kwargs)
            if rows.start == 0:
                check_blockwise(
                    prepare(program, x, block_args, block_kwargs, plate=options.plate, check=False)
                )
            suffix = f"examples{rows.start}"
            parts.append(
                _evaluate(
                    program,
                    x,
                    block_args,
                    block_kwargs,
                    block_seed(seed, rows.start),
                    checkpoint and checkpoint.with_name(f"{checkpoint.name}.{suffix}"),
                    None if rescored is None else rescored[rows],
                    quiet,
                )
            )
            bar.update(len(x))
    return sharding.merge_shards(parts, seed)


def _check_arguments(
    ks: Sequence[int], precision: Precision, reliable: bool, kwargs: Mapping[str, Any]
) -> None:
    if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in ks):
        raise ValueError(f"expected every k in ks to be an integer ≥ 1; got {tuple(ks)}")
    check_precision(precision)
    if not isinstance(reliable, bool):
        raise ValueError(
            f"expected reliable to be true or false; got {reliable!r}: pass a Ladder with other "
            f"settings in estimators"
        )
    for name in sorted(kwargs.keys() & _REPLACED_BY.keys()):
        raise ValueError(f"evaluate has no argument {name}: use {_REPLACED_BY[name]}")


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = None,
    num_samples: int = 5000,
    ks: Sequence[int] = DEFAULT_KS,
    reliable: bool = False,
    estimators: Sequence[Estimator] = (),
    **options: Any,
) -> Bounds:
    """Bound and estimate log p(x) of held-out data by importance sampling.

    Arguments:
        split: data split.
        num_data: use only the first examples of the split.
        num_samples: samples per example; with AdaptiveSamples, the maximum.
        ks: the L_k to print.
        reliable: sample each example from a better proposal, and then by AIS, until k̂ is good.
        estimators: further estimators of log p(x).
    """
    positive_int("num_samples", num_samples)
    # the report plots L_k against k; further k are almost free
    grid = [c * 10**e for e in range(9) for c in (1, 2, 5) if c * 10**e <= num_samples]
    bounds = evaluate(
        program,
        dataset.take(split, num_data),
        num_samples=num_samples,
        ks=sorted({*ks, *grid}),
        reliable=reliable,
        estimators=estimators,
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
    resumable=("reliable", "estimators"),
    is_distributed=True,
    replaced={
        "corrected": "--estimators Corrected",
        "defensive": "--estimators.Defensive.share SHARE",
        "tolerance": "--estimators.AdaptiveSamples.tolerance NATS",
        "ais": "--estimators Annealing",
        "escalate": "--reliable",
        "annealing": "--estimators.Annealing or --estimators.Ladder.annealing",
    },
)
