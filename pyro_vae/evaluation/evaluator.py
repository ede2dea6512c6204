"""``evaluate``: the ELBO beside every L_k and log p̂, and on request beside other rulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..compile.matmul import Precision
from ..core import distributed
from ..core.random import seeded
from ..data.splits import Split
from ..programs.base import Program
from ..programs.importance_weights import check_num_samples, stream_particles
from ..programs.inputs import ProgramInputs, prepare
from . import escalation, sharding
from .bounds import PRINTED, Bounds
from .importance import adaptive
from .importance.defensive import DefensiveMixture, draws_of_prior
from .importance.streaming import Block
from .precision import check_supported, precision_change

if TYPE_CHECKING:
    from .annealing.sampler import Annealing

__all__ = ["evaluate"]

#: Weights that estimates take at once: their many small sums cost as much for fewer.
_TAKEN_AT_ONCE = 1 << 16


def evaluate(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 5000,
    ks: Sequence[int] = PRINTED,
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
    """Bounds of log p(x) and an estimate of it for every datum, from one set of weights.

    Streamed: the log weights are reduced as they are drawn, so that memory depends on the
    chunk and not on N × K (unless the raw weights are asked for).

    Other rulers are added by name. With ``tolerance`` the number of draws is chosen datum by
    datum: pilots of few draws, doubled as long as it takes, tell how many a datum needs for its
    standard error; then so many are drawn afresh, and only these are reported. What is reported
    has hence no say in how many draws it rests on, so that nothing is biased by when it stopped;
    some data end a little above the tolerance, and the table counts them.

    Several processes (see :func:`~pyro_vae.distributed.launched`) that all call this judge a share
    of the data each, and all return the bounds of all data. Each has its own random numbers, so
    that with as many processes a seed gives the same result again, and with others one that differs
    by Monte Carlo error.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`; one whose
            pixels or noise are drawn anew at every use has them drawn once, with ``seed``. A
            program that conditions on labels is given those of a ``Split``, unless there are
            further arguments.
        *args: further arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are per datum (see :func:`~pyro_vae.log_weights`).
        num_samples: the number K of draws for each datum; with ``tolerance``, the most.
        ks: the L_k to report; those above K are left out, and L_K is always among them. With
            ``tolerance``, K is the fewest draws that a datum has.
        seed: of the draws and of the binarisation; global generators are left as they were.
        keep_log_weights: keep the raw weights, float32 ``(K, N)``, in the result.
        chunk_size: how many (draw, datum) pairs to hold at once; chosen if not given.
        corrected: add two estimates of log p(x) by the same weights: ``psis``, of weights whose
            tail is smoothed, and ``jackknife``, whose bias is of order 1/K² instead of 1/K.
        defensive: add a lower bound by a mixture of q and the prior, of which this is the
            prior's share of draws, between 0 and 1. The draws of the prior come on top of K.
        tolerance: choose the number of draws of each datum so that the Monte Carlo standard
            error of its log p̂ is this many nats or less. It starts at 200 to 400 draws:
            ``num_samples`` halved as often as leaves 200.
        ais: add annealed importance sampling of all data; an
            :class:`~pyro_vae.evaluation.annealing.Annealing` says how.
        escalate: the same for those data alone whose k̂ is bad: ``escalated`` is AIS there and
            log p̂ elsewhere.
        checkpoint: a file in which AIS keeps what is finished, to go on after an interruption.
            It is left there at the end. Each of several processes has its own beside it.
        compile: whether to fuse the program into one graph, with the same draws; if not given,
            long computations do (see :func:`~pyro_vae.log_weights`). AIS decides by itself.
        precision: ``bfloat16`` computes the layers of the networks in it when draws of q are
            weighed. What that changes in the ELBO and in L_K is measured, on the same draws for
            up to 64 of the data, and stated under the table. AIS stays in float32.
        progress: show a progress bar on the standard error, that of the first process's share.

    Returns:
        The :class:`Bounds`.

    Raises:
        ValueError: if the data are empty, cannot be scored or lack labels that the program
            conditions on, if a number is out of range, if the program's weights do not exist
            per datum, if a weight is NaN, or if the program does not allow what is asked for: a
            guide without a density at draws that are not its own (``defensive``, AIS from the
            guide), discrete latents (AIS), a guide that knows the data as a whole alone
            (``tolerance``, ``escalate``).

    References:
        Importance Weighted Autoencoders (Burda et al., 2015). https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
        Debiasing Evidence Approximations (Nowozin, 2018).
        https://openreview.net/forum?id=HyZoi-WRb
        Weighted Average Importance Sampling and Defensive Mixture Distributions (Hesterberg,
        1995). https://doi.org/10.2307/1269620
    """
    if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in ks):
        raise ValueError(f"expected every k in ks to be an integer ≥ 1; got {tuple(ks)}")
    _check_options(defensive, tolerance, keep_log_weights)
    check_supported(precision, corrected=corrected, defensive=defensive is not None)
    annealing = escalation.chosen(ais, escalate)
    given, first = sharding.mine(prepare(program, data, args, kwargs, seed))
    told, seed = seed, distributed.rank_seed(seed)
    checkpoint = distributed.rank_file(checkpoint)
    progress = progress and distributed.is_main_process()
    num_samples = check_num_samples(num_samples)
    if annealing is not None and not ais:
        escalation.try_out(given, annealing)
    how = {"chunk_size": chunk_size, "compile": compile, "precision": precision}
    weighing = _Weighing(given, first, how, corrected, defensive, keep_log_weights)
    # AIS first: what it refuses is refused before the draws
    annealed = None
    if ais:
        assert annealing is not None
        annealed = escalation.annealed(given, annealing, seed, checkpoint, progress)
    if tolerance is None:
        bounds = _of_all(weighing, num_samples, ks, seed, progress)
    else:
        bounds = _of_each(weighing, num_samples, ks, tolerance, seed, progress)
    if defensive is not None:
        bounds = replace(bounds, settings={**bounds.settings, "defensive": defensive})
    if precision != "float32":
        found = precision_change(given, precision, seed)
        bounds = replace(bounds, settings={**bounds.settings, "precision": found})
    if annealing is not None and escalate:
        rows = bounds.unreliable
        if annealed is None:
            annealed = escalation.annealed(given, annealing, seed, checkpoint, progress, rows)
        annealed = escalation.escalated(bounds, annealed)
    bounds = bounds if annealed is None else bounds.merged(annealed)
    return sharding.joined(distributed.all_gather(bounds), told)


def _check_options(
    defensive: float | None, tolerance: float | None, keep_log_weights: bool
) -> None:
    if defensive is not None and not 0 < defensive < 1:
        raise ValueError(
            f"expected defensive, the prior's share of draws, between 0 and 1; got {defensive}"
        )
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"expected tolerance > 0, in nats; got {tolerance}")
    if tolerance is not None and keep_log_weights:
        raise ValueError(
            "expected keep_log_weights or tolerance; got both, and as many raw weights for every "
            "datum do not exist: leave one out"
        )


def _of_all(
    weighing: _Weighing, num_samples: int, ks: Sequence[int], seed: int, progress: bool
) -> Bounds:
    """The same number of draws for every datum."""
    sizes = sorted({int(k) for k in ks if k <= num_samples} | {num_samples})
    with _bar(progress, len(weighing.given.x) * num_samples) as bar:
        columns, raw = weighing(num_samples, sizes, (seed, 1), bar)
    return _bounds(columns, sizes, num_samples, seed, raw)


def _of_each(
    weighing: _Weighing,
    most: int,
    ks: Sequence[int],
    tolerance: float,
    seed: int,
    progress: bool,
) -> Bounds:
    """As many draws for each datum as it needs, told by pilots."""
    size, stages = len(weighing.given.x), adaptive.stages(most)
    pilot = replace(weighing, corrected=False, defensive=None)
    with _bar(progress, 0) as bar:

        def errors(num_samples: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            columns, _ = pilot(num_samples, (num_samples,), (seed, 4, num_samples), bar, rows)
            return columns["log_evidence_variance"].sqrt(), columns["khat"]

        draws, spent = adaptive.chosen(errors, size, stages, tolerance)
        sizes = sorted({int(k) for k in ks if k <= stages[0]} | {stages[0]})
        parts, order = [], []
        for count in draws.unique().tolist():
            rows = (draws == count).nonzero()[:, 0]
            columns, _ = weighing(count, sizes, (seed, 5, count), bar, rows)
            parts.append(columns)
            order.append(rows)
    back = torch.cat(order).argsort()
    joined = {name: torch.cat([p[name] for p in parts])[back] for name in _shared(parts)}
    bounds = _bounds({**joined, "num_samples": draws}, sizes, most, seed, None)
    total = spent + int(draws.sum())
    return replace(bounds, settings={"tolerance": tolerance, "total_draws": total})


def _shared(parts: Sequence[dict[str, Tensor]]) -> list[str]:
    """The columns that all parts have: each has its own L_K, too."""
    return [name for name in parts[0] if all(name in part for part in parts)]


def _bounds(
    columns: dict[str, Tensor],
    sizes: Sequence[int],
    num_samples: int,
    seed: int,
    raw: np.ndarray | None,
) -> Bounds:
    arrays = {name: column.numpy() for name, column in columns.items()}
    return Bounds(
        num_samples=num_samples,
        per_datum={name: v for name, v in arrays.items() if not name.startswith("iwae_")},
        iwae_per_datum={k: arrays[f"iwae_{k}"] for k in sizes},
        iwae_variance={k: arrays[f"iwae_{k}_variance"] for k in sizes},
        log_weights=raw,
        seed=seed,
    )


@dataclass(frozen=True)
class _Weighing:
    """How draws of q are weighed.

    Attributes:
        given: the program and the data.
        first: the number of the first of them among all, for errors to name.
        how: the chunk size, whether to compile, and the precision.
        corrected: give the smoothed and the jackknife-corrected estimate.
        defensive: the prior's share of draws in the defensive mixture.
        keep: keep the raw weights.
    """

    given: ProgramInputs
    first: int
    how: Mapping[str, Any]
    corrected: bool
    defensive: float | None
    keep: bool

    def __call__(
        self,
        num_samples: int,
        ks: Sequence[int],
        entropy: tuple[int, ...],
        bar: tqdm,
        rows: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], np.ndarray | None]:
        """The estimates from so many draws for each datum, and the raw weights if kept.

        Arguments:
            num_samples: the number K of draws.
            ks: the L_k to report.
            entropy: what the draws are seeded with.
            bar: told of every weight.
            rows: of these data only.
        """
        given = self.given if rows is None else adaptive.some(self.given, rows)
        model, guide, x, args, kwargs = given
        size = len(x)
        numbers = self.first + (torch.arange(size) if rows is None else rows)
        bar.total = bar.n + size * num_samples
        chunks = stream_particles(
            model, guide, x, *args, num_samples=num_samples, **self.how, **kwargs
        )
        columns, raw = [], []
        waiting: list[Tensor] = []
        block: Block | None = None
        mixture: DefensiveMixture | None = None
        with seeded(*entropy), closing(chunks):
            for chunk in chunks:
                log_w = chunk.particles.log_weights.cpu()
                if block is None or chunk.draws.start == 0:
                    block = Block(log_w.shape[1], num_samples, ks, size, self.corrected)
                    waiting = []
                    mixture = self._mixture(log_w.shape[1], num_samples)
                    raw.append([])
                    first = chunk
                waiting.append(log_w)
                whole = chunk.draws.stop == num_samples
                if whole or log_w.numel() * len(waiting) >= _TAKEN_AT_ONCE:
                    block.update(torch.cat(waiting).double(), chunk.data.start, numbers)
                    waiting = []
                if mixture is not None:
                    mixture.update(chunk, numbers)
                if self.keep:
                    raw[-1].append(log_w.float())
                if whole:
                    found = block.result()
                    if mixture is not None:
                        # numbers of its own, so that q's draws are those without it
                        with seeded(*entropy, 3, chunk.data.start):
                            mixture.update_from_prior(first, model, guide, numbers)
                        found |= mixture.result()
                    columns.append(found)
                bar.update(log_w.numel())
        joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
        return joined, torch.cat([torch.cat(r) for r in raw], 1).numpy() if self.keep else None

    def _mixture(self, size: int, num_samples: int) -> DefensiveMixture | None:
        if self.defensive is None:
            return None
        return DefensiveMixture(size, num_samples, draws_of_prior(self.defensive, num_samples))


def _bar(progress: bool, total: int) -> tqdm:
    return tqdm(
        total=total,
        desc="evaluate",
        unit=" draws",
        unit_scale=True,
        disable=not progress,
        dynamic_ncols=True,
    )
