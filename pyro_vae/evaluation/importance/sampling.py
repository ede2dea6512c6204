"""Importance sampling with q as proposal, with a fixed or a chosen number of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...core.progress import progress_bar
from ...core.random import Stream, seeded
from ...programs.arguments import ProgramInputs
from ...programs.importance_weights import Chunk, stream_particles
from ...programs.inputs import block_seed
from ..bounds import Bounds
from ..estimators import SamplingOption, SamplingSettings
from ..precision import RESCORED, rounding_columns
from ..subsets import select_examples
from . import adaptive
from .defensive import DefensiveMixture, count_prior_samples
from .discrete import DiscreteLatents, find_discrete_latents
from .errors import estimate_errors
from .streaming import StreamingEstimates

__all__ = ["Corrected", "ImportanceSampler"]

#: The random stream of samples that do not belong to a pilot run.
_STREAM = (Stream.IMPORTANCE,)

#: Weights to collect before the estimates are updated: smaller updates cost about as much.
_WEIGHTS_PER_UPDATE = 1 << 16


@dataclass(frozen=True)
class Corrected(SamplingOption):
    """Two further estimates from the weights of q: the rows ``psis`` and ``jackknife``.

    ``psis`` smooths the tail of the weights, and ``jackknife`` reduces the bias of log p̂ from
    order 1/K to order 1/K².

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015).
        https://arxiv.org/abs/1507.02646
        Debiasing Evidence Approximations (Nowozin, 2018).
        https://openreview.net/forum?id=HyZoi-WRb
    """

    def configure(self, settings: SamplingSettings) -> SamplingSettings:
        return replace(settings, corrected=True)


@dataclass(frozen=True)
class ImportanceSampler:
    """Importance sampling with q as proposal.

    Attributes:
        inputs: the program and the data.
        indices: the indices of the examples in the whole data set, for error messages.
        seed: the random seed.
        settings: how q is sampled, and what is computed.
        rescored: which examples are also sampled in float32, booleans ``(N,)``; see
            :mod:`~pyro_vae.evaluation.precision`. ``None`` to sample all in one precision.
        progress: show a progress bar.
    """

    inputs: ProgramInputs
    indices: Tensor
    seed: int
    settings: SamplingSettings
    rescored: Tensor | None = None
    progress: bool = False

    def run(self) -> Bounds:
        """Return the estimates of all examples."""
        if self.settings.tolerance is None:
            return self._run_fixed()
        return self._run_adaptive(self.settings.tolerance)

    def _run_fixed(self) -> Bounds:
        """Evaluate with the same number of samples for every example."""
        num_samples, ks = self.settings.num_samples, self.settings.ks
        sizes = sorted({int(k) for k in ks if k <= num_samples} | {num_samples})
        with self._progress_bar() as bar:
            if self.rescored is None:
                columns, raw = self._sample(num_samples, sizes, _STREAM, bar)
            else:
                columns, raw = self._sample_twice(self.rescored, num_samples, sizes, bar)
        columns = estimate_errors(columns, gather=True)
        return self._make_bounds(columns, sizes, num_samples, raw)

    def _run_adaptive(self, tolerance: float) -> Bounds:
        """Evaluate with a number of samples per example that is chosen by pilot runs."""
        max_samples, ks = self.settings.num_samples, self.settings.ks
        candidates = adaptive.candidate_sample_counts(max_samples)
        sizes = sorted({int(k) for k in ks if k <= candidates[0]} | {candidates[0]})
        plain = replace(self.settings, corrected=False, defensive=None)
        pilot = replace(self, settings=plain)
        with self._progress_bar() as bar:

            def errors(num_samples: int, rows: Tensor) -> tuple[Tensor, Tensor]:
                stream = (Stream.PILOT, num_samples)
                columns, _ = pilot._sample(num_samples, (num_samples,), stream, bar, rows)
                columns = estimate_errors(columns)
                return columns["log_evidence_variance"].sqrt(), columns["khat_pooled"]

            counts, pilot_total = adaptive.choose_sample_counts(
                errors, len(self.indices), candidates, tolerance
            )
            parts = []
            for count in counts.unique().tolist():
                rows = (counts == count).nonzero()[:, 0]
                columns, _ = self._sample(count, sizes, (Stream.ADAPTIVE, count), bar, rows)
                parts.append(columns)
        # the parts are ordered by the number of samples, and by the index within a part
        inverse = counts.argsort(stable=True).argsort()
        # not all parts have the L_K of each
        common = [name for name in parts[0] if all(name in part for part in parts)]
        merged = {name: torch.cat([part[name] for part in parts])[inverse] for name in common}
        merged = estimate_errors(merged, gather=True)
        return self._make_bounds(
            {**merged, "num_samples": counts},
            sizes,
            max_samples,
            tolerance=tolerance,
            total_draws=pilot_total + int(counts.sum()),
        )

    def _sample_twice(
        self, rescored: Tensor, num_samples: int, ks: Sequence[int], bar: tqdm
    ) -> tuple[dict[str, Tensor], np.ndarray | None]:
        """Return the estimates, in float32 where ``rescored``, and their change by rounding there.

        The change is NaN elsewhere.
        """
        chosen, others = rescored.nonzero()[:, 0], (~rescored).nonzero()[:, 0]
        parts: list[tuple[dict[str, Tensor], np.ndarray | None]] = []
        if len(chosen):
            # other random numbers than those of the other examples, and the same in both runs
            part = replace(self, seed=block_seed(self.seed, Stream.PRECISION))
            exact = replace(part, settings=replace(self.settings, precision="float32"))
            columns, raw = exact._sample(num_samples, ks, _STREAM, bar, chosen)
            rounded = columns  # if there are no others to correct
            if len(others):
                rounded, _ = part._sample(num_samples, ks, _STREAM, bar, chosen)
            parts.append((columns | rounding_columns(columns, rounded), raw))
        if len(others):
            parts.append(self._sample(num_samples, ks, _STREAM, bar, others))
        inverse = torch.cat([chosen, others]).argsort()
        merged = {}
        for name in parts[0][0]:
            columns = [part.get(name, torch.full((len(others),), math.nan)) for part, _ in parts]
            merged[name] = torch.cat(columns)[inverse]
        raw = [part for _, part in parts if part is not None]
        merged[RESCORED] = rescored
        return merged, np.concatenate(raw, 1)[:, inverse.numpy()] if raw else None

    def _make_bounds(
        self,
        columns: Mapping[str, Tensor],
        sizes: Sequence[int],
        num_samples: int,
        log_weights: np.ndarray | None = None,
        **settings: Any,
    ) -> Bounds:
        arrays = {name: column.numpy() for name, column in columns.items()}
        if self.settings.defensive is not None:
            settings["defensive"] = self.settings.defensive
        return Bounds(
            num_samples=num_samples,
            per_datum={name: v for name, v in arrays.items() if not name.startswith("iwae_")},
            iwae_per_datum={k: arrays[f"iwae_{k}"] for k in sizes},
            iwae_variance={k: arrays[f"iwae_{k}_variance"] for k in sizes},
            log_weights=log_weights,
            seed=self.seed,
            settings=settings,
        )

    def _progress_bar(self) -> tqdm:
        return progress_bar(0, self.progress, desc="evaluate", unit=" samples", unit_scale=True)

    def _sample(
        self,
        num_samples: int,
        ks: Sequence[int],
        stream: tuple[int, ...],
        bar: tqdm,
        rows: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], np.ndarray | None]:
        """Return the estimates per example, and the raw weights if kept.

        ``rows`` are the indices of the examples to use, all by default; ``bar`` advances by the
        number of weights.
        """
        part = self
        if rows is not None:
            inputs = select_examples(self.inputs, rows)
            part = replace(self, inputs=inputs, indices=self.indices[rows])
        bar.total = bar.n + len(part.inputs.x) * num_samples
        options = self.settings
        chunks = stream_particles(
            part.inputs,
            num_samples,
            chunk_size=options.chunk_size,
            compile=options.compile,
            precision=options.precision,
        )
        discrete: DiscreteLatents | None = None
        # not a list, because a block refers to its examples and its first samples
        block: _Block | None = None
        columns: list[dict[str, Tensor]] = []
        raw: list[Tensor] = []
        with seeded(self.seed, *stream), closing(chunks):
            for chunk in chunks:
                if block is None:
                    with seeded(self.seed, Stream.DISCRETE_SETUP, num_samples):
                        discrete = find_discrete_latents(chunk)
                if block is None or chunk.draws.start == 0:
                    block = _Block(part, chunk, num_samples, ks, discrete)
                block.update(chunk)
                if chunk.draws.stop == num_samples:
                    columns.append(block.result())
                    if self.settings.keep_log_weights:
                        raw.append(torch.cat(block.raw))
                bar.update(chunk.particles.log_weights.numel())
        merged = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
        if not self.settings.keep_log_weights:
            return merged, None
        return merged, torch.cat(raw, 1).numpy()


class _Block:
    """Estimates of a block of examples from chunks of their samples.

    Attributes:
        raw: the raw weights, ``(draws, n)`` for each chunk, if kept.
    """

    def __init__(
        self,
        sampler: ImportanceSampler,
        first: Chunk,
        num_samples: int,
        ks: Sequence[int],
        discrete: DiscreteLatents | None,
    ) -> None:
        size = first.data.stop - first.data.start
        self.sampler, self.first, self.num_samples = sampler, first, num_samples
        self.discrete = discrete
        self.estimates = StreamingEstimates(size, num_samples, ks, sampler.settings.corrected)
        self.mixture: DefensiveMixture | None = None
        if sampler.settings.defensive is not None:
            num_prior = count_prior_samples(sampler.settings.defensive, num_samples)
            self.mixture = DefensiveMixture(size, num_samples, num_prior)
        self.raw: list[Tensor] = []
        self._pending: list[Tensor] = []

    def update(self, chunk: Chunk) -> None:
        log_w = chunk.particles.log_weights.cpu()
        self._pending.append(log_w)
        if log_w.numel() * len(self._pending) >= _WEIGHTS_PER_UPDATE:
            self._flush()
        if self.mixture is not None:
            self.mixture.update(chunk, self.sampler.indices)
        if self.sampler.settings.keep_log_weights:
            self.raw.append(log_w.float())

    def _flush(self) -> None:
        if self._pending:
            log_w = torch.cat(self._pending).double()
            self.estimates.update(log_w, self.first.data.start, self.sampler.indices)
        self._pending = []

    def result(self) -> dict[str, Tensor]:
        """Return the columns, and draw the samples of the prior if there is a mixture."""
        self._flush()
        rare: tuple[Tensor, Tensor] | None = None
        if self.discrete is not None and self.discrete.values is not None:
            entropy = (self.sampler.seed, Stream.DISCRETE, self.num_samples, self.first.data.start)
            with seeded(*entropy):
                rare = self.discrete.rare_variance(self.first, self.num_samples)
        columns = self.estimates.result(rare, self.discrete is not None, pooled=True)
        if self.mixture is not None:
            start = self.first.data.start
            # a separate stream, so that the samples of q are those without a mixture
            with seeded(self.sampler.seed, Stream.DEFENSIVE, self.num_samples, start):
                self.mixture.update_from_prior(self.first, self.sampler.indices)
            columns |= self.mixture.result()
        return columns
